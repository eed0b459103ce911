"""How does the predicted shift of every condition compare with the observed one?"""

from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

from ptrag_sc._constants import DEFAULT_KEY, PREDICTED_SUFFIX, SOURCE_SUFFIX
from ptrag_sc._validation import absent, unusable
from ptrag_sc.data import (
    CellReader,
    Drift,
    Screen,
    ScreenKeys,
    as_names,
    canonical,
    canonical_labels,
    mean_shifts,
    read_labels,
    read_screen,
)
from ptrag_sc.data._gene_names import MissingGenes, gene_names
from ptrag_sc.data._mudata import as_anndata
from ptrag_sc.data._predicted_labels import predicted_label
from ptrag_sc.data._reader import as_row_matrix
from ptrag_sc.data._shifts import group_means
from ptrag_sc.data._user_keys import check_free
from ptrag_sc.metrics import effect_slope, pearson_delta

# Arrays that stand beside a prediction.
BESIDE = ("control", "lower", "upper", "call", "own", "agreement")


def effect(adata: AnnData, *, key: str = DEFAULT_KEY, predicted: AnnData | None = None) -> None:
    """Summarise predicted and observed cells as mean shifts, and compare these.

    The predicted shift of smooth cells is the mean of predicted minus source control cell, so that the choice of
    control cells adds no noise. For cells with counts it is that of :func:`predict_effects`, because their draws would
    add noise. The observed shift is matched by batch; for a result of :func:`perturb` alone nothing is observed.

    Parameters
    ----------
    adata
        Observed cells, either annotated by :func:`predict` or with the source cells of ``predicted`` among them; or a
        result of :func:`perturb` alone.
    key
        Key of the prediction.
    predicted
        Result of :func:`perturb`, into which the effects are written; ``adata`` stays as it is. None: the prediction in
        ``adata``.

    Returns
    -------
    None
        Written is ``uns[key]["effect"]`` of the object with the prediction, with ``conditions`` (DataFrame:
        ``perturbation``, ``cell_type``, ``n_observed``, ``n_predicted``, ``pearson_delta``, ``effect_slope``; NaN if
        not observed), ``genes`` and arrays of conditions x genes on the scale of the registered expression:
        ``observed`` and ``predicted`` shifts, ``lower`` and ``upper`` (the interval of the observed shift), ``call``
        (the interval, widened by the error of the controls, leaves out 0), ``own`` (a target of the perturbation),
        ``agreement`` (share of the weight of what was retrieved whose shift has the same sign) and ``control`` (mean
        control expression). The last six are NaN or False where a prediction has no effects beside it.

    Raises
    ------
    KeyError
        If there is no prediction, or source cells are not in ``adata``.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=600, n_genes=60, n_perturbations=10, n_cell_types=2)
    >>> ptrag_sc.PTRAG.setup_anndata(
    ...     adata, perturbation_key="perturbation", control="non-targeting", cell_type_key="cell_type"
    ... )
    >>> ptrag_sc.tl.predict(adata, ptrag_sc.baselines.MeanShift(adata).fit(), key_added="mean_shift")
    >>> ptrag_sc.tl.effect(adata, key="mean_shift")
    >>> len(adata.uns["mean_shift"]["effect"]["conditions"])
    20
    """
    holder = adata if predicted is None else predicted
    check_free(adata, uns=[key])
    alone = predicted is None and key not in adata.obsm
    # An object that virtual cells were compared with has their entry in uns, but is not them.
    if "genes" not in holder.uns.get(key, {}) or (alone and key + SOURCE_SUFFIX not in adata.obs):
        remedy = "Run ptrag_sc.tl.predict first, or pass predicted=<result of ptrag_sc.tl.perturb>."
        raise KeyError(absent("Prediction", key, ".uns", holder.uns, remedy))
    if alone:
        result = _virtual_alone(adata, key)
    else:
        result = _compared(adata, holder, key, virtual=predicted is not None)
    holder.uns[key] = {**holder.uns[key], "effect": result}  # beside the prediction that it belongs to
    sc.logging.info(f"added .uns[{key!r}]['effect'] ({len(result['conditions'])} conditions)")


def effect_table(
    adata: AnnData,
    *,
    key: str = DEFAULT_KEY,
    perturbation: str | None = None,
    cell_type: str | None = None,
) -> pd.DataFrame:
    """Return what :func:`effect` wrote as a long table: one row per condition and gene.

    Parameters
    ----------
    adata
        Object with ``uns[key]["effect"]``, or with a prediction from which :func:`effect` makes it.
    key
        Key of the prediction.
    perturbation, cell_type
        Only this one; None takes all.

    Returns
    -------
    DataFrame
        Columns ``perturbation``, ``cell_type``, ``gene``, ``control``, ``shift`` (predicted), ``observed``, ``lower``,
        ``upper``, ``call``, ``own``, ``agreement``, sorted by condition and size of the shift, the largest first.

    Raises
    ------
    KeyError
        If there is no prediction, or no such perturbation or cell type in it.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=600, n_genes=60, n_perturbations=10, n_cell_types=2)
    >>> ptrag_sc.PTRAG.setup_anndata(
    ...     adata, perturbation_key="perturbation", control="non-targeting", cell_type_key="cell_type"
    ... )
    >>> gene = str(adata.uns["gene_embedding"]["genes"][0])
    >>> virtual = ptrag_sc.tl.perturb(adata, ptrag_sc.baselines.MeanShift(adata).fit(), gene)
    >>> ptrag_sc.tl.effect_table(virtual, cell_type="type_0").shape
    (60, 11)
    """
    if not {"genes", *BESIDE} <= set(adata.uns.get(key, {}).get("effect", {})):  # an older file lacks some of them
        effect(adata, key=key)
    found = adata.uns[key]["effect"]
    conditions = found["conditions"]
    kept = np.ones(len(conditions), dtype=bool)
    if perturbation is not None:
        wanted = predicted_label(adata.uns[key], perturbation)
        kept &= _chosen("Perturbation", wanted, conditions["perturbation"], "perturbation=")
    if cell_type is not None:
        kept &= _chosen("Cell type", str(cell_type), conditions["cell_type"], "cell_type=")
    rows = np.flatnonzero(kept)
    genes = as_names(found["genes"])
    order = np.argsort(-np.abs(found["predicted"][rows]), axis=1, kind="stable")  # (C, G)
    table = {name: np.repeat(conditions[name].to_numpy()[rows], len(genes)) for name in ("perturbation", "cell_type")}
    table["gene"] = genes[order].ravel()
    columns = {"control": "control", "shift": "predicted", **{name: name for name in ("observed", *BESIDE[1:])}}
    for name, array in columns.items():
        table[name] = np.take_along_axis(np.asarray(found[array])[rows], order, 1).ravel()
    return pd.DataFrame(table)


def _chosen(what: str, name: str, column: pd.Series, argument: str) -> np.ndarray:
    chosen = (column.astype(str) == name).to_numpy()
    if not chosen.any():
        raise KeyError(absent(what, name, "the prediction", column.unique(), f"Correct {argument}..."))
    return chosen


def _virtual_alone(adata: AnnData, key: str) -> dict[str, Any]:
    """Return the predicted effects that stand beside virtual cells; nothing is observed."""
    kept = adata.uns[key].get("effects")
    if kept is None:
        problem = "has no effects beside its cells"
        remedy = "Pass the object with control cells and predicted=<this one>, or call ptrag_sc.tl.predict_effects."
        raise KeyError(unusable("The prediction", f".uns[{key!r}]", problem, remedy))
    keys = ScreenKeys.from_uns(adata.uns[key]["params"])
    labels = canonical_labels(read_labels(adata.obs, keys.perturbation_key), control=keys.controls, sep=keys.sep)
    counted = pd.DataFrame({"perturbation": labels, "cell_type": read_labels(adata.obs, keys.cell_type_key)})
    n = counted.value_counts()
    conditions = kept["conditions"]
    table = conditions.assign(
        n_observed=0,
        n_predicted=[int(n.get(tuple(row), 0)) for row in conditions.itertuples(index=False)],
        pearson_delta=np.nan,
        effect_slope=np.nan,
    )
    arrays = {name: np.asarray(kept[name]) for name in BESIDE}
    shift = np.asarray(kept["shift"])
    observed = np.full_like(shift, np.nan)
    return {"conditions": table, "observed": observed, "predicted": shift, "genes": kept["genes"], **arrays}


def _compared(adata: AnnData, holder: AnnData, key: str, *, virtual: bool) -> dict[str, Any]:
    """Return predicted beside observed shifts."""
    params = dict(holder.uns[key]["params"])
    keys = ScreenKeys.from_uns(params)
    holder = as_anndata(holder, keys)
    genes = as_names(holder.uns[key]["genes"])  # (G,)
    if virtual:
        genes = gene_names(holder, keys.gene_symbols)  # genes may have been removed from the virtual cells
    lacking: MissingGenes | None = "zero" if params.get("missing_genes") == "zero" else None  # as when it was predicted
    screen = read_screen(adata, keys, genes=genes, query=True, missing_genes=lacking)
    table, shifts = _predicted_shifts(holder, adata, screen, keys, key, virtual=virtual)  # shifts (C, G)
    kept = holder.uns[key].get("effects")
    if kept is not None and params.get("counts"):  # the draws of counts would only add noise
        expected = _beside(kept, table, genes, ("shift",))["shift"]
        shifts = np.where(np.isnan(expected), shifts, expected)
    observed, n_observed = _observed_shifts(screen, table)  # (C, G), (C,)
    zero = np.zeros(len(genes))  # both sides are shifts: their control mean is zero
    scores = np.full((len(table), 2), np.nan)
    for i in np.flatnonzero(n_observed):
        pair = (observed[i], shifts[i])
        scores[i] = [pearson_delta(*pair, zero), effect_slope(*pair, zero)]
    table.insert(2, "n_observed", n_observed)
    table[["pearson_delta", "effect_slope"]] = scores
    return {
        "conditions": table,
        "observed": observed.astype(np.float32),
        "predicted": shifts.astype(np.float32),
        "genes": genes.astype(object),
        **_beside(kept, table, genes, BESIDE),
    }


def _beside(
    kept: dict[str, Any] | None, table: pd.DataFrame, genes: np.ndarray, names: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Return the arrays (C, G) that stand beside a prediction, for some conditions and genes."""
    shape = len(table), len(genes)
    found: dict[str, np.ndarray] = {}
    for name in names:
        found[name] = np.full(shape, np.nan, dtype=np.float32)
        if name in ("call", "own"):
            found[name] = np.zeros(shape, dtype=bool)
    if kept is None:
        return found
    pairs = pd.MultiIndex.from_frame(kept["conditions"][["perturbation", "cell_type"]].astype(str))
    rows = pairs.get_indexer(pd.MultiIndex.from_frame(table[["perturbation", "cell_type"]].astype(str)))  # (C,)
    columns = pd.Index(as_names(kept["genes"])).get_indexer(genes)  # (G,)
    for name, array in found.items():
        array[rows >= 0] = np.asarray(kept[name])[np.ix_(rows[rows >= 0], columns)]
    return found


def _predicted_shifts(
    holder: AnnData, adata: AnnData, screen: Screen, keys: ScreenKeys, key: str, *, virtual: bool
) -> tuple[pd.DataFrame, np.ndarray]:
    """Return conditions and their mean predicted shift (C, G): predicted minus source cells.

    Parameters
    ----------
    holder
        Object with the predictions.
    adata
        Object with the source cells.
    screen
        Arrays of ``adata``.
    keys, key
        Columns of both objects, and the key of the prediction.
    virtual
        Whether ``holder`` is the result of :func:`perturb`, so that predictions are in ``X`` under their own label.
    """
    params = holder.uns[key]["params"]
    labels = read_labels(holder.obs, keys.perturbation_key)
    labels = canonical_labels(labels, control=keys.controls, sep=keys.sep)  # (N,)
    if virtual:
        matrix = holder.X  # (N, G)
        chosen = np.ones(len(labels), dtype=bool)
    else:
        matrix = holder.obsm[key]  # (N, G)
        chosen = holder.obs[key + PREDICTED_SUFFIX].to_numpy(dtype=bool)
        if "perturbation" in params:  # control cells were predicted under this one instead of their own label
            labels[:] = canonical(params["perturbation"], keys.sep)
    rows = np.flatnonzero(chosen & (labels != keys.control))
    sources = adata.obs_names.get_indexer(holder.obs[key + SOURCE_SUFFIX].astype(str).to_numpy()[rows])
    if (sources < 0).any():
        problem = f"lacks {int((sources < 0).sum())} of the control cells that predictions were generated from"
        raise KeyError(unusable("The object", "adata.obs_names", problem, "Pass the object given to tl.perturb."))
    table = pd.DataFrame({"perturbation": labels[rows], "cell_type": read_labels(holder.obs, keys.cell_type_key)[rows]})
    group = table.groupby(["perturbation", "cell_type"]).ngroup().to_numpy()  # (n,), numbered in sorted order
    conditions = table.drop_duplicates().sort_values(["perturbation", "cell_type"], ignore_index=True)
    predicted, n = group_means(CellReader(as_row_matrix(matrix)), rows, group, len(conditions))
    source, _ = group_means(screen.reader, sources, group, len(conditions))
    shifts = predicted - source
    if "drift" in holder.uns[key]:  # an effect is measured at the end
        drift = Drift.from_uns(holder.uns[key]["drift"]).of(conditions["cell_type"].to_numpy())  # (C, all genes)
        shifts -= drift[:, pd.Index(as_names(holder.uns[key]["genes"])).get_indexer(screen.genes)]
    return conditions.assign(n_predicted=n), shifts


def _observed_shifts(screen: Screen, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the batch-matched observed shift of each condition (C, G), NaN if not observed, and cell counts (C,)."""
    index = screen.index
    codes = index.coded(table[["perturbation", "cell_type"]])
    n = np.array([len(index.rows(p, t)) for p, t in codes.to_numpy()])
    shifts = np.full((len(table), screen.reader.n_genes), np.nan)
    shifts[n > 0] = mean_shifts(screen.reader, index, codes[n > 0]).shift
    return shifts, n
