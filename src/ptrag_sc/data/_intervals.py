"""How far is a predicted shift from the one that cells will show?

Every training perturbation is left out in turn and predicted from the others. The interval of a gene is made of these
residuals: prediction +- t * root mean square. What a perturbation does to its own target varies far more, and with the
expression of the target, so it has an interval of its own. Both are marginal: they hold on average over perturbations.
"""

from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
from scipy.stats import t as student

from ptrag_sc.data._fields import Screen
from ptrag_sc.data._labels import components
from ptrag_sc.data._shifts import ControlMeans, Spread, group_moments
from ptrag_sc.data._targets import measured_targets

KNOWN, UNSEEN = "elsewhere", "unseen"  # whether the perturbation was measured in another cell type
MIN_CONDITIONS = 3
MIN_TARGETS = 5
MAX_FOLDS = 30


class Residuals(NamedTuple):
    """Residuals of C conditions, each predicted without its own cells."""

    conditions: pd.DataFrame  # C rows: perturbation, cell_type, kind
    error: np.ndarray  # (C, G) observed minus predicted shift
    own: np.ndarray  # (C, G) which genes are targets
    level: np.ndarray  # (C, G) mean control expression
    sampling: np.ndarray  # (C, G) squared standard error of the observed shift
    shared: np.ndarray  # (C,) squared weights of the control cells in the matched control that all conditions share


class Fold(NamedTuple):
    """Conditions that are left out together, and those of them whose residuals count."""

    kind: str
    left_out: np.ndarray  # rows of the table of conditions
    scored: np.ndarray  # some of them


def residual_folds(conditions: pd.DataFrame, sep: str | None, n_folds: int | None = None) -> list[Fold]:
    """Return folds of perturbations, each left out everywhere, and in every cell type alone.

    A single perturbation is left out with its combinations: a new gene has none.

    Parameters
    ----------
    conditions
        Columns ``perturbation``, ``cell_type`` (names) of training conditions.
    sep
        Separator of combinations.
    n_folds
        Largest number of groups of perturbations; None: 30.
    """
    labels = conditions["perturbation"].to_numpy(dtype=str)  # (C,)
    types = conditions["cell_type"].to_numpy(dtype=str)
    names = np.unique(labels)
    rng = np.random.default_rng(0)
    parts = np.array_split(rng.permutation(names), min(MAX_FOLDS if n_folds is None else n_folds, len(names)))
    genes = {name: set(components(name, sep)) for name in names}
    n_types = pd.Series(types).groupby(labels).nunique()
    elsewhere = n_types.loc[labels].to_numpy() > 1  # (C,)
    folds = []
    for part in parts:
        single = {name for name in part if len(genes[name]) == 1}
        scored = np.isin(labels, part)
        also = np.array([not single.isdisjoint(genes[name]) for name in labels])
        left_out = scored | also
        if not left_out.all():
            folds.append(Fold(UNSEEN, np.flatnonzero(left_out), np.flatnonzero(scored)))
        for t in np.unique(types[scored & elsewhere]):
            of_type = np.flatnonzero(scored & elsewhere & (types == t))
            folds.append(Fold(KNOWN, of_type, of_type))
    return folds


class GeneErrors(NamedTuple):
    """Errors in one cell type, of perturbations of one kind."""

    square: np.ndarray  # (G,) mean squared residual; own targets do not count
    n: int  # conditions
    own_variance: float  # of the change of targets, over the square of their expression
    own_scores: np.ndarray  # (targets,) ascending: residual over expected error at own targets
    sampling: float  # squared standard error of an observed shift, over the variance between cells
    control: np.ndarray  # (G,) squared standard error of the mean control that all conditions share

    def half_width(self, level: float, further: np.ndarray | float = 0.0) -> np.ndarray:
        """Return half the width of the interval of every gene (G,); ``further`` is variance beyond the residuals."""
        if self.n < MIN_CONDITIONS:
            return np.full(len(self.square), np.inf)
        return student.ppf((1 + level) / 2, self.n - 1) * np.sqrt(self.square + further)

    def own_half_width(
        self, level: float, control: np.ndarray, variance: np.ndarray, further: np.ndarray | float = 0.0
    ) -> np.ndarray:
        """Return that at own targets, given their mean and variance between control cells (targets,).

        The quantile is that of split conformal prediction. Where there are too few targets for it, the largest score
        of n targets is taken, which covers n / (n + 1); inf with fewer than five.
        """
        n = len(self.own_scores)
        if n < MIN_TARGETS:
            return np.full(len(control), np.inf)
        k = min(n, int(np.ceil((n + 1) * level - 1e-9)))
        expected = self.own_variance * np.square(control) + variance * self.sampling + further
        return self.own_scores[k - 1] * np.sqrt(expected)


class Controls(NamedTuple):
    """Control cells of one cell type."""

    mean: np.ndarray  # (G,)
    variance: np.ndarray  # (G,) between cells
    n: int

    @classmethod
    def of(cls, screen: Screen, cell_type: int, drift: np.ndarray | None = None) -> "Controls":
        """Return mean and variance of the control cells, at the end if time is registered, given the drift (T, G)."""
        rows, moved = screen.index.controls(cell_type), np.zeros(screen.reader.n_genes)
        if not len(rows) and drift is not None:  # only cells at the start are here
            rows, moved = screen.index.sources(cell_type), drift[cell_type]
        one = np.zeros(len(rows), dtype=np.int64)
        moments = group_moments(screen.reader, rows, one, 1, pool=one[:1])
        square = moments.square[0] / len(rows) if len(rows) > 1 else np.nan  # of one cell: nothing can be called
        variance = np.maximum(square - np.square(moments.mean[0]), 0)
        return cls(moments.mean[0] + moved, variance, len(rows))

    def squared_error(self, errors: GeneErrors) -> np.ndarray:
        """Return the squared standard error of the mean control (G,).

        Where few controls show a gene, their own variance is too small or 0, and that between all cells is taken.
        """
        return np.maximum(self.variance / self.n, errors.control)


class EffectErrors(NamedTuple):
    """Errors of predicted shifts by cell type and kind of perturbation."""

    of: dict[tuple[str, str], GeneErrors]

    @classmethod
    def learn(cls, found: Residuals, variance: dict[str, np.ndarray]) -> Self:
        """Learn from residuals, given the variance between cells (G,) of each cell type."""
        of = {}
        for (t, kind), rows in found.conditions.groupby(["cell_type", "kind"]).indices.items():
            part = Residuals(found.conditions.iloc[rows], *(array[rows] for array in found[1:]))
            of[str(t), str(kind)] = _gene_errors(part, variance[str(t)])
        return cls(of)

    def find(self, cell_type: str, kind: str) -> GeneErrors | None:
        """Return the errors to expect; None if they are not known.

        What is known elsewhere is predicted better than what is unseen, so with too few conditions or targets of that
        kind the wider interval of the unseen is safe.
        """
        unseen = self.of.get((cell_type, UNSEEN))
        found = self.of.get((cell_type, kind), unseen)
        if found is None or unseen is None or found is unseen:
            return found
        if found.n < MIN_CONDITIONS:
            return unseen
        if len(found.own_scores) < MIN_TARGETS:
            return found._replace(own_variance=unseen.own_variance, own_scores=unseen.own_scores)
        return found

    def to_json(self) -> list[dict[str, Any]]:
        """Return lists and numbers."""
        return [
            {"cell_type": t, "kind": kind, **{name: _plain(value) for name, value in errors._asdict().items()}}
            for (t, kind), errors in self.of.items()
        ]

    @classmethod
    def from_json(cls, saved: list[dict[str, Any]]) -> Self:
        """Return the value of :meth:`to_json` as it was."""
        of = {}
        for row in saved:
            fields = {name: row[name] for name in GeneErrors._fields}
            arrays = {name: np.array(fields[name], dtype=float) for name in ("square", "own_scores", "control")}
            of[row["cell_type"], row["kind"]] = GeneErrors(**{**fields, **arrays})
        return cls(of)


def make_residuals(
    conditions: pd.DataFrame,
    error: np.ndarray,
    codes: pd.DataFrame,
    spread: Spread,
    rows: np.ndarray,
    controls: ControlMeans,
    genes: np.ndarray,
    sep: str | None,
) -> Residuals:
    """Return residuals with all that intervals are learned from.

    Parameters
    ----------
    conditions, error
        Columns ``perturbation``, ``cell_type``, ``kind`` of C residuals, and these (C, G).
    codes
        The same conditions as codes of the screen.
    spread, rows
        Uncertainty of observed shifts, and the row of each condition in it (C,).
    controls
        Mean controls.
    genes, sep
        Genes (G,), and the separator of combinations.
    """
    t = codes["cell_type"].to_numpy(dtype=np.int64)
    return Residuals(
        conditions=conditions.reset_index(drop=True),
        error=error,
        own=measured_targets(conditions["perturbation"].to_numpy(), genes, sep),
        level=controls.cell_type[t],
        sampling=spread.variance[t] * spread.scale[rows][:, None],
        shared=spread.scale[rows] - spread.contrast[rows],
    )


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _gene_errors(found: Residuals, variance: np.ndarray) -> GeneErrors:
    """Return the errors of the conditions of one cell type and kind."""
    others = ~found.own
    square = (np.square(found.error) * others).sum(0) / np.maximum(others.sum(0), 1)
    error, level, sampling = found.error[found.own], found.level[found.own], found.sampling[found.own]
    own_variance = 0.0
    if np.square(level).sum() > 0:
        own_variance = max(0.0, float((np.square(error) - sampling).sum() / np.square(level).sum()))
    expected = np.sqrt(own_variance * np.square(level) + sampling)
    scores = np.sort(np.abs(error) / np.maximum(expected, np.finfo(float).tiny))
    relative = np.median(found.sampling / np.maximum(variance, np.finfo(float).tiny), axis=1)  # (C,)
    control = variance * max(0.0, float(found.shared.mean()))
    return GeneErrors(square, len(found.error), own_variance, scores, float(np.median(relative)), control)
