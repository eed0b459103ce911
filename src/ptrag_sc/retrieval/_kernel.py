"""Which perturbations are alike in a kernel, and what does a ridge in it predict?"""

from dataclasses import dataclass

import numpy as np

TEXT_WIDTH = 0.2  # of the kernel on a gene embedding alone
BESIDE_WIDTH = 1.0  # of the same beside a kernel on responses, which tell most
RESPONSE_WIDTH = 0.5  # of the kernel on responses in other cell types, whose cosines are spread wider
PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
N_SKETCH = 256  # columns of outcomes that a penalty is chosen by
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
        Diagonal (P,) of the map from outcomes to fitted values, with the share 1/P of the mean: it was estimated from
        the row too. Without this share a row is predicted from a mean that holds it, and the largest penalty seems
        best.
    penalty
        The chosen one, in units of the mean eigenvalue of the centred kernel.
    error
        Squared error (P,) of the prediction of each row from all others, in the outcomes that the penalty is chosen by.
    """

    kernel: np.ndarray
    mean: np.ndarray
    dual: np.ndarray
    outcomes: np.ndarray
    leverage: np.ndarray
    penalty: float
    error: np.ndarray

    @classmethod
    def fit(
        cls, kernel: np.ndarray, outcomes: np.ndarray, *, penalties: tuple[float, ...] = PENALTIES
    ) -> "KernelRidge":
        """Fit outcomes (P, O) with the penalty that predicts best what is left out, one row at a time (PRESS).

        With many outcomes the errors are those of 256 random combinations of them, which keep sums of squares on
        average (Johnson and Lindenstrauss 1984): the choice is the same, in a fraction of the time.
        """
        mean = outcomes.mean(0)
        values, axes = np.linalg.eigh(centred(kernel, kernel))
        values = values.clip(min=0)
        scale = max(values.mean(), TINY)
        seen = _sketch(outcomes - mean)  # (P, at most 256)
        rotated = axes.T @ seen
        squared = axes**2
        best: tuple[float, np.ndarray, np.ndarray] | None = None
        for penalty in penalties:
            shrinkage = values / (values + penalty * scale)  # (P,)
            leverage = squared @ shrinkage + 1 / len(kernel)
            residual = seen - axes @ (shrinkage[:, None] * rotated)
            error = np.square(residual / (1 - leverage).clip(min=TINY)[:, None]).sum(1)  # (P,)
            if best is None or error.sum() < best[1].sum():
                best = penalty, error, leverage
        assert best is not None
        penalty, error, leverage = best
        inverse = (axes / (values + penalty * scale)) @ axes.T  # (P, P)
        return cls(kernel, mean, inverse @ (outcomes - mean), outcomes, leverage, penalty, error)

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Return outcomes (Q, O) from the kernel (Q, P) of queries with the known vectors."""
        return self.mean + centred(rows, self.kernel) @ self.dual

    def left_out(self) -> np.ndarray:
        """Return the prediction (P, O) of each row from all others, exactly, the mean refitted too."""
        residual = self.outcomes - self.predict(self.kernel)
        return self.outcomes - residual / (1 - self.leverage).clip(min=TINY)[:, None]


def _sketch(outcomes: np.ndarray) -> np.ndarray:
    """Return up to 256 columns whose sums of squares are, on average, those of all columns (P, O)."""
    if outcomes.shape[1] <= N_SKETCH:
        return outcomes
    normal = np.random.default_rng(0).normal(size=(outcomes.shape[1], N_SKETCH))
    return outcomes @ normal / np.sqrt(N_SKETCH)
