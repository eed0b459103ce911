"""How do cell sets become tensors?"""

import numpy as np
import torch
from torch.utils.data import Dataset

from ptrag_sc.data._reader import RowSource
from ptrag_sc.data._set_sampler import CellSets

BATCH = dict[str, torch.Tensor]


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
