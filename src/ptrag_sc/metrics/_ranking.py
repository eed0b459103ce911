"""Is a prediction closer to its own perturbation than to the others?"""

import numpy as np

from ptrag_sc.metrics._mean import MIN_NORM

TIE = 1e-9  # relative difference below which two distances are equal
ROWS = 1024  # predictions whose distances are held at once


def pds_cosine(
    real: np.ndarray, predicted: np.ndarray, reference: np.ndarray, perturbed: np.ndarray | None = None
) -> np.ndarray:
    r"""Perturbation discrimination score with the cosine distance of shifts.

    :math:`1 - k / (P - 1)`, where k real perturbations are closer to the prediction than its own; ties count half.
    The perturbed genes of all perturbations are left out, so that no prediction wins by lowering the gene it was told
    (the rule of cell-eval2's competition set). The cosine is blind to scale: report ``effect_slope`` with it.

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
    One score per perturbation (P,): 1 is best, .5 is what knowing nothing scores; NaN for a single perturbation. A
    shift with a norm below 1e-6 has cosine 0 with every other.

    Examples
    --------
    >>> import numpy as np
    >>> real = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> pds_cosine(real, np.array([[3.0, 0.0], [1.0, 0.1], [0.0, 0.0]]), np.zeros(2))
    array([1. , 0. , 0.5])
    """
    kept = slice(None) if perturbed is None else ~perturbed
    x, y = (_directions((means - reference)[:, kept]) for means in (real, predicted))
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
    One share per perturbation (P,): 1 is best, .5 is what knowing nothing scores; NaN for a single perturbation.

    Examples
    --------
    >>> import numpy as np
    >>> real = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    >>> centroid_accuracy(real, np.array([[1.0, 0.0], [1.0, 0.0], [2.0, 2.0]]))
    array([1. , 0.5, 0.5])
    """
    x, y = real - real.mean(0), predicted - real.mean(0)  # near the origin products lose fewer digits
    square = np.square(x).sum(1)
    return _share_behind(lambda rows: square - 2 * y[rows] @ x.T, len(real), scale=float(square.max(initial=0.0)))


def _directions(shifts: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(shifts, axis=1, keepdims=True)
    return np.where(norms < MIN_NORM, 0.0, shifts / np.maximum(norms, MIN_NORM))


def _share_behind(distances, n: int, *, scale: float) -> np.ndarray:
    """Return the share of the others that are farther than the own one (n,), ties half.

    Parameters
    ----------
    distances
        f(rows) -> distances of these predictions to all real perturbations, or anything in the same order.
    n
        Number of perturbations.
    scale
        Size of a distance, for ties.
    """
    if n < 2:
        return np.full(n, np.nan)
    behind = np.empty(n)
    for start in range(0, n, ROWS):
        rows = np.arange(start, min(start + ROWS, n))
        found = distances(rows)
        ahead = found - found[np.arange(len(rows)), rows][:, None]
        tied = np.abs(ahead) <= TIE * scale
        behind[rows] = 1 - (((ahead < 0) & ~tied).sum(1) + (tied.sum(1) - 1) / 2) / (n - 1)
    return behind
