"""What if the shift were a linear function of what is known about the perturbation?"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from ptrag_sc._validation import unusable
from ptrag_sc.baselines._base import Answer
from ptrag_sc.baselines._embedded import EmbeddedBaseline, Space
from ptrag_sc.baselines._means import deviations, mean_by_cell_type
from ptrag_sc.baselines._responses import N_DIRECTIONS, ResponseSpace
from ptrag_sc.data import leading_directions


@dataclass(frozen=True)
class Bilinear:
    """A fitted map from features to shifts.

    Parameters
    ----------
    mean
        Shift (G,) of features that are all zero.
    coefficients
        Map (D, R) from features to loadings on the directions.
    directions
        Unit directions of the shifts (R, G).
    """

    mean: np.ndarray
    coefficients: np.ndarray
    directions: np.ndarray

    @classmethod
    def fit(
        cls, features: np.ndarray, deviation: np.ndarray, mean: np.ndarray, *, n_components: int, penalty: float
    ) -> "Bilinear":
        """Fit features (C, D) to deviations (C, G) from a mean shift (G,)."""
        directions, singular = leading_directions(deviation, n_components)  # (R, G), (R,)
        scale = np.sqrt(np.mean(np.sum(features**2, axis=1)))  # the penalty means the same for features of any norm
        scaled = features / scale  # (C, D)
        # The mean over conditions, not the sum, makes the penalty independent of the size of the screen.
        gram = scaled.T @ scaled / len(scaled) + penalty * np.eye(scaled.shape[1])  # (D, D)
        loadings = deviation @ directions.T  # (C, R)
        right = np.linalg.solve(gram, scaled.T @ loadings / len(scaled))  # (D, R)
        left = singular**2 / (singular**2 + penalty)  # (R,), because the Gram matrix of the loadings is diagonal
        return cls(mean, right * left / scale, directions)

    def predict(self, feature: np.ndarray) -> np.ndarray:
        """Return the shift (G,) of one feature vector (D,)."""
        return self.mean + feature @ self.coefficients @ self.directions


class Training(NamedTuple):
    """What is fitted: the shifts of C training conditions, split into mean and deviation."""

    conditions: pd.DataFrame  # C rows
    deviation: np.ndarray  # (C, G), shifts minus the mean shift of their cell type
    of_type: dict[str, np.ndarray]  # (G,), mean shift of each cell type
    overall: np.ndarray  # (G,), mean of all shifts


class LinearShift(EmbeddedBaseline):
    r"""Control cells plus a linear function of the embedding or of the responses of the perturbation.

    :math:`Y \approx G W P^\top + b` (Ahlmann-Eltze et al. 2025) with
    :math:`W = (G^\top G + \lambda I)^{-1} G^\top (Y - b)\, \tilde P (\tilde P^\top \tilde P / C + \lambda I)^{-1} / C`:
    Y contains the shifts of the C training conditions of the cell type, b their mean, G the loadings of the genes on
    the principal components of Y - b, :math:`\tilde P` one row for each condition, scaled to a mean squared norm of 1.
    So :math:`\lambda` is per condition and does not depend on the size of the screen or the unit of the rows; the
    published program adds it to :math:`P^\top P`.

    The rows are the gene embedding (``"gene_embedding"``) or what the perturbation did in training conditions of the
    *other* cell types (``"response"``, defined in :class:`NearestPerturbations`): a ridge from its own responses there
    to its shift here. If a query has no response, its embedding is used. If a cell type has no training data, one fit
    to the training conditions of all cell types is used, each as a deviation from the mean shift of its cell type.

    Parameters
    ----------
    adata
        Object registered with :meth:`ptrag_sc.PTRAG.setup_anndata`.
    space
        What a perturbation is described by.
    n_components
        Largest number of principal components of the shifts.
    penalty
        :math:`\lambda`, on both sides.

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
    >>> name = str(adata.uns["gene_embedding"]["genes"][0])
    >>> LinearShift(adata, space="response").fit().predict(perturbations=name).n_vars
    60
    """

    def __init__(
        self,
        adata: AnnData,
        *,
        space: Space = "gene_embedding",
        n_components: int = N_DIRECTIONS,
        penalty: float = 0.1,
    ):
        super().__init__(adata, space=space)
        if n_components < 1:
            raise ValueError(
                unusable(f"n_components={n_components}", "the constructor", "is below 1", "Pass 1 or more.")
            )
        if not penalty > 0:
            raise ValueError(
                unusable(f"penalty={penalty}", "the constructor", "is not positive", "Pass for example 0.1.")
            )
        self.n_components = n_components
        self.penalty = penalty

    def _learn(self, conditions: pd.DataFrame, shifts: np.ndarray) -> None:
        training = Training(conditions, deviations(conditions, shifts), *mean_by_cell_type(conditions, shifts))
        vectors = self.embedding_.vectors_for(conditions["perturbation"], self.keys_.sep).astype(float)  # (C, D)
        self.by_embedding_ = self._fits(training, np.arange(len(conditions)), vectors)
        self.by_response_: dict[str | None, Bilinear] = {}
        self.responses_: ResponseSpace | None = None
        if self.space == "response":
            self.responses_ = ResponseSpace.of(conditions, shifts)
            pairs = zip(conditions["perturbation"], conditions["cell_type"], strict=True)
            found = [self.responses_[t].of(p, self.keys_.sep) for p, t in pairs]
            known = np.flatnonzero([response is not None for response in found])  # (m,)
            if len(known):  # in a screen of one cell type no perturbation has a response elsewhere
                responses = np.stack([response for response in found if response is not None])  # (m, R)
                self.by_response_ = self._fits(training, known, responses)

    def _fits(self, training: Training, rows: np.ndarray, features: np.ndarray) -> dict[str | None, Bilinear]:
        """Return a fit for each cell type, and under None one for all others.

        Parameters
        ----------
        training
            What is fitted.
        rows
            Conditions (m,) that have features.
        features
            Their features (m, D).
        """
        fits: dict[str | None, Bilinear] = {}
        for t, group in training.conditions.iloc[rows].groupby("cell_type").indices.items():
            fits[t] = self._fit(features[group], training.deviation[rows[group]], training.of_type[t])
        fits[None] = self._fit(features, training.deviation[rows], training.overall)
        return fits

    def _fit(self, features: np.ndarray, deviation: np.ndarray, mean: np.ndarray) -> Bilinear:
        return Bilinear.fit(features, deviation, mean, n_components=self.n_components, penalty=self.penalty)

    def _shift(self, label: str, vector: np.ndarray | None, cell_type: str) -> Answer:
        assert vector is not None  # resolve() returns an embedding for every query
        group = None  # the fit to all cell types
        if cell_type in self.by_embedding_:
            group = cell_type
        fit = self.by_response_.get(group)
        if fit is not None and self.responses_ is not None:
            response = self.responses_[cell_type].of(label, self.keys_.sep)
            if response is not None:
                return Answer(fit.predict(response))
        return Answer(self.by_embedding_[group].predict(vector.astype(float)))
