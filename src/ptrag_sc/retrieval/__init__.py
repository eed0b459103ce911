"""Which training perturbations answer for a query, and in which space are they near?"""

from ._candidates import Candidates, Queries, distinct_rows, make_queries, nearest_candidates, with_control
from ._gene_embeddings import GeneEmbedding
from ._null import cell_type_specificity, expected_jaccard, random_candidates, shuffled_names
from ._resolve import resolve_vectors
from ._sources import SOURCES, read_embedding

__all__ = [
    "SOURCES",
    "Candidates",
    "GeneEmbedding",
    "Queries",
    "cell_type_specificity",
    "distinct_rows",
    "expected_jaccard",
    "make_queries",
    "nearest_candidates",
    "random_candidates",
    "read_embedding",
    "resolve_vectors",
    "shuffled_names",
    "with_control",
]
