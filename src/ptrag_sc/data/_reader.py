"""How do rows of a registered matrix become dense, whatever the matrix is stored as?"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import scipy.sparse as sp
import torch
from anndata.abc import CSCDataset, CSRDataset

RowMatrix: TypeAlias = np.ndarray | sp.csr_matrix | CSRDataset  # rows are cheap to read


@dataclass(frozen=True)
class CellReader:
    """Dense rows of a CSR, dense, backed or dask matrix.

    Parameters
    ----------
    matrix
        Cells x genes, stored in the same way as in the AnnData.
    columns
        Columns to return, in order, -1 for a gene that the matrix lacks and that counts as 0; None returns all.
    """

    matrix: RowMatrix
    columns: np.ndarray | None = None

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self.matrix.shape[0]

    @property
    def n_genes(self) -> int:
        """Number of genes returned."""
        if self.columns is None:
            return self.matrix.shape[1]
        return len(self.columns)

    @property
    def in_memory(self) -> bool:
        """Whether nothing is read from disk."""
        return sp.issparse(self.matrix) or isinstance(self.matrix, np.ndarray)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Return rows in the order asked for, duplicates included, as float32 (n, G)."""
        if sp.issparse(self.matrix):
            dense = self.matrix[indices].toarray()
        elif isinstance(self.matrix, np.ndarray):
            dense = self.matrix[indices]
        else:
            # A matrix on disk reads ascending distinct rows only, so order and duplicates are restored afterwards.
            unique, inverse = np.unique(indices, return_inverse=True)  # (m,), (n,)
            dense = _dense(self.matrix[unique])[inverse]  # (n, genes of the matrix)
        return np.ascontiguousarray(self.in_order(dense), dtype=np.float32)

    def in_order(self, dense: np.ndarray) -> np.ndarray:
        """Return the columns of rows of the matrix (n, genes of the matrix) that are asked for (n, G)."""
        if self.columns is None:
            return dense
        chosen = dense[:, self.columns]
        if (self.columns < 0).any():  # what -1 picks is another gene
            chosen = np.where(self.columns < 0, 0, chosen)
        return chosen

    def chunks(self, indices: np.ndarray, size: int = 4096) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (indices, dense rows) in pieces of bounded size."""
        for start in range(0, len(indices), size):
            part = indices[start : start + size]
            yield part, self.rows(part)

    def values(self, size: int = 65536) -> Iterator[np.ndarray]:
        """Yield the stored values of the columns that are asked for piece by piece; implicit zeros may be left out."""
        chosen = None  # all columns, in any order
        if self.columns is not None and len(np.unique(self.columns[self.columns >= 0])) < self.matrix.shape[1]:
            chosen = self.columns[self.columns >= 0]
        if sp.issparse(self.matrix) and chosen is None:
            stored = self.matrix.data  # (number of stored values,)
            yield from np.array_split(stored, max(1, len(stored) // 2**24))
            return
        for start in range(0, self.n_obs, size):
            block = _loaded(self.matrix[start : start + size])  # sparse if a sparse matrix is on disk
            if chosen is not None:
                block = block[:, chosen]
            if sp.issparse(block):
                yield block.data
            else:
                yield np.asarray(block)


def _loaded(block: Any) -> Any:
    """Return rows that are in memory; those of a dask array are computed."""
    if hasattr(block, "compute"):
        block = block.compute(scheduler="synchronous")
    return block


def _dense(block: Any) -> np.ndarray:
    block = _loaded(block)
    if sp.issparse(block):
        block = block.toarray()
    return np.asarray(block)


def as_row_matrix(matrix: Any) -> RowMatrix:
    """Return the matrix in a form whose rows are cheap to read; CSC is converted once, in memory."""
    if isinstance(matrix, CSCDataset):
        return matrix.to_memory().tocsr()
    if sp.issparse(matrix):
        return matrix.tocsr()
    return matrix


class RowSource(Protocol):
    """The source of dense rows: :class:`CellReader`, or :class:`DeviceMatrix` on an accelerator."""

    def rows(self, indices: np.ndarray) -> np.ndarray | torch.Tensor:
        """Return rows in the order asked for, duplicates included, as float32 (n, G)."""
