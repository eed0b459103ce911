"""Which perturbations are alike in a kernel, and what does a ridge in it predict?"""

from dataclasses import dataclass

import numpy as np

TEXT_WIDTH = 0.2  # of the kernel on a gene embedding
RESPONSE_WIDTH = 1.0  # of the kernel on responses in other cell types, whose cosines are spread wider
PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
TINY = 1e-12


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
    dual
        Coefficients (P, O) of the centred kernel.
    outcomes
        What was fitted (P, O).
    leverage
        Diagonal (P,) of the map from outcomes to fitted values, with the share 1/P of the mean.
    penalty
        The chosen one, in units of the mean eigenvalue of the centred kernel.
    """

    kernel: np.ndarray
    mean: np.ndarray
    dual: np.ndarray
    outcomes: np.ndarray
    leverage: np.ndarray
    penalty: float

    @classmethod
    def fit(
        cls, kernel: np.ndarray, outcomes: np.ndarray, *, penalties: tuple[float, ...] = PENALTIES
    ) -> "KernelRidge":
        """Fit outcomes (P, O) with the penalty that predicts best what is left out, one row at a time (PRESS)."""
        n = len(kernel)
        mean = outcomes.mean(0)
        values, axes = np.linalg.eigh(centred(kernel, kernel))
        values = values.clip(min=0)
        rotated = axes.T @ (outcomes - mean)  # (P, O)
        best: tuple[float, float] | None = None
        for penalty in penalties:
            shrinkage = values / (values + penalty * max(values.mean(), TINY))  # (P,)
            leverage = axes**2 @ shrinkage + 1 / n
            left = (outcomes - mean - axes @ (shrinkage[:, None] * rotated)) / (1 - leverage).clip(min=TINY)[:, None]
            error = float((left**2).sum())
            if best is None or error < best[0]:
                best = error, penalty
        assert best is not None
        penalty = best[1]
        inverse = 1 / (values + penalty * max(values.mean(), TINY))
        leverage = axes**2 @ (values * inverse) + 1 / n
        return cls(kernel, mean, axes @ (inverse[:, None] * rotated), outcomes, leverage, penalty)

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Return outcomes (Q, O) from the kernel (Q, P) of queries with the known vectors."""
        return self.mean + centred(rows, self.kernel) @ self.dual

    def left_out(self) -> np.ndarray:
        """Return the prediction (P, O) of each row from all others, exactly, the mean refitted too."""
        residual = self.outcomes - self.predict(self.kernel)
        return self.outcomes - residual / (1 - self.leverage).clip(min=TINY)[:, None]
