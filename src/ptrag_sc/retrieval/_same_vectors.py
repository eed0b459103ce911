"""Which genes have the same vector, because they are one gene under two names?"""

import logging

import numpy as np

from ptrag_sc._validation import listed
from ptrag_sc.retrieval._gene_embeddings import GeneEmbedding

SAME = 1e-6  # largest difference of two unit vectors that differ by rounding only

logger = logging.getLogger(__name__)


def same_vectors(table: GeneEmbedding) -> list[tuple[str, str]]:
    """Return the pairs of genes with the same vector, each gene with the one before it in sorted order.

    Examples
    --------
    >>> same_vectors(GeneEmbedding.from_table(["A", "B", "C"], [[1, 0], [0, 1], [2, 0]], source="example"))
    [('A', 'C')]
    """
    # Equal vectors have equal projections, so only neighbours in the order of one projection are compared.
    axis = np.random.default_rng(0).normal(size=table.vectors.shape[1])
    projection = table.vectors @ axis  # (n,)
    order = np.argsort(projection, kind="stable")
    near = np.flatnonzero(np.diff(projection[order]) < SAME * np.abs(axis).sum())
    pairs = []
    for first, second in zip(order[near], order[near + 1], strict=True):
        if np.abs(table.vectors[first] - table.vectors[second]).max() < SAME:
            names = sorted((str(table.genes[first]), str(table.genes[second])))
            pairs.append((names[0], names[1]))
    return sorted(pairs)


def warn_of_same_vectors(table: GeneEmbedding) -> None:
    """Log a warning that names genes with the same vector."""
    pairs = same_vectors(table)
    if pairs:
        shown = listed(f"{first} = {second}" for first, second in pairs)
        logger.warning(
            "%d pairs of genes have the same vector in %r: %s. If they are one gene under two names, give its cells "
            "one label before the split; else the held-out one is known from the other.",
            *(len(pairs), table.source, shown),
        )
