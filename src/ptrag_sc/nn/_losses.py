"""How far is a generated population from the observed one?"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

ROWS = 2048  # cells whose distances to all others are held at once


def energy_distance(
    x: Float[Tensor, "B S G"],
    y: Float[Tensor, "B T G"],
    x_mask: Bool[Tensor, "B S"],
    y_mask: Bool[Tensor, "B T"],
) -> Float[Tensor, " B"]:
    r"""Unbiased squared energy distance of each pair of sets (Székely and Rizzo 2013).

    :math:`2E|x-y| - E|x-x'| - E|y-y'|` with Euclidean norms and U-statistics: pairs of a cell with itself are left
    out and the means run over the real cells, so the expectation is 0 for two samples of one population, whatever
    their sizes. A set of one cell has no pairs; its inner term is 0.

    Returns
    -------
    Tensor
        One value per set (B,), in units of the features; it can be slightly negative.
    """
    n = x_mask.sum(1)  # (B,)
    m = y_mask.sum(1)  # (B,)
    cross, within_x, within_y = summed_distances(x, y, x_mask, y_mask)
    return 2 * cross / (n * m) - within_x / (n * (n - 1)).clamp(min=1) - within_y / (m * (m - 1)).clamp(min=1)


def mean_distance(
    mean: Float[Tensor, "B G"], y: Float[Tensor, "B T G"], y_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    r"""Squared distance between a mean and the mean of a set, in units of :func:`energy_distance`.

    Two populations of many dimensions that differ by a shift :math:`\delta` have an energy distance of about
    :math:`|\delta|^2 / s`, with s the distance of two cells of one population; s is taken from ``y``.

    Returns
    -------
    Tensor
        One value per set (B,).
    """
    with torch.autocast(y.device.type, enabled=False):
        y = y.float()
        n = y_mask.sum(1)  # (B,)
        mean_y = masked_mean(y, y_mask)  # (B, G)
        squares = (y.square().sum(-1) * y_mask).sum(1)  # (B,)
        variance = (squares - n * mean_y.square().sum(-1)).clamp(min=0) / (n - 1).clamp(min=1)  # (B,), over all genes
        # The squared distance of two cells of one population is twice their variance, on average.
        return (mean.float() - mean_y).square().sum(-1) / (2 * variance).sqrt().clamp(min=1e-6)


def masked_mean(x: Float[Tensor, "B S G"], mask: Bool[Tensor, "B S"]) -> Float[Tensor, "B G"]:
    """Return the mean over the real cells of each set, at least in float32 because shifts are small."""
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return (mask.to(x.dtype)[:, None] @ x).squeeze(1) / mask.sum(1, keepdim=True)


def summed_distances(
    x: Float[Tensor, "B S G"],
    y: Float[Tensor, "B T G"],
    x_mask: Bool[Tensor, "B S"],
    y_mask: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Return the sums (B,) of the distances of all real pairs: x to y, within x, within y."""
    with torch.autocast(x.device.type, enabled=False):  # sums of squares need float32 even under mixed precision
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        y = y.to(torch.promote_types(y.dtype, torch.float32))
        # Distances do not change when both sets move, and near the origin float32 products lose fewer digits.
        centre = (y * y_mask[..., None]).sum(1, keepdim=True) / y_mask.sum(1)[:, None, None]  # (B, 1, G)
        x = x - centre
        y = y - centre
        first = _Cells(x, x.square().sum(-1), x_mask)
        second = _Cells(y, y.square().sum(-1), y_mask)
        cross = _summed_distance(first, second, own=False)
        within_x = _summed_distance(first, first, own=True)
        within_y = _summed_distance(second, second, own=True)
    return cross, within_x, within_y


class _Cells(NamedTuple):
    """Sets of cells, with what each block of pairs needs again."""

    values: Tensor  # (B, S, G)
    square: Tensor  # (B, S), squared norms
    mask: Tensor  # (B, S)


def _summed_distance(first: _Cells, second: _Cells, *, own: bool) -> Tensor:
    """Return the sum of the distances of all real pairs (B,); ``own``: both are one set, whose diagonal is left out."""
    column = torch.arange(second.values.shape[1], device=second.values.device)  # (T,)
    total = first.values.new_zeros(len(first.values))  # (B,)
    # The distances of a block of rows exist at a time, so that memory stays bounded.
    for start in range(0, first.values.shape[1], ROWS):
        rows = slice(start, start + ROWS)
        product = first.values[:, rows] @ second.values.transpose(1, 2)  # (B, ROWS, T)
        square = first.square[:, rows, None] + second.square[:, None] - 2 * product  # (B, ROWS, T)
        # Rounding can give a negative square. A NaN is not <= 0, so it is used and shows in the loss.
        used = first.mask[:, rows, None] & second.mask[:, None] & ~(square <= 0)
        if own:
            used = used & (column != column[rows, None])
        # The gradient of the root is infinite at 0: there 1 takes the place of the square, and the pair adds nothing.
        total = total + (torch.where(used, square, 1.0).sqrt() * used).sum((1, 2))
    return total


LOSSES: dict[str, Callable[..., Tensor]] = {"energy_distance": energy_distance}
