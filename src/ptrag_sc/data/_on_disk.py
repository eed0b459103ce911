"""How are rows of a matrix read that is not in memory, in few reads of bounded size?"""

from collections.abc import Iterator
from typing import Any, Protocol, TypeAlias

import h5py
import numpy as np
import scipy.sparse as sp
import zarr
from anndata.abc import CSCDataset, CSRDataset

from ptrag_sc.data._shards import quickly_read

Block: TypeAlias = Any  # rows in memory, an array or a CSR matrix; scipy has no types
Array: TypeAlias = Any  # of h5py or zarr; the two share no type

SPAN = 2**22  # numbers that are read at once, at most
GAP = 2**12  # numbers between two rows that are read with them, because a further read would cost more


class RowsOnDisk(Protocol):
    """Rows of a matrix that is not in memory."""

    shape: tuple[int, int]

    def take(self, rows: np.ndarray) -> Block:
        """Return rows (n,), which ascend and are distinct, as (n, genes of the matrix)."""

    def edge(self, row: int) -> int:
        """Return the next row, from this one on, before which a read can end without cutting what is stored as one."""


class DenseOnDisk:
    """Rows of a dense array of h5py or zarr.

    Parameters
    ----------
    array
        Cells x genes.
    """

    def __init__(self, array: Array):
        self.array = array
        self.shape = (int(array.shape[0]), int(array.shape[1]))
        self._chunk = int(array.chunks[0]) if array.chunks else 1  # rows that are stored as one

    def edge(self, row: int) -> int:
        """Return the end of the chunk."""
        return min(self.shape[0], -(-row // self._chunk) * self._chunk)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return rows, those that follow each other or stand in one chunk with one read."""
        taken = np.empty((len(rows), self.shape[1]), dtype=self.array.dtype)
        width = max(1, self.shape[1])
        near = (rows[1:] - rows[:-1] - 1) * width <= GAP
        if self._chunk > 1:
            near |= rows[1:] // self._chunk - rows[:-1] // self._chunk <= 1
        for first, last in _spans(near, rows, rows + 1, SPAN // width):
            start = int(rows[first])
            read = self.array[start : int(rows[last - 1]) + 1]
            taken[first:last] = read if len(read) == last - first else read[rows[first:last] - start]
        return taken


class SparseOnDisk:
    """Rows of a CSR matrix in an h5ad file or zarr store, whose row pointers are held in memory.

    Parameters
    ----------
    matrix
        As anndata opens it.
    """

    def __init__(self, matrix: CSRDataset):
        group: Any = matrix.group
        self.shape = (int(matrix.shape[0]), int(matrix.shape[1]))
        self.indptr = np.asarray(group["indptr"][...], dtype=np.int64)  # (n_obs + 1,)
        self.values: Array = quickly_read(group["data"])
        self.columns: Array = quickly_read(group["indices"])
        self._chunk = int(self.values.chunks[0]) if self.values.chunks else 1

    def edge(self, row: int) -> int:
        """Return the row itself, because rows are short beside a chunk of values."""
        return row

    def take(self, rows: np.ndarray) -> sp.csr_matrix:
        """Return rows, those whose values stand near each other with one read."""
        begin, end = self.indptr[rows], self.indptr[rows + 1]  # (n,)
        near = begin[1:] - end[:-1] <= GAP
        if self._chunk > 1:
            near |= begin[1:] // self._chunk - np.maximum(end[:-1] - 1, 0) // self._chunk <= 1
        indptr = np.append(0, np.cumsum(end - begin))
        data = np.empty(indptr[-1], dtype=self.values.dtype)
        indices = np.empty(indptr[-1], dtype=self.columns.dtype)
        for first, last in _spans(near, begin, end, SPAN):
            start, stop = int(begin[first]), int(end[last - 1])
            if start == stop:
                continue
            place = slice(indptr[first], indptr[last])
            values, columns = self.values[start:stop], self.columns[start:stop]
            if stop - start > place.stop - place.start:  # rows between them were read too
                wanted = _ranges(begin[first:last] - start, end[first:last] - start)
                values, columns = values[wanted], columns[wanted]
            data[place], indices[place] = values, columns
        return sp.csr_matrix((data, indices, indptr), shape=(len(rows), self.shape[1]))


class ComputedRows:
    """Rows of a dask array, of which one block of rows is computed at a time and the last one is kept.

    Parameters
    ----------
    array
        Dense or sparse blocks.
    """

    def __init__(self, array: Any):
        self.array = array
        self.shape = (int(array.shape[0]), int(array.shape[1]))
        self._ends = np.cumsum(array.chunks[0])  # (n_blocks,)
        self._last: tuple[int, Block] | None = None

    def edge(self, row: int) -> int:
        """Return the end of the block."""
        return int(self._ends[min(int(np.searchsorted(self._ends, row)), len(self._ends) - 1)])

    def take(self, rows: np.ndarray) -> Block:
        """Return rows; each block is computed once."""
        number: np.ndarray = np.searchsorted(self._ends, rows, side="right")  # (n,) block of each row
        parts = []
        for i in np.unique(number):
            start = int(self._ends[i - 1]) if i else 0
            parts.append(self._block(int(i))[rows[number == i] - start])
        if not parts:
            return sp.csr_matrix((0, self.shape[1]), dtype=self.array.dtype)
        return stacked(parts)

    def _block(self, i: int) -> Block:
        last = self._last  # two threads may read
        if last is None or last[0] != i:
            last = self._last = None  # released before the next one is made
            last = self._last = i, as_block(self.array.blocks[i].compute(scheduler="synchronous"))
        return last[1]


def as_block(found: Any) -> Block:
    """Return rows as an array or a CSR matrix, whichever form of sparse matrix they have."""
    if sp.issparse(found):
        return sp.csr_matrix(found)
    if hasattr(found, "tocsr"):  # an array of the library sparse
        return sp.csr_matrix(found.tocsr())
    return np.asarray(found)


def stacked(parts: list[Block]) -> Block:
    """Return blocks of rows, one below the other."""
    if len(parts) == 1:
        return parts[0]
    if sp.issparse(parts[0]):
        return sp.csr_matrix(sp.vstack(parts, format="csr"))
    return np.concatenate(parts)


def _spans(near: np.ndarray, begin: np.ndarray, end: np.ndarray, longest: int) -> Iterator[tuple[int, int]]:
    """Yield first and last (not included) of the rows that are read at once.

    Parameters
    ----------
    near
        Whether each row but the first is near the one before (n - 1,).
    begin, end
        Where each row begins and ends (n,).
    longest
        How long a read is at most, unless a single row is longer.
    """
    stops = [*(np.flatnonzero(~near) + 1).tolist(), len(begin)]
    first = 0
    for stop in stops:
        while first < stop:
            last = int(np.searchsorted(end[first:stop], begin[first] + longest, side="right")) + first
            last = max(last, first + 1)
            yield first, last
            first = last


def _ranges(begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the whole numbers of several ranges, one after the other."""
    length = end - begin
    shift = begin - np.append(0, np.cumsum(length)[:-1])
    return np.repeat(shift, length) + np.arange(length.sum())


def csr_of_columns(pieces: Iterator[tuple[int, sp.csc_matrix]], shape: tuple[int, int], counts: np.ndarray) -> Any:
    """Return the CSR matrix of a matrix that is stored by columns and arrives a few of them at a time.

    Parameters
    ----------
    pieces
        First column and the columns from there on, in order.
    shape
        Of the matrix.
    counts
        Stored values of every row (n,).
    """
    place = np.append(0, np.cumsum(counts))  # (n + 1,) where the next value of each row goes
    index = np.int32 if max(place[-1], *shape) < 2**31 else np.int64
    data, indices, indptr = None, np.empty(place[-1], index), place.astype(index)
    for first, piece in pieces:
        rows = piece.tocsr()
        if data is None:
            data = np.empty(place[-1], rows.dtype)
        length = np.diff(rows.indptr).astype(np.int64)
        target = _ranges(place[:-1], place[:-1] + length)
        data[target] = rows.data
        indices[target] = rows.indices + first
        place[:-1] += length
    if data is None:
        data = np.empty(0, np.float32)
    return sp.csr_matrix((data, indices, indptr), shape=shape)


def read_csc(matrix: CSCDataset) -> sp.csr_matrix:
    """Return a CSC matrix on disk as CSR in memory, which takes as much memory as the matrix, and little beyond."""
    group: Any = matrix.group
    shape = (int(matrix.shape[0]), int(matrix.shape[1]))
    indptr = np.asarray(group["indptr"][...], dtype=np.int64)  # (G + 1,)
    counts = np.zeros(shape[0], dtype=np.int64)
    for start in range(0, int(indptr[-1]), SPAN):
        stop = min(start + SPAN, int(indptr[-1]))
        counts += np.bincount(group["indices"][start:stop], minlength=shape[0])

    def pieces() -> Iterator[tuple[int, sp.csc_matrix]]:
        for first, last in _spans(np.ones(max(0, shape[1] - 1), bool), indptr[:-1], indptr[1:], SPAN):
            start, stop = int(indptr[first]), int(indptr[last])
            arrays = group["data"][start:stop], group["indices"][start:stop], indptr[first : last + 1] - start
            yield first, sp.csc_matrix(arrays, shape=(shape[0], last - first))

    return csr_of_columns(pieces(), shape, counts)


def compute_columns(array: Any) -> sp.csr_matrix:
    """Return a dask array whose blocks are columns as CSR in memory; each block is computed twice."""
    edges = np.append(0, np.cumsum(array.chunks[1]))

    def block(i: int) -> Any:
        return as_block(array.blocks[:, i].compute(scheduler="synchronous")).tocsc()

    counts = np.zeros(array.shape[0], dtype=np.int64)
    for i in range(len(edges) - 1):
        counts += np.bincount(block(i).indices, minlength=array.shape[0])
    pieces = ((int(edges[i]), block(i)) for i in range(len(edges) - 1))
    return csr_of_columns(pieces, (int(array.shape[0]), int(array.shape[1])), counts)


def _of_one_index_type(matrix: Any) -> Any:
    """Return a CSR matrix whose columns and row pointers have one type; values and columns are shared.

    anndata reads files with row pointers of 64 bits and columns of 32. scipy then converts the columns of the whole
    matrix whenever some rows are taken.
    """
    if matrix.indices.dtype == matrix.indptr.dtype or matrix.indptr[-1] > np.iinfo(matrix.indices.dtype).max:
        return matrix
    parts = matrix.data, matrix.indices, matrix.indptr.astype(matrix.indices.dtype)
    return type(matrix)(parts, shape=matrix.shape)


def as_row_matrix(matrix: Any) -> Any:
    """Return a matrix in a form whose rows are cheap to read: an array, CSR, or rows on disk.

    What is stored by columns is converted once, in memory.
    """
    if isinstance(matrix, CSCDataset):
        return read_csc(matrix)
    if isinstance(matrix, CSRDataset):
        return SparseOnDisk(matrix)
    if sp.issparse(matrix):
        return _of_one_index_type(matrix.tocsr())
    if isinstance(matrix, h5py.Dataset | zarr.Array):
        return DenseOnDisk(matrix)
    if hasattr(matrix, "dask"):
        by_columns = sp.issparse(matrix._meta) and matrix._meta.format == "csc"
        if by_columns and len(matrix.chunks[0]) == 1:
            return compute_columns(matrix)
        return ComputedRows(matrix)
    return matrix
