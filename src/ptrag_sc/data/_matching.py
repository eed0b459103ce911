"""How closely must control cells be matched to the batches of the perturbed cells?"""

from typing import Literal

import numpy as np

from ptrag_sc.data._conditions import ConditionIndex
from ptrag_sc.data._reader import CellReader
from ptrag_sc.data._shifts import group_moments, types_of_batches

MATCHINGS = ("batch", "auto")


def matching_weights(reader: CellReader, index: ConditionIndex, how: Literal["batch", "auto"] = "batch") -> np.ndarray:
    r"""Return the share of its controls that each batch takes from itself (n_batches,); the others come from all.

    With variance :math:`\tau^2` between the batches of a cell type and :math:`\sigma^2` between the control cells of a
    batch (summed over genes), the mean of the n controls of a batch misses its expectation by :math:`\sigma^2 / n`, the
    mean over all batches by about :math:`\tau^2`. The mixture with the share

    .. math:: \tau^2 / (\tau^2 + \sigma^2 / n)

    of the batch misses it least.

    Parameters
    ----------
    reader, index
        The screen.
    how
        ``"batch"``: 1; ``"auto"``: the share above. Always 0 for a batch without controls.
    """
    rows, of_type = np.flatnonzero(index.is_control), types_of_batches(index)
    if how == "batch":
        return (np.bincount(index.batch[rows], minlength=len(of_type)) > 0).astype(float)
    moments, weights = group_moments(reader, rows, index.batch[rows], len(of_type), of_type), np.zeros(len(of_type))
    for t in np.unique(index.cell_type[rows]):
        batches = np.flatnonzero((of_type == t) & (moments.n > 0))
        tau, sigma = variance_components(moments.mean[batches], moments.n[batches], moments.square[t])
        weights[batches] = tau / (tau + sigma / moments.n[batches]) if tau > 0 else 0.0
    return weights


def variance_components(means: np.ndarray, n: np.ndarray, squares: np.ndarray) -> tuple[float, float]:
    """Return the variance between groups and within them, summed over features (one-way random effects, by moments).

    Parameters
    ----------
    means, n
        Mean (g, F) and size (g,) of each group.
    squares
        Sum of squares over all rows (F,).
    """
    total, groups = n.sum(), len(n)
    within = (squares - n @ np.square(means)).sum() / max(total - groups, 1)
    between = (n @ np.square(means - n @ means / total)).sum() / max(groups - 1, 1)
    size = (total - (n**2).sum() / total) / max(groups - 1, 1)
    return max((between - within) / size, 0.0) if groups > 1 else 0.0, max(within, 0.0)
