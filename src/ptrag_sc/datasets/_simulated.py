"""What does a Perturb-seq screen look like whose every effect, module and relevant neighbour is known?"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix, vstack

from ptrag_sc._constants import EMBEDDING_KEY
from ptrag_sc._validation import unusable
from ptrag_sc.datasets._log_normalised import log_normalised
from ptrag_sc.datasets._simulated_network import (
    COUNTS_PER_GENE,
    DISPERSION,
    DRIFT_BY_STATE,
    LIBRARY_SD,
    N_BATCHES,
    RESPONSE,
    Screen,
    draw_drift,
    draw_network,
    draw_pairs,
    embed,
    steady_states,
)
from ptrag_sc.datasets._simulated_truth import expected_effects, truth

CONTROL = "non-targeting"
CONTROL_SHARE = 0.125  # of the cells
CHUNK = 2**21  # values drawn at once, which bounds the dense memory and never changes the result


class _Cells(NamedTuple):
    """One entry per cell (n,)."""

    perturbation: np.ndarray  # row of the response
    cell_type: np.ndarray
    batch: np.ndarray  # within the cell type
    state: np.ndarray
    strength: np.ndarray  # of the response
    library: np.ndarray  # expected total count
    ended: np.ndarray  # 0 for a cell at the start, 1 at the end


def simulated(
    *,
    n_cells: int = 10_000,
    n_genes: int = 500,
    n_perturbations: int = 100,
    n_cell_types: int = 3,
    n_combinations: int = 0,
    differentiating: bool = False,
    drift: float = 1.0,
    seed: int = 0,
) -> AnnData:
    r"""Simulate a Perturb-seq screen whose truth is known.

    Genes act through modules. A perturbed gene is a member of two modules. In any cell type exactly one of them is
    active, for most genes not the same one in all cell types. A perturbation removes the share :math:`h_{pm}` of the
    function of its modules and of a stress module that all perturbations share; the loss spreads over a small linear
    network of modules to its steady state (as in modular response analysis, Kholodenko et al. 2002). With
    :math:`D_t` the diagonal 0/1 matrix of the modules active in cell type :math:`t` and inputs :math:`b_t`,

    .. math::

        x_{tc} = (I - D_t A)^{-1} D_t (b_t - r_c h_p), \qquad
        \eta_c = m + \beta_{tb} + s_c v + L x_{tc} + r_c d_p, \qquad
        y_c \sim \mathrm{NB}(\ell_c\, \mathrm{softmax}(\eta_c), \theta)

    for cell :math:`c` of batch :math:`b`: gene means :math:`m`, batch shifts :math:`\beta`, a cell state :math:`s_c`
    (standard normal), loadings :math:`L` (genes x modules), a response strength :math:`r_c` (uniform, mean 1; 0 in
    controls), direct effects :math:`d_p` (knock-down of the gene itself and a few private targets), log-normal
    library size :math:`\ell_c`, dispersion :math:`\theta`. A combination removes
    :math:`h_{AB} = 1 - (1 - h_A)(1 - h_B)` of each module (independence in the sense of Bliss 1939, which buffers if
    both hit the same module) and also hits a module that no single perturbation reaches; direct effects add up.

    A row of the gene embedding is the unit sum of the directions of both modules and, with more weight, of a family
    that has nothing to do with the response. So the nearest neighbours of a perturbation by cosine are its family and
    the members of both its modules, and 15 to 25 % of the nearest 32 are relevant, because they act through the same
    active module. The truth does not depend on ``n_cells``.

    Parameters
    ----------
    n_cells
        Number of cells, one in eight of them control. The others are spread evenly over all (perturbation, cell type)
        pairs and the three batches of each cell type; there must be at least three per pair.
    n_genes
        Number of measured genes, 20 or more.
    n_perturbations
        Number of single perturbations, 4 or more (20 or more for the share of relevant neighbours given above). The
        perturbed genes are measured ones, unless there are more perturbations than ``n_genes``.
    n_cell_types
        Number of cell types, 1 to 8.
    n_combinations
        Number of pairs of the single perturbations that are perturbed together.
    differentiating
        Whether cells differentiate. Then ``obs["time"]`` is ``start`` for every other control cell, and ``end`` for the
        others and for all perturbed cells. What is added to :math:`\eta_c` at the end is :math:`(1 + s_c / 2)\, f_t`
        with a direction :math:`f_t` of the cell type (about 40 % of the genes), so that no two cells move alike. The
        truth of effects is that at the end.
    drift
        Size of :math:`f_t`, 0 or more, used where cells differentiate; 1 moves cells about as far as a perturbation.
    seed
        Seed, 0 or more. The same arguments give the same bits.

    Returns
    -------
    AnnData
        ``X`` is log1p of counts normalised to 10,000 per cell, ``layers["counts"]`` are the counts (both CSR float32);
        ``obs`` has ``perturbation`` (control: ``non-targeting``; combinations: sorted genes joined by ``+``),
        ``cell_type`` and ``batch``. ``uns["gene_embedding"]`` holds ``genes`` (n,), ``vectors`` (n, 128) and
        ``source`` for the single perturbations. ``uns["truth"]`` holds

        - ``conditions``: DataFrame(perturbation, cell_type), the rows of the next two;
        - ``effects``: (conditions, genes) float32, the expected shift of ``X`` against the control, mean over batches;
        - ``drift``, if cells differentiate: (cell types, genes) float32, the expected shift of control cells from start
          to end;
        - ``interaction``: the same shape; effect of A+B - effect of A - effect of B, 0 for single perturbations;
        - ``relevant``: DataFrame(perturbation, cell_type, candidate), the other perturbations that share a module
          active in the cell type (stress and two-hit modules aside);
        - ``perturbation_module``: DataFrame(perturbation, module), membership;
        - ``active``: (cell types, modules) bool; ``regulation``: A, (modules, modules); ``loadings``: L, (genes,
          modules); ``genes``, ``cell_types``, ``modules``: the names along these axes.

    Raises
    ------
    TypeError
        If an argument is no whole number.
    ValueError
        If the sizes cannot make a screen, for instance fewer than three cells for a pair, or ``drift`` is negative.

    Examples
    --------
    >>> from ptrag_sc.datasets import simulated
    >>> adata = simulated(n_cells=600, n_genes=60, n_perturbations=20, n_cell_types=2)
    >>> adata.shape, sorted(adata.obs["cell_type"].unique())
    ((600, 60), ['type_0', 'type_1'])

    Which neighbours matter depends on the cell type:

    >>> relevant = adata.uns["truth"]["relevant"]
    >>> query = relevant[relevant["perturbation"] == relevant["perturbation"].iloc[0]]
    >>> first, second = (set(query["candidate"][query["cell_type"] == t]) for t in ("type_0", "type_1"))
    >>> first == second
    False
    """
    _check(
        n_genes=n_genes,
        n_perturbations=n_perturbations,
        n_cell_types=n_cell_types,
        n_combinations=n_combinations,
        n_cells=n_cells,
        seed=seed,
    )
    if not 0 <= drift < np.inf:
        remedy = "Pass a size of 0 or more."
        raise ValueError(unusable("Argument drift", "datasets.simulated", f"is {drift}", remedy))
    # One stream for each part, so that the truth does not depend on n_cells, nor that of singles on n_combinations.
    rngs = np.random.default_rng(seed).spawn(7)
    name_rng, network_rng, embedding_rng, pair_rng, screen_rng, cell_rng, drift_rng = rngs
    names = np.array([f"GENE{i:04d}" for i in range(max(n_genes, n_perturbations))])
    genes = names[:n_genes]
    targets = np.sort(name_rng.permutation(len(names))[:n_perturbations])  # (P,) positions of the perturbed genes
    network = draw_network(n_genes, targets, n_cell_types, network_rng)
    pairs = draw_pairs(n_combinations, n_perturbations, pair_rng)
    screen = steady_states(network, pairs, screen_rng)
    if differentiating:
        screen = screen._replace(drift=drift * draw_drift(n_cell_types, n_genes, drift_rng))
    combinations = ["+".join(sorted(names[targets[pair]])) for pair in pairs]
    perturbations = np.array([*names[targets], *combinations])
    cell_types = np.array([f"type_{t}" for t in range(n_cell_types)])
    cells = _cells(n_cells, n_genes, len(perturbations), n_cell_types, cell_rng)
    counts = _counts(screen, cells, cell_rng)

    x = log_normalised(counts, counts.sum(axis=1).A1)
    adata = AnnData(x, _obs(cells, perturbations, cell_types), pd.DataFrame(index=genes))
    if differentiating:
        adata.obs["time"] = pd.Categorical(np.array(["start", "end"])[cells.ended])
    adata.layers["counts"] = counts
    # The truth comes from the network alone, without the noise of the cells drawn above.
    vectors = embed(network.members, embedding_rng)
    adata.uns[EMBEDDING_KEY] = {"genes": names[targets], "vectors": vectors, "source": "simulated"}
    effects, moved = expected_effects(screen)
    adata.uns["truth"] = truth(network, effects, pairs, perturbations, cell_types) | {"genes": genes}
    if differentiating:
        adata.uns["truth"]["drift"] = moved.astype(np.float32)
    return adata


def _check(**sizes: int) -> None:
    """Refuse arguments that cannot make a screen."""
    for name, value in sizes.items():
        # True is an int to Python.
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            problem = f"is {value!r}, which is no whole number"
            raise TypeError(unusable(f"Argument {name}", "datasets.simulated", problem, f"Pass {name} as an int."))
    n = sizes["n_perturbations"]
    n_conditions = (n + sizes["n_combinations"]) * sizes["n_cell_types"]
    # One cell per condition and batch beside the controls; one more, because their number is rounded.
    fewest = int(np.ceil((N_BATCHES * n_conditions + 1) / (1 - CONTROL_SHARE)))
    most = {"n_cell_types": 8, "n_combinations": n * (n - 1) // 2}
    least = {"n_genes": 20, "n_perturbations": 4, "n_cell_types": 1, "n_combinations": 0, "n_cells": fewest, "seed": 0}
    for name, low in least.items():
        high = most.get(name, np.inf)
        if not low <= sizes[name] <= high:
            problem = f"is {sizes[name]}"
            if name == "n_cells":
                problem += f" for {n_conditions} conditions"
            remedy = f"Pass {name} of at least {low}"
            if name in most:
                remedy += f" and at most {high}"
            raise ValueError(unusable(f"Argument {name}", "datasets.simulated", problem, f"{remedy}."))


def _cells(n_cells: int, n_genes: int, n_perturbations: int, n_cell_types: int, rng: np.random.Generator) -> _Cells:
    """Deal conditions and batches in turn, then shuffle."""
    n_control = round(CONTROL_SHARE * n_cells)
    # Cell i of its kind has condition i modulo their number; the turn (how often all had one) decides the batch.
    turn, condition = np.divmod(np.arange(n_cells - n_control), n_perturbations * n_cell_types)
    control_turn, control_type = np.divmod(np.arange(n_control), n_cell_types)
    order = rng.permutation(n_cells)
    # The draws below keep their order, because it decides the bits.
    return _Cells(
        perturbation=np.append(condition // n_cell_types, np.full(n_control, n_perturbations))[order],
        cell_type=np.append(condition % n_cell_types, control_type)[order],
        batch=(np.append(turn + condition, control_turn) % N_BATCHES)[order],
        state=rng.standard_normal(n_cells),
        strength=rng.uniform(*RESPONSE, n_cells),
        library=COUNTS_PER_GENE * n_genes * np.exp(rng.normal(0, LIBRARY_SD, n_cells)),
        # Per cell type, half of the control cells of each batch.
        ended=np.append(np.ones(len(turn), int), control_turn // N_BATCHES % 2)[order],
    )


def _counts(screen: Screen, cells: _Cells, rng: np.random.Generator) -> csr_matrix:
    """Draw counts (n, G) in blocks of rows."""
    # Two streams, each read row after row, give the same counts for any block size.
    gamma, poisson = rng.spawn(2)
    n_rows = max(1, CHUNK // len(screen.state))
    blocks = []
    for start in range(0, len(cells.library), n_rows):
        c = _Cells(*(column[start : start + n_rows] for column in cells))
        # (n_rows, G), changed in place: log expression, then expected counts, then Poisson rates.
        rate = screen.baseline[c.cell_type, c.batch] + c.state[:, None] * screen.state
        if screen.drift.any():
            rate += ((1 + DRIFT_BY_STATE * c.state) * c.ended)[:, None] * screen.drift[c.cell_type]
        rate += c.strength[:, None] * screen.response[c.cell_type, c.perturbation]
        np.exp(rate, out=rate)
        rate *= (c.library / rate.sum(axis=1))[:, None]
        rate *= gamma.standard_gamma(DISPERSION, size=rate.shape) / DISPERSION  # Poisson of gamma: negative binomial
        blocks.append(csr_matrix(poisson.poisson(rate).astype(np.float32)))
    return vstack(blocks, format="csr")


def _obs(cells: _Cells, perturbations: np.ndarray, cell_types: np.ndarray) -> pd.DataFrame:
    # With the cell type in its name no batch is shared between cell types.
    batches = np.array([[f"{t}_batch_{b}" for b in range(N_BATCHES)] for t in cell_types])  # (T, N_BATCHES)
    return pd.DataFrame(
        {
            "perturbation": pd.Categorical(np.append(perturbations, CONTROL)[cells.perturbation]),
            "cell_type": pd.Categorical(cell_types[cells.cell_type]),
            "batch": pd.Categorical(batches[cells.cell_type, cells.batch]),
        },
        index=[f"cell_{i:07d}" for i in range(len(cells.batch))],
    )
