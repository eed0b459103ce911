"""Which options does the module have, and which values are allowed?"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ptrag_sc._validation import absent, unusable
from ptrag_sc.nn import LOSSES, MemoryRefiner, Refiner
from ptrag_sc.retrieval import ResponseMemory, response_scale

Retrieval = Literal["gumbel", "attention", "none"]
Memory = Literal["response"]
Residual = Literal["anchored", "hidden"]

RETRIEVAL: tuple[Retrieval, ...] = get_args(Retrieval)
MEMORIES = (None, *get_args(Memory))
RESIDUALS: tuple[Residual, ...] = get_args(Residual)
RANGES = {  # both ends are allowed
    "n_hidden": (1, math.inf),
    "n_layers": (1, math.inf),
    "n_heads": (1, math.inf),
    "dropout_rate": (0.0, 0.99),
    "candidate_dropout": (0.0, 0.99),
    "memory_dropout": (0.0, 0.99),
    "temperature": (1e-6, math.inf),
    "sparsity_weight": (0.0, math.inf),
    "null_weight": (0.0, math.inf),
}


@dataclass(frozen=True)
class ModuleParams:
    """Parameters of the module that are not shapes; they are described at :class:`ptrag_sc.PTRAG`."""

    retrieval: Retrieval
    memory: Memory | None
    n_hidden: int
    n_layers: int
    n_heads: int
    dropout_rate: float
    candidate_dropout: float
    memory_dropout: float
    temperature: float
    sparsity_weight: float
    loss: str
    residual: Residual = "anchored"
    null_weight: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything is built."""
        choices = {"retrieval": RETRIEVAL, "memory": MEMORIES, "loss": tuple(LOSSES), "residual": RESIDUALS}
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                raise ValueError(absent(f"{name}=", value, "the known values", known, f"Pass one of {known}."))
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                problem = f"is not between {low:g} and {high:g}"
                raise ValueError(unusable(f"{name}={value}", "the constructor", problem, "Choose a value in range."))
        if self.null_weight and self.residual == "anchored":  # control cells stay as they are whatever is learned
            remedy = "Pass residual='hidden', or leave null_weight=None."
            problem = "changes nothing with residual='anchored'"
            raise ValueError(unusable(f"null_weight={self.null_weight}", "the constructor", problem, remedy))
        if self.n_hidden % self.n_heads:  # every head gets an equal part of the hidden values
            problem = f"is no multiple of n_heads={self.n_heads}"
            raise ValueError(unusable(f"n_hidden={self.n_hidden}", "the constructor", problem, "Choose a multiple."))


def make_refiner(params: ModuleParams, memory: ResponseMemory | None) -> Refiner | MemoryRefiner | None:
    """Return stage 2 of retrieval; None where nothing is retrieved."""
    if params.retrieval == "none":
        return None
    if memory is None:
        return Refiner(
            params.n_hidden,
            gated=params.retrieval == "gumbel",
            temperature=params.temperature,
            dropout=params.dropout_rate,
            candidate_dropout=params.candidate_dropout,
        )
    return MemoryRefiner(
        params.n_hidden,
        len(memory.directions),
        response_scale(memory),
        gated=params.retrieval == "gumbel",
        temperature=params.temperature,
        dropout=params.dropout_rate,
        candidate_dropout=params.candidate_dropout,
        value_dropout=params.memory_dropout,
    )
