"""Which measurement would lower the uncertainty about some perturbations most?"""

from typing import NamedTuple

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from ptrag_sc.retrieval._perturbation_kernel import PerturbationKernel

AT_ONCE = 2048  # candidates whose kernel is computed together


class Choice(NamedTuple):
    """Candidates in the order in which they are to be measured."""

    chosen: np.ndarray  # (N,) positions among the candidates
    reduction: np.ndarray  # (N,) by how much each lowers the variance summed over the targets


class RemainingVariance:
    r"""What is uncertain about the targets, and what the measurement of each candidate would change.

    The shift of a perturbation is seen as a Gaussian process with the covariance C of the kernel, centred at the
    targets, and a measurement as its value plus noise of variance 1. To measure candidate j lowers the variance summed
    over the targets t (the integrated variance, Cohn et al. 1996) by

    .. math:: \sum_t C_{tj}^2 / (C_{jj} + 1) ,

    after which :math:`C - C_{\cdot j} C_{j \cdot} / (C_{jj} + 1)` takes the place of C.
    Outcomes do not enter, so a design can be made before anything is measured. Only the covariances of targets with
    candidates are kept, and those of the measurements with both; C itself would be of the size of candidates squared.

    Parameters
    ----------
    kernel
        Kernel of all perturbations.
    targets, candidates, measured
        Numbers of those that one wants to know about (T,), can measure (C,), and has measured (M,).

    Attributes
    ----------
    total
        Variance summed over the targets, given what has been measured.
    """

    def __init__(self, kernel: PerturbationKernel, targets: np.ndarray, candidates: np.ndarray, measured: np.ndarray):
        self._kernel, self._candidates = kernel, candidates
        among = kernel.block(targets, targets)  # (T, T)
        self._of_targets = among.mean(1, dtype=np.float64)  # (T,) mean over the targets
        self._grand = float(self._of_targets.mean())
        parts = [slice(start, start + AT_ONCE) for start in range(0, len(candidates), AT_ONCE)]
        self._of_candidates = np.empty(len(candidates))  # (C,)
        self._cross = np.empty((len(targets), len(candidates)), dtype=among.dtype)  # (T, C)
        for part in parts:
            block = kernel.block(targets, candidates[part])
            self._of_candidates[part] = block.mean(0, dtype=np.float64)
            self._cross[:, part] = self._centred(block, self._of_targets, self._of_candidates[part])
        self._variance = kernel.diagonal(candidates) - 2 * self._of_candidates + self._grand  # (C,)
        of_targets = kernel.diagonal(targets) - 2 * self._of_targets + self._grand  # (T,)
        # What has been measured: its covariances, whitened, so that their products are what it explains.
        self._known = np.zeros((len(measured), len(candidates)), dtype=among.dtype)  # (M, C)
        if len(measured):
            of_measured = kernel.block(measured, targets).mean(1, dtype=np.float64)  # (M,)
            own = self._centred(kernel.block(measured, measured), of_measured, of_measured)
            root = cholesky(own + np.eye(len(own), dtype=own.dtype), lower=True)
            to_targets = self._centred(kernel.block(measured, targets), of_measured, self._of_targets)
            explained = solve_triangular(root, to_targets, lower=True)  # (M, T)
            of_targets -= np.square(explained, dtype=np.float64).sum(0)
            for part in parts:
                block = kernel.block(measured, candidates[part])
                block = self._centred(block, of_measured, self._of_candidates[part])
                self._known[:, part] = solve_triangular(root, block, lower=True)
                self._cross[:, part] -= explained.T @ self._known[:, part]
        self._variance -= np.einsum("mc,mc->c", self._known, self._known, dtype=np.float64)
        # (C,) sum over the targets of the squared covariance
        self._square = np.einsum("tc,tc->c", self._cross, self._cross, dtype=np.float64)
        self.total = float(of_targets.sum())
        self._taken_targets = np.zeros((0, len(targets)))  # (N, T) of the N measurements so far
        self._taken = np.zeros((0, len(candidates)))  # (N, C)

    def _centred(self, block: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return a kernel (r, c) with the mean of the targets as origin, given means over the targets (r,), (c,)."""
        block -= (rows - self._grand).astype(block.dtype)[:, None]
        block -= columns.astype(block.dtype)
        return block

    @property
    def reduction(self) -> np.ndarray:
        """By how much each candidate (C,) would lower the variance summed over the targets."""
        return self._square.clip(min=0) / (self._variance + 1)

    def measure(self, j: int) -> float:
        """Measure a candidate and return by how much that lowered the variance summed over the targets.

        The covariances of targets with candidates stay as they are; what measurements take from them is subtracted
        where it is used, so a measurement costs one pass over them.
        """
        scale = np.sqrt(self._variance[j] + 1)
        with_targets = self._cross[:, j] - self._taken_targets.T @ self._taken[:, j]  # (T,)
        with_targets = with_targets / scale
        row = self._kernel.block(self._candidates[[j]], self._candidates)[0].astype(np.float64)
        row += self._grand - self._of_candidates[j] - self._of_candidates
        row -= self._known[:, j] @ self._known + self._taken[:, j] @ self._taken
        row /= scale  # (C,)
        shared = (
            with_targets.astype(self._cross.dtype) @ self._cross - (self._taken_targets @ with_targets) @ self._taken
        )
        removed = float(with_targets @ with_targets)
        self._square += row * (row * removed - 2 * shared)
        self._variance -= np.square(row)
        self._taken_targets = np.vstack([self._taken_targets, with_targets])
        self._taken = np.vstack([self._taken, row])
        return removed

    def choose(
        self, n: int, *, first: np.ndarray | None = None, costs: np.ndarray | None = None, budget: float = np.inf
    ) -> Choice:
        """Measure one candidate after the other, always the one that lowers the variance most for its cost.

        Parameters
        ----------
        n
            How many at most, at most C.
        first
            Positions of candidates that are measured before any is chosen.
        costs
            Cost of each candidate (C,); None: 1.
        budget
            What all may cost together; the choice ends when no candidate is left that it can pay.
        """
        costs = np.ones(len(self._candidates)) if costs is None else costs
        open_ = np.ones(len(self._candidates), dtype=bool)
        chosen: list[int] = []
        reduction: list[float] = []
        forced = [] if first is None else first.tolist()
        while len(chosen) < n:
            if forced:
                j = int(forced.pop(0))
            else:
                payable = open_ & (costs <= budget)
                if not payable.any():
                    break
                j = int(np.where(payable, self.reduction / costs, -np.inf).argmax())
            open_[j] = False
            budget -= costs[j]
            chosen.append(j)
            reduction.append(self.measure(j))
        return Choice(np.array(chosen, dtype=np.int64), np.array(reduction))
