"""What if a perturbation did what its nearest measured neighbours do?"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from ptrag_sc._validation import unusable
from ptrag_sc.baselines._base import Answer
from ptrag_sc.baselines._embedded import EmbeddedBaseline, Space
from ptrag_sc.baselines._means import mean_by
from ptrag_sc.baselines._responses import ResponseSpace
from ptrag_sc.retrieval import nearest_neighbours


class Measured(NamedTuple):
    """The n candidates measured in one cell type, m of which have a response in other cell types."""

    rows: np.ndarray  # (n,) rows of the candidates
    shifts: np.ndarray  # (n, G)
    among: np.ndarray  # (m,) positions among the n
    responses: np.ndarray  # (m, R), unit norm


class NearestPerturbations(EmbeddedBaseline):
    r"""Control cells plus the weighted mean shift of the nearest perturbations measured in the cell type.

    The weights of the K perturbations of highest cosine :math:`s_k` are :math:`w_k \propto \exp(s_k / \tau)`. This is
    kernel regression (Nadaraya 1964, Watson 1964) with a Gaussian kernel of variance :math:`\tau`, because directions
    have unit norm. The perturbation itself is left out if it was measured. A cell type without training data takes the
    neighbours' shifts averaged over cell types.

    Perturbations are near in one of two spaces. In ``"gene_embedding"`` the cosine is that of their embeddings. In
    ``"response"`` it is the cosine of their responses, measured in training conditions of the *other* cell types: the
    mean over these of shift minus mean shift of the cell type, in the 30 leading directions of all training conditions
    (or in all directions if there are fewer). If no other cell type has a combination, its response is the sum of its
    genes' responses. The gene embedding is used if the query has no response, or no neighbour in the cell type has one.

    Parameters
    ----------
    adata
        Object registered with :meth:`ptrag_sc.PTRAG.setup_anndata`.
    space
        Space in which perturbations are near.
    n_neighbors
        Number of neighbours, K; fewer if fewer are measured.
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

    def __init__(
        self,
        adata: AnnData,
        *,
        space: Space = "gene_embedding",
        n_neighbors: int = 20,
        temperature: float = 0.2,
    ):
        super().__init__(adata, space=space)
        if n_neighbors < 1:
            raise ValueError(unusable(f"n_neighbors={n_neighbors}", "the constructor", "is below 1", "Pass 1 or more."))
        if not temperature > 0:
            remedy = "Pass for example 0.2."
            raise ValueError(unusable(f"temperature={temperature}", "the constructor", "is not positive", remedy))
        self.n_neighbors = n_neighbors
        self.temperature = temperature

    def _learn(self, conditions: pd.DataFrame, shifts: np.ndarray) -> None:
        self.candidates_, averaged = mean_by(conditions["perturbation"], shifts)  # (P,), (P, G)
        self.vectors_ = self.embedding_.vectors_for(tuple(self.candidates_), self.keys_.sep)  # (P, D)
        self.responses_ = ResponseSpace.of(conditions, shifts) if self.space == "response" else None
        row = np.searchsorted(self.candidates_, conditions["perturbation"].to_numpy(dtype=str))  # (C,)
        # All queries in a cell type are compared with the same candidates, so these are collected once.
        of_type = conditions.groupby("cell_type").indices.items()
        self.measured_ = {t: self._measured(t, row[rows], shifts[rows]) for t, rows in of_type}
        self.anywhere_ = self._measured(None, np.arange(len(self.candidates_)), averaged)

    def _measured(self, cell_type: str | None, rows: np.ndarray, shifts: np.ndarray) -> Measured:
        if self.responses_ is None:
            return Measured(rows, shifts, np.zeros(0, dtype=np.int64), np.zeros((0, 0)))
        among, table = self.responses_[cell_type].known(self.candidates_[rows], self.keys_.sep)  # (m,), (m, R)
        return Measured(rows, shifts, among, table / np.linalg.norm(table, axis=1, keepdims=True))

    def _shift(self, label: str, vector: np.ndarray | None, cell_type: str) -> Answer:
        assert vector is not None  # resolve() returns an embedding for every query
        measured = self.measured_.get(cell_type, self.anywhere_)
        rows, shifts, query, table = self._candidates(label, vector, cell_type, measured)
        # The query may be among the candidates, and must not be its own neighbour; -1: it is not.
        own = np.flatnonzero(self.candidates_[rows] == label)
        if not len(own):
            own = np.array([-1])
        nearest = nearest_neighbours(
            torch.as_tensor(query[None], dtype=torch.float32),
            torch.as_tensor(table, dtype=torch.float32),
            torch.as_tensor(own),
            min(self.n_neighbors, len(rows)),
        )
        kept = nearest.present[0].numpy()
        indices = nearest.rows[0].numpy()[kept]  # (K,)
        similarity = nearest.similarity[0, :, 0].double().numpy()[kept]  # (K,)
        # Without the largest cosine the exponential could overflow at a low temperature.
        weights = np.exp((similarity - similarity.max(initial=-1)) / self.temperature)  # (K,)
        weights /= max(weights.sum(), 1.0)  # the largest weight is 1 here, so the sum is below 1 only if K is 0
        return Answer(weights @ shifts[indices], rows[indices], similarity, weights, shifts[indices])

    def _candidates(
        self, label: str, vector: np.ndarray, cell_type: str, measured: Measured
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return candidates (n,), their shifts (n, G), and unit vectors of query and candidates in one space."""
        rows, shifts, among, table = measured
        if self.responses_ is not None:
            query = self.responses_[cell_type].of(label, self.keys_.sep)
            # The query itself is left out, so another candidate must have a response.
            if query is not None and (self.candidates_[rows[among]] != label).any():
                return rows[among], shifts[among], query / np.linalg.norm(query), table
        return rows, shifts, vector, self.vectors_[rows]
