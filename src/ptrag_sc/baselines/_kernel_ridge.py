"""What if alike perturbations did alike things, as far as the screen supports it?"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from anndata import AnnData

from ptrag_sc import retrieval
from ptrag_sc.baselines._base import Answer, Vectors
from ptrag_sc.baselines._embedded import EmbeddedBaseline, Space
from ptrag_sc.baselines._means import mean_by
from ptrag_sc.baselines._responses import Responses, ResponseSpace
from ptrag_sc.data import Screen
from ptrag_sc.data._assembly import ExpectedShifts, check_shifts
from ptrag_sc.retrieval import BESIDE_WIDTH, RESPONSE_WIDTH, TEXT_WIDTH, similarity_kernel

LABELS_AT_ONCE = 512
MIN_KNOWN = 3  # perturbations with a response that a fit is made from


@dataclass(frozen=True)
class Fit:
    """A ridge in one cell type from P perturbations, described by vectors and, in the second space, by responses."""

    ridge: retrieval.KernelRidge
    vectors: np.ndarray  # (P, D)
    responses: np.ndarray | None  # (P, R)

    @classmethod
    def of(cls, shifts: np.ndarray, vectors: np.ndarray, responses: np.ndarray | None, first: float | None) -> "Fit":
        """Fit shifts (P, G); the penalty is looked for around the first one."""
        kernel = _kernel(vectors, vectors, responses, responses)
        return cls(retrieval.KernelRidge.fit(kernel, shifts, first=first), vectors, responses)

    @cached_property
    def _dual(self) -> np.ndarray:
        """Coefficients (P, G) in single precision: most of the time of many queries is theirs."""
        return self._deviations_of(self.ridge.inverse)

    @cached_property
    def _single_vectors(self) -> np.ndarray:
        """Vectors (P, D) in single precision."""
        return self.vectors.astype(np.float32)

    def _deviations_of(self, weights: np.ndarray) -> np.ndarray:
        """Return weights (Q, P) times the deviations (P, G) from the mean shift, in single precision."""
        deviations = (self.ridge.outcomes - self.ridge.mean).astype(np.float32)
        return weights.astype(np.float32) @ deviations

    def predict(self, vectors: np.ndarray, responses: np.ndarray | None, *, n_asked: int) -> np.ndarray:
        """Return the shifts (Q, G) of queries with vectors (Q, D) and responses (Q, R), of ``n_asked`` in all.

        The coefficients cost as much as the answers to P queries, so they are computed for more queries only.
        """
        is_many = n_asked > len(self.vectors)
        if is_many:  # single precision, which takes half the time, is that of the answers
            vectors = vectors.astype(np.float32)
        rows = _kernel(vectors, self._single_vectors if is_many else self.vectors, responses, self.responses)  # (Q, P)
        rows = retrieval.centred(rows, self.ridge.kernel)
        if is_many:
            return self.ridge.mean + rows.astype(np.float32) @ self._dual
        return self.ridge.mean + self._deviations_of(rows @ self.ridge.inverse)


class KernelRidge(EmbeddedBaseline):
    r"""Control cells plus a smooth function of the perturbation, fitted to what was measured in the cell type.

    Kernel ridge regression with a mean that is not penalised: with shifts Y of P perturbations, their mean
    :math:`\mu` and the centred kernel :math:`\tilde K`,

    .. math:: \hat y_q = \mu + \tilde k_q (\tilde K + \lambda s I)^{-1} (Y - \mu), \qquad s = \mathrm{tr} \tilde K / P,

    where :math:`\lambda` is the one that predicts best what is left out, one perturbation at a time, exactly
    (PRESS, Allen 1974). In the space ``"gene_embedding"`` the kernel is :math:`\exp((\cos_e - 1) / 0.2)` of embeddings.
    In ``"response"`` it is :math:`\exp((\cos_r - 1) / 0.5 + (\cos_e - 1))` for queries that have a response in other
    cell types (as in :class:`NearestPerturbations`), if that fit has the smaller error in what it leaves out; for all
    other queries it is that of the embedding alone. A cell type without training data is answered by a fit to the
    shifts averaged over cell types. A perturbation that was measured is answered by its fitted value, so by itself too.

    Parameters
    ----------
    adata
        Object registered with :meth:`ptrag_sc.PTRAG.setup_anndata`.
    space
        What a perturbation is described by.

    Raises
    ------
    KeyError
        If the object has no gene embedding; in ``fit``, if training perturbations have no vector in it.
    ValueError
        If the space is unknown.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=600, n_genes=60, n_perturbations=10, n_cell_types=2)
    >>> ptrag_sc.PTRAG.setup_anndata(
    ...     adata, perturbation_key="perturbation", control="non-targeting", cell_type_key="cell_type"
    ... )
    >>> name = str(adata.uns["gene_embedding"]["genes"][0])
    >>> KernelRidge(adata).fit().predict(perturbations=name).n_vars
    60
    """

    def __init__(self, adata: AnnData, *, space: Space = "response"):
        super().__init__(adata, space=space)
        # Copies share it: each is fitted to nearly the same shifts, so the search for a penalty starts near its end.
        self._penalties: dict[tuple[str | None, bool], float] = {}

    def _learn(self, conditions: pd.DataFrame, shifts: np.ndarray) -> None:
        self.conditions_, self.shifts_ = conditions, shifts
        self.types_ = set(conditions["cell_type"])
        self.responses_: ResponseSpace | None = None
        if self.space == "response" and len(self.types_) > 1:  # one cell type has no response elsewhere
            self.responses_ = ResponseSpace.of(conditions, shifts)
        # A cell type is fitted when it is first asked for: many calls ask for one of several.
        self.fits_: dict[str | None, tuple[Fit, Fit | None]] = {}

    def _fits(self, cell_type: str) -> tuple[Fit, Fit | None, Responses | None]:
        """Return the fit by embedding, the one by responses (None if it is not better), and responses."""
        group = cell_type if cell_type in self.types_ else None
        responses = None if self.responses_ is None else self.responses_[group]
        if group not in self.fits_:
            self.fits_[group] = self._fit(group, responses)
        return *self.fits_[group], responses

    def _fit(self, group: str | None, responses: Responses | None) -> tuple[Fit, Fit | None]:
        if group is None:
            names, shifts = mean_by(self.conditions_["perturbation"], self.shifts_)
        else:
            of_type = (self.conditions_["cell_type"] == group).to_numpy()
            names = self.conditions_["perturbation"].to_numpy(dtype=str)[of_type]
            shifts = self.shifts_ if of_type.all() else self.shifts_[of_type]  # they are large
        vectors = self.embedding_.vectors_for(names, self.keys_.sep).astype(float)  # (P, D)
        by_vector = Fit.of(shifts, vectors, None, self._penalties.get((group, False)))
        self._penalties[group, False] = by_vector.ridge.penalty
        if responses is None:
            return by_vector, None
        rows, known = responses.known(names, self.keys_.sep)  # (m,), (m, R)
        if len(rows) < MIN_KNOWN:
            return by_vector, None
        by_response = Fit.of(shifts[rows], vectors[rows], known, self._penalties.get((group, True)))
        self._penalties[group, True] = by_response.ridge.penalty
        if by_response.ridge.error.sum() > by_vector.ridge.error[rows].sum():
            return by_vector, None
        return by_vector, by_response

    def _predicted(self, labels: tuple[str, ...], vectors: np.ndarray, cell_type: str, *, n_asked: int) -> np.ndarray:
        """Return the shifts (Q, G) of perturbations with their embeddings (Q, D), of ``n_asked`` in all."""
        by_vector, by_response, responses = self._fits(cell_type)
        vectors = vectors.astype(float)
        if by_response is None or responses is None:
            return by_vector.predict(vectors, None, n_asked=n_asked)
        rows, known = responses.known(labels, self.keys_.sep)
        shifts = np.empty((len(labels), len(by_vector.ridge.mean)))
        others = np.setdiff1d(np.arange(len(labels)), rows)
        if len(rows):
            shifts[rows] = by_response.predict(vectors[rows], known, n_asked=n_asked)
        if len(others):
            shifts[others] = by_vector.predict(vectors[others], None, n_asked=n_asked)
        return shifts

    def _shift(self, label: str, vector: np.ndarray | None, cell_type: str) -> Answer:
        assert vector is not None  # resolve() returns an embedding for every query
        return Answer(self._predicted((label,), vector[None], cell_type, n_asked=1)[0])

    def expected_shifts(
        self, labels: tuple[str, ...], screen: Screen, cell_type: int, *, state: Vectors
    ) -> Iterator[ExpectedShifts]:
        """Yield the mean shifts of perturbations in a cell type; nothing is retrieved for them."""
        assert state is not None
        name = str(screen.index.cell_types[cell_type])
        for start in range(0, len(labels), LABELS_AT_ONCE):
            part = slice(start, start + LABELS_AT_ONCE)
            shift = self._predicted(labels[part], state[part], name, n_asked=len(labels)).astype(np.float32)
            nothing = np.zeros((len(shift), 0))
            check_shifts(shift, labels[part], name)
            yield ExpectedShifts(shift, nothing.astype(np.int64), nothing, np.zeros((*nothing.shape, shift.shape[1])))


def _kernel(
    queries: np.ndarray, known: np.ndarray, responses: np.ndarray | None, known_responses: np.ndarray | None
) -> np.ndarray:
    """Return the kernel (Q, P) of embeddings (Q, D) and (P, D), with that of responses (Q, R) and (P, R) if given."""
    if responses is None or known_responses is None:
        return similarity_kernel(queries, known, TEXT_WIDTH)
    beside = similarity_kernel(queries, known, BESIDE_WIDTH)
    return similarity_kernel(responses, known_responses, RESPONSE_WIDTH) * beside
