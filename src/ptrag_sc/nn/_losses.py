"""How far is a generated population from the observed one?"""

from collections.abc import Callable

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
    One value per set; can be slightly negative.
    """
    # Distances do not change when both sets move; near the origin float32 products lose fewer digits.
    centre = (y * y_mask[..., None]).sum(1, keepdim=True) / y_mask.sum(1)[:, None, None]
    x, y = x - centre, y - centre
    n, m = x_mask.sum(1), y_mask.sum(1)
    cross = _summed_distance(x, y, x_mask, y_mask) / (n * m)
    within_x = _summed_distance(x, x, x_mask, x_mask) / (n * (n - 1)).clamp(min=1)
    within_y = _summed_distance(y, y, y_mask, y_mask) / (m * (m - 1)).clamp(min=1)
    return 2 * cross - within_x - within_y


def _summed_distance(x: Tensor, y: Tensor, x_mask: Bool[Tensor, "B S"], y_mask: Bool[Tensor, "B T"]) -> Tensor:
    """Return the sum of the distances of all real pairs (B,), rows in chunks so that memory stays bounded."""
    total = 0.0
    for start in range(0, x.shape[1], ROWS):
        part, mask = x[:, start : start + ROWS], x_mask[:, start : start + ROWS]
        pairs = mask[:, :, None] & y_mask[:, None]
        if x is y:  # a cell with itself is no pair
            column = torch.arange(y.shape[1], device=x.device)
            pairs = pairs & (column != column[start : start + ROWS, None])
        total = total + (torch.cdist(part, y) * pairs).sum((1, 2))
    return total


LOSSES: dict[str, Callable[..., Tensor]] = {"energy_distance": energy_distance}
