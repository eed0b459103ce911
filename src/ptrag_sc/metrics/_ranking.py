"""Is a prediction closer to its own perturbation than to the others?"""

from collections.abc import Callable

import numpy as np

from ptrag_sc.metrics._mean import MIN_NORM

TIE = 1e-9  # relative difference below which two distances are equal
ROWS = 1024  # predictions whose distances are held at once


def pds_cosine(
    real: np.ndarray, predicted: np.ndarray, reference: np.ndarray, perturbed: np.ndarray | None = None
) -> np.ndarray:
    r"""Perturbation discrimination score with the cosine distance of shifts.

    :math:`1 - k / (P - 1)`, where k real perturbations are closer to the prediction than its own; ties count half.
    The perturbed genes of all perturbations are left out, so that no prediction wins just by lowering the perturbed
    gene (the rule of cell-eval2's competition set). The cosine ignores scale, so report ``effect_slope`` with it.

    Parameters
    ----------
    real, predicted
        Mean expression of the perturbations of one cell type (P, G), in the same order.
    reference
        Mean control (G,).
    perturbed
        Genes to leave out (G,), bool; None leaves out none.

    Returns
    -------
    numpy.ndarray
        One score per perturbation (P,). 1 is best, and a prediction without information scores .5; NaN for a single
        perturbation. A shift with a norm below 1e-6 has cosine 0 with every other.

    Examples
    --------
    >>> import numpy as np
    >>> real = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> pds_cosine(real, np.array([[3.0, 0.0], [1.0, 0.1], [0.0, 0.0]]), np.zeros(2))
    array([1. , 0. , 0.5])
    """
    kept = np.ones(real.shape[1], dtype=bool)  # (G,)
    if perturbed is not None:
        kept = ~perturbed
    x = _directions((real - reference)[:, kept])  # (P, G')
    y = _directions((predicted - reference)[:, kept])
    return _share_behind(lambda rows: 1 - y[rows] @ x.T, len(real), scale=1.0)


def centroid_accuracy(real: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Share of the other real centroids that are farther from the prediction than its own (Viñas Torné et al. 2025).

    Euclidean distances over all genes; ties count half.

    Parameters
    ----------
    real, predicted
        Mean expression of the perturbations of one cell type (P, G), in the same order.

    Returns
    -------
    numpy.ndarray
        One share per perturbation (P,). 1 is best, and a prediction without information scores .5; NaN for a single
        perturbation.

    Examples
    --------
    >>> import numpy as np
    >>> real = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    >>> centroid_accuracy(real, np.array([[1.0, 0.0], [1.0, 0.0], [2.0, 2.0]]))
    array([1. , 0.5, 0.5])
    """
    # Distances do not change when both sets move; near the origin products lose fewer digits.
    x = real - real.mean(0)  # (P, G)
    y = predicted - real.mean(0)
    square = np.square(x).sum(1)  # (P,)
    # |y|^2 is missing, because it is the same for all real centroids.
    return _share_behind(lambda rows: square - 2 * y[rows] @ x.T, len(real), scale=float(square.max(initial=0.0)))


def _directions(shifts: np.ndarray) -> np.ndarray:
    """Return rows of unit norm (P, G), zero if a shift is only rounding."""
    norms = np.linalg.norm(shifts, axis=1, keepdims=True)
    return np.where(norms < MIN_NORM, 0.0, shifts / np.maximum(norms, MIN_NORM))


def _share_behind(distances: Callable[[np.ndarray], np.ndarray], n: int, *, scale: float) -> np.ndarray:
    """Return the share of the others that are farther than the own one (n,), ties half.

    Parameters
    ----------
    distances
        f(rows (r,)) -> distances (r, n) of these predictions to all real perturbations, or any function that rises
        with the distance.
    n
        Number of perturbations.
    scale
        Size of a distance, for ties.
    """
    if n < 2:
        return np.full(n, np.nan)
    behind = np.empty(n)
    # In pieces, because (P, P) distances of a genome-wide screen would fill the memory.
    for start in range(0, n, ROWS):
        rows = np.arange(start, min(start + ROWS, n))
        found = distances(rows)  # (r, n)
        ahead = found - found[np.arange(len(rows)), rows][:, None]  # negative: closer than the own one
        tied = np.abs(ahead) <= TIE * scale  # includes the own one
        behind[rows] = 1 - (((ahead < 0) & ~tied).sum(1) + (tied.sum(1) - 1) / 2) / (n - 1)
    return behind
