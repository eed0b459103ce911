"""What did the neighbours of a prediction say, and how far apart were they?"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from ptrag_sc.data import (
    Predictor,
    Screen,
    ScreenKeys,
    condition_split,
    control_means,
    masked_shifts,
    mean_shifts,
    measured_targets,
    read_split,
)
from ptrag_sc.data._assembly import ExpectedShifts
from ptrag_sc.metrics import Reference

NOTHING = pd.DataFrame({"perturbation": [], "cell_type": [], "candidate": [], "role": [], "weight": []})


class Neighbours(NamedTuple):
    """What was retrieved for one condition, J places with positive weight."""

    names: np.ndarray  # (J,) perturbations
    weights: np.ndarray  # (J,)
    deviations: np.ndarray  # (J, G) their shifts minus the mean shift of the cell type

    def said(self, mean: np.ndarray) -> np.ndarray:
        """Return the shift (G,) that they say together, given the mean shift of the cell type."""
        return mean + self.weights @ self.deviations

    def scatter(self) -> np.ndarray:
        r"""Return the part of the squared error (G,) that comes from the neighbours' scatter.

        The variance between neighbours with shares :math:`p_k` is estimated without bias by
        :math:`\sum_k p_k (d_k - \bar d)^2 / (1 - \sum_k p_k^2)`, that of their sum is this times :math:`\sum_k w_k^2`.
        A single neighbour has no scatter.
        """
        if len(self.weights) < 2:
            return np.zeros(self.deviations.shape[1])
        share = self.weights / self.weights.sum()
        variance = share @ np.square(self.deviations - share @ self.deviations) / (1 - np.square(share).sum())
        return variance * np.square(self.weights).sum()


class Evidence(NamedTuple):
    """What predictions rest on."""

    neighbours: dict[tuple[str, str], Neighbours]  # by perturbation and cell type
    mean: dict[str, np.ndarray]  # (G,) mean shift of the training perturbations of each cell type


def learned_conditions(adata: AnnData, screen: Screen, keys: ScreenKeys) -> pd.DataFrame:
    """Return the training conditions (codes) of an object; without a split all of them."""
    split = read_split(adata, keys)
    if split is None:
        return screen.index.conditions
    table = condition_split(screen.index, split, place=f"adata.obs[{keys.split_key!r}]")
    return table[table["split"] == "train"].reset_index(drop=True)


def mean_shifts_of(reference: Reference, genes: np.ndarray) -> dict[str, np.ndarray]:
    """Return the mean training shift (G,) of every cell type; one without training has the mean of the others."""
    columns = pd.Index(reference.genes).get_indexer(genes)
    shift = (reference.centre - reference.control)[:, columns]  # (T, G)
    learned = np.nan_to_num(shift).any(1)  # the centre of the others is their control
    shift[~learned] = shift[learned].mean(0) if learned.any() else 0.0
    return dict(zip(reference.cell_types.tolist(), shift, strict=True))


def measured_evidence(
    screen: Screen, train: pd.DataFrame, table: pd.DataFrame, mean: dict[str, np.ndarray], sep: str | None
) -> Evidence:
    """Return what retrieved perturbations did as it was measured, without a model.

    Parameters
    ----------
    screen, train
        The observed cells, and the training conditions (codes) among them.
    table
        What was retrieved: ``perturbation``, ``cell_type``, ``candidate``, ``role``, ``weight``.
    mean
        Mean shift of each cell type.
    sep
        Separator of combinations.
    """
    table = table[table["weight"] > 0]
    named = screen.index.named(train)
    wanted = named["perturbation"].isin(set(table["candidate"].astype(str))).to_numpy()
    if not wanted.any():
        return Evidence({}, mean)
    shifts = mean_shifts(screen.reader, screen.index, train, control_means(screen.reader, screen.index)).shift
    own = measured_targets(named["perturbation"].to_numpy(), screen.genes, sep)
    shifts = masked_shifts(shifts, own, named["cell_type"].to_numpy())
    deviation = shifts - np.stack([mean[t] for t in named["cell_type"]])  # (C, G)
    measured = _Measured(named.reset_index(drop=True), deviation)
    found = {}
    for (label, t), rows in table.groupby(["perturbation", "cell_type"], sort=False, observed=True):
        neighbours = measured.neighbours(rows, str(t), mean[str(t)])
        if len(neighbours.names):
            found[str(label), str(t)] = neighbours
    return Evidence(found, mean)


class _Measured(NamedTuple):
    """Deviations (C, G) of training conditions from the mean shift of their cell type."""

    named: pd.DataFrame
    deviation: np.ndarray

    def neighbours(self, retrieved: pd.DataFrame, cell_type: str, mean: np.ndarray) -> Neighbours:
        """Return what was retrieved for one condition; candidates that were not measured anywhere are left out."""
        names, weights, deviations = [], [], []
        n_components = (retrieved["role"] == "component").sum()
        of_type = (self.named["cell_type"] == cell_type).to_numpy()
        for row in retrieved.itertuples():
            rows = (self.named["perturbation"] == row.candidate).to_numpy()
            here = rows & of_type
            if row.role == "own" or not here.any():  # what it did in other cell types
                here = rows & ~of_type
            if not here.any():
                continue
            deviation = self.deviation[here].mean(0)
            if row.role == "component":  # the shifts of components add up, and the mean is in the sum once
                deviation = deviation + (n_components - 1) / n_components * mean
            names.append(str(row.candidate))
            weights.append(float(row.weight))
            deviations.append(deviation)
        if not names:
            return Neighbours(np.array([], dtype=str), np.zeros(0), np.zeros((0, self.deviation.shape[1])))
        return Neighbours(np.array(names), np.array(weights), np.stack(deviations))


def recalled_evidence(
    model: Predictor, adata: AnnData, conditions: list[tuple[str, str]], mean: dict[str, np.ndarray], genes: np.ndarray
) -> Evidence:
    """Return what retrieved perturbations did according to the model, which may shrink and smooth it.

    Parameters
    ----------
    model, adata
        The model, and an object with control cells.
    conditions
        Perturbation and cell type of every prediction.
    mean
        Mean shift of each cell type.
    genes
        Genes (G,) to return, a part of the model's.
    """
    screen = model.read(adata)
    columns = pd.Index(model.genes_.astype(str)).get_indexer(genes)
    found = {}
    for t, name in enumerate(screen.index.cell_types.tolist()):
        labels = tuple(label for label, of_type in conditions if of_type == name)
        if not labels:
            continue
        run = model.run(adata, screen, labels)
        done = 0
        for part in model.expected_shifts(labels, screen, t, state=run.state):
            for b, label in enumerate(labels[done : done + len(part.rows)]):
                found[label, name] = _recalled(part, b, model.candidates_, mean[name], columns)
            done += len(part.rows)
    return Evidence({condition: recalled for condition, recalled in found.items() if len(recalled.names)}, mean)


def _recalled(
    part: ExpectedShifts, b: int, candidates: np.ndarray, mean: np.ndarray, columns: np.ndarray
) -> Neighbours:
    """Return what was retrieved for row b, as deviations from a mean shift, at some genes (columns)."""
    used = np.flatnonzero(part.weights[b] > 0)
    deviations = part.responses[b][used][:, columns].astype(np.float64) - mean
    return Neighbours(candidates[part.rows[b][used]].astype(str), part.weights[b][used].astype(np.float64), deviations)
