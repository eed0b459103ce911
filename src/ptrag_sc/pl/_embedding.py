"""Do predicted cells lie where the observed perturbed cells lie?"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from scipy.sparse import issparse
from scipy.sparse.linalg import svds

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

COLOURS = {"control": CONTROL_COLOUR, "observed": OBSERVED_COLOUR, "predicted": PREDICTED_COLOUR}
RING: dict[str, Any] = {"edgecolors": "black", "linewidths": 1.5}
N_COMPONENTS = 30  # principal components that UMAP is fitted to


class Coordinates(NamedTuple):
    """Coordinates of cells in the plane, and names of its two axes."""

    observed: np.ndarray  # (n, 2)
    predicted: np.ndarray  # (m, 2)
    axes: tuple[str, str]


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

    Parameters
    ----------
    adata
        AnnData after :func:`ptrag_sc.tl.predict`, or with the control cells that ``predicted`` was generated from.
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
    rows = _rows(adata, holder, key, perturbation, cell_type)
    rng = np.random.default_rng(seed)
    drawn = {name: np.sort(rng.permutation(r)[:n_max_cells]) for name, r in rows.items()}
    genes = [str(gene) for gene in result(holder, key, "genes")]
    layer = layer or result(holder, key, "params").get("layer")
    observed = _expression(
        adata, np.concatenate([drawn["control"], drawn["observed"]]), genes, layer, keys.gene_symbols
    )  # (n, G)
    if min(observed.shape) < 3:
        problem = f"has {len(observed)} observed cells x {observed.shape[1]} genes; a plane needs three of each"
        remedy = "Choose a condition with more cells."
        raise ValueError(unusable("Condition", f"{perturbation!r} in {cell_type!r}", problem, remedy))
    virtual = _virtual(holder, drawn["predicted"], genes, key, keys.gene_symbols, alone=predicted is not None)  # (m, G)
    plane = BASES[basis](observed, virtual, seed)
    n_control = len(drawn["control"])
    groups = {
        "control": plane.observed[:n_control],
        "observed": plane.observed[n_control:],
        "predicted": plane.predicted,
    }

    given = ax is not None
    ax = canvas(ax, (5.4, 4.6))
    _draw(ax, groups, {name: len(r) for name, r in rows.items()})
    ax.set(xlabel=plane.axes[0], ylabel=plane.axes[1], xticks=[], yticks=[])
    ax.set_title(f"{perturbation} in {cell_type}", loc="left")
    return finish(ax, given=given, show=show, return_fig=return_fig)


def _rows(adata: AnnData, holder: AnnData, key: str, perturbation: str, cell_type: str) -> dict[str, np.ndarray]:
    """Return the row numbers of control and observed cells in ``adata``, and of predicted ones in ``holder``."""
    params = result(holder, key, "params")
    labels, cell_types = _labels(adata, params)  # (N,)
    predicted_as, predicted_types = labels, cell_types
    is_predicted = np.ones(holder.n_obs, dtype=bool)
    if holder is not adata:
        predicted_as, predicted_types = _labels(holder, params)
    elif key + PREDICTED_SUFFIX in adata.obs:
        is_predicted = adata.obs[key + PREDICTED_SUFFIX].to_numpy(bool)
        # tl.predict(perturbation=name) predicts control rows under that name; without it each row has its own label.
        if params.get("perturbation"):
            predicted_as = np.full(len(labels), params["perturbation"])
    else:
        remedy = "Pass the object with control cells, and this one as predicted=..."
        raise ValueError(unusable("This object", "pl.embedding", "holds virtual cells and no control cells", remedy))
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
    masks = {
        "control": (labels == params["control"]) & here,
        "observed": (labels == perturbation) & here,
        "predicted": is_predicted & (predicted_types == cell_type),
    }
    return {name: np.flatnonzero(mask) for name, mask in masks.items()}


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


def _pca(observed: np.ndarray, predicted: np.ndarray, seed: int) -> Coordinates:
    centre, axes = _principal_axes(observed, 2)  # (G,), (G, 2)
    plane = (observed - centre) @ axes  # (n, 2)
    first, second = plane.var(axis=0) / observed.var(axis=0).sum()
    names = (f"PC1 ({first:.0%} of variance)", f"PC2 ({second:.0%} of variance)")
    return Coordinates(plane, (predicted - centre) @ axes, names)


def _umap(observed: np.ndarray, predicted: np.ndarray, seed: int) -> Coordinates:
    from umap import UMAP  # here, because it is compiled for seconds when it is imported

    n_components = min(N_COMPONENTS, *(n - 1 for n in observed.shape))  # svds finds fewer than min(n, G)
    centre, axes = _principal_axes(observed, n_components)  # (G,), (G, n_components)
    fitted = UMAP(n_neighbors=min(15, len(observed) - 1), random_state=seed, n_jobs=1).fit((observed - centre) @ axes)
    return Coordinates(fitted.embedding_, fitted.transform((predicted - centre) @ axes), ("UMAP1", "UMAP2"))


def _principal_axes(cells: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean (G,) and first n principal axes (G, n) of cells; the largest loading of an axis is positive."""
    centre = cells.mean(axis=0)
    start = np.random.default_rng(0).normal(size=min(cells.shape))  # svds would draw one without a seed
    _, values, axes = svds((cells - centre).astype(np.float64), k=n, v0=start)  # (n,), (n, G)
    axes = axes[np.argsort(-values)]
    largest = np.abs(axes).argmax(axis=1)  # (n,)
    # The sign of an axis is arbitrary: without a rule the picture could be mirrored on another machine.
    return centre, (axes * np.sign(axes[np.arange(n), largest])[:, None]).T


Basis = Callable[[np.ndarray, np.ndarray, int], Coordinates]  # f(observed (n, G), predicted (m, G), seed)
BASES: dict[str, Basis] = {"pca": _pca, "umap": _umap}


def _draw(ax: Axes, groups: dict[str, np.ndarray], n_cells: dict[str, int]) -> None:
    """Draw the groups from back to front, their means on top, and the legend with the numbers of cells.

    Parameters
    ----------
    ax
        Axes to draw into.
    groups
        Points (n, 2) of each group.
    n_cells
        Number of cells in each group before sampling.
    """
    for layer, (name, points) in enumerate(groups.items()):
        if len(points) == 0:
            continue
        shown = f"{len(points):,}"
        if len(points) < n_cells[name]:
            shown = f"{shown} of {n_cells[name]:,}"
        colour = COLOURS[name]
        ax.scatter(
            points[:, 0],
            points[:, 1],
            s=12,
            c=colour,
            alpha=0.6,
            linewidths=0,
            zorder=layer + 1,
            label=f"{name} ({shown})",
        )
        x, y = points.mean(0)
        ax.scatter(x, y, s=80, c=colour, zorder=layer + 5, **RING)
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
