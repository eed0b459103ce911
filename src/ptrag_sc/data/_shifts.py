"""What did each perturbation do, on average, to each cell type?"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.linalg import eigh

from ptrag_sc._validation import listed, unusable
from ptrag_sc.data._conditions import ConditionIndex
from ptrag_sc.data._reader import CellReader


class ControlMeans(NamedTuple):
    """Mean control expression."""

    batch: np.ndarray  # (n_batches, G); a batch without controls has its cell type's mean
    cell_type: np.ndarray  # (T, G); NaN where a cell type has no controls
    share: np.ndarray  # (n_batches,) of a batch's own controls in its mean; the rest is its cell type's


class Shifts(NamedTuple):
    """Batch-matched mean shifts of C conditions."""

    shift: np.ndarray  # (C, G), mean(perturbed) - mean(control) at the same batch composition
    n_cells: np.ndarray  # (C,)


class Spread(NamedTuple):
    """How uncertain mean shifts are: the standard error of gene g in condition c is sqrt(variance[t, g] * scale[c])."""

    variance: np.ndarray  # (T, G), between the cells of a condition, pooled over the conditions of a cell type
    scale: np.ndarray  # (C,), 1 / n + sum over control cells of the square of their share in the matched control


class GroupMoments(NamedTuple):
    """Sums of rows in groups."""

    mean: np.ndarray  # (n_groups, G) float64; 0 for a group without rows
    n: np.ndarray  # (n_groups,)
    square: np.ndarray  # (n_pools, G) float64, sum of squared entries of all rows in a pool of groups


def group_moments(reader: CellReader, rows: np.ndarray, group: np.ndarray, n_groups: int, pool: np.ndarray):
    """Return mean rows of groups, and sums of squares in pools of groups, in one pass over ``rows``.

    Parameters
    ----------
    reader
        The expression.
    rows, group
        Rows (n,) and the group of each (n,).
    n_groups
        Number of groups.
    pool
        Pool of each group (n_groups,); an empty array computes no squares.
    """
    order = np.argsort(group, kind="stable")
    rows, group = rows[order], group[order]
    sums, done = np.zeros((n_groups, reader.n_genes)), 0
    squares = np.zeros((int(pool.max(initial=-1)) + 1, reader.n_genes))
    for part, cells in reader.chunks(rows):
        g = group[done : done + len(part)]
        first = np.flatnonzero(np.r_[True, g[1:] != g[:-1]])
        sums[g[first]] += np.add.reduceat(cells, first, axis=0, dtype=np.float64)
        if len(pool):
            of_group = np.add.reduceat(np.square(cells), first, axis=0, dtype=np.float64)
            np.add.at(squares, pool[g[first]], of_group)
        done += len(part)
    count = np.bincount(group, minlength=n_groups)
    return GroupMoments(sums / np.maximum(count, 1)[:, None], count, squares)


def group_means(
    reader: CellReader, rows: np.ndarray, group: np.ndarray, n_groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean rows (n_groups, G) float64 and sizes (n_groups,), in one pass over ``rows``.

    A group without rows has mean 0.
    """
    return group_moments(reader, rows, group, n_groups, np.zeros(0, dtype=np.int64))[:2]


def types_of_batches(index: ConditionIndex) -> np.ndarray:
    """Return the cell type of every batch (n_batches,)."""
    batches, first = np.unique(index.batch, return_index=True)
    types = np.zeros(int(index.batch.max()) + 1, dtype=np.int64)
    types[batches] = index.cell_type[first]
    return types


def control_means(reader: CellReader, index: ConditionIndex, matching: np.ndarray | None = None) -> ControlMeans:
    """Return the mean control expression of every batch and cell type.

    Parameters
    ----------
    reader, index
        The screen.
    matching
        Share of its own controls in the mean of a batch (n_batches,), see :func:`matching_weights`; None: all of it
        where there are any.
    """
    rows, of_type = np.flatnonzero(index.is_control), types_of_batches(index)
    by_type, n = group_means(reader, rows, index.cell_type[rows], len(index.cell_types))
    by_type[n == 0] = np.nan
    by_batch, n = group_means(reader, rows, index.batch[rows], len(of_type))
    share = (n > 0).astype(float) if matching is None else matching
    mixed = share < 1
    by_batch[mixed] *= share[mixed, None]
    by_batch[mixed] += (1 - share[mixed, None]) * by_type[of_type[mixed]]
    return ControlMeans(by_batch, by_type, share)


def matched_control(controls: ControlMeans, batch: np.ndarray) -> np.ndarray:
    """Return the mean control (G,) at the batch composition of some cells, given the batch of each (n,)."""
    count = np.bincount(batch, minlength=len(controls.batch))
    present = np.flatnonzero(count)
    return (count[present] / len(batch)) @ controls.batch[present]


def mean_shifts(
    reader: CellReader, index: ConditionIndex, conditions: pd.DataFrame, controls: ControlMeans | None = None
) -> Shifts:
    """Return the batch-matched mean shift of each condition (codes ``perturbation``, ``cell_type``).

    Raises
    ------
    ValueError
        If one of their cell types has no control cells.
    """
    return _shifts(reader, index, conditions, controls, with_squares=False)[0]


def mean_shifts_and_spread(
    reader: CellReader, index: ConditionIndex, conditions: pd.DataFrame, controls: ControlMeans | None = None
) -> tuple[Shifts, Spread]:
    """Return the mean shifts of :func:`mean_shifts` and how uncertain they are, in one pass over the cells."""
    controls = control_means(reader, index) if controls is None else controls
    shifts, moments = _shifts(reader, index, conditions, controls, with_squares=True)
    t = conditions["cell_type"].to_numpy(dtype=np.int64)
    within = moments.square.copy()
    np.subtract.at(within, t, moments.n[:, None] * np.square(moments.mean))
    freedom = np.bincount(t, weights=moments.n - 1, minlength=len(within))
    variance = np.maximum(within, 0) / np.maximum(freedom, 1)[:, None]
    return shifts, Spread(
        variance, 1 / np.maximum(shifts.n_cells, 1) + _control_scale(index, conditions, controls.share)
    )


def _shifts(reader, index, conditions, controls, *, with_squares: bool) -> tuple[Shifts, GroupMoments]:
    controls = control_means(reader, index) if controls is None else controls
    t = conditions["cell_type"].to_numpy(dtype=np.int64)
    used = np.unique(t)
    bare = index.cell_types[used[np.isnan(controls.cell_type[used]).any(1)]]
    if len(bare):
        remedy = "Add their control cells, or remove these cell types."
        raise ValueError(unusable(f"Cell types {listed(bare)}", "the data", "have no control cells", remedy))
    rows = [index.rows(p, k) for p, k in zip(conditions["perturbation"], t, strict=True)]
    n = np.array([len(r) for r in rows], dtype=np.int64)
    joined = np.concatenate(rows) if len(rows) else np.zeros(0, dtype=np.int64)
    pool = t if with_squares else np.zeros(0, dtype=np.int64)
    moments = group_moments(reader, joined, np.repeat(np.arange(len(rows)), n), len(rows), pool)
    matched = np.stack([matched_control(controls, index.batch[r]) for r in rows]) if len(rows) else 0.0
    if with_squares:  # a row for every cell type, also those without condition
        square = np.zeros((len(index.cell_types), reader.n_genes))
        square[: len(moments.square)] = moments.square
        moments = moments._replace(square=square)
    return Shifts(moments.mean - matched, n), moments


def _control_scale(index: ConditionIndex, conditions: pd.DataFrame, own: np.ndarray) -> np.ndarray:
    """Return the controls' part of each squared standard error (C,), in units of the variance of one cell."""
    of_type = types_of_batches(index)
    n = np.bincount(index.batch[index.is_control], minlength=len(own))
    scale = []
    for p, t in zip(conditions["perturbation"], conditions["cell_type"], strict=True):
        share = np.bincount(index.batch[index.rows(p, t)], minlength=len(own)) / max(1, len(index.rows(p, t)))
        used = (of_type == t) & (n > 0)
        of_cell = share[used] * own[used] / n[used] + (share @ (1 - own)) / n[used].sum()
        scale.append(np.sum(n[used] * np.square(of_cell)))
    return np.array(scale)


def leading_directions(values: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first right singular vectors (R, G) of rows (C, G) and their singular values (R,), R <= n.

    Directions in which the rows do not differ from zero are left out. The largest entry of each vector is positive.
    """
    side = min(values.shape)
    if not side:
        return np.zeros((0, values.shape[1])), np.zeros(0)
    wide = values.shape[1] > values.shape[0]
    gram = values @ values.T if wide else values.T @ values
    square, vectors = eigh(gram, subset_by_index=(max(0, side - n), side - 1))
    square, vectors = square[::-1], vectors[:, ::-1]
    kept = square > 1e-10 * max(square[0], np.finfo(float).tiny)
    singular, vectors = np.sqrt(square[kept]), vectors[:, kept]
    axes = vectors.T @ values / singular[:, None] if wide else vectors.T
    largest = np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1)
    return axes * np.sign(largest), singular
