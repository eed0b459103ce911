"""Does nothing of the user's get lost under the names that the package writes?"""

import anndata
import numpy as np
import pandas as pd
import pytest

import ptrag_sc
from ptrag_sc.data._user_keys import check_free, note_written, written
from screens import KEYS, make_screen


@pytest.fixture(scope="module")
def fitted():
    adata = make_screen()
    ptrag_sc.pp.split(adata, **KEYS, test_fraction=0.2)
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, split_key="split")
    return ptrag_sc.baselines.NearestPerturbations(adata, n_neighbors=2).fit()


@pytest.mark.parametrize(
    ("slot", "suffix"),
    [("obs", "_source"), ("obs", "_predicted"), ("obsm", ""), ("obsm", "_retrieval"), ("obsm", "_counts"), ("uns", "")],
)
def test_predictions_replace_nothing_of_the_user(fitted, slot, suffix):
    adata = make_screen(n_obs=200)
    value = {"n": 1} if slot == "uns" else np.full((200, 2) if slot == "obsm" else 200, 7.0)
    getattr(adata, slot)["tissue" + suffix] = value
    with pytest.raises(ValueError, match=rf"adata.{slot}\['tissue{suffix}'\] is not replaced. Pass another key_added"):
        ptrag_sc.tl.predict(adata, fitted, key_added="tissue")
    found = getattr(adata, slot)["tissue" + suffix]
    assert found == value if slot == "uns" else (np.asarray(found) == 7).all()
    assert len(adata.obs.columns) + len(adata.obsm) <= 4


def test_an_earlier_prediction_is_replaced_also_after_a_file(fitted, tmp_path):
    adata = make_screen(n_obs=200)
    ptrag_sc.tl.predict(adata, fitted, counts=False)
    first = adata.obsm["ptrag"].copy()
    adata.write_h5ad(tmp_path / "x.h5ad")
    for again in (adata, anndata.read_h5ad(tmp_path / "x.h5ad"), adata[50:].copy()):
        ptrag_sc.tl.predict(again, fitted, perturbation="G1")
        assert again.obsm["ptrag"].shape != first.shape or not np.array_equal(again.obsm["ptrag"], first)
    ptrag_sc.tl.effect(adata)


def test_a_split_is_replaced_only_if_it_is_ours():
    adata = make_screen(n_obs=200)
    adata.obs["split"] = "by hand"
    with pytest.raises(ValueError, match=r"adata.obs\['split'\] is not replaced"):
        ptrag_sc.pp.split(adata, **KEYS)
    assert set(adata.obs["split"]) == {"by hand"}
    for seed in (0, 1):
        ptrag_sc.pp.split(adata, **KEYS, key_added="ours", seed=seed)


def test_tables_in_uns_are_replaced_only_if_they_are_ours(fitted, trained):
    adata = make_screen(n_obs=200)
    mine = pd.DataFrame(np.eye(8), index=[f"G{i}" for i in range(8)])
    labels = {"perturbation_key": "gene", "control": "ctl"}
    ptrag_sc.pp.gene_embedding(adata, mine, **labels)
    ptrag_sc.pp.gene_embedding(adata, mine, **labels)
    adata.uns["mine"] = mine
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    virtual = fitted.predict(perturbations="G0")
    virtual.uns["mine"] = virtual.uns["ptrag"]
    virtual.obs["mine_source"] = virtual.obs["ptrag_source"]
    calls = {
        "gene_embedding": lambda: ptrag_sc.pp.gene_embedding(adata, mine, **labels, key_added="mine"),
        "diagnose": lambda: ptrag_sc.tl.diagnose(adata, key_added="mine"),
        "retrieval": lambda: ptrag_sc.tl.retrieval(adata, trained, key_added="mine"),
        "effect": lambda: ptrag_sc.tl.effect(adata, predicted=virtual, key="mine"),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match=r"adata.uns\['mine'\] is not replaced"):
            call()
    assert adata.uns["mine"] is mine
    for _ in range(2):
        ptrag_sc.tl.diagnose(adata)


def test_columns_of_the_user_stay_in_virtual_cells(fitted):
    adata = make_screen(n_obs=200)
    adata.uns["sample"] = {"n": 1}
    names = ["sample_source", "sample_predicted", "was_predicted", "ptrag_predicted"]
    for name in names:
        adata.obs[name] = "blood"
    assert set(names) <= set(fitted.predict(adata, perturbations="G0").obs)
    adata.obs["ptrag_source"] = "blood"
    with pytest.raises(ValueError, match=r"adata.obs\['ptrag_source'\] would be replaced. Rename it"):
        fitted.predict(adata, perturbations="G0")


def test_columns_of_an_earlier_prediction_do_not_stay(fitted):
    adata = make_screen(n_obs=200)
    ptrag_sc.tl.predict(adata, fitted)
    ptrag_sc.tl.predict(adata, fitted, key_added="other")
    virtual = fitted.predict(adata, perturbations="G0")
    assert set(virtual.obs) == {"gene", "line", "gem", "ptrag_source"}
    virtual.obs["gene"] = "ctl"
    again = fitted.predict(virtual, perturbations="G1", cell_types="K562")  # a population as the query of another one
    assert set(again.obs["ptrag_source"]) <= set(virtual.obs_names)


def test_comparisons_draw_splits_into_their_own_copy():
    adata = make_screen()
    adata.obs["split"] = np.where(adata.obs["gene"].isin(["G0", "G5"]), "test", "train")  # by hand
    before = adata.obs["split"].copy()
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, split_key="split")
    table = ptrag_sc.benchmark.compare(
        adata,
        {"neighbours": lambda adata, seed: ptrag_sc.baselines.NearestPerturbations(adata, n_neighbors=2).fit()},
        split=lambda adata, seed: ptrag_sc.pp.split(adata, **KEYS, test_fraction=0.2, seed=seed),
        seeds=[0],
        metrics=["pearson_delta"],
        progress=False,
    )
    assert len(table)
    pd.testing.assert_series_equal(adata.obs["split"], before)


def test_what_is_written_down(tmp_path):
    adata = make_screen(n_obs=50)
    assert written(adata, "obs") == set()
    note_written(adata, obs=["a"], obsm=["b"])
    note_written(adata, obs=["c"])
    adata.write_h5ad(tmp_path / "x.h5ad")
    read = anndata.read_h5ad(tmp_path / "x.h5ad")
    assert (written(read, "obs"), written(read, "obsm")) == ({"a", "c"}, {"b"})
    check_free(read, obs=["a", "d"], uns=["gene_embedding"])
    with pytest.raises(ValueError, match="is not replaced"):
        check_free(read, obs=["line"])
