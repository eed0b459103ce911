"""Which cells belong to which condition, and how are names and integers translated?

A *condition* is (perturbation, cell type). Everything above this file works with the integers of one
:class:`ConditionIndex`; names become integers here and nowhere else. What a label names is decided in ``_labels.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import pandas as pd

from ptrag_sc._constants import SPLITS
from ptrag_sc._validation import absent, listed, unusable

UNLABELLED = ""  # the split of a control cell that has none

Labels = Sequence[str] | np.ndarray  # one label per cell (n,)


@dataclass(frozen=True)
class ConditionIndex:
    """Cells of a screen as integers.

    Parameters
    ----------
    perturbations, cell_types
        Canonical names (U,), the control among them, and names (T,); both sorted.
    control
        Position of the control in ``perturbations``.
    perturbation, cell_type
        Code of every cell (n,).
    batch
        Code of every cell's (cell type, batch) pair (n,): a batch name that two cell types share is two batches.
    start
        Which cells are control cells at the start (n,), if time was registered; then the other control cells are those
        at the end, with which perturbed cells are compared. None: the same control cells serve as both.
    """

    perturbations: np.ndarray
    cell_types: np.ndarray
    control: int
    perturbation: np.ndarray
    cell_type: np.ndarray
    batch: np.ndarray
    start: np.ndarray | None = None

    @classmethod
    def from_labels(
        cls,
        perturbation: Labels,
        cell_type: Labels,
        batch: Labels | None,
        *,
        control: str,
        start: np.ndarray | None = None,
    ) -> Self:
        """Build the index from one label per cell; ``batch=None`` puts each cell type into one batch."""
        perturbations, p = np.unique(np.asarray(perturbation, dtype=str), return_inverse=True)  # (U,), (n,)
        cell_types, t = np.unique(np.asarray(cell_type, dtype=str), return_inverse=True)  # (T,), (n,)
        b = np.zeros(len(p), dtype=np.int64)  # (n,) code of the batch name
        if batch is not None:
            b = np.unique(np.asarray(batch, dtype=str), return_inverse=True)[1]
        pairs = np.unique(t * (b.max(initial=0) + 1) + b, return_inverse=True)[1]  # (n,), without gaps
        return cls(perturbations, cell_types, int(np.searchsorted(perturbations, control)), p, t, pairs, start)

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return len(self.perturbation)

    @cached_property
    def is_control(self) -> np.ndarray:
        """Whether each cell is a control cell that perturbed cells are compared with (n,)."""
        is_control: np.ndarray = self.perturbation == self.control
        if self.start is None:
            return is_control
        return is_control & ~self.start

    @cached_property
    def is_source(self) -> np.ndarray:
        """Whether each cell is a control cell that predictions start from (n,)."""
        if self.start is None:
            return self.is_control
        return self.start

    @cached_property
    def _groups(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Condition keys present (C',), rows grouped by them (n,), and where each group starts (C'+1,)."""
        key = self.perturbation.astype(np.int64) * len(self.cell_types) + self.cell_type  # (n,)
        rows = np.argsort(key, kind="stable")  # stable, so the rows of a group stay ascending
        present, start = np.unique(key[rows], return_index=True)
        return present, rows, np.append(start, self.n_obs)

    def rows(self, perturbation: int, cell_type: int) -> np.ndarray:
        """Return the rows of one condition, ascending; empty if it has no cells or a code is -1 (unknown)."""
        present, rows, start = self._groups
        key = perturbation * len(self.cell_types) + cell_type
        i = int(np.searchsorted(present, key))
        if min(perturbation, cell_type) < 0 or i == len(present) or present[i] != key:
            return rows[:0]
        return rows[start[i] : start[i + 1]]

    def controls(self, cell_type: int) -> np.ndarray:
        """Return the rows of the control cells of one cell type that perturbed cells are compared with, ascending."""
        rows = self.rows(self.control, cell_type)
        return rows[self.is_control[rows]]

    def sources(self, cell_type: int) -> np.ndarray:
        """Return the rows of the control cells of one cell type that predictions start from, ascending."""
        rows = self.rows(self.control, cell_type)
        return rows[self.is_source[rows]]

    @cached_property
    def conditions(self) -> pd.DataFrame:
        """Conditions other than control: codes ``perturbation``, ``cell_type`` and ``n_cells``, sorted."""
        present, _, start = self._groups
        p, t = np.divmod(present, len(self.cell_types))  # undoes the key: (C',), (C',)
        table = pd.DataFrame({"perturbation": p, "cell_type": t, "n_cells": np.diff(start)})
        return table[p != self.control].reset_index(drop=True)

    def coded(self, conditions: pd.DataFrame) -> pd.DataFrame:
        """Return a condition table with codes instead of names; -1 for a name that does not occur here."""
        return conditions.assign(
            perturbation=pd.Index(self.perturbations).get_indexer(conditions["perturbation"].astype(str)),
            cell_type=pd.Index(self.cell_types).get_indexer(conditions["cell_type"].astype(str)),
        )

    def named(self, conditions: pd.DataFrame) -> pd.DataFrame:
        """Return a condition table with names instead of codes."""
        return conditions.assign(
            perturbation=self.perturbations[conditions["perturbation"].to_numpy()],
            cell_type=self.cell_types[conditions["cell_type"].to_numpy()],
        )


def condition_split(index: ConditionIndex, split: np.ndarray, *, place: str) -> pd.DataFrame:
    """Return ``index.conditions`` with a column ``split``, read from one label per cell.

    Control cells may carry any of the labels, or none (NaN): they are inputs everywhere.

    Raises
    ------
    ValueError
        If a label is not train, val or test, or one condition carries two of them.
    """
    table = index.conditions
    strange = sorted(set(split) - {*SPLITS, UNLABELLED})
    if strange:
        known = f"the values of a split ({listed(SPLITS)})"
        raise ValueError(absent("Split value", strange[0], known, sorted(set(split)), f"Correct {place}."))
    labels = []
    for p, t in zip(table["perturbation"], table["cell_type"], strict=True):
        found = np.unique(split[index.rows(p, t)])  # labels of the condition's cells
        what = f"Condition '{index.perturbations[p]} in {index.cell_types[t]}'"
        if UNLABELLED in found:
            remedy = f"Label its cells with one of {listed(SPLITS)}; only control cells need no label."
            raise ValueError(unusable(what, place, "has cells without a label (NaN)", remedy))
        if len(found) > 1:
            problem = f"is split between {listed(found)}"
            raise ValueError(unusable(what, place, problem, "Splits hold out conditions."))
        labels.append(str(found[0]))
    return table.assign(split=labels)
