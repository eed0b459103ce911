"""How well is one candidate predicted, judging by what it rests on?"""

from typing import NamedTuple

import numpy as np

COVERED = 0.9  # of left-out perturbations by an interval
TINY = 1e-6
BEYOND = 0.02  # similarity by which a candidate may be farther than all that were checked


class Accuracy(NamedTuple):
    r"""Expected correlation of predicted and observed deviation from the mean shift.

    :math:`\hat r = b_0 + b_1\, \text{similarity} + b_2 \log \text{strength}`, by least squares over perturbations that
    were left out.
    """

    coefficients: np.ndarray  # (3,)
    low: np.ndarray  # (2,) smallest similarity and log strength that it was learned from
    high: np.ndarray  # (2,)
    half_width: float  # of an interval

    @classmethod
    def fit(cls, similarity: np.ndarray, strength: np.ndarray, correlation: np.ndarray) -> "Accuracy | None":
        """Learn from n left-out perturbations; None if too few of them have a prediction that differs from the mean."""
        features = _features(similarity, strength)  # (n, 2)
        used = np.isfinite(correlation) & (strength > TINY)
        n = int(used.sum())
        if n < 2 * (features.shape[1] + 1):
            return None
        features, r = features[used], correlation[used]
        x = np.column_stack([np.ones(n), features])  # (n, 3)
        inverse = np.linalg.pinv(x)
        coefficients = inverse @ r
        # The error of each from a fit to the others; x holds the column of ones, so the leverage has its 1 / n.
        leverage = np.einsum("ni,in->n", x, inverse)
        errors = np.sort(np.abs(r - x @ coefficients) / (1 - leverage).clip(min=TINY))
        k = min(n, int(np.ceil((n + 1) * COVERED)))
        return cls(coefficients, features.min(0), features.max(0), float(errors[k - 1]))

    def is_far(self, similarity: np.ndarray) -> np.ndarray:
        """Return which candidates (Q,) are farther from everything measured than all that were left out."""
        return similarity < self.low[0] - BEYOND

    def expected(self, similarity: np.ndarray, strength: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the expected correlation and its interval (Q,) each; NaN for candidates that are far.

        What lies beyond the other ends of the range that was learned from counts as its end.
        """
        features = _features(similarity, strength).clip(self.low, self.high)
        value = self.coefficients[0] + features @ self.coefficients[1:]
        value[self.is_far(similarity) | (strength <= TINY)] = np.nan
        return tuple(np.clip(value + width, -1.0, 1.0) for width in (0.0, -self.half_width, self.half_width))


def _features(similarity: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Return features (n, 2); a predictor that needs no embedding has a similarity of 0."""
    return np.column_stack([np.nan_to_num(similarity), np.log(np.maximum(strength, TINY))])
