"""Which cells that are to be predicted share a set, and which control cell is each of them generated from?"""

import math

import numpy as np


def deal_sets(
    batch: np.ndarray, order: np.ndarray, control_batch: np.ndarray, control_order: np.ndarray, set_size: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pair the cells of one condition with controls and deal them into sets.

    Cells are dealt, batch by batch in hash order, over the fewest sets of balanced size in which every control occurs
    at most once. Cells of a batch without controls take controls of any batch of the cell type, in sets of their own.

    Parameters
    ----------
    batch, order
        Batch and hash of the cells to predict (n,).
    control_batch, control_order
        Batch and hash of the control cells of the cell type (m,); m > 0.
    set_size
        Largest number of cells in a set.

    Returns
    -------
    One pair per set: positions of the cells in it, and positions of their controls, all distinct within the set.
    """
    known = np.isin(batch, control_batch)  # (n,)
    sets = []
    if known.any():
        sets += _deal_group(np.flatnonzero(known), batch, order, control_batch, control_order, set_size)
    if not known.all():
        # Batches without controls become one batch, number 0, that owns every control of the cell type.
        one, every = np.zeros_like(batch), np.zeros_like(control_batch)
        sets += _deal_group(np.flatnonzero(~known), one, order, every, control_order, set_size)
    return sets


def _deal_group(
    cells: np.ndarray,
    batch: np.ndarray,
    order: np.ndarray,
    control_batch: np.ndarray,
    control_order: np.ndarray,
    set_size: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Deal some of the cells (positions), all of batches that have controls."""
    cells = cells[np.lexsort((order[cells], batch[cells]))]  # by batch, then by hash
    batches, start, count = np.unique(batch[cells], return_index=True, return_counts=True)
    pools = [_in_order(np.flatnonzero(control_batch == b), control_order) for b in batches]
    # No set may need a control twice, so there are at least n_b / (controls of b) sets for every batch b.
    enough = [math.ceil(n / len(pool)) for n, pool in zip(count, pools, strict=True)]
    n_sets = max(math.ceil(len(cells) / set_size), *enough)
    set_of = np.arange(len(cells)) % n_sets  # (n,)
    source = np.empty(len(cells), dtype=np.int64)  # (n,)
    for pool, first, n in zip(pools, start, count, strict=True):
        # Sets take consecutive runs of the batch's controls: distinct within a set, evenly used over the sets.
        by_set = first + np.argsort(set_of[first : first + n], kind="stable")
        source[by_set] = pool[np.arange(n) % len(pool)]
    return [(cells[set_of == s], source[set_of == s]) for s in range(n_sets)]


def _in_order(rows: np.ndarray, order: np.ndarray) -> np.ndarray:
    return rows[np.argsort(order[rows], kind="stable")]
