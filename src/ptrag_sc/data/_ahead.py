"""How are mini-batches read from disk while the model computes?"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from torch.utils.data import Dataset, Sampler

from ptrag_sc.data._dataset import BATCH, CellSetDataset
from ptrag_sc.data._null_sets import WithNullSets
from ptrag_sc.data._set_sampler import RandomSets

DEPTH = 2  # mini-batches that are read ahead


class Ahead(Sampler["Future[BATCH]"]):
    """Mini-batches that a thread reads in the order of a sampler, some of them before they are asked for.

    Parameters
    ----------
    sets
        Which sets are read.
    dataset
        Reads them.
    """

    def __init__(self, sets: RandomSets | WithNullSets, dataset: CellSetDataset):
        self.sets = sets
        self.dataset = dataset

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose draw comes next (Lightning calls this)."""
        self.sets.set_epoch(epoch)

    def __len__(self) -> int:
        """Return the number of mini-batches."""
        return len(self.sets)

    def __iter__(self) -> Iterator["Future[BATCH]"]:
        """Yield mini-batches to come."""
        # One thread: files are read one at a time anyway, and the order of the mini-batches stays.
        thread = ThreadPoolExecutor(1, thread_name_prefix="ptrag-sc-reader")
        coming: deque[Future[BATCH]] = deque()
        try:
            for one in self.sets:
                coming.append(thread.submit(self.dataset.__getitem__, one))
                if len(coming) > DEPTH:
                    yield coming.popleft()
            yield from coming
        finally:  # an epoch may end early
            thread.shutdown(cancel_futures=True)


class Arrived(Dataset[BATCH]):
    """The mini-batches of :class:`Ahead`, each as soon as it is there."""

    def __getitem__(self, coming: "Future[BATCH]") -> BATCH:
        """Return one mini-batch, or raise what went wrong when it was read."""
        return coming.result()
