"""How do expected errors follow from the evidence behind a prediction, and where does that hold?"""

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from ptrag_sc.retrieval import fit_ridge

OUTCOMES = ("pearson_delta", "energy_distance")
LIMITS = ((-1.0, 1.0), (0.0, math.inf))  # smallest and largest expectation of each outcome
FEATURES = ("similarity", "similarity_response", "weight_own", "log_effective_number", "log_strength")
CONFIDENCE = 0.9
PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, math.inf)  # with the last one the expected error is the mean
BEYOND = 0.5  # share of its calibrated range by which a feature may lie outside it
TINY = 1e-6  # of a feature: rounding


class Regression(NamedTuple):
    """A linear map of F features to O outcomes, and the range of the features that it was learned from."""

    center: np.ndarray  # (F,)
    scale: np.ndarray  # (F,), inf for a feature that does not vary
    coefficients: np.ndarray  # (F, O)
    mean: np.ndarray  # (O,)
    low: np.ndarray  # (F,)
    high: np.ndarray  # (F,)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return the expected outcomes (N, O) of features (N, F), each within its limits."""
        standardised = (x - self.center) / self.scale
        lowest, highest = np.transpose(LIMITS)
        return (self.mean + standardised @ self.coefficients).clip(lowest, highest)

    def covers(self, x: np.ndarray) -> np.ndarray:
        """Return whether features (N, F) are near enough to those that were learned from (N,)."""
        margin = BEYOND * (self.high - self.low) + TINY  # (F,)
        return ((x >= self.low - margin) & (x <= self.high + margin)).all(1)

    def to_json(self) -> dict[str, Any]:
        """Return lists and numbers."""
        return {name: _without_infinity(values.tolist()) for name, values in self._asdict().items()}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Regression":
        """Return the regression from the value of :meth:`to_json`."""
        arrays = {name: np.array(saved[name], dtype=float) for name in cls._fields}  # None becomes NaN
        return cls(**arrays)._replace(scale=np.nan_to_num(arrays["scale"], nan=np.inf))


def _without_infinity(values: list[Any]) -> list[Any]:
    """Return numbers with None for infinity, which JSON has not."""
    return [None if value == math.inf else value for value in values]


def regress(x: np.ndarray, y: np.ndarray) -> Regression:
    """Fit outcomes (N, O) to features (N, F), each outcome with its own penalty."""
    center = x.mean(0)
    spread = x.std(0)
    scale = np.where(spread > TINY, spread, np.inf)  # a feature that does not vary becomes 0
    mean = y.mean(0)
    features = torch.as_tensor((x - center) / scale)  # (N, F)
    outcomes = torch.as_tensor(y - mean).split(1, dim=1)  # (N, 1) each
    fits = [fit_ridge(features, outcome, penalties=PENALTIES, centred=True) for outcome in outcomes]
    coefficients = torch.cat([fit.coefficients for fit in fits], dim=1).numpy()  # (F, O)
    return Regression(center, scale, coefficients, mean, x.min(0), x.max(0))


def features_of(support: pd.DataFrame) -> np.ndarray:
    """Return the features (N, F) of a support table."""
    table = support.assign(
        log_effective_number=np.log1p(support["effective_number"]),
        log_strength=np.log(support["strength"].clip(lower=1e-3)),
    )
    return table[list(FEATURES)].fillna(0.0).to_numpy(float)


def half_width(conditions: pd.DataFrame, outcome: str) -> float:
    """Return half the width of an interval, by the jackknife (Barber et al. 2021); inf with too few perturbations.

    The conditions of one perturbation count as one observation, because they are not independent.

    Parameters
    ----------
    conditions
        Validation conditions: ``perturbation``, ``<outcome>`` and ``expected_<outcome>``, from all other perturbations.
    outcome
        One of ``OUTCOMES``.
    """
    size = conditions.groupby("perturbation", observed=True)["perturbation"].transform("size").to_numpy()  # (N,)
    errors = (conditions[outcome] - conditions[f"expected_{outcome}"]).abs().to_numpy()  # (N,)
    order = np.argsort(errors)
    # The jackknife takes the k-th smallest of n errors. Each condition has a weight, so k is a sum of weights.
    k = math.ceil((conditions["perturbation"].nunique() + 1) * CONFIDENCE)
    reached = (1 / size[order]).cumsum() >= k - 1e-9  # (N,), rounding aside
    if not reached.any():
        return math.inf
    return float(errors[order][reached.argmax()])
