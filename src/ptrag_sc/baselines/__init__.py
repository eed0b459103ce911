"""Which simple predictors must a model beat?"""

from ._mean_shift import MeanShift
from ._nearest import NearestPerturbations
from ._no_effect import NoEffect

__all__ = ["MeanShift", "NearestPerturbations", "NoEffect"]
