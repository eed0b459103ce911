"""Did training converge, and where was it best?"""

from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.gridspec import SubplotSpec
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ptrag_sc._docs import documented
from ptrag_sc._validation import unusable
from ptrag_sc.pl._finish import LINE_COLOUR, OBSERVED_COLOUR, PREDICTED_COLOUR, SMALL, Drawn, canvas, finish

if TYPE_CHECKING:
    from scvi.model.base import BaseModelClass

Styles = dict[str, tuple[str, str]]  # for each curve of the history its label and its colour
Curves = dict[str, pd.Series]  # values by epoch

LOSSES: Styles = {"train_loss": ("training", OBSERVED_COLOUR), "validation_loss": ("validation", PREDICTED_COLOUR)}
GATES: Styles = {
    "gate_open_train": ("training", OBSERVED_COLOUR),
    "gate_open_validation": ("validation", PREDICTED_COLOUR),
}
JUMPS = "new cells in each epoch"
SMOOTHED = 9  # epochs of the running median of the training loss
FEW_EPOCHS = 20  # shorter curves have a marker at every epoch, because a line of one epoch is invisible


@documented
def training(
    model: "BaseModelClass", *, ax: Axes | None = None, show: bool | None = None, return_fig: bool = False
) -> Drawn:
    """Training and validation loss per epoch, with a mark at the epoch whose weights were kept.

    The training loss (thin) jumps, because every epoch draws new cells of each condition and withholds other parts of
    the evidence: spikes are samples, not divergence. The thick line is its running median over nine epochs. Validation
    sets are the same in every epoch.

    The model is not trained on validation conditions: when their loss starts to rise, the model starts to overfit. The
    kept epoch is the one with the lowest validation loss, but a model with a memory keeps it only if it is clearly
    better than the untrained model; otherwise the legend says that no epoch was kept. If a model does not record the
    kept epoch, the lowest loss is marked. With a memory the training loss is the sum of two losses, because generator
    and memory are each trained to predict alone; so it is above the validation loss, and the legend says so. If the
    history contains the share of open retrieval gates, it is drawn in a second panel below, unless the axes are outside
    a grid.

    Parameters
    ----------
    model
        A trained :class:`ptrag_sc.PTRAG`, or any model with an scvi-tools ``history``.
    {plot_parameters}

    Returns
    -------
    Axes or Figure
        The axes of the losses, or the figure if ``return_fig`` is True.

    Raises
    ------
    ValueError
        If the model is not trained.

    Examples
    --------
    >>> import ptrag_sc
    >>> ptrag_sc.pl.training(model)  # doctest: +SKIP
    """
    history = model.history or {}
    losses = _curves(history, LOSSES)
    gates = _curves(history, GATES)
    if not losses:
        raise ValueError(unusable("Loss", "model.history", "is empty: the model is not trained", "Run model.train()."))

    given = ax is not None
    ax = canvas(ax, (6, 5.6 if gates else 4.4))
    _lines(ax, losses, LOSSES)
    if "train_loss" in losses:
        has_memory = getattr(getattr(model, "tables_", None), "memory", None) is not None
        _explain_training(ax, losses["train_loss"], "training, two losses" if has_memory else "training")
    # None: no epoch was kept. A model without this attribute, such as one of scvi-tools, does not record the epoch.
    if getattr(model, "kept_epoch_", 0) is None:
        ax.plot([], [], " ", label="kept: as before training\n(no epoch was clearly better)")
    else:
        _mark_best(ax, losses, getattr(model, "kept_epoch_", None))
    ax.set_ylabel("loss")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=SMALL)  # above, so on no curve
    lowest = ax
    place = ax.get_subplotspec()
    if gates and place is not None:
        lowest = _gate_panel(ax, place, gates)
    lowest.set_xlabel("epoch")
    lowest.xaxis.set_major_locator(MaxNLocator(integer=True))
    return finish(ax, given=given, show=show, return_fig=return_fig)


def _curves(history: dict[str, pd.DataFrame], styles: Styles) -> Curves:
    """Return the curves that the history has, without the epochs at which a value was not logged."""
    curves = {name: history[name].iloc[:, 0].astype(float).dropna() for name in styles if name in history}
    return {name: curve for name, curve in curves.items() if len(curve)}


def _lines(ax: Axes, curves: Curves, styles: Styles) -> None:
    for name, curve in curves.items():
        label, colour = styles[name]
        marker = "." if len(curve) < FEW_EPOCHS else None
        ax.plot(curve.index, curve, color=colour, lw=1.8, marker=marker, label=label)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _explain_training(ax: Axes, curve: pd.Series, name: str) -> None:
    """Draw the running median of the training loss, and say why single epochs jump."""
    if len(curve) < FEW_EPOCHS:
        return
    drawn = ax.lines[0]
    drawn.set(linewidth=0.8, alpha=0.5, label=f"{name} ({JUMPS})")
    smooth = curve.rolling(SMOOTHED, center=True, min_periods=1).median()
    ax.plot(smooth.index, smooth, color=drawn.get_color(), lw=2, label=f"{name}, running median")


def _mark_best(ax: Axes, losses: Curves, kept: int | None) -> None:
    """Mark the kept epoch, or if it is None that of the lowest loss; in the validation loss if there is one."""
    names = [n for n in ("validation_loss", "train_loss") if n in losses and (kept is None or kept in losses[n].index)]
    if not names:  # with other data or another logger, no loss of that epoch is on record
        ax.plot([], [], " ", label=f"kept: epoch {kept}")
        return
    curve = losses[names[0]]
    name, colour = LOSSES[names[0]]
    if kept is None:
        best = curve.idxmin()
        word = "lowest"
    else:
        best = kept
        word = "kept"
    ax.axvline(best, color=LINE_COLOUR, lw=0.8, ls="--", zorder=0)
    label = f"{word} {name} loss: {curve[best]:.3g}, epoch {best}"
    ax.plot([best], [curve[best]], "o", ms=8, mfc="white", mec=colour, mew=2, ls="none", label=label)


def _gate_panel(ax: Axes, place: SubplotSpec, gates: Curves) -> Axes:
    """Split the place of the axes in their grid: its lower third becomes a panel with the share of open gates."""
    grid = place.subgridspec(2, 1, height_ratios=(2, 1))
    ax.set_subplotspec(grid[0])
    panel = ax.figure.add_subplot(grid[1], sharex=ax)
    panel.grid(False)
    _lines(panel, gates, GATES)
    panel.set(ylabel="open gates", ylim=(-0.03, 1.03))
    panel.yaxis.set_major_formatter(PercentFormatter(1))
    ax.tick_params(labelbottom=False)
    return panel
