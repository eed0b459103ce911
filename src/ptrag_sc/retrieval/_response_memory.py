r"""What did the experiment observe: in which cell type did which perturbation do what?

Entries are batch-matched mean shifts less the mean shift of their cell type, shrunk by empirical Bayes (Efron & Morris
1973): with squared standard error :math:`s^2` and variance :math:`\tau^2` between perturbations, estimated by moments,
an entry keeps :math:`\tau^2 / (\tau^2 + s^2)` of itself. Uncertain entries are shrunk more; there is no tuning
parameter.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ptrag_sc.data import Shifts, Spread

MIN_RESPONSE = 1e-6  # a response below this norm has no direction


class ResponseMemory(NamedTuple):
    """Measured responses of P perturbations in T cell types, in L directions; an entry without cells is 0."""

    entries: Float[Tensor, "P T L"]  # deviation from the mean shift, in the leading directions, shrunk in each
    n_cells: Int[Tensor, "P T"]
    between: Float[Tensor, "T L"]  # variance between perturbations
    mean: Float[Tensor, "T G"]  # mean shift of the cell type
    controls: Float[Tensor, "T G"]  # mean control of the cell type
    directions: Float[Tensor, "L G"]


def between_perturbations(
    values: np.ndarray, squared_error: np.ndarray, group: np.ndarray, n_groups: int
) -> np.ndarray:
    """Return the variance (n_groups, F) of deviations beyond their errors, by moments; 0 in an empty group.

    Parameters
    ----------
    values, squared_error
        Deviations (C, F) and their squared standard errors (C, F).
    group
        Group of each row (C,).
    n_groups
        Number of groups.
    """
    excess = np.zeros((n_groups, values.shape[1]))
    np.add.at(excess, group, np.square(values) - squared_error)
    return np.maximum(excess, 0) / np.maximum(np.bincount(group, minlength=n_groups), 1)[:, None]


def shrink(values: np.ndarray, squared_error: np.ndarray, between: np.ndarray) -> np.ndarray:
    """Return deviations (C, F) times their reliability, given the variance (C, F) between perturbations."""
    total = between + squared_error
    return values * np.divide(between, total, out=np.zeros_like(total), where=total > 0)


def squared_errors(
    variance: np.ndarray, scale: np.ndarray, cell_type: np.ndarray, directions: np.ndarray
) -> np.ndarray:
    """Return squared standard errors (C, L) along orthonormal directions (L, G).

    Parameters
    ----------
    variance
        Variance between cells of each cell type (T, G).
    scale
        Squared standard error of each condition in units of it (C,): a column of :class:`ptrag_sc.data.Spread`.
    cell_type, directions
        Cell type of each condition (C,), and the directions.
    """
    return (variance @ np.square(directions).T)[cell_type] * scale[:, None]


def build_memory(
    perturbation: np.ndarray,
    cell_type: np.ndarray,
    shape: tuple[int, int],
    *,
    shifts: Shifts,
    spread: Spread,
    controls: np.ndarray,
    directions: np.ndarray,
) -> ResponseMemory:
    """Build the memory from C training conditions.

    Parameters
    ----------
    perturbation, cell_type
        Row and column of each condition (C,).
    shape
        P and T.
    shifts, spread
        Of the conditions; the spread has a row for each of the T cell types.
    controls
        Mean controls (T, G).
    directions
        Orthonormal rows (L, G).
    """
    n_types = shape[1]
    count = np.bincount(cell_type, minlength=n_types)  # (T,) conditions
    mean = np.zeros((n_types, shifts.shift.shape[1]))  # (T, G)
    np.add.at(mean, cell_type, shifts.shift)
    # A cell type without conditions has the mean shift of all.
    mean = np.where(count[:, None] > 0, mean / np.maximum(count, 1)[:, None], shifts.shift.mean(0))
    deviation = (shifts.shift - mean[cell_type]) @ directions.T  # (C, L)
    squared_error = squared_errors(spread.variance, spread.contrast, cell_type, directions)
    between = between_perturbations(deviation, squared_error, cell_type, n_types)
    entries = np.zeros((*shape, len(directions)))  # (P, T, L)
    entries[perturbation, cell_type] = shrink(deviation, squared_error, between[cell_type])
    n_cells = np.zeros(shape, dtype=np.int64)  # (P, T)
    n_cells[perturbation, cell_type] = shifts.n_cells
    return ResponseMemory(
        entries=_as_float32(entries),
        n_cells=torch.as_tensor(n_cells),
        between=_as_float32(between),
        mean=_as_float32(mean),
        controls=_as_float32(controls),
        directions=_as_float32(directions),
    )


def _as_float32(values: np.ndarray) -> Tensor:
    return torch.as_tensor(np.asarray(values, dtype=np.float32))


def response_scale(memory: ResponseMemory) -> Float[Tensor, ""]:
    """Return the factor that brings observed shifts in the leading directions to a root mean square of 1."""
    observed = memory.n_cells > 0
    shifts = (memory.entries + memory.mean @ memory.directions.T)[observed]
    if not shifts.numel():  # no perturbation of the screen changed anything, so there is no direction
        return torch.ones((), dtype=shifts.dtype)
    return 1 / torch.square(shifts).mean().sqrt().clamp(min=1e-6)
