"""Which of the retrieved candidates matter for this cell state, and what is their average?

Stage 2 of PT-RAG (arXiv:2603.07233): a scorer sees cell, query and candidate together, a hard straight-through gate
(Jang et al. 2017; Maddison et al. 2017) keeps or drops the candidate, and the kept ones are averaged by similarity.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from ptrag_sc.nn._factored import inverse_std, pair_terms, score_pairs

GATE_BIAS = 4.0  # every gate is open before training
INITIAL_SHARPNESS = 10.0  # of the weights in the cosine similarity


class Refined(NamedTuple):
    """Context of every cell, and how it was selected, over the J places of what was retrieved."""

    context: Float[Tensor, "B S H"]
    weights: Float[Tensor, "B S J"]  # of neighbours: sum to 1 over the open ones, 0 where none is open
    gates: Float[Tensor, "B S J"]  # 1 open, 0 closed or absent


class FactoredScorer(nn.Module):
    """Logit of every (cell, candidate) pair: ``Linear(GELU(Linear(LayerNorm([c; p; k]))))``, factored.

    Parameters
    ----------
    n_hidden
        Width H of cell, query and candidate.
    dropout
        Dropout rate of the hidden layer.
    """

    def __init__(self, n_hidden: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(3 * n_hidden)
        self.hidden = nn.Linear(3 * n_hidden, n_hidden)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(n_hidden, 1)

    def forward(
        self, cells: Float[Tensor, "B S H"], query: Float[Tensor, "B H"], keys: Float[Tensor, "B K H"]
    ) -> Float[Tensor, "B S K 1"]:
        """Return the logit of candidate k for cell s."""
        terms = pair_terms(self.norm, self.hidden, cells, query, keys)
        scale = inverse_std(cells, query, keys, self.norm.eps)
        # One dropout mask per set, folded into the last layer: a mask per pair would cost more than the scores.
        last = self.dropout(self.out.weight.T.expand(len(cells), -1, -1))
        return score_pairs(terms, scale, last) + self.out.bias


def logistic_noise(shape: torch.Size, like: Tensor) -> Tensor:
    """Return standard logistic noise: the difference of two Gumbel draws."""
    u = torch.rand(shape, dtype=like.dtype, device=like.device).clamp(1e-6, 1 - 1e-6)
    return torch.log(u) - torch.log1p(-u)


def straight_through_gates(
    logits: Float[Tensor, "B S K"], noise: Float[Tensor, "B S K"] | None, temperature: float
) -> Float[Tensor, "B S K"]:
    """Return gates that are exactly 0 or 1 forward and sigmoid((logit + noise) / temperature) backward."""
    scores = logits if noise is None else logits + noise
    soft = torch.sigmoid(scores / temperature)
    return (scores > 0).to(soft.dtype) + (soft - soft.detach())


def normalised_weights(
    gates: Float[Tensor, "B S K"], score: Float[Tensor, "B K"], present: Bool[Tensor, "B K"]
) -> Float[Tensor, "B S K"]:
    """Return gates * exp(score), normalised over the open candidates of each cell.

    Where no gate is open the denominator runs over all present candidates, so that the weights are 0 and the gradient
    that could open a gate stays finite. Absent candidates never enter.
    """
    top = score.detach().masked_fill(~present, -torch.inf).amax(-1, keepdim=True)
    # What is absent becomes 0 before any arithmetic, so that no infinity meets a gradient.
    mass = (torch.exp((score - top).masked_fill(~present, 0.0)) * present)[:, None]
    kept = gates * mass
    total = kept.sum(-1, keepdim=True)
    total = torch.where(total > 0, total, mass.sum(-1, keepdim=True))
    return kept / torch.where(total > 0, total, torch.ones_like(total))


class Gates(nn.Module):
    """Open or close every candidate for every cell.

    Parameters
    ----------
    n_hidden
        Hidden width, H.
    gated
        Whether candidates are selected per cell (gumbel) or all kept (attention).
    temperature
        Of the relaxed gates in the backward pass.
    dropout
        Of the scorer.
    rate
        The logits are this much of the scorer's output. Below 1 gates move slower than the rest of the model.
    """

    def __init__(self, n_hidden: int, *, gated: bool, temperature: float, dropout: float, rate: float = 1.0):
        super().__init__()
        self.temperature = temperature
        self.rate = rate
        self.scorer: FactoredScorer | None = None
        if gated:
            self.scorer = FactoredScorer(n_hidden, dropout)
            nn.init.zeros_(self.scorer.out.weight)
            nn.init.constant_(self.scorer.out.bias, GATE_BIAS / rate)

    def logits(
        self, cells: Float[Tensor, "B S H"], query: Float[Tensor, "B H"], keys: Float[Tensor, "B J H"]
    ) -> Float[Tensor, "B S J"]:
        """Return the logit of every gate."""
        return self.scorer(cells, query, keys).squeeze(-1) * self.rate

    def forward(
        self,
        cells: Float[Tensor, "B S H"],
        query: Float[Tensor, "B H"],
        keys: Float[Tensor, "B J H"] | None,
        present: Bool[Tensor, "B J"],
        noise: Float[Tensor, "B S J"] | None,
    ) -> Float[Tensor, "B S J"]:
        """Return the gates, 0 where a place is empty; all others are open where nothing is selected.

        Parameters
        ----------
        cells, query, keys
            Encoded control cells, query and candidates; the keys are read by the scorer only.
        present
            Places that hold a candidate.
        noise
            Logistic noise on the logits. In training None draws it; in evaluation None means deterministic gates.
        """
        shown = present[:, None].expand(-1, cells.shape[1], -1)  # (B, S, J)
        if self.scorer is None:
            return shown.to(cells.dtype)
        logits = self.logits(cells, query, keys)
        if noise is None and self.training:
            noise = logistic_noise(logits.shape, logits)
        return straight_through_gates(logits, noise, self.temperature) * shown


def withhold(present: Bool[Tensor, "B J"], share: float) -> Bool[Tensor, "B J"]:
    """Return what is present, with a random share of it left out.

    Done in training only: no two steps answer a query from the same candidates, so the generator cannot learn each
    query's average by heart.
    """
    if share == 0:
        return present
    return present & (torch.rand(present.shape, device=present.device) >= share)


class Refiner(nn.Module):
    """Gate the candidates per cell and average their values.

    Parameters
    ----------
    n_hidden
        Hidden width, H.
    gated, temperature, dropout
        As in :class:`Gates`.
    candidate_dropout
        Share of candidates that is withheld from each set in training.
    """

    def __init__(self, n_hidden: int, *, gated: bool, temperature: float, dropout: float, candidate_dropout: float):
        super().__init__()
        self.candidate_dropout = candidate_dropout
        self.gates = Gates(n_hidden, gated=gated, temperature=temperature, dropout=dropout)
        self.value = nn.Linear(n_hidden, n_hidden, bias=False)
        # softplus(x) = INITIAL_SHARPNESS
        self.sharpness = nn.Parameter(torch.full((1,), INITIAL_SHARPNESS).expm1().log())

    def forward(
        self,
        cells: Float[Tensor, "B S H"],
        query: Float[Tensor, "B H"],
        keys: Float[Tensor, "B K H"],
        present: Bool[Tensor, "B K"],
        similarity: Float[Tensor, "B K 1"],
        noise: Float[Tensor, "B S K"] | None = None,
    ) -> Refined:
        """Select candidates for every cell; the query itself adds nothing to the context.

        Parameters
        ----------
        cells, query, keys
            Encoded control cells, query and candidates.
        present
            Places that hold a candidate.
        similarity
            Stage 1 similarity; NaN counts as 0.
        noise
            As in :meth:`Gates.forward`.
        """
        gates = self.gates(cells, query, keys, present, noise)
        kept = present
        if self.training:
            kept = withhold(present, self.candidate_dropout)
        nearness = similarity.squeeze(-1).nan_to_num() * F.softplus(self.sharpness)  # (B, K) log weight
        weights = normalised_weights(gates * kept[:, None], nearness, kept)
        return Refined(weights @ self.value(keys), weights, gates)
