"""How well would perturbations be predicted if fewer of them, or fewer cells, had been measured?"""

import logging
from typing import NamedTuple

import numpy as np

from ptrag_sc._validation import absent, unusable
from ptrag_sc.baselines._known import Known, SimilaritySpace, perturbation_kernel
from ptrag_sc.data import Predictor, masked_shifts, matched_control, mean_shifts, measured_targets
from ptrag_sc.data._fields import AnnOrMuData
from ptrag_sc.data._shifts import sampled_means
from ptrag_sc.metrics._mean import MIN_NORM
from ptrag_sc.retrieval import KernelRidge, PerturbationKernel

logger = logging.getLogger(__name__)

MIN_MEASURED = 10  # perturbations; with fewer nothing can be left out
FEW_MEASURED = 40
TESTED = 3  # one in this many perturbations is held out


class Refitted(NamedTuple):
    """C perturbations measured in one cell type, for a kernel ridge that is fitted to some of them.

    Its accuracy is the ``pearson_delta_pert`` of shifts without own targets. The centre is the mean shift of all
    perturbations outside the test set, whichever of them a fit has seen, so that fits of all sizes are asked for the
    same; its error is corrected for.
    """

    known: Known
    names: np.ndarray  # (C,)
    rows: list[np.ndarray]  # cells of each
    shifts: np.ndarray  # (C, G)
    own: np.ndarray  # (C, G) which genes are targets
    kernel: PerturbationKernel
    matrix: np.ndarray  # (C, C) of the kernel

    @classmethod
    def of(
        cls,
        adata: AnnOrMuData,
        model: Predictor | None,
        cell_type: str,
        *,
        space: SimilaritySpace,
        gene_embedding: object,
        place: str,
    ) -> "Refitted":
        """Read what has been measured in a cell type.

        Raises
        ------
        KeyError
            If the cell type does not occur, or a gene has no vector.
        ValueError
            If fewer than ten perturbations were measured in it, or the space cannot be used.
        """
        known = Known.of(adata, model, cell_type)
        here, index = known.codes_here, known.screen.index
        if known.cell_type < 0:
            types = index.cell_types.tolist()
            raise KeyError(absent("Cell type", cell_type, "the data", types, "Pass one that was measured."))
        names = index.perturbations[here["perturbation"]]
        if len(names) < MIN_MEASURED:
            problem = f"holds {len(names)} measured perturbations of {cell_type!r}, too few to hold any out"
            remedy = f"At least {MIN_MEASURED} are needed; tl.design chooses the first ones without any."
            raise ValueError(unusable("The screen", place, problem, remedy))
        if len(names) < FEW_MEASURED:
            logger.warning(
                "Only %d perturbations were measured in %s. With fewer than %d, expect a pearson_delta_pert below .1 "
                "for perturbations that were measured nowhere.",
                len(names),
                cell_type,
                FEW_MEASURED,
            )
        kernel = perturbation_kernel(
            tuple(names.tolist()),
            known.responses(),
            adata,
            model,
            space=space,
            gene_embedding=gene_embedding,
            sep=known.keys.sep,
        )
        every = np.arange(len(names))
        return cls(
            known=known,
            names=names,
            rows=[index.rows(p, known.cell_type) for p in here["perturbation"]],
            shifts=mean_shifts(known.screen.reader, index, here, known.controls).shift,
            own=measured_targets(names, known.screen.genes, known.keys.sep),
            kernel=kernel,
            matrix=kernel.block(every, every).astype(np.float64),
        )

    def among(self, part: np.ndarray) -> "Refitted":
        """Return the same of some of the perturbations (numbers), as if the others had not been measured."""
        return self._replace(
            names=self.names[part],
            rows=[self.rows[i] for i in part],
            shifts=self.shifts[part],
            own=self.own[part],
            kernel=self.kernel.among(part),
            matrix=self.matrix[np.ix_(part, part)],
        )

    @property
    def predictor(self) -> str:
        """What is fitted, in words."""
        return f"kernel ridge on the {self.kernel.space}"

    @property
    def n_cells(self) -> np.ndarray:
        """Cells of each perturbation (C,)."""
        return np.array([len(rows) for rows in self.rows])

    def masked(self, shifts: np.ndarray, tested: np.ndarray) -> np.ndarray:
        """Return shifts (C, G) with the mean of the perturbations outside the test in place of own targets."""
        among = np.ones(len(shifts), dtype=bool)
        among[tested] = False
        return masked_shifts(shifts, self.own, np.zeros(len(shifts), dtype=np.int64), among)

    def sampled(self, n_cells: int, rng: np.random.Generator) -> np.ndarray:
        """Return the shifts (C, G) that some cells of each perturbation would have given, at most ``n_cells``."""
        drawn = [rng.choice(rows, min(n_cells, len(rows)), replace=False) for rows in self.rows]
        means = sampled_means(self.known.screen.reader, drawn)
        batch = self.known.screen.index.batch
        return means - np.stack([matched_control(self.known.controls, batch[rows]) for rows in drawn])

    def accuracy(self, seen: np.ndarray, fitted: np.ndarray, real: np.ndarray, tested: np.ndarray) -> np.ndarray:
        """Return the accuracy of each tested perturbation (m,) after a fit to those ``seen``.

        Parameters
        ----------
        seen
            Numbers of the perturbations that the fit sees (n,).
        fitted
            Masked shifts (C, G) that it sees.
        real
            Masked shifts (C, G) that it is compared with.
        tested
            Numbers of the perturbations held out (m,).
        """
        predicted = self.predicted(seen, fitted, tested)  # (m, G)
        others = np.delete(real, tested, axis=0)
        centre = others.mean(0)  # (G,)
        spread = _without_mean(others - centre)
        error = np.square(spread).sum() / (len(others) - 1) / len(others)
        return deviation_correlation(real[tested] - centre, predicted - centre, error)

    def predicted(self, seen: np.ndarray, fitted: np.ndarray, tested: np.ndarray) -> np.ndarray:
        """Return the shifts (m, G) that a fit predicts; the parameters are those of :meth:`accuracy`."""
        fit = KernelRidge.fit(self.matrix[np.ix_(seen, seen)], fitted[seen])
        return fit.predict(self.matrix[np.ix_(tested, seen)])

    def drawn(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return a third of the perturbations to be tested, and the others in random order (numbers)."""
        order = rng.permutation(len(self.names))
        n = len(self.names) // TESTED
        return order[:n], order[n:]


def deviation_correlation(real: np.ndarray, predicted: np.ndarray, error: float) -> np.ndarray:
    r"""Return the correlations over genes (m,) that deviations from the true centre would have.

    The centre c is a mean of N perturbations and differs from the true one by an error of squared length :math:`v`.
    This is independent of a perturbation that is not among the N, whose deviation it makes longer by v. A fit to some
    of the N shares it, so that the deviations which it predicts are shorter by v, by all that the error of its mean is
    if it has seen all of them: few perturbations would look better than they are. With :math:`\langle r - c, p - c
    \rangle`, which the error leaves as it is on average,

    .. math:: \frac{\langle r - c, p - c \rangle}{\sqrt{(|r - c|^2 - v)\,(|p - c|^2 + v)}} .

    Parameters
    ----------
    real, predicted
        Deviations from c (m, G).
    error
        :math:`v`, without the mean over genes; 0 gives :func:`ptrag_sc.metrics.pearson_delta`.
    """
    real, predicted = _without_mean(real), _without_mean(predicted)
    square = np.square(real).sum(1)
    # At least half is kept of the deviation of a perturbation that is not told from the centre.
    length = np.sqrt(np.maximum(square - error, square / 2)), np.sqrt(np.square(predicted).sum(1) + error)
    product = (real * predicted).sum(1)
    has_direction = np.minimum(*length) > MIN_NORM
    return np.where(has_direction, product / np.where(has_direction, length[0] * length[1], 1), 0.0).clip(-1, 1)


def _without_mean(values: np.ndarray) -> np.ndarray:
    return values - values.mean(1, keepdims=True)
