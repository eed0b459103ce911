"""Which conditions are held out? Drawn by pair, by perturbation or by cell type."""

from typing import Literal

import numpy as np
import pandas as pd

from ptrag_sc._constants import SPLITS
from ptrag_sc.data._labels import components

Holdout = Literal["pair", "perturbation", "cell_type"]
Fractions = tuple[float, float]  # test, validation


def draw_split(
    conditions: pd.DataFrame,
    *,
    holdout: Holdout,
    test_fraction: float,
    val_fraction: float,
    seed: int,
    test_cell_type: str | None = None,
    sep: str | None = "+",
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


def _draw_genes(
    conditions: pd.DataFrame, fractions: Fractions, sep: str | None, rng: np.random.Generator
) -> np.ndarray:
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
