"""What can be predicted for the cells of an AnnData, and what do the predictions rest on?"""

from ._diagnose import diagnose
from ._effect import effect, effect_table
from ._effects import predict_effects
from ._explain_error import explain_error
from ._perturb import perturb
from ._predict import predict
from ._rank_perturbations import rank_perturbations
from ._retrieval import retrieval

__all__ = [
    "diagnose",
    "effect",
    "effect_table",
    "explain_error",
    "perturb",
    "predict",
    "predict_effects",
    "rank_perturbations",
    "retrieval",
]
