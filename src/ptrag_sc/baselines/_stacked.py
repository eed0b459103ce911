"""How well do the simple predictors do together?"""

from copy import copy
from typing import NoReturn

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.optimize import nnls

from ptrag_sc._validation import unusable
from ptrag_sc.baselines._base import Answer
from ptrag_sc.baselines._embedded import EmbeddedBaseline
from ptrag_sc.baselines._linear import LinearShift
from ptrag_sc.baselines._means import mean_by_cell_type
from ptrag_sc.baselines._nearest import NearestPerturbations
from ptrag_sc.baselines._responses import ResponseSpace


class Stacked(EmbeddedBaseline):
    r"""Control cells plus a combination of a ridge, neighbours and the perturbation's own responses elsewhere.

    :math:`\hat s_{p,t} = b_t + \sum_k w_k d^k_{p,t}` with three deviations from the mean training shift :math:`b_t`:
    those predicted by :class:`LinearShift` and by :class:`NearestPerturbations`, both with ``space="response"``, and
    the unchanged mean response of the perturbation in other cell types. The weights :math:`w_k \ge 0` (stacked
    regressions, Breiman 1996) are fitted by least squares to the shifts of the validation conditions, which are used
    for nothing else.

    Parameters
    ----------
    adata
        Object registered with :meth:`ptrag_sc.PTRAG.setup_anndata`, with a ``split_key`` whose column has conditions
        labelled ``"val"``.

    Attributes
    ----------
    weights_
        Weights of ridge, neighbours and own responses.

    Raises
    ------
    KeyError
        If the object has no gene embedding; in ``fit``, if a perturbation has no vector in it.
    ValueError
        In ``fit``, if there are no validation conditions.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=600, n_genes=60, n_perturbations=10, n_cell_types=2)
    >>> keys = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}
    >>> ptrag_sc.pp.split(adata, **keys, test_fraction=0.2, val_fraction=0.2)
    >>> ptrag_sc.PTRAG.setup_anndata(adata, **keys, split_key="split")
    >>> name = str(adata.uns["gene_embedding"]["genes"][0])
    >>> Stacked(adata).fit().predict(perturbations=name).n_vars
    60
    """

    _splits = ("train", "val")

    def __init__(self, adata: AnnData):
        super().__init__(adata, space="response")
        self.ridge_ = LinearShift(adata, space="response")
        self.neighbours_ = NearestPerturbations(adata, space="response")

    def _learn(self, conditions: pd.DataFrame, shifts: np.ndarray) -> None:
        is_val = (conditions["split"] == "val").to_numpy()  # (C,)
        if not is_val.any():
            self._refuse_without_validation()
        train = conditions[~is_val].reset_index(drop=True)
        train_shifts = shifts[~is_val]
        # The parts never see validation conditions: otherwise the weights would favour the part that overfits most.
        # A copy of this baseline that learns from fewer conditions must not change it, so each has parts of its own.
        self.ridge_, self.neighbours_ = copy(self.ridge_), copy(self.neighbours_)
        self.ridge_._learn(train, train_shifts)
        self.neighbours_._learn(train, train_shifts)
        self.candidates_ = self.neighbours_.candidates_
        self.of_type_, self.overall_ = mean_by_cell_type(train, train_shifts)
        self.responses_ = ResponseSpace.of(train, train_shifts)
        self.weights_ = self._weights(conditions[is_val], shifts[is_val])

    def _refuse_without_validation(self) -> NoReturn:
        key = self.keys_.split_key
        place = f"adata.obs[{key!r}]"
        if key is None:
            place = "the data (no split_key was registered)"
        remedy = "Hold some out with ptrag_sc.pp.split(..., val_fraction=0.1) and register split_key."
        raise ValueError(unusable("Stacked", place, "finds no validation conditions", remedy))

    def _weights(self, val: pd.DataFrame, shifts: np.ndarray) -> np.ndarray:
        """Fit the weights (3,) of the parts to validation conditions and their shifts (n, G)."""
        vectors = self.embedding_.vectors_for(val["perturbation"], self.keys_.sep)  # (n, D)
        queries = zip(val["perturbation"], vectors, val["cell_type"], strict=True)
        parts = np.stack([self._parts(*query)[0] for query in queries])  # (n, 3, G)
        means = np.stack([self._mean(t) for t in val["cell_type"]])  # (n, G)
        columns = parts.transpose(0, 2, 1).reshape(-1, parts.shape[1])  # (n * G, 3): all genes share the weights
        return nnls(columns, (shifts - means).ravel())[0]

    def _mean(self, cell_type: str) -> np.ndarray:
        return self.of_type_.get(cell_type, self.overall_)

    def _parts(self, label: str, vector: np.ndarray, cell_type: str) -> tuple[np.ndarray, Answer]:
        """Return the three deviations (3, G), and the neighbours' answer."""
        mean = self._mean(cell_type)  # (G,)
        ridge = self.ridge_._shift(label, vector, cell_type)
        neighbours = self.neighbours_._shift(label, vector, cell_type)
        own = np.zeros_like(mean)  # a perturbation without response has the mean shift
        response = self.responses_[cell_type].of(label, self.keys_.sep)
        if response is not None:
            own = response @ self.responses_.axes
        return np.stack([ridge.shift - mean, neighbours.shift - mean, own]), neighbours

    def _shift(self, label: str, vector: np.ndarray | None, cell_type: str) -> Answer:
        assert vector is not None  # resolve() returns an embedding for every query
        parts, neighbours = self._parts(label, vector, cell_type)
        # The neighbours' candidates are reported as the evidence, because no other part has candidates.
        return neighbours._replace(shift=self._mean(cell_type) + self.weights_ @ parts)
