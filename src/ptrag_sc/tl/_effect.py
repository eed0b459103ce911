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
    """Summarise predictions as mean shifts, beside the observed ones.

    The predicted shift is the mean of predicted minus source control cell, so the choice of control cells adds no
    noise; the observed one is batch-matched.

    Parameters
    ----------
    adata
        Observed cells, annotated by :func:`predict`, or holding the source cells of ``predicted``.
    key
        Key of the prediction.
    predicted
        Result of :func:`perturb`; None takes the prediction in ``adata.obsm[key]``.

    Returns
    -------
    None. Written is ``adata.uns[key]["effect"]``: ``conditions`` (DataFrame: ``perturbation``, ``cell_type``,
    ``n_observed``, ``n_predicted``, ``pearson_delta``, ``effect_slope``; NaN where not observed), ``observed`` and
    ``predicted`` (conditions x genes, shift on the scale of the registered expression), ``genes``.

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
    genes = as_names(holder.uns[key]["genes"] if predicted is None else predicted.var_names)
    keys = ScreenKeys(**{name: params[name] for name in ScreenKeys.__dataclass_fields__ if name in params})
    screen = read_screen(adata, keys, genes=genes)
    table, shifts = _predicted_shifts(holder, adata, screen, keys, key, None if predicted is None else predicted.X)
    observed, n_observed = _observed_shifts(screen, table)
    zero = np.zeros(len(genes))
    scored = [
        (pearson_delta(o, p, zero), effect_slope(o, p, zero)) if n else (np.nan, np.nan)
        for o, p, n in zip(observed, shifts, n_observed, strict=True)
    ]
    table.insert(2, "n_observed", n_observed)
    table[["pearson_delta", "effect_slope"]] = np.array(scored).reshape(-1, 2)
    result = {
        "conditions": table,
        "observed": observed.astype(np.float32),
        "predicted": shifts.astype(np.float32),
        "genes": genes.astype(object),
    }
    adata.uns[key] = {**(adata.uns[key] if key in adata.uns else dict(holder.uns[key])), "effect": result}
    sc.logging.info(f"added .uns[{key!r}]['effect'] ({len(table)} conditions)")


def _predicted_shifts(
    holder, adata, screen: Screen, keys: ScreenKeys, key: str, matrix
) -> tuple[pd.DataFrame, np.ndarray]:
    """Return conditions and their mean predicted shift (C, G): predicted minus source cells."""
    params = holder.uns[key]["params"]
    labels = read_labels(holder.obs, keys.perturbation_key)
    labels = canonical_labels(labels, control=keys.control, sep=keys.sep)
    chosen = np.ones(len(labels), dtype=bool)
    if matrix is None:
        matrix, chosen = holder.obsm[key], holder.obs[key + PREDICTED_SUFFIX].to_numpy(dtype=bool)
        if "perturbation" in params:
            labels[:] = canonical(params["perturbation"], keys.sep)
    rows = np.flatnonzero(chosen & (labels != keys.control))
    sources = adata.obs_names.get_indexer(holder.obs[key + SOURCE_SUFFIX].astype(str).to_numpy()[rows])
    if (sources < 0).any():
        problem = f"lacks {int((sources < 0).sum())} of the control cells that predictions were generated from"
        raise KeyError(unusable("The object", "adata.obs_names", problem, "Pass the object given to tl.perturb."))
    table = pd.DataFrame({"perturbation": labels[rows], "cell_type": read_labels(holder.obs, keys.cell_type_key)[rows]})
    group = table.groupby(["perturbation", "cell_type"]).ngroup().to_numpy()
    conditions = table.drop_duplicates().sort_values(["perturbation", "cell_type"], ignore_index=True)
    predicted, n = group_means(CellReader(as_row_matrix(matrix)), rows, group, len(conditions))
    source, _ = group_means(screen.reader, sources, group, len(conditions))
    return conditions.assign(n_predicted=n), predicted - source


def _observed_shifts(screen: Screen, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the batch-matched observed shift of each condition (C, G), NaN where not observed, and cell counts."""
    index = screen.index
    codes = index.coded(table[["perturbation", "cell_type"]])
    n = np.array([len(index.rows(p, t)) for p, t in codes.to_numpy()])
    shifts = np.full((len(table), screen.reader.n_genes), np.nan)
    shifts[n > 0] = mean_shifts(screen.reader, index, codes[n > 0]).shift
    return shifts, n
