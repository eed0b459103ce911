"""How good are predicted cells, condition by condition?"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import issparse

from ptrag_sc._validation import absent, unknown
from ptrag_sc.benchmark._pairing import Cells, Pair, check_scales, pair_conditions, read_cells
from ptrag_sc.data import components
from ptrag_sc.metrics import DEFAULT_METRICS, METRICS, Metric, Reference, t_weights
from ptrag_sc.metrics._genes import wilcoxon_tests

logger = logging.getLogger(__name__)

TESTED_AT_ONCE = 32  # conditions whose cells are held for tests
COLUMNS = ["perturbation", "cell_type", "metric", "value", "n_real", "n_predicted"]


def evaluate(
    real: AnnData,
    predicted: AnnData,
    *,
    reference: Reference,
    metrics: str | Iterable[str] | Mapping[str, Metric] | None = None,
) -> pd.DataFrame:
    """Compare predicted with real cells of every condition that both objects hold.

    Means are taken at the control composition of the cell type: each side's shift is measured from controls of its
    own batch composition, so predictions need not have the batches of the real cells. Each cell is read once (twice for
    tests of genes), and only what the metrics need is computed.

    Parameters
    ----------
    real
        Observed cells, on the scale of the registered layer. ``wmse`` and ``r2w_delta_pert`` weigh genes by all
        perturbed cells in it; ``de_overlap``, ``de_direction``, ``de_jaccard`` and ``lfc_nmae`` test both sides
        against the control cells in it, and leave out the perturbed genes themselves.
    predicted
        Predicted cells of any model with the same obs columns and at least the genes of the reference; always read from
        ``X``, on the scale of the registered layer.
    reference
        Controls, centre and principal components from training cells.
    metrics
        Rows of :data:`ptrag_sc.metrics.METRICS`; None takes the seven of
        :data:`ptrag_sc.metrics.DEFAULT_METRICS`: ``pearson_delta``, ``pearson_delta_pert``, ``pds_cosine``, ``wmse``,
        ``effect_slope``, ``energy_distance``, ``variance_ratio``. A mapping gives rows of your own, such as those of
        :func:`pertpy_metric`, by name.

    Returns
    -------
    Columns ``perturbation``, ``cell_type``, ``metric``, ``value``, ``n_real``, ``n_predicted``. A value is NaN where it
    is not defined: metrics of cells and tests with fewer than two cells on either side, ranks among a single
    perturbation of a cell type, weights with fewer than two cells of the perturbation or of the others.

    Raises
    ------
    KeyError
        If a metric, gene or column is unknown.
    ValueError
        If the objects share no condition, one holds raw counts, NaN or no cells, or there are no control cells for a
        metric that tests against them.

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
    rows = chosen_metrics(metrics)
    sides = read_cells(real, reference, place="real"), read_cells(predicted, reference, place="predicted")
    check_scales(*sides, layer=reference.keys.layer)
    pairs = pair_conditions(*sides, control=reference.keys.control)
    left_out = len([c for c in sides[1].conditions() if c[0] != reference.keys.control]) - len(pairs)
    if left_out:
        logger.info("%d predicted conditions have no real cells and are left out.", left_out)
    values = {}
    for cell_type, panel in groupby(sorted(pairs, key=_cell_type), key=_cell_type):
        panel = list(panel)
        for name, found in _scores(panel, *sides, reference, rows):
            values |= {(pair.perturbation, cell_type, name): v for pair, v in zip(panel, found, strict=True)}
    table = [
        (*pair[:2], name, values[*pair[:2], name], len(pair.real), len(pair.predicted))
        for pair in pairs
        for name in rows
    ]
    return pd.DataFrame(table, columns=COLUMNS)


def chosen_metrics(metrics: str | Iterable[str] | Mapping[str, Metric] | None) -> dict[str, Metric]:
    """Return rows by name.

    Raises
    ------
    KeyError
        If a name is not in the table.
    """
    if isinstance(metrics, Mapping):
        return dict(metrics)
    names = DEFAULT_METRICS if metrics is None else [metrics] if isinstance(metrics, str) else list(metrics)
    strange = [name for name in names if name not in METRICS]
    if strange:
        raise KeyError(unknown("Metric", strange, "METRICS", METRICS, "Pass rows of ptrag_sc.metrics.METRICS."))
    return {name: METRICS[name] for name in names}


def _cell_type(pair: Pair) -> str:
    return pair.cell_type


def _scores(
    panel: list[Pair], real: Cells, predicted: Cells, reference: Reference, rows: dict[str, Metric]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each metric's name and its values (P,) for the conditions of one cell type."""
    cell_type = panel[0].cell_type
    t = reference.cell_type_row(cell_type)
    further = {
        "control": reference.control[t],
        "centre": reference.centre[t],
        "perturbed": _perturbed_genes(panel, reference),
    }
    weighted = any("weights" in row.reference for row in rows.values())
    means = np.empty((2, len(panel), len(reference.genes)))
    moments = np.empty_like(means) if weighted else None
    values = {name: np.full(len(panel), np.nan) for name, row in rows.items() if row.level == "cells"}
    read = _read if values or weighted else _mean_row
    for i, pair in enumerate(panel):
        cells = read(real, pair.real), read(predicted, pair.predicted)
        for j, (side, place) in enumerate(((real, pair.real), (predicted, pair.predicted))):
            own = reference.matched_control(cell_type, side.batches(place))
            means[j, i] = cells[j].mean(0, dtype=np.float64) - own + further["control"]
        if weighted:
            moments[:, i] = _moments(cells[0])
        if min(map(len, cells)) > 1:
            for name, value in _values_of_cells(cells, reference, rows):
                values[name][i] = value
    if weighted:
        further["weights"] = _weights(panel, moments, real, reference)
    yield from values.items()
    yield from _values_of_means(*means, further, rows)
    yield from _values_of_tests(panel, real, predicted, reference, rows)


def _read(side: Cells, rows: np.ndarray) -> np.ndarray:
    """Return dense cells (n, G)."""
    return side.reader.rows(rows)


def _mean_row(side: Cells, rows: np.ndarray) -> np.ndarray:
    """Return the mean of some cells (1, G); sparse cells stay sparse."""
    reader = side.reader
    if not issparse(reader.matrix):
        return reader.rows(rows).mean(0, dtype=np.float64, keepdims=True)
    mean = np.asarray(reader.matrix[rows].mean(0, dtype=np.float64)).reshape(1, -1)
    return mean if reader.columns is None else mean[:, reader.columns]


def _values_of_cells(
    cells: tuple[np.ndarray, np.ndarray], reference: Reference, rows: dict[str, Metric]
) -> Iterator[tuple[str, float]]:
    """Yield name and value of the metrics that take the cells of one condition."""
    spaces = {"genes": cells}
    if any(row.space == "pcs" for row in rows.values()):
        spaces["pcs"] = [reference.project(x) for x in cells]
    for name, row in rows.items():
        if row.level == "cells":
            yield name, row.function(*spaces[row.space])


def _values_of_tests(
    panel: list[Pair], real: Cells, predicted: Cells, reference: Reference, rows: dict[str, Metric]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and values (P,) of the metrics that take tests of every gene."""
    rows = {name: row for name, row in rows.items() if row.level == "tests"}
    if not rows:
        return
    control = _control_cells(real, panel[0].cell_type, reference)
    values = {name: np.full(len(panel), np.nan) for name in rows}
    usable = [i for i, pair in enumerate(panel) if min(len(pair.real), len(pair.predicted)) > 1]
    for part in np.array_split(usable, max(1, -(-len(usable) // TESTED_AT_ONCE))):
        pairs = [panel[i] for i in part]
        sides = [
            wilcoxon_tests([side.reader.rows(pair[2 + j]) for pair in pairs], control)
            for j, side in enumerate((real, predicted))
            if pairs
        ]
        for i, pair, *tests in zip(part, pairs, *sides, strict=True):
            kept = ~_perturbed_genes([pair], reference)
            tests = [type(test)(*(column[kept] for column in test)) for test in tests]
            for name, row in rows.items():
                values[name][i] = row.function(*tests)
    yield from values.items()


def _values_of_means(
    real: np.ndarray, predicted: np.ndarray, further: dict[str, np.ndarray], rows: dict[str, Metric]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and values (P,) of the metrics that take means (P, G)."""
    for name, row in rows.items():
        arguments = [further[key] for key in row.reference if row.level in ("means", "panel")]
        if row.level == "panel":
            yield name, row.function(real, predicted, *arguments)
        elif row.level == "means":
            # The weights differ between conditions, all else is that of the cell type.
            each = [a if key == "weights" else [a] * len(real) for key, a in zip(row.reference, arguments, strict=True)]
            yield name, np.array([row.function(*values) for values in zip(real, predicted, *each, strict=True)])


def _perturbed_genes(panel: list[Pair], reference: Reference) -> np.ndarray:
    """Return whether each gene (G,) is perturbed in one of the conditions."""
    names = {gene for pair in panel for gene in components(pair.perturbation, reference.keys.sep)}
    return np.array([gene in names for gene in reference.genes], dtype=bool)


def _control_cells(real: Cells, cell_type: str, reference: Reference) -> np.ndarray:
    """Return the control cells (n, G) that tests compare with."""
    keys, labels = reference.keys, real.labels
    rows = np.flatnonzero((labels["perturbation"] == keys.control) & (labels["cell_type"] == cell_type))
    if len(rows) < 2:
        place = f"the {len(rows)} control cells of cell type {cell_type!r} in real.obs[{keys.perturbation_key!r}]"
        remedy = "Tests need two or more: keep the control cells in real, or leave the metrics of genes out."
        raise ValueError(absent("Control label", keys.control, place, sorted(set(labels["perturbation"])), remedy))
    return real.reader.rows(rows)


def _moments(cells: np.ndarray) -> np.ndarray:
    """Return sums and sums of squares (2, G)."""
    return np.stack([cells.sum(0, dtype=np.float64), np.einsum("ng,ng->g", cells, cells, dtype=np.float64)])


def _weights(panel: list[Pair], moments: np.ndarray, real: Cells, reference: Reference) -> np.ndarray:
    """Return the weights (P, G) of genes, the perturbations that were not predicted among the rest."""
    done, cell_type = {reference.keys.control, *(pair.perturbation for pair in panel)}, panel[0].cell_type
    rest = [rows for (p, t), rows in real.conditions().items() if t == cell_type and p not in done]
    n_cells = [len(pair.real) for pair in panel] + [len(rows) for rows in rest]
    further = [_moments(real.reader.rows(rows)) for rows in rest]
    moments = np.concatenate([moments, np.stack(further, axis=1)], axis=1) if rest else moments
    return t_weights(*moments, np.array(n_cells))[: len(panel)]
