"""How closely must control cells be matched to the batches of the perturbed cells?"""

from typing import Literal, NamedTuple

import numpy as np

from ptrag_sc.data._conditions import ConditionIndex
from ptrag_sc.data._reader import CellReader
from ptrag_sc.data._shifts import group_moments, types_of_batches

MATCHINGS = ("batch", "auto")


def matching_weights(reader: CellReader, index: ConditionIndex, how: Literal["batch", "auto"] = "batch") -> np.ndarray:
    r"""Return the share of its controls that each batch takes from itself (n_batches,); the others come from all.

    With variance :math:`\tau^2` between the batches of a cell type and :math:`\sigma^2` between the control cells of a
    batch (summed over genes), the mean of the n controls of a batch has the squared error :math:`\sigma^2 / n`, and the
    mean over all batches about :math:`\tau^2`. The mixture has the smallest error if the batch's own share is

    .. math:: \tau^2 / (\tau^2 + \sigma^2 / n)

    Parameters
    ----------
    reader, index
        The screen.
    how
        ``"batch"``: 1; ``"auto"``: the share above. Always 0 for a batch without controls.
    """
    rows = np.flatnonzero(index.is_control)
    of_type = types_of_batches(index)  # (n_batches,)
    # This needs labels only, so it spares the pass over the cells below.
    if how == "batch":
        return (np.bincount(index.batch[rows], minlength=len(of_type)) > 0).astype(float)
    return batch_variances(reader, index).own_share


class BatchVariances(NamedTuple):
    """How control cells vary, summed over genes."""

    between: np.ndarray  # (T,) variance between the batches of a cell type; 0 with a single one
    within: np.ndarray  # (T,) variance between the control cells of a batch
    own_share: np.ndarray  # (n_batches,) share of its controls that a batch takes from itself; 0 without controls


def batch_variances(reader: CellReader, index: ConditionIndex) -> BatchVariances:
    """Return the variances of the controls in one pass over them, and the shares that follow."""
    rows = np.flatnonzero(index.is_control)
    of_type = types_of_batches(index)  # (n_batches,)
    # Squares are pooled by cell type, whose batches share one variance between cells.
    moments = group_moments(reader, rows, index.batch[rows], len(of_type), of_type)
    weights = np.zeros(len(of_type))  # (n_batches,)
    between, within = np.zeros(len(index.cell_types)), np.zeros(len(index.cell_types))
    for t in np.unique(index.cell_type[rows]):
        batches = np.flatnonzero((of_type == t) & (moments.n > 0))
        tau, sigma = variance_components(moments.mean[batches], moments.n[batches], moments.square[t])
        between[t], within[t] = tau, sigma
        if tau > 0:  # else the batches do not differ, and all controls of the cell type serve each
            weights[batches] = tau / (tau + sigma / moments.n[batches])
    return BatchVariances(between, within, weights)


def variance_components(means: np.ndarray, n: np.ndarray, squares: np.ndarray) -> tuple[float, float]:
    """Return the variance between groups and within them, summed over features, neither below 0.

    The parameters are those of :func:`variances_of_features`.
    """
    tau, sigma = variances_of_features(means, n, squares)
    return max(float(tau.sum()), 0.0), max(float(sigma.sum()), 0.0)


def variances_of_features(means: np.ndarray, n: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the variance between groups and within them (F,), without bias, so that the first can be below 0.

    One-way random effects, by moments. With a single group the variance between groups is 0.

    Parameters
    ----------
    means, n
        Mean (g, F) and size (g,) of each group.
    squares
        Sum of squares over all rows (F,).
    """
    total = n.sum()
    groups = len(n)
    # Mean squares of a one-way analysis of variance: E within = sigma^2, E between = sigma^2 + size * tau^2.
    within = (squares - n @ np.square(means)) / max(total - groups, 1)
    if groups < 2:
        return np.zeros(means.shape[1]), within
    between = n @ np.square(means - n @ means / total) / (groups - 1)
    size = (total - (n**2).sum() / total) / (groups - 1)  # of a group: n if all have n rows
    return (between - within) / size, within
