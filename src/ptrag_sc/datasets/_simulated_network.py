"""Which modules does a simulated screen have, and how far does a hit spread through them?"""

from typing import NamedTuple

import numpy as np

N_BATCHES = 3  # per cell type

# Blocks of perturbations are sized so that this share of so many nearest perturbations is relevant.
N_CANDIDATES = 32
RELEVANT_SHARE = 0.2

# Modules by number: one that all perturbations hit, one that only combinations hit, and the first of the others.
STRESS = 0
TWO_HIT = 1
FIRST = 2

# Share of the genes that a module moves, and the standard deviation of its loadings.
TARGETS = 0.15
LOADING = 1.0
SHARED_TARGETS = 0.25  # the same for the stress and the two-hit module
SHARED_LOADING = 0.6

# Share of a module's function that a perturbation removes, uniform.
STRENGTH = (0.4, 1.0)
STRESS_STRENGTH = (0.3, 0.7)

# What one perturbation does without any module: to its own gene's log expression, and to a few private targets.
KNOCK_DOWN = -1.6
PRIVATE_TARGETS = 0.03
PRIVATE_LOADING = 0.5

# Standard deviations of log expression over genes.
MEAN_SD = 1.5
CELL_TYPE_SD = 0.4
BATCH_SD = 0.15
STATE_SD = 0.2

# A differentiation of size 1: share of the genes it moves in all cell types, share that it moves in one of them.
DRIFT_TARGETS = 0.3
DRIFT_LOADING = 0.6
DRIFT_TYPE_TARGETS = 0.15
DRIFT_BY_STATE = 0.5  # how much further a cell moves per unit of cell state

RESPONSE = (0.3, 1.7)  # how strongly a cell responds, uniform
COUNTS_PER_GENE = 2.0  # median library size over the number of genes
LIBRARY_SD = 0.35  # standard deviation of the log library size
DISPERSION = 4.0  # variance of a count = mean + mean^2 / DISPERSION

# The embedding: its width, the cosine of two genes of one module or one family, and the genes of a family.
N_DIMENSIONS = 128
MODULE_COSINE = 0.27
FAMILY_COSINE = 0.4
FAMILY_SIZE = 10


class Network(NamedTuple):
    """Which modules there are and what moves them (P single perturbations, M modules, T cell types, G genes)."""

    members: np.ndarray  # (P, M) bool
    active: np.ndarray  # (T, M) bool
    regulation: np.ndarray  # (M, M); the row's module is regulated
    loadings: np.ndarray  # (G, M)
    hits: np.ndarray  # (P, M) share of the module's function that the perturbation removes
    direct: np.ndarray  # (P, G) change of log expression that no module carries


class Screen(NamedTuple):
    """Log expression, up to a constant; P counts singles and combinations, and row P of the response is the control."""

    baseline: np.ndarray  # (T, B, G)
    state: np.ndarray  # (G,) change per unit of cell state
    response: np.ndarray  # (T, P + 1, G) change in a cell that responds with strength 1
    drift: np.ndarray  # (T, G) change from start to end in a cell of state 0; 0 where cells do not differentiate


def _modules(n_perturbations: int, n_cell_types: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw members (P, M) and activity (T, M).

    Perturbations come in blocks, a block has as many left as right modules, and a perturbation is a member of one of
    each. In every cell type either the left or the right modules of a block are active.
    """
    size = 1 + RELEVANT_SHARE * min(N_CANDIDATES, n_perturbations - 1)  # members of a module, on average
    n_blocks = max(1, round(n_perturbations / (3 * size)))
    width = max(2, round(n_perturbations / n_blocks / size))  # left modules of a block, and right ones
    # A block is a square of places: the column decides the left module, the row the right one.
    place, block = np.divmod(rng.permutation(n_perturbations), n_blocks)  # (P,) each
    left = FIRST + 2 * width * block + place % width
    right = FIRST + 2 * width * block + width + place // width % width
    members = np.zeros((n_perturbations, FIRST + 2 * width * n_blocks), bool)
    members[np.arange(n_perturbations), left] = True
    members[np.arange(n_perturbations), right] = True
    # Bit t of a block's code: the left modules are active in cell type t. A code below 2^(T-1) has neither all bits
    # set nor all clear, and no two such codes complement each other, so the blocks differ.
    codes = np.ones(1, int)
    if n_cell_types > 1:
        codes = rng.permutation(np.arange(1, 2 ** (n_cell_types - 1)))
    on = codes[np.arange(n_blocks) % len(codes), None] >> np.arange(n_cell_types) & 1 > 0  # (blocks, T)
    on[3::4] = True  # every fourth block does the same in all cell types
    active = np.ones((n_cell_types, members.shape[1]), bool)  # the two shared modules are active everywhere
    active[:, FIRST:] = np.repeat(np.stack([on, ~on], axis=1).reshape(-1, n_cell_types), width, axis=0).T
    return members, active


def draw_network(n_genes: int, targets: np.ndarray, n_cell_types: int, rng: np.random.Generator) -> Network:
    """Draw modules, their network, and what the perturbations (genes at ``targets`` (P,)) do to them."""
    members, active = _modules(len(targets), n_cell_types, rng)
    n, n_modules = members.shape
    regulation = np.zeros((n_modules, n_modules))
    for row in range(FIRST, n_modules):
        # Each module has two regulators, itself not among them.
        regulators = rng.choice(np.setdiff1d(np.arange(FIRST, n_modules), row), 2, replace=False)
        regulation[row, regulators] = rng.standard_normal(2)
    regulation /= 2 * np.linalg.norm(regulation, 2)  # with a spectral norm of 1/2 every steady state exists
    loadings = _sparse_normal((n_genes, n_modules), TARGETS, LOADING, rng)
    # The shared modules move more genes, but each of them less.
    loadings[:, :FIRST] = _sparse_normal((n_genes, FIRST), SHARED_TARGETS, SHARED_LOADING, rng)
    # A perturbation removes the same share of both its modules.
    hits = members * rng.uniform(*STRENGTH, (n, 1))
    hits[:, STRESS] = rng.uniform(*STRESS_STRENGTH, n)
    direct = _sparse_normal((n, n_genes), PRIVATE_TARGETS, PRIVATE_LOADING, rng)
    measured = np.flatnonzero(targets < n_genes)
    direct[measured, targets[measured]] = KNOCK_DOWN
    # A gene's own modules move it too: members are expressed where their module is active.
    member, module = np.nonzero(members[measured])
    loadings[targets[measured[member]], module] = LOADING
    return Network(members, active, regulation, loadings, hits, direct)


def _sparse_normal(shape: tuple[int, int], share: float, sd: float, rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(shape) < share, rng.normal(0, sd, shape), 0)


def embed(members: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw unit rows (P, D), sums of the directions of the modules, of a random family and of the gene itself."""
    n, n_modules = members.shape
    family = rng.permutation(n) % max(2, round(n / FAMILY_SIZE))  # (P,)
    modules = _unit(rng.standard_normal((n_modules, N_DIMENSIONS)))
    families = _unit(rng.standard_normal((family.max() + 1, N_DIMENSIONS)))
    own = _unit(rng.standard_normal((n, N_DIMENSIONS)))
    # Random directions are nearly orthogonal, so squared weights are the cosines that shared directions give.
    weights = np.sqrt([MODULE_COSINE, FAMILY_COSINE, 1 - 2 * MODULE_COSINE - FAMILY_COSINE])
    vectors = weights[0] * (members @ modules) + weights[1] * families[family] + weights[2] * own
    return _unit(vectors).astype(np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def draw_pairs(n_combinations: int, n_perturbations: int, rng: np.random.Generator) -> np.ndarray:
    """Draw distinct pairs (n_combinations, 2) of single perturbations."""
    pairs = np.stack(np.triu_indices(n_perturbations, 1), axis=1)
    return pairs[np.sort(rng.choice(len(pairs), n_combinations, replace=False))]


def steady_states(network: Network, pairs: np.ndarray, rng: np.random.Generator) -> Screen:
    """Return the steady states of all conditions, spread over the genes."""
    n_genes, n_modules = network.loadings.shape
    first = network.hits[pairs[:, 0]]  # (pairs, M)
    second = network.hits[pairs[:, 1]]  # (pairs, M)
    joint = 1 - (1 - first) * (1 - second)
    joint[:, TWO_HIT] = first[:, FIRST:].max(axis=1) * second[:, FIRST:].max(axis=1)
    # Rows of singles, of combinations, and one of zeros for the control.
    hits = np.concatenate([network.hits, joint, np.zeros((1, n_modules))])
    direct = np.concatenate([network.direct, network.direct[pairs].sum(axis=1), np.zeros((1, n_genes))])
    active = network.active[:, :, None]  # (T, M, 1)
    inverse = np.linalg.inv(np.eye(n_modules) - active * network.regulation)  # (T, M, M)
    spread = network.loadings @ inverse * network.active[:, None]  # (T, G, M): L (I - D A)^-1 D
    response = direct - hits @ spread.transpose(0, 2, 1)  # (T, P + 1, G)
    input_sd = CELL_TYPE_SD / np.sqrt(TARGETS * n_modules) / LOADING  # so that L x has the standard deviation wanted
    inputs = rng.normal(0, input_sd, (len(active), n_modules, 1))
    mean = rng.normal(0, MEAN_SD, n_genes)
    batch = rng.normal(0, BATCH_SD, (len(active), N_BATCHES, n_genes))
    baseline = mean + (spread @ inputs).transpose(0, 2, 1) + batch  # (T, N_BATCHES, G)
    return Screen(baseline, rng.normal(0, STATE_SD, (n_genes,)), response, np.zeros((len(active), n_genes)))


def draw_drift(n_cell_types: int, n_genes: int, rng: np.random.Generator) -> np.ndarray:
    """Draw what a differentiation of size 1 does to each cell type (T, G): a shared part, and one of its own."""
    shared = _sparse_normal((1, n_genes), DRIFT_TARGETS, DRIFT_LOADING, rng)
    return shared + _sparse_normal((n_cell_types, n_genes), DRIFT_TYPE_TARGETS, DRIFT_LOADING, rng)
