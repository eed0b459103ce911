"""How far is a generated population from the observed one?"""

from collections.abc import Callable, Sequence
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
    return _u_statistic(*summed_distances(x, y, x_mask, y_mask), x_mask, y_mask)


def _u_statistic(cross: Tensor, within_x: Tensor, within_y: Tensor, x_mask: Tensor, y_mask: Tensor) -> Tensor:
    """Return the squared energy distance from sums of distances of pairs."""
    n = x_mask.sum(1)  # (B,)
    m = y_mask.sum(1)  # (B,)
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
        squares = (_squared_norm(y) * y_mask).sum(1)  # (B,)
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
        first, second = _cells(x, x_mask), _cells(y, y_mask)
        cross = _summed_distance(first, second, own=False)
        within_x = _summed_distance(first, first, own=True)
        within_y = _summed_distance(second, second, own=True)
    return cross, within_x, within_y


class _Cells(NamedTuple):
    """Sets of cells, with what each block of pairs needs again."""

    values: Tensor  # (B, S, G)
    square: Tensor  # (B, S), squared norms
    mask: Tensor  # (B, S)


def _cells(values: Tensor, mask: Tensor) -> _Cells:
    return _Cells(values, _squared_norm(values), mask)


def _squared_norm(cells: Tensor) -> Tensor:
    """Return the squared norm of each cell (B, S), without a tensor of squares of all genes."""
    return torch.linalg.vector_norm(cells, dim=-1).square()


def _summed_distance(first: _Cells, second: _Cells, *, own: bool) -> Tensor:
    """Return the sum of the distances of all real pairs (B,); ``own``: both are one set, whose diagonal is left out."""
    total = first.values.new_zeros(len(first.values))  # (B,)
    # The distances of a block of rows exist at a time, so that memory stays bounded.
    for start in range(0, first.values.shape[1], ROWS):
        rows = slice(start, start + ROWS)
        product = first.values[:, rows] @ second.values.transpose(1, 2)  # (B, ROWS, T)
        square = first.square[:, rows, None] + second.square[:, None] - 2 * product  # (B, ROWS, T)
        total = total + _rooted(square, first.mask[:, rows], second.mask, start if own else None)
    return total


def _rooted(square: Tensor, first: Tensor, second: Tensor, start: int | None) -> Tensor:
    """Return the sum (B,) of the roots of squared distances (B, ROWS, T) of real pairs.

    Parameters
    ----------
    square
        Squared distances of a block of rows.
    first, second
        Which cells of both sets are real (B, ROWS), (B, T).
    start
        Number of the block's first cell if both sets are one, whose diagonal is left out; else None.
    """
    # Rounding can give a negative square. A NaN is not <= 0, so it is used and shows in the loss.
    used = first[:, :, None] & second[:, None] & ~(square <= 0)
    if start is not None:
        column = torch.arange(square.shape[2], device=square.device)  # (T,)
        used = used & (column != column[start : start + square.shape[1], None])
    # The gradient of the root is infinite at 0: there 1 takes the place of the square, and the pair adds nothing.
    return (torch.where(used, square, 1.0).sqrt() * used).sum((1, 2))


class Changes(NamedTuple):
    """Cells that change along few directions: ``start + shift + loadings @ directions``."""

    start: Float[Tensor, "B S G"]
    shift: Float[Tensor, "B G"]  # of all cells of a set
    loadings: Float[Tensor, "B S R"]
    directions: Float[Tensor, "R G"]


def energy_distance_of_changes(
    x: Changes,
    y: Float[Tensor, "B T G"],
    x_mask: Bool[Tensor, "B S"],
    y_mask: Bool[Tensor, "B T"],
    hidden: Bool[Tensor, "B G"] | None = None,
) -> Float[Tensor, " B"]:
    """Return the :func:`energy_distance` of changed cells from ``y``, whose gradient reaches the loadings only.

    The changed cells never exist: their products are those of the cells before, which need no gradient, and products of
    R numbers for each cell. The gradient over all genes was a third of the work of a training step.

    Parameters
    ----------
    x, y
        The cells. Near the origin their products lose fewer digits: distances do not change when ``x.shift`` and ``y``
        move alike.
    x_mask, y_mask
        Which of them are real.
    hidden
        Genes that do not count in each set; ``y`` is 0 there.
    """
    with torch.autocast(y.device.type, enabled=False):  # as in summed_distances
        y, loadings, directions = (part.to(torch.promote_types(y.dtype, torch.float32)) for part in (y, x[2], x[3]))
        start = x.start + x.shift.to(y.dtype)[:, None]  # (B, S, G), the one new tensor of all genes
        shown = directions.expand(len(y), *directions.shape)  # (B, R, G)
        if hidden is not None:
            start.masked_fill_(hidden[:, None], 0.0)
            shown = shown.masked_fill(hidden[:, None], 0.0)
        whole = _cells(y, y_mask)
        along, along_y = start @ directions.T, y @ directions.T  # (B, S, R), (B, T, R)
        changed = along + loadings @ (shown @ directions.T)  # (B, S, R) of the changed cells
        square = _squared_norm(start) + (loadings * (along + changed)).sum(-1)  # (B, S) of the changed cells
        cross = y.new_zeros(len(y))  # (B,)
        within_x = torch.zeros_like(cross)
        for first in range(0, start.shape[1], ROWS):
            rows = slice(first, first + ROWS)
            real, norm = x_mask[:, rows], square[:, rows, None]
            to_y = start[:, rows] @ y.transpose(1, 2) + loadings[:, rows] @ along_y.transpose(1, 2)
            to_x = start[:, rows] @ start.transpose(1, 2) + along[:, rows] @ loadings.transpose(1, 2)
            to_x = to_x + loadings[:, rows] @ changed.transpose(1, 2)  # (B, ROWS, S)
            cross = cross + _rooted(norm + whole.square[:, None] - 2 * to_y, real, y_mask, None)
            within_x = within_x + _rooted(norm + square[:, None] - 2 * to_x, real, x_mask, first)
        within_y = _summed_distance(whole, whole, own=True)
    return _u_statistic(cross, within_x, within_y, x_mask, y_mask)


def blended_energy_distances(
    first: Float[Tensor, "B S G"],
    second: Float[Tensor, "B S G"],
    shares: Sequence[float],
    y: Float[Tensor, "B T G"],
    x_mask: Bool[Tensor, "B S"],
    y_mask: Bool[Tensor, "B T"],
) -> Float[Tensor, "N B"]:
    """Return the :func:`energy_distance` of ``(1 - share) * first + share * second`` from ``y`` for each share.

    A squared distance of blends is a polynomial of the share, whose coefficients are products of the two sets. So seven
    products of sets over all genes serve any number of shares.
    """
    with torch.autocast(y.device.type, enabled=False):  # as in summed_distances
        y = y.to(torch.promote_types(y.dtype, torch.float32))
        centre = masked_mean(y, y_mask)[:, None]  # (B, 1, G)
        a, b, y = first.to(y.dtype) - centre, second.to(y.dtype) - centre, y - centre
        aa, ab, bb = a.square().sum(-1), (a * b).sum(-1), b.square().sum(-1)  # (B, S) each
        norms = [(1 - s) ** 2 * aa + 2 * s * (1 - s) * ab + s**2 * bb for s in shares]
        whole = _cells(y, y_mask)
        cross = y.new_zeros(len(shares), len(y))  # (N, B)
        within_x = torch.zeros_like(cross)
        for start in range(0, a.shape[1], ROWS):
            rows = slice(start, start + ROWS)
            real = x_mask[:, rows]
            a_y, b_y = (x[:, rows] @ y.transpose(1, 2) for x in (a, b))  # (B, ROWS, T)
            a_a, b_b = (x[:, rows] @ x.transpose(1, 2) for x in (a, b))  # (B, ROWS, S)
            a_b = a[:, rows] @ b.transpose(1, 2) + b[:, rows] @ a.transpose(1, 2)
            for n, s in enumerate(shares):
                to_y = (1 - s) * a_y + s * b_y
                to_x = (1 - s) ** 2 * a_a + s * (1 - s) * a_b + s**2 * b_b
                norm = norms[n][:, rows, None]
                cross[n] += _rooted(norm + whole.square[:, None] - 2 * to_y, real, y_mask, None)
                within_x[n] += _rooted(norm + norms[n][:, None] - 2 * to_x, real, x_mask, start)
        within_y = _summed_distance(whole, whole, own=True)
    return _u_statistic(cross, within_x, within_y, x_mask, y_mask)


class SetLoss(NamedTuple):
    """A distance of two sets of cells, for each way in which the first one is given."""

    of_cells: Callable[..., Tensor]
    of_changes: Callable[..., Tensor]  # of cells that change along few directions: the form that is trained
    of_blends: Callable[..., Tensor]  # of blends of two sets: validation compares many shares of the memory


LOSSES = {"energy_distance": SetLoss(energy_distance, energy_distance_of_changes, blended_energy_distances)}
