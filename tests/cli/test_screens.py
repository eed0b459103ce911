"""Does a file of counts become the right screen, whatever its format and wherever its counts are?"""

from argparse import Namespace

import anndata
import mudata
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from numpy.testing import assert_allclose, assert_array_equal

import ptrag_sc
from command_line import count_screen
from ptrag_sc._cli._parser import make_parser
from ptrag_sc._cli._preparation import DRAWN, LEFT_OUT, prepare
from ptrag_sc._cli._screens import in_columns_of, on_scale, read_file
from ptrag_sc.data import ScreenKeys


def scaled(path, **given):
    options = Namespace(**{"normalize": False, "size_factors": None, "counts_layer": None, "layer": None, **given})
    return on_scale(read_file(path), options, path)


def dense(matrix):
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


@pytest.mark.parametrize("matrix", [sp.csr_matrix, sp.csc_matrix, np.asarray, lambda x: np.asarray(x).astype(int)])
@pytest.mark.parametrize("factors", [None, "depth", "relative"])
def test_counts_are_normalised_and_kept(tmp_path, matrix, factors):
    adata = count_screen(n_cells=120)
    counts = adata.X.toarray()
    sums = counts.sum(1)
    adata.obs["relative"] = sums / np.median(sums) * np.random.default_rng(0).uniform(0.8, 1.2, adata.n_obs)
    adata.obs["depth"] = sums * 3
    adata.X = matrix(counts)
    adata.write_h5ad(tmp_path / "screen.h5ad")
    made, layer = scaled(tmp_path / "screen.h5ad", normalize=factors is None, size_factors=factors)
    total = {None: sums, "depth": sums * 3}.get(factors)
    if factors == "relative":
        total = adata.obs["relative"].to_numpy() * np.median(sums / adata.obs["relative"])
    assert_allclose(dense(made.X), np.log1p(1e4 * counts / total[:, None]), rtol=1e-5)
    assert made.X.dtype == np.float32
    assert layer == "counts"
    assert_array_equal(dense(made.layers["counts"]), counts)


def test_counts_in_a_layer_replace_x_and_stay_where_they_are(tmp_path):
    adata = count_screen(n_cells=120)
    counts = adata.X.toarray()
    adata.layers["raw"], adata.X = adata.X.copy(), adata.X * 0
    adata.write_h5ad(tmp_path / "screen.h5ad")
    made, layer = scaled(tmp_path / "screen.h5ad", normalize=True, counts_layer="raw")
    assert layer == "raw"
    assert "counts" not in made.layers
    assert_allclose(dense(made.X), np.log1p(1e4 * counts / counts.sum(1, keepdims=True)), rtol=1e-5)
    kept, layer = scaled(tmp_path / "screen.h5ad", counts_layer="raw")  # not normalised: handed to set-up as it is
    assert layer == "raw"
    assert not dense(kept.X).any()


def test_a_layer_of_the_user_is_not_overwritten(tmp_path):
    adata = count_screen(n_cells=120)
    adata.layers["counts"] = adata.X * 2
    adata.write_h5ad(tmp_path / "screen.h5ad")
    with pytest.raises(ValueError, match=r"layers\['counts'\] exists too. Pass --counts-layer counts if"):
        scaled(tmp_path / "screen.h5ad", normalize=True)


@pytest.fixture(scope="module")
def formats(tmp_path_factory):
    """The same screen in every format; the columns of one MuData are in the modality, of the other in all."""
    folder = tmp_path_factory.mktemp("formats")
    adata = count_screen(n_cells=120)
    adata.write_h5ad(folder / "screen.h5ad")
    adata.write_zarr(folder / "screen.zarr")
    protein = AnnData(np.ones((adata.n_obs, 2), dtype=np.float32), obs=adata.obs[[]].copy())
    protein.var_names = ["CD4", "CD8"]
    mudata.MuData({"rna": adata.copy(), "protein": protein}).write_h5mu(folder / "within.h5mu")
    bare = AnnData(adata.X.copy(), obs=adata.obs[[]].copy(), var=adata.var)
    both = mudata.MuData({"rna": bare, "protein": protein})
    both.uns["gene_embedding"] = adata.uns["gene_embedding"]
    for column in ("perturbation", "cell_type", "batch"):
        both.obs[column] = adata.obs[column].reindex(both.obs_names)
    both.write_h5mu(folder / "above.h5mu")
    both.write_zarr(folder / "above.zarr")
    return folder, adata


@pytest.mark.parametrize("name", ["screen.zarr", "within.h5mu", "above.h5mu", "above.zarr"])
def test_every_format_is_the_same_screen(formats, name):
    folder, adata = formats
    read = read_file(folder / name)
    assert_array_equal(dense(read.X), adata.X.toarray())
    for column in ("perturbation", "cell_type", "batch"):
        assert list(read.obs[column].astype(str)) == list(adata.obs[column].astype(str))
    assert_array_equal(read.uns["gene_embedding"]["vectors"], adata.uns["gene_embedding"]["vectors"])
    with_names = Namespace(perturbation_key="perturbation", cell_type_key=None, batch_key=None, control=None, flags={})
    keys = ScreenKeys(perturbation_key="perturbation", control="non-targeting", cell_type_key="cell_type")
    assert in_columns_of(read, keys, with_names, folder / name) is read


def test_a_modality_is_named_where_it_is_not_clear(formats):
    folder, adata = formats
    assert read_file(folder / "within.h5mu", modality="protein").n_vars == 2
    with pytest.raises(KeyError, match="Modality 'atac' does not occur"):
        read_file(folder / "within.h5mu", modality="atac")
    other = mudata.MuData({"one": adata[:, :3].copy(), "two": adata[:, 3:5].copy()})
    other.write_h5mu(folder / "unclear.h5mu")
    with pytest.raises(ValueError, match=r"several modalities.*Pass --modality NAME"):
        read_file(folder / "unclear.h5mu")


def query(**given):
    flags = {name: f"--{name.replace('_', '-')}" for name in ("perturbation_key", "cell_type_key", "batch_key")}
    names = {"perturbation_key": None, "cell_type_key": None, "batch_key": None, "control": None}
    return Namespace(**{**names, **given}, flags=flags)


def test_a_query_takes_the_names_of_the_model(tmp_path):
    keys = ScreenKeys(perturbation_key="gene", control="ctrl", cell_type_key="line", batch_key="gem")
    adata = count_screen(n_cells=120)
    own = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "batch_key": "batch"}
    made = in_columns_of(adata.copy(), keys, query(**own, control="non-targeting"), tmp_path)
    assert set(made.obs[["gene", "line", "gem"]]) == {"gene", "line", "gem"}
    is_control = adata.obs["perturbation"] == "non-targeting"
    assert_array_equal(made.obs["gene"] == "ctrl", is_control)
    assert_array_equal(made.obs["gene"][~is_control].astype(str), adata.obs["perturbation"][~is_control].astype(str))
    with pytest.raises(KeyError, match=r"Column 'donor' does not occur.*Correct --cell-type-key"):
        in_columns_of(adata.copy(), keys, query(cell_type_key="donor"), tmp_path)
    taken = adata.copy()
    taken.obs["line"] = "other"
    with pytest.raises(ValueError, match=r"exists beside 'cell_type'.*Rename it, or leave --cell-type-key out"):
        in_columns_of(taken, keys, query(**own), tmp_path)
    with pytest.raises(ValueError, match="Control label 'nt' does not occur"):
        in_columns_of(adata.copy(), keys, query(**own, control="nt"), tmp_path)


def options(path, *arguments):
    return make_parser().parse_args(["train", str(path), "--out", "model", *map(str, arguments)])


def test_pairs_of_one_cell_type_and_chosen_holdouts(screen_file):
    def held_out(*arguments):
        adata = prepare(options(screen_file, "--normalize", *arguments), screen_file).adata
        rows = adata.obs[adata.obs[DRAWN] == "test"].drop_duplicates(["perturbation", "cell_type"])
        return adata.obs, rows[["perturbation", "cell_type"]].astype(str)

    _, pairs = held_out("--test-cell-type", "type_1", "--test-fraction", "0.5")
    assert set(pairs["cell_type"]) == {"type_1"}
    assert len(pairs) == 6  # of 12 perturbations, two of them combinations
    _, whole = held_out("--holdout", "cell_type", "--test-cell-type", "type_1")
    assert set(whole["cell_type"]) == {"type_1"}
    assert len(whole) == 12
    obs, genes = held_out("--holdout", "perturbation")
    trained = {g for name in obs.loc[obs[DRAWN] == "train", "perturbation"].astype(str) for g in name.split("+")}
    assert not {name for name in genes["perturbation"] if "+" not in name} & trained


def test_genes_are_chosen_without_test_cells_whether_counts_are_read_piecewise_or_not(tmp_path):
    def prepared(name, adata, *arguments):
        adata.write_h5ad(tmp_path / name)
        return prepare(options(tmp_path / name, "--normalize", "--n-genes", "80", *arguments), tmp_path / name).adata

    adata = count_screen(n_genes=200)
    piecewise = prepared("screen.h5ad", adata)
    adata.layers["raw"] = adata.X.copy()
    at_once = prepared("layer.h5ad", adata, "--counts-layer", "raw")
    assert piecewise.shape == at_once.shape == (adata.n_obs, 80)
    both = [gene for gene in piecewise.var_names if gene in set(at_once.var_names)]
    assert len(both) > 72  # rounding decides between genes of the same score
    # Both are normalised by the row sums over all genes.
    assert_allclose(dense(piecewise[:, both].X), dense(at_once[:, both].X), rtol=1e-5)
    held = adata.obs_names.isin(piecewise.obs_names[piecewise.obs[DRAWN] == "test"])
    del adata.layers["raw"]
    for changed, same in ((held, True), (~held, False)):
        noise = np.outer(changed, np.arange(1, adata.n_vars + 1))
        loud = adata.copy()
        loud.X = sp.csr_matrix(np.where(changed[:, None], noise, adata.X.toarray()).astype(np.float32))
        chosen = prepared("loud.h5ad", loud).var_names
        assert (list(chosen) == list(piecewise.var_names)) == same


def test_genes_without_vectors_are_neither_held_out_nor_trained_on(screen_file, tmp_path):
    adata = anndata.read_h5ad(screen_file)
    table = adata.uns["gene_embedding"]
    known = np.array([str(gene) for gene in table["genes"]][2:])
    np.savez(tmp_path / "table.npz", genes=known, vectors=table["vectors"][2:])
    for further in ([], ["--n-genes", "15"]):
        given = options(screen_file, "--normalize", "--gene-embedding", tmp_path / "table.npz", *further)
        prepared = prepare(given, screen_file)
        genes = {gene for name in set(prepared.adata.obs["perturbation"].astype(str)) for gene in name.split("+")}
        assert genes - {"non-targeting"} <= set(known)
        assert LEFT_OUT not in set(prepared.adata.obs[DRAWN])
        assert prepared.adata.n_obs < adata.n_obs


def test_vectors_of_measured_genes_are_kept_for_later_questions(screen_file):
    prepared = prepare(options(screen_file, "--normalize"), screen_file)
    assert set(prepared.vectors.genes) == set(map(str, anndata.read_h5ad(screen_file).uns["gene_embedding"]["genes"]))


def test_the_columns_of_replogle_nadig_are_understood(tmp_path):
    """The documented call, on a small file with the columns of the large one."""
    adata = count_screen(n_cells=300)
    adata.obs = adata.obs.rename(columns={"perturbation": "gene", "cell_type": "cell_line", "batch": "gem_group"})
    adata.obs["cell_line"] = adata.obs["cell_line"].astype(str).replace({"type_0": "hepg2", "type_1": "k562"})
    adata.write_h5ad(tmp_path / "replogle.h5ad")
    words = ptrag_sc._cli._parser.REPLOGLE.partition("ptrag-sc ")[2].replace("\\", " ").split()
    words[words.index("genept")] = "TABLE"
    words[words.index("replogle.h5ad")] = str(tmp_path / "replogle.h5ad")
    at = words.index("--gene-embedding")
    given = make_parser().parse_args([*words[:at], *words[at + 2 :]])
    made = prepare(given, given.screen).adata
    rows = made.obs[made.obs[DRAWN] == "test"].drop_duplicates(["gene", "cell_line"])
    assert set(rows["cell_line"]) == {"hepg2"}
    assert len(rows) == 4  # 36 % of 12
