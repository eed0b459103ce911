"""What does a trained model say about an AnnData?"""

from ._diagnose import diagnose
from ._effect import effect
from ._perturb import perturb
from ._predict import predict
from ._retrieval import retrieval

__all__ = ["diagnose", "effect", "perturb", "predict", "retrieval"]
