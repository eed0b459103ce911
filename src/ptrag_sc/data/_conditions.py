"""Which cells belong to which condition, and how are names and integers translated?

A *condition* is (perturbation, cell type). Everything above this file works with the integers of one
:class:`ConditionIndex`; names become integers here and nowhere else.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import numpy as np
import pandas as pd

from ptrag_sc._constants import SPLITS
from ptrag_sc._validation import absent, listed, unusable

Holdout = Literal["pair", "perturbation", "cell_type"]
Labels = Sequence[str] | np.ndarray  # one label per cell (n,)
Fractions = tuple[float, float]  # test, validation


def components(label: str, sep: str) -> tuple[str, ...]:
    """Return the perturbed genes of a label in sorted order.

    Raises
    ------
    ValueError
        If a component is empty or occurs twice (``A+A``).

    Examples
    --------
    >>> components("B+A", "+")
    ('A', 'B')
    """
    # A numpy string would show its type in messages: np.str_('A+B').
    label = str(label)
    parts = sorted(part.strip() for part in label.split(sep))
    what, place = f"Label {label!r}", "the perturbations"
    if not all(parts):
        raise ValueError(unusable(what, place, "has an empty component", f"sep={sep!r}?"))
    if len(set(parts)) < len(parts):
        raise ValueError(unusable(what, place, "names a gene twice", "Name each gene once."))
    return tuple(parts)


def canonical(label: str, sep: str) -> str:
    """Return the label under which ``B+A`` and ``A+B`` are one perturbation.

    Examples
    --------
    >>> canonical("B+A", "+")
    'A+B'
    """
    return sep.join(components(label, sep))


def as_names(values: Iterable[object]) -> np.ndarray:
    """Return names as a numpy array of str; pandas 3 and zarr store them in string types of their own."""
    return np.array([str(value) for value in values], dtype=str)


def read_labels(obs: pd.DataFrame, key: str) -> np.ndarray:
    """Return one obs column as strings (n,), refusing a missing column and missing labels.

    Raises
    ------
    KeyError
        If the column does not exist.
    ValueError
        If it holds NaN.
    """
    if key not in obs:
        raise KeyError(absent("Column", key, "adata.obs", obs.columns, "Name an existing column."))
    column = obs[key]
    unlabelled = obs.index[column.isna().to_numpy()]
    if len(unlabelled):
        problem = f"are missing (NaN) for {len(unlabelled)} cells, the first being {str(unlabelled[0])!r}"
        raise ValueError(unusable("Labels", f"adata.obs[{key!r}]", problem, "Label or remove these cells."))
    return column.astype(str).to_numpy(dtype=object)


def read_perturbations(obs: pd.DataFrame, key: str, *, control: str, sep: str) -> np.ndarray:
    """Return the canonical perturbation of every cell (n,); the control label must occur.

    Raises
    ------
    ValueError
        If the control label does not occur or is joined to a gene, or a label names a gene twice (``A+A``).
    """
    place = f"adata.obs[{key!r}]"
    found, codes = np.unique(read_labels(obs, key).astype(str), return_inverse=True)
    if control not in found:
        raise ValueError(absent("Control label", control, place, found, "Pass control=<the label of control cells>."))
    joined = [name for name in found if name != control and control in name.split(sep)]
    if joined:
        problem = f"join a gene and the control ({listed(joined)})"
        raise ValueError(unusable("Labels", place, problem, "Label cells of one perturbed gene with the gene alone."))
    return canonical_labels(found, control=control, sep=sep)[codes]


def canonical_labels(labels: Iterable[str], *, control: str, sep: str) -> np.ndarray:
    """Return canonical labels (n,); the control label is never taken apart."""
    canonical_of = {name: canonical(name, sep) for name in set(labels) - {control}}
    return np.array([canonical_of.get(name, name) for name in labels], dtype=object)


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
    """

    perturbations: np.ndarray
    cell_types: np.ndarray
    control: int
    perturbation: np.ndarray
    cell_type: np.ndarray
    batch: np.ndarray

    @classmethod
    def from_labels(cls, perturbation: Labels, cell_type: Labels, batch: Labels | None, *, control: str) -> Self:
        """Build the index from one label per cell; ``batch=None`` puts each cell type into one batch."""
        perturbations, p = np.unique(np.asarray(perturbation, dtype=str), return_inverse=True)  # (U,), (n,)
        cell_types, t = np.unique(np.asarray(cell_type, dtype=str), return_inverse=True)  # (T,), (n,)
        b = np.zeros(len(p), dtype=np.int64)  # (n,) code of the batch name
        if batch is not None:
            b = np.unique(np.asarray(batch, dtype=str), return_inverse=True)[1]
        pairs = np.unique(t * (b.max(initial=0) + 1) + b, return_inverse=True)[1]  # (n,), without gaps
        return cls(perturbations, cell_types, int(np.searchsorted(perturbations, control)), p, t, pairs)

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return len(self.perturbation)

    @cached_property
    def is_control(self) -> np.ndarray:
        """Whether each cell is a control cell (n,)."""
        return self.perturbation == self.control

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
        """Return the rows of the control cells of one cell type, ascending."""
        return self.rows(self.control, cell_type)

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

    Control cells may carry any of the labels: they are inputs everywhere.

    Raises
    ------
    ValueError
        If a label is not train, val or test, or one condition carries two of them.
    """
    if strange := sorted(set(split) - set(SPLITS)):
        raise ValueError(absent("Split value", strange[0], str(SPLITS), SPLITS, f"Correct {place}."))
    table = index.conditions
    labels = []
    for p, t in zip(table["perturbation"], table["cell_type"], strict=True):
        found = np.unique(split[index.rows(p, t)])  # labels of the condition's cells
        if len(found) > 1:
            what = f"Condition '{index.perturbations[p]} in {index.cell_types[t]}'"
            problem = f"is split between {listed(found)}"
            raise ValueError(unusable(what, place, problem, "Splits hold out conditions."))
        labels.append(str(found[0]))
    return table.assign(split=labels)


def draw_split(
    conditions: pd.DataFrame,
    *,
    holdout: Holdout,
    test_fraction: float,
    val_fraction: float,
    seed: int,
    test_cell_type: str | None = None,
    sep: str = "+",
) -> np.ndarray:
    """Draw train, val or test for every condition of a named condition table.

    Parameters
    ----------
    conditions
        Columns ``perturbation``, ``cell_type`` (names).
    holdout
        What is unseen in the held-out conditions: ``"pair"`` (this perturbation in this cell type),
        ``"perturbation"`` (this gene in any cell type, alone or in a combination) or ``"cell_type"`` (all of it).
    test_fraction, val_fraction
        Shares of the units that can be held out.
    seed
        Seed of the draw.
    test_cell_type
        For ``"pair"``: hold out pairs of this cell type only. For ``"cell_type"``: the type that becomes test.

    Returns
    -------
    Labels (C,) in the order of ``conditions``.
    """
    rng = np.random.default_rng(seed)
    if holdout == "pair":
        return _draw_pairs(conditions, (test_fraction, val_fraction), test_cell_type, rng)
    if holdout == "perturbation":
        return _draw_genes(conditions, (test_fraction, val_fraction), sep, rng)
    return _draw_cell_type(conditions, val_fraction, test_cell_type, rng)


def _allot(n_open: int, n: int, fractions: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Label ``n_open`` units in random order; shares are of ``n`` units, positive ones give at least one unit."""
    test, val = [max(int(fraction > 0), round(fraction * n)) for fraction in fractions]
    if n_open == 1:  # a single unit stays in training
        test, val = 0, 0
    n_test = min(test, n_open)
    n_val = min(val, n_open - n_test)
    labels = ["test"] * n_test + ["val"] * n_val + ["train"] * (n_open - n_test - n_val)
    return rng.permutation(np.array(labels, dtype=object))


def _draw_pairs(
    conditions: pd.DataFrame, fractions: Fractions, test_cell_type: str | None, rng: np.random.Generator
) -> np.ndarray:
    candidate = np.ones(len(conditions), dtype=bool)
    if test_cell_type is not None:
        candidate = (conditions["cell_type"] == test_cell_type).to_numpy()
    # One pair of every perturbation stays in training, if possible outside the tested cell type: False sorts first.
    order = np.lexsort((rng.random(len(conditions)), candidate))
    anchors = conditions.iloc[order].drop_duplicates("perturbation").index
    open_ = candidate & ~conditions.index.isin(anchors)
    labels = np.full(len(conditions), "train", dtype=object)
    labels[open_] = _allot(int(open_.sum()), int(candidate.sum()), fractions, rng)
    return labels


def _draw_genes(conditions: pd.DataFrame, fractions: Fractions, sep: str, rng: np.random.Generator) -> np.ndarray:
    parts = [components(p, sep) for p in conditions["perturbation"]]
    genes = sorted({g for part in parts for g in part})
    of_gene = dict(zip(genes, _allot(len(genes), len(genes), fractions, rng), strict=True))
    # A combination is as unseen as its most unseen gene (SPLITS is in this order), or a held-out gene would leak.
    return np.array([max((of_gene[g] for g in part), key=SPLITS.index) for part in parts], dtype=object)


def _draw_cell_type(
    conditions: pd.DataFrame, val_fraction: float, test_cell_type: str | None, rng: np.random.Generator
) -> np.ndarray:
    if test_cell_type is None:
        test_cell_type = str(rng.choice(np.unique(conditions["cell_type"])))
    rest = (conditions["cell_type"] != test_cell_type).to_numpy()
    labels = np.full(len(conditions), "test", dtype=object)
    labels[rest] = _allot(int(rest.sum()), int(rest.sum()), (0.0, val_fraction), rng)
    return labels
