"""Which pictures can be drawn of what a model retrieved, predicted and learned?"""

from ptrag_sc.pl._benchmark import benchmark
from ptrag_sc.pl._design import design
from ptrag_sc.pl._diagnose import diagnose
from ptrag_sc.pl._effect import effect
from ptrag_sc.pl._embedding import embedding
from ptrag_sc.pl._explain_error import explain_error
from ptrag_sc.pl._power import power
from ptrag_sc.pl._predicted_effects import predicted_effects
from ptrag_sc.pl._ranking import ranking
from ptrag_sc.pl._retrieval import retrieval
from ptrag_sc.pl._retrieval_matrix import retrieval_matrix
from ptrag_sc.pl._support import support
from ptrag_sc.pl._training import training

__all__ = [
    "benchmark",
    "design",
    "diagnose",
    "effect",
    "embedding",
    "explain_error",
    "power",
    "predicted_effects",
    "ranking",
    "retrieval",
    "retrieval_matrix",
    "support",
    "training",
]
