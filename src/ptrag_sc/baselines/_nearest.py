"""What if a perturbation did what its nearest measured neighbours do?"""

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from ptrag_sc._validation import absent, unusable
from ptrag_sc.baselines._base import Baseline
from ptrag_sc.baselines._mean_shift import mean_by_cell_type
from ptrag_sc.retrieval import GeneEmbedding, nearest_candidates, resolve_vectors


class NearestPerturbations(Baseline):
    """Control cells plus the similarity-weighted mean shift of the nearest perturbations measured in the cell type.

    Weights are the positive cosines of the gene embedding, as in k-nearest-neighbour regression; where all are
    negative, equal weights. A cell type without training data takes neighbours' shifts averaged over cell types.

    Parameters
    ----------
    adata
        Object registered with :meth:`ptrag_sc.PTRAG.setup_anndata`.
    n_neighbors
        Neighbours, K; fewer where fewer are measured.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=600, n_genes=60, n_perturbations=10, n_cell_types=2)
    >>> ptrag_sc.PTRAG.setup_anndata(
    ...     adata, perturbation_key="perturbation", control="non-targeting", cell_type_key="cell_type"
    ... )
    >>> baseline = NearestPerturbations(adata, n_neighbors=3).fit()
    >>> baseline.predict(perturbations=str(baseline.candidates_[0])).uns["ptrag"]["retrieval"].groupby(
    ...     "cell_type"
    ... ).size().max()
    3
    """

    def __init__(self, adata: AnnData, *, n_neighbors: int = 20):
        super().__init__(adata)
        if n_neighbors < 1:
            raise ValueError(unusable(f"n_neighbors={n_neighbors}", "the constructor", "is below 1", "Pass 1 or more."))
        key = self.keys_.embedding_key
        if key not in adata.uns:
            raise KeyError(
                absent("Gene embedding", key, "adata.uns", adata.uns, "Run ptrag_sc.pp.gene_embedding first.")
            )
        self.n_neighbors, self.embedding_ = n_neighbors, GeneEmbedding.from_uns(adata.uns[key], key)
        self.excluded_ = self.embedding_.excluded

    def _learn(self, conditions: pd.DataFrame, shifts: np.ndarray) -> None:
        known = [not self.embedding_.missing([p], self.keys_.sep) for p in conditions["perturbation"]]
        conditions, shifts = conditions[known].reset_index(drop=True), shifts[known]
        self.candidates_ = np.unique(conditions["perturbation"].to_numpy(dtype=str))
        self.vectors_ = self.embedding_.vectors_for(tuple(self.candidates_), self.keys_.sep)
        row = np.searchsorted(self.candidates_, conditions["perturbation"].to_numpy(dtype=str))
        self.measured_ = {t: (row[rows], shifts[rows]) for t, rows in conditions.groupby("cell_type").indices.items()}
        averaged, _ = mean_by_cell_type(conditions.assign(cell_type=conditions["perturbation"]), shifts)
        self.anywhere_ = np.arange(len(self.candidates_)), np.stack([averaged[p] for p in self.candidates_])

    def resolve(self, labels: tuple[str, ...], adata: AnnData, gene_embedding: object = None) -> np.ndarray:
        """Return the embedding (Q, D) of each perturbation: own table, then ``adata``, then ``gene_embedding``."""
        key = self.keys_.embedding_key
        table = adata.uns.get(key)
        return resolve_vectors(labels, self.embedding_, table=table, key=key, sep=self.keys_.sep, extra=gene_embedding)

    def prepare(self, labels: tuple[str, ...], vectors: np.ndarray | None) -> tuple[tuple[str, ...], np.ndarray]:
        """Return labels and vectors: neighbours depend on what is measured in the cell type."""
        return labels, vectors

    def _shift(self, query, cell_type, state):
        labels, vectors = state
        rows, shifts = self.measured_.get(cell_type, self.anywhere_)
        own = np.flatnonzero(self.candidates_[rows] == labels[query - 1])
        nearest = nearest_candidates(
            torch.as_tensor(vectors[query - 1 : query]),
            torch.as_tensor(self.vectors_[rows]),
            torch.as_tensor(own[:1] if len(own) else [-1]),
            min(self.n_neighbors, len(rows)),
        )
        kept = nearest.present[0].numpy()
        indices, similarity = nearest.indices[0].numpy()[kept], nearest.similarity[0, :, 0].numpy()[kept]
        weights = np.maximum(similarity, 0.0)
        if not len(indices):
            return np.zeros(1), indices, similarity, weights
        weights = weights / weights.sum() if weights.sum() > 0 else np.full(len(indices), 1 / len(indices))
        return weights @ shifts[indices], rows[indices], similarity, weights
