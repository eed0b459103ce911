"""What does a Perturb-seq screen look like whose every effect, module and relevant neighbour is known?"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix, vstack

from .._constants import EMBEDDING_KEY
from .._validation import unusable

CONTROL = "non-targeting"
N_CANDIDATES, RELEVANT_SHARE = 32, 0.2  # aimed-at share of relevant ones among so many nearest perturbations
N_BATCHES = 3  # per cell type
CONTROL_SHARE = 0.125
TARGET_SUM = 1e4
CHUNK = 4096  # cells drawn at once: bounds the dense memory, never changes the result

STRESS, TWO_HIT, FIRST = 0, 1, 2  # columns: the module that all hit, the one that combinations hit, the first other
TARGETS, LOADING = 0.15, 0.9  # share of the genes that a module moves, standard deviation of the loadings
SHARED_TARGETS, SHARED_LOADING = 0.25, 0.7  # the same for the stress and the two-hit module
STRENGTH, STRESS_STRENGTH = (0.4, 1.0), (0.3, 0.7)  # share of a module's function that a knock-down takes
KNOCK_DOWN = -1.6  # change of the perturbed gene's own log expression
PRIVATE_TARGETS, PRIVATE_LOADING = 0.03, 0.5  # genes that answer to one perturbation only
MEAN_SD, CELL_TYPE_SD, BATCH_SD, STATE_SD = 1.0, 0.4, 0.15, 0.2  # of log expression, over genes
RESPONSE = (0.3, 1.7)  # uniform range of the strength with which one cell responds
COUNTS_PER_GENE, LIBRARY_SD = 3.0, 0.35  # median library size per gene, standard deviation of its log
DISPERSION = 4.0  # negative binomial: variance = mean + mean^2 / DISPERSION
N_DIMENSIONS, MODULE_COSINE, FAMILY_COSINE, FAMILY_SIZE = 128, 0.25, 0.35, 10


class _Network(NamedTuple):
    """Modules and what moves them. P: single perturbations; M: modules; T: cell types; G: measured genes."""

    members: np.ndarray  # (P, M) bool
    active: np.ndarray  # (T, M) bool
    regulation: np.ndarray  # (M, M), the row is regulated
    loadings: np.ndarray  # (G, M)
    hits: np.ndarray  # (P, M) share of each module's function that is lost
    direct: np.ndarray  # (P, G) change of log expression that no module carries


class _Screen(NamedTuple):
    """Log expression before counts. Row P of ``response`` is the control, combinations stand among the P."""

    baseline: np.ndarray  # (T, B, G)
    state: np.ndarray  # (G,) per unit of cell state
    response: np.ndarray  # (T, P + 1, G)


class _Cells(NamedTuple):
    """One row per cell."""

    perturbation: np.ndarray  # row of the response
    cell_type: np.ndarray
    batch: np.ndarray
    state: np.ndarray
    response: np.ndarray  # strength
    library: np.ndarray


def simulated(
    *, n_cells=10_000, n_genes=500, n_perturbations=100, n_cell_types=3, n_combinations=0, seed=0
) -> AnnData:
    """x"""
    _check(n_cells, n_genes, n_perturbations, n_cell_types, n_combinations, seed)
    rngs = np.random.default_rng(seed).spawn(6)
    names, targets = _names(n_genes, n_perturbations, rngs[0])
    network = _network(n_genes, targets, n_cell_types, rngs[1])
    vectors = _embedding(network.members, rngs[2])
    pairs = _pairs(n_combinations, n_perturbations, rngs[3])
    screen = _screen(network, pairs, rngs[4])
    singles = names[targets]
    perturbations = np.concatenate([singles, ["+".join(sorted(singles[pair])) for pair in pairs]]).astype(str)
    cells = _cells(n_cells, n_genes, len(perturbations), n_cell_types, rngs[5])
    counts = _counts(screen, cells, rngs[5], chunk=CHUNK)

    labels = np.append(perturbations, CONTROL)
    cell_types = np.array([f"type_{t}" for t in range(n_cell_types)])
    batches = np.array([[f"{t}_batch_{b}" for b in range(N_BATCHES)] for t in cell_types])
    obs = pd.DataFrame(
        {
            "perturbation": pd.Categorical(labels[cells.perturbation]),
            "cell_type": pd.Categorical(cell_types[cells.cell_type]),
            "batch": pd.Categorical(batches[cells.cell_type, cells.batch]),
        },
        index=[f"cell_{i:07d}" for i in range(n_cells)],
    )
    adata = AnnData(_log_normalised(counts), obs=obs, var=pd.DataFrame(index=names[:n_genes]))
    adata.layers["counts"] = counts
    adata.uns[EMBEDDING_KEY] = {"genes": singles, "vectors": vectors.astype(np.float32), "source": "simulated"}
    adata.uns["truth"] = _truth(network, screen, pairs, perturbations, cell_types, names[:n_genes])
    return adata


def _check(n_cells, n_genes, n_perturbations, n_cell_types, n_combinations, seed):
    """Refuse sizes that cannot make a screen."""
    n_pairs = n_perturbations * (n_perturbations - 1) // 2
    n_conditions = (n_perturbations + n_combinations) * n_cell_types
    fewest = int(np.ceil((N_BATCHES * n_conditions + 1) / (1 - CONTROL_SHARE)))
    for name, value, low, high in [
        ("n_genes", n_genes, 20, np.inf),
        ("n_perturbations", n_perturbations, 4, np.inf),
        ("n_cell_types", n_cell_types, 1, 8),
        ("n_combinations", n_combinations, 0, n_pairs),
        ("n_cells", n_cells, fewest, np.inf),
        ("seed", seed, 0, np.inf),
    ]:
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
            raise ValueError(f"{name} {value}")


def _names(n_genes, n_perturbations, rng):
    """Gene names, the measured ones first, and the perturbed genes' places, measured ones as long as there are any."""
    n = max(n_genes, n_perturbations)
    names = np.array([f"GENE{i:04d}" for i in range(n)])
    return names, np.sort(rng.permutation(n)[:n_perturbations])


def _modules(n_perturbations, n_cell_types, rng):
    """Members (P, M) and activity (T, M): every gene sits in two modules of which one is active in any cell type."""
    size = 1 + RELEVANT_SHARE * min(N_CANDIDATES, n_perturbations - 1)
    n_blocks = max(1, round(n_perturbations / (3 * size)))
    width = max(2, round(n_perturbations / n_blocks / size))  # modules on either side of a block
    place, block = np.divmod(rng.permutation(n_perturbations), n_blocks)
    left = FIRST + 2 * width * block + place % width
    right = FIRST + 2 * width * block + width + place // width % width
    members = np.zeros((n_perturbations, FIRST + 2 * width * n_blocks), bool)
    members[np.arange(n_perturbations), left] = members[np.arange(n_perturbations), right] = True
    # codes below 2^(T-1): on in one cell type at least, off in one at least, and no code another's complement
    codes = rng.permutation(np.arange(1, 2 ** (n_cell_types - 1))) if n_cell_types > 1 else np.ones(1, int)
    on = (codes[np.arange(n_blocks) % len(codes), None] >> np.arange(n_cell_types)) & 1 > 0
    on[3::4] = True
    active = np.ones((n_cell_types, members.shape[1]), bool)
    active[:, FIRST:] = np.repeat(np.stack([on, ~on], 1).reshape(-1, n_cell_types), width, axis=0).T
    return members, active


def _sparse_normal(shape, share, sd, rng):
    return np.where(rng.random(shape) < share, rng.normal(0, sd, shape), 0)


def _network(n_genes, targets, n_cell_types, rng):
    members, active = _modules(len(targets), n_cell_types, rng)
    n, n_modules = members.shape
    regulation = np.zeros((n_modules, n_modules))
    for row in range(FIRST, n_modules):
        others = np.setdiff1d(np.arange(FIRST, n_modules), row)
        regulation[row, rng.choice(others, 2, replace=False)] = rng.normal(size=2)
    regulation /= 2 * np.linalg.norm(regulation, 2)  # spectral norm 1/2: the steady state exists
    loadings = _sparse_normal((n_genes, n_modules), TARGETS, LOADING, rng)
    loadings[:, :FIRST] = _sparse_normal((n_genes, FIRST), SHARED_TARGETS, SHARED_LOADING, rng)
    hits = members * rng.uniform(*STRENGTH, (n, 1))
    hits[:, STRESS] = rng.uniform(*STRESS_STRENGTH, n)
    direct = _sparse_normal((n, n_genes), PRIVATE_TARGETS, PRIVATE_LOADING, rng)
    measured = np.flatnonzero(targets < n_genes)
    direct[measured, targets[measured]] = KNOCK_DOWN
    rows, columns = np.nonzero(members[measured])
    loadings[targets[measured[rows]], columns] = LOADING
    return _Network(members, active, regulation, loadings, hits, direct)


def _unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _embedding(members, rng):
    """Unit rows (P, D): module directions, plus a family direction that says nothing about the response."""
    n, n_modules = members.shape
    modules = _unit(rng.standard_normal((n_modules, N_DIMENSIONS)))
    families = _unit(rng.standard_normal((max(2, round(n / FAMILY_SIZE)), N_DIMENSIONS)))
    family = rng.permutation(n) % len(families)
    own = _unit(rng.standard_normal((n, N_DIMENSIONS)))
    weights = np.sqrt([MODULE_COSINE, FAMILY_COSINE, 1 - 2 * MODULE_COSINE - FAMILY_COSINE])
    return _unit(weights[0] * (members @ modules) + weights[1] * families[family] + weights[2] * own)


def _pairs(n_combinations, n_perturbations, rng):
    first, second = np.triu_indices(n_perturbations, 1)
    chosen = np.sort(rng.choice(len(first), n_combinations, replace=False))
    return np.stack([first[chosen], second[chosen]], axis=1)


def _screen(network, pairs, rng):
    """Steady states: x = (I - A_t)^-1 (b_t - h), log expression = m + L x + direct."""
    n_genes, n_modules = network.loadings.shape
    n_cell_types = len(network.active)
    a, b = network.hits[pairs[:, 0]], network.hits[pairs[:, 1]]
    joint = 1 - (1 - a) * (1 - b)
    joint[:, TWO_HIT] = a[:, FIRST:].max(axis=1) * b[:, FIRST:].max(axis=1)
    hits = np.concatenate([network.hits, joint, np.zeros((1, n_modules))])
    direct = np.concatenate([network.direct, network.direct[pairs].sum(axis=1), np.zeros((1, n_genes))])
    inverse = [np.linalg.inv(np.eye(n_modules) - on[:, None] * network.regulation) for on in network.active]
    spread = network.active[:, None] * inverse @ network.loadings.T if False else None
    response = np.stack(
        [direct - (on * hits) @ inv.T @ network.loadings.T for on, inv in zip(network.active, inverse, strict=True)]
    )
    inputs = rng.normal(0, CELL_TYPE_SD / (LOADING * np.sqrt(TARGETS * n_modules)), (n_cell_types, n_modules))
    states = np.stack([inv @ (on * u) for inv, on, u in zip(inverse, network.active, inputs, strict=True)])
    mean = rng.normal(0, MEAN_SD, n_genes)
    batch = rng.normal(0, BATCH_SD, (n_cell_types, N_BATCHES, n_genes))
    baseline = mean + (states @ network.loadings.T)[:, None] + batch
    return _Screen(baseline, rng.normal(0, STATE_SD, n_genes), response)


def _cells(n_cells, n_genes, n_perturbations, n_cell_types, rng):
    n_control = round(CONTROL_SHARE * n_cells)
    n_conditions = n_perturbations * n_cell_types
    turn, condition = np.divmod(np.arange(n_cells - n_control), n_conditions)
    control_turn, control_type = np.divmod(np.arange(n_control), n_cell_types)
    perturbation = np.append(condition // n_cell_types, np.full(n_control, n_perturbations))
    cell_type = np.append(condition % n_cell_types, control_type)
    batch = np.append(turn + condition, control_turn) % N_BATCHES
    order = rng.permutation(n_cells)
    library = COUNTS_PER_GENE * n_genes * np.exp(rng.normal(0, LIBRARY_SD, n_cells))
    return _Cells(
        perturbation[order], cell_type[order], batch[order], rng.standard_normal(n_cells),
        rng.uniform(*RESPONSE, n_cells), library,
    )


def _counts(screen, cells, rng, *, chunk):
    gamma, poisson = rng.spawn(2)  # one stream each, read row after row: the chunk size cannot matter
    blocks = []
    for start in range(0, len(cells.library), chunk):
        part = _Cells(*(column[start : start + chunk] for column in cells))
        shares = screen.baseline[part.cell_type, part.batch] + part.state[:, None] * screen.state
        shares += part.response[:, None] * screen.response[part.cell_type, part.perturbation]
        np.exp(shares, out=shares)
        shares *= (part.library / shares.sum(axis=1))[:, None]
        shares *= gamma.standard_gamma(DISPERSION, size=shares.shape) / DISPERSION
        blocks.append(csr_matrix(poisson.poisson(shares).astype(np.float32)))
    return vstack(blocks, format="csr")


def _log_normalised(counts):
    x = counts.copy()
    totals = np.maximum(counts.sum(axis=1).A1, 1)
    x.data *= np.repeat((TARGET_SUM / totals).astype(np.float32), np.diff(x.indptr))
    np.log1p(x.data, out=x.data)
    return x


def _expected_log(n_genes):
    """Grid of log shares q, and E log1p(TARGET_SUM y / library) for y ~ NB(library q, DISPERSION).

    With s = TARGET_SUM / library and log(1 + z) = integral of (1 - exp(-u z)) exp(-u) / u du, the expectation over y
    is closed under the integral: E exp(-u s y) = (1 + mean (1 - exp(-u s)) / DISPERSION)^-DISPERSION.
    """
    grid = np.arange(-18, 0.01, 0.05)
    nodes, weights = np.polynomial.hermite_e.hermegauss(7)
    library = COUNTS_PER_GENE * n_genes * np.exp(LIBRARY_SD * nodes)
    step = 0.1
    u = np.exp(np.arange(-24, 4, step))
    lost = 1 - np.exp(-u * (TARGET_SUM / library)[:, None])  # (library, u)
    mean = np.exp(grid)[:, None, None] * library[:, None]
    integrand = (1 - (1 + mean * lost / DISPERSION) ** -DISPERSION) * np.exp(-u)
    return grid, integrand.sum(axis=2) @ weights / weights.sum() * step


def _effects(screen):
    """Expected shift (P, T, G) of log-normalised expression against the control, the mean over batches."""
    grid, table = _expected_log(len(screen.state))
    state, w_state = np.polynomial.hermite_e.hermegauss(3)
    strength, w_strength = np.polynomial.legendre.leggauss(3)
    strength = np.mean(RESPONSE) + strength * np.ptp(RESPONSE) / 2
    weights = np.outer(w_strength / w_strength.sum(), w_state / w_state.sum()) / N_BATCHES
    n_cell_types, n_rows, n_genes = screen.response.shape
    expected = np.empty((n_rows, n_cell_types, n_genes))
    for t, baseline in enumerate(screen.baseline):
        cell = baseline[:, None] + state[:, None] * screen.state  # (B, state, G)
        for p, response in enumerate(screen.response[t]):
            log = cell[None] + strength[:, None, None, None] * response
            log -= np.log(np.exp(log).sum(axis=-1, keepdims=True))
            expected[p, t] = np.einsum("rbsg,rs->g", np.interp(log, grid, table), weights)
    return expected[:-1] - expected[-1]


def _truth(network, screen, pairs, perturbations, cell_types, genes):
    effects = _effects(screen)
    singles = len(network.members)
    interaction = np.zeros_like(effects)
    interaction[singles:] = effects[singles:] - effects[pairs].sum(axis=1)
    members = np.concatenate([network.members, network.members[pairs].any(axis=1)])
    acting = members[:, None] & network.active  # (P, T, M)
    shared = np.einsum("ptm,qtm->ptq", acting.astype(np.float32), acting.astype(np.float32), optimize=True) > 0
    np.einsum("ptp->pt", shared)[:] = False
    query, cell_type, candidate = np.nonzero(shared)
    member, module = np.nonzero(members)
    p, t = np.indices(effects.shape[:2]).reshape(2, -1)
    modules = np.array([f"module_{m}" for m in range(members.shape[1])])
    return {
        "conditions": _table(perturbation=perturbations[p], cell_type=cell_types[t]),
        "effects": effects.reshape(-1, len(genes)).astype(np.float32),
        "interaction": interaction.reshape(-1, len(genes)).astype(np.float32),
        "relevant": _table(
            perturbation=perturbations[query], cell_type=cell_types[cell_type], candidate=perturbations[candidate]
        ),
        "perturbation_module": _table(perturbation=perturbations[member], module=modules[module]),
        "active": network.active,
        "loadings": network.loadings.astype(np.float32),
        "regulation": network.regulation.astype(np.float32),
        "cell_types": cell_types,
        "modules": modules,
        "genes": genes,
    }


def _table(**columns):
    frame = pd.DataFrame(columns)
    frame.index = frame.index.astype(str)
    return frame
