"""How do rows become dense where the model is, so that no expression travels during training?"""

import numpy as np
import scipy.sparse as sp
import torch

from ptrag_sc.data._reader import CellReader

SHARE_OF_FREE_MEMORY = 0.5  # of the device, that the matrix may take


class DeviceMatrix:
    """The registered matrix on a device; gives what :meth:`CellReader.rows` gives, as a tensor there.

    A CSR matrix stays sparse. Lengths of rows are known on the host, so gathering waits for nothing.

    Parameters
    ----------
    reader
        In-memory CSR or dense matrix.
    device
        Where it is copied to.
    """

    def __init__(self, reader: CellReader, device: torch.device):
        self.device, self.n_genes = device, reader.n_genes
        matrix = reader.matrix if reader.columns is None else reader.matrix[:, reader.columns]
        self._indptr = None
        if sp.issparse(matrix):
            matrix = sp.csr_matrix(matrix)
            if not matrix.has_canonical_format:
                matrix = matrix.copy()
                matrix.sum_duplicates()
            self._indptr = matrix.indptr.astype(np.int64)
            self._columns = torch.as_tensor(matrix.indices, device=device)
            matrix = matrix.data
        self._values = torch.as_tensor(np.asarray(matrix, dtype=np.float32), device=device)

    def rows(self, indices: np.ndarray) -> torch.Tensor:
        """Return rows in the order asked for, duplicates included, as float32 (n, G) on the device."""
        if self._indptr is None:
            return self._values.index_select(0, self._sent(indices))
        start, length = self._indptr[indices], self._indptr[indices + 1] - self._indptr[indices]
        total = int(length.sum())
        # Entry e of the answer stands at e + shift of its row in the matrix, and at column + G * row in the answer.
        shift, count, row = self._sent(np.stack([start - length.cumsum() + length, length, np.arange(len(indices))]))
        row = torch.repeat_interleave(row, count, output_size=total)
        place = torch.arange(total, device=self.device) + shift[row]
        dense = torch.zeros(len(indices) * self.n_genes, device=self.device)
        dense[row * self.n_genes + self._columns[place]] = self._values[place]
        return dense.view(len(indices), self.n_genes)

    def _sent(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def fits(reader: CellReader, device: torch.device) -> bool:
    """Return whether a device is a CUDA device with room for the matrix; a matrix on disk stays there."""
    if device.type != "cuda" or not reader.in_memory:
        return False
    matrix = reader.matrix
    if sp.issparse(matrix):
        n_bytes = matrix.nnz * (torch.float32.itemsize + matrix.indices.itemsize)
    else:
        n_bytes = matrix.size * torch.float32.itemsize
    return n_bytes < SHARE_OF_FREE_MEMORY * torch.cuda.mem_get_info(device)[0]
