"""Which perturbations are alike in a kernel, and what does a ridge in it predict?"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotri

TEXT_WIDTH = 0.2  # of the kernel on a gene embedding alone
BESIDE_WIDTH = 1.0  # of the same beside a kernel on responses, which tell most
RESPONSE_WIDTH = 0.5  # of the kernel on responses in other cell types, whose cosines are spread wider
PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
N_SKETCH = 256  # columns of outcomes that a penalty is chosen by
TINY = 1e-12
ALL_ALIKE = 1e-9  # mean eigenvalue below which all known vectors are the same but for rounding


def similarity_kernel(queries: np.ndarray, known: np.ndarray, width: float) -> np.ndarray:
    r"""Return :math:`\exp((\cos - 1) / \text{width})` of vectors (Q, D) with vectors (P, D), as (Q, P)."""
    scaled = [
        vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), TINY) for vectors in (queries, known)
    ]
    return np.exp((scaled[0] @ scaled[1].T - 1) / width)


def centred(rows: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Return a kernel as if the mean of the known vectors in its feature space were the origin.

    Parameters
    ----------
    rows
        Kernel (Q, P) of queries with the known vectors; the kernel of the known vectors itself is centred likewise.
    kernel
        Kernel (P, P) of the known vectors.
    """
    mean = kernel.mean(0)  # (P,)
    return rows - rows.mean(1, keepdims=True) - mean + mean.mean()


@dataclass(frozen=True)
class KernelRidge:
    """A fitted kernel ridge regression with a mean that is not penalised.

    Parameters
    ----------
    kernel
        Kernel (P, P) of the known vectors, not centred.
    mean
        Mean outcome (O,).
    outcomes
        What was fitted (P, O).
    inverse
        Inverse (P, P) of the centred kernel with the penalty on its diagonal.
    diagonal
        That penalty.
    penalty
        The same in units of the mean eigenvalue of the centred kernel, as it was chosen.
    error
        Squared error (P,) of the prediction of each row from all others, in the outcomes that the penalty is chosen by.
    """

    kernel: np.ndarray
    mean: np.ndarray
    outcomes: np.ndarray
    inverse: np.ndarray
    diagonal: float
    penalty: float
    error: np.ndarray

    @classmethod
    def fit(
        cls,
        kernel: np.ndarray,
        outcomes: np.ndarray,
        *,
        penalties: tuple[float, ...] = PENALTIES,
        first: float | None = None,
    ) -> "KernelRidge":
        """Fit outcomes (P, O) with the penalty that predicts best what is left out, one row at a time (PRESS).

        With many outcomes the errors are those of 256 random combinations of them, which keep sums of squares on
        average (Johnson and Lindenstrauss 1984): the choice is the same, in a fraction of the time. For the same reason
        the penalties, which rise, are not all tried: the search starts in their middle, or with ``first``, and goes on
        while errors fall.
        """
        mean = outcomes.mean(0)
        of_deviations = centred(kernel, kernel)
        scale = max(np.trace(of_deviations) / len(kernel), ALL_ALIKE)
        seen = _sketch(outcomes - mean)  # (P, at most 256)

        @cache
        def tried(i: int) -> tuple[float, np.ndarray, np.ndarray]:
            diagonal = penalties[i] * scale
            inverse = _inverse(of_deviations, diagonal)
            error = np.square(_residual(inverse, diagonal, seen)).sum(1)  # (P,)
            return float(error.sum()), error, inverse

        start = len(penalties) // 2 if first is None else penalties.index(first)
        best = _least(lambda i: tried(i)[0], len(penalties), start)
        _, error, inverse = tried(best)
        return cls(kernel, mean, outcomes, inverse, penalties[best] * scale, penalties[best], error)

    @cached_property
    def dual(self) -> np.ndarray:
        """Coefficients (P, O) of the centred kernel."""
        return self.inverse @ (self.outcomes - self.mean)

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Return outcomes (Q, O) from the kernel (Q, P) of queries with the known vectors."""
        return self.mean + centred(rows, self.kernel) @ self.dual

    def left_out(self) -> np.ndarray:
        """Return the prediction (P, O) of each row from all others, exactly, the mean refitted too."""
        return self.outcomes - _residual(self.inverse, self.diagonal, self.outcomes - self.mean)


def _inverse(kernel: np.ndarray, diagonal: float) -> np.ndarray:
    """Return the inverse of a positive semidefinite kernel (P, P) with a positive number added to its diagonal."""
    regular = np.array(kernel, dtype=np.float64, order="F")
    regular[np.diag_indices_from(regular)] += diagonal
    factor, _ = dpotrf(regular, lower=True, clean=True, overwrite_a=True)
    inverse, _ = dpotri(factor, lower=True, overwrite_c=True)  # the upper triangle stays 0
    whole = inverse + inverse.T
    whole[np.diag_indices_from(whole)] /= 2
    return whole


def _residual(inverse: np.ndarray, diagonal: float, deviations: np.ndarray) -> np.ndarray:
    """Return what is wrong (P, O) with the prediction of each row from all others.

    With H the map from outcomes to fitted values, the residual of a row divided by 1 - H_ii. H holds the share 1/P of
    the mean, which was estimated from the row too: without this share a row is predicted from a mean that holds it, and
    the largest penalty seems best.
    """
    left = diagonal * inverse.diagonal() - 1 / len(inverse)  # (P,) 1 - H_ii
    return diagonal * (inverse @ deviations) / left.clip(min=TINY)[:, None]


def _least(error: Callable[[int], float], n: int, start: int) -> int:
    """Return the number, of 0 to n - 1, with the least error, walking downhill from one of them."""
    at = start
    for step in (-1, 1):
        while 0 <= at + step < n and error(at + step) < error(at):
            at += step
    return at


def _sketch(outcomes: np.ndarray) -> np.ndarray:
    """Return up to 256 columns whose sums of squares are, on average, those of all columns (P, O)."""
    if outcomes.shape[1] <= N_SKETCH:
        return outcomes
    # Single precision is enough to compare penalties.
    return (outcomes.astype(np.float32) @ _projection(outcomes.shape[1])).astype(np.float64)


@cache
def _projection(n: int) -> np.ndarray:
    """Return random combinations (n, 256)."""
    normal = np.random.default_rng(0).normal(size=(n, N_SKETCH))
    return (normal / np.sqrt(N_SKETCH)).astype(np.float32)
