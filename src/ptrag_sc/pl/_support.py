"""How far can the predictions be trusted?"""

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ptrag_sc._constants import DEFAULT_KEY
from ptrag_sc._docs import documented
from ptrag_sc._validation import absent
from ptrag_sc.pl._finish import LINE_COLOUR, OBSERVED_COLOUR, PREDICTED_COLOUR, SMALL, canvas, finish, result

OUTCOMES = {"pearson_delta": "Pearson correlation of shifts", "energy_distance": "energy distance"}


@documented
def support(
    adata: AnnData,
    *,
    key: str = DEFAULT_KEY,
    metric: str = "pearson_delta",
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure:
    """Expected against observed error of the validation conditions, and where the predictions of this object stand.

    Each point is a validation condition, expected from all others. The band holds nine of ten. Ticks along the bottom
    are the predicted conditions, in another colour where the model abstains: where the band touches 0.

    Parameters
    ----------
    adata
        Object with a prediction of :class:`ptrag_sc.PTRAG`.
    key
        Where the prediction was written.
    metric
        ``"pearson_delta"`` or ``"energy_distance"``.
    {plot_parameters}

    Returns
    -------
    The axes, or the figure.

    Raises
    ------
    KeyError
        If there is no prediction with expected errors under this key.
    ValueError
        If the metric is another one.

    Examples
    --------
    >>> import ptrag_sc
    >>> ptrag_sc.pl.support(adata)  # doctest: +SKIP
    """
    if metric not in OUTCOMES:
        raise ValueError(absent("metric=", metric, "pl.support", OUTCOMES, "Pass one of them."))
    conditions, predicted = result(adata, key, "support_calibration"), result(adata, key, "support")
    given = ax is not None
    ax = canvas(ax, (6.4, 4.2))
    observed, expected = (conditions[name].to_numpy(float) for name in (metric, f"expected_{metric}"))
    points = predicted[f"expected_{metric}"].to_numpy(float)
    low, high = (predicted[f"{metric}_{end}"].to_numpy(float) for end in ("low", "high"))
    # Intervals are cut at -1 and 1; one that reaches both has no width to show.
    cut = metric == "pearson_delta" and ((low <= -1) & (high >= 1)).all()
    width = np.inf if cut else float(np.maximum(points - low, high - points).max())
    everything = np.concatenate([expected, points])
    margin = 0.05 * (np.ptp(everything) or 1.0)
    line = np.array([everything.min() - margin, everything.max() + margin])
    if np.isfinite(width):
        ax.fill_between(line, line - width, line + width, color=OBSERVED_COLOUR, alpha=0.12, lw=0, label="9 of 10")
    ax.plot(line, line, color=LINE_COLOUR, lw=1, ls="--", label="observed = expected")
    ax.plot(expected, observed, "o", ms=4, color=OBSERVED_COLOUR, alpha=0.7, label="validation condition")
    abstains = predicted["abstain"].to_numpy(bool)
    bottom = {
        "transform": ax.get_xaxis_transform(),
        "clip_on": False,
        "ls": "none",
        "marker": "|",
        "ms": 11,
        "mew": 1.2,
    }
    for rows, colour, name in (
        (~abstains, LINE_COLOUR, "predicted"),
        (abstains, PREDICTED_COLOUR, "predicted, abstains"),
    ):
        if rows.any():
            ax.plot(points[rows], np.full(rows.sum(), 0.02), color=colour, label=f"{name} ({rows.sum()})", **bottom)
    if metric == "pearson_delta":
        ax.axhline(0, color=LINE_COLOUR, lw=0.6)
    ax.set(xlabel=f"expected {OUTCOMES[metric]}", ylabel=f"observed {OUTCOMES[metric]}", xlim=line)
    ax.legend(frameon=False, fontsize=SMALL, loc="upper left", bbox_to_anchor=(1.0, 1.0))  # never on the band
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return finish(ax, given=given, show=show, return_fig=return_fig)
