"""Which training perturbations answer for a query, and in which space are they near?"""

from ._candidates import Candidates, Queries, distinct_rows, make_queries, nearest_candidates
from ._gene_embeddings import GeneEmbedding
from ._resolve import resolve_vectors
from ._sources import SOURCES, read_embedding

__all__ = [
    "SOURCES",
    "Candidates",
    "GeneEmbedding",
    "Queries",
    "distinct_rows",
    "make_queries",
    "nearest_candidates",
    "read_embedding",
    "resolve_vectors",
]
