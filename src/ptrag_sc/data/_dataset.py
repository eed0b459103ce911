"""How do cell sets become tensors?"""

from typing import TypeAlias

import numpy as np
import torch
from torch.utils.data import Dataset

from ptrag_sc.data._reader import RowSource
from ptrag_sc.data._set_sampler import CellSets

BATCH: TypeAlias = dict[str, torch.Tensor]  # mini-batch of B sets


class CellSetDataset(Dataset[BATCH]):
    """Tensors of cell sets.

    Parameters
    ----------
    source
        Rows of the registered matrix.
    with_target
        Whether the observed target cells are read too: in training they are, in prediction they are not.
    drift
        Mean change of control cells from start to end (T, G), which is taken from the target cells: only what is left
        is learned. None: there is none.
    """

    def __init__(self, source: RowSource, *, with_target: bool, drift: np.ndarray | None = None):
        self.source = source
        self.drift = None if drift is None else torch.as_tensor(drift, dtype=torch.float32)
        self.with_target = with_target

    def __getitem__(self, sets: CellSets) -> BATCH:
        """Return the mini-batch of one :class:`CellSets`; padded places are 0."""
        rows = {"control": sets.control}  # (B, S) each
        masks = {"control": sets.control_mask}  # (B, S) each
        if self.with_target:
            rows["target"] = sets.target
            masks["target"] = sets.target_mask
        # All cells are read at once, because one read of many rows is faster than two of half as many.
        read = self.source.rows(np.concatenate([part.ravel() for part in rows.values()]))
        parts = torch.as_tensor(read).split([part.size for part in rows.values()])  # (B * S, G) each
        batch = {"query": torch.from_numpy(sets.query), "cell_type": torch.from_numpy(sets.cell_type)}
        for name, part in zip(rows, parts, strict=True):
            cells = part.view(*rows[name].shape, -1)  # (B, S, G)
            mask = torch.from_numpy(masks[name])  # (B, S)
            if name == "target" and self.drift is not None:
                cells -= self.drift[batch["cell_type"]][:, None].to(cells.device)
            if not masks[name].all():
                cells.masked_fill_(~mask.to(cells.device, non_blocking=True)[..., None], 0.0)
            batch[f"{name}_cells"] = cells
            batch[f"{name}_mask"] = mask
        return batch
