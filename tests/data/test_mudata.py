"""Does every function follow the modalities of a MuData, or say which one to pass?"""

import anndata
import numpy as np
import pandas as pd
import pytest
from mudata import MuData

import ptrag_sc
from ptrag_sc.data import ScreenKeys
from ptrag_sc.data._mudata import as_anndata, require_anndata
from screens import KEYS, make_screen

MODALITIES = {"layer": "rna", "perturbation_key": "guides", "cell_type_key": "rna", "embedding_key": "guides"}
METRICS = ["pearson_delta", "energy_distance", "de_overlap"]


def split_screen():
    adata = make_screen()
    ptrag_sc.pp.split(adata, **KEYS, test_fraction=0.2)
    return adata


def make_mudata():
    """The small screen with its columns spread: perturbations in one modality, the rest in another, the split above."""
    rna = split_screen()
    guides = anndata.AnnData(np.ones((rna.n_obs, 3)), obs=rna.obs[["gene"]].copy())
    guides.uns["gene_embedding"] = rna.uns.pop("gene_embedding")
    split = rna.obs["split"].to_numpy()
    rna.obs = rna.obs[["line", "gem"]].copy()
    mdata = MuData({"rna": rna, "guides": guides})
    mdata.obs["split"] = split
    return mdata


@pytest.fixture(scope="module")
def both():
    """The same model of an AnnData and of a MuData, with both objects."""
    found = []
    adata, mdata = split_screen(), make_mudata()
    keys = {**KEYS, "split_key": "split"}
    ptrag_sc.PTRAG.setup_anndata(adata, **keys, batch_key="gem")
    ptrag_sc.PTRAG.setup_mudata(mdata, **keys, batch_key="gem", modalities={**MODALITIES, "batch_key": "rna"})
    for each in (adata, mdata):
        model = ptrag_sc.baselines.NearestPerturbations(each, n_neighbors=2).fit()
        ptrag_sc.tl.predict(each, model, counts=False)
        ptrag_sc.tl.effect(each)
        found.append((each, model, ptrag_sc.metrics.Reference.from_adata(each)))
    return found


def virtual_cells(adata, model):
    return ptrag_sc.tl.perturb(adata, model, ["G0", "G1+G0"], counts=False)


def nearest(adata, seed):
    return ptrag_sc.baselines.NearestPerturbations(adata, n_neighbors=2).fit()


FOLLOWING = {
    "tl.predict": lambda a, m, r: a.obsm["ptrag"],
    "tl.perturb": lambda a, m, r: virtual_cells(a, m).X,
    "tl.effect": lambda a, m, r: a.uns["ptrag"]["effect"]["observed"],
    "tl.effect(predicted)": lambda a, m, r: ptrag_sc.tl.effect(a, predicted=virtual_cells(a, m)),
    "tl.effect_table": lambda a, m, r: ptrag_sc.tl.effect_table(a)["shift"],
    "tl.predict_effects": lambda a, m, r: ptrag_sc.tl.predict_effects(a, m, ["G0"])["shift"],
    "tl.rank_perturbations": lambda a, m, r: ptrag_sc.tl.rank_perturbations(
        a, m, pd.Series({"gene1": 1.0}), cell_type="K562"
    ).select_dtypes(float),
    "tl.design": lambda a, m, r: ptrag_sc.tl.design(a, m, 2, cell_type="K562", candidates=["G0", "G1", "G2", "G0+G2"])[
        "variance_reduction"
    ],
    "tl.power": lambda a, m, r: ptrag_sc.tl.power(a, cell_type="K562", n_repeats=1).select_dtypes(float),
    "tl.diagnose": lambda a, m, r: ptrag_sc.tl.diagnose(a) or a.uns["diagnose"]["findings"]["value"],
    "tl.explain_error": lambda a, m, r: ptrag_sc.tl.explain_error(a, virtual_cells(a, m), reference=r)["squared_error"],
    "tl.explain_error(by)": lambda a, m, r: ptrag_sc.tl.explain_error(a, virtual_cells(a, m), reference=r, by="gem")[
        "squared_error"
    ],
    "benchmark.evaluate": lambda a, m, r: ptrag_sc.benchmark.evaluate(
        a, virtual_cells(a, m), reference=r, metrics=METRICS
    )["value"],
    "benchmark.to_cell_eval": lambda a, m, r: None,
    "benchmark.split_half": lambda a, m, r: ptrag_sc.benchmark.split_half(a, 0).predicted.X.toarray(),
    "benchmark.interpolated_duplicate": lambda a, m, r: ptrag_sc.benchmark.interpolated_duplicate(a, 0).predicted.X,
    "benchmark.null_error": lambda a, m, r: ptrag_sc.benchmark.null_error(a, m, reference=r)["value"],
    "benchmark.compare": lambda a, m, r: ptrag_sc.benchmark.compare(
        a, {"n": nearest}, seeds=[0], metrics=["pearson_delta"], progress=False
    )["value"],
    "metrics.Reference": lambda a, m, r: r.centre,
    "pl.embedding": lambda a, m, r: (
        ptrag_sc.pl.embedding(a, perturbation="G1+G0", cell_type="K562", show=False).collections[0].get_offsets()
    ),
    "pl.embedding(predicted)": lambda a, m, r: (
        ptrag_sc.pl.embedding(a, predicted=virtual_cells(a, m), perturbation="G0", cell_type="K562", show=False)
        .collections[0]
        .get_offsets()
    ),
    "pl.effect": lambda a, m, r: ptrag_sc.pl.effect(a, perturbation="G0", cell_type="K562", show=False) and None,
    "pl.retrieval": lambda a, m, r: ptrag_sc.pl.retrieval(a, perturbation="G0", show=False) and None,
    "pl.retrieval_matrix": lambda a, m, r: ptrag_sc.pl.retrieval_matrix(a, show=False) and None,
    "pl.predicted_effects": lambda a, m, r: (
        ptrag_sc.pl.predicted_effects(a, perturbation="G0", cell_type="K562", show=False) and None
    ),
}


@pytest.mark.parametrize("name", FOLLOWING)
def test_a_function_follows_the_modalities(both, name):
    found = [FOLLOWING[name](*each) for each in both]
    assert (found[0] is None) == (found[1] is None)
    if found[0] is not None:
        np.testing.assert_allclose(np.asarray(found[1]), np.asarray(found[0]), atol=1e-5)


def test_files_of_cell_eval(both, tmp_path):
    for i, (adata, model, reference) in enumerate(both):
        virtual = virtual_cells(adata, model)
        options = {"reference": reference, "cell_type": "K562"}
        files = ptrag_sc.benchmark.to_cell_eval(adata, virtual, tmp_path / str(i), **options)
        cells = anndata.read_h5ad(files.real)
        if i:
            np.testing.assert_allclose(cells.X.toarray(), expected.X.toarray())
        expected = cells


def test_one_table_of_cells_is_asked_for_where_no_modality_is_known():
    mdata = make_mudata()
    del mdata.obs["split"]
    with pytest.raises(TypeError, match=r"Pass one modality: ptrag_sc.pp.split\(mdata\['guides'\], ...\)"):
        ptrag_sc.pp.split(mdata, **KEYS)
    with pytest.raises(TypeError, match=r"ptrag_sc.pp.gene_embedding\(mdata\['guides'\], ...\)"):
        ptrag_sc.pp.gene_embedding(mdata, {}, perturbation_key="gene", control="ctl")
    with pytest.raises(TypeError, match=r"f\(mdata\['rna'\], ...\)"):
        require_anndata(mdata, "f")
    for name in ("gene", "line"):
        mdata.obs[name] = make_screen().obs[name].to_numpy()
    ptrag_sc.pp.split(mdata, **KEYS)  # the columns of the whole are enough
    assert set(mdata.obs["split"]) == {"train", "val", "test"}


def test_a_mudata_for_a_model_of_an_anndata(trained):
    with pytest.raises(ValueError, match=r"Pass the modality of the RNA, for example mdata\['rna'\]"):
        trained.predict(make_mudata(), perturbations="G0")


def test_what_a_function_reads_of_a_mudata(both):
    adata, mdata = both[0][0], both[1][0]
    found = as_anndata(mdata, ScreenKeys.of(mdata))
    assert found.X is mdata["rna"].X
    for column in ("gene", "line", "gem", "split"):
        assert found.obs[column].tolist() == adata.obs[column].tolist()
    assert as_anndata(adata, ScreenKeys.of(adata)) is adata
