"""How well could a condition be predicted by someone who has measured it?

Both answers see cells of the conditions that are scored: they are ceilings, never predictors.
"""

import logging
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import false_discovery_control, ttest_ind_from_stats

from ptrag_sc._validation import listed, unusable
from ptrag_sc.baselines._means import mean_by_cell_type
from ptrag_sc.data import (
    ConditionIndex,
    ControlMeans,
    Screen,
    ScreenKeys,
    condition_split,
    control_means,
    matched_control,
    mean_shifts,
    read_screen,
    read_split,
)
from ptrag_sc.data._set_sampler import name_hash

logger = logging.getLogger(__name__)


class Halves(NamedTuple):
    """What is scored, and what a ceiling says of it."""

    real: AnnData  # one half of each condition's cells, and all control cells
    predicted: AnnData  # cells made from the other half; X is on the registered scale


class Moments(NamedTuple):
    """Mean, variance and number of some cells, gene by gene."""

    mean: np.ndarray
    variance: np.ndarray
    n: int


def split_half(adata: AnnData, seed: int = 0, *, split: str = "test") -> Halves:
    """Let one half of the real cells of each condition predict the other: a technical duplicate.

    A cell's half depends on its name and the seed only. Every method that is compared with the ceiling must be scored
    against the same half.

    Parameters
    ----------
    adata
        Object registered with :meth:`ptrag_sc.PTRAG.setup_anndata`; it is not changed.
    seed
        Of the halves.
    split
        Conditions that are halved; all of them where no ``split_key`` was registered. Those of a single cell are left
        out with a warning.

    Returns
    -------
    ``real``: the larger half and the control cells; ``predicted``: the other half.

    Raises
    ------
    ValueError
        If no condition is left.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=600, n_genes=60, n_perturbations=10, n_cell_types=2)
    >>> ptrag_sc.PTRAG.setup_anndata(
    ...     adata, perturbation_key="perturbation", control="non-targeting", cell_type_key="cell_type"
    ... )
    >>> real, predicted = split_half(adata, 0)
    >>> real.n_obs + predicted.n_obs
    600
    """
    screen, pairs = _halved(adata, seed, split)
    return _halves(adata, screen, pairs, [None] * len(pairs))


def interpolated_duplicate(adata: AnnData, seed: int = 0, *, split: str = "test") -> Halves:
    r"""Let the duplicate speak where it differs from other perturbations, and the mean elsewhere.

    The mean of the duplicate becomes :math:`\alpha_g x_g + (1 - \alpha_g) m_g` (interpolated duplicate, Mejia et al.
    2025), with m the mean training shift of the cell type (of all cell types, where it has none) at the batch
    composition of the duplicate, and :math:`1 - \alpha_g` the p-value, adjusted after Benjamini and Hochberg over
    genes, of Welch's t-test between the duplicate and the perturbed training cells, each less the control mean of its
    batch. All cells of the duplicate move by the same vector: their variance stays. Next to a plain duplicate, noise
    no longer passes for specificity; where half a condition is too small to be told from the mean, this is the mean.

    Parameters
    ----------
    adata
        Object registered with :meth:`ptrag_sc.PTRAG.setup_anndata`; it is not changed.
    seed
        Of the halves.
    split
        As in :func:`split_half`, with the same ``real`` half.

    Returns
    -------
    ``real`` as in :func:`split_half`, and the interpolated other half.

    Raises
    ------
    ValueError
        If no condition is left, or there are no training conditions.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=900, n_genes=60, n_perturbations=10, n_cell_types=2)
    >>> keys = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}
    >>> ptrag_sc.pp.split(adata, **keys, test_fraction=0.3, val_fraction=0.0)
    >>> ptrag_sc.PTRAG.setup_anndata(adata, **keys, split_key="split")
    >>> real, predicted = interpolated_duplicate(adata, 0)
    >>> real.n_obs > predicted.n_obs
    True
    """
    screen, pairs = _halved(adata, seed, split)
    controls = control_means(screen.reader, screen.index)
    train = _conditions(adata, ScreenKeys.of(adata), screen.index, "train")
    if train.empty:
        raise ValueError(unusable("The split", "the data", "has no training condition", "Label conditions 'train'."))
    named = screen.index.named(train)
    of_type, overall = mean_by_cell_type(named, mean_shifts(screen.reader, screen.index, train, controls).shift)
    rest = _training_moments(screen, train, controls)
    moved = []
    for _, rows in pairs:
        cell_type = screen.index.cell_types[screen.index.cell_type[rows[0]]]
        cells = screen.reader.rows(rows)
        residual = _moments(screen, rows, controls)
        other = matched_control(controls, screen.index.batch[rows]) + of_type.get(cell_type, overall)
        share = _p_values(residual, rest.get(cell_type, rest[None]))
        moved.append(cells + (share * (other - cells.mean(0, dtype=np.float64))).astype(np.float32))
    return _halves(adata, screen, pairs, moved)


def _halved(adata: AnnData, seed: int, split: str) -> tuple[Screen, list[tuple[np.ndarray, np.ndarray]]]:
    """Return the screen and the rows (real, duplicate) of each condition."""
    keys = ScreenKeys.of(adata)
    screen = read_screen(adata, keys)
    table = _conditions(adata, keys, screen.index, split)
    small = (table["n_cells"] < 2).to_numpy()
    if small.any():
        names = screen.index.named(table[small])
        shown = listed(names["perturbation"] + " in " + names["cell_type"])
        logger.warning("Left out %d conditions of a single cell, which has no halves: %s.", small.sum(), shown)
    if small.all():
        problem = f"holds no condition {split!r} of two cells or more"
        raise ValueError(unusable("The screen", "the data", problem, "Name a split that has cells."))
    pairs, order = [], name_hash(screen.names, seed)
    for p, t in table.loc[~small, ["perturbation", "cell_type"]].itertuples(index=False):
        rows = screen.index.rows(p, t)
        rows = rows[np.lexsort((screen.names[rows].astype(str), order[rows]))]
        middle = (len(rows) + 1) // 2
        pairs.append((np.sort(rows[:middle]), np.sort(rows[middle:])))
    return screen, pairs


def _conditions(adata: AnnData, keys: ScreenKeys, index: ConditionIndex, split: str) -> pd.DataFrame:
    """Return the conditions (codes) of one split; all where no split was registered."""
    labels = read_split(adata, keys)
    if labels is None:
        return index.conditions
    table = condition_split(index, labels, place=f"adata.obs[{keys.split_key!r}]")
    return table[table["split"] == split]


def _halves(
    adata: AnnData,
    screen: Screen,
    pairs: list[tuple[np.ndarray, np.ndarray]],
    cells: list[np.ndarray | None],
) -> Halves:
    """Cut the object into halves; ``cells`` replace the duplicates where given."""
    keys = ScreenKeys.of(adata)
    real = np.concatenate([np.flatnonzero(screen.index.is_control), *(pair[0] for pair in pairs)])
    duplicate = np.concatenate([pair[1] for pair in pairs])
    if cells[0] is None:
        matrix = (adata.X if keys.layer is None else adata.layers[keys.layer])[duplicate]
    else:
        matrix = np.concatenate(cells)
    predicted = AnnData(matrix, obs=adata.obs.iloc[duplicate].copy(), var=adata.var.copy())
    return Halves(adata[np.sort(real)].copy(), predicted)


def _training_moments(screen: Screen, train: pd.DataFrame, controls: ControlMeans) -> dict[str | None, Moments]:
    """Return moments of the perturbed training cells of each cell type, and of all (None), less control means."""
    pairs = zip(train["perturbation"], train["cell_type"], strict=True)
    rows = np.concatenate([screen.index.rows(p, t) for p, t in pairs])
    names = screen.index.cell_types[screen.index.cell_type[rows]]
    of_type = {name: _moments(screen, rows[names == name], controls) for name in np.unique(names)}
    return of_type | {None: _moments(screen, rows, controls)}


def _moments(screen: Screen, rows: np.ndarray, controls: ControlMeans) -> Moments:
    """Return moments of some cells, each less the control mean of its batch, in one pass."""
    total, square = np.zeros((2, screen.reader.n_genes))
    for part, cells in screen.reader.chunks(rows):
        residual = cells - controls.batch[screen.index.batch[part]]
        total += residual.sum(0)
        square += (residual**2).sum(0)
    mean = total / len(rows)
    variance = np.maximum(square - len(rows) * mean**2, 0) / max(len(rows) - 1, 1)
    return Moments(mean, variance, len(rows))


def _p_values(duplicate: Moments, rest: Moments) -> np.ndarray:
    """Return adjusted p-values (G,) of Welch's test; 1 where a side has one cell or nothing varies."""
    if min(duplicate.n, rest.n) < 2:
        return np.ones_like(duplicate.mean)
    sides = [(m.mean, np.sqrt(m.variance), m.n) for m in (duplicate, rest)]
    with np.errstate(divide="ignore", invalid="ignore"):
        p = ttest_ind_from_stats(*sides[0], *sides[1], equal_var=False).pvalue
    return false_discovery_control(np.nan_to_num(p, nan=1.0))
