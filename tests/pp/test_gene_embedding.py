"""Does pp.gene_embedding write one unit vector for every perturbed gene, and nothing silently less?"""

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from ptrag_sc.pp import gene_embedding
from ptrag_sc.retrieval._gene_embeddings import GeneEmbedding

LABELS = ["ctrl", "STAT1", "JAK2+STAT1", "STAT1", "ctrl", "TP53", "STAT1+JAK2"]
TABLE = pd.DataFrame(np.random.default_rng(0).normal(size=(5, 4)), index=["AARS", "JAK2", "MYC", "STAT1", "TP53"])
KEYS = {"perturbation_key": "gene", "control": "ctrl"}


def screen(labels=LABELS):
    obs = pd.DataFrame({"gene": labels}, index=[f"c{i}" for i in range(len(labels))])
    return ad.AnnData(np.ones((len(labels), 2), np.float32), obs=obs)


def unit(gene):
    row = TABLE.loc[gene].to_numpy()
    return row / np.sqrt((row**2).sum())


def test_writes_the_components_of_all_labels():
    adata = screen()
    assert gene_embedding(adata, TABLE, **KEYS) is None
    written = adata.uns["gene_embedding"]
    assert set(written) == {"genes", "vectors", "source", "excluded"}
    assert written["genes"].tolist() == ["JAK2", "STAT1", "TP53"]
    np.testing.assert_allclose(written["vectors"], [unit("JAK2"), unit("STAT1"), unit("TP53")], rtol=1e-6)
    assert written["vectors"].dtype == np.float32
    assert written["source"] == "DataFrame"
    assert written["excluded"].tolist() == []


def test_categorical_labels_without_cells_are_not_wanted():
    adata = screen()
    adata.obs["gene"] = pd.Categorical(adata.obs["gene"], categories=[*sorted(set(LABELS)), "NOT_IN_TABLE"])
    gene_embedding(adata, TABLE, **KEYS)
    assert adata.uns["gene_embedding"]["genes"].tolist() == ["JAK2", "STAT1", "TP53"]


def test_further_genes_serve_virtual_perturbations():
    adata = screen(["ctrl", "ctrl"])
    gene_embedding(adata, TABLE, genes=["MYC", "AARS+TP53"], **KEYS)
    assert adata.uns["gene_embedding"]["genes"].tolist() == ["AARS", "MYC", "TP53"]
    gene_embedding(adata, TABLE, genes="MYC", **KEYS)
    assert adata.uns["gene_embedding"]["genes"].tolist() == ["MYC"]


def test_control_only_without_genes_says_what_to_pass():
    with pytest.raises(ValueError, match=r"control only\. Pass genes="):
        gene_embedding(screen(["ctrl", "ctrl"]), TABLE, **KEYS)


def test_the_source_can_be_named():
    adata = screen()
    gene_embedding(adata, TABLE, source_name="my vectors", **KEYS)
    named = adata.uns["gene_embedding"]
    assert named["source"] == "my vectors"
    gene_embedding(adata, TABLE, **KEYS)
    assert adata.uns["gene_embedding"]["source"] == "DataFrame"
    np.testing.assert_array_equal(adata.uns["gene_embedding"]["vectors"], named["vectors"])
    with pytest.raises(ValueError, match=r"source_name=' ' in pp.gene_embedding is no name"):
        gene_embedding(adata, TABLE, source_name=" ", **KEYS)


def test_aliases_translate_and_the_label_stays():
    adata = screen(["ctrl", "p53", "p53+STAT1", "TRP53"])
    gene_embedding(adata, TABLE, aliases={"p53": "TP53", "TRP53": "TP53", "unused": "?"}, **KEYS)
    written = adata.uns["gene_embedding"]
    assert written["genes"].tolist() == ["STAT1", "TRP53", "p53"]
    np.testing.assert_allclose(written["vectors"], [unit("STAT1"), unit("TP53"), unit("TP53")], rtol=1e-6)


def test_an_alias_goes_before_the_symbol_itself():
    adata = screen(["ctrl", "MYC"])
    gene_embedding(adata, TABLE, aliases={"MYC": "AARS"}, **KEYS)
    np.testing.assert_allclose(adata.uns["gene_embedding"]["vectors"], [unit("AARS")], rtol=1e-6)


def test_a_symbol_may_contain_the_separator():
    adata = screen(["ctrl", "HLAA-STAT1"])
    table = pd.concat([TABLE, pd.DataFrame([[1.0, 0, 0, 0]], index=["HLA-A"])])
    gene_embedding(adata, table, sep="-", aliases={"HLAA": "HLA-A"}, **KEYS)
    np.testing.assert_allclose(adata.uns["gene_embedding"]["vectors"], [[1, 0, 0, 0], unit("STAT1")], rtol=1e-6)


def test_missing_genes_are_an_error_that_names_them():
    adata = screen(["ctrl", "STAT11", "TP53+XQ"])
    with pytest.raises(KeyError, match=r"2 genes are not in .*'STAT11', 'XQ' \(closest: 'STAT11': 'STAT1'\)"):
        gene_embedding(adata, TABLE, **KEYS)
    assert not adata.uns


def test_missing_genes_are_left_out_on_request_with_counts(caplog):
    adata = screen(["ctrl", "STAT1", "XQ", "XQ", "TP53+XQ", "YQ", "TP53"])
    with caplog.at_level(logging.WARNING, logger="ptrag_sc"):
        gene_embedding(adata, TABLE, missing="drop", **KEYS)
    written = adata.uns["gene_embedding"]
    assert written["genes"].tolist() == ["STAT1", "TP53"]
    assert written["excluded"].tolist() == ["XQ", "YQ"]
    assert adata.n_obs == 7
    (record,) = caplog.records
    message = record.getMessage()
    assert "2 genes have no vector in 'DataFrame' and are excluded: 'XQ', 'YQ'" in message
    assert "3 perturbations and 4 cells" in message


def test_an_unknown_choice_of_missing_is_refused():
    with pytest.raises(ValueError, match="'ignore' does not occur"):
        gene_embedding(screen(), TABLE, missing="ignore", **KEYS)


def test_everything_missing_is_an_error_even_on_request():
    with pytest.raises(KeyError, match="XQ"):
        gene_embedding(screen(["ctrl", "XQ"]), TABLE, missing="drop", **KEYS)


def test_an_existing_key_is_replaced_and_others_stay():
    adata = screen()
    gene_embedding(adata, TABLE, key_added="mine", **KEYS)
    gene_embedding(adata, TABLE * 3, genes=["MYC"], **KEYS)
    gene_embedding(adata, TABLE, **KEYS)
    assert adata.uns["gene_embedding"]["genes"].tolist() == adata.uns["mine"]["genes"].tolist()


@pytest.mark.parametrize(
    ("change", "error", "problem"),
    [
        ({"perturbation_key": "pert"}, KeyError, r"'pert' does not occur in adata\.obs"),
        ({"control": "nt"}, ValueError, "Control label 'nt' does not occur"),
    ],
)
def test_wrong_keys_are_named(change, error, problem):
    with pytest.raises(error, match=problem):
        gene_embedding(screen(), TABLE, **(KEYS | change))


@pytest.mark.parametrize("labels", [["ctrl", np.nan, "STAT1"], ["ctrl", "STAT1+STAT1"], ["ctrl", "STAT1+"]])
def test_bad_labels_are_refused(labels):
    with pytest.raises(ValueError, match=r"NaN|twice|empty component"):
        gene_embedding(screen(labels), TABLE, **KEYS)


@pytest.mark.filterwarnings("ignore")  # zarr and anndata announce format changes
@pytest.mark.parametrize("missing", [(), ("XQ",)])
def test_survives_h5ad_and_zarr(tmp_path, missing):
    adata = screen([*LABELS, *missing])
    gene_embedding(adata, TABLE, missing="drop", **KEYS)
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")
    for again in (ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
        table = GeneEmbedding.from_uns(again.uns["gene_embedding"], "gene_embedding")
        assert table.genes.tolist() == ["JAK2", "STAT1", "TP53"]
        assert table.excluded == missing
        np.testing.assert_array_equal(table.vectors, adata.uns["gene_embedding"]["vectors"])


def test_a_real_screen_with_a_real_table(test_data):
    data = test_data / "data"
    adata = ad.read_h5ad(data / "tapseq_k562_72genes.h5ad", backed="r")
    keys = {"perturbation_key": "perturbation", "control": "non-targeting"}
    source = data / "gene_emb_minilm_l6_v2_384.npz"
    with pytest.raises(KeyError, match="enh:"):
        gene_embedding(adata, source, **keys)
    gene_embedding(adata, source, missing="drop", **keys)
    written = adata.uns["gene_embedding"]
    labels = set(adata.obs["perturbation"].astype(str)) - {"non-targeting"}
    assert set(written["genes"]) | set(written["excluded"]) == labels
    assert len(written["genes"]) == 10
    assert all(gene.startswith("enh:") for gene in written["excluded"])
    with np.load(source) as arrays:
        rows = dict(zip(arrays["genes"].tolist(), arrays["emb"], strict=True))
    for gene, vector in zip(written["genes"], written["vectors"], strict=True):
        np.testing.assert_allclose(vector, rows[gene], atol=1e-6)
