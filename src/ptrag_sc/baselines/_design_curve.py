"""Would a designed choice of perturbations have told more than a random one?"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from ptrag_sc._validation import check_whole, unusable
from ptrag_sc.baselines._known import SimilaritySpace
from ptrag_sc.baselines._refitted import Refitted
from ptrag_sc.data import Predictor
from ptrag_sc.data._fields import AnnOrMuData
from ptrag_sc.retrieval import PerturbationKernel, RemainingVariance

N_SIZES = 6
SMALLEST = 5  # perturbations that a fit sees
BAND = (0.1, 0.9)  # of the repeats


def design_curve(
    adata: AnnOrMuData,
    model: Predictor | None,
    *,
    cell_type: str,
    n_perturbations: Iterable[int] | None = None,
    n_start: int = 0,
    space: SimilaritySpace = "auto",
    n_repeats: int = 10,
    seed: int = 0,
    gene_embedding: object = None,
) -> pd.DataFrame:
    """Compare :func:`ptrag_sc.tl.design` with a random choice, by choosing again from the screen that was measured.

    In each repeat a third of the measured perturbations of the cell type is held out and tested. From the others some
    are chosen, by design (the tested ones being its targets) or at random, and a kernel ridge is fitted to their
    shifts. No trained weights take part.

    Parameters
    ----------
    adata
        Registered object with the cells.
    model
        Model or baseline whose known conditions are the measured ones; None: the training conditions of ``adata``.
    cell_type
        Where perturbations are chosen and predicted.
    n_perturbations
        Numbers of measured perturbations. None: six numbers up to all that are not held out.
    n_start
        How many of them are chosen at random before the design begins.
    space
        As in :func:`ptrag_sc.tl.design`.
    n_repeats
        Repeats, each with other perturbations held out.
    seed
        Seed of the draws.
    gene_embedding
        Table for genes that neither the model nor ``adata`` knows.

    Returns
    -------
    DataFrame
        ``choice`` (``design`` or ``random``), ``n_perturbations``, ``pearson_delta_pert`` (mean over repeats),
        ``low``, ``high`` (the middle 80 % of the repeats). ``.attrs`` holds ``predictor``, ``cell_type`` and
        ``n_repeats``.

    Raises
    ------
    KeyError
        If the cell type does not occur, or a gene has no vector.
    ValueError
        If fewer than ten perturbations were measured, or a number is out of range.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=2000, n_genes=60, n_perturbations=45, n_cell_types=1)
    >>> ptrag_sc.PTRAG.setup_anndata(
    ...     adata, perturbation_key="perturbation", control="non-targeting", cell_type_key="cell_type"
    ... )
    >>> curve = ptrag_sc.tl.design_curve(adata, None, cell_type="type_0", n_perturbations=[10, 20], n_repeats=3)
    >>> curve["choice"].tolist()
    ['design', 'design', 'random', 'random']
    """
    check_whole("n_start", n_start, "tl.design_curve")
    check_whole("n_repeats", n_repeats, "tl.design_curve", minimum=1)
    of = Refitted.of(adata, model, cell_type, space=space, gene_embedding=gene_embedding, place="tl.design_curve")
    n_pool = len(of.names) - len(of.drawn(np.random.default_rng(0))[0])
    sizes = _sizes(n_perturbations, n_start, n_pool)
    draws = [of.drawn(np.random.default_rng([seed, i])) for i in range(n_repeats)]
    parts = [chosen_again(of, tested, pool, sizes, n_start) for tested, pool in draws]
    grouped = pd.concat(parts).groupby(["choice", "n_perturbations"])["pearson_delta_pert"]
    low, high = (grouped.quantile(bound) for bound in BAND)
    table = pd.DataFrame({"pearson_delta_pert": grouped.mean(), "low": low, "high": high}).reset_index()
    table.attrs.update(predictor=of.predictor, cell_type=cell_type, n_repeats=n_repeats)
    return table


def _sizes(asked: Iterable[int] | None, n_start: int, n_pool: int) -> list[int]:
    """Return the numbers of measured perturbations, rising."""
    smallest = max(n_start, min(SMALLEST, n_pool))
    if n_start > n_pool:
        problem = f"is above the {n_pool} perturbations that are not held out"
        raise ValueError(unusable(f"n_start={n_start}", "tl.design_curve", problem, f"Pass at most {n_pool}."))
    if asked is None:
        return np.unique(np.linspace(smallest, n_pool, N_SIZES).round().astype(int)).tolist()
    sizes = sorted({int(n) for n in asked})
    for n in sizes:
        if not max(2, n_start) <= n <= n_pool:
            problem = f"is not between {max(2, n_start)} and the {n_pool} perturbations that are not held out"
            remedy = "Pass numbers in this range; tl.power extrapolates."
            raise ValueError(unusable(f"n_perturbations={n}", "tl.design_curve", problem, remedy))
    return sizes


def chosen_again(of: Refitted, tested: np.ndarray, pool: np.ndarray, sizes: list[int], n_start: int) -> pd.DataFrame:
    """Return the mean accuracy (``choice``, ``n_perturbations``, ``pearson_delta_pert``) of one test set.

    Parameters
    ----------
    of
        What has been measured.
    tested, pool
        Perturbations that are held out, and those that can be chosen, in random order (numbers).
    sizes
        How many are chosen.
    n_start
        How many of them at random, for the design too.
    """
    masked = of.masked(of.shifts, tested)
    orders = {"design": _designed(of.kernel, tested, pool, n_start, max(sizes)), "random": pool}
    rows = [
        (choice, n, of.accuracy(order[:n], masked, masked, tested).mean())
        for choice, order in orders.items()
        for n in sizes
    ]
    return pd.DataFrame(rows, columns=["choice", "n_perturbations", "pearson_delta_pert"])


def _designed(kernel: PerturbationKernel, tested: np.ndarray, pool: np.ndarray, n_start: int, n: int) -> np.ndarray:
    """Return n perturbations: the first ones of the pool as they are, then those that the design takes."""
    start, rest = pool[:n_start], pool[n_start:]
    chosen = RemainingVariance(kernel, tested, rest, start).choose(n - n_start).chosen
    return np.concatenate([start, rest[chosen]])
