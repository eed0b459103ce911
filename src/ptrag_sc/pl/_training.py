"""Did training converge, and where was it best?"""

from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ptrag_sc._docs import documented
from ptrag_sc._validation import unusable
from ptrag_sc.pl._finish import LINE_COLOUR, OBSERVED_COLOUR, PREDICTED_COLOUR, SMALL, canvas, finish

if TYPE_CHECKING:
    from scvi.model.base import BaseModelClass

LOSSES = {"train_loss": ("training", OBSERVED_COLOUR), "validation_loss": ("validation", PREDICTED_COLOUR)}
GATES = {"gate_open_train": ("training", OBSERVED_COLOUR), "gate_open_validation": ("validation", PREDICTED_COLOUR)}


@documented
def training(
    model: "BaseModelClass", *, ax: Axes | None = None, show: bool | None = None, return_fig: bool = False
) -> Axes | Figure:
    """Training and validation loss per epoch, with the epoch marked whose weights were kept.

    Validation conditions are not trained on: where their loss turns upwards, the model starts to memorise. The kept
    epoch is that of the lowest validation loss, but with a memory only where it clearly surpasses the untrained model;
    else the legend says that no epoch was kept. A model that does not tell has its lowest loss marked. With a memory
    the training loss is the sum of two, as generator and memory learn to answer alone, and lies above the other. If the
    history has the share of open retrieval gates, it stands in a second panel below (not in axes outside a grid).

    Parameters
    ----------
    model
        A trained :class:`ptrag_sc.PTRAG`, or any model with an scvi-tools ``history``.
    {plot_parameters}

    Returns
    -------
    The axes of the losses, or the figure.

    Raises
    ------
    ValueError
        If the model is not trained.

    Examples
    --------
    >>> import ptrag_sc
    >>> ptrag_sc.pl.training(model)  # doctest: +SKIP
    """
    losses, gates = (_curves(model.history or {}, names) for names in (LOSSES, GATES))
    if not losses:
        raise ValueError(unusable("Loss", "model.history", "is empty: the model is not trained", "Run model.train()."))

    given = ax is not None
    ax = canvas(ax, (6, 5 if gates else 3.8))
    _lines(ax, losses, LOSSES)
    if getattr(model, "kept_epoch_", 0) is None:
        ax.plot([], [], " ", label="kept: as before training (no epoch was clearly better)")
    else:
        _mark_best(ax, losses, getattr(model, "kept_epoch_", None))
    ax.set_ylabel("loss")
    ax.legend(edgecolor="none", framealpha=0.9, fontsize=SMALL + 1)
    lowest = _gate_panel(ax, gates) if gates and ax.get_subplotspec() is not None else ax
    lowest.set_xlabel("epoch")
    lowest.xaxis.set_major_locator(MaxNLocator(integer=True))
    return finish(ax, given=given, show=show, return_fig=return_fig)


def _curves(history: dict[str, pd.DataFrame], names: dict) -> dict[str, pd.Series]:
    """The named curves that the history has, without the epochs at which a value was not logged."""
    curves = {name: history[name].iloc[:, 0].astype(float).dropna() for name in names if name in history}
    return {name: curve for name, curve in curves.items() if len(curve)}


def _lines(ax: Axes, curves: dict[str, pd.Series], styles: dict) -> None:
    for name, curve in curves.items():
        label, colour = styles[name]
        ax.plot(curve.index, curve, color=colour, lw=1.8, marker="." if len(curve) < 20 else None, label=label)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _mark_best(ax: Axes, losses: dict[str, pd.Series], kept: int | None) -> None:
    """Mark the kept epoch, or that of the lowest loss; in the validation loss if there is one."""
    names = [n for n in ("validation_loss", "train_loss") if n in losses and (kept is None or kept in losses[n].index)]
    if not names:  # other data or another logger: no loss of that epoch is on record
        ax.plot([], [], " ", label=f"kept: epoch {kept}")
        return
    curve, name = losses[names[0]], LOSSES[names[0]][0]
    best = curve.idxmin() if kept is None else kept
    label = f"{'lowest' if kept is None else 'kept'} {name} loss: {curve[best]:.3g}, epoch {best}"
    ax.axvline(best, color=LINE_COLOUR, lw=0.8, ls="--", zorder=0)
    ax.plot([best], [curve[best]], "o", ms=8, mfc="white", mec=LOSSES[names[0]][1], mew=2, ls="none", label=label)


def _gate_panel(ax: Axes, gates: dict[str, pd.Series]) -> Axes:
    """Give the lower third of the place of the axes in their grid to a panel with the share of open gates."""
    upper, lower = ax.get_subplotspec().subgridspec(2, 1, height_ratios=(2, 1))
    ax.set_subplotspec(upper)
    panel = ax.figure.add_subplot(lower, sharex=ax)
    panel.grid(False)
    _lines(panel, gates, GATES)
    panel.set(ylabel="open gates", ylim=(-0.03, 1.03))
    panel.yaxis.set_major_formatter(PercentFormatter(1))
    ax.tick_params(labelbottom=False)
    return panel
