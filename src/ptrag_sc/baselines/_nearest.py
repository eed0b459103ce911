"""What if a perturbation did what its nearest measured neighbours do?"""

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from ptrag_sc._validation import absent, unusable
from ptrag_sc.baselines._base import Baseline
from ptrag_sc.baselines._mean_shift import mean_by_cell_type
from ptrag_sc.data import components
from ptrag_sc.retrieval import GeneEmbedding, nearest_candidates, resolve_vectors


class NearestPerturbations(Baseline):
    r"""Control cells plus the weighted mean shift of the nearest perturbations measured in the cell type.

    The weights of the K perturbations of highest cosine :math:`s_k` in the gene embedding are
    :math:`w_k \propto \exp(s_k / \tau)`: as the vectors have unit norm, kernel regression (Nadaraya 1964, Watson 1964)
    with a Gaussian kernel of variance :math:`\tau`. The perturbation itself, where it was measured, is left out. A cell
    type without training data takes the neighbours' shifts averaged over cell types.

    Parameters
    ----------
    adata
        Object registered with :meth:`ptrag_sc.PTRAG.setup_anndata`.
    n_neighbors
        Neighbours, K; fewer where fewer are measured.
    temperature
        :math:`\tau`, in units of the cosine; ``numpy.inf`` gives every neighbour the same weight.

    Raises
    ------
    KeyError
        If the object has no gene embedding; in ``fit``, if training perturbations have no vector in it.
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=600, n_genes=60, n_perturbations=10, n_cell_types=2)
    >>> ptrag_sc.PTRAG.setup_anndata(
    ...     adata, perturbation_key="perturbation", control="non-targeting", cell_type_key="cell_type"
    ... )
    >>> baseline = NearestPerturbations(adata, n_neighbors=3).fit()
    >>> predicted = baseline.predict(perturbations=str(baseline.candidates_[0]), cell_types="type_0")
    >>> len(predicted.uns["ptrag"]["retrieval"])
    3
    """

    def __init__(self, adata: AnnData, *, n_neighbors: int = 20, temperature: float = 0.2):
        super().__init__(adata)
        if n_neighbors < 1:
            raise ValueError(unusable(f"n_neighbors={n_neighbors}", "the constructor", "is below 1", "Pass 1 or more."))
        if not temperature > 0:
            raise ValueError(
                unusable(f"temperature={temperature}", "the constructor", "is not positive", "Pass for example 0.2.")
            )
        key = self.keys_.embedding_key
        if key not in adata.uns:
            raise KeyError(
                absent("Gene embedding", key, "adata.uns", adata.uns, "Run ptrag_sc.pp.gene_embedding first.")
            )
        self.n_neighbors, self.temperature = n_neighbors, temperature
        self.embedding_ = GeneEmbedding.from_uns(adata.uns[key], key)
        self.excluded_ = self.embedding_.excluded

    def _learn(self, conditions: pd.DataFrame, shifts: np.ndarray) -> None:
        parts = [components(p, self.keys_.sep) for p in conditions["perturbation"]]
        known = np.array([set(self.excluded_).isdisjoint(part) for part in parts])
        if not known.any():
            problem = "excludes every training perturbation"
            raise ValueError(unusable("Gene embedding", "adata.uns", problem, "Add vectors of perturbed genes."))
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
        table = self.keys_.container(adata, "embedding_key").uns.get(key)
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
        indices, similarity = nearest.indices[0].numpy()[kept], nearest.similarity[0, :, 0].double().numpy()[kept]
        weights = np.exp((similarity - similarity.max(initial=-1)) / self.temperature)
        weights /= max(weights.sum(), 1.0)
        return weights @ shifts[indices], rows[indices], similarity, weights
