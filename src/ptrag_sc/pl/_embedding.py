"""Do predicted cells lie where the observed perturbed cells lie?"""

from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from scipy.sparse import issparse

from ptrag_sc._constants import DEFAULT_KEY, PREDICTED_SUFFIX
from ptrag_sc._docs import documented
from ptrag_sc._validation import absent, unknown, unusable
from ptrag_sc.data import ScreenKeys, canonical_labels, read_labels
from ptrag_sc.data._gene_names import gene_names
from ptrag_sc.data._mudata import as_anndata
from ptrag_sc.data._predicted_labels import predicted_label
from ptrag_sc.pl._finish import (
    CONTROL_COLOUR,
    OBSERVED_COLOUR,
    PREDICTED_COLOUR,
    SMALL,
    Drawn,
    canvas,
    finish,
    result,
)
from ptrag_sc.pl._plane import BASES

COLOURS = {
    "control": CONTROL_COLOUR,
    "control at the start": CONTROL_COLOUR,
    "control at the end": "#5A5A5A",
    "observed": OBSERVED_COLOUR,
    "other predictions": "#F2CFB3",
    "predicted": PREDICTED_COLOUR,
}
RING: dict[str, Any] = {"edgecolors": "black", "linewidths": 1.5}


@documented
def embedding(
    adata: AnnData,
    *,
    perturbation: str,
    cell_type: str,
    predicted: AnnData | None = None,
    basis: Literal["pca", "umap"] = "pca",
    layer: str | None = None,
    n_max_cells: int = 2000,
    seed: int = 0,
    key: str = DEFAULT_KEY,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Drawn:
    """Control, observed and predicted cells of one condition in one plane.

    The plane is fitted to the observed cells only (controls and perturbed cells of the cell type), and the predicted
    cells are projected into it, so that they cannot influence it. Ringed dots are the group means.

    A result of :func:`ptrag_sc.tl.perturb` alone has no observed cells: then the plane is fitted to its own cells of
    the cell type, under all perturbations, and of the control cells the mean is shown. Where time is registered,
    control cells at the start, from which predictions start, and at the end are two groups.

    Parameters
    ----------
    adata
        AnnData after :func:`ptrag_sc.tl.predict`, or with the control cells that ``predicted`` was generated from; or a
        result of :func:`ptrag_sc.tl.perturb` alone.
    perturbation, cell_type
        The condition. If it has no observed cells (a virtual perturbation), the plane is fitted to the controls.
    predicted
        Result of :func:`ptrag_sc.tl.perturb`. None: the prediction in ``adata``.
    basis
        ``"pca"``: the first two principal components. ``"umap"``: UMAP (McInnes et al. 2018) of the first 30.
    layer
        Layer with the observed expression. ``None``: the layer that the model was trained on, else ``adata.X``.
    n_max_cells
        Largest number of cells per group; larger groups are sampled.
    seed
        Seed of the sampling and of UMAP.
    key
        The ``key_added`` of :func:`ptrag_sc.tl.predict`.
    {plot_parameters}

    Returns
    -------
    Axes or Figure
        The axes, or the figure if ``return_fig`` is True.

    Raises
    ------
    KeyError
        If ``adata`` holds no predictions, or lacks the layer.
    ValueError
        If the basis is unknown, the condition was not predicted, or fewer than three cells were observed.

    Examples
    --------
    >>> import ptrag_sc
    >>> ptrag_sc.pl.embedding(adata, perturbation="STAT1", cell_type="THP-1")  # doctest: +SKIP
    """
    if basis not in BASES:
        raise ValueError(absent("Basis", basis, "the table of bases", BASES, "Pass one of these as basis=..."))
    holder = adata if predicted is None else predicted
    keys = ScreenKeys.from_uns(result(holder, key, "params"))
    adata, holder = as_anndata(adata, keys), as_anndata(holder, keys)
    perturbation = predicted_label(holder.uns[key], perturbation)
    alone = predicted is None and key + PREDICTED_SUFFIX not in adata.obs
    rows = _rows(adata, holder, key, perturbation, cell_type, alone=alone)
    rng = np.random.default_rng(seed)
    drawn = {name: np.sort(rng.permutation(r)[:n_max_cells]) for name, r in rows.items()}
    genes = [str(gene) for gene in result(holder, key, "genes")]
    layer = layer or result(holder, key, "params").get("layer")
    if alone:
        layer = None  # virtual cells are in X, whatever the layer of the model is
    fitted = [name for name in rows if alone or name != "predicted"]
    shown = np.concatenate([drawn[name] for name in fitted])  # (n,)
    cells = _expression(adata, shown, genes, layer, keys.gene_symbols)  # (n, G)
    _check_enough(cells, perturbation, cell_type)
    if alone:
        projected = _control_mean(adata, key, perturbation, cell_type)  # (1, G), or none
    else:
        of_result = predicted is not None
        projected = _virtual(holder, drawn["predicted"], genes, key, keys.gene_symbols, alone=of_result)  # (m, G)
    plane = BASES[basis](cells, projected, seed)
    ends = np.cumsum([len(drawn[name]) for name in fitted])[:-1]
    groups = dict(zip(fitted, np.split(plane.observed, ends), strict=True))
    labels = {name: _counted(name, len(points), len(rows[name])) for name, points in groups.items()}
    if alone:
        groups = {"control": plane.predicted, **groups}
        labels["control"] = "control (mean only)"
    else:
        groups["predicted"] = plane.predicted
        labels["predicted"] = _counted("predicted", len(plane.predicted), len(rows["predicted"]))

    given = ax is not None
    ax = canvas(ax, (5.4, 4.6))
    _draw(ax, groups, labels)
    ax.set(xlabel=plane.axes[0], ylabel=plane.axes[1], xticks=[], yticks=[])
    ax.set_title(f"{perturbation} in {cell_type}", loc="left")
    return finish(ax, given=given, show=show, return_fig=return_fig)


def _check_enough(cells: np.ndarray, perturbation: str, cell_type: str) -> None:
    """Refuse cells (n, G) that no plane can be fitted to."""
    if min(cells.shape) < 3:
        problem = f"has {len(cells)} observed cells x {cells.shape[1]} genes; a plane needs three of each"
        remedy = "Choose a condition with more cells."
        raise ValueError(unusable("Condition", f"{perturbation!r} in {cell_type!r}", problem, remedy))


def _rows(
    adata: AnnData, holder: AnnData, key: str, perturbation: str, cell_type: str, *, alone: bool
) -> dict[str, np.ndarray]:
    """Return the row numbers of control and observed cells in ``adata``, and of predicted ones in ``holder``.

    If ``adata`` is virtual cells alone, those of the other perturbations take the place of observed cells.
    """
    params = result(holder, key, "params")
    labels, cell_types = _labels(adata, params)  # (N,)
    predicted_as, predicted_types = labels, cell_types
    is_predicted = np.ones(holder.n_obs, dtype=bool)
    if holder is not adata:
        predicted_as, predicted_types = _labels(holder, params)
    elif not alone:
        is_predicted = adata.obs[key + PREDICTED_SUFFIX].to_numpy(bool)
        # tl.predict(perturbation=name) predicts control rows under that name; without it each row has its own label.
        if params.get("perturbation"):
            predicted_as = np.full(len(labels), params["perturbation"])
    is_predicted &= predicted_as == perturbation
    if perturbation == params["control"] or not is_predicted.any():
        known = [name for name in np.unique(predicted_as.astype(str)) if name != params["control"]]
        remedy = "Run ptrag_sc.tl.predict for it first."
        raise ValueError(unknown("Perturbation", [perturbation], f"the predictions of key {key!r}", known, remedy))
    if not (is_predicted & (predicted_types == cell_type)).any():
        found = np.unique(predicted_types[is_predicted])
        place = f"the predictions of {perturbation!r}"
        raise ValueError(absent("Cell type", cell_type, place, found, "Choose one of these as cell_type=..."))
    here = cell_types == cell_type
    predicted = is_predicted & (predicted_types == cell_type)
    if alone:
        masks = {"other predictions": here & ~predicted, "predicted": predicted}
    else:
        control = (labels == params["control"]) & here
        observed = {"observed": (labels == perturbation) & here, "predicted": predicted}
        masks = {**_controls(adata, params, control), **observed}
    return {name: np.flatnonzero(mask) for name, mask in masks.items()}


def _controls(adata: AnnData, params: dict[str, Any], control: np.ndarray) -> dict[str, np.ndarray]:
    """Return the groups of control cells (N,): one, or two where time is registered."""
    time_key = params.get("time_key")
    if time_key is None or time_key not in adata.obs:
        return {"control": control}
    at_start = (adata.obs[time_key].astype(str) == str(params["start"])).to_numpy()
    return {"control at the start": control & at_start, "control at the end": control & ~at_start}


def _control_mean(adata: AnnData, key: str, perturbation: str, cell_type: str) -> np.ndarray:
    """Return the mean control expression (1, G) that stands beside virtual cells; (0, G) if none does."""
    effects = adata.uns[key].get("effects")
    if effects is None:
        return np.empty((0, len(adata.uns[key]["genes"])), dtype=np.float32)
    conditions = effects["conditions"].astype(str)
    same = (conditions["perturbation"] == perturbation) & (conditions["cell_type"] == cell_type)
    return np.asarray(effects["control"], dtype=np.float32)[same.to_numpy()][:1]


def _labels(adata: AnnData, params: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return perturbation and cell type of every cell (N,)."""
    keys = ScreenKeys.from_uns(params)
    labels = read_labels(adata.obs, keys.perturbation_key)
    labels = canonical_labels(labels, control=keys.controls, sep=keys.sep)
    return labels, read_labels(adata.obs, keys.cell_type_key)


def _virtual(
    holder: AnnData, rows: np.ndarray, genes: list[str], key: str, symbols: str | None, *, alone: bool
) -> np.ndarray:
    """Return predicted cells (m, G)."""
    if alone:
        return _dense(holder[rows, pd.Index(gene_names(holder, symbols)).get_indexer(genes)].X)
    return _dense(holder.obsm[key][rows])


def _expression(
    adata: AnnData, rows: np.ndarray, genes: list[str], layer: str | None, symbols: str | None
) -> np.ndarray:
    """Return the observed expression (n, G) of the predicted genes, on the scale of the predictions."""
    known = pd.Index(gene_names(adata, symbols))
    missing = [gene for gene in genes if gene not in known]
    if missing:
        remedy = "Plot the AnnData that was predicted, before genes are removed."
        raise ValueError(unknown("Gene", missing, "adata.var_names", known, remedy))
    if layer is not None and layer not in adata.layers:
        raise KeyError(absent("Layer", layer, "adata.layers", adata.layers, "Pass layer=..."))
    cells = adata[rows, known.get_indexer(genes)]
    return _dense(cells.X if layer is None else cells.layers[layer])


def _dense(values: Any) -> np.ndarray:
    """Return cells as a dense array (n, G)."""
    if issparse(values):
        values = values.toarray()
    return np.asarray(values, dtype=np.float32)


def _counted(name: str, n_drawn: int, n_cells: int) -> str:
    """Return the text of a group in the legend."""
    if n_drawn < n_cells:
        return f"{name} ({n_drawn:,} of {n_cells:,})"
    return f"{name} ({n_drawn:,})"


def _draw(ax: Axes, groups: dict[str, np.ndarray], labels: dict[str, str]) -> None:
    """Draw the groups from back to front, their means on top, and the legend.

    Parameters
    ----------
    ax
        Axes to draw into.
    groups
        Points (n, 2) of each group.
    labels
        Text of each group in the legend.
    """
    for layer, (name, points) in enumerate(groups.items()):
        if len(points) == 0:
            continue
        colour = COLOURS[name]
        ax.scatter(
            points[:, 0],
            points[:, 1],
            s=12,
            c=colour,
            alpha=0.6,
            linewidths=0,
            zorder=layer + 1,
            label=labels[name],
        )
        x, y = points.mean(0)
        ax.scatter(x, y, s=80, c=colour, zorder=layer + len(groups) + 2, **RING)
    ax.scatter([], [], s=20, c="white", label="group means", **RING)
    legend = ax.legend(
        title="cells",
        alignment="left",
        markerscale=2,
        loc="upper left",
        bbox_to_anchor=(1, 1),
        frameon=False,
        fontsize=SMALL + 1,
    )
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)  # the dots of the plot are transparent, the legend need not be
