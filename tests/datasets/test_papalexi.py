"""Is the screen in the package the published one, and does it show what is known of STAT1?"""

import importlib
import json
import re
from importlib import resources
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import ptrag_sc
from baselines.oracles import predicted_shift
from own_targets import slow_masked, slow_own_change
from ptrag_sc.baselines import MeanShift, NearestPerturbations
from ptrag_sc.datasets import papalexi

KEYS = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}
STRONGEST = {"STAT1", "PSMB9", "UBE2L6", "JAK2", "BTG1"}  # of the observed effect of STAT1, in this panel
STORED = resources.files("ptrag_sc.datasets") / "stored"


@pytest.fixture(scope="module")
def adata():
    """The screen; do not change it."""
    return papalexi()


@pytest.fixture(scope="module")
def published(test_data):
    return ad.read_h5ad(test_data / "data" / "papalexi_thp1_299genes.h5ad")


@pytest.fixture(scope="module")
def text_vectors(test_data):
    with np.load(test_data / "data" / "gene_emb_minilm_l6_v2_384.npz", allow_pickle=False) as table:
        return dict(zip(table["genes"].tolist(), table["emb"].astype(float), strict=True))


def per_batch_shifts(adata):
    """Mean over the cells of a perturbation of X minus mean of the controls of the same batch: {perturbation: (G,)}."""
    x, label, batch = adata.to_df(), adata.obs["perturbation"].astype(str), adata.obs["batch"].astype(str)
    control = x[label == "non-targeting"].groupby(batch[label == "non-targeting"]).mean()
    shifted = x - control.loc[batch].to_numpy()
    return shifted.groupby(label).mean().drop("non-targeting")


def learned_by_hand(adata):
    """What a baseline learns without STAT1: masked shifts of the others, and the change of STAT1 that is added."""
    genes, shifts = list(adata.var_names), per_batch_shifts(adata).drop("STAT1")
    train = {(name, "THP-1"): shift.to_numpy() for name, shift in shifts.iterrows()}
    masked = pd.DataFrame({name: shift for (name, _), shift in slow_masked(train, genes).items()}, index=genes).T
    controls = {"THP-1": adata[adata.obs["perturbation"] == "non-targeting"].to_df().mean().to_numpy()}
    return masked, slow_own_change("STAT1", "THP-1", train, controls, genes)


def strongest(shift, n):
    return shift.abs().nlargest(n).index.tolist()


def hold_out(adata, gene):
    """Return a copy, set up, in which one perturbation is not for training."""
    held = adata.copy()
    held.obs["split"] = np.where(held.obs["perturbation"] == gene, "test", "train")
    ptrag_sc.PTRAG.setup_anndata(held, **KEYS, batch_key="batch", split_key="split")
    return held


def test_what_is_in_the_package(adata):
    """Facts that need no other file, so that they are tested everywhere."""
    assert adata.shape == (18_826, 299)
    assert (adata.obs["perturbation"] == "non-targeting").sum() == 2_205
    assert adata.obs["batch"].value_counts().to_dict() == {"rep_1": 7_804, "rep_2": 5_839, "rep_3": 5_183}
    assert list(adata.obs) == ["perturbation", "cell_type", "batch", "total_umis"]
    for matrix in (adata.X, adata.layers["counts"]):
        assert (matrix.format, matrix.dtype, matrix.nnz) == ("csr", np.float32, 1_266_223)
    counts = adata.layers["counts"].data
    assert (counts.min(), counts.max()) == (1, 278)
    assert (counts == counts.round()).all()


def test_equals_the_published_screen(adata, published):
    assert (adata.layers["counts"] != published.X).nnz == 0
    assert list(adata.obs_names) == list(published.obs_names)
    assert list(adata.var_names) == list(published.var_names)
    pd.testing.assert_frame_equal(adata.obs, published.obs[list(adata.obs)])


def test_x_is_scaled_by_the_total_of_the_whole_cell(adata, published):
    total = published.obs["total_umis"].to_numpy(dtype=float)
    expected = np.log1p(published.X.toarray().astype(float) * (1e4 / total)[:, None])
    np.testing.assert_allclose(adata.X.toarray(), expected, rtol=1e-6)
    assert (adata.layers["counts"].sum(axis=1).A1 < total).all()  # more was counted than these genes


def test_vectors_are_those_of_the_sentence_model(adata, published, text_vectors):
    """Of all perturbed genes, and of the measured ones that have one."""
    table = adata.uns["gene_embedding"]
    perturbed = set(published.obs["perturbation"]) - {"non-targeting"}
    measured = set(published.var_names) & set(text_vectors)
    assert (len(perturbed), len(measured), len(perturbed & measured)) == (25, 73, 9)
    assert table["genes"].tolist() == sorted(perturbed | measured)
    assert "MiniLM-L6-v2" in table["source"]
    assert "GenePT" not in table["source"]
    vectors = table["vectors"].astype(float)
    exact = np.stack([text_vectors[gene] for gene in table["genes"]])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors @ vectors.T, exact @ exact.T, atol=1e-4)
    np.testing.assert_allclose((vectors * exact).sum(axis=1), 1, atol=1e-6)


def test_the_table_is_as_the_package_writes_it(adata):
    table = adata.uns["gene_embedding"]
    frame = pd.DataFrame(table["vectors"], index=table["genes"])
    other, names = adata.copy(), {key: KEYS[key] for key in ("perturbation_key", "control")}
    ptrag_sc.pp.gene_embedding(other, frame, **names, genes=table["genes"].tolist())
    written = other.uns["gene_embedding"]
    assert set(written) == set(table)
    for key in ("genes", "vectors", "excluded"):
        np.testing.assert_array_equal(written[key], table[key])
        assert np.asarray(written[key]).dtype == np.asarray(table[key]).dtype


def test_is_written_and_read(adata, tmp_path):
    adata.write_h5ad(tmp_path / "screen.h5ad")
    again = ad.read_h5ad(tmp_path / "screen.h5ad")
    assert (again.X != adata.X).nnz == 0
    np.testing.assert_array_equal(again.uns["gene_embedding"]["vectors"], adata.uns["gene_embedding"]["vectors"])


def test_two_calls_share_nothing(adata):
    one, two = papalexi(), papalexi()
    one.X.data[:] = 0
    one.layers["counts"].data[:] = 0
    one.uns["gene_embedding"]["vectors"][:] = 0
    one.obs["total_umis"] = 0
    assert (two.X != adata.X).nnz == 0
    assert (two.layers["counts"] != adata.layers["counts"]).nnz == 0
    np.testing.assert_array_equal(two.uns["gene_embedding"]["vectors"], adata.uns["gene_embedding"]["vectors"])
    pd.testing.assert_frame_equal(two.obs, adata.obs)


def test_the_script_makes_the_file(test_data, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    made = importlib.import_module("make_papalexi").arrays(test_data / "data")
    with np.load(STORED / "papalexi.npz", allow_pickle=False) as stored:
        assert set(stored) == set(made)
        for name, array in made.items():
            np.testing.assert_array_equal(stored[name], array)
            assert stored[name].dtype == array.dtype


def test_the_licences_name_the_text_of_every_gene(adata, test_data):
    texts = json.loads((test_data / "data" / "gene_text_perturbed.json").read_text(encoding="utf-8"))
    licences = (STORED / "LICENSES.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (RefSeq|NCBI and UniProt|name of the gene)\b.*\((\d+)\) \| (.*) \|$", licences, re.M)
    kinds = {"RefSeq": "RefSeq_summary", "NCBI and UniProt": "GenePT_v2", "name of the gene": "NCBI_gene_info"}
    listed = {kinds[kind]: re.sub(r" \(.*?\)", "", genes).split(", ") for kind, _, genes in rows}
    assert [int(n) for _, n, _ in rows] == [len(genes) for genes in listed.values()] == [45, 31, 13]
    assert sorted(gene for genes in listed.values() for gene in genes) == adata.uns["gene_embedding"]["genes"].tolist()
    for kind, genes in listed.items():
        assert all(texts[gene]["source"].startswith(kind) for gene in genes)
    assert {"MIT", "GSE153056", "all-MiniLM-L6-v2", "CC-BY"} <= set(re.findall(r"[\w-]+", licences))


def test_knock_out_of_stat1_lowers_its_targets(adata):
    """STAT1 drives the genes that interferon gamma induces, the immunoproteasome's PSMB9 and UBE2L6 among them."""
    shift = per_batch_shifts(adata).loc["STAT1"]
    assert strongest(shift, 3) == ["STAT1", "PSMB9", "UBE2L6"]
    assert shift["PSMB9"] < -1
    assert shift["UBE2L6"] < -1


def test_neighbours_know_the_targets_of_stat1(adata):
    """Held out, it is predicted from the 20 nearest texts; the slow version uses the same weights."""
    shifts = per_batch_shifts(adata)
    fitted = NearestPerturbations(hold_out(adata, "STAT1"), n_neighbors=20, temperature=0.2).fit()
    assert "STAT1" not in fitted.candidates_
    found = pd.Series(predicted_shift(fitted, "STAT1", "THP-1"), adata.var_names)
    table = adata.uns["gene_embedding"]
    vectors = pd.DataFrame(table["vectors"].astype(float), index=table["genes"])
    cosine = (vectors.loc[shifts.index] @ vectors.loc["STAT1"]).drop("STAT1").nlargest(20)
    assert cosine.index[:3].tolist() == ["STAT2", "STAT3", "STAT5A"]
    weight = np.exp(cosine / 0.2) / np.exp(cosine / 0.2).sum()
    masked, own = learned_by_hand(adata)
    np.testing.assert_allclose(found, weight @ masked.loc[cosine.index] + own, atol=1e-4)
    assert np.flatnonzero(own).tolist() == [adata.var_names.get_loc("STAT1")]
    assert set(strongest(found, 5)) == set(strongest(shifts.loc["STAT1"], 5)) == STRONGEST
    assert found[["PSMB9", "UBE2L6"]].max() < -0.1


def test_the_mean_of_the_others_knows_them_nearly_as_well(adata):
    """As the documentation says: in this screen texts add little to the mean shift."""
    held, shifts = hold_out(adata, "STAT1"), per_batch_shifts(adata)
    fitted = MeanShift(held), NearestPerturbations(held)
    mean, near = (pd.Series(predicted_shift(b.fit(), "STAT1", "THP-1"), adata.var_names) for b in fitted)
    masked, own = learned_by_hand(adata)
    np.testing.assert_allclose(mean, masked.mean() + own, atol=1e-4)
    assert strongest(mean - own, 3) == ["PSMB9", "STAT1", "UBE2L6"]
    by_mean, by_text = (shift.corr(shifts.loc["STAT1"]) for shift in (mean, near))
    assert 0.8 < by_mean < by_text < by_mean + 0.05
