"""Which training perturbations answered for a query?"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation, blended_transform_factory
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import pdist

from ptrag_sc._constants import DEFAULT_KEY
from ptrag_sc._docs import documented
from ptrag_sc._validation import absent, unknown, unusable
from ptrag_sc.pl._finish import LINE_COLOUR, SMALL, canvas, finish, result

COLOURS = "viridis_r"  # dark = near: readable on white
UNKNOWN_COLOUR = "#DDDDDD"  # similarity not measured
DOT_AREAS = (8, 170)  # points^2 at 0 and at the top of the scale
WEIGHT_COLOURS = "Blues"  # white = 0: not retrieved and not used are the same weight
VALUES = {
    "weight": "retrieval weight",
    "selected": "selected (share of cells)",
    "similarity": "similarity (blank: not retrieved)",
    "similarity_response": "similarity of responses (blank: not known)",
}
SIZES = {"weight": "weight\n(mean of cells)", "selected": "selected by\n(share of cells)"}
COLOURED = {"similarity": "similarity", "similarity_response": "similarity\nof responses"}


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
) -> Axes | Figure:
    """Dot plot of the candidates that answered for one perturbation, by cell type.

    The size of a dot says how much the candidate was used, its colour how similar it is to the query. Candidates are
    sorted by mean size, then by mean colour. No dot: not a candidate there. Smallest dot: no cell used it.
    Grey: no similarity, as for the query itself, whose row is what it did in other cell types (models with a memory).

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
        Number of candidates shown.
    key
        The ``key_added`` of :func:`ptrag_sc.tl.predict`.
    {plot_parameters}

    Returns
    -------
    The axes of the dots, or the figure.

    Raises
    ------
    KeyError
        If ``adata`` holds no retrieval.
    ValueError
        If the perturbation or a cell type was not predicted, or ``size`` or ``color`` is something else.

    Examples
    --------
    >>> import ptrag_sc
    >>> ptrag_sc.pl.retrieval(adata, perturbation="STAT1")  # doctest: +SKIP
    """
    table = _table(adata, key)
    table = table[_is_in(table, "perturbation", [perturbation])]
    if cell_types is not None:
        table = table[_is_in(table, "cell_type", cell_types)]
    _check_value(size, SIZES, table, "size")
    _check_value(color, COLOURED, table, "color")
    used, similarity = (_wide(table, "candidate", "cell_type", value) for value in (size, color))
    means = pd.DataFrame({"used": used.fillna(0).mean(axis=1), "similarity": similarity.mean(axis=1)})
    rows = means.sort_values(["used", "similarity"], ascending=False, kind="stable").index[:n_top]
    columns = list(used.columns if cell_types is None else cell_types)
    used, similarity = (wide.loc[rows, columns] for wide in (used, similarity))
    used.index = [f"{name}, other cell types" if name == perturbation else name for name in rows]

    given = ax is not None
    height = max(3.4, 0.9 + 0.27 * len(rows)) + _inches(columns)
    ax = canvas(ax, (2.3 + _inches(used.index) + 0.45 * len(columns), height))
    top = 1.0 if size == "selected" else float(np.nanmax(used)) or 1.0
    dots = _dots(ax, used, similarity, top)
    ax.set_title(f"Retrieved for\n{perturbation}", loc="left")
    _keys_of(ax, dots, top, titles=(SIZES[size], COLOURED[color]))
    return finish(ax, given=given, show=show, return_fig=return_fig)


@documented
def retrieval_matrix(
    adata: AnnData,
    *,
    cell_type: str | None = None,
    value: Literal["weight", "selected", "similarity", "similarity_response"] = "weight",
    perturbations: Sequence[str] | None = None,
    n_labels: int = 40,
    key: str = DEFAULT_KEY,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure:
    """Heat map of who answered for whom: perturbations x candidates.

    Rows stand in the leaf order of a hierarchical clustering (Ward), so that perturbations with the same neighbours
    stand side by side. Columns stand in the order of the rows that use them (their centre of mass), so that groups
    with common neighbours are blocks along the diagonal.

    Parameters
    ----------
    adata
        AnnData after :func:`ptrag_sc.tl.predict`.
    cell_type
        Cell type to show. ``None``: the mean over the cell types in which a candidate was retrieved.
    value
        ``"weight"`` (mean retrieval weight over cells), ``"selected"`` (share of cells that selected the candidate),
        ``"similarity"`` (cosine of gene embeddings) or ``"similarity_response"`` (cosine of the responses in other cell
        types, models with a memory).
    perturbations
        Rows. ``None``: all predicted perturbations.
    n_labels
        Labels per axis at most; with more rows or columns, every second, third, ... is written.
    key
        The ``key_added`` of :func:`ptrag_sc.tl.predict`.
    {plot_parameters}

    Returns
    -------
    The axes of the heat map, or the figure.

    Raises
    ------
    KeyError
        If ``adata`` holds no retrieval.
    ValueError
        If ``value`` is none of these, or a perturbation or the cell type was not predicted.

    Examples
    --------
    >>> import ptrag_sc
    >>> ptrag_sc.pl.retrieval_matrix(adata, cell_type="THP-1")  # doctest: +SKIP
    """
    table = _table(adata, key)
    _check_value(value, VALUES, table, "value")
    title = "Mean over cell types" if table["cell_type"].nunique() > 1 else table["cell_type"].iloc[0]
    if cell_type is not None:
        table, title = table[_is_in(table, "cell_type", [cell_type])], cell_type
    if perturbations is not None:
        table = table[_is_in(table, "perturbation", perturbations)]
    table = table.groupby(["perturbation", "candidate"], as_index=False)[value].mean()
    matrix = _wide(table, "perturbation", "candidate", value)
    matrix = matrix.iloc[_leaf_order(matrix.fillna(0).to_numpy(float))]
    matrix = matrix.iloc[:, _diagonal_order(matrix.fillna(0).to_numpy(float))]

    given = ax is not None
    n_rows, n_columns = np.clip(matrix.shape, 10, 36)
    ax = canvas(ax, (1.7 + 0.18 * n_columns + _inches(matrix.index), 0.8 + 0.18 * n_rows + _inches(matrix.columns)))
    image = ax.imshow(matrix, aspect="auto", **_colours(value, matrix))
    _name_ticks(ax.xaxis, matrix.columns, n_labels)
    _name_ticks(ax.yaxis, matrix.index, n_labels)
    ax.tick_params(axis="x", rotation=90)
    ax.set(xlabel="candidate", ylabel="perturbation")
    ax.set_title(title, loc="left")
    ax.figure.colorbar(image, ax=ax, shrink=0.6, aspect=25, label=VALUES[value]).ax.grid(False)
    return finish(ax, given=given, show=show, return_fig=return_fig)


def _table(adata: AnnData, key: str) -> pd.DataFrame:
    """The retrieval table with plain string labels (files bring them back as categories)."""
    table = result(adata, key, "retrieval")
    if len(table) == 0:
        problem = "is empty: the model predicted without retrieval"
        remedy = "Train with retrieval='gumbel' or retrieval='attention'."
        raise ValueError(unusable("Retrieval", f"adata.uns[{key!r}]['retrieval']", problem, remedy))
    return table.astype(dict.fromkeys(["perturbation", "cell_type", "candidate"], str))


def _check_value(value: str, known: Sequence[str], table: pd.DataFrame, argument: str) -> None:
    found = [name for name in known if name in table]
    if value not in found:
        raise ValueError(absent("Value", value, "the retrieval table", found, f"Pass one of these as {argument}=..."))


def _is_in(table: pd.DataFrame, column: str, names: Sequence[str]) -> pd.Series:
    """Rows whose label is among ``names``; an error where a name has no row."""
    known = table[column].unique()
    missing = [name for name in names if name not in known]
    if missing:
        what = column.replace("_", " ").capitalize()
        remedy = "Pass names that were predicted (see its retrieval table)."
        raise ValueError(unknown(what, missing, "the predicted conditions", known, remedy))
    return table[column].isin(names)


def _wide(table: pd.DataFrame, rows: str, columns: str, value: str) -> pd.DataFrame:
    return table.pivot(index=rows, columns=columns, values=value)


def _dots(ax: Axes, used: pd.DataFrame, similarity: pd.DataFrame, top: float) -> PathCollection:
    """Draw one dot per retrieved candidate and cell type; the best candidate on top."""
    row, column = np.nonzero(used.notna().to_numpy())
    rate, colour = used.to_numpy(float)[row, column], similarity.to_numpy(float)[row, column]
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
    _name_ticks(ax.xaxis, used.columns, used.shape[1])
    _name_ticks(ax.yaxis, used.index, used.shape[0])
    ax.tick_params(axis="x", rotation=90)
    return dots


def _area(share: np.ndarray) -> np.ndarray:
    """Dot area in points^2, linear in the share of the top of the scale."""
    return np.interp(share, (0, 1), DOT_AREAS)


def _keys_of(ax: Axes, dots: PathCollection, top: float, *, titles: tuple[str, str]) -> None:
    """Put the size legend and the colour bar at the right of the axes, in inches, whatever their width."""
    shares = np.array([0, 0.25, 0.5, 1])
    handles = [ax.scatter([], [], s=s, facecolor="white", edgecolor=LINE_COLOUR, linewidth=0.7) for s in _area(shares)]
    style = {"fontsize": SMALL, "title_fontsize": SMALL, "frameon": False, "loc": "upper left", "alignment": "left"}
    style |= {"handlelength": 1.6, "handletextpad": 0.8}  # scanpy.set_figure_params makes them too narrow for dots
    texts = [f"{share * top:.0%}" if top >= 0.1 else f"{share * top:.1%}" for share in shares]
    ax.legend(handles, texts, title=titles[0], bbox_to_anchor=(1, 1), labelspacing=0.7, **style)
    if np.ma.count(dots.get_array()) == 0:
        return  # no similarity was measured: there is no scale to show
    inches = ax.figure.dpi_scale_trans + ScaledTranslation(1, 0, ax.transAxes)
    strip = ax.inset_axes((0.2, 0.02, 0.14, 0.38), transform=blended_transform_factory(inches, ax.transAxes))
    bar = ax.figure.colorbar(dots, cax=strip)
    bar.ax.tick_params(labelsize=SMALL)
    bar.ax.grid(False)
    bar.ax.set_title(titles[1], fontsize=SMALL, loc="left")


def _name_ticks(axis, names: Sequence[str], n_labels: int) -> None:
    """Write at most ``n_labels`` of the names, at equal steps."""
    step = max(1, -(-len(names) // max(1, n_labels)))
    axis.set_ticks(range(0, len(names), step), list(names[::step]), fontsize=SMALL)
    axis.set_tick_params(length=0 if step == 1 else 3)


def _inches(names: Sequence[str]) -> float:
    """Space that the longest of the names needs as a tick label."""
    return 0.1 * max((len(name) for name in names), default=0)


def _colours(value: str, matrix: pd.DataFrame) -> dict:
    """Colour map and range: rates from 0 to 1, weights from 0, similarities over their own range."""
    if value.startswith("similarity"):
        return {"cmap": COLOURS}
    highest = 1.0 if value == "selected" else float(np.nanmax(matrix)) or 1.0
    return {"cmap": WEIGHT_COLOURS, "vmin": 0.0, "vmax": highest}


def _leaf_order(rows: np.ndarray) -> np.ndarray:
    """Order of rows in which similar ones are neighbours."""
    if len(rows) < 3:
        return np.arange(len(rows))
    return leaves_list(linkage(pdist(rows), "ward", optimal_ordering=len(rows) <= 500))


def _diagonal_order(matrix: np.ndarray) -> np.ndarray:
    """Order of columns by the centre of mass of their rows; unused columns last."""
    mass = np.abs(matrix).sum(axis=0)
    centre = np.arange(len(matrix)) @ np.abs(matrix) / np.where(mass > 0, mass, 1)
    return np.argsort(np.where(mass > 0, centre, np.inf), kind="stable")
