"""How far can the predictions be trusted?"""

from typing import Any

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes

from ptrag_sc._constants import DEFAULT_KEY
from ptrag_sc._docs import documented
from ptrag_sc._validation import absent, unusable
from ptrag_sc.model._calibration import half_width
from ptrag_sc.pl._finish import LINE_COLOUR, OBSERVED_COLOUR, PREDICTED_COLOUR, SMALL, Drawn, canvas, finish, result

OUTCOMES = {"pearson_delta": "Pearson correlation of shifts", "energy_distance": "energy distance"}
TICKS: dict[str, Any] = {"clip_on": False, "ls": "none", "marker": "|", "ms": 11, "mew": 1.2}


@documented
def support(
    adata: AnnData,
    *,
    key: str = DEFAULT_KEY,
    metric: str = "pearson_delta",
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Drawn:
    """Expected and observed error of the validation conditions, and expected errors of the predictions in this object.

    Each point is a validation condition, whose expectation comes from all others. The band contains nine of ten
    points. Ticks along the bottom are the predicted conditions, in another colour if the model abstains because the
    band includes 0. Predictions that are unlike all validation conditions have no expectation and are only counted.

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
    Axes or Figure
        The axes, or the figure if ``return_fig`` is True.

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
    predicted = result(adata, key, "support")
    if "support_calibration" not in adata.uns[key]:
        problem = "holds no expected errors, because no validation condition was predicted in training"
        remedy = "Hold some out with ptrag_sc.pp.split(val_fraction=...) and train."
        raise KeyError(unusable("Support", f"adata.uns[{key!r}]", problem, remedy))
    conditions = result(adata, key, "support_calibration")
    given = ax is not None
    ax = canvas(ax, (6.4, 4.2))
    observed = conditions[metric].to_numpy(float)  # (n,)
    expected = conditions[f"expected_{metric}"].to_numpy(float)  # (n,)
    points = predicted[f"expected_{metric}"].to_numpy(float)  # (m,), NaN without an expectation
    known = np.isfinite(points)  # (m,)
    line = _limits(metric, np.concatenate([expected, points[known]]))
    width = half_width(conditions, metric)
    if np.isfinite(width):
        ax.fill_between(line, line - width, line + width, color=OBSERVED_COLOUR, alpha=0.12, lw=0, label="9 of 10")
    ax.plot(line, line, color=LINE_COLOUR, lw=1, ls="--", label="observed = expected")
    ax.plot(expected, observed, "o", ms=4, color=OBSERVED_COLOUR, alpha=0.7, label="validation condition")
    abstains = predicted["abstain"].to_numpy(bool)  # (m,)
    _ticks(ax, points[known & ~abstains], LINE_COLOUR, "predicted")
    _ticks(ax, points[known & abstains], PREDICTED_COLOUR, "predicted, abstains")
    if not known.all():
        ax.plot([], [], ls="none", label=f"predicted, no expectation ({(~known).sum()})")
    if metric == "pearson_delta":
        ax.axhline(0, color=LINE_COLOUR, lw=0.6)
        ax.set_ylim(-1, 1)
    ax.set(xlabel=f"expected {OUTCOMES[metric]}", ylabel=f"observed {OUTCOMES[metric]}", xlim=line)
    ax.legend(frameon=False, fontsize=SMALL, loc="upper left", bbox_to_anchor=(1.0, 1.0))  # never on the band
    ax.locator_params(nbins=5)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return finish(ax, given=given, show=show, return_fig=return_fig)


def _limits(metric: str, expected: np.ndarray) -> np.ndarray:
    """Return the ends (2,) of the axis of expected values (k,): a correlation has its whole range."""
    if metric == "pearson_delta":
        return np.array([-1.0, 1.0])
    margin = 0.05 * (np.ptp(expected) or 1.0)
    return np.array([expected.min() - margin, expected.max() + margin])


def _ticks(ax: Axes, points: np.ndarray, colour: str, name: str) -> None:
    """Mark points (k,) along the bottom of the axes, if there are any."""
    if len(points):
        height = np.full(len(points), 0.02)  # as a share of the axes
        label = f"{name} ({len(points)})"
        ax.plot(points, height, color=colour, label=label, transform=ax.get_xaxis_transform(), **TICKS)
