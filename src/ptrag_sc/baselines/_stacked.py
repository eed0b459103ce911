"""What do the simple predictors say together?"""

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
    that of :class:`LinearShift` and of :class:`NearestPerturbations`, both with ``space="response"``, and the
    perturbation's own response in other cell types as it stands. The weights :math:`w_k \ge 0` (stacked regressions,
    Breiman 1996) are fitted by least squares to the shifts of the validation conditions, which serve nothing else.

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
        is_val = (conditions["split"] == "val").to_numpy()
        if not is_val.any():
            key = self.keys_.split_key
            place = "the data (no split_key was registered)" if key is None else f"adata.obs[{key!r}]"
            remedy = "Hold some out with ptrag_sc.pp.split(..., val_fraction=0.1) and register split_key."
            raise ValueError(unusable("Stacked", place, "finds no validation conditions", remedy))
        train = conditions[~is_val].reset_index(drop=True)
        for part in (self.ridge_, self.neighbours_):
            part._learn(train, shifts[~is_val])
        self.candidates_ = self.neighbours_.candidates_
        self.of_type_, self.overall_ = mean_by_cell_type(train, shifts[~is_val])
        self.responses_ = ResponseSpace.of(train, shifts[~is_val])
        val = conditions[is_val]
        vectors = self.embedding_.vectors_for(val["perturbation"], self.keys_.sep)
        queries = zip(val["perturbation"], vectors, val["cell_type"], strict=True)
        parts = np.stack([self._parts(*query)[0] for query in queries])
        means = np.stack([self._mean(t) for t in val["cell_type"]])
        self.weights_ = nnls(parts.transpose(0, 2, 1).reshape(-1, parts.shape[1]), (shifts[is_val] - means).ravel())[0]

    def _mean(self, cell_type: str) -> np.ndarray:
        return self.of_type_.get(cell_type, self.overall_)

    def _parts(self, label: str, vector: np.ndarray, cell_type: str) -> tuple[np.ndarray, Answer]:
        """Return the three deviations (3, G), and the neighbours' answer."""
        mean, response = self._mean(cell_type), self.responses_[cell_type].of(label, self.keys_.sep)
        ridge, neighbours = (part._shift(label, vector, cell_type) for part in (self.ridge_, self.neighbours_))
        own = np.zeros_like(mean) if response is None else response @ self.responses_.axes
        return np.stack([ridge.shift - mean, neighbours.shift - mean, own]), neighbours

    def _shift(self, label, vector, cell_type):
        parts, neighbours = self._parts(label, vector, cell_type)
        return neighbours._replace(shift=self._mean(cell_type) + self.weights_ @ parts)
