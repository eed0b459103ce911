"""Which effects does the model of a simulated screen imply, and which neighbours are relevant for which query?"""

import numpy as np
import pandas as pd

from ptrag_sc.datasets._log_normalised import TARGET_SUM
from ptrag_sc.datasets._simulated_network import (
    COUNTS_PER_GENE,
    DISPERSION,
    DRIFT_BY_STATE,
    LIBRARY_SD,
    N_BATCHES,
    RESPONSE,
    Network,
    Screen,
)


def _expected_log(n_genes: int) -> tuple[np.ndarray, np.ndarray]:
    r"""Return a grid of log shares :math:`\log q`, and E log1p(s y) there.

    Counts are y ~ NB(library q), and s = TARGET_SUM / library.
    :math:`\log(1 + z) = \int_0^\infty (1 - e^{-uz}) e^{-u} / u \, du`, and the expectation of :math:`e^{-usy}` has a
    closed form: :math:`(1 + \ell q (1 - e^{-us}) / \theta)^{-\theta}`. Integrated over log u and over library sizes.
    """
    grid = np.arange(-18, 0.01, 0.05)  # (Q,)
    step = 0.1
    u = np.exp(np.arange(-24, 4, step))  # (U,)
    nodes, weights = np.polynomial.hermite_e.hermegauss(7)  # the log library size is normal
    library = COUNTS_PER_GENE * n_genes * np.exp(LIBRARY_SD * nodes)[:, None]  # (7, 1)
    mean = np.exp(grid)[:, None, None] * library  # (Q, 7, 1)
    integrand = 1 - (1 + mean * (1 - np.exp(-u * TARGET_SUM / library)) / DISPERSION) ** -DISPERSION  # (Q, 7, U)
    # The 1 / u of the integral cancels, because du = u d(log u).
    return grid, (integrand @ np.exp(-u) * step) @ weights / weights.sum()


def expected_effects(screen: Screen) -> tuple[np.ndarray, np.ndarray]:
    """Return the expected shifts (P, T, G) of log-normalised expression against the control at the end.

    The second value is that of the control at the end against the control at the start (T, G). The mean over cells is a
    Gauss quadrature over their state (normal) and their strength of response (uniform).
    """
    grid, table = _expected_log(len(screen.state))
    state, state_weights = np.polynomial.hermite_e.hermegauss(3)
    strength, strength_weights = np.polynomial.legendre.leggauss(3)
    strength = np.mean(RESPONSE) + strength * np.ptp(RESPONSE) / 2  # from [-1, 1] to the range of RESPONSE
    weights = np.outer(strength_weights / 2, state_weights / state_weights.sum()) / N_BATCHES  # (3, 3), sum 1 / B
    n_cell_types, n_rows, n_genes = screen.response.shape
    expected = np.empty((n_rows, n_cell_types, n_genes))
    moved = np.zeros((n_cell_types, n_genes))
    # One condition at a time, which bounds the memory.
    for t, baseline in enumerate(screen.baseline):
        start = baseline[:, None] + state[:, None] * screen.state  # (B, 3, G)
        unperturbed = start + (1 + DRIFT_BY_STATE * state)[:, None] * screen.drift[t]
        for p, response in enumerate(screen.response[t]):
            log_share = unperturbed + strength[:, None, None, None] * response  # (3, B, 3, G)
            log_share -= np.log(np.exp(log_share).sum(axis=-1, keepdims=True))
            expected[p, t] = np.einsum("rbsg,rs->g", np.interp(log_share, grid, table), weights)
        if screen.drift[t].any():
            log_share = np.broadcast_to(start, (len(strength), *start.shape))
            log_share = log_share - np.log(np.exp(log_share).sum(axis=-1, keepdims=True))
            moved[t] = expected[-1, t] - np.einsum("rbsg,rs->g", np.interp(log_share, grid, table), weights)
    return expected[:-1] - expected[-1], moved  # the control is the last row


def truth(
    network: Network, effects: np.ndarray, pairs: np.ndarray, perturbations: np.ndarray, cell_types: np.ndarray
) -> dict[str, np.ndarray | pd.DataFrame]:
    """Return the truth as arrays and long tables, because these survive h5ad and zarr."""
    n_singles, n_genes = network.direct.shape
    # What the sum of the two single effects does not explain.
    interaction = np.zeros_like(effects)  # (P, T, G)
    interaction[n_singles:] = effects[n_singles:] - effects[pairs].sum(axis=1)
    members = np.concatenate([network.members, network.members[pairs].any(axis=1)])  # (P, M)
    acting = (members & network.active[:, None]).astype(np.float32)  # (T, P, M)
    # Relevant candidates share a module with the query that acts in the cell type.
    shared = acting @ acting.transpose(0, 2, 1) > 0  # (T, P, P)
    shared[:, np.arange(len(members)), np.arange(len(members))] = False  # no perturbation is its own candidate
    query, cell_type, candidate = np.nonzero(shared.transpose(1, 0, 2))
    modules = np.array([f"module_{m}" for m in range(members.shape[1])])
    member, module = np.nonzero(members)
    condition, condition_type = np.indices(effects.shape[:2]).reshape(2, -1)
    return {
        "conditions": _table(perturbation=perturbations[condition], cell_type=cell_types[condition_type]),
        "effects": effects.reshape(-1, n_genes).astype(np.float32),
        "interaction": interaction.reshape(-1, n_genes).astype(np.float32),
        "relevant": _table(
            perturbation=perturbations[query], cell_type=cell_types[cell_type], candidate=perturbations[candidate]
        ),
        "perturbation_module": _table(perturbation=perturbations[member], module=modules[module]),
        "active": network.active,
        "regulation": network.regulation.astype(np.float32),
        "loadings": network.loadings.astype(np.float32),
        "cell_types": cell_types,
        "modules": modules,
    }


def _table(**columns: np.ndarray) -> pd.DataFrame:
    frame = pd.DataFrame(columns)
    frame.index = frame.index.astype(str)  # h5ad and zarr want string indices
    return frame
