"""What do baselines share that describe perturbations by their gene embedding, or by their responses?"""

from typing import Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData

from ptrag_sc._validation import absent
from ptrag_sc.baselines._base import Baseline
from ptrag_sc.retrieval import GeneEmbedding, nameable_genes, resolve_vectors

Space = Literal["gene_embedding", "response"]
SPACES: tuple[Space, ...] = get_args(Space)


class EmbeddedBaseline(Baseline):
    """A baseline that needs the gene embedding.

    Parameters
    ----------
    adata
        Object registered with :meth:`ptrag_sc.PTRAG.setup_anndata`.
    space
        What a perturbation is described by.

    Raises
    ------
    KeyError
        If the object has no gene embedding.
    ValueError
        If the space is unknown.
    """

    def __init__(self, adata: AnnData, *, space: Space):
        super().__init__(adata)
        if space not in SPACES:
            raise ValueError(absent("space=", space, "the known values", SPACES, "Pass one of them."))
        key = self.keys_.embedding_key
        uns = self.keys_.container(adata, "embedding_key").uns
        if key not in uns:
            raise KeyError(absent("Gene embedding", key, "adata.uns", uns, "Run ptrag_sc.pp.gene_embedding first."))
        self.space = space
        self.embedding_ = GeneEmbedding.from_uns(uns[key], key)
        self.excluded_ = self.embedding_.excluded

    def _vectors_of(self, named: pd.DataFrame) -> np.ndarray:
        return self.embedding_.vectors_for(named["perturbation"], self.keys_.sep)  # (C, D)

    def resolve(self, labels: tuple[str, ...], adata: AnnData, gene_embedding: object = None) -> np.ndarray:
        """Return the embedding (Q, D) of each perturbation, from three tables in turn.

        These are the baseline's own table, that of ``adata`` and ``gene_embedding``.
        """
        key = self.keys_.embedding_key
        table = self.keys_.container(adata, "embedding_key").uns.get(key)
        return resolve_vectors(labels, self.embedding_, table=table, key=key, sep=self.keys_.sep, extra=gene_embedding)

    def _genes_with_vector(self, adata: AnnData, gene_embedding: object) -> list[str]:
        key = self.keys_.embedding_key
        table = self.keys_.container(adata, "embedding_key").uns.get(key)
        return nameable_genes(self.embedding_, table=table, key=key, extra=gene_embedding)
