"""Which method is best, by how much, and how far is it from the floor and the ceiling?"""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.typing import LineStyleType

from ptrag_sc._validation import absent, unusable
from ptrag_sc.pl._finish import LINE_COLOUR, OBSERVED_COLOUR, SMALL, finish

NEEDED = ("metric", "method", "kind", "direction", "best", "confidence", "mean", "low", "high")
BOUNDS = {"floor": "#8C8C8C", "ceiling": "#009E73"}  # colour of each kind
# Line styles of one kind, so that each line can be named.
STYLES: tuple[LineStyleType, ...] = ("--", ":", "-.", (0, (6, 1.5, 1, 1.5, 1, 1.5)))
ROW_HEIGHT = 0.3  # inches
PANEL_WIDTH = 2.6  # inches
LEGEND_WIDTH = 2.1  # inches of one name in the legend
ARROWS = {"higher": "better →", "lower": "← better", "closer": "best: {:g}"}


def benchmark(
    summary: pd.DataFrame,
    *,
    metrics: Sequence[str] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> np.ndarray | Figure:
    """One panel per metric: a dot and an interval for every method, grey lines for floors and green ones for ceilings.

    Every floor and every ceiling has a line style of its own, which the legend names. Methods are sorted by the first
    metric, the best on top.

    Parameters
    ----------
    summary
        Table of :func:`ptrag_sc.benchmark.summary`.
    metrics
        Panels, in this order. None: all metrics of the table.
    show
        Whether to show the figure. None: ``scanpy.settings.autoshow``, unless ``return_fig`` is given.
    return_fig
        Whether to return the figure instead of the axes.

    Returns
    -------
    numpy.ndarray or Figure
        The axes of the panels (n,), or the figure if ``return_fig`` is True.

    Raises
    ------
    KeyError
        If a column or metric is missing.
    ValueError
        If the table has no method, or summaries of both truths.

    Examples
    --------
    >>> import ptrag_sc
    >>> ptrag_sc.pl.benchmark(ptrag_sc.benchmark.summary(scores))  # doctest: +SKIP
    """
    if lacking := [c for c in NEEDED if c not in summary]:
        remedy = "Pass the table of ptrag_sc.benchmark.summary."
        raise KeyError(absent("Column", lacking[0], "the summary", summary.columns, remedy))
    known = list(dict.fromkeys(summary["metric"]))
    metrics = known if metrics is None else list(metrics)
    if strange := [m for m in metrics if m not in known]:
        raise KeyError(absent("Metric", strange[0], "the summary", known, "Pass metrics that are in the table."))
    if not (summary["kind"] == "method").any():
        raise ValueError(unusable("The summary", "pl.benchmark", "holds no method", "Compare at least one."))
    if summary.duplicated(["metric", "method"]).any():
        remedy = "Pass one of them: summary[summary['truth'] == 'half']."
        raise ValueError(unusable("The summary", "pl.benchmark", "holds several rows for a method and metric", remedy))
    order = _order(summary[summary["metric"] == metrics[0]])
    size = (PANEL_WIDTH * len(metrics) + 1.2, ROW_HEIGHT * len(order) + 1.4)
    figure, grid = plt.subplots(1, len(metrics), figsize=size, sharey=True, squeeze=False, layout="constrained")
    panels: np.ndarray = grid[0]  # (n,)
    looks = _looks(summary)
    for ax, metric in zip(panels, metrics, strict=True):
        _panel(ax, summary[summary["metric"] == metric].set_index("method"), order, looks)
        ax.set_title(metric, fontsize=SMALL + 1)
    panels[0].set_yticks(range(len(order)), order)  # the panels share this axis
    panels[0].set_ylim(len(order) - 0.5, -0.5)
    _legend(figure, summary, looks)
    finish(panels[0], given=False, show=show, return_fig=return_fig)
    if return_fig:
        return figure
    return panels


def _order(rows: pd.DataFrame) -> list[str]:
    """Return the methods of one metric, the best first."""
    direction, best = rows[["direction", "best"]].iloc[0]
    means = rows[rows["kind"] == "method"].set_index("method")["mean"]
    distance = {"higher": -means, "lower": means, "closer": (means - best).abs()}[direction]
    return distance.sort_values(kind="stable").index.tolist()


def _looks(summary: pd.DataFrame) -> dict[str, tuple[str, LineStyleType]]:
    """Return colour and line style of every floor and ceiling."""
    looks: dict[str, tuple[str, LineStyleType]] = {}
    for kind, colour in BOUNDS.items():
        names = summary.loc[summary["kind"] == kind, "method"].unique()
        looks.update({name: (colour, style) for name, style in zip(names, cycle(STYLES), strict=False)})
    return looks


def _panel(ax: Axes, rows: pd.DataFrame, order: list[str], looks: dict[str, tuple[str, LineStyleType]]) -> None:
    for name, (colour, style) in looks.items():
        if name in rows.index:
            ax.axvline(rows.loc[name, "mean"], color=colour, ls=style, lw=1.4, zorder=0)
    own = rows.reindex(order)  # a method without this metric has a row of NaN, so that the panels stay aligned
    place = np.arange(len(order))
    ax.hlines(place, own["low"], own["high"], color=OBSERVED_COLOUR, lw=1.8)
    ax.plot(own["mean"], place, "o", color=OBSERVED_COLOUR, ms=6)
    ax.set_xlabel(ARROWS[rows["direction"].iloc[0]].format(rows["best"].iloc[0]), fontsize=SMALL, color=LINE_COLOUR)
    ax.tick_params(labelsize=SMALL)
    ax.locator_params(axis="x", nbins=4)
    ax.grid(axis="y", color="0.93", lw=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)


def _legend(figure: Figure, summary: pd.DataFrame, looks: dict[str, tuple[str, LineStyleType]]) -> None:
    lines = [Line2D([], [], color=OBSERVED_COLOUR, marker="o")]
    labels = [f"method, {summary['confidence'].iloc[0]:.0%} interval"]
    kinds = summary.drop_duplicates("method").set_index("method")["kind"]
    for name, (colour, style) in looks.items():
        lines.append(Line2D([], [], color=colour, ls=style, lw=1.4))
        labels.append(f"{kinds[name]}: {name}")
    n_columns = max(1, min(len(lines), int(figure.get_figwidth() / LEGEND_WIDTH)))
    options: dict[str, Any] = {
        "frameon": False,
        "fontsize": SMALL,
        "handlelength": 3,
    }  # a short line would not show its style
    figure.legend(lines, labels, loc="outside lower center", ncols=n_columns, **options)
