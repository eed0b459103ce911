"""How far is a generated population from the observed one?"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


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
    cross = _mean_distance(x, y, x_mask[:, :, None] & y_mask[:, None])
    return 2 * cross - _mean_distance(x, x, _pairs(x_mask)) - _mean_distance(y, y, _pairs(y_mask))


def _pairs(mask: Bool[Tensor, "B S"]) -> Bool[Tensor, "B S S"]:
    return mask[:, :, None] & mask[:, None] & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)


def _mean_distance(x: Tensor, y: Tensor, pairs: Bool[Tensor, "B S T"]) -> Float[Tensor, " B"]:
    return (torch.cdist(x, y) * pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)


LOSSES: dict[str, Callable[..., Tensor]] = {"energy_distance": energy_distance}
