"""How does accuracy grow with the size of a screen, beyond what was measured?"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares

# Lowest, first and highest value of a, log b, q and log k.
LOWEST = np.array([0.0, 0.0, 0.3, np.log(0.1)])
FIRST = np.array([0.4, np.log(60.0), 1.0, np.log(20.0)])
TOLERANCE = 1e-6  # relative; accuracies are shown to three digits
HIGHEST = np.array([1.0, np.log(1e4), 3.0, np.log(1e4)])


class Growth(NamedTuple):
    r"""Accuracy of n perturbations with c cells each.

    .. math:: r = a \left(\frac{m}{m + b}\right)^q , \qquad m = n \frac{c}{c + k}

    So c cells make of n perturbations m that are measured without noise, and a is what could be reached with any
    number of these.
    """

    a: float
    b: float
    q: float
    k: float

    def at(self, n: np.ndarray, c: np.ndarray) -> np.ndarray:
        """Return the accuracy of numbers of perturbations and of cells, of one shape."""
        return _growth(np.array([self.a, np.log(self.b), self.q, np.log(self.k)]), n, c)

    @classmethod
    def fit(cls, n: np.ndarray, c: np.ndarray, accuracy: np.ndarray, start: "Growth | None" = None) -> "Growth":
        """Fit the accuracy of some sizes (s,) by least squares."""
        first = FIRST
        if start is not None:
            first = np.array([start.a, np.log(start.b), start.q, np.log(start.k)])
        first = first.clip(LOWEST + 1e-6, HIGHEST - 1e-6)
        found = least_squares(
            lambda values: _growth(values, n, c) - accuracy,
            first,
            jac=lambda values: _slopes(values, n, c),
            bounds=(LOWEST, HIGHEST),
            x_scale=(0.1, 1, 0.3, 1),
            ftol=TOLERANCE,
            xtol=TOLERANCE,
        )
        a, b, q, k = found.x
        return cls(float(a), float(np.exp(b)), float(q), float(np.exp(k)))


def _growth(values: np.ndarray, n: np.ndarray, c: np.ndarray) -> np.ndarray:
    a, log_b, q, log_k = values
    m = n * c / (c + np.exp(log_k))
    return a * (m / (m + np.exp(log_b))) ** q


def _slopes(values: np.ndarray, n: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return the derivatives of the accuracy by the four values (s, 4)."""
    a, log_b, q, log_k = values
    lost = np.exp(log_k) / (c + np.exp(log_k))  # of each perturbation, to noise
    m = n * (1 - lost)
    share = m / (m + np.exp(log_b))
    reached = share**q
    by_m = a * q * reached * (1 - share)  # by log m
    return np.stack([reached, -by_m, a * reached * np.log(share), -by_m * lost], axis=1)


class Measured(NamedTuple):
    """Accuracies that were measured by subsampling."""

    n: np.ndarray  # (s,) perturbations
    c: np.ndarray  # (s,) cells of each
    accuracy: np.ndarray  # (repeats, s, P) of each perturbation that a repeat held out, NaN for the others

    def means(self, weights: np.ndarray | None = None, repeats: np.ndarray | None = None) -> np.ndarray:
        """Return the mean accuracy of each size (s,), each perturbation weighted, over some of the repeats."""
        accuracy = self.accuracy if repeats is None else self.accuracy[repeats]
        weights = np.ones(accuracy.shape[2]) if weights is None else weights
        tested = ~np.isnan(accuracy)
        return (np.nan_to_num(accuracy) @ weights).sum(0) / (tested @ weights).sum(0)

    def bootstrapped(self, n_draws: int, rng: np.random.Generator) -> np.ndarray:
        """Return means (draws, s) with repeats and perturbations drawn anew."""
        n_repeats, _, n_perturbations = self.accuracy.shape
        drawn = []
        for _ in range(n_draws):
            repeats: np.ndarray = rng.choice(n_repeats, size=(n_repeats,))
            # Among the perturbations that these repeats hold out, so that some always have weight.
            tested = np.flatnonzero((~np.isnan(self.accuracy[repeats, 0])).any(0))
            weights = np.bincount(rng.choice(tested, len(tested)), minlength=n_perturbations)
            drawn.append(self.means(weights.astype(float), repeats))
        return np.array(drawn)

    def error_of_doubling(self) -> float:
        """Return how wrong the formula is at the largest number of perturbations if it sees at most half of it."""
        mean = self.means()
        seen = self.n <= self.n.max() / 2
        last = self.n == self.n.max()
        growth = Growth.fit(self.n[seen], self.c[seen], mean[seen])
        return float(np.abs(growth.at(self.n[last], self.c[last]) - mean[last]).mean())
