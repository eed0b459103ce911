"""What does a perturbation do to the gene that it targets, and how is that kept out of what others recall?

A knocked-down gene falls because it is the target. That fall says nothing about any other perturbation, so a measured
shift is *masked* before anything is learned from it: at the genes that its own perturbation targets it is replaced by
the mean of the other perturbations of the cell type. What targets do is learned apart, as one number per cell type:
the share of its control expression by which a target changes.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd

from ptrag_sc.data._labels import components

MIN_TARGETS = 3  # measured targets that a share is learned from
MIN_EXPRESSION = 0.05  # a share of less expression than this is noise
NORMAL = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
OF_MEDIAN = 1.25  # standard error of a median over that of a mean


def measured_targets(perturbations: np.ndarray, genes: np.ndarray, sep: str | None) -> np.ndarray:
    """Return which genes (G,) each perturbation (C,) targets (C, G)."""
    own = np.zeros((len(perturbations), len(genes)), dtype=bool)
    for row, columns in zip(own, target_columns(perturbations, genes, sep), strict=True):
        row[columns] = True
    return own


def target_columns(perturbations: Iterable[str], genes: np.ndarray, sep: str | None) -> list[np.ndarray]:
    """Return the columns of the genes (G,) that each perturbation targets."""
    column = {gene: g for g, gene in enumerate(genes.tolist())}
    parts = [components(label, sep) for label in perturbations]
    return [np.array([column[gene] for gene in part if gene in column], dtype=np.int64) for part in parts]


def masked_shifts(
    shifts: np.ndarray, own: np.ndarray, cell_type: np.ndarray, among: np.ndarray | None = None
) -> np.ndarray:
    """Return shifts that hold nothing of what a perturbation did to its own targets.

    Parameters
    ----------
    shifts, own
        Shifts (C, G), and which genes each condition targets (C, G).
    cell_type
        Cell type of each condition (C,).
    among
        Training conditions (C,), whose means replace the values; None: all.

    Returns
    -------
    numpy.ndarray
        The shifts (C, G). A masked value is the mean over the other perturbations of the cell type; over those of all
        cell types if it has no other; else 0.
    """
    among = np.ones(len(shifts), dtype=bool) if among is None else among
    masked = shifts.copy()
    c, g = np.nonzero(own)  # (targets,) each
    overall = _mean_of_others(shifts, c, g, among, np.zeros(shifts.shape[1]))
    for t in np.unique(cell_type):
        of_type = cell_type == t
        mean = overall
        if not (of_type | ~among).all():  # else this is the only cell type
            mean = _mean_of_others(shifts, c, g, among & of_type, overall)
        here = of_type[c]
        masked[c[here], g[here]] = mean[g[here]]
    return masked


def _mean_of_others(
    shifts: np.ndarray, c: np.ndarray, g: np.ndarray, among: np.ndarray, otherwise: np.ndarray
) -> np.ndarray:
    """Return the mean shift (G,) of the conditions (C,) that count, each gene without those that target it.

    Condition c targets gene g. Sums over all less those over own targets, because own targets are few.
    """
    total, n = among.astype(float) @ shifts, np.full(shifts.shape[1], among.sum())
    counted = among[c]
    np.subtract.at(total, g[counted], shifts[c[counted], g[counted]])
    np.subtract.at(n, g[counted], 1)
    return np.where(n > 0, total / np.maximum(n, 1), otherwise)


class OwnEffects(NamedTuple):
    """What perturbations do to their own targets.

    A target is predicted to change by ``share`` of its mean control expression, beyond the masked prediction. In a
    combination, a gene that was also perturbed alone in the same cell type changes as it did there.
    """

    shares: dict[str, float]  # of each cell type with at least three measured targets
    pooled: float  # of all cell types together, for the others
    alone: pd.DataFrame  # gene, cell_type, effect: beyond the masked shift, where a gene was perturbed alone

    @classmethod
    def learn(
        cls,
        conditions: pd.DataFrame,
        shifts: np.ndarray,
        masked: np.ndarray,
        own: np.ndarray,
        controls: dict[str, np.ndarray],
        genes: np.ndarray,
    ) -> Self:
        """Learn from the targets of conditions.

        Parameters
        ----------
        conditions
            Columns ``perturbation``, ``cell_type`` (names) of C conditions.
        shifts, masked
            Their shifts (C, G) before and after :func:`masked_shifts`.
        own
            Which genes each of them targets (C, G); False in a condition that nothing is learned from.
        controls
            Mean control expression (G,) of each cell type.
        genes
            Genes (G,).
        """
        names = conditions["perturbation"].to_numpy(dtype=str)
        types = conditions["cell_type"].to_numpy(dtype=str)
        c, g = np.nonzero(own)
        effect = shifts[c, g] - masked[c, g]  # (targets,)
        level = np.array([controls[types[i]][j] for i, j in zip(c, g, strict=True)])  # (targets,)
        shares = {}
        for t in np.unique(types[c]):
            of_type = types[c] == t
            if of_type.sum() >= MIN_TARGETS:
                shares[str(t)] = _share(effect[of_type], level[of_type])
        pooled = _share(effect, level) if len(c) >= MIN_TARGETS else 0.0
        alone = names[c] == genes[g].astype(str)
        table = {"gene": genes[g][alone].astype(str), "cell_type": types[c][alone], "effect": effect[alone]}
        return cls(shares, pooled, pd.DataFrame(table))

    def to_json(self) -> dict[str, Any]:
        """Return lists and numbers."""
        return {"shares": self.shares, "pooled": self.pooled, "alone": self.alone.to_dict(orient="list")}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Self:
        """Return the value of :meth:`to_json` as it was."""
        return cls(dict(saved["shares"]), float(saved["pooled"]), pd.DataFrame(saved["alone"]))

    def share(self, cell_type: str) -> float:
        """Return by which share of its control expression a target changes."""
        return self.shares.get(cell_type, self.pooled)

    def effects(
        self, label: str, cell_type: str, control: np.ndarray, own: np.ndarray, genes: np.ndarray
    ) -> np.ndarray:
        """Return what is added to the masked prediction at the targets of a perturbation (targets,).

        Parameters
        ----------
        label, cell_type
            The condition.
        control
            Mean control expression of the cell type (G,).
        own
            Columns of the targets (targets,).
        genes
            Genes (G,).
        """
        found = self.share(cell_type) * control[own]
        if len(genes[own]) and label in genes:  # a single perturbation is predicted as if it had not been measured
            return found
        for i, gene in enumerate(genes[own]):
            rows = (self.alone["gene"] == gene) & (self.alone["cell_type"] == cell_type)
            if rows.any():
                found[i] = self.alone.loc[rows, "effect"].iloc[0]
        return found


def own_change(
    learned: OwnEffects | None, label: str, cell_type: str, control: np.ndarray, own: np.ndarray, genes: np.ndarray
) -> np.ndarray:
    """Return what a perturbation does to its own targets beyond a masked prediction (G,), 0 at all other genes.

    The parameters are those of :meth:`OwnEffects.effects`.
    """
    change = np.zeros(len(genes))
    if learned is not None and len(own):
        change[own] = learned.effects(label, cell_type, control, own, genes)
    return change


def _share(effect: np.ndarray, level: np.ndarray) -> float:
    """Return the share of its control expression (n,) by which a target changes (n,), shrunk towards 0.

    The weighted median is not moved by a few knock-downs that failed. With its standard error s, a share b keeps
    1 - s^2 / b^2 of itself (positive-part James-Stein).
    """
    if not level.sum() > 0:
        return 0.0
    share = effect / np.maximum(level, MIN_EXPRESSION)
    order = np.argsort(share)
    half = np.searchsorted(np.cumsum(level[order]), level.sum() / 2)
    median = share[order][half]
    n_effective = level.sum() ** 2 / np.square(level).sum()
    error = OF_MEDIAN * NORMAL * np.median(np.abs(share - median)) / np.sqrt(n_effective)
    if median == 0:
        return 0.0
    return float(median * max(0.0, 1 - (error / median) ** 2))
