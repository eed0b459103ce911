"""Which of the observed responses matter for this cell state, the query's own elsewhere among them?"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ptrag_sc.nn._refiner import GATE_BIAS, Refined, Refiner, normalised_weights

INITIAL_OWN = 0.2  # weight of the query's own response in other cell types
# Logits are this much of the scorer's: gates that move as fast as the generator close while it learns by heart.
GATE_RATE = 0.1


class MemoryRefiner(Refiner):
    """Refiner whose candidates say what was observed, and whose slot 0 is the query's own response elsewhere.

    The candidates share a weight of 1; slot 0 has a weight of its own beside them, as it is evidence of another kind.

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
        super().__init__(n_hidden, n_spaces=2, **options)
        self.value = nn.Linear(n_values, n_hidden, bias=False)
        self.value_own = nn.Linear(n_values, n_hidden, bias=False)
        self.value_dropout = nn.Dropout(value_dropout)
        self.own = nn.Parameter(torch.tensor(INITIAL_OWN))
        if self.scorer is not None:
            nn.init.constant_(self.scorer.out.bias, GATE_BIAS / GATE_RATE)

    def start(self, sharpness: Float[Tensor, " R"], own: float) -> None:
        """Set the sharpness in each space and the weight of slot 0."""
        with torch.no_grad():
            self.sharpness.copy_(sharpness.clamp(min=1e-3).double().expm1().log())  # softplus(x) = sharpness
            self.own.fill_(own)

    def score(self, cells: Tensor, query: Tensor, keys: Tensor) -> Float[Tensor, "B S K"]:
        """Return the logit of every gate."""
        return super().score(cells, query, keys) * GATE_RATE

    def combine(self, gates: Tensor, kept: Tensor, nearness: Tensor, query: Tensor, values: Tensor) -> Refined:
        """Return what the slots say together, and the query beside it.

        In training the context hears slot 0 as seldom as any candidate, but its weight is not withheld: the others
        cannot take its place.
        """
        shared = normalised_weights(gates[..., 1:] * kept[:, None, 1:], nearness[:, 1:], kept[:, 1:])
        own, values = gates[..., :1], self.value_dropout(values)
        context = shared @ self.value(values[:, 1:]) + own * kept[:, None, :1] * self.value_own(values[:, :1])
        return Refined(context + query[:, None], torch.cat([own * self.own, shared], dim=-1), gates)
