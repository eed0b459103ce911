"""Which genes would a perturbation change, how sure is that, and what did its neighbours do?"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes

from ptrag_sc._constants import DEFAULT_KEY
from ptrag_sc._docs import documented
from ptrag_sc._validation import absent, check_whole, unknown
from ptrag_sc.data import as_names
from ptrag_sc.data._predicted_labels import predicted_label
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
    unit,
)

ROW = 0.26  # inches of one gene
MARKERS = ("s", "^", "D", "v", "P")  # of the neighbours
MARK: dict[str, Any] = {"s": 20, "facecolors": "none", "edgecolors": OBSERVED_COLOUR, "linewidths": 1.0}


class Shown(NamedTuple):
    """The genes of a plot, from top to bottom."""

    cell_type: str
    genes: np.ndarray  # (n,)
    shift: np.ndarray  # (n,)
    lower: np.ndarray  # (n,)
    upper: np.ndarray  # (n,)
    own: np.ndarray  # (n,)
    neighbours: dict[str, np.ndarray]  # their shifts (n,), NaN where one is not known
    level: float | None
    layer: str | None


@documented
def predicted_effects(
    adata: AnnData | pd.DataFrame,
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
        Result of :func:`ptrag_sc.tl.perturb`, or AnnData after :func:`ptrag_sc.tl.predict`; or the table of
        :func:`ptrag_sc.tl.predict_effects`, in which each gene has the shift of one neighbour, which is drawn if it is
        among the five that most of the shown genes have.
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
    if isinstance(adata, pd.DataFrame):
        shown = _of_table(adata, perturbation, cell_type, n_genes)
    else:
        shown = _of_cells(adata, key, perturbation, cell_type, n_genes)
    lower, upper = shown.lower, shown.upper
    given = ax is not None
    ax = canvas(ax, (6.4, 1.6 + ROW * len(shown.genes)))
    y = np.arange(len(shown.genes))
    ax.axvline(0, color=CONTROL_COLOUR, lw=0.8, zorder=0)
    for marker, (name, values) in zip(MARKERS, shown.neighbours.items(), strict=False):
        ax.scatter(values, y, marker=marker, label=name, zorder=2, **MARK)
    limits = _limits(np.concatenate([shown.shift, *shown.neighbours.values(), lower, upper, [0.0]]))
    known = ~np.isnan(lower)
    ends = np.maximum(lower[known], limits[0]), np.minimum(upper[known], limits[1])
    ax.hlines(y[known], *ends, color=PREDICTED_COLOUR, lw=1.6, zorder=1)
    for limit, end, marker in ((limits[0], lower, "<"), (limits[1], upper, ">")):
        is_open = np.isinf(end)
        at = np.full(is_open.sum(), limit)
        ax.plot(at, y[is_open], marker, color=PREDICTED_COLOUR, ms=5, clip_on=False, ls="none")
    ax.scatter(shown.shift, y, s=46, c=PREDICTED_COLOUR, linewidths=0, zorder=3, label="predicted")
    of_genes = list(zip(shown.genes.tolist(), shown.own, strict=True))
    ax.set_yticks(y, [f"{name} (target)" if is_own else name for name, is_own in of_genes])
    for label, is_own in zip(ax.get_yticklabels(), shown.own, strict=True):
        label.set_fontsize(SMALL)
        label.set_fontweight("bold" if is_own else "normal")
    ax.set(xlim=limits, ylim=(len(y) - 0.5, -0.5), xlabel=f"shift of mean expression ({unit(shown.layer)})")
    interval = "interval" if shown.level is None else f"{shown.level:.0%} interval"
    ax.set_title(f"{perturbation} in {shown.cell_type}: predicted shift, {interval}", loc="left")
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


def _of_cells(adata: AnnData, key: str, perturbation: str, cell_type: str | None, n_genes: int) -> Shown:
    """Return the effects that stand beside predicted cells."""
    effects = result(adata, key, "effects")
    perturbation = predicted_label(adata.uns[key], perturbation)
    row, cell_type = _row(effects["conditions"], perturbation, cell_type)
    top = _largest(np.asarray(effects["shift"])[row], n_genes)
    names = [str(name) for name in np.asarray(effects["neighbours"])[row] if name]
    shifts = np.asarray(effects["neighbour_shifts"])[row][:, top]  # (5, n)
    shift, lower, upper, own = (np.asarray(effects[name])[row, top] for name in ("shift", "lower", "upper", "own"))
    return Shown(
        cell_type,
        as_names(effects["genes"])[top],
        shift,
        lower,
        upper,
        own,
        neighbours=dict(zip(names, shifts, strict=False)),
        level=float(effects["level"]),
        layer=adata.uns[key]["params"].get("layer"),
    )


def _of_table(table: pd.DataFrame, perturbation: str, cell_type: str | None, n_genes: int) -> Shown:
    """Return the rows of a condition in the table of :func:`ptrag_sc.tl.predict_effects`."""
    _, cell_type = _row(table[["perturbation", "cell_type"]].drop_duplicates(), perturbation, cell_type)
    rows = table[(table["perturbation"] == perturbation) & (table["cell_type"] == cell_type)]
    rows = rows.iloc[_largest(rows["shift"].to_numpy(), n_genes)]
    neighbour, of_neighbours = rows["neighbour"].astype(object), rows["neighbour_shift"].to_numpy()
    names = neighbour.value_counts().index[: len(MARKERS)]
    shift, lower, upper, own = (rows[name].to_numpy() for name in ("shift", "lower", "upper", "own"))
    return Shown(
        cell_type,
        rows["gene"].to_numpy(dtype=str),
        shift,
        lower,
        upper,
        own,
        neighbours={str(name): np.where(neighbour == name, of_neighbours, np.nan) for name in names},
        level=table.attrs.get("level"),
        layer=table.attrs.get("layer"),
    )


def _largest(shift: np.ndarray, n: int) -> np.ndarray:
    return np.argsort(-np.abs(shift), kind="stable")[:n]


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
