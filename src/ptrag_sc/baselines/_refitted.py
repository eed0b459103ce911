"""How well would perturbations be predicted if fewer of them, or fewer cells, had been measured?"""

import logging
from typing import NamedTuple

import numpy as np

from ptrag_sc._validation import absent, unusable
from ptrag_sc.baselines._known import Known, SimilaritySpace, perturbation_kernel
from ptrag_sc.data import Predictor, masked_shifts, matched_control, mean_shifts, measured_targets
from ptrag_sc.data._fields import AnnOrMuData
from ptrag_sc.data._shifts import sampled_means
from ptrag_sc.metrics import pearson_delta
from ptrag_sc.retrieval import KernelRidge, PerturbationKernel

logger = logging.getLogger(__name__)

MIN_MEASURED = 10  # perturbations; with fewer nothing can be left out
FEW_MEASURED = 40
TESTED = 3  # one in this many perturbations is held out


class Refitted(NamedTuple):
    """C perturbations measured in one cell type, for a kernel ridge that is fitted to some of them.

    Its accuracy is the ``pearson_delta_pert`` of shifts without own targets. The centre is the mean shift of all
    perturbations outside the test set, whichever of them a fit has seen, so that fits of all sizes are asked for the
    same.
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
        fit = KernelRidge.fit(self.matrix[np.ix_(seen, seen)], fitted[seen])
        predicted = fit.predict(self.matrix[np.ix_(tested, seen)])  # (m, G)
        centre = np.delete(real, tested, axis=0).mean(0)  # (G,)
        return np.array([pearson_delta(real[t], row, centre) for t, row in zip(tested, predicted, strict=True)])

    def drawn(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return a third of the perturbations to be tested, and the others in random order (numbers)."""
        order = rng.permutation(len(self.names))
        n = len(self.names) // TESTED
        return order[:n], order[n:]
