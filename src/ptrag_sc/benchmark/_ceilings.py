"""How well could a condition be predicted by someone who has measured it?

Both functions use cells of the conditions that are scored, so they are ceilings, never predictors.
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
from ptrag_sc.data._mudata import as_anndata
from ptrag_sc.data._set_sampler import name_hash

logger = logging.getLogger(__name__)


class Halves(NamedTuple):
    """Real cells that a ceiling is scored against, and the cells that it predicts."""

    real: AnnData  # one half of each condition's cells, and all control cells
    predicted: AnnData  # cells made from the other half; X is on the registered scale


class HalfRows(NamedTuple):
    """Rows of the two halves of one condition."""

    real: np.ndarray
    duplicate: np.ndarray  # at most as many


class Moments(NamedTuple):
    """Mean, variance and number of some cells, gene by gene."""

    mean: np.ndarray  # (G,)
    variance: np.ndarray  # (G,)
    n: int


def split_half(adata: AnnData, seed: int = 0, *, split: str = "test") -> Halves:
    """Predict one half of the real cells of each condition by the other half: a technical duplicate.

    The half of a cell depends only on its name and the seed. Every method that is compared with the ceiling must be
    scored against the same half.

    Parameters
    ----------
    adata
        Object registered with :meth:`ptrag_sc.PTRAG.setup_anndata`; it is not changed.
    seed
        Seed of the halves.
    split
        Split whose conditions are halved; if no ``split_key`` was registered, all conditions are. Conditions of a
        single cell are left out with a warning.

    Returns
    -------
    Halves
        Named tuple of ``real``, the larger half and the control cells, and ``predicted``, the other half.

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
    return _halves(adata, screen, pairs, None)


def interpolated_duplicate(adata: AnnData, seed: int = 0, *, split: str = "test") -> Halves:
    r"""Use the duplicate for genes in which it differs from other perturbations, and the mean for the others.

    The mean of the duplicate becomes :math:`\alpha_g x_g + (1 - \alpha_g) m_g` (interpolated duplicate, Mejia et al.
    2025). Here m is the mean training shift of the cell type (of all cell types, if it has none) at the batch
    composition of the duplicate, and :math:`1 - \alpha_g` is the p-value, adjusted over genes after Benjamini and
    Hochberg, of Welch's t-test between the duplicate and the perturbed training cells, each minus the control mean of
    its batch. All cells of the duplicate are shifted by the same vector, so their variance does not change. Unlike in a
    plain duplicate, noise does not look like specificity; if half a condition is too small to differ significantly from
    the mean, this is the mean.

    Parameters
    ----------
    adata
        Object registered with :meth:`ptrag_sc.PTRAG.setup_anndata`; it is not changed.
    seed
        Seed of the halves.
    split
        As in :func:`split_half`, with the same ``real`` half.

    Returns
    -------
    Halves
        Named tuple of ``real``, as in :func:`split_half`, and ``predicted``, the interpolated other half.

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
        cells = screen.reader.rows(rows)  # (n, G)
        mean = cells.mean(0, dtype=np.float64)  # (G,)
        other = matched_control(controls, screen.index.batch[rows]) + of_type.get(cell_type, overall)  # (G,)
        share = _p_values(_moments(screen, rows, controls), rest.get(cell_type, rest[None]))  # (G,), 1 - alpha
        moved.append(cells + (share * (other - mean)).astype(np.float32))
    return _halves(adata, screen, pairs, np.concatenate(moved))


def _halved(adata: AnnData, seed: int, split: str) -> tuple[Screen, list[HalfRows]]:
    """Return the screen and the rows of the two halves of each condition."""
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
    order = name_hash(screen.names, seed)  # (N,)
    pairs = []
    for p, t in table.loc[~small, ["perturbation", "cell_type"]].itertuples(index=False):
        rows = screen.index.rows(p, t)
        # Sorted by hash, and by name if two hashes are equal, so that the order of the cells does not matter.
        rows = rows[np.lexsort((screen.names[rows].astype(str), order[rows]))]
        middle = (len(rows) + 1) // 2
        pairs.append(HalfRows(np.sort(rows[:middle]), np.sort(rows[middle:])))
    return screen, pairs


def _conditions(adata: AnnData, keys: ScreenKeys, index: ConditionIndex, split: str) -> pd.DataFrame:
    """Return the conditions (codes) of one split, or all if no split was registered."""
    labels = read_split(adata, keys)
    if labels is None:
        return index.conditions
    table = condition_split(index, labels, place=f"adata.obs[{keys.split_key!r}]")
    return table[table["split"] == split]


def _halves(adata: AnnData, screen: Screen, pairs: list[HalfRows], cells: np.ndarray | None) -> Halves:
    """Cut the object into halves; ``cells`` (n, G), if given, replace the expression of the duplicates."""
    keys = ScreenKeys.of(adata)
    adata = as_anndata(adata, keys)
    real = np.concatenate([np.flatnonzero(screen.index.is_control), *(pair.real for pair in pairs)])
    duplicate = np.concatenate([pair.duplicate for pair in pairs])  # (n,)
    if cells is not None:
        matrix = cells
    elif keys.layer is not None:
        matrix = adata.layers[keys.layer][duplicate]
    else:
        matrix = adata.X[duplicate]
    predicted = AnnData(matrix, obs=adata.obs.iloc[duplicate].copy(), var=adata.var.copy())
    return Halves(adata[np.sort(real)].copy(), predicted)


def _training_moments(screen: Screen, train: pd.DataFrame, controls: ControlMeans) -> dict[str | None, Moments]:
    """Return moments of the perturbed training cells of each cell type, and of all (None), minus control means."""
    pairs = zip(train["perturbation"], train["cell_type"], strict=True)
    rows = np.concatenate([screen.index.rows(p, t) for p, t in pairs])
    names = screen.index.cell_types[screen.index.cell_type[rows]]
    of_type = {name: _moments(screen, rows[names == name], controls) for name in np.unique(names)}
    return of_type | {None: _moments(screen, rows, controls)}


def _moments(screen: Screen, rows: np.ndarray, controls: ControlMeans) -> Moments:
    """Return moments of some cells, each minus the control mean of its batch, in one pass."""
    total = np.zeros(screen.reader.n_genes)  # (G,)
    square = np.zeros(screen.reader.n_genes)  # (G,)
    for part, cells in screen.reader.chunks(rows):
        residual = cells - controls.batch[screen.index.batch[part]]  # (n, G)
        total += residual.sum(0)
        square += (residual**2).sum(0)
    mean = total / len(rows)
    variance = np.maximum(square - len(rows) * mean**2, 0) / max(len(rows) - 1, 1)  # rounding can make it negative
    return Moments(mean, variance, len(rows))


def _p_values(duplicate: Moments, rest: Moments) -> np.ndarray:
    """Return adjusted p-values (G,) of Welch's test; 1 if a side has one cell, and for genes that do not vary."""
    if min(duplicate.n, rest.n) < 2:
        return np.ones_like(duplicate.mean)
    first = (duplicate.mean, np.sqrt(duplicate.variance), duplicate.n)
    second = (rest.mean, np.sqrt(rest.variance), rest.n)
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 for genes that do not vary
        p = ttest_ind_from_stats(*first, *second, equal_var=False).pvalue
    return false_discovery_control(np.nan_to_num(p, nan=1.0))
