"""How do rows of a registered matrix become dense, whatever the matrix is stored as?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
import scipy.sparse as sp
import torch

from ptrag_sc.data._on_disk import Block, as_block, as_row_matrix, stacked
from ptrag_sc.data._progress import shown_if_slow

RowMatrix: TypeAlias = Any  # an array, CSR, or RowsOnDisk: rows are cheap to read

BLOCK_BYTES = 2**25  # of the dense form (float32) of the rows that are in memory at once
HELD_BYTES = 2**29  # of the rows that are kept in memory while the others stay on disk
MAX_DENSITY = 0.4  # share of values that are not 0 below which rows are kept as CSR

__all__ = ["CellReader", "Collector", "Held", "RowSource", "as_row_matrix", "go_over"]


class Held:
    """Rows of a matrix on disk that are kept in memory, as many of those that are wanted as a limit allows.

    Parameters
    ----------
    wanted
        Rows (n,), ascending and distinct.
    """

    def __init__(self, wanted: np.ndarray):
        self.wanted = wanted
        self.rows = wanted[:0]  # (m,)
        self.matrix: Block | None = None  # (m, G)
        self._parts: list[Block] = []
        self._free = HELD_BYTES

    def add(self, rows: np.ndarray, block: Block) -> None:
        """Keep those of some rows (n,) that are wanted, given their expression (n, G)."""
        chosen = np.isin(rows, self.wanted, assume_unique=True)
        if self._free <= 0 or not chosen.any():
            return
        part = as_block(block[chosen]).astype(np.float32)
        if not sp.issparse(part) and (not self._parts or sp.issparse(self._parts[0])):
            if self._parts or np.count_nonzero(part) < MAX_DENSITY * part.size:
                part = sp.csr_matrix(part)
        self._free -= part.data.nbytes + part.indices.nbytes if sp.issparse(part) else part.nbytes
        if self._free > 0:
            self._parts.append(part)
            self.rows = np.append(self.rows, rows[chosen])

    def complete(self) -> None:
        """Join what was kept, after the last rows."""
        if self._parts:
            self.matrix = stacked(self._parts)
            self._parts = []

    def places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where rows (n,) are among those that are kept, and whether each is there."""
        place = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        return place, self.rows[place] == rows

    def found(self, rows: np.ndarray) -> Block | None:
        """Return rows (n, G) if all of them are kept."""
        place, known = self.places(rows)
        if self.matrix is None or not known.all():
            return None
        return self.matrix[place]


class Collector(Protocol):
    """What learns something from one pass over the rows of a matrix."""

    def add(self, rows: np.ndarray, block: Block) -> None:
        """Take some rows (n,) and their expression (n, G), with stored zeros or without."""


@dataclass(frozen=True)
class CellReader:
    """Dense rows of a CSR, dense, backed or dask matrix.

    Parameters
    ----------
    matrix
        Cells x genes, in one of the forms of :func:`as_row_matrix`.
    columns
        Columns to return, in order, -1 for a gene that the matrix lacks and that counts as 0; None returns all.
    held
        Rows of a matrix on disk that are in memory.
    """

    matrix: RowMatrix
    columns: np.ndarray | None = None
    held: Held | None = None

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return int(self.matrix.shape[0])

    @property
    def n_genes(self) -> int:
        """Number of genes returned."""
        if self.columns is None:
            return int(self.matrix.shape[1])
        return len(self.columns)

    @property
    def in_memory(self) -> bool:
        """Whether nothing is read from disk."""
        return sp.issparse(self.matrix) or isinstance(self.matrix, np.ndarray)

    @property
    def block_size(self) -> int:
        """How many rows are in memory at once."""
        # The same for every form of the matrix, so that sums over blocks are the same too.
        return max(1, BLOCK_BYTES // (np.dtype(np.float32).itemsize * max(1, self.n_genes)))

    def holding(self, held: Held) -> Self:
        """Return a reader that finds some rows in memory."""
        held.complete()
        if held.matrix is None:
            return self
        return replace(self, held=held)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Return rows in the order asked for, duplicates included, as float32 (n, G)."""
        indices = np.asarray(indices)
        if self.held is None or self.held.matrix is None or not len(indices):
            return self._read(indices)
        place, known = self.held.places(indices)  # (n,) each
        found = np.empty((len(indices), self.n_genes), dtype=np.float32)
        kept = self.held.matrix[place[known]]
        found[known] = kept.toarray() if sp.issparse(kept) else kept
        if not known.all():
            found[~known] = self._read(indices[~known])
        return found

    def _read(self, indices: np.ndarray) -> np.ndarray:
        if self.in_memory:
            block = self.matrix[indices]
        else:
            # A matrix on disk reads ascending distinct rows only, so order and duplicates are restored afterwards.
            unique, inverse = np.unique(indices, return_inverse=True)  # (m,), (n,)
            block = self.matrix.take(unique)[inverse]  # (n, genes of the matrix)
        dense = block.toarray() if sp.issparse(block) else block
        return np.ascontiguousarray(self.in_order(dense), dtype=np.float32)

    def in_order(self, dense: np.ndarray) -> np.ndarray:
        """Return the columns of rows of the matrix (n, genes of the matrix) that are asked for (n, G)."""
        if self.columns is None:
            return dense
        chosen = dense[:, self.columns]
        if (self.columns < 0).any():  # what -1 picks is another gene
            chosen = np.where(self.columns < 0, 0, chosen)
        return chosen

    def _ordered(self, block: Block) -> Block:
        """Return the columns of a block that are asked for, in its own form."""
        if self.columns is None or not sp.issparse(block):
            return self.in_order(block)
        present = np.flatnonzero(self.columns >= 0)
        chosen = block[:, self.columns[present]]
        return sp.csr_matrix((chosen.data, present[chosen.indices], chosen.indptr), (block.shape[0], self.n_genes))

    def chunks(self, indices: np.ndarray, size: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (indices, dense rows) in pieces of bounded size."""
        size = self.block_size if size is None else size
        for start in range(0, len(indices), size):
            part = indices[start : start + size]
            yield part, self.rows(part)

    def blocks(self, wanted: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, Block]]:
        """Yield rows (n,) and their expression (n, G) as it is stored, in the order of the matrix.

        Parameters
        ----------
        wanted
            Rows, ascending and distinct; None: all, and what is stored as one is read once.
        """
        size = self.block_size
        if wanted is None:
            for start, block in self._all_blocks(size):
                yield np.arange(start, start + block.shape[0]), self._ordered(block)
            return
        ends = np.searchsorted(wanted, np.arange(size, self.n_obs + size, size))
        for part in np.split(wanted, ends[:-1]):
            if len(part):
                kept = None if self.held is None else self.held.found(part)
                yield part, self._ordered(self._stored(part)) if kept is None else kept

    def values(self) -> Iterator[np.ndarray]:
        """Yield the stored values piece by piece; implicit zeros may be left out."""
        for _, block in self.blocks():
            yield block.data if sp.issparse(block) else np.asarray(block)

    def _stored(self, rows: np.ndarray) -> Block:
        if isinstance(self.matrix, np.ndarray) or sp.issparse(self.matrix):
            return self.matrix[rows]
        return self.matrix.take(rows)

    def _all_blocks(self, size: int) -> Iterator[tuple[int, Block]]:
        """Yield first row and rows, ``size`` of them at a time."""
        if isinstance(self.matrix, np.ndarray) or sp.issparse(self.matrix):
            for start in range(0, self.n_obs, size):
                yield start, self.matrix[start : start + size]
            return
        read: Block | None = None  # rows from `start` to `end`, which were read up to the next edge
        end = 0
        for start in range(0, self.n_obs, size):
            stop = min(start + size, self.n_obs)
            if stop > end:
                further = self.matrix.edge(stop)
                parts = [] if read is None or not read.shape[0] else [read]
                read = stacked([*parts, self.matrix.take(np.arange(end, further))])
                end = further
            if read is not None:
                yield start, read[: stop - start]
                read = read[stop - start :]


def go_over(
    reader: CellReader, collectors: Sequence[Collector], wanted: np.ndarray | None = None, *, text: str = "Reading"
) -> None:
    """Let all collectors learn in one pass over the rows that are wanted (ascending, distinct), or over all.

    If it takes long, a progress bar is shown.
    """
    total = -(-reader.n_obs // reader.block_size)
    if wanted is not None:
        total = len(np.unique(wanted // reader.block_size))
    for rows, block in shown_if_slow(reader.blocks(wanted), text, total):
        for collector in collectors:
            collector.add(rows, block)


class RowSource(Protocol):
    """The source of dense rows: :class:`CellReader`, or :class:`DeviceMatrix` on an accelerator."""

    def rows(self, indices: np.ndarray) -> np.ndarray | torch.Tensor:
        """Return rows in the order asked for, duplicates included, as float32 (n, G)."""
