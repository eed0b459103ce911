"""Which tensors-in, tensors-out parts is the model composed of? Pure torch; knows nothing of AnnData."""

from ._losses import LOSSES, energy_distance
from ._mlp import CellEncoder, EmbeddingEncoder
from ._refiner import FactoredScorer, Refined, Refiner, logistic_noise, normalised_weights, straight_through_gates
from ._set_transformer import ContextGatedBlock, SetAttention, SetTransformer

__all__ = [
    "LOSSES",
    "CellEncoder",
    "ContextGatedBlock",
    "EmbeddingEncoder",
    "FactoredScorer",
    "Refined",
    "Refiner",
    "SetAttention",
    "SetTransformer",
    "energy_distance",
    "logistic_noise",
    "normalised_weights",
    "straight_through_gates",
]
