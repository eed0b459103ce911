"""How good are predicted cells, condition by condition?"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

import numpy as np
import pandas as pd

from ptrag_sc._validation import absent, unknown
from ptrag_sc.benchmark._means import Scores, both_ways, comparable_mean, read_mean, values_of_means
from ptrag_sc.benchmark._pairing import Cells, Pair, check_scales, pair_conditions, read_cells, warn_of_batches
from ptrag_sc.benchmark._target_genes import perturbed_genes, target_names, warn_of_unmeasured
from ptrag_sc.data._fields import AnnOrMuData
from ptrag_sc.data._progress import shown_if_slow
from ptrag_sc.metrics import DEFAULT_METRICS, METRICS, Metric, Reference, t_weights
from ptrag_sc.metrics._genes import DifferentialExpression, wilcoxon_tests

TESTED_AT_ONCE = 32  # conditions whose cells are in memory for tests
COLUMNS = ["perturbation", "cell_type", "metric", "value", "n_real", "n_predicted"]

MetricChoice = str | Iterable[str] | Mapping[str, Metric] | None  # None: the default ones
Metrics = dict[str, Metric]  # by name


def evaluate(
    real: AnnOrMuData,
    predicted: AnnOrMuData,
    *,
    reference: Reference,
    metrics: MetricChoice = None,
    gene_symbols: str | None = None,
) -> pd.DataFrame:
    """Compare predicted with real cells of every condition that is in both objects.

    Means are taken at the control composition of the cell type: the shift of real and of predicted cells is measured
    from controls of their own batch composition, so predictions need not have the batches of the real cells. With
    ``Reference.from_adata(controls="split")`` the two shifts share no control cell in the metrics that take the control
    (``pearson_delta``, ``effect_slope``, ``pds_cosine``). Each cell is read once (twice for tests of genes), and only
    what the metrics need is computed.

    Parameters
    ----------
    real
        Observed cells, on the scale of the registered layer. ``wmse`` and ``r2w_delta_pert`` weight genes by all
        perturbed cells in it; ``de_overlap``, ``de_direction``, ``de_jaccard`` and ``lfc_nmae`` test real and predicted
        cells against the control cells in it, and leave out the perturbed genes themselves.
    predicted
        Predicted cells of any model with the same obs columns and at least the genes of the reference. They are always
        read from ``X``, on the scale of the registered layer.
    reference
        Controls, centre and principal components from training cells.
    metrics
        Names of rows of :data:`ptrag_sc.metrics.METRICS`. None: the seven of
        :data:`ptrag_sc.metrics.DEFAULT_METRICS`: ``pearson_delta``, ``pearson_delta_pert``, ``pds_cosine``, ``wmse``,
        ``effect_slope``, ``energy_distance``, ``variance_ratio``. A mapping gives rows of your own by name, such as
        those of :func:`pertpy_metric`.
    gene_symbols
        Column of ``real.var`` with the names by which perturbations are labelled, so that perturbed genes can be left
        out where ``var_names`` are others. None: the names at set-up.

    Returns
    -------
    DataFrame
        Columns ``perturbation``, ``cell_type``, ``metric``, ``value``, ``n_real``, ``n_predicted``. A value that is not
        defined is NaN: metrics of cells and tests if there are fewer than two real or predicted cells, ranks if a cell
        type has a single perturbation, weights if there are fewer than two cells of the perturbation or of the others.

    Raises
    ------
    KeyError
        If a metric, gene or column is unknown.
    ValueError
        If the objects share no condition, one contains raw counts, NaN or no cells, or there are no control cells for a
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
    observed = read_cells(real, reference, place="real")
    guessed = read_cells(predicted, reference, place="predicted")
    check_scales(observed, guessed, reference)
    warn_of_batches({"real": observed, "predicted": guessed}, reference)
    pairs = pair_conditions(observed, guessed, control=reference.keys.control)
    names = target_names(real, reference, gene_symbols)  # (G,)
    if any(row.level == "tests" or "perturbed" in row.reference for row in rows.values()):
        warn_of_unmeasured(real, pairs, reference, names)
    values: dict[tuple[str, str, str], float] = {}
    # Ranks and weights compare the perturbations of a cell type, so that each cell type is scored as a whole.
    for cell_type, group in groupby(sorted(pairs, key=_cell_type), key=_cell_type):
        panel = list(group)
        for name, found in _scores(panel, observed, guessed, reference, rows, names):
            for pair, value in zip(panel, found, strict=True):
                values[pair.perturbation, cell_type, name] = value
    table = []
    for pair in pairs:
        for name in rows:
            value = values[pair.perturbation, pair.cell_type, name]
            table.append((pair.perturbation, pair.cell_type, name, value, len(pair.real), len(pair.predicted)))
    return pd.DataFrame(table, columns=COLUMNS)


def chosen_metrics(metrics: MetricChoice) -> Metrics:
    """Return rows by name.

    Raises
    ------
    KeyError
        If a name is not in the table.
    """
    if isinstance(metrics, Mapping):
        return dict(metrics)
    if metrics is None:
        names = list(DEFAULT_METRICS)
    elif isinstance(metrics, str):
        names = [metrics]
    else:
        names = list(metrics)
    strange = [name for name in names if name not in METRICS]
    if strange:
        raise KeyError(unknown("Metric", strange, "METRICS", METRICS, "Pass rows of ptrag_sc.metrics.METRICS."))
    return {name: METRICS[name] for name in names}


def _cell_type(pair: Pair) -> str:
    return pair.cell_type


def _scores(
    panel: list[Pair], real: Cells, predicted: Cells, reference: Reference, rows: Metrics, names: np.ndarray
) -> Scores:
    """Yield each metric's name and its values (P,) for the conditions of one cell type.

    ``names`` (G,) are those of the genes by which perturbations are labelled.
    """
    cell_type = panel[0].cell_type
    t = reference.cell_type_row(cell_type)
    further = {
        "control": reference.control[t],  # (G,)
        "centre": reference.centre[t],  # (G,)
        "perturbed": perturbed_genes((pair.perturbation for pair in panel), names, reference.keys.sep),  # (G,)
    }
    weighted = any("weights" in row.reference for row in rows.values())
    n_weighted = len(panel) if weighted else 0
    real_means = np.empty((len(panel), len(reference.genes)))  # (P, G)
    predicted_means = np.empty_like(real_means)  # (P, G)
    moments = np.empty((2, n_weighted, len(reference.genes)))  # (2, P, G)
    values = {name: np.full(len(panel), np.nan) for name, row in rows.items() if row.level == "cells"}
    # Each condition is read once, and only its mean if no metric needs the cells.
    read = _read if values or weighted else read_mean
    for i, pair in enumerate(shown_if_slow(panel, f"Scoring {cell_type}", len(panel))):
        real_cells = read(real, pair.real)  # (n, G)
        predicted_cells = read(predicted, pair.predicted)  # (m, G)
        real_means[i] = comparable_mean(real_cells, real.batches(pair.real), cell_type, reference)
        predicted_means[i] = comparable_mean(predicted_cells, predicted.batches(pair.predicted), cell_type, reference)
        if weighted:
            moments[:, i] = _moments(real_cells)
        if min(len(real_cells), len(predicted_cells)) > 1:
            for name, value in _values_of_cells(real_cells, predicted_cells, reference, rows):
                values[name][i] = value
    if weighted:
        further["weights"] = _weights(panel, moments, real, reference)  # (P, G)
    yield from values.items()
    means = real_means, predicted_means
    yield from values_of_means(means, both_ways(panel, means, real, predicted, reference), further, rows)
    yield from _values_of_tests(panel, real, predicted, reference, rows, names)


def _read(side: Cells, rows: np.ndarray) -> np.ndarray:
    """Return dense cells (n, G)."""
    return side.reader.rows(rows)


def _values_of_cells(
    real: np.ndarray, predicted: np.ndarray, reference: Reference, rows: Metrics
) -> Iterator[tuple[str, float]]:
    """Yield name and value of the metrics that take the real (n, G) and predicted cells (m, G) of one condition."""
    spaces = {"genes": (real, predicted)}
    if any(row.space == "pcs" for row in rows.values()):
        spaces["pcs"] = (reference.project(real), reference.project(predicted))  # (n, d), (m, d)
    for name, row in rows.items():
        if row.level == "cells":
            yield name, row.function(*spaces[row.space])


def _values_of_tests(
    panel: list[Pair], real: Cells, predicted: Cells, reference: Reference, rows: Metrics, names: np.ndarray
) -> Scores:
    """Yield name and values (P,) of the metrics that take tests of every gene."""
    rows = {name: row for name, row in rows.items() if row.level == "tests"}
    if not rows:
        return
    control = _control_cells(real, panel[0].cell_type, reference)  # (n, G)
    values = {name: np.full(len(panel), np.nan) for name in rows}
    usable = [i for i, pair in enumerate(panel) if min(len(pair.real), len(pair.predicted)) > 1]
    starts = range(0, len(usable), TESTED_AT_ONCE)
    for start in shown_if_slow(starts, "Testing genes", len(starts)):
        part = usable[start : start + TESTED_AT_ONCE]
        real_tests = wilcoxon_tests([real.reader.rows(panel[i].real) for i in part], control)
        predicted_tests = wilcoxon_tests([predicted.reader.rows(panel[i].predicted) for i in part], control)
        for i, *tests in zip(part, real_tests, predicted_tests, strict=True):
            # A knocked-down gene is trivial to predict, and would count in every condition.
            kept = ~perturbed_genes([panel[i].perturbation], names, reference.keys.sep)  # (G,)
            both = [DifferentialExpression(*(column[kept] for column in test)) for test in tests]
            for name, row in rows.items():
                values[name][i] = row.function(*both)
    yield from values.items()


def _control_cells(real: Cells, cell_type: str, reference: Reference) -> np.ndarray:
    """Return the control cells (n, G) that tests compare with."""
    keys = reference.keys
    labels = real.labels
    rows = np.flatnonzero((labels["perturbation"] == keys.control) & (labels["cell_type"] == cell_type))
    if len(rows) < 2:
        place = f"the {len(rows)} control cells of cell type {cell_type!r} in real.obs[{keys.perturbation_key!r}]"
        remedy = "Tests need two or more: keep the control cells in real, or leave out the metrics of genes."
        raise ValueError(
            absent("Control label", keys.control, place, sorted(set(labels["perturbation"].dropna())), remedy)
        )
    return real.reader.rows(rows)


def _moments(cells: np.ndarray) -> np.ndarray:
    """Return sums and sums of squares (2, G)."""
    return np.stack([cells.sum(0, dtype=np.float64), np.einsum("ng,ng->g", cells, cells, dtype=np.float64)])


def _weights(panel: list[Pair], moments: np.ndarray, real: Cells, reference: Reference) -> np.ndarray:
    """Return the weights (P, G) of genes, from tests of each perturbation against all other perturbed cells.

    The other cells include those of perturbations that were not predicted, which are read here.
    """
    cell_type = panel[0].cell_type
    done = {reference.keys.control, *(pair.perturbation for pair in panel)}
    rest = [rows for (p, t), rows in real.conditions().items() if t == cell_type and p not in done]
    n_cells = np.array([len(pair.real) for pair in panel] + [len(rows) for rows in rest])  # (P + R,)
    if rest:
        further = np.stack([_moments(real.reader.rows(rows)) for rows in rest], axis=1)  # (2, R, G)
        moments = np.concatenate([moments, further], axis=1)
    sums, squares = moments  # (P + R, G)
    return t_weights(sums, squares, n_cells)[: len(panel)]
