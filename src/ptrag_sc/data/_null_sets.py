"""Which control cells show what happens without a perturbation?"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from ptrag_sc._validation import unusable
from ptrag_sc.data._set_sampler import CellSets, RandomSets, match_composition, pad

SHARE = 0.25  # null sets over other sets of a mini-batch
LEAST = 4  # control cells of a group: two on either side


class _Group(NamedTuple):
    """Control cells of one cell type and, where they are enough, of one batch."""

    target: np.ndarray  # rows of the control cells that are observed
    pools: list[np.ndarray]  # rows of the control cells to start from, by batch of the cell type
    share: np.ndarray  # of each batch
    has_both: bool  # whether the same cells are on both sides


class WithNullSets(Sampler[CellSets]):
    """Mini-batches of another sampler, each with further null sets: query 0, and target cells that are control cells.

    A null set holds control cells a, which the model predicts without a perturbation, and disjoint control cells b of
    the same cell type and batch, which show what they should become. Where time is registered, a are at the start and b
    at the end. Cell types are drawn uniformly from all that have control cells, whatever their split, and then a batch.

    Parameters
    ----------
    sets
        The training sets.
    """

    def __init__(self, sets: RandomSets):
        self.sets = sets
        self.groups = _groups(sets)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose draw comes next (Lightning calls this)."""
        self.sets.set_epoch(epoch)

    def for_rank(self, rank: int, world_size: int) -> "WithNullSets":
        """Return the sampler of one process of a distributed run."""
        return WithNullSets(self.sets.for_rank(rank, world_size))

    def __len__(self) -> int:
        """Return the number of mini-batches of one rank."""
        return len(self.sets)

    def __iter__(self) -> Iterator[CellSets]:
        """Yield the mini-batches of one epoch."""
        for number, batch in enumerate(self.sets):
            # A stream of its own, so that the other sets are those without null sets.
            key = [self.sets.seed, self.sets.epoch, self.sets.rank, number, 1]
            null = self._drawn(math.ceil(SHARE * len(batch.query)), np.random.default_rng(key))
            yield CellSets(*(np.concatenate(pair) for pair in zip(batch, null, strict=True)))

    def _drawn(self, n: int, rng: np.random.Generator) -> CellSets:
        """Return n null sets."""
        size = self.sets.set_size
        types = sorted(self.groups)
        cell_type = np.array([types[i] for i in rng.integers(len(types), size=n)])  # (n,)
        drawn = [_sides(self.groups[t][rng.integers(len(self.groups[t]))], size, rng) for t in cell_type]
        control, control_mask = pad([a for a, _ in drawn], size)
        target, target_mask = pad([b for _, b in drawn], size)
        nothing = np.zeros(n, dtype=np.int64)
        return CellSets(nothing, cell_type, nothing, target, target_mask, control, control_mask)


def _sides(group: _Group, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return control cells (s,) to start from, and other ones (s',) that are observed."""
    target = rng.permutation(group.target)
    if not group.has_both:
        return match_composition(group.pools, group.share, size, rng), target[:size]
    half = min(size, len(target) // 2)
    return target[half : 2 * half], target[:half]


def _groups(sets: RandomSets) -> dict[int, list[_Group]]:
    """Return the groups of control cells of every cell type.

    A batch with too few of them is left out if others have enough, and else the cell type is one group.
    """
    index = sets.index
    found: dict[int, list[_Group]] = {}
    for t in range(len(index.cell_types)):
        target, source = index.controls(t), index.sources(t)
        if len(target) < LEAST or not len(source):
            continue
        batches = np.unique(index.batch[index.cell_type == t])
        pools = [source[index.batch[source] == b] for b in batches]
        both = index.start is None
        of_batch = [
            _Group(rows, pools, share, both)
            for rows, share in zip(
                (target[index.batch[target] == b] for b in batches), np.eye(len(batches)), strict=True
            )
            if len(rows) >= LEAST
        ]
        found[t] = of_batch or [_Group(target, pools, np.full(len(batches), 1 / len(batches)), both)]
    if not found:
        remedy = "Pass null_weight=0, or add control cells."
        problem = f"has fewer than {LEAST} control cells in every cell type, too few for null sets"
        raise ValueError(unusable("The screen", "train", problem, remedy))
    return found
