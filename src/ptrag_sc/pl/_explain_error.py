"""Where do the errors of predicted shifts come from, condition by condition?"""

from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ptrag_sc._docs import documented
from ptrag_sc._validation import absent, check_whole, unusable
from ptrag_sc.pl._finish import (
    CONTROL_COLOUR,
    LINE_COLOUR,
    OBSERVED_COLOUR,
    PREDICTED_COLOUR,
    SMALL,
    Drawn,
    canvas,
    finish,
)

# Grey is noise, which no model can predict. The name of each cause in the legend, and its colour.
CAUSES = {
    "observed cells": ("too few observed cells", "#555555"),
    "control cells": ("too few control cells", "#8C8C8C"),
    "predicted cells": ("too few predicted cells", "#C8C8C8"),
    "batches": ("batches without controls", "#F0E442"),
    "composition": ("other composition of cells", "#56B4E9"),
    "own gene": ("own gene", "#CC79A7"),
    "common shift": ("common shift of the cell type", "#E69F00"),
    "neighbours wrong": ("neighbours wrong on average", OBSERVED_COLOUR),
    "neighbours disagree": ("neighbours disagree", "#009E73"),
    "generator": ("generator (the model itself)", PREDICTED_COLOUR),
}
VALUES = {"squared_error": "squared error, summed over genes", "share": "share of the squared error"}
VISIBLE = 0.005  # a cause below this share of the longest bar, in all bars, is not in the legend
ROW = 0.3  # inches of one bar


@documented
def explain_error(
    table: pd.DataFrame,
    *,
    value: Literal["squared_error", "share"] = "squared_error",
    perturbation: str | None = None,
    cell_type: str | None = None,
    n_rows: int = 20,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Drawn:
    """Parts of the squared error as stacked bars, the largest error on top.

    A bar is a condition. If the table has groups of genes, a bar is a group, as the mean over conditions. Parts below 0
    are drawn to the left of 0, and a black mark is the total. Grey parts are noise, which no model predicts.

    Parameters
    ----------
    table
        Result of :func:`ptrag_sc.tl.explain_error`.
    value
        ``"squared_error"``, or ``"share"`` of the total of the condition, which shows weak conditions beside strong
        ones.
    perturbation, cell_type
        Only this one; None takes all.
    n_rows
        Number of bars.
    {plot_parameters}

    Returns
    -------
    Axes or Figure
        The axes, or the figure if ``return_fig`` is True.

    Raises
    ------
    KeyError
        If a name does not occur, or the table has other columns.
    ValueError
        If ``value`` is something else.

    Examples
    --------
    >>> import ptrag_sc
    >>> table = ptrag_sc.tl.explain_error(adata, virtual, reference=reference)  # doctest: +SKIP
    >>> ptrag_sc.pl.explain_error(table)  # doctest: +SKIP
    """
    check_whole("n_rows", n_rows, "pl.explain_error", minimum=1)
    if value not in VALUES:
        raise ValueError(absent("value=", value, "pl.explain_error", VALUES, "Pass one of them."))
    bars, unknown, title = _bars(table, value, {"perturbation": perturbation, "cell_type": cell_type})
    left_out = max(0, len(bars) - n_rows)
    bars = bars.iloc[:n_rows]
    given = ax is not None
    ax = canvas(ax, (8.4, 1.3 + ROW * len(bars)))
    y = np.arange(len(bars))
    ends = {1: np.zeros(len(bars)), -1: np.zeros(len(bars))}  # of the parts above and below 0
    longest = float(bars.clip(lower=0).sum(axis=1).max())
    for cause, (name, colour) in CAUSES.items():
        if cause not in bars:
            continue
        part = bars[cause].to_numpy(dtype=float)
        label = name if np.abs(part).max() > VISIBLE * longest else None
        for sign, end in ends.items():
            width = np.where(np.sign(part) == sign, part, 0.0)
            ax.barh(y, width, left=end, height=0.72, color=colour, linewidth=0, label=label if sign == 1 else None)
            end += width
    total = bars.sum(axis=1).to_numpy()
    ax.vlines(total, y - 0.36, y + 0.36, color="black", lw=2, label="total")
    ax.axvline(0, color=CONTROL_COLOUR, lw=0.8, zorder=0)
    ax.set_yticks(y, [f"{name} (some noise unknown)" if name in unknown else name for name in bars.index])
    ax.tick_params(axis="y", length=0, labelsize=SMALL)
    ax.set(ylim=(len(bars) - 0.4, -0.6), xlabel=VALUES[value])
    if left_out:
        title += f" ({left_out} smaller ones not shown)"
    ax.set_title(title, loc="left", fontsize=SMALL + 2)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    legend = ax.legend(
        title="error from", alignment="left", loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=SMALL
    )
    legend.get_title().set_color(LINE_COLOUR)
    return finish(ax, given=given, show=show, return_fig=return_fig)


def _bars(table: pd.DataFrame, value: str, chosen: dict[str, str | None]) -> tuple[pd.DataFrame, set[str], str]:
    """Return rows of bars by cause (the largest error first), those with unknown noise, and the title."""
    lacking = [name for name in ("perturbation", "cell_type", "cause", value) if name not in table]
    if lacking or table.empty:
        problem = f"lacks the columns {lacking}" if lacking else "has no rows"
        raise KeyError(unusable("The table", "pl.explain_error", problem, "Pass the result of tl.explain_error."))
    for column, name in chosen.items():
        if name is not None:
            if name not in set(table[column]):
                raise KeyError(absent(column, name, "the table", table[column].unique(), f"Correct {column}=..."))
            table = table[table[column] == name]
    n_types = table["cell_type"].nunique()
    condition = table["perturbation"].astype(str)
    if n_types > 1:
        condition = condition + " in " + table["cell_type"].astype(str)
    title = (
        f"{table['cell_type'].iloc[0]}: error of the predicted shifts"
        if n_types == 1
        else "Error of the predicted shifts"
    )
    row = condition
    n_conditions = 1
    if "group" in table:
        row = table["group"].astype(str)
        n_conditions = condition.nunique()
        title += f", mean of {n_conditions} conditions" if n_conditions > 1 else f" of {condition.iloc[0]}"
    table = table.assign(row=row)
    unknown = set(table.loc[table[value].isna(), "row"])
    wide = table.groupby(["row", "cause"], observed=True)[value].sum().unstack(fill_value=0.0) / n_conditions
    total = table.groupby("row")["squared_error"].sum().sort_values(ascending=False, kind="stable")
    return wide.loc[total.index], unknown, title
