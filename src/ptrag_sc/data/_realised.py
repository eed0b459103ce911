"""How do predicted shifts of expression become cells with counts, real zeros among them?

A shift of gene g is reached by a fold f of the molecules of each control cell. Below 1 every molecule is kept with
probability f. Above 1 molecules are added: half of them in proportion to the cell's own count, half in proportion to
the mean of the gene. The mean shift that a fold brings is a property of the gene in the control cells of a cell type.
It is computed once, exactly, for a grid of folds, and every predicted shift is looked up in it.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.stats import binom

from ptrag_sc.data._counts import CellCounts, known_controls, read_counts
from ptrag_sc.data._fields import Screen
from ptrag_sc.data._requests import Request
from ptrag_sc.data._set_sampler import name_hash

FEW = 32  # molecules up to which distributions are summed term by term
N_LOSSES = 19  # points between a loss of .1 % and of all molecules
N_GAINS = 25  # points between a gain of .1 % and the largest
N_SIZES = 8  # groups of cells of similar library size
MOST_ADDED = 1000.0  # molecules per cell that a gene gains at most


class FoldCurves(NamedTuple):
    """The mean shift that each fold brings to a gene, in the control cells of one cell type."""

    loss: np.ndarray  # (K,) ascending shares of the molecules that are lost
    fall: np.ndarray  # (G, K) fall of the mean expression, ascending
    gain: np.ndarray  # (G, K') ascending shares of the molecules that are added
    rise: np.ndarray  # (G, K') rise of the mean expression, ascending
    rate: np.ndarray  # (G,) mean count over mean library size

    def fold(self, shift: np.ndarray) -> np.ndarray:
        """Return the folds (N, G) that bring some shifts (N, G); 1 for a shift of 0, the nearest if out of reach."""
        fold = np.ones_like(shift, dtype=float)
        for g in range(shift.shape[1]):
            s = shift[:, g]
            down = s < 0
            if down.any():
                fold[down, g] -= _looked_up(-s[down], self.fall[g], self.loss)
            up = s > 0
            if up.any():
                fold[up, g] += _looked_up(s[up], self.rise[g], self.gain[g])
        return np.maximum(fold, 0.0)


def _looked_up(shift: np.ndarray, reached: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Return the change of molecules for positive shifts; both are proportional below the first point."""
    if not reached[-1] > 0:  # a gene without molecules can lose none
        return np.zeros_like(shift)
    found = np.exp(np.interp(np.log(shift), np.log(reached), np.log(change)))
    return np.where(shift < reached[0], change[0] * shift / reached[0], found)


def fold_curves(cells: CellCounts) -> FoldCurves:
    """Return the curves of all genes from the counts of n control cells."""
    counts = cells.counts.tocoo()
    size = cells.size  # (n,)
    n, n_genes = counts.shape
    factor = 1 / size
    # A gene that no control cell shows can still be induced: half a molecule in all of them counts as its level.
    mean = np.maximum(np.bincount(counts.col, weights=counts.data, minlength=n_genes), 0.5) / n  # (G,)
    rate = mean / size.mean()
    loss = np.geomspace(1e-3, 1.0, N_LOSSES)
    gain = np.geomspace(1e-3, np.maximum(10.0, MOST_ADDED / mean), N_GAINS, axis=1)  # (G, K')
    entries = counts.data.astype(np.int64), counts.col, factor[counts.row]
    fall = _fall(*entries, 1 - loss, n_genes) / n
    rise = _rise(counts, factor, gain, rate) / n
    return FoldCurves(loss, np.maximum.accumulate(fall, 1), gain, np.maximum.accumulate(rise, 1), rate)


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
        expected = _logged(r, c * f, c * f * (1 - f))
        total[:, k] += np.bincount(g, weights=np.log1p(r * c) - expected, minlength=n_genes)
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
    """

    def __init__(self, screen: Screen, labels: tuple[str, ...], *, seed: int | None):
        self.screen = screen
        self.seed = seed or 0
        self.of_label = name_hash(np.array(["", *labels], dtype=object), self.seed)  # (Q,), query 0 first
        self._curves: dict[int, FoldCurves] = {}

    def curves(self, cell_type: int) -> FoldCurves:
        """Return the curves of a cell type, which are computed once."""
        if cell_type not in self._curves:
            self._curves[cell_type] = fold_curves(read_counts(self.screen, known_controls(self.screen, cell_type)))
        return self._curves[cell_type]

    def realise(self, cells: np.ndarray, request: Request) -> tuple[sp.csr_matrix, sp.csr_matrix]:
        """Return expression and counts (N, G) of predicted cells (N, G); a row without prediction stores nothing."""
        done = np.flatnonzero(request.source >= 0)  # (m,)
        source = request.source[done]
        controls, place = np.unique(source, return_inverse=True)
        known = read_counts(self.screen, controls)
        fold = np.ones((len(done), cells.shape[1]))
        expression = self.screen.reader.rows(controls)  # (controls, G)
        of_type = self.screen.index.cell_type[source]
        rate = np.zeros((len(self.screen.index.cell_types), cells.shape[1]))
        for t in np.unique(of_type[request.query[done] > 0]):
            at = np.flatnonzero((of_type == t) & (request.query[done] > 0))
            curves = self.curves(int(t))
            fold[at] = curves.fold(cells[done[at]] - expression[place[at]])
            rate[t] = curves.rate
        names = name_hash(self.screen.names[request.named[done]], self.seed)  # (m,)
        drawn = []
        size = known.size
        counts = known.counts.toarray()
        for i, row in enumerate(done):
            rng = np.random.default_rng([int(names[i]), int(self.of_label[request.query[row]])])
            own = counts[place[i]]
            drawn.append(_drawn(own, fold[i], size[place[i]] * rate[of_type[i]], rng))
        return _as_rows(drawn, counts, expression, 1 / size, place, done, cells.shape)


def _drawn(count: np.ndarray, fold: np.ndarray, level: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the counts (G,) of one cell after folds (G,); ``level`` (G,) is what a cell of its size has on average."""
    found = count.copy()
    loses = np.flatnonzero((fold < 1) & (count > 0))
    found[loses] = rng.binomial(count[loses].astype(np.int64), fold[loses])
    gains = np.flatnonzero(fold > 1)
    found[gains] += rng.poisson((fold[gains] - 1) * (count[gains] + level[gains]) / 2)
    return found


def _as_rows(
    drawn: list[np.ndarray],
    counts: np.ndarray,
    expression: np.ndarray,
    factor: np.ndarray,
    place: np.ndarray,
    rows: np.ndarray,
    shape: tuple[int, int],
) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Return expression and counts as CSR; where no count changed, the expression is the control cell's own."""
    stored = [np.flatnonzero(row) for row in drawn]
    per_row = np.zeros(shape[0], dtype=np.int64)
    per_row[rows] = [len(genes) for genes in stored]
    indptr = np.concatenate([[0], np.cumsum(per_row)])
    none = np.zeros(0, dtype=np.int64)
    indices = np.concatenate([none, *stored])
    of_row = np.repeat(place, [len(genes) for genes in stored])  # control cell of each stored value
    values = np.concatenate([none, *[row[genes] for row, genes in zip(drawn, stored, strict=True)]]).astype(np.float32)
    same = values == counts[of_row, indices]
    logged = np.where(same, expression[of_row, indices], np.log1p(values * factor[of_row]))
    matrix = sp.csr_matrix((logged.astype(np.float32), indices, indptr), shape=shape)
    return matrix, sp.csr_matrix((values, indices.copy(), indptr.copy()), shape=shape)
