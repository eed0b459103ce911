"""How does the predicted shift of every condition compare with the observed one?"""

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

from ptrag_sc._constants import DEFAULT_KEY, PREDICTED_SUFFIX, SOURCE_SUFFIX
from ptrag_sc._validation import absent, unusable
from ptrag_sc.data import (
    CellReader,
    Screen,
    ScreenKeys,
    as_names,
    canonical,
    canonical_labels,
    mean_shifts,
    read_labels,
    read_screen,
)
from ptrag_sc.data._reader import as_row_matrix
from ptrag_sc.data._shifts import group_means
from ptrag_sc.metrics import effect_slope, pearson_delta


def effect(adata: AnnData, *, key: str = DEFAULT_KEY, predicted: AnnData | None = None) -> None:
    """Summarise predicted and observed cells as mean shifts, and compare these.

    The predicted shift is the mean of predicted minus source control cell, so that the choice of control cells adds no
    noise. The observed shift is matched by batch.

    Parameters
    ----------
    adata
        Observed cells, either annotated by :func:`predict` or with the source cells of ``predicted`` among them.
    key
        Key of the prediction.
    predicted
        Result of :func:`perturb`. None: the prediction in ``adata.obsm[key]``.

    Returns
    -------
    None
        Written is ``adata.uns[key]["effect"]`` with ``conditions`` (DataFrame: ``perturbation``, ``cell_type``,
        ``n_observed``, ``n_predicted``, ``pearson_delta``, ``effect_slope``; NaN if not observed), ``observed`` and
        ``predicted`` (conditions x genes, shifts on the scale of the registered expression) and ``genes``.

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
    if key not in holder.uns or "genes" not in holder.uns[key]:
        remedy = "Run ptrag_sc.tl.predict first, or pass predicted=<result of ptrag_sc.tl.perturb>."
        raise KeyError(absent("Prediction", key, ".uns", holder.uns, remedy))
    params = dict(holder.uns[key]["params"])
    genes = as_names(holder.uns[key]["genes"])  # (G,)
    if predicted is not None:
        genes = as_names(predicted.var_names)  # genes may have been removed from the virtual cells
    keys = ScreenKeys(**{name: params[name] for name in ScreenKeys.__dataclass_fields__ if name in params})
    screen = read_screen(adata, keys, genes=genes)
    table, shifts = _predicted_shifts(holder, adata, screen, keys, key, virtual=predicted is not None)  # shifts (C, G)
    observed, n_observed = _observed_shifts(screen, table)  # (C, G), (C,)
    zero = np.zeros(len(genes))  # both sides are shifts: their control mean is zero
    scores = np.full((len(table), 2), np.nan)
    for i in np.flatnonzero(n_observed):
        pair = (observed[i], shifts[i])
        scores[i] = [pearson_delta(*pair, zero), effect_slope(*pair, zero)]
    table.insert(2, "n_observed", n_observed)
    table[["pearson_delta", "effect_slope"]] = scores
    result = {
        "conditions": table,
        "observed": observed.astype(np.float32),
        "predicted": shifts.astype(np.float32),
        "genes": genes.astype(object),
    }
    entry = adata.uns.get(key, holder.uns[key])  # virtual cells bring their own entry
    adata.uns[key] = {**entry, "effect": result}
    sc.logging.info(f"added .uns[{key!r}]['effect'] ({len(table)} conditions)")


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
    labels = canonical_labels(labels, control=keys.control, sep=keys.sep)  # (N,)
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
    return conditions.assign(n_predicted=n), predicted - source


def _observed_shifts(screen: Screen, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the batch-matched observed shift of each condition (C, G), NaN if not observed, and cell counts (C,)."""
    index = screen.index
    codes = index.coded(table[["perturbation", "cell_type"]])
    n = np.array([len(index.rows(p, t)) for p, t in codes.to_numpy()])
    shifts = np.full((len(table), screen.reader.n_genes), np.nan)
    shifts[n > 0] = mean_shifts(screen.reader, index, codes[n > 0]).shift
    return shifts, n
