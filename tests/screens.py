"""Which small screen, with known effects, do the tests share?"""

import hashlib

import numpy as np
import pandas as pd
import scipy.sparse as sp
import scvi
from anndata import AnnData

import ptrag_sc

KEYS = {"perturbation_key": "gene", "control": "ctl", "cell_type_key": "line"}


def make_screen(*, n_obs: int = 480, n_genes: int = 30, seed: int = 0, combinations: bool = True) -> AnnData:
    """Return a small hand-made screen: 8 genes and 2 combinations in 2 cell types and 2 batches, log scale."""
    rng = np.random.default_rng(seed)
    names = [f"G{i}" for i in range(8)] + (["G0+G1", "G2+G3"] if combinations else [])
    perturbation = rng.choice(["ctl", *names], n_obs, p=[0.3, *np.full(len(names), 0.7 / len(names))])
    line, batch = rng.choice(["K562", "RPE1"], n_obs), rng.choice(["b1", "b2"], n_obs)
    effects = {g: rng.normal(size=n_genes) * 0.6 for g in names[:8]} | {"ctl": np.zeros(n_genes)}
    shift = np.stack([sum(effects[g] for g in p.split("+")) for p in perturbation])
    rate = np.exp(1 + (line == "RPE1")[:, None] * 0.5 + (batch == "b2")[:, None] * 0.3 + shift)
    counts = rng.poisson(rate).astype(np.float32)
    adata = AnnData(
        sp.csr_matrix(np.log1p(counts)),
        obs=pd.DataFrame(
            {"gene": pd.Categorical(perturbation), "line": line, "gem": batch}, index=[f"cell{i}" for i in range(n_obs)]
        ),
        var=pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)]),
    )
    vectors = np.stack([effects[g] for g in names[:8]]) + rng.normal(size=(8, n_genes)) * 0.3
    table = pd.DataFrame(vectors, index=names[:8])
    ptrag_sc.pp.gene_embedding(adata, table, perturbation_key="gene", control="ctl")
    return adata


def make_null_screen(seed: int = 0, *, n_controls: int = 60, n_genes: int = 100) -> AnnData:
    """Return a screen of 30 perturbations of 40 cells that do nothing, and few control cells."""
    rng = np.random.default_rng(seed)
    names = [f"G{i}" for i in range(30)]
    label = np.repeat(["ctl", *names], [n_controls, *[40] * 30])
    counts = rng.poisson(rng.gamma(2.0, size=n_genes), (len(label), n_genes)).astype(np.float32)
    adata = AnnData(
        sp.csr_matrix(np.log1p(counts)),
        obs=pd.DataFrame({"gene": label, "line": "K562"}, index=[f"cell{i}" for i in range(len(label))]),
        var=pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)]),
    )
    table = pd.DataFrame(rng.normal(size=(30, 8)), index=names)
    ptrag_sc.pp.gene_embedding(adata, table, perturbation_key="gene", control="ctl")
    options = {"holdout": "perturbation", "test_fraction": 0.3, "val_fraction": 0.4, "seed": seed}
    ptrag_sc.pp.split(adata, **KEYS, **options)
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, split_key="split")
    return adata


def set_up_screen() -> AnnData:
    """Return the small screen, set up and without a split."""
    adata = make_screen()
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem")
    return adata


# The text form, which most tests of the model are of; those of the memory say so.
SMALL = {"n_candidates": 4, "n_hidden": 16, "n_layers": 2, "n_heads": 2, "memory": None}


TRAIN = {"set_size": 12, "batch_size": 10, "accelerator": "cpu", "enable_progress_bar": False}


def train_small(adata: AnnData, *, max_epochs: int = 8, seed: int = 0, **options) -> ptrag_sc.PTRAG:
    """Return a small trained model of an object that is set up."""
    scvi.settings.seed = seed
    model = ptrag_sc.PTRAG(adata, **{**SMALL, **options})
    model.train(max_epochs, **TRAIN, plan_kwargs={"lr": 1e-2})
    return model


def fingerprint(model: ptrag_sc.PTRAG) -> list:
    """Return what a test could change of a model that others use too: its weights, its cells, what is beside them."""
    adata, weights = model.adata, model.module.state_dict()
    parts = [*(tensor.numpy().tobytes() for tensor in weights.values()), adata.X.data.tobytes()]
    parts.append(pd.util.hash_pandas_object(adata.obs).to_numpy().tobytes())
    slots = [sorted(slot) for slot in (adata.obs, adata.var, adata.uns, adata.obsm, adata.layers)]
    return [hashlib.sha256(b"".join(parts)).hexdigest(), *slots, model.n_epochs_]
