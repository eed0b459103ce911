"""What if the shift were a linear function of what is known of the perturbation?"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from ptrag_sc._validation import unusable
from ptrag_sc.baselines._base import Answer
from ptrag_sc.baselines._embedded import EmbeddedBaseline
from ptrag_sc.baselines._means import deviations, mean_by_cell_type
from ptrag_sc.baselines._responses import N_DIRECTIONS, ResponseSpace
from ptrag_sc.data import leading_directions


@dataclass(frozen=True)
class Bilinear:
    """A fitted map from features to shifts.

    Parameters
    ----------
    mean
        Shift (G,) where the features are zero.
    coefficients
        Features to loadings (D, R).
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
        directions, singular = leading_directions(deviation, n_components)
        scale = np.sqrt(np.mean(np.sum(features**2, axis=1)))  # the penalty means the same for features of any norm
        scaled = features / scale
        gram = scaled.T @ scaled / len(scaled) + penalty * np.eye(scaled.shape[1])
        right = np.linalg.solve(gram, scaled.T @ (deviation @ directions.T) / len(scaled))
        left = singular**2 / (singular**2 + penalty)  # the Gram matrix of the loadings is diagonal
        return cls(mean, right * left / scale, directions)

    def predict(self, feature: np.ndarray) -> np.ndarray:
        """Return the shift (G,) of one feature vector (D,)."""
        return self.mean + feature @ self.coefficients @ self.directions


class LinearShift(EmbeddedBaseline):
    r"""Control cells plus a linear function of the embedding or of the responses of the perturbation.

    :math:`Y \approx G W P^\top + b` (Ahlmann-Eltze et al. 2025) with
    :math:`W = (G^\top G + \lambda I)^{-1} G^\top (Y - b)\, \tilde P (\tilde P^\top \tilde P / C + \lambda I)^{-1} / C`:
    Y holds the shifts of the C training conditions of the cell type, b their mean, G the loadings of the genes on the
    principal components of Y - b, :math:`\tilde P` one row for each condition, scaled to a mean squared norm of 1. So
    :math:`\lambda` is per condition and does not depend on the size of the screen or the unit of the rows; the
    published program adds it to :math:`P^\top P`.

    The rows are the gene embedding (``"gene_embedding"``) or what the perturbation did in training conditions of the
    *other* cell types (``"response"``, defined in :class:`NearestPerturbations`): a ridge from its own responses there
    to its shift here. A query without response is answered from its embedding. A cell type without training data takes
    one fit to the training conditions of all cell types, each as a deviation from the mean shift of its cell type.

    Parameters
    ----------
    adata
        Object registered with :meth:`ptrag_sc.PTRAG.setup_anndata`.
    space
        What perturbations are known by.
    n_components
        Principal components of the shifts, at most.
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
        space: Literal["gene_embedding", "response"] = "gene_embedding",
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
        self.options_ = {"n_components": n_components, "penalty": penalty}

    def _learn(self, conditions: pd.DataFrame, shifts: np.ndarray) -> None:
        self.responses_ = ResponseSpace.of(conditions, shifts) if self.space == "response" else None
        vectors = self.embedding_.vectors_for(conditions["perturbation"], self.keys_.sep).astype(float)
        data = deviations(conditions, shifts), *mean_by_cell_type(conditions, shifts)
        everything = np.arange(len(conditions))
        self.by_embedding_ = self._fits(conditions, everything, vectors, *data)
        self.by_response_ = {}
        if self.responses_ is not None:
            pairs = zip(conditions["perturbation"], conditions["cell_type"], strict=True)
            found = [self.responses_[t].of(p, self.keys_.sep) for p, t in pairs]
            known = np.flatnonzero([response is not None for response in found])
            if len(known):
                self.by_response_ = self._fits(conditions, known, np.stack([found[i] for i in known]), *data)

    def _fits(
        self,
        conditions: pd.DataFrame,
        rows: np.ndarray,
        features: np.ndarray,
        deviation: np.ndarray,
        of_type: dict[str, np.ndarray],
        overall: np.ndarray,
    ) -> dict[str | None, Bilinear]:
        """Return a fit for each cell type, and one (None) for all others, from some conditions and their features."""
        groups = conditions.iloc[rows].groupby("cell_type").indices
        fits = {
            t: Bilinear.fit(features[i], deviation[rows[i]], of_type[t], **self.options_) for t, i in groups.items()
        }
        return fits | {None: Bilinear.fit(features, deviation[rows], overall, **self.options_)}

    def _shift(self, label, vector, cell_type):
        is_known = cell_type in self.by_embedding_
        response = None if self.responses_ is None else self.responses_[cell_type].of(label, self.keys_.sep)
        fit = self.by_response_.get(cell_type if is_known else None)
        if response is not None and fit is not None:
            return Answer(fit.predict(response))
        return Answer(self.by_embedding_[cell_type if is_known else None].predict(vector.astype(float)))
