"""What do the plot tests share? A small AnnData in the form that tl.predict and tl.effect write, made by hand."""

from itertools import product
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

CELL_TYPES = ("A549", "K562", "RPE1")
PERTURBATIONS = ("CDK1", "IRF1", "JAK2", "MYC", "STAT1", "AAAAAA+BBBBBBB")
CONTROL = "non-targeting"
N_GENES = 30
N_CELLS = {CONTROL: 20, "STAT1": 12, "JAK2": 7}


@pytest.fixture(autouse=True)
def _no_open_figures():
    yield
    plt.close("all")


@pytest.fixture
def table() -> pd.DataFrame:
    """Retrieval of every perturbation in every cell type; the last candidate of each query is missing in RPE1."""
    rng = np.random.default_rng(0)
    rows = []
    for query, cell_type in product(PERTURBATIONS, CELL_TYPES):
        candidates = [name for name in PERTURBATIONS if name != query]
        if cell_type == "RPE1":
            candidates = candidates[:-1]
        similarity = np.sort(rng.uniform(0.1, 0.9, len(candidates)))[::-1]
        weight = rng.dirichlet(np.ones(len(candidates)))
        selected = rng.choice(np.linspace(0, 1, 21), len(candidates), replace=False)
        for rank, values in enumerate(zip(candidates, similarity, weight, selected, strict=True)):
            rows.append((query, cell_type, values[0], rank, *values[1:]))
    names = ["perturbation", "cell_type", "candidate", "rank", "similarity", "weight", "selected"]
    return pd.DataFrame(rows, columns=names).astype({"weight": "float32"})


@pytest.fixture
def adata(table) -> AnnData:
    """Cells of two perturbations and control in two cell types, all predicted; MYC has only a predicted effect."""
    rng = np.random.default_rng(1)
    obs = pd.DataFrame(
        [(p, c) for c in CELL_TYPES[:2] for p, n in N_CELLS.items() for _ in range(n)],
        columns=["perturbation", "cell_type"],
    ).astype("category")
    obs.index = [f"cell{i}" for i in range(len(obs))]
    genes = np.array([f"GENE{i}" for i in range(N_GENES)])
    # adata holds more genes than the model knows, in another order
    var = pd.DataFrame(index=["OTHER", *genes[::-1]])
    made = AnnData(rng.gamma(1.0, 1.0, (len(obs), N_GENES + 1)).astype("float32"), obs=obs, var=var)
    made.layers["half"] = made.X / 2
    made.obsm["ptrag"] = rng.gamma(1.0, 1.0, (len(obs), N_GENES)).astype("float32")
    made.obs["ptrag_predicted"] = True
    params = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "control": CONTROL}
    made.uns["ptrag"] = {
        "params": params,
        "genes": genes,
        "candidates": np.array(PERTURBATIONS),
        "retrieval": table,
        "effect": _effects(rng, genes),
        "effects": _predicted_effects(genes),
    }
    return made


def _effects(rng: np.random.Generator, genes: np.ndarray) -> dict:
    conditions = [(p, c, N_CELLS[p]) for c in CELL_TYPES[:2] for p in ("JAK2", "STAT1")] + [("MYC", "K562", 0)]
    observed = rng.standard_t(3, (len(conditions), len(genes))).astype("float32")
    predicted = (0.6 * observed + rng.normal(0, 0.5, observed.shape)).astype("float32")
    observed[-1] = np.nan
    rows = []
    for (perturbation, cell_type, n), x, y in zip(conditions, observed, predicted, strict=True):
        rows.append((perturbation, cell_type, n, n or 5, np.corrcoef(x, y)[0, 1], (x @ y) / (x @ x)))
    names = ["perturbation", "cell_type", "n_observed", "n_predicted", "pearson_delta", "effect_slope"]
    table = pd.DataFrame(rows, columns=names)
    return {"conditions": table, "observed": observed, "predicted": predicted, "genes": genes}


def _predicted_effects(genes: np.ndarray) -> dict:
    """Effects of two conditions; the target of JAK2 is GENE3, and one of its intervals is open."""
    rng = np.random.default_rng(0)
    shift = rng.normal(size=(2, len(genes))).astype(np.float32)
    half = rng.uniform(0.1, 1.0, size=shift.shape).astype(np.float32)
    shift[0, 3] = -4.0
    half[0, 3] = np.inf
    own = np.zeros(shift.shape, dtype=bool)
    own[0, 3] = True
    return {
        "conditions": pd.DataFrame({"perturbation": ["JAK2", "MYC"], "cell_type": ["K562", "K562"]}),
        "genes": genes.astype(object),
        "level": 0.9,
        "shift": shift,
        "lower": shift - half,
        "upper": shift + half,
        "own": own,
        "neighbours": np.array([["STAT1", "IRF1", "", "", ""], [""] * 5], dtype=object),
        "neighbour_shifts": rng.normal(size=(2, 5, len(genes))).astype(np.float32),
    }


@pytest.fixture
def curves() -> dict[str, np.ndarray]:
    """Loss curves of 30 epochs whose validation loss is lowest at epoch 17, the training loss at the last one."""
    epochs = np.arange(30)
    return {
        "train_loss": 1 / (1 + epochs),
        "validation_loss": 0.5 + (epochs - 17.0) ** 2 / 100,
        "gate_open_train": 0.2 + 0.8 * np.exp(-epochs / 5),
        "gate_open_validation": 0.3 + 0.7 * np.exp(-epochs / 5),
    }


@pytest.fixture
def trained():
    """Function that makes a model with a given history, in the form of scvi-tools."""

    def make(curves: dict[str, np.ndarray] | None) -> SimpleNamespace:
        if curves is None:
            return SimpleNamespace(history=None)
        index = {name: pd.RangeIndex(len(values), name="epoch") for name, values in curves.items()}
        return SimpleNamespace(history={k: pd.DataFrame({k: v}, index=index[k]) for k, v in curves.items()})

    return make
