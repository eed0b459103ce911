"""Which of the observed responses matter for this cell state, the query's own elsewhere among them?"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ptrag_sc.nn._refiner import GATE_BIAS, Refined, Refiner, normalised_weights

INITIAL_OWN = 0.2  # weight of the query's own response in other cell types
INITIAL_PARTS = 1.0  # weight of the components of a combination: they add up
# Logits are this much of the scorer's: gates that move as fast as the generator close while it learns by heart.
GATE_RATE = 0.1


class MemoryRefiner(Refiner):
    """Refiner whose candidates say what was observed, and whose slot 0 is the query's own response elsewhere.

    The candidates share a weight of 1; slot 0 has a weight of its own beside them, as it is evidence of another kind.
    The components of a combination, in the slots behind it, have one weight, and leave the rest of 1 to all others.

    Parameters
    ----------
    n_hidden
        Hidden width, H.
    n_values
        Width V of what a slot says.
    value_dropout
        Dropout of what a slot says to the context.
    **options
        As in :class:`Refiner`.
    """

    def __init__(self, n_hidden: int, n_values: int, *, value_dropout: float, **options):
        super().__init__(n_hidden, n_spaces=3, **options)  # gene embedding, responses; gene embedding alone
        self.value = nn.Linear(n_values, n_hidden, bias=False)
        self.value_dropout = nn.Dropout(value_dropout)
        self.own = nn.Parameter(torch.tensor(INITIAL_OWN))
        self.parts = nn.Parameter(torch.tensor(INITIAL_PARTS))
        if self.scorer is not None:
            nn.init.constant_(self.scorer.out.bias, GATE_BIAS / GATE_RATE)

    def start(self, sharpness: Float[Tensor, " 3"], own: float, parts: float) -> None:
        """Set the sharpness in gene embedding, responses and gene embedding alone, and the other weights."""
        with torch.no_grad():
            self.sharpness.copy_(sharpness.clamp(min=1e-3).double().expm1().log())  # softplus(x) = sharpness
            self.own.fill_(own)
            self.parts.fill_(parts)

    def nearness(self, similarity: Float[Tensor, "B K 2"]) -> Float[Tensor, "B K"]:
        """Return the log weight of every slot; the embedding counts otherwise where the query's response is unknown."""
        text, response = similarity.unbind(-1)
        both, responses, alone = F.softplus(self.sharpness)
        is_alone = response.isnan().all(1, keepdim=True)
        return text.nan_to_num() * torch.where(is_alone, alone, both) + response.nan_to_num() * responses

    def score(self, cells: Tensor, query: Tensor, keys: Tensor) -> Float[Tensor, "B S K"]:
        """Return the logit of every gate."""
        return super().score(cells, query, keys) * GATE_RATE

    def combine(
        self, gates: Tensor, kept: Tensor, nearness: Tensor, query: Tensor, values: Tensor, n_parts: int = 0
    ) -> Refined:
        """Return what the slots say together, each by its weight, and the query beside it.

        The context does not teach the memory its weights. In training it hears slot 0 and components as seldom as any
        candidate, but their weight in the memory's answer is not withheld: the others cannot take their place.
        """
        own, parts, rest = slice(0, 1), slice(1, 1 + n_parts), slice(1 + n_parts, None)
        shared = normalised_weights(gates[..., rest] * kept[:, None, rest], nearness[:, rest], kept[:, rest])
        others = torch.cat([gates[..., own] * self.own, shared], dim=-1)
        others = others * (1 - self.parts * gates[..., parts].amax(-1, keepdim=True)) if n_parts else others
        weights = torch.cat([others[..., :1], gates[..., parts] * self.parts, others[..., 1:]], dim=-1)
        heard = (weights.detach() * kept[:, None]) @ self.value_dropout(values)
        return Refined(self.value(heard) + query[:, None], weights, gates)
