"""Which training perturbations answer for a query, and in which space are they near?"""

from ._gene_embeddings import GeneEmbedding
from ._initial_weights import InitialWeights, agreement, initial_weights
from ._kernel import BESIDE_WIDTH, RESPONSE_WIDTH, TEXT_WIDTH, KernelRidge, centred, similarity_kernel
from ._neighbours import Neighbours, nearest_neighbours
from ._null import cell_type_specificity, expected_jaccard, neighbours_only, random_neighbours, shuffled_names
from ._perturbation_kernel import PerturbationKernel
from ._query_table import QueryTable, make_query_table
from ._recall import Evidence, Recall
from ._resolve import nameable_genes, resolve_vectors
from ._response_memory import (
    ResponseMemory,
    between_perturbations,
    build_memory,
    response_scale,
    shrink,
    squared_errors,
)
from ._ridge import Ridge, fit_ridge
from ._selection import alike
from ._sources import SOURCES, read_embedding
from ._spaces import memory_neighbours
from ._variance_reduction import RemainingVariance
from ._view import MemoryView, averaged, view_memory

__all__ = [
    "BESIDE_WIDTH",
    "RESPONSE_WIDTH",
    "SOURCES",
    "TEXT_WIDTH",
    "Evidence",
    "GeneEmbedding",
    "InitialWeights",
    "KernelRidge",
    "MemoryView",
    "Neighbours",
    "PerturbationKernel",
    "QueryTable",
    "Recall",
    "RemainingVariance",
    "ResponseMemory",
    "Ridge",
    "agreement",
    "alike",
    "averaged",
    "between_perturbations",
    "build_memory",
    "cell_type_specificity",
    "centred",
    "expected_jaccard",
    "fit_ridge",
    "initial_weights",
    "make_query_table",
    "memory_neighbours",
    "nameable_genes",
    "nearest_neighbours",
    "neighbours_only",
    "random_neighbours",
    "read_embedding",
    "resolve_vectors",
    "response_scale",
    "shrink",
    "shuffled_names",
    "similarity_kernel",
    "squared_errors",
    "view_memory",
]
