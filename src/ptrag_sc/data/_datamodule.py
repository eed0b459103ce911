"""What does Lightning ask for batches?"""

from collections.abc import Callable
from typing import Literal

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from ptrag_sc._validation import absent, unusable
from ptrag_sc.data._dataset import BATCH, CellSetDataset
from ptrag_sc.data._device_matrix import DeviceMatrix, fits
from ptrag_sc.data._reader import CellReader
from ptrag_sc.data._set_sampler import RandomSets

DATA_DEVICES = ("auto", "host", "accelerator")


class CellSetDataModule(LightningDataModule):
    """Loaders of training sets (fresh every epoch) and validation sets (the same every epoch).

    Parameters
    ----------
    reader
        Expression rows.
    train, val
        Samplers; ``val`` may be None.
    data_device
        Where the matrix lives during training: on the ``"host"``, on the ``"accelerator"``, or (``"auto"``) on the
        latter if that is a CUDA device with room for it.
    prepare
        What is done with a mini-batch on the host, before it travels.

    Raises
    ------
    ValueError
        If ``data_device`` is something else, or the matrix of ``"accelerator"`` is on disk.
    """

    def __init__(
        self,
        reader: CellReader,
        train: RandomSets,
        val: RandomSets | None,
        *,
        data_device: Literal["auto", "host", "accelerator"],
        prepare: Callable[[BATCH], BATCH],
    ):
        super().__init__()
        if data_device not in DATA_DEVICES:
            raise ValueError(absent("data_device=", data_device, "train", DATA_DEVICES, "Pass one of them."))
        if data_device == "accelerator" and not reader.in_memory:
            remedy = "Read it with adata.to_memory(), or leave data_device='auto'."
            raise ValueError(unusable("data_device='accelerator'", "train", "cannot hold a matrix on disk", remedy))
        self.reader, self.data_device, self.prepare = reader, data_device, prepare
        self.train_sets, self.val_sets = train, val
        self.dataset: CellSetDataset | None = None

    def setup(self, stage: str) -> None:
        """Place the matrix; Lightning calls this when the device of this process is known."""
        device = self.trainer.strategy.root_device
        chosen = self.data_device == "accelerator" or (self.data_device == "auto" and fits(self.reader, device))
        source = DeviceMatrix(self.reader, device) if chosen else self.reader
        self.dataset = CellSetDataset(source, with_target=True)

    def teardown(self, stage: str) -> None:
        """Let the matrix go: a model keeps its trainer, and the trainer this module."""
        if self.dataset is not None:
            self.dataset.source = self.reader

    def on_before_batch_transfer(self, batch: BATCH, dataloader_idx: int) -> BATCH:
        """Return the prepared mini-batch."""
        return self.prepare(batch)

    def _loader(self, sets: RandomSets) -> DataLoader:
        sets = sets.for_rank(self.trainer.global_rank, self.trainer.world_size)
        # Without workers: a mini-batch is one vectorised gather. What still travels to a GPU does so from pinned
        # memory, while the device computes.
        from_host = self.dataset.source is self.reader
        pinned = from_host and self.trainer.strategy.root_device.type == "cuda"
        return DataLoader(self.dataset, sampler=sets, batch_size=None, pin_memory=pinned)

    def train_dataloader(self) -> DataLoader:
        """Return the loader of training sets."""
        return self._loader(self.train_sets)

    def val_dataloader(self) -> DataLoader | list:
        """Return the loader of validation sets; empty without validation conditions."""
        return [] if self.val_sets is None else self._loader(self.val_sets)
