"""How do rows of a registered matrix become dense tensors, whatever the matrix is stored as?"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.sparse as sp
import torch
from anndata.abc import CSCDataset, CSRDataset
from torch.utils.data import Dataset

from ptrag_sc.data._set_sampler import CellSets

BATCH = dict[str, torch.Tensor]


@dataclass(frozen=True)
class CellReader:
    """Dense rows of an in-memory CSR, dense or backed matrix.

    Parameters
    ----------
    matrix
        Cells x genes as it stands in the AnnData.
    columns
        Columns to return, in order; None returns all.
    """

    matrix: np.ndarray | sp.csr_matrix | CSRDataset
    columns: np.ndarray | None = None

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self.matrix.shape[0]

    @property
    def n_genes(self) -> int:
        """Number of genes returned."""
        return self.matrix.shape[1] if self.columns is None else len(self.columns)

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
        else:  # on disk: unique ascending rows are read, then order and duplicates restored
            unique, inverse = np.unique(indices, return_inverse=True)
            block = self.matrix[unique]
            dense = (block.toarray() if sp.issparse(block) else np.asarray(block))[inverse]
        if self.columns is not None:
            dense = dense[:, self.columns]
        return np.ascontiguousarray(dense, dtype=np.float32)

    def chunks(self, indices: np.ndarray, size: int = 4096) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (indices, dense rows) in pieces of bounded size."""
        for start in range(0, len(indices), size):
            part = indices[start : start + size]
            yield part, self.rows(part)

    def values(self, size: int = 65536) -> Iterator[np.ndarray]:
        """Yield the stored values of the whole matrix piece by piece; implicit zeros may be left out."""
        if sp.issparse(self.matrix):
            yield from np.array_split(self.matrix.data, max(1, len(self.matrix.data) // 2**24))
            return
        for start in range(0, self.n_obs, size):
            block = self.matrix[start : start + size]
            yield block.data if sp.issparse(block) else np.asarray(block)


def as_row_matrix(matrix: object) -> np.ndarray | sp.csr_matrix | CSRDataset:
    """Return the matrix in a form whose rows are cheap to read (CSC is converted once, in memory)."""
    if isinstance(matrix, CSCDataset):
        return matrix.to_memory().tocsr()
    if sp.issparse(matrix):
        return matrix.tocsr()
    return matrix


class RowSource(Protocol):
    """Where dense rows come from: :class:`CellReader`, or :class:`DeviceMatrix` on an accelerator."""

    def rows(self, indices: np.ndarray) -> np.ndarray | torch.Tensor:
        """Return rows in the order asked for, duplicates included, as float32 (n, G)."""


class CellSetDataset(Dataset):
    """Tensors of cell sets.

    Parameters
    ----------
    source
        Rows of the registered matrix.
    with_target
        Whether the observed target cells are read too (training) or not (prediction).
    """

    def __init__(self, source: RowSource, *, with_target: bool):
        self.source = source
        self.with_target = with_target

    def __getitem__(self, sets: CellSets) -> BATCH:
        """Return the mini-batch of one :class:`CellSets`, all cells read at once; padded places are 0."""
        masks = {"control": sets.control_mask, "target": sets.target_mask}
        rows = {"control": sets.control, "target": sets.target}
        names = ("control", "target") if self.with_target else ("control",)
        cells = torch.as_tensor(self.source.rows(np.concatenate([rows[name].ravel() for name in names])))
        batch = {"query": torch.from_numpy(sets.query), "cell_type": torch.from_numpy(sets.cell_type)}
        for name, part in zip(names, cells.split([rows[name].size for name in names]), strict=True):
            part, mask = part.view(*rows[name].shape, -1), torch.from_numpy(masks[name])
            if not masks[name].all():
                part.masked_fill_(~mask.to(part.device, non_blocking=True)[..., None], 0.0)
            batch |= {f"{name}_cells": part, f"{name}_mask": mask}
        return batch
