"""Does the study run what it says: folds without a leak, the published variants, its tables?"""

import importlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import ptrag_sc

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def evidence(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("evidence")


@pytest.fixture
def screen(evidence):
    adata = ptrag_sc.datasets.simulated(n_cells=700, n_genes=40, n_perturbations=12, n_cell_types=2)
    evidence.drawn(adata, 0, **evidence.PAIRS)
    return adata


def test_folds_hold_out_genes_with_all_their_combinations_and_cover_all(evidence):
    adata = ptrag_sc.datasets.simulated(n_cells=900, n_genes=60, n_perturbations=24, n_combinations=8, n_cell_types=1)
    tested = set()
    for seed in range(3):
        evidence.grouped_folds(adata, seed)
        obs = adata.obs[adata.obs["perturbation"] != "non-targeting"]
        genes = {s: {g for p in part["perturbation"] for g in p.split("+")} for s, part in obs.groupby("split")}
        assert set(genes) == {"train", "val", "test"}
        singles = {p for p in obs.loc[obs["split"] == "test", "perturbation"] if "+" not in p}
        assert singles.isdisjoint(genes["train"] | genes["val"])
        tested |= singles
    assert tested == {p for p in adata.obs["perturbation"] if "+" not in p} - {"non-targeting"}


@pytest.mark.parametrize("kind", ["text", "permuted", "random", "one-hot"])
def test_embeddings_are_what_their_names_say(evidence, screen, kind):
    own, other = (np.asarray(x.uns["gene_embedding"]["vectors"]) for x in (screen, evidence.embedded(screen, kind, 0)))
    cosine = other @ other.T
    if kind == "one-hot":
        np.testing.assert_allclose(cosine, np.eye(len(own)), atol=1e-6)
    elif kind == "random":
        assert abs(np.corrcoef(cosine[np.triu_indices(12, 1)], (own @ own.T)[np.triu_indices(12, 1)])[0, 1]) < 0.5
    else:
        np.testing.assert_allclose(np.sort(other.sum(1)), np.sort(own.sum(1)), rtol=1e-4)
        assert np.allclose(own, other, atol=1e-5) == (kind == "text")


@pytest.mark.parametrize("name", ["PublishedPTRAG", "PublishedUnordered"])
def test_published_variants_train_predict_and_come_back(evidence, screen, tmp_path, name):
    cls, options = getattr(evidence, name), {"folder": tmp_path, "max_epochs": 1}
    model = evidence.trained(screen, 0, cls=cls, **options)
    frozen = [not p.requires_grad for p in model.module.generator.parameters()]
    assert all(frozen) == (name == "PublishedPTRAG")
    assert any(frozen) == (name == "PublishedPTRAG")
    again = evidence.trained(screen, 0, cls=cls, **options)
    pairs = zip(model.module.state_dict().values(), again.module.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    predicted = again.predict(screen, perturbations=str(model.candidates_[0]), n_cells=10, counts=False)
    assert (predicted.X >= 0).all()  # the published output ends in a ReLU
    assert predicted.X.std() > 0


@pytest.mark.slow
def test_a_task_writes_its_scores_and_the_page_shows_them(evidence, tmp_path, monkeypatch):
    small = ptrag_sc.datasets.simulated(n_cells=500, n_genes=40, n_perturbations=12, n_cell_types=2)
    task = evidence.TASKS["simulated"]._replace(load=lambda: small)
    monkeypatch.setitem(evidence.TASKS, "simulated", task)
    monkeypatch.setattr(evidence, "lifts", lambda *rest: ptrag_sc.benchmark.selection_lift(*TABLES))
    known = evidence.methods
    simple = ("additive", "ridge, text")
    trained = ("PTRAG gumbel, permuted", "PTRAG gumbel, memory")  # stand-ins: their tables are asked for
    monkeypatch.setattr(
        evidence,
        "methods",
        lambda *rest: {m: known(*rest)[m if m in simple else "additive"] for m in (*simple, *trained)},
    )
    monkeypatch.setattr(evidence, "coverage", lambda *rest: pd.DataFrame({"metric": ["covered by"]}))
    result = evidence.run("simulated", tmp_path, seeds=(0,), chosen=None, max_epochs=1)
    assert {p.name for p in tmp_path.iterdir()} == {"simulated", "simulated.csv", "simulated.json", "simulated.png"}
    stored = json.loads((tmp_path / "simulated.json").read_text())
    page = evidence.page([stored])
    for name in (*simple, "mean shift", "Lift of the selection", "covered by", "energy_distance"):
        assert name in page
    assert result["n_conditions"] == 7


TABLES = [
    pd.DataFrame({"perturbation": "A", "cell_type": "t", "candidate": list("BC"), "selected": [1, 0]}),
    pd.DataFrame({"perturbation": ["A"], "cell_type": ["t"], "candidate": ["B"]}),
]
