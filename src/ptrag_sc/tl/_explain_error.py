"""Why is a predicted shift wrong: too few cells, batches, its own target, the mean shift, neighbours, or the model?"""

import logging

import numpy as np
import pandas as pd
from anndata import AnnData

from ptrag_sc._constants import DEFAULT_KEY
from ptrag_sc._validation import listed, unusable
from ptrag_sc.data import Predictor, Screen, read_labels, read_screen
from ptrag_sc.data._gene_names import gene_names
from ptrag_sc.data._mudata import as_anndata
from ptrag_sc.metrics import Reference
from ptrag_sc.metrics._error_parts import CAUSES, ErrorNoise, error_parts
from ptrag_sc.tl._error_cells import PredictedCells, read_predicted, shared_genes
from ptrag_sc.tl._error_controls import ControlNoise
from ptrag_sc.tl._error_evidence import (
    NOTHING,
    learned_conditions,
    mean_shifts_of,
    measured_evidence,
    recalled_evidence,
)
from ptrag_sc.tl._error_panel import Panel
from ptrag_sc.tl._gene_groups import GeneGroups, read_groups
from ptrag_sc.tl._model import check_predictor

logger = logging.getLogger(__name__)


def explain_error(
    adata: AnnData,
    predicted: AnnData,
    *,
    reference: Reference,
    groups: GeneGroups = None,
    by: str | None = None,
    model: Predictor | None = None,
    shared_controls: bool | None = None,
    key: str = DEFAULT_KEY,
) -> pd.DataFrame:
    """Say where the squared error of predicted mean shifts comes from.

    For every predicted condition with observed cells the squared difference of predicted and observed (batch-matched)
    shift is summed over genes and taken apart. The parts add up to the total. Each is estimated without bias, so that a
    small one can be below 0 by chance; only their mean over conditions is accurate.

    ``observed cells``, ``control cells``
        Too few of them: variance of the two means. No model can predict this.
    ``predicted cells``
        Too few predicted cells: variance of their mean.
    ``batches``
        Observed cells from batches without control cells, times the variance between batches.
    ``composition``
        Observed cells have another composition than the control cells, for example more of them in G1 (only with
        ``by``).
    ``own gene``
        The genes that the perturbation targets. All causes below are of the other genes.
    ``common shift``
        What the errors of a cell type's conditions have in common: the mean shift is wrong.
    ``neighbours wrong``, ``neighbours disagree``
        The error of the retrieved neighbours' weighted mean shift: what they are wrong about on average (all agree and
        are wrong, or those that are right have little weight), and what comes from their scatter (which more neighbours
        of this kind, or more cells of them, would reduce).
    ``generator``
        What the model adds to the error of its neighbours; below 0 where it corrects them. For a predictor without
        neighbours, all that remains.

    Parameters
    ----------
    adata
        Observed cells and control cells, set up with ``setup_anndata``; the reference was built from it.
    predicted
        Predicted cells in ``X``, such as the result of :func:`perturb`, of conditions that were held out. Cells of
        other tools need the same columns of ``obs``.
    reference
        Reference of the same object.
    groups
        Which genes belong together: a column of ``adata.var``, the path of a GMT file, or names of genes by name of
        group. Each gives rows of its own, and genes without a group are ``"other"``. Where groups share genes, the rows
        of groups do not add up to the total.
    by
        Column of ``adata.obs`` with categories of cells, such as the phase of the cell cycle.
    model
        The model that made the predictions: neighbours then say what it recalls of them, which a memory shrinks and
        smooths. None: what they did as it was measured, so that shrinking is a part of ``generator``.
    shared_controls
        Whether predicted shifts were learned from the control cells of ``adata``. The noise of these is then in both
        shifts and cancels as far as batches are the same. None: True for a prediction of this package.
    key
        Key of the prediction in ``predicted.uns``.

    Returns
    -------
    DataFrame
        One row per condition, group and cause: ``perturbation``, ``cell_type``, ``group`` (only with ``groups``),
        ``cause``, ``squared_error`` (squared expression, summed over genes), ``share`` (of the total) and ``total`` (of
        the condition, all genes). Conditions with the largest total come first.

    Raises
    ------
    KeyError
        If a column, a cell type or groups do not exist.
    ValueError
        If no predicted condition has observed cells, no gene is shared, values are on another scale, or the control
        cells are not those of the reference.

    Notes
    -----
    A part that cannot be known is NaN, with a warning, and stays in the parts of the prediction: the first if a
    condition has a single cell (per batch), batches if fewer than two have control cells. Errors of conditions that the
    predictor learned from are not explained: their noise is in the prediction as well (a warning). :doc:`/method` has
    the equations.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=900, n_genes=60, n_perturbations=10, n_cell_types=2)
    >>> labels = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}
    >>> ptrag_sc.pp.split(adata, **labels, holdout="perturbation", test_fraction=0.3)
    >>> ptrag_sc.PTRAG.setup_anndata(adata, **labels, split_key="split")
    >>> model = ptrag_sc.baselines.NearestPerturbations(adata, n_neighbors=3).fit()
    >>> held_out = adata.obs.loc[adata.obs["split"] == "test", "perturbation"].unique()
    >>> virtual = ptrag_sc.tl.perturb(adata, model, held_out, counts=False)
    >>> table = explain_error(adata, virtual, reference=ptrag_sc.metrics.Reference.from_adata(adata))
    >>> parts = table.groupby(["perturbation", "cell_type"])["squared_error"].sum()
    >>> totals = table.groupby(["perturbation", "cell_type"])["total"].first()
    >>> bool((abs(parts - totals) < 1e-9).all())
    True
    """
    if model is not None:
        check_predictor(model)
    keys = reference.keys
    adata, predicted = as_anndata(adata, keys), as_anndata(predicted, keys)
    screen = read_screen(adata, keys, genes=shared_genes(adata, predicted, reference.genes, keys.gene_symbols))
    names, member = read_groups(groups, adata.var.set_axis(gene_names(adata, keys.gene_symbols)), screen.genes)
    cells = read_predicted(predicted, adata, screen, keys, key)
    conditions = _conditions(screen, cells, keys.control)
    train = learned_conditions(adata, screen, keys)
    _warn_of_learned(screen, conditions, train)
    kept = predicted.uns.get(key, {})
    for t in {t for _, t in conditions} | set(screen.index.cell_types[train["cell_type"]]):
        reference.cell_type_row(str(t))  # an error if the reference does not know it
    mean = mean_shifts_of(reference, screen.genes)
    kept = predicted.uns.get(key, {})
    if model is not None:
        evidence = recalled_evidence(model, adata, conditions, mean, screen.genes)
    else:
        evidence = measured_evidence(screen, train, kept.get("retrieval", NOTHING), mean, keys.sep)
    if shared_controls is None:
        shared_controls = kept.get("params", {}).get("model", "NoEffect") != "NoEffect"
    categories, category = None, None
    if by is not None:
        categories, category = np.unique(read_labels(adata.obs, by).astype(str), return_inverse=True)
    tables = []
    for t in sorted({t for _, t in conditions}):
        labels = [label for label, of_type in conditions if of_type == t]
        code = int(np.flatnonzero(screen.index.cell_types == t)[0])
        controls = ControlNoise.of(screen, code, category)
        _check_controls(reference, screen, controls, t)
        panel = Panel(screen, cells, controls, code, category)
        terms, noise = panel.inputs(labels, evidence, train, shared=shared_controls, sep=keys.sep)
        _warn_of_unknown(labels, t, noise)
        _warn_of_categories(controls, categories, t)
        parts = {cause: part @ member.T.astype(float) for cause, part in error_parts(terms, noise).items()}  # (C, M)
        tables.append(_table(labels, t, names, parts, np.square(terms.error).sum(1)))
    table = pd.concat(tables, ignore_index=True).sort_values("total", ascending=False, kind="stable", ignore_index=True)
    if by is None:
        table = table[table["cause"] != "composition"].reset_index(drop=True)
    table["cause"] = pd.Categorical(table["cause"], [cause for cause in CAUSES if by or cause != "composition"])
    return table.drop(columns=["group"] if groups is None else [])


def _conditions(screen: Screen, cells: PredictedCells, control: str) -> list[tuple[str, str]]:
    """Return the predicted conditions that have observed cells, and name the others."""
    found: list[tuple[str, str]] = []
    left_out: list[tuple[str, str]] = []
    coded = pd.DataFrame(
        sorted(c for c in cells.conditions() if c[0] != control), columns=["perturbation", "cell_type"]
    )
    codes = screen.index.coded(coded)
    for (label, t), (p, k) in zip(coded.to_numpy().tolist(), codes.to_numpy().tolist(), strict=True):
        known = found if len(screen.index.rows(p, k)) else left_out
        known.append((label, t))
    if left_out:
        shown = listed(f"{label} in {t}" for label, t in left_out)
        logger.warning("Left out %d predicted conditions without observed cells: %s.", len(left_out), shown)
    if not found:
        problem = (
            f"share no perturbed condition (predicted: {listed(label for label, _ in left_out) or 'only control'})"
        )
        raise ValueError(unusable("The objects", "tl.explain_error", problem, "Label both with the same names."))
    return found


def _table(
    labels: list[str], cell_type: str, groups: list[str], parts: dict[str, np.ndarray], total: np.ndarray
) -> pd.DataFrame:
    """Return parts (C, M) of every cause as rows, beside the totals (C,)."""
    squared = np.stack(list(parts.values()), axis=-1)  # (C, M, causes)
    c, m, k = (axis.ravel() for axis in np.indices(squared.shape))
    return pd.DataFrame(
        {
            "perturbation": np.array(labels, dtype=object)[c],
            "cell_type": cell_type,
            "group": np.array(groups, dtype=object)[m],
            "cause": np.array(list(parts), dtype=object)[k],
            "squared_error": squared.ravel(),
            "share": (squared / total[:, None, None]).ravel(),
            "total": total[c],
        }
    )


def _check_controls(reference: Reference, screen: Screen, controls: ControlNoise, cell_type: str) -> None:
    """Refuse control cells that are not those of the reference: their noise would not be that of its shifts."""
    row = reference.cell_type_row(cell_type)
    columns = pd.Index(reference.genes).get_indexer(screen.genes)
    if controls.n.sum() and np.allclose(controls.overall, reference.control[row, columns], rtol=1e-3, atol=1e-4):
        return
    problem = f"has other control cells of cell type {cell_type!r} than the reference"
    remedy = "Build it with Reference.from_adata(adata), or pass the object that it was built from."
    raise ValueError(unusable("The object", "adata", problem, remedy))


def _warn_of_learned(screen: Screen, conditions: list[tuple[str, str]], train: pd.DataFrame) -> None:
    """Name conditions that were learned from."""
    learned = set(screen.index.named(train)[["perturbation", "cell_type"]].itertuples(index=False, name=None))
    found = [f"{label} in {t}" for label, t in conditions if (label, t) in learned]
    if found:
        logger.warning(
            "%d conditions are not held out (%s): noise of their cells may be in the predictions too, and the parts "
            "then favour the model. Register a split_key.",
            len(found),
            listed(found),
        )


def _warn_of_unknown(labels: list[str], cell_type: str, noise: ErrorNoise) -> None:
    """Say what cannot be known, and where it stays."""
    single = [label for label, row in zip(labels, noise.cells, strict=True) if np.isnan(row).any()]
    if single:
        shown = f"{listed(single)} in {cell_type}"
        logger.warning(
            "Sampling noise is unknown with one cell per batch: %s. It stays in the parts of the model.", shown
        )
    if np.isnan(noise.controls.diagonal()).any():
        logger.warning("Noise of the single control cell (per batch) of %s is unknown.", cell_type)
    if np.isnan(noise.batches.diagonal()).any():
        logger.warning(
            "Some cells of %s are in batches without control cells, and fewer than two batches have them: the variance "
            "between batches is unknown, and stays in the parts of the model.",
            cell_type,
        )


def _warn_of_categories(controls: ControlNoise, categories: np.ndarray | None, cell_type: str) -> None:
    """Name categories that no control cell has."""
    if categories is None or controls.categories is None:
        return
    bare = categories[controls.categories.n.sum(0) == 0]
    if len(bare):
        logger.warning("No control cell of %s is in %s: these count as average cells.", cell_type, listed(bare))
