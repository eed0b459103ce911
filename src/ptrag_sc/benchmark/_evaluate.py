"""How good are predicted cells, condition by condition?"""

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
from anndata import AnnData

from ptrag_sc._validation import unknown
from ptrag_sc.benchmark._pairing import Cells, Pair, pair_conditions, read_cells
from ptrag_sc.metrics import METRICS, Reference

COLUMNS = ["perturbation", "cell_type", "metric", "value", "n_real", "n_predicted"]


def evaluate(
    real: AnnData, predicted: AnnData, *, reference: Reference, metrics: Iterable[str] | None = None
) -> pd.DataFrame:
    """Compare predicted with real cells of every condition that both objects hold.

    Means are taken at the control composition of the cell type: each side's shift is measured from controls of its
    own batch composition, so predictions need not have the batches of the real cells.

    Parameters
    ----------
    real
        Observed cells, on the scale of the registered layer.
    predicted
        Predicted cells of any model with the same obs columns and at least the genes of the reference.
    reference
        Controls, centre and principal components from training cells.
    metrics
        Rows of :data:`ptrag_sc.metrics.METRICS`; None takes all.

    Returns
    -------
    Columns ``perturbation``, ``cell_type``, ``metric``, ``value``, ``n_real``, ``n_predicted``. Metrics of cells are
    NaN for conditions with fewer than two cells on either side.

    Raises
    ------
    KeyError
        If a metric, gene or column is unknown.
    ValueError
        If the objects share no condition, or expression holds NaN.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=600, n_genes=60, n_perturbations=10, n_cell_types=2)
    >>> ptrag_sc.PTRAG.setup_anndata(
    ...     adata, perturbation_key="perturbation", control="non-targeting", cell_type_key="cell_type"
    ... )
    >>> reference = ptrag_sc.metrics.Reference.from_adata(adata)
    >>> scores = evaluate(adata, adata, reference=reference, metrics=["pearson_delta"])
    >>> bool((scores["value"] > 0.999).all())
    True
    """
    names = list(METRICS) if metrics is None else [metrics] if isinstance(metrics, str) else list(metrics)
    strange = [name for name in names if name not in METRICS]
    if strange:
        raise KeyError(unknown("Metric", strange, "METRICS", METRICS, "Pass rows of ptrag_sc.metrics.METRICS."))
    sides = read_cells(real, reference, place="real"), read_cells(predicted, reference, place="predicted")
    rows = [
        (pair.perturbation, pair.cell_type, name, value, len(pair.real), len(pair.predicted))
        for pair in pair_conditions(*sides, control=reference.keys.control)
        for name, value in _scores(pair, *sides, reference, names)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _scores(
    pair: Pair, real: Cells, predicted: Cells, reference: Reference, names: list[str]
) -> Iterator[tuple[str, float]]:
    control = reference.matched_control(pair.cell_type, None)
    origins = {"control": control, "centre": reference.centre[reference.cell_type_row(pair.cell_type)]}
    sides = (real, pair.real), (predicted, pair.predicted)
    cells = [side.reader.rows(rows) for side, rows in sides]
    means = [
        control + x.mean(0, dtype=np.float64) - reference.matched_control(pair.cell_type, side.batches(rows))
        for x, (side, rows) in zip(cells, sides, strict=True)
    ]
    projected = None
    for name in names:
        metric = METRICS[name]
        if metric.level == "means":
            yield name, metric.function(*means, origins[metric.reference])
        elif min(map(len, cells)) < 2:
            yield name, float("nan")
        else:
            projected = [reference.project(x) for x in cells] if projected is None else projected
            yield name, metric.function(*projected)
