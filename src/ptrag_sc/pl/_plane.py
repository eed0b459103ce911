"""In which plane are cells drawn, and which cells decide that?"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.sparse.linalg import svds

N_COMPONENTS = 30  # principal components that UMAP is fitted to


class Coordinates(NamedTuple):
    """Coordinates of cells in the plane, and names of its two axes."""

    observed: np.ndarray  # (n, 2), the cells that the plane is fitted to
    predicted: np.ndarray  # (m, 2)
    axes: tuple[str, str]


def _pca(observed: np.ndarray, predicted: np.ndarray, seed: int) -> Coordinates:
    centre, axes = _principal_axes(observed, 2)  # (G,), (G, 2)
    plane = (observed - centre) @ axes  # (n, 2)
    first, second = plane.var(axis=0) / observed.var(axis=0).sum()
    names = (f"PC1 ({first:.0%} of variance)", f"PC2 ({second:.0%} of variance)")
    return Coordinates(plane, (predicted - centre) @ axes, names)


def _umap(observed: np.ndarray, predicted: np.ndarray, seed: int) -> Coordinates:
    from umap import UMAP  # here, because it is compiled for seconds when it is imported

    n_components = min(N_COMPONENTS, *(n - 1 for n in observed.shape))  # svds finds fewer than min(n, G)
    centre, axes = _principal_axes(observed, n_components)  # (G,), (G, n_components)
    fitted = UMAP(n_neighbors=min(15, len(observed) - 1), random_state=seed, n_jobs=1).fit((observed - centre) @ axes)
    return Coordinates(fitted.embedding_, fitted.transform((predicted - centre) @ axes), ("UMAP1", "UMAP2"))


def _principal_axes(cells: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean (G,) and first n principal axes (G, n) of cells; the largest loading of an axis is positive."""
    centre = cells.mean(axis=0)
    start = np.random.default_rng(0).normal(size=min(cells.shape))  # svds would draw one without a seed
    _, values, axes = svds((cells - centre).astype(np.float64), k=n, v0=start)  # (n,), (n, G)
    axes = axes[np.argsort(-values)]
    largest = np.abs(axes).argmax(axis=1)  # (n,)
    # The sign of an axis is arbitrary: without a rule the picture could be mirrored on another machine.
    return centre, (axes * np.sign(axes[np.arange(n), largest])[:, None]).T


Basis = Callable[[np.ndarray, np.ndarray, int], Coordinates]  # f(observed (n, G), predicted (m, G), seed)
BASES: dict[str, Basis] = {"pca": _pca, "umap": _umap}
