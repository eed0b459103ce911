"""How large must a screen be, and how are its cells best divided?"""

import logging
from collections.abc import Iterable

import numpy as np
import pandas as pd

from ptrag_sc._validation import check_whole, listed, unusable
from ptrag_sc.baselines._known import SimilaritySpace
from ptrag_sc.baselines._refitted import Refitted
from ptrag_sc.data import Predictor
from ptrag_sc.data._fields import AnnOrMuData
from ptrag_sc.tl._extrapolation import Growth, Measured
from ptrag_sc.tl._model import check_predictor

logger = logging.getLogger(__name__)

PLACE = "tl.power"
SHARES = (0.125, 0.25, 0.5, 1.0)  # of the perturbations, at which accuracy is always measured
CELL_SHARES = (0.25, 0.5, 1.0)
FEWEST = 5  # perturbations that a fit sees
BEYOND = 2  # times what was measured
N_DRAWS = 100
LEVEL = 0.9


def power(
    adata: AnnOrMuData,
    model: Predictor | None,
    *,
    cell_type: str,
    n_perturbations: int | Iterable[int] | None = None,
    n_cells: int | Iterable[int] | None = None,
    budget: int | None = None,
    n_repeats: int = 10,
    space: SimilaritySpace = "auto",
    seed: int = 0,
    gene_embedding: object = None,
) -> pd.DataFrame:
    r"""Estimate how well unseen perturbations would be predicted from a screen of another size.

    In each repeat a third of the measured perturbations of the cell type is held out. Of the others some are taken, and
    of each of these some cells; a kernel ridge is fitted to their shifts, and its ``pearson_delta_pert`` on the
    held-out perturbations, all of whose cells count, is what is reported. No trained weights take part, because they
    have seen the perturbations that are held out here. Larger sizes are extrapolated with

    .. math:: r = a \left(\frac{m}{m + b}\right)^q , \qquad m = n \frac{c}{c + k}

    for n perturbations of c cells, fitted to all measured sizes. See :doc:`/screen_size`.

    Parameters
    ----------
    adata
        Registered object with the cells.
    model
        Model or baseline whose known conditions are the measured ones; None: the training conditions of ``adata``.
    cell_type
        Where perturbations are measured and predicted.
    n_perturbations
        Numbers of measured perturbations, 5 or more. None: steps up to twice what was measured.
    n_cells
        Numbers of cells per perturbation. None: a quarter, a half and all of what the median perturbation has.
    budget
        Perturbed cells in all, in place of ``n_perturbations``: for each of ``n_cells`` as many perturbations are
        measured as it pays for. Control cells are not in it (see :func:`ptrag_sc.tl.batch_layout`).
    n_repeats
        Repeats, each with other perturbations held out and other cells.
    space
        As in :func:`ptrag_sc.tl.design`.
    seed
        Seed of the draws.
    gene_embedding
        Table for genes that neither the model nor ``adata`` knows.

    Returns
    -------
    DataFrame
        One row per size: ``n_perturbations``, ``n_cells``, ``pearson_delta_pert``, ``low``, ``high`` (interval of 90 %:
        bootstrap over perturbations and repeats; an extrapolation is widened by the error that the formula makes when
        it predicts the largest measured number from half of it, for every doubling), ``extrapolated``. Beyond twice
        what was measured values are NaN, with a warning. ``.attrs`` holds ``predictor`` (what was refitted),
        ``cell_type``, ``n_measured`` and ``n_cells_measured`` (median), ``formula`` (a, b, q, k),
        ``error_of_doubling``, and with a budget ``budget`` and ``best`` (the row with the highest accuracy).

    Raises
    ------
    KeyError
        If the cell type does not occur, or a gene has no vector.
    ValueError
        If fewer than ten perturbations were measured, both or one of ``n_perturbations`` and ``budget`` cannot be used.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=2000, n_genes=60, n_perturbations=45, n_cell_types=1)
    >>> ptrag_sc.PTRAG.setup_anndata(
    ...     adata, perturbation_key="perturbation", control="non-targeting", cell_type_key="cell_type"
    ... )
    >>> sizes = {"n_perturbations": [20, 60], "n_cells": 20}
    >>> table = ptrag_sc.tl.power(adata, None, cell_type="type_0", **sizes, n_repeats=3)
    >>> table["extrapolated"].tolist()
    [False, True]
    """
    if model is not None:
        check_predictor(model)
    check_whole("n_repeats", n_repeats, PLACE, minimum=2)
    check_whole("seed", seed, PLACE)
    if budget is not None:
        check_whole("budget", budget, PLACE, minimum=1)
        if n_perturbations is not None:
            remedy = "Pass one of them: a budget and n_cells give the number of perturbations."
            raise ValueError(unusable("n_perturbations", PLACE, "is given with a budget", remedy))
    of = Refitted.of(adata, model, cell_type, space=space, gene_embedding=gene_embedding, place=PLACE)
    n_pool = len(of.names) - len(of.drawn(np.random.default_rng(0))[0])
    most_cells = int(np.median(of.n_cells))
    sizes = _sizes(n_perturbations, n_cells, budget, len(of.names), most_cells)
    measured = _measured(of, sizes, n_pool, most_cells, n_repeats, seed)
    table = _estimates(measured, sizes, BEYOND * len(of.names), BEYOND * most_cells, np.random.default_rng([seed, 1]))
    about = {"predictor": of.predictor, "cell_type": cell_type, "n_repeats": n_repeats}
    table.attrs.update(about, n_measured=len(of.names), n_cells_measured=most_cells)
    if budget is not None:
        known = table.dropna(subset="pearson_delta_pert")
        best = None
        if len(known):
            best = known.loc[known["pearson_delta_pert"].idxmax(), ["n_perturbations", "n_cells"]].astype(int).to_dict()
        table.attrs.update(budget=int(budget), best=best)
    return table


def _sizes(
    n_perturbations: int | Iterable[int] | None,
    n_cells: int | Iterable[int] | None,
    budget: int | None,
    n_measured: int,
    most_cells: int,
) -> list[tuple[int, int]]:
    """Return the sizes asked for (perturbations, cells), those of few cells first."""
    if n_cells is None:
        n_cells = _of_share(CELL_SHARES, most_cells, 1)
    cells = _whole("n_cells", n_cells, 1)
    if budget is not None:
        sizes = [(budget // c, c) for c in cells]
        for n, c in sizes:
            if n < FEWEST:
                problem = f"leaves {n} perturbations of the budget of {budget} cells"
                raise ValueError(unusable(f"n_cells={c}", PLACE, problem, f"Pass at most {budget // FEWEST}."))
        return sizes
    if n_perturbations is None:
        n_perturbations = _of_share((*SHARES, 1.5, 2.0), n_measured, FEWEST)
    return [(n, c) for c in cells for n in _whole("n_perturbations", n_perturbations, FEWEST)]


def _of_share(shares: Iterable[float], whole: int, least: int) -> list[int]:
    return sorted({max(least, round(share * whole)) for share in shares})


def _whole(name: str, values: int | Iterable[int], minimum: int) -> list[int]:
    """Return distinct whole numbers, rising."""
    given = list(values) if isinstance(values, Iterable) else [values]
    for value in given:
        check_whole(name, value, PLACE, minimum=minimum)
    if not given:
        raise ValueError(unusable(name, PLACE, "is empty", "Pass one number or more."))
    return sorted({int(value) for value in given})


def _measured(
    of: Refitted, sizes: list[tuple[int, int]], n_pool: int, most_cells: int, n_repeats: int, seed: int
) -> Measured:
    """Measure the sizes that were asked for, as far as they can be, and those that the formula is fitted to."""
    cells = sorted({c for _, c in sizes if c <= most_cells} | set(_of_share(CELL_SHARES, most_cells, 1)))
    grid = {(n, c) for n in _of_share(SHARES, n_pool, FEWEST) for c in cells}
    grid |= {(n, c) for n, c in sizes if n <= n_pool and c <= most_cells}
    ordered = sorted(grid)
    accuracy = np.full((n_repeats, len(ordered), len(of.names)), np.nan)
    for repeat in range(n_repeats):
        rng = np.random.default_rng([seed, 0, repeat])
        tested, pool = of.drawn(rng)
        real = of.masked(of.shifts, tested)
        # Cells are drawn once for each number of them; fewer perturbations are the first ones of the same order.
        seen = {c: of.masked(of.sampled(c, rng), tested) for c in cells}
        for i, (n, c) in enumerate(ordered):
            accuracy[repeat, i, tested] = of.accuracy(pool[:n], seen[c], real, tested)
    n, c = np.array(ordered).T
    return Measured(n, c, accuracy)


def _estimates(
    measured: Measured, sizes: list[tuple[int, int]], most: int, most_cells: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Return what was measured and what follows from the formula, with intervals."""
    mean = measured.means()
    growth = Growth.fit(measured.n, measured.c, mean)
    drawn = measured.bootstrapped(N_DRAWS, rng)  # (draws, s)
    growths = [Growth.fit(measured.n, measured.c, values, start=growth) for values in drawn]
    doubling = measured.error_of_doubling()
    place = {size: i for i, size in enumerate(zip(measured.n.tolist(), measured.c.tolist(), strict=True))}
    tails = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    rows, beyond = [], []
    for n, c in sizes:
        extrapolated = (n, c) not in place
        if n > most or c > most_cells:
            beyond.append(f"{n} x {c}")
            rows.append((n, c, np.nan, np.nan, np.nan, True))
            continue
        if extrapolated:
            value = float(growth.at(np.array(n), np.array(c)))
            values = np.array([float(one.at(np.array(n), np.array(c))) for one in growths])
        else:
            value, values = float(mean[place[n, c]]), drawn[:, place[n, c]]
        further = 0.0
        if extrapolated:
            doublings = max(np.log2(n / measured.n.max()), 0.0) + max(np.log2(c / measured.c.max()), 0.0)
            further = doubling * doublings
        low, high = np.quantile(values, tails)
        low, high = value - np.hypot(value - low, further), value + np.hypot(high - value, further)
        rows.append((n, c, value, low, high, extrapolated))
    if beyond:
        logger.warning(
            "%d sizes lie beyond twice what was measured (%d perturbations, %d cells) and are NaN: %s.",
            len(beyond),
            most // BEYOND,
            most_cells // BEYOND,
            listed(beyond),
        )
    names = ["n_perturbations", "n_cells", "pearson_delta_pert", "low", "high", "extrapolated"]
    table = pd.DataFrame(rows, columns=names)
    table.attrs.update(formula=growth._asdict(), error_of_doubling=doubling)
    return table
