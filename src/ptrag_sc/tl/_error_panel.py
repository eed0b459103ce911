"""What are the errors of the predicted conditions of one cell type, and the covariances of their noise?"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from ptrag_sc.data import Screen, measured_targets
from ptrag_sc.metrics._error_parts import ErrorNoise, ErrorTerms, Kernel
from ptrag_sc.tl._error_cells import CellMean, PredictedCells, mean_of_cells
from ptrag_sc.tl._error_controls import ControlNoise
from ptrag_sc.tl._error_evidence import Evidence


class _Shares(NamedTuple):
    """Weights of the batches (C, B) in C shifts: those of the cells, and those of the controls subtracted."""

    cells: np.ndarray
    controls: np.ndarray

    def minus(self, other: "_Shares") -> "_Shares":
        """Return the weights in the difference of two shifts."""
        return _Shares(self.cells - other.cells, self.controls - other.controls)


class Panel(NamedTuple):
    """The predicted conditions of one cell type."""

    screen: Screen
    predicted: PredictedCells
    controls: ControlNoise
    cell_type: int  # code in the screen
    category: np.ndarray | None  # (n,) category of every cell of the screen

    def inputs(
        self, labels: list[str], evidence: Evidence, train: pd.DataFrame, *, shared: bool, sep: str | None
    ) -> tuple[ErrorTerms, ErrorNoise]:
        """Return errors and noise of C conditions.

        Parameters
        ----------
        labels
            Their perturbations.
        evidence
            What their neighbours did.
        train
            Training conditions (codes).
        shared
            Whether predictions were learned from the same control cells.
        sep
            Separator of combinations.
        """
        name = str(self.screen.index.cell_types[self.cell_type])
        observed = [self._observed(label) for label in labels]
        rows = self.predicted.conditions()
        rows_of = [rows[label, name] for label in labels]  # predicted cells of each condition
        predicted = [self.predicted.shift(found, self.screen) for found in rows_of]
        share = np.stack([self._shares(label) for label in labels])  # (C, B)
        of_observed = _Shares(share, self.controls.used(share))
        learned = self._learned(labels, evidence, train, shared=shared)
        shift = np.stack([found.mean for found in predicted])  # (C, G)
        if self.predicted.sources is None:
            measured_from = np.stack([self._measured_from(found) for found in rows_of])  # (C, B)
            shift -= measured_from @ self.controls.mean
            learned = _Shares(np.zeros_like(share), measured_from)
        matched = of_observed.controls @ self.controls.mean  # (C, G)
        truth = np.stack([found.mean for found in observed]) - matched
        has = np.array([(label, name) in evidence.neighbours for label in labels])
        said, scatter = np.zeros_like(truth), np.zeros_like(truth)
        for c in np.flatnonzero(has):
            neighbours = evidence.neighbours[labels[c], name]
            said[c], scatter[c] = neighbours.said(evidence.mean[name]), neighbours.scatter()
        in_error = of_observed.minus(learned)
        composition, kernels = self._composition(labels, of_observed.controls, in_error.controls)
        unmatched = in_error.cells - in_error.controls  # (C, B)
        if self.predicted.sources is None:  # batches in predicted cells are those that they are measured from
            unmatched = of_observed.cells - of_observed.controls
        terms = ErrorTerms(
            error=shift - truth,
            own=measured_targets(np.array(labels), self.screen.genes, sep),
            composition=composition,
            evidence=said - truth,
            scatter=scatter,
            has_evidence=has,
        )
        noise = ErrorNoise(
            cells=np.stack([found.square for found in observed]),
            predicted=np.stack([found.square for found in predicted]),
            controls=self.controls.kernel(in_error.controls),
            batches=Kernel(unmatched @ unmatched.T, self.controls.of_batches),
            cells_composition=np.stack([found.covariance for found in observed]),
            controls_composition=kernels,
        )
        return terms, noise

    def _rows(self, label: str) -> np.ndarray:
        """Return the observed cells of a perturbation; none if it is unknown."""
        code = np.flatnonzero(self.screen.index.perturbations == label)
        if not len(code):
            return np.zeros(0, dtype=np.int64)
        return self.screen.index.rows(int(code[0]), self.cell_type)

    def _shares(self, label: str) -> np.ndarray:
        """Return the share of each batch (B,) among the observed cells."""
        return self.controls.shares(self.screen.index.batch[self._rows(label)])

    def _observed(self, label: str) -> CellMean:
        rows = self._rows(label)
        scores = None
        if self.category is not None and self.controls.categories is not None:
            scores = self.controls.categories.mean[self.category[rows]]  # (n, G)
        return mean_of_cells(self.screen.reader.rows(rows).astype(np.float64), self.screen.index.batch[rows], scores)

    def _measured_from(self, rows: np.ndarray) -> np.ndarray:
        """Return the share of each batch (B,) in the controls from which some predicted cells are measured."""
        batch = self.predicted.batch[rows]
        known = batch[batch >= 0]
        share = len(known) / len(batch)
        of_type = self.controls.n / self.controls.n.sum()  # a cell of an unknown batch is measured from all
        return share * self.controls.used(self.controls.shares(known)) + (1 - share) * of_type

    def _learned(self, labels: list[str], evidence: Evidence, train: pd.DataFrame, *, shared: bool) -> _Shares:
        """Return the weights (C, B) of batches in what predictions were learned from.

        It is the mean of the training conditions, plus what sets the weighted neighbours apart from it.
        """
        nothing = np.zeros((len(labels), len(self.controls.n)))
        of_type = self.screen.index.named(train[train["cell_type"] == self.cell_type])
        if not shared or of_type.empty:
            return _Shares(nothing, nothing)
        shares = {str(label): self._shares(str(label)) for label in of_type["perturbation"]}
        mean = np.mean(list(shares.values()), axis=0)  # (B,)
        weights = nothing + mean
        name = str(self.screen.index.cell_types[self.cell_type])
        for c, label in enumerate(labels):
            found = evidence.neighbours.get((label, name))
            if found is not None:
                for neighbour, weight in zip(found.names, found.weights, strict=True):
                    weights[c] += weight * (shares.get(neighbour, mean) - mean)
        return _Shares(weights, self.controls.used(weights))

    def _composition(
        self, labels: list[str], controls: np.ndarray, weight: np.ndarray
    ) -> tuple[np.ndarray, tuple[Kernel, ...]]:
        """Return the shift (C, G) that composition brings, and its covariances with the errors.

        Parameters
        ----------
        labels
            Perturbations (C,).
        controls, weight
            Weights of the batches (C, B) in the matched controls, and in the error.
        """
        categories = self.controls.categories
        if self.category is None or categories is None:
            return np.zeros((len(labels), len(self.screen.genes))), ()
        n_categories = len(categories.mean)
        observed = [np.bincount(self.category[self._rows(label)], minlength=n_categories) for label in labels]
        share = np.stack([count / count.sum() for count in observed])  # (C, K)
        change = share - self.controls.composition(controls)
        return change @ categories.mean, self.controls.composition_kernels(weight, controls, change)
