"""Which of the measured responses matter for this cell state, the query's own in other cell types among them?"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ptrag_sc.nn._refiner import INITIAL_SHARPNESS, Gates, Refined, normalised_weights, withhold

INITIAL_OWN = 0.2  # weight of the query's own response in other cell types
INITIAL_COMPONENTS = 1.0  # weight of the components of a combination: they add up
GATE_RATE = 0.1  # without this factor the gates close as soon as the generator overfits
NEIGHBOUR = 2  # role of a neighbour
N_FLAGS = 2  # of a key: not a neighbour, known in response space


@runtime_checkable
class SomeEvidence(Protocol):
    """Measured perturbations that bear on each of B queries."""

    @property
    def present(self) -> Bool[Tensor, "B k"]:
        """Places that are filled."""

    @property
    def similarity(self) -> Float[Tensor, "B k 2"]:
        """Cosines to the query in gene embedding and responses; NaN where not measured."""

    @property
    def response(self) -> Float[Tensor, "B k L"]:
        """What the perturbations did."""


@runtime_checkable
class Recalled(Protocol):
    """The query's own response elsewhere (1 place), components (M) and neighbours (K); J = 1 + M + K in all."""

    @property
    def neighbours(self) -> SomeEvidence:
        """The neighbours alone."""

    @property
    def joined(self) -> SomeEvidence:
        """All evidence side by side."""

    @property
    def sizes(self) -> list[int]:
        """1, M and K."""

    @property
    def role(self) -> Int[Tensor, " J"]:
        """0, 1 and 2 for each place of its kind."""


class MemoryRefiner(nn.Module):
    """Gate what was recalled per cell, weigh it, and average the responses.

    The neighbours share a weight of 1. The weight of the query's own response is added to, not normalised with, the
    neighbours' weights, because it is evidence of another kind. The components of a combination have one weight each,
    and leave the rest of 1 to all others.

    Parameters
    ----------
    n_hidden
        Hidden width, H.
    n_values
        Width of a response, L.
    scale
        Factor that brings responses to a root mean square of 1.
    gated, temperature, dropout
        As in :class:`Gates`.
    candidate_dropout
        Share of what is recalled that is withheld from the context of each set in training.
    value_dropout
        Dropout of the responses in the context.
    """

    def __init__(
        self,
        n_hidden: int,
        n_values: int,
        scale: Float[Tensor, ""],
        *,
        gated: bool,
        temperature: float,
        dropout: float,
        candidate_dropout: float,
        value_dropout: float,
    ):
        super().__init__()
        self.candidate_dropout = candidate_dropout
        self.scale: Tensor
        self.register_buffer("scale", scale)
        self.gates = Gates(n_hidden, gated=gated, temperature=temperature, dropout=dropout, rate=GATE_RATE)
        self.value = nn.Linear(n_values, n_hidden, bias=False)
        self.value_dropout = nn.Dropout(value_dropout)
        # Sharpness of gene embedding, responses, and gene embedding where the query's response is unknown.
        self.sharpness = nn.Parameter(torch.full((3,), INITIAL_SHARPNESS).expm1().log())
        self.own = nn.Parameter(torch.tensor(INITIAL_OWN))
        self.components = nn.Parameter(torch.tensor(INITIAL_COMPONENTS))
        self.encode_response: nn.Linear | None = None
        if gated:  # only the scorer of the gates reads keys
            self.encode_response = nn.Linear(n_values + N_FLAGS, n_hidden, bias=False)

    def set_weights(self, sharpness: Float[Tensor, " 3"], own: float, components: float) -> None:
        """Set the sharpness in gene embedding, responses and gene embedding alone, and the other weights."""
        with torch.no_grad():
            self.sharpness.copy_(sharpness.clamp(min=1e-3).double().expm1().log())  # softplus(x) = sharpness
            self.own.fill_(own)
            self.components.fill_(components)

    def forward(
        self,
        cells: Float[Tensor, "B S H"],
        query: Float[Tensor, "B H"],
        keys: Float[Tensor, "B J H"] | None,
        recall: Recalled,
        noise: Float[Tensor, "B S J"] | None = None,
    ) -> Refined:
        """Select and weigh what was recalled for every cell.

        The context does not train the weights. In training the context lacks own response and components as often as
        any neighbour, but their weight in the memory's answer is not withheld: the others cannot take their place.

        Parameters
        ----------
        cells, query
            Encoded control cells and query.
        keys
            Encoded candidates of all places; None without gates.
        recall
            What was recalled.
        noise
            As in :meth:`Gates.forward`.
        """
        joined = recall.joined
        responses = joined.response * self.scale  # (B, J, L)
        if self.encode_response is not None:
            keys = keys + self.encode_response(torch.cat([responses, _flags(joined, recall.role)], dim=-1))
        gates = self.gates(cells, query, keys, joined.present, noise)
        kept = joined.present
        if self.training:
            kept = withhold(kept, self.candidate_dropout)
        weights = self._weights(gates, kept, self.nearness(recall.neighbours.similarity), recall.sizes)
        average = (weights.detach() * kept[:, None]) @ self.value_dropout(responses)  # (B, S, L)
        return Refined(self.value(average) + query[:, None], weights, gates)

    def nearness(self, similarity: Float[Tensor, "B K 2"]) -> Float[Tensor, "B K"]:
        """Return the log weight of every neighbour.

        Where the query's response is unknown, the gene embedding has a sharpness of its own.
        """
        text, response = similarity.unbind(-1)
        both, responses, alone = F.softplus(self.sharpness)
        is_alone = response.isnan().all(1, keepdim=True)  # (B, 1)
        return text.nan_to_num() * torch.where(is_alone, alone, both) + response.nan_to_num() * responses

    def _weights(
        self,
        gates: Float[Tensor, "B S J"],
        kept: Bool[Tensor, "B J"],
        nearness: Float[Tensor, "B K"],
        sizes: list[int],
    ) -> Float[Tensor, "B S J"]:
        own, components, neighbours = gates.split(sizes, dim=-1)
        kept_neighbours = kept.split(sizes, dim=-1)[-1]
        own = own * self.own
        neighbours = normalised_weights(neighbours * kept_neighbours[:, None], nearness, kept_neighbours)
        if components.shape[-1]:
            rest = 1 - self.components * components.amax(-1, keepdim=True)  # (B, S, 1)
            own, components, neighbours = own * rest, components * self.components, neighbours * rest
        return torch.cat([own, components, neighbours], dim=-1)


def _flags(evidence: SomeEvidence, role: Int[Tensor, " J"]) -> Float[Tensor, "B J 2"]:
    """Return for each place whether it holds anything but a neighbour, and whether its response was compared."""
    is_other = evidence.present & (role != NEIGHBOUR)
    is_known = ~evidence.similarity[..., -1].isnan()
    return torch.stack([is_other, is_known], dim=-1).to(evidence.response.dtype)
