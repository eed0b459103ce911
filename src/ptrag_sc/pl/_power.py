"""How does accuracy grow with the number of perturbations and cells, and which split of a budget is best?"""

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes

from ptrag_sc._docs import documented
from ptrag_sc._validation import absent, check_whole, unusable
from ptrag_sc.pl._finish import LINE_COLOUR, PREDICTED_COLOUR, SMALL, Drawn, canvas, finish

NEEDED = ("n_perturbations", "n_cells", "pearson_delta_pert", "low", "high", "extrapolated")


@documented
def power(
    table: pd.DataFrame,
    *,
    budget: int | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Drawn:
    """Accuracy against the number of perturbations, a line for every number of cells per perturbation.

    Lines are dashed and markers open where accuracy is extrapolated; bands are intervals of 90 %.

    Parameters
    ----------
    table
        Table of :func:`ptrag_sc.tl.power`, of several numbers of perturbations.
    budget
        Perturbed cells in all: where each line meets it is marked, and joined to the next. The highest of these points
        is the best split. It follows from the formula of the table.
    {plot_parameters}

    Returns
    -------
    Axes or Figure
        The axes, or the figure if ``return_fig`` is True.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If the table has no row with a value, or the budget lies outside of it.

    Examples
    --------
    >>> import ptrag_sc
    >>> ptrag_sc.pl.power(ptrag_sc.tl.power(adata, model, cell_type="RPE1"))  # doctest: +SKIP
    """
    if lacking := [name for name in NEEDED if name not in table]:
        raise KeyError(absent("Column", lacking[0], "the table", table.columns, "Pass the table of ptrag_sc.tl.power."))
    known = table.dropna(subset="pearson_delta_pert")
    if known.empty:
        remedy = "Ask ptrag_sc.tl.power for smaller sizes."
        raise ValueError(unusable("The table", "pl.power", "has no row with a value", remedy))
    given = ax is not None
    ax = canvas(ax, (5.8, 4.2))
    cells = sorted(known["n_cells"].unique())
    # From light to dark, without the ends that are too pale or too dark to be told apart.
    colours = colormaps["viridis_r"](np.linspace(0.2, 0.95, len(cells)))
    for c, colour in reversed(list(zip(cells, colours, strict=True))):  # the legend in the order of the lines
        _line(ax, known[known["n_cells"] == c].sort_values("n_perturbations"), colour, f"{c} cells")
    if budget is not None:
        check_whole("budget", budget, "pl.power", minimum=1)
        _budget(ax, table, cells, budget)
    ax.set_xlabel("perturbations measured")
    ax.set_ylabel("accuracy for unseen perturbations\n(pearson_delta_pert)")
    ax.set_xlim(left=0)
    ax.legend(loc="upper left", frameon=False, fontsize=SMALL, title="per perturbation", title_fontsize=SMALL)
    ax.spines[["top", "right"]].set_visible(False)
    if "predictor" in table.attrs:
        title = f"{table.attrs['predictor']}; dashed: extrapolated"
        ax.set_title(title, fontsize=SMALL, color=LINE_COLOUR)
    return finish(ax, given=given, show=show, return_fig=return_fig)


def _line(ax: Axes, rows: pd.DataFrame, colour: np.ndarray, label: str) -> None:
    n, r = rows["n_perturbations"].to_numpy(), rows["pearson_delta_pert"].to_numpy()
    beyond = rows["extrapolated"].to_numpy(dtype=bool)
    ax.fill_between(n, rows["low"], rows["high"], color=colour, alpha=0.14, lw=0)
    ax.plot(n[~beyond], r[~beyond], "o-", color=colour, ms=5, lw=2, label=label)
    if beyond.any():
        first = max(0, int(beyond.argmax()) - 1)  # joined to the last point that was measured
        ax.plot(n[first:], r[first:], "--", color=colour, lw=2, label="" if (~beyond).any() else label)
        ax.plot(n[beyond], r[beyond], "o", color=colour, mfc="white", ms=5)


def _budget(ax: Axes, table: pd.DataFrame, cells: list[int], budget: int) -> None:
    """Mark where each line meets the budget, and the best of these places."""
    largest = table.loc[table["pearson_delta_pert"].notna(), "n_perturbations"].max()
    points = []
    for c in cells:
        line = table[(table["n_cells"] == c) & table["pearson_delta_pert"].notna()].sort_values("n_perturbations")
        n = budget / c
        if line["n_perturbations"].min() <= n <= line["n_perturbations"].max():
            points.append((n, float(np.interp(n, line["n_perturbations"], line["pearson_delta_pert"])), c))
    if not points:
        problem = f"meets no line of the table, which ends at {largest} perturbations"
        raise ValueError(unusable(f"budget={budget}", "pl.power", problem, "Ask tl.power for sizes that it pays for."))
    n, r, c = np.array(points).T
    ax.plot(n, r, ":", color=PREDICTED_COLOUR, lw=1.6, label=f"{budget:,} cells in all")
    ax.plot(n, r, "D", color=PREDICTED_COLOUR, ms=5)
    best = int(r.argmax())
    ax.annotate(
        f"best: {n[best]:.0f} perturbations × {c[best]:.0f} cells",
        (n[best], r[best]),
        (0, -10),
        textcoords="offset points",
        ha="center",
        va="top",
        fontsize=SMALL,
        color=PREDICTED_COLOUR,
        fontweight="bold",
    )
