"""How do predicted shifts of expression become cells with counts, real zeros among them?

A shift of gene g is reached by a fold f of the molecules of each control cell. Below 1 every molecule is kept with
probability f. Above 1 molecules are added: half of them in proportion to the cell's own count, half in proportion to
the mean of the gene. The mean shift that a fold brings is a property of the gene in the control cells of a cell type.
It is computed once, exactly, for a grid of folds, and every predicted shift is looked up in it.
"""

from copy import copy
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.stats import binom

from ptrag_sc.data._counts import CellCounts, known_controls, read_counts, relative_size
from ptrag_sc.data._fields import Screen
from ptrag_sc.data._requests import Request
from ptrag_sc.data._set_sampler import name_hash

FEW = 32  # molecules up to which distributions are summed term by term
# Losses from .1 % to all of the molecules: closer where few are left, because there the fall is steep.
LOSSES = np.concatenate([np.geomspace(1e-3, 0.5, 13), 1 - np.geomspace(0.4, 2e-3, 11), [1.0]])
N_GAINS = 25  # points between a gain of .1 % and the largest
N_SIZES = 8  # groups of cells of similar library size
MOST_ADDED = 1000.0  # molecules per cell that a gene gains at most
N_INVERTED = 64  # points of a table of folds by shift
SMALLEST = 1e-12  # shift that still has a logarithm
ROWS_AT_ONCE = 512


class FoldCurves(NamedTuple):
    """The mean shift that each fold brings to a gene, in the control cells of one cell type."""

    loss: np.ndarray  # (K,) ascending shares of the molecules that are lost
    fall: np.ndarray  # (G, K) fall of the mean expression, ascending
    gain: np.ndarray  # (G, K') ascending shares of the molecules that are added
    rise: np.ndarray  # (G, K') rise of the mean expression, ascending
    rate: np.ndarray  # (G,) mean count over mean library size

    def inverted(self) -> "Folds":
        """Return the folds that bring a shift, as tables."""
        down = _inverted(self.fall, np.broadcast_to(self.loss, self.fall.shape))
        up = _inverted(self.rise, self.gain)
        return Folds(*down, *up)


class Folds(NamedTuple):
    """Folds by shift: the logarithm of the change of molecules at equal steps of the logarithm of the shift."""

    first_fall: np.ndarray  # (G,) logarithm of the smallest fall in the table; inf for a gene that cannot fall
    step_fall: np.ndarray  # (G,)
    log_loss: np.ndarray  # (G, M)
    first_rise: np.ndarray  # (G,)
    step_rise: np.ndarray  # (G,)
    log_gain: np.ndarray  # (G, M)

    def fold(self, shift: np.ndarray) -> np.ndarray:
        """Return the folds (N, G) that bring some shifts (N, G); 1 for a shift of 0, the nearest if out of reach."""
        size = np.log(np.maximum(np.abs(shift), SMALLEST))  # (N, G)
        fold = np.ones(shift.shape, dtype=np.float32)
        for sign, first, step, table in (
            (-1.0, self.first_fall, self.step_fall, self.log_loss),
            (1.0, self.first_rise, self.step_rise, self.log_gain),
        ):
            row, gene = np.nonzero((shift * sign > 0) & np.isfinite(first))
            place = (size[row, gene] - first[gene]) / step[gene]  # in steps; below the table both are proportional
            at = np.clip(place.astype(np.int64), 0, table.shape[1] - 2)
            left, right = table[gene, at], table[gene, at + 1]
            change = left + (right - left) * np.clip(place - at, 0, 1) + np.minimum(place, 0) * step[gene]
            fold[row, gene] += sign * np.exp(change)
        return np.maximum(fold, 0)


def _inverted(shift: np.ndarray, change: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each gene the first point, the step and the logarithms of the change (G, M), given curves (G, K)."""
    n_genes = len(shift)
    first = np.full(n_genes, np.inf)
    step = np.ones(n_genes)
    table = np.zeros((n_genes, N_INVERTED))
    for g in range(n_genes):
        if not shift[g, -1] > 0:  # a gene without molecules can lose none
            continue
        x = np.log(np.maximum(shift[g], SMALLEST))
        at = np.linspace(x[0], x[-1], N_INVERTED)
        first[g] = x[0]
        step[g] = max(at[1] - at[0], SMALLEST)
        table[g] = np.interp(at, x, np.log(change[g]))
    return first, step, table


def fold_curves(cells: CellCounts) -> FoldCurves:
    """Return the curves of all genes from the counts of n control cells."""
    counts = cells.counts.tocoo()
    size = cells.size  # (n,)
    n, n_genes = counts.shape
    factor = 1 / size
    # A gene that no control cell shows can still be induced: half a molecule in all of them counts as its level.
    mean = np.maximum(np.bincount(counts.col, weights=counts.data, minlength=n_genes), 0.5) / n  # (G,)
    rate = mean / size.mean()
    gain = np.geomspace(1e-3, np.maximum(10.0, MOST_ADDED / mean), N_GAINS, axis=1)  # (G, K')
    entries = counts.data.astype(np.int64), counts.col, factor[counts.row]
    fall = _fall(*entries, 1 - LOSSES, n_genes) / n
    rise = _rise(counts, factor, gain, rate) / n
    return FoldCurves(LOSSES, np.maximum.accumulate(fall, 1), gain, np.maximum.accumulate(rise, 1), rate)


def _fall(count: np.ndarray, gene: np.ndarray, factor: np.ndarray, fold: np.ndarray, n_genes: int) -> np.ndarray:
    """Return by how much log1p(factor * Binomial(count, fold)) falls on average, summed by gene (G, K)."""
    kept = np.arange(FEW + 1)
    total = np.zeros((n_genes, len(fold)))
    for c in np.unique(count[count <= FEW]):
        of_c = count == c
        logged = np.log1p(factor[of_c, None] * kept[: c + 1])  # (m, c + 1)
        sums = np.stack([np.bincount(gene[of_c], weights=column, minlength=n_genes) for column in logged.T], 1)
        probability = binom.pmf(kept[: c + 1, None], c, fold)  # (c + 1, K)
        total += sums[:, -1:] - sums @ probability
    many = count > FEW
    c, g, r = count[many].astype(float), gene[many], factor[many]
    for k, f in enumerate(fold):
        total[:, k] += np.bincount(g, weights=np.log1p(r * c) - _logged_binomial(r, c, f), minlength=n_genes)
    return total


def _rise(counts: sp.coo_matrix, factor: np.ndarray, gain: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Return by how much expression rises on average, summed by gene (G, K')."""
    n, n_genes = counts.shape
    # Cells of similar size share one factor, and equal counts of a gene in them are one term.
    n_groups = min(N_SIZES, n)
    group = np.empty(n, dtype=np.int64)
    group[np.argsort(factor, kind="stable")] = np.arange(n) * n_groups // n
    of_group = np.bincount(group, minlength=n_groups)
    shared = np.exp(np.bincount(group, weights=np.log(factor), minlength=n_groups) / of_group)  # (groups,)
    most = int(counts.data.max(initial=0)) + 1
    key = (counts.col.astype(np.int64) * n_groups + group[counts.row]) * most + counts.data.astype(np.int64)
    terms, times = np.unique(key, return_counts=True)
    gene, rest = np.divmod(terms, n_groups * most)
    of_term, count = np.divmod(rest, most)
    shown = np.zeros((n_genes, n_groups))
    np.add.at(shown, (gene, of_term), times)
    gene = np.concatenate([gene, np.repeat(np.arange(n_genes), n_groups)])  # and the cells that do not show the gene
    of_term = np.concatenate([of_term, np.tile(np.arange(n_groups), n_genes)])
    count = np.concatenate([count, np.zeros(n_genes * n_groups, dtype=np.int64)]).astype(float)
    times = np.concatenate([times, (of_group - shown).ravel()])
    total = np.zeros((n_genes, gain.shape[1]))
    r = shared[of_term]
    for k in range(gain.shape[1]):
        added = gain[gene, k] * (count + rate[gene] / r) / 2  # mean of a Poisson distribution
        risen = _logged_poisson(r, count, added) - np.log1p(r * count)
        total[:, k] = np.bincount(gene, weights=times * risen, minlength=n_genes)
    return total


def _logged_binomial(factor: np.ndarray, count: np.ndarray, fold: float) -> np.ndarray:
    """Return the mean of log1p(factor * Binomial(count, fold)) for counts above ``FEW``; fold < 1."""
    mean = _logged(factor, count * fold, count * fold * (1 - fold))
    few = count * fold <= FEW / 2  # nearly all are lost: the distribution is not symmetric
    r, c = factor[few], count[few]
    total = np.zeros_like(r)
    probability = np.power(1 - fold, c)
    for k in range(FEW + 12):
        total += probability * np.log1p(r * k)
        probability = probability * np.maximum(c - k, 0) / (k + 1) * (fold / (1 - fold))
    mean[few] = total
    return mean


def _logged_poisson(factor: np.ndarray, count: np.ndarray, added: np.ndarray) -> np.ndarray:
    """Return the mean of log1p(factor * (count + Poisson(added)))."""
    mean = _logged(factor, count + added, added)
    for low, high in ((0.0, 1.0), (1.0, 6.0), (6.0, 16.0)):
        few = (added > low) & (added <= high)
        r, c, rate = factor[few], count[few], added[few]
        total = np.zeros_like(rate)
        probability = np.exp(-rate)
        for k in range(int(high + 6 * np.sqrt(high) + 4)):
            total += probability * np.log1p(r * (c + k))
            probability = probability * rate / (k + 1)
        mean[few] = total
    return mean


def _logged(factor: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Return the mean of log1p(factor * x) to second order in the deviations of x."""
    whole = 1 + factor * mean
    return np.log(whole) - 0.5 * np.square(factor / whole) * variance


class Realisation:
    """Turns predicted expression into counts.

    Parameters
    ----------
    screen
        Control cells that predictions start from.
    labels
        Perturbations of the call.
    seed
        Seed of the draws; None is fixed by the names of cell and perturbation alone.

    Raises
    ------
    CountsUnknown
        If the counts of a control cell are not known.
    """

    def __init__(self, screen: Screen, labels: tuple[str, ...], *, seed: int | None):
        self.screen = screen
        self.seed = seed or 0
        self.of_label = name_hash(np.array(["", *labels], dtype=object), self.seed)  # (Q,), query 0 first
        # All controls at once: an error in the middle of a call would be too late.
        self.controls = np.flatnonzero(screen.index.is_source)
        self.known = read_counts(screen, self.controls)
        self._types: dict[int, _OfType] = {}

    def realise(self, cells: np.ndarray, request: Request) -> tuple[sp.csr_matrix, sp.csr_matrix]:
        """Return expression and counts (N, G) of predicted cells (N, G); a row without prediction stores nothing."""
        parts = []
        for start in range(0, len(cells), ROWS_AT_ONCE):
            rows = np.arange(start, min(start + ROWS_AT_ONCE, len(cells)))
            parts.append(self._block(cells[rows], rows, request))
        expression, counts = zip(*parts, strict=True)
        return sp.vstack(expression, format="csr"), sp.vstack(counts, format="csr")

    def _block(self, cells: np.ndarray, rows: np.ndarray, request: Request) -> tuple[sp.csr_matrix, sp.csr_matrix]:
        """Return expression and counts of some rows."""
        source, query = request.source[rows], request.query[rows]
        expression = np.zeros(cells.shape, dtype=np.float32)
        drawn = np.zeros(cells.shape, dtype=np.float32)
        of_type = self.screen.index.cell_type[source]
        names = name_hash(self.screen.names[request.named[rows]], self.seed)
        for t in np.unique(of_type[source >= 0]):
            at = np.flatnonzero((of_type == t) & (source >= 0))
            place = np.searchsorted(self.controls, source[at])
            own = self.known.counts[place].toarray()  # (m, G)
            logged = self.screen.reader.rows(source[at])
            size = self._size[place]
            perturbed = np.flatnonzero((cells[at] != logged).any(1))
            found = own.copy()
            if len(perturbed):
                known = self._of_type(int(t))
                fold = known.folds.fold(cells[at[perturbed]] - logged[perturbed])
                for i, f in zip(perturbed, fold, strict=True):
                    rng = np.random.default_rng([int(names[at[i]]), int(self.of_label[query[at[i]]])])
                    _draw(found[i], f, size[i] * known.rate, rng)
            drawn[at] = found
            # Where no count changed, the expression is the control cell's own.
            changed = np.nonzero((found != own) & (found > 0))
            logged[found == 0] = 0
            logged[changed] = np.log1p(found[changed] / size[changed[0]])
            expression[at] = logged
        row, gene = np.nonzero(drawn)
        indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(rows)))])
        matrices = [sp.csr_matrix((m[row, gene], gene.copy(), indptr.copy()), cells.shape) for m in (expression, drawn)]
        return matrices[0], matrices[1]

    def of_rows(self, screen: Screen, rows: np.ndarray, cell_types: list[int]) -> "Realisation":
        """Return the same for a screen that holds some control rows (m,) only; what belongs to cell types is kept."""
        place = np.searchsorted(self.controls, rows)  # (m,)
        other = copy(self)
        other.screen, other.controls = screen, np.arange(len(rows))
        other.known = CellCounts(self.known.counts[place], self.known.factor[place])
        other._size = self._size[place]
        other._types = {t: self._of_type(t) for t in cell_types}
        return other

    def _of_type(self, cell_type: int) -> "_OfType":
        """Return what is computed once for a cell type."""
        if cell_type not in self._types:
            place = np.searchsorted(self.controls, known_controls(self.screen, cell_type))
            curves = fold_curves(CellCounts(self.known.counts[place], self.known.factor[place]))
            self._types[cell_type] = _OfType(curves.inverted(), curves.rate)
        return self._types[cell_type]

    @cached_property
    def _size(self) -> np.ndarray:
        """Relative library size of every control cell, an average one of its cell type where it shows no molecule."""
        of_type = self.screen.index.cell_type[self.controls]
        size = np.empty(len(of_type))
        for t in np.unique(of_type):
            size[of_type == t] = relative_size(self.known.factor[of_type == t])
        return size


class _OfType(NamedTuple):
    """How shifts become folds in one cell type."""

    folds: Folds
    rate: np.ndarray  # (G,)


def _draw(count: np.ndarray, fold: np.ndarray, level: np.ndarray, rng: np.random.Generator) -> None:
    """Change the counts (G,) of one cell by folds (G,); ``level`` (G,) is what a cell of its size has on average."""
    loses = np.flatnonzero((fold < 1) & (count > 0))
    gains = np.flatnonzero(fold > 1)
    added = rng.poisson((fold[gains] - 1) * (count[gains] + level[gains]) / 2)
    count[loses] = rng.binomial(count[loses].astype(np.int64), fold[loses])
    count[gains] += added
