"""Which cells stand together in a set, in training and at prediction?"""

import math
from collections.abc import Iterator
from copy import copy
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch.utils.data import Sampler

from ptrag_sc.data._conditions import ConditionIndex


class CellSets(NamedTuple):
    """B cell sets as row numbers; places where a mask is False are padding.

    In prediction ``target`` holds the rows of the *output* that the generated cells go to.
    """

    query: np.ndarray  # (B,) row of the query table
    cell_type: np.ndarray  # (B,)
    ordinal: np.ndarray  # (B,) which set of its condition
    target: np.ndarray  # (B, S)
    target_mask: np.ndarray  # (B, S)
    control: np.ndarray  # (B, S)
    control_mask: np.ndarray  # (B, S)


def pad(rows: list[np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Stack row numbers of unequal length into (B, size) and the mask of real places."""
    length = np.array([len(r) for r in rows])  # (B,)
    mask = np.arange(size) < length[:, None]  # (B, size)
    padded = np.zeros((len(rows), size), dtype=np.int64)
    if rows:
        padded[mask] = np.concatenate(rows)
    return padded, mask


def match_composition(pools: list[np.ndarray], share: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw up to ``size`` distinct controls whose batches follow ``share``.

    Quotas come from systematic sampling (one uniform offset), so each batch's expected count is exactly
    ``size * share``. If a batch has too few controls, the others of the cell type supply the rest.

    Parameters
    ----------
    pools
        Control rows of each batch of the cell type.
    share
        Share of each batch among the target cells; sums to 1.
    """
    # The same offset for all edges: quotas are whole, sum to size, and have the right expectation.
    edges = np.floor(rng.random() + size * np.concatenate([[0.0], np.cumsum(share)])).astype(int)  # (n_batches + 1,)
    quota = np.diff(edges)  # (n_batches,)
    drawn = [_choose(pool, q, rng) for pool, q in zip(pools, quota, strict=True)]
    short = size - sum(map(len, drawn))
    if short > 0:
        rest = np.setdiff1d(np.concatenate(pools), np.concatenate(drawn), assume_unique=True)
        drawn.append(_choose(rest, short, rng))
    return np.concatenate(drawn)


def _choose(rows: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return up to n distinct rows."""
    if n <= 0:
        return rows[:0]
    # Attention and losses ignore the order of cells, so none is drawn.
    return rng.choice(rows, size=min(n, len(rows)), replace=False, shuffle=False)


class RandomSets(Sampler[CellSets]):
    """Fresh cell sets of every condition, once per epoch, in random order.

    A set holds ``min(set_size, n)`` distinct cells of the condition and up to ``set_size`` distinct control cells
    of the same cell type and the same batch composition (see :func:`match_composition`). The draw depends on (seed,
    epoch, condition) only, so the ranks of a distributed run agree on it and take disjoint shares.

    Parameters
    ----------
    index
        The screen.
    conditions
        Columns ``perturbation``, ``cell_type`` (codes): what to visit.
    query
        Row of the query table for each condition (C,).
    set_size, batch_size
        S and B.
    seed
        Seed of the draw.
    fresh
        Whether every epoch draws anew (training) or repeats the first draw in order (validation).
    matching
        Share of its controls that a batch takes from itself (n_batches,), see :func:`matching_weights`; the others are
        drawn from all batches of the cell type. None: all are its own.
    """

    def __init__(
        self,
        index: ConditionIndex,
        conditions: pd.DataFrame,
        query: np.ndarray,
        *,
        set_size: int,
        batch_size: int,
        seed: int,
        fresh: bool = True,
        matching: np.ndarray | None = None,
    ):
        self.index = index
        self.query = np.asarray(query, dtype=np.int64)  # (C,)
        self.set_size = set_size
        self.batch_size = batch_size
        self.seed = seed
        self.fresh = fresh
        self.matching = matching
        self.rank = 0
        self.world_size = 1
        self.epoch = 0
        self.cell_type = conditions["cell_type"].to_numpy(dtype=np.int64)  # (C,)
        perturbation = conditions["perturbation"].to_numpy(dtype=np.int64)  # (C,)
        # What every epoch needs again: rows of each condition, control pools of each cell type, shares of the pools.
        self.rows_of = [index.rows(p, t) for p, t in zip(perturbation, self.cell_type, strict=True)]
        self._pools = {t: _batch_pools(index, t) for t in np.unique(self.cell_type)}
        self._share = [
            _batch_share(index.batch[r], *self._pools[t], matching)
            for r, t in zip(self.rows_of, self.cell_type, strict=True)
        ]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose draw comes next (Lightning calls this)."""
        self.epoch = epoch

    def for_rank(self, rank: int, world_size: int) -> "RandomSets":
        """Return the sampler of one process of a distributed run."""
        part = copy(self)  # shares the tables, which are never changed
        part.rank = rank
        part.world_size = world_size
        return part

    def __len__(self) -> int:
        """Return the number of mini-batches of one rank."""
        per_rank = math.ceil(len(self.rows_of) / self.world_size)
        return math.ceil(per_rank / self.batch_size)

    def _order(self) -> np.ndarray:
        """Return which conditions an epoch visits, in order: each of them once."""
        return np.random.default_rng([self.seed, self.epoch]).permutation(len(self.rows_of))

    def _draw(self, condition: int, epoch: int, visit: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the target rows (s,) and control rows (s',) of one set; ``visit`` counts those of an epoch."""
        key = [self.seed, epoch, condition]
        rng = np.random.default_rng(key if visit == 0 else [*key, visit])
        target = _choose(self.rows_of[condition], self.set_size, rng)
        _, pools = self._pools[self.cell_type[condition]]
        return target, match_composition(pools, self._share[condition], self.set_size, rng)

    def __iter__(self) -> Iterator[CellSets]:
        """Yield the mini-batches of one epoch."""
        epoch = 0
        order = np.arange(len(self.rows_of))  # (C,)
        if self.fresh:
            epoch = self.epoch
            order = self._order()
        # Every rank needs equally many sets, or one would wait for ever: if the count does not divide, np.resize starts
        # again from the front.
        per_rank = math.ceil(len(order) / self.world_size)
        visit = pd.Series(order).groupby(order).cumcount().to_numpy()  # 0, unless a condition is visited again
        order, visit = (np.resize(x, per_rank * self.world_size)[self.rank :: self.world_size] for x in (order, visit))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            drawn = [
                self._draw(c, epoch, v) for c, v in zip(chosen, visit[start : start + self.batch_size], strict=True)
            ]
            target, target_mask = pad([t for t, _ in drawn], self.set_size)
            control, control_mask = pad([c for _, c in drawn], self.set_size)
            ordinal = np.zeros(len(chosen), dtype=np.int64)
            yield CellSets(
                self.query[chosen], self.cell_type[chosen], ordinal, target, target_mask, control, control_mask
            )


def _batch_pools(index: ConditionIndex, cell_type: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the batches of a cell type and the control rows of each (a batch without controls: none)."""
    batches = np.unique(index.batch[index.cell_type == cell_type])
    controls = index.sources(cell_type)
    return batches, [controls[index.batch[controls] == b] for b in batches]


def _batch_share(
    batch: np.ndarray, batches: np.ndarray, pools: list[np.ndarray], matching: np.ndarray | None
) -> np.ndarray:
    """Return the share of each batch among the controls of a set, given the batch of each of its cells (n,)."""
    share = np.bincount(np.searchsorted(batches, batch), minlength=len(batches)) / len(batch)  # (n_batches,)
    if matching is None:
        return share
    n = np.array([len(pool) for pool in pools])  # (n_batches,) control cells
    own = matching[batches]
    # What a batch does not take from itself is spread over all controls of the cell type alike.
    return share * own + (share @ (1 - own)) * n / n.sum()


def name_hash(names: np.ndarray, seed: int) -> np.ndarray:
    """Return one seeded 64-bit number per cell name (n,), so that the order of cells does not depend on their rows."""
    # pandas wants a key of exactly 16 characters.
    return pd.util.hash_array(np.asarray(names, dtype=object), hash_key=f"{seed:016d}"[-16:], categorize=False)


class PlannedSet(NamedTuple):
    """One prediction set: output rows (s,) and the distinct control cells (s,) that they are generated from."""

    query: int
    cell_type: int
    ordinal: int
    output: np.ndarray
    source: np.ndarray


class SequentialSets:
    """Prediction sets in a fixed order.

    Parameters
    ----------
    planned
        The sets; membership depends on each condition's own cells only (:func:`deal_sets`).
    batch_size
        B; changes nothing but speed.
    """

    def __init__(self, planned: list[PlannedSet], *, batch_size: int):
        self.planned = planned
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Return the number of mini-batches."""
        return math.ceil(len(self.planned) / self.batch_size)

    def __iter__(self) -> Iterator[CellSets]:
        """Yield mini-batches."""
        for start in range(0, len(self.planned), self.batch_size):
            sets = self.planned[start : start + self.batch_size]
            size = max(len(one.output) for one in sets)
            target, mask = pad([one.output for one in sets], size)
            # One control cell per output row, so both have the same mask.
            control, _ = pad([one.source for one in sets], size)
            query = np.array([one.query for one in sets])
            cell_type = np.array([one.cell_type for one in sets])
            ordinal = np.array([one.ordinal for one in sets])
            yield CellSets(query, cell_type, ordinal, target, mask, control, mask)
