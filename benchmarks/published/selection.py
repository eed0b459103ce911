"""How did the published code choose among the candidates of a cell, and what did it make of the chosen ones?"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ptrag_sc.nn import PairTerms, inverse_std, pair_terms, score_pairs


class Selection(NamedTuple):
    """Scores of the two classes (drop, keep) and the drawn weights."""

    raw: Float[Tensor, "B S K 2"]
    scaled: Float[Tensor, "B S K 2"]
    weights: Float[Tensor, "B S K"]


class TwoClassScorer(nn.Module):
    """:class:`ptrag_sc.nn.FactoredScorer` with two logits per pair of cell and candidate: drop and keep."""

    def __init__(self, n_hidden: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(3 * n_hidden)
        self.hidden = nn.Linear(3 * n_hidden, n_hidden)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(n_hidden, 2)

    def forward(
        self, cells: Float[Tensor, "B S H"], query: Float[Tensor, "B H"], keys: Float[Tensor, "B K H"]
    ) -> Float[Tensor, "B S K 2"]:
        """Return both logits of candidate k for cell s."""
        terms = pair_terms(self.norm, self.hidden, cells, query, keys)
        scale = inverse_std(cells, query, keys, self.norm.eps)
        # One dropout mask per set, as in the package; the published code draws one per pair.
        last = self.dropout(self.out.weight.T.expand(len(cells), -1, -1))  # (B, H, 2)
        return score_pairs(terms, scale, last) + self.out.bias


def sum_pairs(
    terms: PairTerms, scale: Float[Tensor, "B S K"], weights: Float[Tensor, "B S K"]
) -> Float[Tensor, "B S H"]:
    """Return the sum over candidates of ``weights`` times the value of each pair."""
    scaled = weights * scale
    own = scaled.sum(-1, keepdim=True) * terms.cell
    return own + scaled @ terms.key + weights.sum(-1, keepdim=True) * terms.bias


class SummedSelection(nn.Module):
    """Hard two-class Gumbel-Softmax per candidate; the context is the *sum* of the values that are kept."""

    def __init__(self, n_hidden: int, *, temperature: float, dropout: float, scaled: bool):
        super().__init__()
        self.temperature = temperature
        self.scaled = scaled
        self.scorer = TwoClassScorer(n_hidden, dropout)
        self.value = nn.Linear(3 * n_hidden, n_hidden)

    def select(
        self, cells: Tensor, query: Tensor, keys: Tensor, mask: Bool[Tensor, "B S"], noise: Tensor | None
    ) -> Selection:
        """Draw the candidates of every cell; scores are divided by their std over the real cells of the mini-batch."""
        raw = self.scorer(cells, query, keys)
        scaled = raw / raw[mask].std() if self.scaled else raw
        if noise is None:  # as published: in training and at prediction
            noise = -torch.empty_like(raw).exponential_().log()
        soft = torch.softmax((scaled + noise) / self.temperature, dim=-1)[..., 1]
        hard = (scaled + noise).argmax(-1).to(soft.dtype)
        return Selection(raw, scaled, hard + (soft - soft.detach()))

    def forward(
        self,
        cells: Float[Tensor, "B S H"],
        query: Float[Tensor, "B H"],
        keys: Float[Tensor, "B K H"],
        weights: Float[Tensor, "B S K"],
    ) -> Float[Tensor, "B S H"]:
        """Return the context."""
        norm = self.scorer.norm
        terms = pair_terms(norm, self.value, cells, query, keys)
        return sum_pairs(terms, inverse_std(cells, query, keys, norm.eps), weights)


class SingleHeadAttention(nn.Module):
    """Softmax attention of cell plus query over the candidates, one head."""

    def __init__(self, n_embedding: int, n_hidden: int):
        super().__init__()
        self.encode_candidates = nn.Linear(n_embedding, n_hidden)
        self.query, self.key, self.value = (nn.Linear(n_hidden, n_hidden) for _ in range(3))

    def forward(
        self, cells: Float[Tensor, "B S H"], keys: Float[Tensor, "B K H"]
    ) -> tuple[Float[Tensor, "B S H"], Float[Tensor, "B S K"]]:
        """Return context and weights; keys are candidates as :attr:`encode_candidates` gives them."""
        scores = self.query(cells) @ self.key(keys).transpose(1, 2)
        weights = torch.softmax(scores / cells.shape[-1] ** 0.5, dim=-1)
        return weights @ self.value(keys), weights
