"""What do metrics refer to? Controls, centre and principal components, fixed once, from training cells."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.linalg import eigh

from ptrag_sc._validation import absent, unusable
from ptrag_sc.data import (
    CellReader,
    ControlMeans,
    ScreenKeys,
    condition_split,
    control_means,
    masked_shifts,
    mean_shifts,
    measured_targets,
    read_labels,
    read_screen,
    read_split,
)
from ptrag_sc.metrics._halves import control_halves

N_COMPONENTS = 50
MAX_CELLS = 20_000  # for the principal components
CONTROLS = ("all", "split")


class ControlHalf(NamedTuple):
    """Mean control expression in one half of the control cells."""

    control: np.ndarray  # (T, G); NaN where a cell type has fewer than two control cells
    of_batch: dict[tuple[str, str], np.ndarray]  # by (cell type, batch); empty without batches


@dataclass(frozen=True)
class Reference:
    """What predictions are compared against.

    Parameters
    ----------
    keys
        Where everything is in the AnnData objects that are compared.
    genes
        Genes (G,).
    cell_types
        Names (T,).
    control
        Mean control expression of every cell type (T, G); NaN where it has no control cells.
    control_of_batch
        Mean control expression of every (cell type, batch) by name; empty without batches.
    centre
        Mean of the training perturbations' centroids of every cell type (T, G): control mean plus mean training
        shift, in which no perturbation's own target counts; the control mean where a cell type has no training
        perturbation.
    pca_mean, pca_axes
        Principal components (G,), (d, G) of training cells and controls.
    halves
        The same means in two disjoint halves of the control cells; None: every shift is measured from all of them.
    """

    keys: ScreenKeys
    genes: np.ndarray
    cell_types: np.ndarray
    control: np.ndarray
    control_of_batch: dict[tuple[str, str], np.ndarray]
    centre: np.ndarray
    pca_mean: np.ndarray
    pca_axes: np.ndarray
    halves: tuple[ControlHalf, ControlHalf] | None = None

    @classmethod
    def from_adata(
        cls,
        adata: AnnData,
        *,
        controls: Literal["all", "split"] = "all",
        n_components: int = N_COMPONENTS,
        seed: int = 0,
    ) -> "Reference":
        """Build the reference from the training cells and controls of an object set up for ptrag_sc.

        Parameters
        ----------
        adata
            Object registered with ``setup_anndata``. Without ``split_key`` every condition counts as training.
        controls
            Control cells that the shifts of ``pearson_delta``, ``effect_slope`` and ``pds_cosine`` are measured from.
            ``"all"``: both sides from all of them, so noise of few controls looks like agreement. ``"split"``: real and
            predicted cells from disjoint halves, both ways round, and the values are averaged; an effect that does not
            exist then scores about 0, if the prediction was learned from these controls, and less otherwise. Half of
            the controls is a noisier reference, which costs some of the true score.
        n_components
            Principal components, at most 50 by default.
        seed
            Seed of the choice of cells (at most 20,000) that the components are fitted on.

        Examples
        --------
        >>> import ptrag_sc
        >>> adata = ptrag_sc.datasets.simulated(n_cells=600, n_genes=60, n_perturbations=10, n_cell_types=2)
        >>> ptrag_sc.PTRAG.setup_anndata(
        ...     adata, perturbation_key="perturbation", control="non-targeting", cell_type_key="cell_type"
        ... )
        >>> Reference.from_adata(adata).centre.shape
        (2, 60)
        """
        if controls not in CONTROLS:
            raise ValueError(absent("controls=", controls, "the known values", CONTROLS, "Pass one of them."))
        keys = ScreenKeys.of(adata)
        screen = read_screen(adata, keys)
        index = screen.index
        train = index.conditions
        # Training conditions only, because a reference made from test cells would leak them into the scores.
        split = read_split(adata, keys)
        if split is not None:
            table = condition_split(index, split, place=f"adata.obs[{keys.split_key!r}]")
            train = table[table["split"] == "train"]
        means = control_means(screen.reader, index)
        shifts = mean_shifts(screen.reader, index, train, means).shift
        # What perturbations did to their own targets must not be in the mean of all.
        own = measured_targets(index.perturbations[train["perturbation"]], screen.genes, keys.sep)
        shifts = masked_shifts(shifts, own, train["cell_type"].to_numpy())
        centre = means.cell_type.copy()  # (T, G)
        # A cell type without training perturbations keeps its control mean.
        for t in train["cell_type"].unique():
            centre[t] += shifts[(train["cell_type"] == t).to_numpy()].mean(0)
        perturbed = [index.rows(p, t) for p, t in zip(train["perturbation"], train["cell_type"], strict=True)]
        rows = np.sort(np.concatenate([np.flatnonzero(index.is_control), *perturbed]))
        mean, axes = _principal_components(screen.reader, rows, n_components, seed)
        halves = None
        if controls == "split":
            first, second = control_halves(screen)
            halves = _named_half(adata, keys, index.batch, first), _named_half(adata, keys, index.batch, second)
        return cls(
            keys=keys,
            genes=screen.genes,
            cell_types=index.cell_types,
            control=means.cell_type,
            control_of_batch=_named_batches(adata, keys, index.batch, means.batch),
            centre=centre,
            pca_mean=mean,
            pca_axes=axes,
            halves=halves,
        )

    def cell_type_row(self, name: str) -> int:
        """Return the row of a cell type.

        Raises
        ------
        KeyError
            If the reference does not know it.
        ValueError
            If it has no control cells.
        """
        row = np.flatnonzero(self.cell_types == name)
        if not len(row):
            raise KeyError(absent("Cell type", name, "the reference", self.cell_types, "Build it from data with it."))
        if np.isnan(self.control[row]).any():
            what, remedy = f"Cell type {name!r}", "Build it from data with its controls."
            raise ValueError(unusable(what, "the reference", "has no control cells", remedy))
        return int(row[0])

    def matched_control(self, cell_type: str, batches: np.ndarray | None, *, half: int | None = None) -> np.ndarray:
        """Return the mean control (G,) at the batch composition of some cells; without batches the cell type's.

        ``half`` is 0 or 1 with ``controls="split"``, and None for all controls.

        Raises
        ------
        ValueError
            If the cell type has no control cells, or too few for halves.
        """
        t = self.cell_type_row(cell_type)
        control, of_batch = self.control, self.control_of_batch
        if half is not None and self.halves is not None:
            control, of_batch = self.halves[half]
        fallback = control[t]
        if np.isnan(fallback).any():
            what, problem = f"Cell type {cell_type!r}", "has a single control cell, which cannot be split"
            raise ValueError(unusable(what, "the reference", problem, 'Build it with controls="all".'))
        if batches is None or not of_batch:
            return fallback
        names, count = np.unique(batches, return_counts=True)
        # A batch that the reference does not have takes the mean of its cell type.
        means = [of_batch.get((cell_type, name), fallback) for name in names]
        return (count / count.sum()) @ np.stack(means)

    def project(self, cells: np.ndarray) -> np.ndarray:
        """Return principal components (n, d) of cells (n, G)."""
        return (cells - self.pca_mean) @ self.pca_axes.T


def _named_half(adata: AnnData, keys: ScreenKeys, batch: np.ndarray, means: ControlMeans) -> ControlHalf:
    return ControlHalf(means.cell_type, _named_batches(adata, keys, batch, means.batch))


def _named_batches(
    adata: AnnData, keys: ScreenKeys, batch: np.ndarray, means: np.ndarray
) -> dict[tuple[str, str], np.ndarray]:
    """Return the means (n_batches, G) by name, because codes differ between AnnData objects."""
    if keys.batch_key is None:
        return {}
    labels = pd.DataFrame(
        {
            "cell_type": read_labels(keys.container(adata, "cell_type_key").obs, keys.cell_type_key),
            "batch": read_labels(keys.container(adata, "batch_key").obs, keys.batch_key),
            "code": batch,
        }
    ).drop_duplicates()
    return {(t, b): means[code] for t, b, code in labels.itertuples(index=False)}


def _principal_components(
    reader: CellReader, rows: np.ndarray, n_components: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (G,) and the first principal axes (d, G) of some cells."""
    if len(rows) > MAX_CELLS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MAX_CELLS, replace=False))
    n_components = min(n_components, reader.n_genes, len(rows) - 1)
    if n_components < 1:
        raise ValueError(unusable("The training data", "the reference", "hold fewer than two cells", "Add cells."))
    # By the covariance, because the cells may be more than memory holds as a dense matrix.
    mean = np.zeros(reader.n_genes)
    covariance = np.zeros((reader.n_genes, reader.n_genes))
    for _, chunk in reader.chunks(rows):
        cells = chunk.astype(np.float64)  # (n_chunk, G)
        mean += cells.sum(0)
        covariance += cells.T @ cells
    mean /= len(rows)
    covariance = covariance / len(rows) - np.outer(mean, mean)
    # Eigenvalues ascend, so the last n_components are the largest, and the axes are turned round.
    _, vectors = eigh(covariance, subset_by_index=[reader.n_genes - n_components, reader.n_genes - 1])
    return mean, np.ascontiguousarray(vectors[:, ::-1].T)
