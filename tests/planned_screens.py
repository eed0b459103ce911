"""Which screen do the tests of design and size share? Groups of perturbations that do the same, in one or two lines."""

import numpy as np
import pandas as pd
from anndata import AnnData

import ptrag_sc
from screens import KEYS

N_GROUPS = 6


def group_of(name):
    return int(name[1:]) % N_GROUPS


def grouped_screen(*, n_perturbations=48, n_cells=6, n_genes=40, lines=("K562",), noise=0.3, seed=0):
    """Return a screen, not set up, in which the perturbations of a group have nearly one effect and one vector."""
    rng = np.random.default_rng(seed)
    names = [f"P{i}" for i in range(n_perturbations)]
    effects = rng.normal(size=(N_GROUPS, n_genes)) * 0.5
    centres = rng.normal(size=(N_GROUPS, 12))
    parts = []
    for line in lines:
        label = np.repeat(["ctl", *names], [40, *[n_cells] * n_perturbations])
        x = 3 + rng.normal(size=(len(label), n_genes)) * noise
        for name in names:
            x[label == name] += effects[group_of(name)] + rng.normal(size=n_genes) * 0.1
        parts.append((x, label, np.full(len(label), line)))
    x, label, line = (np.concatenate(part) for part in zip(*parts, strict=True))
    obs = pd.DataFrame({"gene": label, "line": line}, index=[f"c{i}" for i in range(len(label))])
    obs["gem"] = np.where(np.arange(len(label)) % 2, "b1", "b2")
    adata = AnnData(np.abs(x).astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))
    vectors = np.stack([centres[group_of(name)] for name in names]) + rng.normal(size=(n_perturbations, 12)) * 0.1
    adata.uns["gene_embedding"] = pd.DataFrame(vectors, index=names)
    return adata


def set_up(adata, **further):
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem", **further)
    return adata
