"""What can be predicted for the cells of an AnnData, and what do the predictions rest on?"""

from ptrag_sc.baselines._design_curve import design_curve

from ._batch_layout import batch_layout
from ._design import design
from ._diagnose import diagnose
from ._effect import effect, effect_table
from ._effects import predict_effects
from ._explain_error import explain_error
from ._perturb import perturb
from ._power import power
from ._predict import predict
from ._rank_perturbations import rank_perturbations
from ._retrieval import retrieval

__all__ = [
    "batch_layout",
    "design",
    "design_curve",
    "diagnose",
    "effect",
    "effect_table",
    "explain_error",
    "perturb",
    "power",
    "predict",
    "predict_effects",
    "rank_perturbations",
    "retrieval",
]
