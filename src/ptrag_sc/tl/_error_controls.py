"""How noisy are the control means of a cell type, and what do its batches and categories of cells add?"""

from typing import NamedTuple, Self

import numpy as np

from ptrag_sc.data import Screen
from ptrag_sc.data._matching import variances_of_features
from ptrag_sc.data._shifts import group_moments, types_of_batches
from ptrag_sc.metrics._error_parts import Kernel


class CategoryMeans(NamedTuple):
    """Control cells of one cell type by category, of which there are K."""

    n: np.ndarray  # (B, K)
    mean: np.ndarray  # (K, G); the mean of all control cells where a category has none
    variance: np.ndarray  # (K, G) between the cells of a category and batch; 0 where there are too few
    between: np.ndarray  # (B, G) between the category means, at the composition of a batch


class ControlNoise(NamedTuple):
    """Control cells of one cell type, whose batches (B) include those without control cells."""

    batches: np.ndarray  # (B,) their codes in the screen
    n: np.ndarray  # (B,) control cells
    mean: np.ndarray  # (B, G); 0 for a batch without control cells
    variance: np.ndarray  # (G,) between the cells of a batch; NaN if no batch has two
    of_batches: np.ndarray  # (G,) between batches, without bias; NaN if it cannot be known
    categories: CategoryMeans | None  # if a column was asked for

    @classmethod
    def of(cls, screen: Screen, cell_type: int, category: np.ndarray | None) -> Self:
        """Read the control cells of a cell type (code), given a category (code, or None) of every cell (n,)."""
        batches = np.flatnonzero(types_of_batches(screen.index) == cell_type)
        rows = screen.index.controls(cell_type)
        batch = np.searchsorted(batches, screen.index.batch[rows])  # (N,)
        moments = group_moments(screen.reader, rows, batch, len(batches), pool=np.zeros(len(batches), dtype=np.int64))
        used = moments.n > 0
        of_batches, variance = variances_of_features(moments.mean[used], moments.n[used], moments.square[0])
        if moments.n.sum() == used.sum():
            variance = np.full_like(variance, np.nan)
        if used.sum() < 2 or np.isnan(variance).any():
            of_batches = np.full_like(variance, np.nan)
        categories = None
        if category is not None:
            categories = _category_means(screen, rows, batch, category, len(batches))
        return cls(batches, moments.n, moments.mean, variance, of_batches, categories)

    @property
    def overall(self) -> np.ndarray:
        """Mean of all control cells (G,)."""
        return self.n @ self.mean / self.n.sum()

    def shares(self, batch: np.ndarray) -> np.ndarray:
        """Return the share of each batch (B,), given the batch of some cells (n,)."""
        count = np.bincount(np.searchsorted(self.batches, batch), minlength=len(self.batches))
        return count / max(len(batch), 1)

    def used(self, shares: np.ndarray) -> np.ndarray:
        """Return the share (..., B) of each batch in the matched control of some cells, given their shares (..., B).

        A batch without control cells takes those of all batches.
        """
        bare = self.n == 0
        return shares * ~bare + (shares * bare).sum(-1, keepdims=True) * self.n / self.n.sum()

    def kernel(self, weight: np.ndarray) -> Kernel:
        """Return the noise of C sums of control means, given the weight (C, B) of each batch in them."""
        return Kernel(weight / np.maximum(self.n, 1) @ weight.T, self.variance)

    def composition(self, shares: np.ndarray) -> np.ndarray:
        """Return the shares of the categories (C, K) in matched controls, given the shares of batches in these."""
        assert self.categories is not None  # the caller asked for a column
        return shares / np.maximum(self.n, 1) @ self.categories.n

    def composition_kernels(self, weight: np.ndarray, shares: np.ndarray, change: np.ndarray) -> tuple[Kernel, ...]:
        """Return the covariances of errors with shifts by composition, both of C conditions.

        Parameters
        ----------
        weight
            Weight of each control batch in the errors (C, B).
        shares
            Share of each batch in the matched controls (C, B).
        change
            Shares of the categories beyond those of the matched controls (C, K).
        """
        assert self.categories is not None
        n = np.maximum(self.n, 1)
        of_type = self.categories.n
        # A control cell is in both the mean of its category and the mean of its batch...
        means = weight / n @ of_type, change / np.maximum(of_type.sum(0), 1)  # (C, K) each
        found = [Kernel(np.outer(means[0][:, k], means[1][:, k]), v) for k, v in enumerate(self.categories.variance)]
        # ...and changes the composition of its batch.
        for b in np.flatnonzero(self.n):
            found.append(Kernel(-np.outer(weight[:, b], shares[:, b]) / n[b], self.categories.between[b]))
        return tuple(found)


def _category_means(
    screen: Screen, rows: np.ndarray, batch: np.ndarray, category: np.ndarray, n_batches: int
) -> CategoryMeans:
    """Return the means of control cells (rows, and the batch of each) by category (n,)."""
    n_categories = int(category.max()) + 1  # K
    group = batch * n_categories + category[rows]
    pool = np.tile(np.arange(n_categories), n_batches)  # (B * K,)
    moments = group_moments(screen.reader, rows, group, n_batches * n_categories, pool)
    n = moments.n.reshape(n_batches, n_categories)
    means = moments.mean.reshape(n_batches, n_categories, -1)  # (B, K, G)
    overall = moments.n @ moments.mean / len(rows)  # (G,)
    size = n.sum(0)  # (K,)
    mean = np.einsum("bk,bkg->kg", n, means) / np.maximum(size, 1)[:, None]
    mean[size == 0] = overall
    within = moments.square - np.einsum("bk,bkg->kg", n, np.square(means))
    variance = np.maximum(within, 0) / np.maximum(size - (n > 0).sum(0), 1)[:, None]
    share = n / np.maximum(n.sum(1, keepdims=True), 1)  # (B, K)
    between = share @ np.square(mean) - np.square(share @ mean)
    return CategoryMeans(n, mean, variance, between)
