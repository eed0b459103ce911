"""Which tensors-in, tensors-out parts is the model composed of? Pure torch; knows nothing of AnnData."""

from ._factored import PairTerms, inverse_std, pair_terms, score_pairs
from ._losses import LOSSES, Changes, SetLoss, energy_distance, masked_mean, mean_distance, summed_distances
from ._memory_refiner import MemoryRefiner
from ._mlp import CellEncoder, EmbeddingEncoder
from ._refiner import (
    FactoredScorer,
    Gates,
    Refined,
    Refiner,
    logistic_noise,
    normalised_weights,
    straight_through_gates,
    withhold,
)
from ._set_transformer import ContextGatedBlock, SetAttention, SetTransformer

__all__ = [
    "LOSSES",
    "CellEncoder",
    "Changes",
    "ContextGatedBlock",
    "EmbeddingEncoder",
    "FactoredScorer",
    "Gates",
    "MemoryRefiner",
    "PairTerms",
    "Refined",
    "Refiner",
    "SetAttention",
    "SetLoss",
    "SetTransformer",
    "energy_distance",
    "inverse_std",
    "logistic_noise",
    "masked_mean",
    "mean_distance",
    "normalised_weights",
    "pair_terms",
    "score_pairs",
    "straight_through_gates",
    "summed_distances",
    "withhold",
]
