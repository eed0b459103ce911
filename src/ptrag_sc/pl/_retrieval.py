"""Which training perturbations were retrieved for a query?"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.transforms import BboxTransformTo, ScaledTranslation, blended_transform_factory

from ptrag_sc._constants import DEFAULT_KEY
from ptrag_sc._docs import documented
from ptrag_sc.data._predicted_labels import predicted_label
from ptrag_sc.pl._finish import LINE_COLOUR, SMALL, Drawn, canvas, finish
from ptrag_sc.pl._retrieval_table import COLOURS, check_value, inches, is_in, name_ticks, retrieval_table, wide

UNKNOWN_COLOUR = "#DDDDDD"  # similarity not measured
DOT_AREAS = (8, 170)  # points^2 at 0 and at the top of the scale
SIZES = {"weight": "weight\n(mean of cells)", "selected": "selected by\n(share of cells)"}
COLOURED = {
    "similarity": "similarity of\ngene embeddings",
    "similarity_response": "similarity of\nresponses in other\ncell types",
}


@documented
def retrieval(
    adata: AnnData,
    *,
    perturbation: str,
    cell_types: Sequence[str] | None = None,
    size: Literal["weight", "selected"] = "weight",
    color: Literal["similarity", "similarity_response"] = "similarity",
    n_top: int = 15,
    key: str = DEFAULT_KEY,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Drawn:
    """Dot plot of the candidates that were retrieved for one perturbation, by cell type.

    The size of a dot shows how much the candidate was used, its colour how similar it is to the query. Candidates are
    sorted by mean size, then by mean colour. No dot: not a candidate in that cell type. Smallest dot: no cell used it.
    Grey: no similarity, as for the query itself, whose row is its own response in other cell types (models with a
    memory).

    Parameters
    ----------
    adata
        AnnData after :func:`ptrag_sc.tl.predict`.
    perturbation
        The query.
    cell_types
        Columns, in this order. ``None``: all in which the query was predicted.
    size
        ``"weight"`` (mean retrieval weight over cells) or ``"selected"`` (share of cells that selected the candidate).
    color
        ``"similarity"`` (cosine of gene embeddings) or ``"similarity_response"`` (cosine of the responses in other cell
        types, models with a memory).
    n_top
        Largest number of candidates shown.
    key
        The ``key_added`` of :func:`ptrag_sc.tl.predict`.
    {plot_parameters}

    Returns
    -------
    Axes or Figure
        The axes of the dots, or the figure if ``return_fig`` is True.

    Raises
    ------
    KeyError
        If ``adata`` holds no retrieval.
    ValueError
        If the perturbation or a cell type was not predicted, or ``size`` or ``color`` is another value.

    Examples
    --------
    >>> import ptrag_sc
    >>> ptrag_sc.pl.retrieval(adata, perturbation="STAT1")  # doctest: +SKIP
    """
    table = retrieval_table(adata, key)
    perturbation = predicted_label(adata.uns[key], perturbation)
    table = table[is_in(table, "perturbation", [perturbation])]
    if cell_types is not None:
        table = table[is_in(table, "cell_type", cell_types)]
    check_value(size, SIZES, table, "size")
    check_value(color, COLOURED, table, "color")
    used = wide(table, "candidate", "cell_type", size)
    similarity = wide(table, "candidate", "cell_type", color)
    # A candidate that was not retrieved was not used, so its use counts as 0; its similarity is left out of the mean.
    means = pd.DataFrame({"used": used.fillna(0).mean(axis=1), "similarity": similarity.mean(axis=1)})
    rows = means.sort_values(["used", "similarity"], ascending=False, kind="stable").index[:n_top]
    columns = list(used.columns if cell_types is None else cell_types)
    used = used.loc[rows, columns]
    similarity = similarity.loc[rows, columns]
    used.index = [f"{name}, other cell types" if name == perturbation else name for name in rows]

    given = ax is not None
    height = max(3.4, 0.9 + 0.27 * len(rows)) + inches(columns)
    ax = canvas(ax, (2.3 + inches(used.index) + 0.45 * len(columns), height))
    top = 1.0  # a share of cells
    if size == "weight":
        top = float(np.nanmax(used)) or 1.0
    dots = _dots(ax, used, similarity, top)
    ax.set_title(f"Retrieved for\n{perturbation}", loc="left")
    _keys_of(ax, dots, top, titles=(SIZES[size], COLOURED[color]))
    return finish(ax, given=given, show=show, return_fig=return_fig)


def _dots(ax: Axes, used: pd.DataFrame, similarity: pd.DataFrame, top: float) -> PathCollection:
    """Draw one dot per retrieved candidate and cell type; the best candidate on top."""
    row, column = np.nonzero(used.notna().to_numpy())  # (n,) each
    rate = used.to_numpy(float)[row, column]  # (n,)
    colour = similarity.to_numpy(float)[row, column]  # (n,), NaN if not measured
    dots = ax.scatter(
        column,
        row,
        s=_area(rate / top),
        c=colour,
        cmap=colormaps[COLOURS].with_extremes(bad=UNKNOWN_COLOUR),
        plotnonfinite=True,
        edgecolors=LINE_COLOUR,
        linewidths=0.5,
        zorder=2,
    )
    ax.set(xlim=(-0.6, used.shape[1] - 0.4), ylim=(used.shape[0] - 0.4, -0.6))
    name_ticks(ax.xaxis, used.columns, used.shape[1])
    name_ticks(ax.yaxis, used.index, used.shape[0])
    ax.tick_params(axis="x", rotation=90)
    return dots


def _area(share: np.ndarray) -> np.ndarray:
    """Return the dot area in points^2, linear in the share of the top of the scale."""
    return np.interp(share, (0, 1), DOT_AREAS)


def _keys_of(ax: Axes, dots: PathCollection, top: float, *, titles: tuple[str, str]) -> None:
    """Draw the size legend and the colour bar to the right of the axes, at a distance in inches.

    Parameters
    ----------
    ax
        Axes of the dots.
    dots
        The dots.
    top
        Value of the largest dot.
    titles
        Titles of the legend and of the colour bar.
    """
    shares = np.array([0, 0.25, 0.5, 1])
    handles = [ax.scatter([], [], s=s, facecolor="white", edgecolor=LINE_COLOUR, linewidth=0.7) for s in _area(shares)]
    digits = 0 if top >= 0.1 else 1
    texts = [f"{share * top:.{digits}%}" for share in shares]
    style: dict[str, Any] = {"fontsize": SMALL, "title_fontsize": SMALL, "frameon": False, "alignment": "left"}
    style |= {"handlelength": 1.6, "handletextpad": 0.8}  # scanpy.set_figure_params makes them too narrow for dots
    ax.legend(handles, texts, title=titles[0], loc="upper left", bbox_to_anchor=(1, 1), labelspacing=0.7, **style)
    similarity = dots.get_array()
    if similarity is None or np.ma.count(similarity) == 0:
        return  # no similarity was measured, so there is no scale to show
    # x is measured in inches from the right edge of the axes, so that the width of the bar does not depend on theirs.
    right = ax.figure.dpi_scale_trans + ScaledTranslation(1, 0, BboxTransformTo(ax.bbox))
    strip = ax.inset_axes((0.2, 0.02, 0.14, 0.38), transform=blended_transform_factory(right, ax.transAxes))
    bar = ax.figure.colorbar(dots, cax=strip)
    bar.ax.tick_params(labelsize=SMALL)
    bar.ax.grid(False)
    bar.ax.set_title(titles[1], fontsize=SMALL, loc="left")
