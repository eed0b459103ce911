"""Which simple predictors must a model beat?"""

from ._additive import Additive
from ._kernel_ridge import KernelRidge
from ._linear import LinearShift
from ._mean_shift import MeanShift
from ._nearest import NearestPerturbations
from ._no_effect import NoEffect
from ._perturbation_mean import PerturbationMean
from ._stacked import Stacked

__all__ = [
    "Additive",
    "KernelRidge",
    "LinearShift",
    "MeanShift",
    "NearestPerturbations",
    "NoEffect",
    "PerturbationMean",
    "Stacked",
]
