"""How does every plot begin (results, axes) and end (shown, returned)?"""

from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from scanpy import settings

from ptrag_sc._validation import absent

# Okabe-Ito colours: they stay apart in every form of colour blindness and in grey print.
CONTROL_COLOUR = "#A6A6A6"
OBSERVED_COLOUR = "#0072B2"
PREDICTED_COLOUR = "#D55E00"
LINE_COLOUR = "#555555"
SMALL = 9  # points: tick, legend and gene labels

# plt.show() would warn with these, because they draw into files only.
FILE_BACKENDS = ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template")

Drawn = Axes | Figure | SubFigure  # what a plot returns; the caller's axes may lie in a SubFigure


def result(adata: AnnData, key: str, part: str, *, writer: str = "predict") -> Any:
    """Return ``adata.uns[key][part]``.

    Raises
    ------
    KeyError
        If it does not exist; the message names the ``tl`` function that writes it.
    """
    if key not in adata.uns:
        remedy = "Run ptrag_sc.tl.predict first, or pass key=..."
        raise KeyError(absent("Key", key, "adata.uns", adata.uns, remedy))
    if part not in adata.uns[key]:
        remedy = f"Run ptrag_sc.tl.{writer} first."
        raise KeyError(absent("Key", part, f"adata.uns[{key!r}]", adata.uns[key], remedy))
    return adata.uns[key][part]


def unit(layer: str | None) -> str:
    """Return in which unit expression is drawn, for the label of an axis."""
    if layer is None:
        return "log1p"
    return f"layer {layer}"


def canvas(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """Return the caller's axes, or those of a new figure of ``size`` (inches)."""
    if ax is None:
        _, ax = plt.subplots(figsize=size, layout="constrained")
    ax.grid(False)  # scanpy's style switches it on
    return ax


def finish(ax: Axes, *, given: bool, show: bool | None, return_fig: bool) -> Drawn:
    """Show the figure if that is wanted and possible; return the axes, or their figure.

    Parameters
    ----------
    ax
        The main axes of the plot.
    given
        Whether the caller passed the axes. If so, the caller's figure may be unfinished, and is shown only on request.
    show
        ``None``: ``scanpy.settings.autoshow`` decides. Backends that only write files never show.
    return_fig
        Whether to return the figure instead of the axes.
    """
    if show is None:
        show = settings.autoshow and not given and not return_fig
    if show and mpl.get_backend().lower() not in FILE_BACKENDS:
        plt.show()
    if return_fig:
        return ax.figure
    return ax
