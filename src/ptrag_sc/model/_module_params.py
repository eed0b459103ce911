"""Which options does the module have, and which values can they take?"""

import math
from dataclasses import dataclass
from typing import Literal

from ptrag_sc._validation import absent, unusable
from ptrag_sc.nn import LOSSES

RETRIEVAL = ("gumbel", "attention", "none")
MEMORIES = (None, "response")
RANGES = {
    "n_hidden": (1, math.inf),
    "n_layers": (1, math.inf),
    "n_heads": (1, math.inf),
    "dropout_rate": (0.0, 0.99),
    "candidate_dropout": (0.0, 0.99),
    "memory_dropout": (0.0, 0.99),
    "temperature": (1e-6, math.inf),
    "sparsity_weight": (0.0, math.inf),
}


@dataclass(frozen=True)
class ModuleParams:
    """Parameters of the module that are not shapes; they are described at :class:`ptrag_sc.PTRAG`."""

    retrieval: Literal["gumbel", "attention", "none"]
    memory: Literal["response"] | None
    n_hidden: int
    n_layers: int
    n_heads: int
    dropout_rate: float
    candidate_dropout: float
    memory_dropout: float
    temperature: float
    sparsity_weight: float
    loss: str

    def __post_init__(self):
        """Refuse values that cannot work, before anything is built."""
        for name, known in (("retrieval", RETRIEVAL), ("memory", MEMORIES), ("loss", tuple(LOSSES))):
            if getattr(self, name) not in known:
                remedy = f"Pass one of {known}."
                raise ValueError(absent(f"{name}=", getattr(self, name), "the known values", known, remedy))
        for name, (low, high) in RANGES.items():
            if not low <= getattr(self, name) <= high:
                problem, remedy = f"is not between {low:g} and {high:g}", "Choose a value in range."
                raise ValueError(unusable(f"{name}={getattr(self, name)}", "the constructor", problem, remedy))
        if self.n_hidden % self.n_heads:
            problem = f"is no multiple of n_heads={self.n_heads}"
            raise ValueError(unusable(f"n_hidden={self.n_hidden}", "the constructor", problem, "Choose a multiple."))
