"""How do rows become dense where the model is, so that no expression is copied there during training?"""

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from ptrag_sc.data._reader import CellReader

SHARE_OF_FREE_MEMORY = 0.5  # of the device: the most that the matrix may take, so that training keeps the rest


class DeviceMatrix:
    """The registered matrix on a device; returns the rows of :meth:`CellReader.rows` as a tensor there.

    A CSR matrix stays sparse. The host keeps its row pointers, so it knows the size of every result and never waits
    for the device.

    Parameters
    ----------
    reader
        In-memory CSR or dense matrix.
    device
        Where it is copied to.
    """

    def __init__(self, reader: CellReader, device: torch.device):
        self.device = device
        self.n_genes = reader.n_genes
        matrix: Any = reader.matrix
        if reader.columns is not None:
            matrix = matrix[:, reader.columns]
        self._indptr: np.ndarray | None = None  # (n_obs + 1,) row pointers, on the host
        if sp.issparse(matrix):
            matrix = sp.csr_matrix(matrix)
            if not matrix.has_canonical_format:
                # Two entries of one place count as their sum, but `rows` assigns entries and would keep only one.
                matrix = matrix.copy()
                matrix.sum_duplicates()
            self._indptr = matrix.indptr.astype(np.int64)
            self._columns = torch.as_tensor(matrix.indices, device=device)  # (n_entries,)
            matrix = matrix.data
        # (n_entries,) of a sparse matrix, (n_obs, G) of a dense one
        self._values = torch.as_tensor(np.asarray(matrix, dtype=np.float32), device=device)

    def rows(self, indices: np.ndarray) -> torch.Tensor:
        """Return rows in the order asked for, duplicates included, as float32 (n, G) on the device."""
        if self._indptr is None:
            return self._values.index_select(0, self._sent(indices))
        start = self._indptr[indices]  # (n,)
        length = self._indptr[indices + 1] - start  # (n,)
        total = int(length.sum())
        # Entry e of the result is entry e + shift[row] of the matrix, and belongs at row * G + column of the result.
        shifts = start - (length.cumsum() - length)  # (n,)
        # One copy for all three, because each copy costs a launch.
        shift, count, number = self._sent(np.stack([shifts, length, np.arange(len(indices))]))  # (n,) each
        row = torch.repeat_interleave(number, count, output_size=total)  # (total,)
        place = torch.arange(total, device=self.device) + shift[row]  # (total,)
        dense = torch.zeros(len(indices) * self.n_genes, device=self.device)
        dense[row * self.n_genes + self._columns[place]] = self._values[place]
        return dense.view(len(indices), self.n_genes)

    def _sent(self, array: np.ndarray) -> torch.Tensor:
        """Return whole numbers as a tensor on the device; to a GPU without waiting for the copy."""
        tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
        # Only from pinned memory does the copy run beside the computation.
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def fits(reader: CellReader, device: torch.device) -> bool:
    """Return whether a device is a CUDA device with room for the matrix; a matrix on disk stays there."""
    if device.type != "cuda" or not reader.in_memory:
        return False
    matrix: Any = reader.matrix
    if sp.issparse(matrix):
        n_bytes = matrix.nnz * (torch.float32.itemsize + matrix.indices.itemsize)
    else:
        n_bytes = matrix.size * torch.float32.itemsize
    return n_bytes < SHARE_OF_FREE_MEMORY * torch.cuda.mem_get_info(device)[0]
