"""What did each perturbation do, on average, to each cell type?"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from ptrag_sc._validation import listed, unusable
from ptrag_sc.data._conditions import ConditionIndex
from ptrag_sc.data._dataset import CellReader


class ControlMeans(NamedTuple):
    """Mean control expression."""

    batch: np.ndarray  # (n_batches, G); a batch without controls has its cell type's mean
    cell_type: np.ndarray  # (T, G); NaN where a cell type has no controls


class Shifts(NamedTuple):
    """Batch-matched mean shifts of C conditions."""

    shift: np.ndarray  # (C, G), mean(perturbed) - mean(control) at the same batch composition
    n_cells: np.ndarray  # (C,)


def group_means(
    reader: CellReader, rows: np.ndarray, group: np.ndarray, n_groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean rows (n_groups, G) float64 and sizes (n_groups,), in one pass over ``rows``.

    A group without rows has mean 0.
    """
    order = np.argsort(group, kind="stable")
    rows, group = rows[order], group[order]
    sums, done = np.zeros((n_groups, reader.n_genes)), 0
    for part, cells in reader.chunks(rows):
        g = group[done : done + len(part)]
        first = np.flatnonzero(np.r_[True, g[1:] != g[:-1]])
        sums[g[first]] += np.add.reduceat(cells, first, axis=0, dtype=np.float64)
        done += len(part)
    count = np.bincount(group, minlength=n_groups)
    return sums / np.maximum(count, 1)[:, None], count


def control_means(reader: CellReader, index: ConditionIndex) -> ControlMeans:
    """Return the mean control expression of every batch and cell type."""
    rows = np.flatnonzero(index.is_control)
    by_type, n = group_means(reader, rows, index.cell_type[rows], len(index.cell_types))
    by_type[n == 0] = np.nan
    by_batch, n = group_means(reader, rows, index.batch[rows], int(index.batch.max()) + 1)
    batches, first = np.unique(index.batch, return_index=True)
    type_of_batch = np.zeros(len(n), dtype=np.int64)
    type_of_batch[batches] = index.cell_type[first]
    by_batch[n == 0] = by_type[type_of_batch[n == 0]]
    return ControlMeans(by_batch, by_type)


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
    controls = control_means(reader, index) if controls is None else controls
    used = np.unique(conditions["cell_type"].to_numpy(dtype=np.int64))
    bare = index.cell_types[used[np.isnan(controls.cell_type[used]).any(1)]]
    if len(bare):
        remedy = "Add their control cells, or remove these cell types."
        raise ValueError(unusable(f"Cell types {listed(bare)}", "the data", "have no control cells", remedy))
    pairs = zip(conditions["perturbation"], conditions["cell_type"], strict=True)
    rows = [index.rows(p, t) for p, t in pairs]
    n = np.array([len(r) for r in rows], dtype=np.int64)
    if not len(rows):
        return Shifts(np.zeros((0, reader.n_genes)), n)
    means, _ = group_means(reader, np.concatenate(rows), np.repeat(np.arange(len(rows)), n), len(rows))
    matched = np.stack([matched_control(controls, index.batch[r]) for r in rows])
    return Shifts(means - matched, n)
