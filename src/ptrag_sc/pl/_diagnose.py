"""Where may a screen break what the models assume?"""

from anndata import AnnData
from matplotlib.axes import Axes

from ptrag_sc._docs import documented
from ptrag_sc.pl._finish import LINE_COLOUR, OBSERVED_COLOUR, PREDICTED_COLOUR, SMALL, Drawn, canvas, finish, result

KEY = "diagnose"
MARKS = {"ok": ("o", OBSERVED_COLOUR), "note": ("^", "#E69F00"), "warning": ("X", PREDICTED_COLOUR)}


@documented
def diagnose(
    adata: AnnData, *, key: str = KEY, ax: Axes | None = None, show: bool | None = None, return_fig: bool = False
) -> Drawn:
    """Report of :func:`ptrag_sc.tl.diagnose`, one line per check, the worst on top.

    Parameters
    ----------
    adata
        Object with a report.
    key
        Where it was written.
    {plot_parameters}

    Returns
    -------
    Axes or Figure
        The axes, or the figure if ``return_fig`` is True.

    Raises
    ------
    KeyError
        If there is no report under this key.

    Examples
    --------
    >>> import ptrag_sc
    >>> ptrag_sc.pl.diagnose(adata)  # doctest: +SKIP
    """
    findings = result(adata, key, "findings", writer="diagnose")
    order = {level: i for i, level in enumerate(MARKS)}
    # Rows are drawn from the bottom, so that the last level, the worst, is on top.
    findings = findings.sort_values("level", key=lambda level: level.map(order), kind="stable")
    given = ax is not None
    ax = canvas(ax, (9, 0.4 * len(findings) + 0.7))
    for y, row in enumerate(findings.itertuples()):
        marker, colour = MARKS[row.level]
        ax.plot(0, y, marker, color=colour, ms=10)
        ax.text(0.12, y, row.message, va="center", fontsize=SMALL + 1, color=LINE_COLOUR)
    for level, (marker, colour) in MARKS.items():  # for the legend: a level may be absent from the report
        ax.plot([], [], marker, color=colour, ms=8, label=level)
    ax.set(xlim=(-0.12, 3), ylim=(-0.7, len(findings) - 0.3), xticks=[], yticks=range(len(findings)))
    ax.set_yticklabels(findings["check"])
    ax.tick_params(axis="y", length=0)
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize=SMALL, borderaxespad=0.1)
    for side in ax.spines.values():
        side.set_visible(False)
    return finish(ax, given=given, show=show, return_fig=return_fig)
