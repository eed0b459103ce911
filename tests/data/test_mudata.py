"""Which table of cells and which matrix are read of a MuData? That every function follows is in test_gate.py."""

import anndata
import numpy as np
import pytest
from mudata import MuData

import ptrag_sc
from ptrag_sc.data import ScreenKeys
from ptrag_sc.data._mudata import as_anndata, require_anndata
from screens import KEYS, make_screen

MODALITIES = {"layer": "rna", "perturbation_key": "guides", "cell_type_key": "rna", "embedding_key": "guides"}


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


def test_what_a_function_reads_of_a_mudata():
    adata, mdata = split_screen(), make_mudata()
    modalities = {**MODALITIES, "batch_key": "rna"}
    ptrag_sc.PTRAG.setup_mudata(mdata, **KEYS, split_key="split", batch_key="gem", modalities=modalities)
    found = as_anndata(mdata, ScreenKeys.of(mdata))
    np.testing.assert_array_equal(found.X.toarray(), adata.X.toarray())
    for column in ("gene", "line", "gem", "split"):
        assert found.obs[column].tolist() == adata.obs[column].tolist()
    assert set(found.uns["gene_embedding"]["genes"]) == set(adata.uns["gene_embedding"]["genes"])
    assert as_anndata(adata, ScreenKeys.of(mdata)) is adata
