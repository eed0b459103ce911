"""Which perturbations share their candidates?"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import pdist

from ptrag_sc._constants import DEFAULT_KEY
from ptrag_sc._docs import documented
from ptrag_sc.data._predicted_labels import predicted_label
from ptrag_sc.pl._finish import SMALL, Drawn, canvas, finish
from ptrag_sc.pl._retrieval_table import COLOURS, check_value, inches, is_in, name_ticks, retrieval_table, wide

WEIGHT_COLOURS = "Blues"  # white = 0: retrieved, but not used
ABSENT_COLOUR = "#D0D0D0"
VALUES = {
    "weight": "retrieval weight",
    "selected": "selected (share of cells)",
    "similarity": "similarity of gene embeddings",
    "similarity_response": "similarity of responses in other cell types",
}
ABSENT = {"weight": "not retrieved", "selected": "not retrieved"}  # what grey means, if not:
UNKNOWN = "not retrieved, or not known"


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
) -> Drawn:
    """Heat map of what was retrieved for which perturbation: perturbations x candidates.

    Rows are in the leaf order of a hierarchical clustering (Ward), so that perturbations with the same neighbours are
    next to each other. Columns are in the order of the rows that use them (their centre of mass), so that groups with
    common neighbours are blocks along the diagonal. Grey: not retrieved for this perturbation; white, for weights and
    selection: retrieved, but no cell used it. For a similarity, grey also means that it was not measured, and
    candidates without any are left out.

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
        Largest number of labels per axis; if there are more rows or columns, every second, third, ... is written.
    key
        The ``key_added`` of :func:`ptrag_sc.tl.predict`.
    {plot_parameters}

    Returns
    -------
    Axes or Figure
        The axes of the heat map, or the figure if ``return_fig`` is True.

    Raises
    ------
    KeyError
        If ``adata`` holds no retrieval.
    ValueError
        If ``value`` is another one, or a perturbation or the cell type was not predicted.

    Examples
    --------
    >>> import ptrag_sc
    >>> ptrag_sc.pl.retrieval_matrix(adata, cell_type="THP-1")  # doctest: +SKIP
    """
    table = retrieval_table(adata, key)
    check_value(value, VALUES, table, "value")
    title = table["cell_type"].iloc[0]
    if table["cell_type"].nunique() > 1:
        title = "Mean over cell types"
    if cell_type is not None:
        table = table[is_in(table, "cell_type", [cell_type])]
        title = cell_type
    if perturbations is not None:
        named = [predicted_label(adata.uns[key], name) for name in perturbations]
        table = table[is_in(table, "perturbation", named)]
    table = table.groupby(["perturbation", "candidate"], as_index=False)[value].mean()
    matrix = wide(table, "perturbation", "candidate", value)  # NaN: not retrieved
    if matrix.notna().any(axis=None):  # else nothing is known, and the picture says so
        matrix = matrix.dropna(axis=1, how="all")
    matrix = matrix.iloc[_leaf_order(matrix.fillna(0).to_numpy(float))]
    matrix = matrix.iloc[:, _diagonal_order(matrix.fillna(0).to_numpy(float))]

    given = ax is not None
    n_rows, n_columns = np.clip(matrix.shape, 10, 36)  # the figure stays readable and fits a page
    width = 1.7 + 0.18 * n_columns + inches(matrix.index)
    height = 0.8 + 0.18 * n_rows + inches(matrix.columns)
    ax = canvas(ax, (width, height))
    image = ax.imshow(matrix, aspect="auto", **_colours(value, matrix))
    name_ticks(ax.xaxis, matrix.columns, n_labels)
    name_ticks(ax.yaxis, matrix.index, n_labels)
    ax.tick_params(axis="x", rotation=90)
    ax.set(xlabel="candidate", ylabel="perturbation")
    ax.set_title(title, loc="left")
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.6, aspect=25, label=VALUES[value]).ax
    bar.grid(False)
    if matrix.isna().any(axis=None):
        grey = Patch(facecolor=ABSENT_COLOUR, label=ABSENT.get(value, UNKNOWN))
        ax.legend(handles=[grey], loc="lower right", bbox_to_anchor=(1, 1), frameon=False, fontsize=SMALL)
    return finish(ax, given=given, show=show, return_fig=return_fig)


def _colours(value: str, matrix: pd.DataFrame) -> dict[str, Any]:
    """Return colour map and range: rates from 0 to 1, weights from 0, similarities over their own range."""
    if value.startswith("similarity"):
        return {"cmap": colormaps[COLOURS].with_extremes(bad=ABSENT_COLOUR)}
    highest = 1.0
    if value == "weight":
        highest = float(np.nanmax(matrix)) or 1.0
    return {"cmap": colormaps[WEIGHT_COLOURS].with_extremes(bad=ABSENT_COLOUR), "vmin": 0.0, "vmax": highest}


def _leaf_order(rows: np.ndarray) -> np.ndarray:
    """Return the order (P,) of rows (P, C) in which similar ones are next to each other."""
    if len(rows) < 3:
        return np.arange(len(rows))
    fast_enough = len(rows) <= 500  # the optimal order takes cubic time
    return leaves_list(linkage(pdist(rows), "ward", optimal_ordering=fast_enough))


def _diagonal_order(matrix: np.ndarray) -> np.ndarray:
    """Return the order (C,) of columns (P, C) by the centre of mass of their rows; unused columns are last."""
    mass = np.abs(matrix).sum(axis=0)  # (C,)
    centre = np.arange(len(matrix)) @ np.abs(matrix) / np.where(mass > 0, mass, 1)  # (C,)
    return np.argsort(np.where(mass > 0, centre, np.inf), kind="stable")
