"""How are own targets kept apart? Slow and obvious, written from the formulas and not from the package.

Shifts are dicts {(perturbation, cell type): (G,)}, controls {cell type: (G,)}, genes a list of names.
"""

import numpy as np
import scipy.sparse as sp

import ptrag_sc
from screens import KEYS, make_screen


def targets(label, genes, sep="+"):
    """Columns of the measured genes that a perturbation targets."""
    return [genes.index(gene) for gene in label.split(sep) if gene in genes]


def slow_masked(shifts, genes, sep="+"):
    """Own targets replaced by the mean of the conditions of the cell type (else of all) that target another gene."""
    masked = {}
    for (label, line), shift in shifts.items():
        new = np.array(shift, dtype=float)
        for g in targets(label, genes, sep):
            others = {key: s[g] for key, s in shifts.items() if g not in targets(key[0], genes, sep)}
            here = [value for (_, t), value in others.items() if t == line]
            anywhere = list(others.values())
            new[g] = np.mean(here or anywhere or [0.0])
        masked[label, line] = new
    return masked


def weighted_median(values, weights):
    """The smallest value up to which at least half of the weight lies."""
    total = 0.0
    for value, weight in sorted(zip(values, weights, strict=True)):
        total += weight
        if total >= sum(weights) / 2:
            return value
    raise ValueError


def slow_share(effects, levels):
    """Weighted median of the share of its expression by which a target changes, shrunk by its standard error."""
    if sum(levels) <= 0:
        return 0.0
    shares = [effect / max(level, 0.05) for effect, level in zip(effects, levels, strict=True)]
    beta = weighted_median(shares, levels)
    n_effective = sum(levels) ** 2 / sum(level**2 for level in levels)
    error = 1.25 * 1.4826 * np.median([abs(share - beta) for share in shares]) / np.sqrt(n_effective)
    return 0.0 if beta == 0 else beta * max(0.0, 1 - error**2 / beta**2)


def measured(shifts, controls, genes, sep="+"):
    """Every measured target: (perturbation, cell type, column, change beyond the masked shift, control expression)."""
    masked = slow_masked(shifts, genes, sep)
    return [
        (label, line, g, shift[g] - masked[label, line][g], controls[line][g])
        for (label, line), shift in shifts.items()
        for g in targets(label, genes, sep)
    ]


def slow_shares(shifts, controls, genes, sep="+"):
    """({cell type: share}, share of all): a cell type of fewer than three targets has none of its own."""
    found = measured(shifts, controls, genes, sep)
    by_type = {}
    for line in {line for _, line, *_ in found}:
        here = [(effect, level) for _, t, _, effect, level in found if t == line]
        if len(here) >= 3:
            by_type[line] = slow_share(*zip(*here, strict=True))
    pooled = slow_share(*zip(*[row[3:] for row in found], strict=True)) if len(found) >= 3 else 0.0
    return by_type, pooled


def slow_own_change(label, line, shifts, controls, genes, sep="+"):
    """What is added to a masked prediction (G,): the share, in combinations what the gene alone did if it was seen."""
    by_type, pooled = slow_shares(shifts, controls, genes, sep)
    alone = {(p, t): effect for p, t, g, effect, _ in measured(shifts, controls, genes, sep) if p == genes[g]}
    change = np.zeros(len(genes))
    for g in targets(label, genes, sep):
        change[g] = by_type.get(line, pooled) * controls[line][g]
        if label != genes[g] and (genes[g], line) in alone:
            change[g] = alone[genes[g], line]
    return change


def targeted_screen(change=None, *, n_obs=700, left=0.3, held_out=()):
    """The small screen with measured targets: a share ``left`` of the molecules of a perturbed gene is left.

    ``change`` may change the log expression (n, G), given the rows and columns of own targets (n, G). Conditions of
    ``held_out`` are in the test split.
    """
    adata = make_screen(n_obs=n_obs)
    names = [f"G{i}" for i in range(8)]
    adata.var_names = [*names, *adata.var_names[8:]]
    genes = list(adata.var_names)
    counts = np.rint(np.expm1(adata.X.toarray()))
    own = np.zeros(counts.shape, dtype=bool)
    for i, label in enumerate(adata.obs["gene"].astype(str)):
        own[i, targets(label, genes)] = True
    rng = np.random.default_rng(7)
    counts[own] = rng.binomial(counts[own].astype(int), left) if left <= 1 else counts[own] * left
    x = np.log1p(counts).astype(np.float32)
    adata.X = sp.csr_matrix(x if change is None else change(x, own))
    labels = zip(adata.obs["gene"].astype(str), adata.obs["line"].astype(str), strict=True)
    adata.obs["split"] = ["test" if label in held_out else "train" for label in labels]
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem", split_key="split")
    return adata


def slow_controls(adata):
    """Mean control expression of each cell type."""
    x, obs = adata.X.toarray().astype(float), adata.obs
    return {t: x[((obs["gene"] == "ctl") & (obs["line"] == t)).to_numpy()].mean(0) for t in obs["line"].unique()}
