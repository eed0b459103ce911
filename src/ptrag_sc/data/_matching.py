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
    """Return the variance between groups and within them, summed over features (one-way random effects, by moments).

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
    within = (squares - n @ np.square(means)).sum() / max(total - groups, 1)
    between = (n @ np.square(means - n @ means / total)).sum() / max(groups - 1, 1)
    size = (total - (n**2).sum() / total) / max(groups - 1, 1)  # of a group: n if all have n rows
    tau = 0.0
    if groups > 1:
        tau = max((between - within) / size, 0.0)
    return tau, max(within, 0.0)
