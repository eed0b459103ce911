"""How does an object in memory that holds gene vectors become a table of them?"""

from collections.abc import Mapping

import anndata as ad
import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import issparse

from ptrag_sc._validation import listed, unusable
from ptrag_sc.datasets._gene_vectors import GeneVectors, gene_names

OF_CELLS = ("PCs",)  # in varm: loadings that scanpy computes from cells, not vectors of genes


def from_mapping(table: Mapping[str, ArrayLike], place: str) -> GeneVectors:
    """Return the table of a mapping of symbols to vectors.

    Raises
    ------
    ValueError
        If the vectors have several widths.

    Examples
    --------
    >>> from_mapping({"AARS": [0.5, 1.0]}, "the example").vectors.tolist()
    [[0.5, 1.0]]
    """
    vectors = [np.atleast_1d(np.asarray(vector)) for vector in table.values()]  # (D,) each
    # One gene as an example of each shape that occurs.
    widths = {vector.shape: gene for gene, vector in zip(table, vectors, strict=True)}
    if len(widths) > 1:
        problem = f"has vectors of shapes {listed(widths)}, for example of {listed(widths.values())}"
        raise ValueError(unusable("Gene embedding", place, problem, "Give vectors of one width."))
    return GeneVectors(gene_names(table, place), np.array(vectors))


def from_anndata(adata: ad.AnnData, place: str) -> GeneVectors:
    """Return the vectors of the genes in ``varm``, or if there are none there, genes as observations and ``X``.

    Raises
    ------
    ValueError
        If ``varm`` has several tables, or there are no vectors.

    Examples
    --------
    >>> adata = ad.AnnData(np.ones((1, 2)))
    >>> adata.obs_names = ["AARS"]
    >>> from_anndata(adata, "the example").genes.tolist()
    ['AARS']
    """
    keys = [key for key in adata.varm if key not in OF_CELLS]
    if len(keys) > 1:
        remedy = f"Pass the one: pandas.DataFrame(adata.varm[{keys[0]!r}], index=adata.var_names)."
        raise ValueError(unusable("Gene embedding", f"varm of {place}", f"has several tables: {listed(keys)}", remedy))
    names, vectors = adata.obs_names, adata.X
    if keys:
        names, vectors = adata.var_names, adata.varm[keys[0]]
    if vectors is None:
        remedy = "Put vectors into varm, or genes into obs_names and their vectors into X."
        raise ValueError(unusable("Gene embedding", place, "has neither vectors in varm nor X", remedy))
    if issparse(vectors):
        if hasattr(vectors, "check_format"):  # scipy trusts indices from a file, and would read and write anywhere
            vectors.check_format(full_check=True)
        vectors = vectors.toarray()
    return GeneVectors(gene_names(names.tolist(), place), np.asarray(vectors))
