"""Would a designed choice of perturbations have told more than a random one?"""

from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes

from ptrag_sc._docs import documented
from ptrag_sc.baselines._design_curve import design_curve
from ptrag_sc.baselines._known import SimilaritySpace
from ptrag_sc.data import Predictor
from ptrag_sc.data._fields import AnnOrMuData
from ptrag_sc.pl._finish import CONTROL_COLOUR, LINE_COLOUR, OBSERVED_COLOUR, SMALL, Drawn, canvas, finish

LOOK = {"design": ("chosen by design", OBSERVED_COLOUR, "o"), "random": ("chosen at random", "#7A7A7A", "s")}


@documented
def design(
    adata: AnnOrMuData,
    model: Predictor | None,
    *,
    cell_type: str,
    n_perturbations: Iterable[int] | None = None,
    n_start: int = 0,
    space: SimilaritySpace = "auto",
    n_repeats: int = 10,
    seed: int = 0,
    gene_embedding: object = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Drawn:
    """Accuracy against the number of measured perturbations, chosen by :func:`ptrag_sc.tl.design` or at random.

    The screen that was measured is chosen again; :func:`ptrag_sc.tl.design_curve` returns the numbers. Bands hold the
    middle 80 % of the repeats. The arrow says how many measurements the design would have saved.

    Parameters
    ----------
    adata, model, cell_type, n_perturbations, n_start, space, n_repeats, seed, gene_embedding
        As in :func:`ptrag_sc.tl.design_curve`.
    {plot_parameters}

    Returns
    -------
    Axes or Figure
        The axes, or the figure if ``return_fig`` is True.

    Raises
    ------
    KeyError
        If the cell type does not occur, or a gene has no vector.
    ValueError
        If fewer than ten perturbations were measured, or a number is out of range.

    Examples
    --------
    >>> import ptrag_sc
    >>> ptrag_sc.pl.design(adata, model, cell_type="RPE1")  # doctest: +SKIP
    """
    curve = design_curve(
        adata,
        model,
        cell_type=cell_type,
        n_perturbations=n_perturbations,
        n_start=n_start,
        space=space,
        n_repeats=n_repeats,
        seed=seed,
        gene_embedding=gene_embedding,
    )
    given = ax is not None
    ax = canvas(ax, (5.6, 4.0))
    lines = {}
    for choice, (label, colour, marker) in LOOK.items():
        rows = curve[curve["choice"] == choice]
        n, r = rows["n_perturbations"].to_numpy(), rows["pearson_delta_pert"].to_numpy()
        ax.fill_between(n, rows["low"], rows["high"], color=colour, alpha=0.16, lw=0)
        ax.plot(n, r, marker=marker, color=colour, ms=5, lw=2, label=label)
        lines[choice] = n, r
    _mark_saved(ax, *lines["design"], *lines["random"])
    ax.axhline(0, color=CONTROL_COLOUR, lw=0.8, zorder=0)
    ax.set_xlabel(f"perturbations measured in {cell_type}")
    ax.set_ylabel("accuracy for unseen perturbations\n(pearson_delta_pert)")
    ax.legend(loc="upper left", frameon=False, fontsize=SMALL)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(f"{curve.attrs['predictor']}, {n_repeats} repeats", fontsize=SMALL, color=LINE_COLOUR)
    return finish(ax, given=given, show=show, return_fig=return_fig)


def _mark_saved(ax: Axes, n: np.ndarray, r: np.ndarray, n_random: np.ndarray, r_random: np.ndarray) -> None:
    """Draw how many fewer measurements the design needs for what random choice reaches halfway."""
    half = (n_random[0] + n_random[-1]) / 2
    level = float(np.interp(half, n_random, r_random))
    reached = np.maximum.accumulate(r)
    needed = float(np.interp(level, reached, n))
    if reached[-1] < level or needed >= half:
        return
    ax.annotate("", (needed, level), (half, level), arrowprops={"arrowstyle": "->", "color": LINE_COLOUR, "lw": 1.2})
    text = f"{needed:.0f} instead of {half:.0f}"
    if reached[0] >= level:  # the design may need even fewer than the smallest number of the curve
        text = f"at most {text}"
    ax.annotate(text, (half, level), (6, -4), textcoords="offset points", fontsize=SMALL, color=LINE_COLOUR, va="top")
