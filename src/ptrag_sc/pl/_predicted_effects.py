"""Which genes would a perturbation change, how sure is that, and what did its neighbours do?"""

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes

from ptrag_sc._constants import DEFAULT_KEY
from ptrag_sc._docs import documented
from ptrag_sc._validation import absent, check_whole, unknown
from ptrag_sc.pl._finish import (
    CONTROL_COLOUR,
    LINE_COLOUR,
    OBSERVED_COLOUR,
    PREDICTED_COLOUR,
    SMALL,
    Drawn,
    canvas,
    finish,
    result,
)

ROW = 0.26  # inches of one gene
MARKERS = ("s", "^", "D", "v", "P")  # of the neighbours
MARK: dict[str, Any] = {"s": 20, "facecolors": "none", "edgecolors": OBSERVED_COLOUR, "linewidths": 1.0}


@documented
def predicted_effects(
    adata: AnnData,
    *,
    perturbation: str,
    cell_type: str | None = None,
    n_genes: int = 15,
    key: str = DEFAULT_KEY,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Drawn:
    """Largest predicted shifts of a perturbation, with intervals and what its nearest neighbours did.

    A dot is the predicted shift of a gene, the line the interval in which its observed shift is expected. Small marks
    are the shifts of up to five training perturbations that have the largest weights. The genes that the perturbation
    targets itself are set in bold; an interval without an end is drawn with an arrow.

    Parameters
    ----------
    adata
        Result of :func:`ptrag_sc.tl.perturb`, or AnnData after :func:`ptrag_sc.tl.predict`.
    perturbation, cell_type
        The condition. ``cell_type`` can be left out if there is only one.
    n_genes
        Number of genes.
    key
        Key of the prediction.
    {plot_parameters}

    Returns
    -------
    Axes or Figure
        The axes, or the figure if ``return_fig`` is True.

    Raises
    ------
    KeyError
        If ``adata`` holds no predicted effects.
    ValueError
        If the condition was not predicted, or ``cell_type`` is needed.

    Examples
    --------
    >>> import ptrag_sc
    >>> ptrag_sc.pl.predicted_effects(virtual, perturbation="JAK2")  # doctest: +SKIP
    """
    check_whole("n_genes", n_genes, "pl.predicted_effects", minimum=1)
    effects = result(adata, key, "effects")
    row, cell_type = _row(effects["conditions"], perturbation, cell_type)
    genes = np.asarray(effects["genes"]).astype(str)
    shift = np.asarray(effects["shift"])[row]  # (G,)
    top = np.argsort(-np.abs(shift), kind="stable")[:n_genes]
    lower, upper, own = (np.asarray(effects[name])[row, top] for name in ("lower", "upper", "own"))
    neighbours = [str(name) for name in np.asarray(effects["neighbours"])[row] if name]
    of_neighbours = np.asarray(effects["neighbour_shifts"])[row, : len(neighbours)][:, top]  # (k, n)
    given = ax is not None
    ax = canvas(ax, (6.4, 1.6 + ROW * len(top)))
    y = np.arange(len(top))
    ax.axvline(0, color=CONTROL_COLOUR, lw=0.8, zorder=0)
    for marker, name, values in zip(MARKERS, neighbours, of_neighbours, strict=False):
        ax.scatter(values, y, marker=marker, label=name, zorder=2, **MARK)
    limits = _limits(np.concatenate([shift[top], of_neighbours.ravel(), lower, upper, [0.0]]))
    known = ~np.isnan(lower)
    ends = np.maximum(lower[known], limits[0]), np.minimum(upper[known], limits[1])
    ax.hlines(y[known], *ends, color=PREDICTED_COLOUR, lw=1.6, zorder=1)
    for limit, end, marker in ((limits[0], lower, "<"), (limits[1], upper, ">")):
        is_open = np.isinf(end)
        at = np.full(is_open.sum(), limit)
        ax.plot(at, y[is_open], marker, color=PREDICTED_COLOUR, ms=5, clip_on=False, ls="none")
    ax.scatter(shift[top], y, s=46, c=PREDICTED_COLOUR, linewidths=0, zorder=3, label="predicted")
    names = genes[top].tolist()
    ax.set_yticks(y, [f"{name} (target)" if is_own else name for name, is_own in zip(names, own, strict=True)])
    for label, is_own in zip(ax.get_yticklabels(), own, strict=True):
        label.set_fontsize(SMALL)
        label.set_fontweight("bold" if is_own else "normal")
    ax.set(xlim=limits, ylim=(len(top) - 0.5, -0.5), xlabel=_unit(adata, key))
    ax.set_title(f"{perturbation} in {cell_type}: predicted shift, {float(effects['level']):.0%} interval", loc="left")
    legend = ax.legend(
        title="shift of", alignment="left", loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=SMALL
    )
    legend.get_title().set_color(LINE_COLOUR)
    return finish(ax, given=given, show=show, return_fig=return_fig)


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Return limits of the axis around all finite values."""
    shown = values[np.isfinite(values)]
    margin = 0.06 * (shown.max() - shown.min()) or 1.0
    return shown.min() - margin, shown.max() + margin


def _unit(adata: AnnData, key: str) -> str:
    layer = adata.uns[key]["params"].get("layer")
    if layer is None:
        return "shift of mean expression (log1p)"
    return f"shift of mean {layer}"


def _row(conditions: pd.DataFrame, perturbation: str, cell_type: str | None) -> tuple[int, str]:
    """Return the row of a condition, and its cell type."""
    labels = conditions["perturbation"].astype(str).to_numpy()
    types = conditions["cell_type"].astype(str).to_numpy()
    if perturbation not in labels:
        raise ValueError(
            unknown("Perturbation", [perturbation], "the predicted effects", np.unique(labels), "Predict it first.")
        )
    found = types[labels == perturbation]
    if cell_type is None and len(found) == 1:
        cell_type = str(found[0])
    if cell_type not in found:
        remedy = "Pass cell_type=..."
        raise ValueError(absent("Cell type", cell_type, f"the effects of {perturbation!r}", found, remedy))
    return int(np.flatnonzero((labels == perturbation) & (types == cell_type))[0]), str(cell_type)
