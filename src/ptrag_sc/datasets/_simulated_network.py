"""Which modules does a simulated screen have, and how far does a hit spread through them?"""

from typing import NamedTuple

import numpy as np

N_BATCHES = 3  # per cell type
N_CANDIDATES, RELEVANT_SHARE = 32, 0.2  # share of relevant ones aimed at among so many nearest perturbations
STRESS, TWO_HIT, FIRST = 0, 1, 2  # modules: one that all perturbations hit, one for combinations, the first other one
TARGETS, LOADING = 0.15, 1.0  # share of the genes that a module moves, standard deviation of its loadings
SHARED_TARGETS, SHARED_LOADING = 0.25, 0.6  # the same for the stress and the two-hit module
STRENGTH, STRESS_STRENGTH = (0.4, 1.0), (0.3, 0.7)  # share of a module's function that a perturbation takes
KNOCK_DOWN = -1.6  # of the perturbed gene's own log expression
PRIVATE_TARGETS, PRIVATE_LOADING = 0.03, 0.5  # genes that one perturbation moves without any module
MEAN_SD, CELL_TYPE_SD, BATCH_SD, STATE_SD = 1.5, 0.4, 0.15, 0.2  # of log expression, over genes
RESPONSE = (0.3, 1.7)  # how strongly a cell responds, uniform
COUNTS_PER_GENE, LIBRARY_SD = 2.0, 0.35  # median library size over the number of genes, sd of its log
DISPERSION = 4.0  # variance of a count = mean + mean^2 / DISPERSION
TARGET_SUM = 1e4  # counts of a cell after normalisation
N_DIMENSIONS, MODULE_COSINE, FAMILY_COSINE, FAMILY_SIZE = 128, 0.27, 0.4, 10


class Network(NamedTuple):
    """Which modules there are and what moves them (P single perturbations, M modules, T cell types, G genes)."""

    members: np.ndarray  # (P, M) bool
    active: np.ndarray  # (T, M) bool
    regulation: np.ndarray  # (M, M); the row's module is regulated
    loadings: np.ndarray  # (G, M)
    hits: np.ndarray  # (P, M) share of the module's function that the perturbation takes
    direct: np.ndarray  # (P, G) change of log expression that no module carries


class Screen(NamedTuple):
    """Log expression, up to a constant; P counts singles and combinations, and row P of the response is the control."""

    baseline: np.ndarray  # (T, B, G)
    state: np.ndarray  # (G,) change per unit of cell state
    response: np.ndarray  # (T, P + 1, G) change in a cell that responds with strength 1


def _modules(n_perturbations: int, n_cell_types: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw members (P, M) and activity (T, M).

    Perturbations come in blocks, a block has as many left as right modules, and a perturbation sits in one of each;
    the left ones are active where the right ones are not.
    """
    size = 1 + RELEVANT_SHARE * min(N_CANDIDATES, n_perturbations - 1)
    n_blocks = max(1, round(n_perturbations / (3 * size)))
    width = max(2, round(n_perturbations / n_blocks / size))
    place, block = np.divmod(rng.permutation(n_perturbations), n_blocks)
    left = FIRST + 2 * width * block + place % width
    right = FIRST + 2 * width * block + width + place // width % width
    members = np.zeros((n_perturbations, FIRST + 2 * width * n_blocks), bool)
    members[np.arange(n_perturbations), left] = members[np.arange(n_perturbations), right] = True
    # the bits of a code below 2^(T-1) are neither all set nor all clear, and no two codes complement each other
    codes = rng.permutation(np.arange(1, 2 ** (n_cell_types - 1))) if n_cell_types > 1 else np.ones(1, int)
    on = codes[np.arange(n_blocks) % len(codes), None] >> np.arange(n_cell_types) & 1 > 0
    on[3::4] = True  # every fourth block does the same in all cell types
    active = np.ones((n_cell_types, members.shape[1]), bool)
    active[:, FIRST:] = np.repeat(np.stack([on, ~on], axis=1).reshape(-1, n_cell_types), width, axis=0).T
    return members, active


def draw_network(n_genes: int, targets: np.ndarray, n_cell_types: int, rng: np.random.Generator) -> Network:
    members, active = _modules(len(targets), n_cell_types, rng)
    n, n_modules = members.shape
    regulation = np.zeros((n_modules, n_modules))
    for row in range(FIRST, n_modules):
        regulators = rng.choice(np.setdiff1d(np.arange(FIRST, n_modules), row), 2, replace=False)
        regulation[row, regulators] = rng.standard_normal(2)
    regulation /= 2 * np.linalg.norm(regulation, 2)  # spectral norm 1/2: every steady state exists
    loadings = _sparse_normal((n_genes, n_modules), TARGETS, LOADING, rng)
    loadings[:, :FIRST] = _sparse_normal((n_genes, FIRST), SHARED_TARGETS, SHARED_LOADING, rng)
    hits = members * rng.uniform(*STRENGTH, (n, 1))
    hits[:, STRESS] = rng.uniform(*STRESS_STRENGTH, n)
    direct = _sparse_normal((n, n_genes), PRIVATE_TARGETS, PRIVATE_LOADING, rng)
    measured = np.flatnonzero(targets < n_genes)
    direct[measured, targets[measured]] = KNOCK_DOWN
    member, module = np.nonzero(members[measured])
    loadings[targets[measured[member]], module] = LOADING
    return Network(members, active, regulation, loadings, hits, direct)


def _sparse_normal(shape: tuple[int, int], share: float, sd: float, rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(shape) < share, rng.normal(0, sd, shape), 0)


def embed(members: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Unit rows (P, D): the directions of the modules, of a random family and of the gene itself."""
    n, n_modules = members.shape
    family = rng.permutation(n) % max(2, round(n / FAMILY_SIZE))
    modules, families, own = (_unit(rng.standard_normal((k, N_DIMENSIONS))) for k in (n_modules, family.max() + 1, n))
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
    """Steady states of all conditions, spread over the genes."""
    n_genes, n_modules = network.loadings.shape
    first, second = network.hits[pairs[:, 0]], network.hits[pairs[:, 1]]
    joint = 1 - (1 - first) * (1 - second)
    joint[:, TWO_HIT] = first[:, FIRST:].max(axis=1) * second[:, FIRST:].max(axis=1)
    hits = np.concatenate([network.hits, joint, np.zeros((1, n_modules))])
    direct = np.concatenate([network.direct, network.direct[pairs].sum(axis=1), np.zeros((1, n_genes))])
    active = network.active[:, :, None]
    spread = network.loadings @ np.linalg.inv(np.eye(n_modules) - active * network.regulation) * network.active[:, None]
    response = direct - hits @ spread.transpose(0, 2, 1)
    input_sd = CELL_TYPE_SD / np.sqrt(TARGETS * n_modules) / LOADING  # so that L x has the standard deviation wanted
    inputs = rng.normal(0, input_sd, (len(active), n_modules, 1))
    mean = rng.normal(0, MEAN_SD, n_genes)
    batch = rng.normal(0, BATCH_SD, (len(active), N_BATCHES, n_genes))
    baseline = mean + (spread @ inputs).transpose(0, 2, 1) + batch
    return Screen(baseline, rng.normal(0, STATE_SD, n_genes), response)
