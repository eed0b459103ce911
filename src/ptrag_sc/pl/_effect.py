"""Does the predicted shift of each gene agree with the observed one?"""

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.text import Text

from ptrag_sc._constants import DEFAULT_KEY
from ptrag_sc._docs import documented
from ptrag_sc._validation import absent, unknown, unusable
from ptrag_sc.data._predicted_labels import predicted_label
from ptrag_sc.pl._finish import CONTROL_COLOUR, LINE_COLOUR, OBSERVED_COLOUR, SMALL, Drawn, canvas, finish, result, unit
from ptrag_sc.pl._labels import Labels

CORNERS = ((0, 1), (0, 0), (1, 0), (1, 1))  # of the axes, the one to prefer first
TEXT_SIZE = (0.48, 0.24)  # of the numbers, as a share of the axes


@documented
def effect(
    adata: AnnData,
    *,
    perturbation: str,
    cell_type: str,
    n_top: int = 10,
    key: str = DEFAULT_KEY,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Drawn:
    """Scatter plot of the predicted against the observed shift of every gene.

    Without observed cells the predicted shift is drawn against the mean expression of the control cells.

    A shift is mean(perturbed cells) - mean(control cells) on the scale of the model's layer. On the dashed line the
    prediction is exact; a slope below 1 means that the prediction is too weak. The Pearson correlation and the slope
    through the origin, <predicted, observed> / <observed, observed>, are those that :func:`ptrag_sc.tl.effect` wrote.

    Parameters
    ----------
    adata
        AnnData after :func:`ptrag_sc.tl.effect`, or a result of :func:`ptrag_sc.tl.perturb`.
    perturbation, cell_type
        The condition.
    n_top
        Number of labelled genes: those furthest from the origin.
    key
        The ``key_added`` of :func:`ptrag_sc.tl.predict`.
    {plot_parameters}

    Returns
    -------
    Axes or Figure
        The axes, or the figure if ``return_fig`` is True.

    Raises
    ------
    KeyError
        If ``adata`` holds no predictions or no effects.
    ValueError
        If the condition is not among the effects.

    Examples
    --------
    >>> import ptrag_sc
    >>> ptrag_sc.pl.effect(adata, perturbation="STAT1", cell_type="THP-1")  # doctest: +SKIP
    """
    effects = _effects(adata, key)
    perturbation = predicted_label(adata.uns[key], perturbation)
    condition = _row(effects["conditions"], perturbation, cell_type)
    observed = np.asarray(effects["observed"])[condition.name]  # (G,)
    predicted = np.asarray(effects["predicted"])[condition.name]  # (G,)
    is_observed = not np.isnan(observed).all()
    across, name = observed, "observed shift of mean expression"
    if not is_observed and "control" in effects:
        across, name = np.asarray(effects["control"])[condition.name], "mean expression of control cells"
    _check_shift(across, name.capitalize(), perturbation, cell_type)
    _check_shift(predicted, "Predicted shift", perturbation, cell_type)
    points = np.column_stack([across, predicted]).astype(float)  # (G, 2)
    size = np.hypot(*points.T) if is_observed else np.abs(predicted)
    top = np.argsort(-size, kind="stable")[:n_top]

    given = ax is not None
    ax = canvas(ax, (5, 5))
    if is_observed:
        _axes_lines(ax, points)
    else:
        ax.axhline(0, color=CONTROL_COLOUR, lw=0.6, zorder=0)
        ax.margins(0.12)
    colours = np.full(len(points), CONTROL_COLOUR, dtype=object)  # (G,)
    colours[top] = OBSERVED_COLOUR
    order = np.argsort(np.isin(np.arange(len(points)), top), kind="stable")  # labelled genes last, so on top
    ax.scatter(points[order, 0], points[order, 1], s=16, c=list(colours[order]), linewidths=0, zorder=2)
    ax.set_title(f"{perturbation} in {cell_type}", loc="left")
    scale = unit(result(adata, key, "params").get("layer"))
    ax.set(xlabel=f"{name} ({scale})", ylabel=f"predicted shift of mean expression ({scale})")
    numbers = _numbers(ax, condition, points)
    names = [str(effects["genes"][i]) for i in top]
    Labels(ax, points[top], names, avoid=numbers, cover=points)
    return finish(ax, given=given, show=show, return_fig=return_fig)


def _effects(adata: AnnData, key: str) -> dict[str, Any]:
    """Return what :func:`ptrag_sc.tl.effect` wrote; of virtual cells alone, the effects that stand beside them."""
    params, kept = result(adata, key, "params"), adata.uns[key].get("effects")
    if "effect" in adata.uns[key] or kept is None or key in adata.obsm:
        found: dict[str, Any] = result(adata, key, "effect", writer="effect")
        return found
    columns = [params["perturbation_key"], params["cell_type_key"]]
    n_cells = adata.obs[columns].astype(str).value_counts()
    conditions = kept["conditions"].astype(str)
    n_predicted = [int(n_cells.get(tuple(row), 0)) for row in conditions[["perturbation", "cell_type"]].to_numpy()]
    unknown_numbers = {"pearson_delta": np.nan, "effect_slope": np.nan}
    table = conditions.assign(n_observed=0, n_predicted=n_predicted, **unknown_numbers)
    shift = np.asarray(kept["shift"])
    return {**kept, "conditions": table, "predicted": shift, "observed": np.full_like(shift, np.nan)}


def _row(conditions: pd.DataFrame, perturbation: str, cell_type: str) -> pd.Series:
    """Return the row of one condition; its name is its position in the arrays of shifts."""
    conditions = conditions.reset_index(drop=True)
    remedy = "Run ptrag_sc.tl.predict and ptrag_sc.tl.effect with its cells, or choose another condition."
    known = conditions["perturbation"].astype(str).unique()
    if perturbation not in known:
        raise ValueError(unknown("Perturbation", [perturbation], "the effects", known, remedy))
    rows = conditions[conditions["perturbation"].astype(str) == perturbation]
    found = rows["cell_type"].astype(str)
    if cell_type not in found.tolist():
        raise ValueError(absent("Cell type", cell_type, f"the effects of {perturbation!r}", found, remedy))
    return rows[found == cell_type].iloc[0]


def _check_shift(shift: np.ndarray, what: str, perturbation: str, cell_type: str) -> None:
    if np.isnan(shift).any():
        place = f"adata.uns[...]['effect'] of {perturbation!r} in {cell_type!r}"
        remedy = "Choose a condition with observed cells: n_observed > 0 in what ptrag_sc.tl.effect wrote."
        raise ValueError(unusable(what, place, "is NaN, because the condition has no such cells", remedy))


def _axes_lines(ax: Axes, points: np.ndarray) -> None:
    """Set the same limits on both axes, so that the identity line is the diagonal, and draw zero lines behind."""
    low = min(points.min(), 0)
    high = max(points.max(), 0)
    margin = 0.12 * (high - low) or 1.0  # if all shifts are 0 the limits would coincide
    limits = (low - margin, high + margin)
    ax.set(xlim=limits, ylim=limits)
    ax.set_box_aspect(1)
    ax.axhline(0, color=CONTROL_COLOUR, lw=0.6, zorder=0)
    ax.axvline(0, color=CONTROL_COLOUR, lw=0.6, zorder=0)
    ax.axline((0, 0), slope=1, color=LINE_COLOUR, lw=1, ls="--", zorder=1)


def _numbers(ax: Axes, condition: pd.Series, points: np.ndarray) -> Text:
    """Write the agreement and the numbers of cells into the corner that has the fewest points (G, 2)."""
    r = condition["pearson_delta"]
    lines = ["no observed cells"]
    if condition["n_observed"] > 0:
        lines = [
            f"Pearson r = {r:.2f}",
            f"slope = {condition['effect_slope']:.2f}",
            f"{condition['n_observed']:,.0f} observed cells",
        ]
    lines.append(f"{condition['n_predicted']:,.0f} predicted cells")
    x, y = _free_corner(ax, points)
    align: dict[str, Any] = {"va": "top" if y else "bottom", "ha": "right" if x else "left"}
    at = (0.02 + 0.96 * x, 0.02 + 0.96 * y)
    return ax.text(*at, "\n".join(lines), transform=ax.transAxes, fontsize=SMALL + 1, **align)


def _free_corner(ax: Axes, points: np.ndarray) -> tuple[int, int]:
    """Return the corner of the axes, as 0 or 1 along x and y, whose surroundings hold the fewest points (G, 2)."""
    limits = np.array([ax.get_xlim(), ax.get_ylim()])  # (2, 2)
    shares = (points - limits[:, 0]) / (limits[:, 1] - limits[:, 0])  # (G, 2), of the axes
    crowd = {corner: int((np.abs(shares - corner) < TEXT_SIZE).all(axis=1).sum()) for corner in CORNERS}
    return min(crowd, key=lambda corner: crowd[corner])  # the first of equals
