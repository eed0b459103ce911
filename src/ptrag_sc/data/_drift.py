"""How do control cells change on their own between the start of a differentiation and its end?

Where time is registered, predictions start from control cells at the start. They end where control cells end, plus
what the perturbation does. The drift is the first part, one mean shift for each cell type.
"""

from dataclasses import replace
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd

from ptrag_sc.data._fields import Screen
from ptrag_sc.data._shifts import ControlMeans, control_means, group_moments, mean_shifts, types_of_batches


class Drift(NamedTuple):
    """Mean shift of control cells from start to end."""

    cell_types: tuple[str, ...]
    mean: np.ndarray  # (T, G)

    def of(self, names: np.ndarray) -> np.ndarray:
        """Return the drift (V, G) of cell types by name; an unknown one has the mean over the known ones."""
        rows = pd.Index(self.cell_types).get_indexer(list(names))  # (V,)
        found = self.mean[rows]
        found[rows < 0] = self.mean.mean(0)
        return found

    def with_new(self, other: "Drift") -> Self:
        """Return the drift of more cell types; known ones keep theirs."""
        new = [t for t, name in enumerate(other.cell_types) if name not in self.cell_types]
        names = self.cell_types + tuple(other.cell_types[t] for t in new)
        return self._replace(cell_types=names, mean=np.concatenate([self.mean, other.mean[new]]))

    def to_uns(self) -> dict[str, Any]:
        """Return what can be written to h5ad and zarr."""
        return {"cell_types": np.array(self.cell_types, dtype=object), "mean": self.mean.astype(np.float32)}

    @classmethod
    def from_uns(cls, saved: dict[str, Any]) -> Self:
        """Return the value of :meth:`to_uns`."""
        return cls(tuple(str(name) for name in saved["cell_types"]), np.asarray(saved["mean"], dtype=float))


class _Found(NamedTuple):
    """What the control cells of C cell types with both times say."""

    cell_types: np.ndarray  # (C,) codes
    observed: np.ndarray  # (C, G) mean shift from start to end
    kept: np.ndarray  # (C, G) share of it that is no noise
    start: np.ndarray  # (C,) share of the control cells that are at the start


def learn_drift(screen: Screen) -> Drift | None:
    """Return the drift of every cell type with control cells at start and end; None if no time is registered.

    A batch that has both is compared with itself, as for the shift of a perturbation. The shift d of a gene keeps the
    share tau^2 / (tau^2 + s^2) of itself (empirical Bayes), with s its standard error and tau^2 the mean of d^2 - s^2
    over all genes of the cell type: without any drift nothing is kept.
    """
    if screen.index.start is None:
        return None
    found = _find(screen)
    names = tuple(str(name) for name in screen.index.cell_types[found.cell_types])
    return Drift(names, found.kept * found.observed)


def reference_means(screen: Screen, matching: np.ndarray | None = None) -> ControlMeans:
    """Return the mean controls that shifts are measured from: the value of :func:`control_means`, at the end.

    Control cells at the start, moved by the drift, count as further ones at the end. Where the drift is observed
    without error this changes nothing; where there is none, all control cells are pooled.
    """
    means = control_means(screen.reader, screen.index, matching)
    if screen.index.start is None:
        return means
    found = _find(screen)
    further = np.zeros_like(means.cell_type)  # (T, G)
    further[found.cell_types] = -found.start[:, None] * (1 - found.kept) * found.observed
    return means._replace(
        batch=means.batch + further[types_of_batches(screen.index)], cell_type=means.cell_type + further
    )


def _find(screen: Screen) -> _Found:
    """Compare the control cells at start and end."""
    index = screen.index
    end = len(index.perturbations)  # code of the control cells at the end, which here are what is observed
    codes = np.where(index.is_control, end, np.where(index.is_source, index.control, -1))
    swapped = replace(index, perturbation=codes, start=None)
    n = np.array([(len(index.controls(t)), len(index.sources(t))) for t in range(len(index.cell_types))])  # (T, 2)
    types = np.flatnonzero(n.min(1) > 0)  # (C,)
    conditions = pd.DataFrame({"perturbation": end, "cell_type": types}, dtype=np.int64)
    observed = mean_shifts(screen.reader, swapped, conditions).shift
    # Variance between the control cells of one batch and time, pooled over those of a cell type.
    rows = np.flatnonzero(index.is_control | index.is_source)
    of_type = types_of_batches(index)  # (n_batches,)
    group = 2 * index.batch[rows] + index.is_source[rows]
    moments = group_moments(screen.reader, rows, group, 2 * len(of_type), np.repeat(of_type, 2))
    kept = np.zeros_like(observed)
    for c, t in enumerate(types):
        groups = np.flatnonzero((np.repeat(of_type, 2) == t) & (moments.n > 0))
        within = moments.square[t] - moments.n[groups] @ np.square(moments.mean[groups])  # (G,)
        error = np.maximum(within, 0) / max(n[t].sum() - len(groups), 1) * (1 / n[t]).sum()  # (G,), squared
        between = max(float((np.square(observed[c]) - error).mean()), 0.0)
        total = between + error
        kept[c] = np.divide(between, total, out=np.zeros_like(total), where=total > 0)
    return _Found(types, observed, kept, n[types, 1] / n[types].sum(1))


def controls_at_end(screen: Screen, drift: Drift | None) -> np.ndarray:
    """Return the mean of the control cells that perturbed cells are compared with, by cell type (T, G).

    In a cell type that shows none at the end they are those at the start plus the drift.
    """
    index = screen.index
    means = control_means(screen.reader, index).cell_type
    lacking = np.isnan(means).any(1)  # (T,)
    if drift is not None and lacking.any():
        at_start = replace(index, perturbation=np.where(index.is_source, index.control, -1), start=None)
        predicted = control_means(screen.reader, at_start).cell_type + drift.of(index.cell_types)
        means[lacking] = predicted[lacking]
    return means
