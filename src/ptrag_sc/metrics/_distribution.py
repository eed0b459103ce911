"""How well is the distribution of cells after a perturbation predicted?"""

import logging
from functools import cache

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist, pdist

from ptrag_sc import nn
from ptrag_sc._validation import unusable
from ptrag_sc.metrics._dense import dense

logger = logging.getLogger(__name__)

MAX_CELLS = 512  # of exact transport, whose cost grows with the third power
ROWS = 2048  # cells whose distances to all others are in memory at once
BANDWIDTHS = (0.5, 1.0, 2.0)  # of the kernel, in squared median distances of the real cells
TINY = 1e-12  # of a variance or squared distance: rounding of identical cells


def energy_distance(real: np.ndarray, predicted: np.ndarray) -> float:
    r"""Unbiased squared energy distance of two samples of cells (Székely and Rizzo 2013).

    :math:`2E|x-y| - E|x-x'| - E|y-y'|` with Euclidean norms and U-statistics. The expectation is 0 for two samples of
    one population, so single values can be slightly negative (identical cells: about -.31 at 64 cells x 50 PCs).

    Parameters
    ----------
    real, predicted
        Cells x features, usually principal components (n, d) and (m, d).

    Returns
    -------
    float
        The distance, in units of the features; 0 in expectation at the truth.

    Raises
    ------
    ValueError
        If either has fewer than two cells.

    Examples
    --------
    >>> import numpy as np
    >>> energy_distance(np.array([[0.0], [2.0]]), np.array([[0.0], [2.0]]))
    -2.0
    """
    _check_size(real, predicted)
    # The loss of training, over one set without padding: (1, n, d) and masks (1, n).
    x, y = (torch.tensor(dense(a), dtype=torch.float64)[None] for a in (predicted, real))
    x_mask, y_mask = (torch.ones(a.shape[:2], dtype=torch.bool) for a in (x, y))
    return float(nn.energy_distance(x, y, x_mask, y_mask))


def wasserstein_1(real: np.ndarray, predicted: np.ndarray) -> float:
    r"""Exact Wasserstein-1 distance of two samples with equal weights (Peyré and Cuturi 2019).

    :math:`\min_\pi \sum_{ij} \pi_{ij} |x_i - y_j|` with Euclidean norms. Two samples of one population have a positive
    distance that falls slowly with their size, so compare at equal sizes, and with the distance of a second sample of
    the truth.

    Parameters
    ----------
    real, predicted
        Cells x features, usually principal components (n, d) and (m, d). Of more than 512 cells only a fixed choice is
        compared, which depends on the cells but not on their order. Samples of different sizes need the package POT;
        without it the larger one is cut to the size of the smaller one.

    Returns
    -------
    float
        The distance, in units of the features.

    Raises
    ------
    ValueError
        If either has no cells.

    Examples
    --------
    >>> import numpy as np
    >>> wasserstein_1(np.array([[0.0], [2.0]]), np.array([[3.0], [1.0]]))
    1.0
    """
    return _transport(real, predicted, "euclidean")


def wasserstein_2(real: np.ndarray, predicted: np.ndarray) -> float:
    r"""Exact Wasserstein-2 distance of two samples with equal weights (Peyré and Cuturi 2019).

    :math:`(\min_\pi \sum_{ij} \pi_{ij} |x_i - y_j|^2)^{1/2}`, with the root. Half of its square is the convention of
    the published PT-RAG tables.

    Parameters
    ----------
    real, predicted
        As in :func:`wasserstein_1`.

    Returns
    -------
    float
        The distance, in units of the features.

    Raises
    ------
    ValueError
        If either has no cells.

    Examples
    --------
    >>> import numpy as np
    >>> wasserstein_2(np.array([[0.0], [2.0]]), np.array([[5.0], [3.0]]))
    3.0
    """
    return float(np.sqrt(_transport(real, predicted, "sqeuclidean")))


def mmd2(real: np.ndarray, predicted: np.ndarray) -> float:
    r"""Unbiased squared maximum mean discrepancy (Gretton et al. 2012).

    :math:`E k(x,x') + E k(y,y') - 2 E k(x,y)` with U-statistics and
    :math:`k(x,y) = \exp(-|x-y|^2 / 2\sigma^2)`, averaged over :math:`\sigma^2` of .5, 1 and 2 times the squared
    median distance of the real cells, so that the prediction does not change the scale. The expectation is 0 for two
    samples of one population, so single values can be slightly negative.

    Parameters
    ----------
    real, predicted
        Cells x features, usually principal components (n, d) and (m, d).

    Returns
    -------
    float
        The discrepancy, at most 2 and without unit.

    Raises
    ------
    ValueError
        If either has fewer than two cells.

    Examples
    --------
    >>> import numpy as np
    >>> mmd2(np.array([[0.0], [1.0]]), np.array([[1e3], [1e3]])) > 1
    True
    """
    _check_size(real, predicted)
    # Distances do not change when both sets move; near the origin products lose fewer digits.
    x, y = (dense(a).astype(np.float64) - dense(real).mean(0) for a in (real, predicted))
    scale = max(float(np.median(pdist(_at_most(x, MAX_CELLS)))) ** 2, TINY)
    # Each cell's kernel with itself is 1 and does not count.
    within = [(_summed_kernel(z, z, scale) - len(z)) / (len(z) * (len(z) - 1)) for z in (x, y)]
    return float(sum(within) - 2 * _summed_kernel(x, y, scale) / (len(x) * len(y)))


def variance_ratio(real: np.ndarray, predicted: np.ndarray) -> float:
    """Predicted over real variance within a set of cells, summed over genes.

    A ratio below 1 means that the predicted cells are too similar to each other, whatever their mean.

    Parameters
    ----------
    real, predicted
        Cells x genes (n, G) and (m, G).

    Returns
    -------
    float
        The ratio of the traces of the covariances (divisor n - 1). If the real cells are identical, 1 if the predicted
        cells are identical too, else NaN.

    Raises
    ------
    ValueError
        If either has fewer than two cells.

    Examples
    --------
    >>> import numpy as np
    >>> variance_ratio(np.array([[0.0], [2.0]]), np.array([[5.0], [6.0]]))
    0.25
    """
    _check_size(real, predicted)
    of_real, of_predicted = (
        float(np.var(dense(cells), axis=0, ddof=1, dtype=np.float64).sum()) for cells in (real, predicted)
    )
    if of_real < TINY and of_predicted < TINY:
        return 1.0
    if of_real < TINY:
        return float("nan")
    return of_predicted / of_real


def _check_size(real: np.ndarray, predicted: np.ndarray, minimum: int = 2) -> None:
    for name, cells in (("real", real), ("predicted", predicted)):
        size = cells.shape[0]  # a sparse matrix has no len
        if size < minimum:
            problem = f"hold {size} cells, {minimum} or more are needed"
            raise ValueError(unusable("The cells", name, problem, "Leave such conditions out."))


def _at_most(cells: np.ndarray, n: int) -> np.ndarray:
    """Return at most n of the cells, a fixed choice that depends on their values, not on their order or names."""
    if len(cells) <= n:
        return cells
    # lexsort takes its last key first, so the features are reversed.
    in_order = cells[np.lexsort(cells.T[::-1])]
    return in_order[np.random.default_rng(0).choice(len(cells), n, replace=False)]


@cache
def _warn_without_pot() -> None:
    """Warn once per process (hence the cache) that samples of unequal size are cut to the smaller one."""
    logger.warning(
        "Wasserstein distances cut samples of unequal size to the smaller one: install POT (ptrag_sc[eval])."
    )


def _transport(real: np.ndarray, predicted: np.ndarray, cost: str) -> float:
    """Return the smallest mean cost of moving one sample onto the other."""
    _check_size(real, predicted, minimum=1)
    x, y = (_at_most(dense(a).astype(np.float64), MAX_CELLS) for a in (real, predicted))
    if len(x) != len(y):
        try:
            import ot
        except ImportError:
            _warn_without_pot()
            n = min(len(x), len(y))
            x = _at_most(x, n)
            y = _at_most(y, n)
        else:
            # By default POT stops after 10^5 iterations, whether the plan is optimal or not.
            return float(ot.emd2([], [], cdist(x, y, cost), numItermax=10**7))  # []: equal weights
    # With equal sizes and weights a best plan moves whole cells, so an assignment finds it without POT.
    costs = cdist(x, y, cost)  # (n, n)
    return float(costs[linear_sum_assignment(costs)].mean())


def _summed_kernel(x: np.ndarray, y: np.ndarray, scale: float) -> float:
    """Return the sum over all pairs of the kernel, averaged over its bandwidths."""
    total = 0.0
    # In pieces, because all distances of a large condition would fill the memory.
    for start in range(0, len(x), ROWS):
        square = cdist(x[start : start + ROWS], y, "sqeuclidean")  # (rows, m)
        total += sum(float(np.exp(square / (-2 * factor * scale)).sum()) for factor in BANDWIDTHS)
    return total / len(BANDWIDTHS)
