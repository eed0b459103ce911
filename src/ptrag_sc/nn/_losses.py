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
    n, m = x_mask.sum(1), y_mask.sum(1)
    cross, within_x, within_y = summed_distances(x, y, x_mask, y_mask)
    return 2 * cross / (n * m) - within_x / (n * (n - 1)).clamp(min=1) - within_y / (m * (m - 1)).clamp(min=1)


def mean_distance(
    mean: Float[Tensor, "B G"], y: Float[Tensor, "B T G"], y_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    r"""Squared distance of a mean from that of a set, in units of :func:`energy_distance`.

    Two populations of many dimensions that differ by a shift :math:`\delta` have an energy distance of about
    :math:`|\delta|^2 / s`, with s the distance of two cells of one population; s is taken from ``y``.

    Returns
    -------
    One value per set.
    """
    with torch.autocast(y.device.type, enabled=False):
        y, n = y.float(), y_mask.sum(1)
        mean_y = masked_mean(y, y_mask)
        squares = (y.square().sum(-1) * y_mask).sum(1)
        variance = (squares - n * mean_y.square().sum(-1)).clamp(min=0) / (n - 1).clamp(min=1)
        return (mean.float() - mean_y).square().sum(-1) / (2 * variance).sqrt().clamp(min=1e-6)


def masked_mean(x: Float[Tensor, "B S G"], mask: Bool[Tensor, "B S"]) -> Float[Tensor, "B G"]:
    """Return the mean over the real cells of each set, in float32 whatever autocast says: shifts are small."""
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
    # Sums of squares need float32 whatever autocast says.
    with torch.autocast(x.device.type, enabled=False):
        x, y = (z.to(torch.promote_types(z.dtype, torch.float32)) for z in (x, y))
        # Distances do not change when both sets move; near the origin float32 products lose fewer digits.
        centre = (y * y_mask[..., None]).sum(1, keepdim=True) / y_mask.sum(1)[:, None, None]
        x, y = x - centre, y - centre
        x_square, y_square = x.square().sum(-1), y.square().sum(-1)
        cross = _summed_distance((x, x_square, x_mask), (y, y_square, y_mask), own=False)
        within = [_summed_distance(z, z, own=True) for z in ((x, x_square, x_mask), (y, y_square, y_mask))]
    return cross, *within


def _summed_distance(first: tuple[Tensor, ...], second: tuple[Tensor, ...], *, own: bool) -> Tensor:
    """Return the sum of the distances of all real pairs (B,), rows in chunks so that memory stays bounded.

    Parameters
    ----------
    first, second
        Cells (B, S, G), their squared norms (B, S) and masks (B, S).
    own
        Whether both are one set, whose diagonal is 0.
    """
    y, y_square, y_mask = second
    column = torch.arange(y.shape[1], device=y.device)
    total = 0.0
    for start in range(0, first[0].shape[1], ROWS):
        x, x_square, x_mask = (z[:, start : start + ROWS] for z in first)
        square = x_square[:, :, None] + y_square[:, None] - 2 * (x @ y.transpose(1, 2))
        used = x_mask[:, :, None] & y_mask[:, None] & ~(square <= 0)  # a NaN stays one
        if own:
            used = used & (column != column[start : start + ROWS, None])
        # The root has no gradient at 0: there the pair adds nothing.
        total = total + (torch.where(used, square, 1.0).sqrt() * used).sum((1, 2))
    return total


LOSSES: dict[str, Callable[..., Tensor]] = {"energy_distance": energy_distance}
