r"""How does a layer see every pair of cell and candidate without a tensor of concatenated pairs?

A linear map of ``LayerNorm([c; p; k])`` is linear in each third given mean and variance of the whole, and these follow
from those of the thirds. With :math:`W' = W\,\mathrm{diag}(g) = [W_c|W_p|W_k]`, row sums :math:`t` and
:math:`b' = W\beta + b`, its value at cell s and candidate j is :math:`r_{sj}(A_s + Q_j) + b'`.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

# Hidden values of pairs that exist at once.
CPU_BLOCK = 2**18  # stays in the cache
DEVICE_BLOCK = 2**25  # few launches


class PairTerms(NamedTuple):
    """A linear map of the normalised pairs: ``scale * (cell + key) + bias``."""

    cell: Float[Tensor, "B S H"]
    key: Float[Tensor, "B K H"]
    bias: Float[Tensor, " H"]


def pair_terms(
    norm: nn.LayerNorm,
    linear: nn.Linear,
    cells: Float[Tensor, "B S H"],
    query: Float[Tensor, "B H"],
    keys: Float[Tensor, "B K H"],
) -> PairTerms:
    """Return the terms of ``linear(norm([c; p; k]))``."""
    weight = linear.weight * norm.weight  # (H', 3 H)
    w_cell, w_query, w_key = weight.chunk(3, dim=1)  # (H', H) each
    row_sum = weight.sum(1)  # (H',)
    mean_c = cells.mean(-1)  # (B, S)
    mean_p = query.mean(-1)  # (B,)
    mean_k = keys.mean(-1)  # (B, K)
    # The mean of a pair is a third of the sum of these means, so each part subtracts its own third.
    shared = query @ w_query.T - (mean_p / 3)[:, None] * row_sum  # (B, H')
    cell = cells @ w_cell.T + shared[:, None] - (mean_c / 3)[..., None] * row_sum  # (B, S, H')
    key = keys @ w_key.T - (mean_k / 3)[..., None] * row_sum  # (B, K, H')
    return PairTerms(cell, key, linear.weight @ norm.bias + linear.bias)


def inverse_std(
    cells: Float[Tensor, "B S H"], query: Float[Tensor, "B H"], keys: Float[Tensor, "B K H"], eps: float
) -> Float[Tensor, "B S K"]:
    """Return 1 / std of every concatenation [c; p; k], from the moments of its thirds."""
    mean_c = cells.mean(-1)[:, :, None]  # (B, S, 1)
    mean_p = query.mean(-1)[:, None, None]  # (B, 1, 1)
    mean_k = keys.mean(-1)[:, None]  # (B, 1, K)
    var_c = cells.var(-1, unbiased=False)[:, :, None]
    var_p = query.var(-1, unbiased=False)[:, None, None]
    var_k = keys.var(-1, unbiased=False)[:, None]
    mean = (mean_c + mean_p + mean_k) / 3  # (B, S, K)
    # The variance of three parts of equal length: the mean of their variances plus the variance of their means.
    within = (var_c + var_p + var_k) / 3
    between = ((mean_c - mean) ** 2 + (mean_p - mean) ** 2 + (mean_k - mean) ** 2) / 3
    return torch.rsqrt(within + between + eps)


def score_pairs(
    terms: PairTerms, scale: Float[Tensor, "B S K"], last: Float[Tensor, "B H O"]
) -> Float[Tensor, "B S K O"]:
    """Return ``GELU(scale * (cell + key) + bias) @ last`` for every pair; memory grows with S x K, not S x K x H."""
    # Float32 even under mixed precision: the hidden layer is never stored, so half precision would save nothing.
    full = torch.promote_types(last.dtype, torch.float32)
    apply: Callable[..., Tensor] = _ScorePairs.apply  # torch leaves it without annotations
    return apply(*(x.to(full) for x in (*terms, scale, last)))


class _ScorePairs(torch.autograd.Function):
    """Only one block of the hidden layer exists at a time; the backward pass computes each block again."""

    @staticmethod
    def forward(ctx: Any, cell: Tensor, key: Tensor, bias: Tensor, scale: Tensor, last: Tensor) -> Tensor:
        ctx.save_for_backward(cell, key, bias, scale, last)
        scores = cell.new_empty(*cell.shape[:2], key.shape[1], last.shape[-1])  # (B, S, K, O)
        with torch.autocast(cell.device.type, enabled=False):
            for sets, rows in _blocks(cell, key):
                pairs = cell[sets, rows, None] + key[sets, None]  # (b, s, K, H) of the block
                hidden = F.gelu(pairs.mul_(scale[sets, rows, :, None]).add_(bias))
                scores[sets, rows] = (hidden.flatten(1, 2) @ last[sets]).unflatten(1, hidden.shape[1:3])
        return scores

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        (grad,) = gradients  # (B, S, K, O), of the only output
        cell, key, bias, scale, last = ctx.saved_tensors
        # Every block writes its own part of these two, and adds to the other three.
        d_cell = torch.empty_like(cell)
        d_scale = torch.empty_like(scale)
        d_key = torch.zeros_like(key)
        d_bias = torch.zeros_like(bias)
        d_last = torch.zeros_like(last)
        with torch.autocast(cell.device.type, enabled=False):
            for sets, rows in _blocks(cell, key):
                block = grad[sets, rows]  # (b, s, K, O)
                pairs = cell[sets, rows, None] + key[sets, None]  # (b, s, K, H)
                hidden = (pairs * scale[sets, rows, :, None]).add_(bias)  # before the GELU
                d_last[sets] += F.gelu(hidden).flatten(1, 2).transpose(1, 2) @ block.flatten(1, 2)
                d_hidden = (block.flatten(1, 2) @ last[sets].transpose(1, 2)).view_as(hidden)
                d_hidden = torch.ops.aten.gelu_backward(d_hidden, hidden)
                d_bias += d_hidden.sum((0, 1, 2))
                d_scale[sets, rows] = (d_hidden * pairs).sum(-1)
                d_hidden.mul_(scale[sets, rows, :, None])
                d_cell[sets, rows] = d_hidden.sum(2)
                d_key[sets] += d_hidden.sum(1)
        return d_cell, d_key, d_bias, d_scale, d_last


def _blocks(cell: Tensor, key: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield (sets, cells) so that the hidden layer of a block stays below the limit: whole sets if they fit."""
    n_sets, n_cells, n_hidden = cell.shape
    n_values = CPU_BLOCK if cell.device.type == "cpu" else DEVICE_BLOCK
    limit = n_values // max(1, key.shape[1] * n_hidden)  # cells in a block
    per_block = max(1, limit // max(1, n_cells))
    rows = max(1, min(n_cells, limit))
    for i in range(0, n_sets, per_block):
        for j in range(0, n_cells, rows):
            yield slice(i, i + per_block), slice(j, j + rows)
