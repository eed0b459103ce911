"""Which training perturbations answer for a query, and in which space are they near?"""

from ._calibration import Start, agreement, calibrate
from ._candidates import (
    Candidates,
    Queries,
    condition_row,
    distinct_rows,
    nearest_candidates,
)
from ._gene_embeddings import GeneEmbedding
from ._null import cell_type_specificity, expected_jaccard, neighbours_only, random_candidates, shuffled_names
from ._queries import make_queries
from ._resolve import resolve_vectors
from ._response_memory import (
    MemoryView,
    ResponseMemory,
    Spoken,
    Told,
    between_perturbations,
    build_memory,
    response_scale,
    shrink,
    squared_errors,
    tell,
    view_memory,
)
from ._ridge import Ridge, fit_ridge
from ._sources import SOURCES, read_embedding
from ._two_spaces import memory_candidates

__all__ = [
    "SOURCES",
    "Candidates",
    "GeneEmbedding",
    "MemoryView",
    "Queries",
    "ResponseMemory",
    "Ridge",
    "Spoken",
    "Start",
    "Told",
    "agreement",
    "between_perturbations",
    "build_memory",
    "calibrate",
    "cell_type_specificity",
    "condition_row",
    "distinct_rows",
    "expected_jaccard",
    "fit_ridge",
    "make_queries",
    "memory_candidates",
    "nearest_candidates",
    "neighbours_only",
    "random_candidates",
    "read_embedding",
    "resolve_vectors",
    "response_scale",
    "shrink",
    "shuffled_names",
    "squared_errors",
    "tell",
    "view_memory",
]
