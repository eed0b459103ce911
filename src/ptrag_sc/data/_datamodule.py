"""What does Lightning ask for batches?"""

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from ptrag_sc.data._dataset import CellReader, CellSetDataset
from ptrag_sc.data._set_sampler import RandomSets


class CellSetDataModule(LightningDataModule):
    """Loaders of training sets (fresh every epoch) and validation sets (the same every epoch).

    Parameters
    ----------
    reader
        Expression rows.
    train, val
        Samplers; ``val`` may be None.
    """

    def __init__(self, reader: CellReader, train: RandomSets, val: RandomSets | None):
        super().__init__()
        self.dataset = CellSetDataset(reader, with_target=True)
        self.train_sets, self.val_sets = train, val

    def _loader(self, sets: RandomSets) -> DataLoader:
        if self.trainer is not None:
            sets = sets.for_rank(self.trainer.global_rank, self.trainer.world_size)
        # In memory, no workers is the fastest: a set is one vectorised gather.
        return DataLoader(self.dataset, sampler=sets, batch_size=None)

    def train_dataloader(self) -> DataLoader:
        """Return the loader of training sets."""
        return self._loader(self.train_sets)

    def val_dataloader(self) -> DataLoader | list:
        """Return the loader of validation sets; empty without validation conditions."""
        return [] if self.val_sets is None else self._loader(self.val_sets)
