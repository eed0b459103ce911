"""What are the sums of rows in groups, however the matrix is stored?"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from ptrag_sc.data._on_disk import Block


class GroupMoments(NamedTuple):
    """Sums of rows in groups."""

    mean: np.ndarray  # (n_groups, G) float64; 0 for a group without rows
    n: np.ndarray  # (n_groups,)
    square: np.ndarray  # (n_pools, G) float64, sum of squared entries of all rows in a pool of groups


class GroupSums:
    """Learns in a pass the sums of rows in groups.

    Sums are made block by block in the order of the matrix, so they do not depend on how it is stored.

    Parameters
    ----------
    rows, group
        Rows (n,) and the group of each (n,).
    n_groups
        Number of groups.
    pool
        Pool of each group (n_groups,); an empty array computes no squares.
    """

    def __init__(self, rows: np.ndarray, group: np.ndarray, n_groups: int, pool: np.ndarray):
        order = np.argsort(rows, kind="stable")
        self.rows = rows[order]  # (n,) ascending
        self.group = group[order]
        self.n_groups = n_groups
        self.pool = pool
        self._sums: np.ndarray | None = None  # (n_groups, G), made when the number of genes is known
        self._squares = np.zeros((0, 0))  # (n_pools, G)

    def add(self, rows: np.ndarray, block: Block) -> None:
        """Take some rows (n,), ascending, and their expression (n, G)."""
        if self._sums is None:
            self._sums = np.zeros((self.n_groups, block.shape[1]))
            self._squares = np.zeros((int(self.pool.max(initial=-1)) + 1, block.shape[1]))
        first, last = np.searchsorted(self.rows, [rows[0], rows[-1] + 1])
        if first == last:
            return
        place = np.searchsorted(rows, self.rows[first:last])  # (m,) in the block
        group = self.group[first:last]  # (m,)
        used = np.unique(place)
        if len(used) < len(rows):
            place, block = np.searchsorted(used, place), block[used]
        if sp.issparse(block):
            block = sp.csr_matrix(block, dtype=np.float32)
            if not block.has_canonical_format:  # two entries of one place count as their sum
                block = block.copy()
                block.sum_duplicates()
        else:
            block = np.asarray(block, dtype=np.float32)
        _add_sums(self._sums, group, place, block)
        if len(self.pool):
            square = block.multiply(block).tocsr() if sp.issparse(block) else np.square(block)
            _add_sums(self._squares, self.pool[group], place, square)

    def moments(self, n_genes: int) -> GroupMoments:
        """Return what was learned, after the last rows."""
        count = np.bincount(self.group, minlength=self.n_groups)
        if self._sums is None:  # no rows
            n_pools = int(self.pool.max(initial=-1)) + 1
            return GroupMoments(np.zeros((self.n_groups, n_genes)), count, np.zeros((n_pools, n_genes)))
        return GroupMoments(self._sums / np.maximum(count, 1)[:, None], count, self._squares)


def _add_sums(sums: np.ndarray, group: np.ndarray, place: np.ndarray, block: Block) -> None:
    """Add rows of a block, given the group and place of each (m,), to the sums of the groups (n_groups, G)."""
    order = np.argsort(group, kind="stable")
    groups, first = np.unique(group[order], return_index=True)
    member = sp.csr_matrix(
        (np.ones(len(order)), place[order], np.append(first, len(order))), shape=(len(groups), block.shape[0])
    )
    found = member @ block  # float64
    sums[groups] += found.toarray() if sp.issparse(found) else found
