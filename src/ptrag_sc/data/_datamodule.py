"""What does Lightning ask for batches?"""

from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from ptrag_sc._validation import absent, unusable
from ptrag_sc.data._ahead import Ahead, Arrived
from ptrag_sc.data._dataset import BATCH, CellSetDataset
from ptrag_sc.data._device_matrix import DeviceMatrix, fits
from ptrag_sc.data._null_sets import WithNullSets
from ptrag_sc.data._reader import CellReader, RowSource
from ptrag_sc.data._set_sampler import RandomSets

DATA_DEVICES = ("auto", "host", "accelerator")

Loader: TypeAlias = DataLoader[BATCH]


class CellSetDataModule(LightningDataModule):
    """Loaders of training sets (fresh every epoch) and validation sets (the same every epoch).

    Parameters
    ----------
    reader
        Expression rows.
    train, val
        Samplers; ``val`` may be None.
    data_device
        Where the matrix is kept during training: on the ``"host"``, on the ``"accelerator"``, or (``"auto"``) on the
        latter if that is a CUDA device with room for it.
    prepare
        Called with each mini-batch on the host, before it is copied to the device.
    drift
        Mean change of control cells from start to end, see :class:`CellSetDataset`.

    Raises
    ------
    ValueError
        If ``data_device`` is something else, or the matrix of ``"accelerator"`` is on disk.
    """

    def __init__(
        self,
        reader: CellReader,
        train: RandomSets | WithNullSets,
        val: RandomSets | None,
        *,
        data_device: Literal["auto", "host", "accelerator"],
        prepare: Callable[[BATCH], BATCH],
        drift: np.ndarray | None = None,
    ):
        super().__init__()
        if data_device not in DATA_DEVICES:
            raise ValueError(absent("data_device=", data_device, "train", DATA_DEVICES, "Pass one of them."))
        # Rows on disk are read one by one, so the matrix as a whole never exists on the host either.
        if data_device == "accelerator" and not reader.in_memory:
            remedy = "Read it with adata.to_memory(), or leave data_device='auto'."
            raise ValueError(unusable("data_device='accelerator'", "train", "cannot hold a matrix on disk", remedy))
        self.reader = reader
        self.data_device = data_device
        self.prepare = prepare
        self.train_sets = train
        self.val_sets = val
        self.dataset = CellSetDataset(reader, with_target=True, drift=drift)

    @property
    def _attached(self) -> Trainer:
        """The trainer, which exists in every hook that Lightning calls."""
        if self.trainer is None:
            raise RuntimeError("No trainer is attached; pass this module to Trainer.fit.")
        return self.trainer

    def setup(self, stage: str) -> None:
        """Place the matrix; Lightning calls this when the device of this process is known."""
        device = self._attached.strategy.root_device
        source: RowSource = self.reader
        if self.data_device == "accelerator" or (self.data_device == "auto" and fits(self.reader, device)):
            source = DeviceMatrix(self.reader, device)
        self.dataset.source = source

    def teardown(self, stage: str) -> None:
        """Drop the matrix on the device, because a model keeps its trainer, and the trainer keeps this module."""
        self.dataset.source = self.reader

    def on_before_batch_transfer(self, batch: BATCH, dataloader_idx: int) -> BATCH:
        """Return the prepared mini-batch."""
        return self.prepare(batch)

    def _loader(self, sets: RandomSets | WithNullSets) -> Loader:
        trainer = self._attached
        # From pinned memory the copy to a GPU runs while the device computes.
        from_host = self.dataset.source is self.reader
        pinned = from_host and trainer.strategy.root_device.type == "cuda"
        sampler = sets.for_rank(trainer.global_rank, trainer.world_size)
        if not self.reader.in_memory:
            return DataLoader(Arrived(), sampler=Ahead(sampler, self.dataset), batch_size=None, pin_memory=pinned)
        # Without workers, because a mini-batch is one vectorised gather: sending it between processes costs more.
        return DataLoader(
            self.dataset,
            sampler=sampler,
            batch_size=None,  # the sampler yields whole mini-batches
            pin_memory=pinned,
        )

    def train_dataloader(self) -> Loader:
        """Return the loader of training sets."""
        return self._loader(self.train_sets)

    def val_dataloader(self) -> Loader | list[Loader]:
        """Return the loader of validation sets; an empty list without validation conditions."""
        # To Lightning an empty list means that there is no validation.
        if self.val_sets is None:
            return []
        return self._loader(self.val_sets)
