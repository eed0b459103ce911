"""What did each perturbation do, on average, to each cell type?"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.linalg import eigh

from ptrag_sc._validation import listed, unusable
from ptrag_sc.data._conditions import ConditionIndex
from ptrag_sc.data._moments import GroupMoments, GroupSums
from ptrag_sc.data._reader import CellReader, go_over


class ControlMeans(NamedTuple):
    """Mean control expression."""

    batch: np.ndarray  # (n_batches, G); a batch without controls has its cell type's mean
    cell_type: np.ndarray  # (T, G); NaN where a cell type has no controls
    share: np.ndarray  # (n_batches,) weight of the batch's own controls; the remainder comes from all of the cell type


class Shifts(NamedTuple):
    """Batch-matched mean shifts of C conditions."""

    shift: np.ndarray  # (C, G), mean(perturbed) - mean(control) at the same batch composition
    n_cells: np.ndarray  # (C,)


class Spread(NamedTuple):
    """How uncertain mean shifts are: the standard error of gene g in condition c is sqrt(variance[t, g] * scale[c])."""

    variance: np.ndarray  # (T, G), between the cells of a condition, pooled over the conditions of a cell type
    scale: np.ndarray  # (C,), 1 / n + sum over control cells of the square of their share in the matched control
    contrast: np.ndarray  # (C,), the same of the deviation from the mean shift of the cell type


def group_moments(
    reader: CellReader, rows: np.ndarray, group: np.ndarray, n_groups: int, pool: np.ndarray
) -> GroupMoments:
    """Return mean rows of groups, and sums of squares in pools of groups, in one pass over ``rows``.

    The parameters are those of :class:`GroupSums`.
    """
    sums = GroupSums(rows, group, n_groups, pool)
    go_over(reader, [sums], np.unique(rows), text="Averaging")
    return sums.moments(reader.n_genes)


def group_means(
    reader: CellReader, rows: np.ndarray, group: np.ndarray, n_groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean rows (n_groups, G) float64 and sizes (n_groups,), in one pass over ``rows``.

    A group without rows has mean 0.
    """
    moments = group_moments(reader, rows, group, n_groups, pool=np.zeros(0, dtype=np.int64))
    return moments.mean, moments.n


def sampled_means(reader: CellReader, rows: list[np.ndarray]) -> np.ndarray:
    """Return the mean of each list of rows (n_groups, G) float64.

    A sparse matrix in memory is not made dense: the means are one product with a sparse matrix of shares.
    """
    n = np.array([len(part) for part in rows])  # (n_groups,)
    joined = np.concatenate(rows)
    if not sp.issparse(reader.matrix):
        return group_means(reader, joined, np.repeat(np.arange(len(rows)), n), len(rows))[0]
    shares = sp.csr_matrix((np.repeat(1 / n, n), np.arange(len(joined)), np.append(0, np.cumsum(n))))
    return reader.in_order((shares @ reader.matrix[joined]).toarray())


def types_of_batches(index: ConditionIndex) -> np.ndarray:
    """Return the cell type of every batch (n_batches,)."""
    batches, first = np.unique(index.batch, return_index=True)
    # A batch belongs to one cell type (see ConditionIndex.batch), so its first cell has that type.
    types = np.zeros(int(index.batch.max()) + 1, dtype=np.int64)  # (n_batches,)
    types[batches] = index.cell_type[first]
    return types


def control_means(reader: CellReader, index: ConditionIndex, matching: np.ndarray | None = None) -> ControlMeans:
    """Return the mean control expression of every batch and cell type.

    Parameters
    ----------
    reader, index
        The screen.
    matching
        Share of its own controls in the mean of a batch (n_batches,), see :func:`matching_weights`. None: 1 if the
        batch has any controls, else 0.
    """
    rows = np.flatnonzero(index.is_control)
    of_type = types_of_batches(index)  # (n_batches,)
    by_type, n_of_type = group_means(reader, rows, index.cell_type[rows], len(index.cell_types))  # (T, G), (T,)
    by_type[n_of_type == 0] = np.nan
    by_batch, n_of_batch = group_means(reader, rows, index.batch[rows], len(of_type))  # (n_batches, G), (n_batches,)
    share = matching
    if share is None:
        share = (n_of_batch > 0).astype(float)
    # Most batches keep their own mean; only the other rows are computed.
    mixed = share < 1
    by_batch[mixed] *= share[mixed, None]
    by_batch[mixed] += (1 - share[mixed, None]) * by_type[of_type[mixed]]
    return ControlMeans(by_batch, by_type, share)


def matched_control(controls: ControlMeans, batch: np.ndarray) -> np.ndarray:
    """Return the mean control (G,) at the batch composition of some cells, given the batch of each (n,)."""
    count = np.bincount(batch, minlength=len(controls.batch))  # (n_batches,)
    present = np.flatnonzero(count)  # an absent batch may have a mean of NaN
    return (count[present] / len(batch)) @ controls.batch[present]


def mean_shifts(
    reader: CellReader,
    index: ConditionIndex,
    conditions: pd.DataFrame,
    controls: ControlMeans | None = None,
    sums: GroupSums | None = None,
) -> Shifts:
    """Return the batch-matched mean shift of each condition (codes ``perturbation``, ``cell_type``).

    Raises
    ------
    ValueError
        If one of their cell types has no control cells.
    """
    if controls is None:
        controls = control_means(reader, index)
    return _shifts(reader, index, conditions, controls, with_squares=False, sums=sums)[0]


def condition_sums(index: ConditionIndex, conditions: pd.DataFrame, *, with_squares: bool) -> GroupSums:
    """Return what learns in a pass the sums of conditions (codes), and of squares in the conditions of a cell type."""
    t = conditions["cell_type"].to_numpy(dtype=np.int64)  # (C,)
    rows = [index.rows(p, k) for p, k in zip(conditions["perturbation"], t, strict=True)]
    n = np.array([len(r) for r in rows], dtype=np.int64)  # (C,)
    none = np.zeros(0, dtype=np.int64)
    joined = np.concatenate([none, *rows])  # an empty list alone could not be concatenated
    group = np.repeat(np.arange(len(rows)), n)  # condition of each joined row
    return GroupSums(joined, group, len(rows), t if with_squares else none)


def mean_shifts_and_spread(
    reader: CellReader,
    index: ConditionIndex,
    conditions: pd.DataFrame,
    controls: ControlMeans | None = None,
    sums: GroupSums | None = None,
) -> tuple[Shifts, Spread]:
    """Return the mean shifts of :func:`mean_shifts` and how uncertain they are, in one pass over the cells.

    Without a pass if ``sums``, of these conditions and with squares, have learned in another one.
    """
    if controls is None:
        controls = control_means(reader, index)
    shifts, moments = _shifts(reader, index, conditions, controls, with_squares=True, sums=sums)
    t = conditions["cell_type"].to_numpy(dtype=np.int64)  # (C,)
    # Pooled variance: sum over conditions of (sum of squares - n * mean^2), over the sum of their n - 1.
    within = np.zeros((len(index.cell_types), reader.n_genes))  # (T, G); cell types without a condition stay 0
    within[: len(moments.square)] = moments.square
    np.subtract.at(within, t, moments.n[:, None] * np.square(moments.mean))
    freedom = np.bincount(t, weights=moments.n - 1, minlength=len(within))  # (T,)
    variance = np.maximum(within, 0) / np.maximum(freedom, 1)[:, None]
    of_cells = 1 / np.maximum(shifts.n_cells, 1)  # (C,)
    of_controls, of_contrast = _control_scales(index, conditions, controls.share)
    return shifts, Spread(variance, of_cells + of_controls, of_cells + of_contrast)


def _shifts(
    reader: CellReader,
    index: ConditionIndex,
    conditions: pd.DataFrame,
    controls: ControlMeans,
    *,
    with_squares: bool,
    sums: GroupSums | None = None,
) -> tuple[Shifts, GroupMoments]:
    """Return the mean shifts and, in ``square`` if asked for, the sums of squares of the cell types' conditions."""
    t = conditions["cell_type"].to_numpy(dtype=np.int64)  # (C,)
    used = np.unique(t)
    # The mean of a cell type without controls is NaN.
    bare = index.cell_types[used[np.isnan(controls.cell_type[used]).any(1)]]
    if len(bare):
        remedy = "Add their control cells, or remove these cell types."
        raise ValueError(unusable(f"Cell types {listed(bare)}", "the data", "have no control cells", remedy))
    if sums is None:
        sums = condition_sums(index, conditions, with_squares=with_squares)
        go_over(reader, [sums], sums.rows, text="Averaging")
    moments = sums.moments(reader.n_genes)
    matched = np.zeros_like(moments.mean)  # (C, G)
    for c, (p, k) in enumerate(zip(conditions["perturbation"], t, strict=True)):
        rows = index.rows(p, k)
        if len(rows):
            matched[c] = matched_control(controls, index.batch[rows])
    return Shifts(moments.mean - matched, moments.n), moments


def _control_scales(index: ConditionIndex, conditions: pd.DataFrame, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the controls' part of each squared standard error (C,), in units of the variance of one cell.

    The first is that of a shift. The second is that of its deviation from the mean shift of the cell type: conditions
    that share their controls share the error of these, which cancels in the deviation.
    """
    of_type = types_of_batches(index)  # (n_batches,)
    n = np.bincount(index.batch[index.is_control], minlength=len(own))  # (n_batches,) control cells
    shares = np.zeros((len(conditions), len(own)))  # of one control cell in the matched control, by its batch
    types = conditions["cell_type"].to_numpy(dtype=np.int64)
    for c, (p, t) in enumerate(zip(conditions["perturbation"], types, strict=True)):
        batch = index.batch[index.rows(p, t)]
        share = np.bincount(batch, minlength=len(own)) / max(1, len(batch))  # (n_batches,)
        used = (of_type == t) & (n > 0)
        # By its own batch, and by what all batches mix in.
        shares[c, used] = share[used] * own[used] / n[used] + (share @ (1 - own)) / n[used].sum()
    contrast = shares.copy()
    for t in np.unique(types):
        contrast[types == t] -= shares[types == t].mean(0)
    return np.square(shares) @ n, np.square(contrast) @ n


def leading_directions(values: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first right singular vectors (R, G) of rows (C, G) and their singular values (R,), R <= n.

    Directions in which the rows do not differ from zero are left out. The largest entry of each vector is positive.
    """
    side = min(values.shape)
    if not side:
        return np.zeros((0, values.shape[1])), np.zeros(0)
    # The smaller of the two Gram matrices has the same positive eigenvalues, the squares of the singular values.
    wide = values.shape[1] > values.shape[0]
    if wide:
        gram = values @ values.T  # (C, C)
    else:
        gram = values.T @ values  # (G, G)
    square, vectors = eigh(gram, subset_by_index=(max(0, side - n), side - 1))  # ascending
    square = square[::-1]
    vectors = vectors[:, ::-1]
    kept = square > 1e-10 * max(square[0], np.finfo(float).tiny)  # the others are rounding
    singular = np.sqrt(square[kept])  # (R,)
    axes = vectors[:, kept].T  # (R, side)
    if wide:  # these are left singular vectors: V = U' values / s
        axes = axes @ values / singular[:, None]
    # A singular vector is defined up to its sign; without this choice it could differ between machines.
    largest = np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1)
    return axes * np.sign(largest), singular
