"""How is a request answered whose cells would not fit into memory as a dense matrix?"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp

from ptrag_sc.data._assembly import Prediction
from ptrag_sc.data._requests import Request
from ptrag_sc.data._run import Run, sets_at_once
from ptrag_sc.data._set_sampler import PlannedSet

BUFFER = 2**24  # numbers: 64 MiB, an array so large that its memory goes back to the system when it is dropped
AT_ONCE = 2**20  # entries that are put into order at a time


def restricted(request: Request, chosen: np.ndarray, *, batch_size: int) -> Request:
    """Return what is to be generated so that some output rows are as if the whole request were answered.

    These are all sets of the mini-batches that hold a chosen row: how sets share a mini-batch changes last digits.

    Parameters
    ----------
    request
        The whole request.
    chosen
        Whether each output row is asked for (N,).
    batch_size
        Sets in a mini-batch.
    """
    kept = []
    for start in range(0, len(request.planned), batch_size):
        batch = request.planned[start : start + batch_size]
        if any(chosen[one.output].any() for one in batch):
            kept += batch
    return request._replace(planned=kept)


def answer(run: Run, request: Request, chosen: np.ndarray | None = None) -> Prediction:
    """Answer a request piece by piece; cells with counts are never dense all at once.

    Parameters
    ----------
    run
        The call.
    request
        What is to be generated.
    chosen
        Output rows to keep (N,); the others are as if they had not been planned. None keeps all.
    """
    shape = len(request.source), len(run.predictor.genes_)
    if chosen is None:
        chosen = np.ones(shape[0], dtype=bool)
    weights = _Rows(1)
    if run.realisation is None:
        dense = np.full(shape, np.nan, dtype=np.float32)
        for rows, kept, piece in _pieces(run, request, chosen):
            dense[rows] = piece.cells[kept]
            weights.add(rows, piece.weights[kept])
        return Prediction(dense, weights.joined(shape[0], len(run.predictor.candidates_))[0])
    cells = _Rows(2)
    for rows, kept, piece in _pieces(run, request, chosen):
        matrices: Any = (piece.cells, piece.counts)  # both are CSR here
        cells.add(rows, *(matrix[kept] for matrix in matrices))
        weights.add(rows, piece.weights[kept])
    expression, counts = cells.joined(*shape)
    return Prediction(expression, weights.joined(shape[0], len(run.predictor.candidates_))[0], counts)


def _pieces(run: Run, request: Request, chosen: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, Prediction]]:
    """Yield output rows that are kept (m,), their places in a piece (m,), and the piece."""
    if not request.planned:
        return
    largest = max(len(one.output) for one in request.planned)
    n_sets = sets_at_once(largest, run.predictor._prediction_batch_size)
    for start in range(0, len(request.planned), n_sets):
        rows, piece = _cut(request, request.planned[start : start + n_sets])
        kept = np.flatnonzero(chosen[rows])  # (m,)
        if len(kept):
            yield rows[kept], kept, run.answer(piece)


def _cut(request: Request, planned: list[PlannedSet]) -> tuple[np.ndarray, Request]:
    """Return the output rows of some sets, and the request for these rows alone."""
    rows = np.concatenate([one.output for one in planned])  # (m,)
    first = np.cumsum([0, *(len(one.output) for one in planned)])
    cut = [one._replace(output=np.arange(i, i + len(one.output))) for one, i in zip(planned, first[:-1], strict=True)]
    return rows, Request(cut, request.source[rows], request.query[rows], request.named[rows])


class _Buffer:
    """A long array that is filled from the front, and read back once while its memory is given back.

    Parameters
    ----------
    dtype
        Of its numbers.
    """

    def __init__(self, dtype: type[np.generic]):
        self.dtype = dtype
        self.parts: list[np.ndarray] = []
        self.n = 0  # numbers in it

    def add(self, values: np.ndarray) -> None:
        """Append some numbers (m,)."""
        while len(values):
            at = self.n % BUFFER
            if at == 0:
                self.parts.append(np.empty(BUFFER, dtype=self.dtype))
            fitting = values[: BUFFER - at]
            self.parts[-1][at : at + len(fitting)] = fitting
            self.n += len(fitting)
            values = values[len(fitting) :]

    def emptied(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield all numbers in order, some at a time, and how many came before them."""
        start = 0
        for i in range(len(self.parts)):
            part, self.parts[i] = self.parts[i][: self.n - start], np.empty(0, dtype=self.dtype)
            for at in range(0, len(part), AT_ONCE):
                yield start + at, part[at : at + AT_ONCE]
            start += len(part)


class _Rows:
    """Rows of matrices that store the same places, collected in any order and put into order without a second copy.

    Parameters
    ----------
    n
        Number of matrices.
    """

    def __init__(self, n: int):
        self.rows = [np.zeros(0, dtype=np.int64)]
        self.lengths = [np.zeros(0, dtype=np.int64)]
        self.columns = _Buffer(np.int32)
        self.values = [_Buffer(np.float32) for _ in range(n)]

    def add(self, rows: np.ndarray, *matrices: sp.csr_matrix) -> None:
        """Add rows (m,) of all matrices (m, G)."""
        self.rows.append(rows)
        self.lengths.append(np.diff(matrices[0].indptr))
        self.columns.add(matrices[0].indices)
        for buffer, matrix in zip(self.values, matrices, strict=True):
            buffer.add(matrix.data)

    def joined(self, n_rows: int, n_columns: int) -> list[sp.csr_matrix]:
        """Return the matrices (N, G); rows that were not added store nothing. What was collected is given up."""
        rows, lengths = np.concatenate(self.rows), np.concatenate(self.lengths)  # (m,), as they were collected
        of_row = np.zeros(n_rows + 1, dtype=np.int64)
        of_row[rows + 1] = lengths
        indptr = np.cumsum(of_row)  # (N + 1,)
        first = np.append(0, np.cumsum(lengths))  # (m + 1,) number of entries collected before each row
        index_type = np.int32 if max(int(indptr[-1]), n_columns) < 2**31 else np.int64
        moved = indptr[rows] - first[:-1]  # (m,) by how much the entries of a row move

        def in_order(buffer: _Buffer, dtype: type[np.generic]) -> np.ndarray:
            found = np.empty(buffer.n, dtype=dtype)
            for start, values in buffer.emptied():
                stop = start + len(values)
                a, b = np.searchsorted(first, [start, stop - 1], side="right") - 1  # the rows of these entries
                n_here = np.diff(np.clip(first[a : b + 2], start, stop))
                found[np.repeat(moved[a : b + 1], n_here) + np.arange(start, stop)] = values
            return found

        columns = in_order(self.columns, index_type)
        data = [in_order(buffer, np.float32) for buffer in self.values]
        matrices = []
        for i, values in enumerate(data):  # each has its own indices: changing one in place must not change another
            own = columns if i == 0 else columns.copy()
            matrices.append(sp.csr_matrix((values, own, indptr.astype(index_type)), shape=(n_rows, n_columns)))
        return matrices
