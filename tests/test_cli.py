"""Does ``ptrag-sc demo`` do the whole job, on a copy, and refuse what it cannot use before it works?"""

import copy
import hashlib
import io
import shutil
from contextlib import redirect_stderr, redirect_stdout
from functools import cache

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData
from scipy.stats import pearsonr

import ptrag_sc
from own_targets import slow_masked, slow_own_change
from ptrag_sc import _cli
from ptrag_sc.metrics import DEFAULT_METRICS

PICTURES = {"training.png", "effect.png", "embedding.png", "retrieval.png", "retrieval_matrix.png"}
METHODS = {"PTRAG", "NoEffect", "MeanShift", "NearestPerturbations"}
KEYS = {"perturbation_key": "perturbation", "control": "non-targeting", "sep": "+"}


@cache
def simulated(n_cell_types):
    return ptrag_sc.datasets.simulated(
        n_cells=500, n_genes=40, n_perturbations=10, n_cell_types=n_cell_types, n_combinations=2
    )


def count_screen(*, n_cell_types=2):
    """Return counts of a simulated screen, its gene embedding in uns."""
    made = simulated(n_cell_types)
    adata = AnnData(made.layers["counts"].copy(), obs=made.obs.copy(), var=made.var.copy())
    adata.uns["gene_embedding"] = copy.deepcopy(made.uns["gene_embedding"])
    adata.obs["depth"] = np.random.default_rng(0).uniform(500, 5000, adata.n_obs)
    return adata


def run(*arguments):
    """Return exit status, standard output and standard error of the command line."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = _cli.main(["demo", "--no-progress", "--max-epochs", "2", *map(str, arguments)])
    plt.close("all")
    return status, out.getvalue(), err.getvalue()


def hashes(*paths):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def options(*arguments):
    return _cli._parser().parse_args(["demo", *map(str, arguments)])


@pytest.fixture(scope="module")
def screen_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("screen") / "screen.h5ad"
    count_screen().write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def finished(screen_file, tmp_path_factory):
    """One run on counts: (folder, standard output, hash of the input before)."""
    folder, before = tmp_path_factory.mktemp("run") / "made", hashes(screen_file)
    status, out, err = run("--adata", screen_file, "--batch-key", "batch", "--out", folder)
    assert status == 0, err
    return folder, out, before


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working directory: nothing may be written into it."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    yield
    assert not list((tmp_path / "cwd").iterdir())


def test_every_result_is_written_and_the_input_is_not_changed(finished, screen_file):
    folder, _, before = finished
    assert {path.name for path in folder.iterdir()} == {"predicted.h5ad", "scores.csv", *PICTURES}
    for name in PICTURES:
        picture = plt.imread(folder / name)
        assert picture.std() > 0.01
    assert hashes(screen_file) == before


def test_the_written_screen_holds_counts_normalised_values_and_predictions(finished, screen_file):
    back, counts = anndata.read_h5ad(finished[0] / "predicted.h5ad"), anndata.read_h5ad(screen_file).X.toarray()
    np.testing.assert_array_equal(back.layers["counts"].toarray(), counts)
    expected = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    np.testing.assert_allclose(back.X.toarray(), expected, rtol=1e-5)
    assert back.obs["ptrag_predicted"].all()
    molecules = back.obsm["ptrag_counts"].toarray()
    assert (molecules == np.rint(molecules)).all()
    assert ((back.obsm["ptrag"].toarray() > 0) == (molecules > 0)).all()
    assert set(back.uns["ptrag"]) >= {"params", "retrieval", "effect"}
    assert set(back.obs["split"]) == {"train", "val", "test"}


def test_scores_cover_the_held_out_conditions_of_every_method(finished):
    folder, out, _ = finished
    scores, back = pd.read_csv(folder / "scores.csv"), anndata.read_h5ad(folder / "predicted.h5ad")
    assert np.isfinite(scores["value"]).all()
    held_out = back.obs.loc[back.obs["split"] == "test", ["perturbation", "cell_type"]].drop_duplicates()
    conditions = set(held_out.astype(str).itertuples(index=False, name=None))
    assert len(conditions) > 2
    for (_, _), part in scores.groupby(["method", "metric"]):
        assert sorted(zip(part["perturbation"], part["cell_type"], strict=True)) == sorted(conditions)
    assert set(scores["method"]) == METHODS
    assert set(scores["metric"]) == set(DEFAULT_METRICS)
    for word in (*METHODS, *DEFAULT_METRICS, "type_0", "type_1"):
        assert word in out
    shown = scores.query("method == 'MeanShift' and metric == 'pearson_delta' and cell_type == 'type_0'")[
        "value"
    ].mean()
    assert f"{shown:.3f}" in out


def test_scores_of_the_mean_shift_are_those_of_a_slow_one(finished):
    """From the written file alone: batch-matched shifts of training conditions against those of test conditions."""
    folder = finished[0]
    scores, back = pd.read_csv(folder / "scores.csv"), anndata.read_h5ad(folder / "predicted.h5ad")
    x, obs = back.X.toarray().astype(float), back.obs.astype(str)

    def shift(perturbation, cell_type):
        chosen = np.flatnonzero((obs["perturbation"] == perturbation) & (obs["cell_type"] == cell_type))
        control = (obs["perturbation"] == "non-targeting") & (obs["cell_type"] == cell_type)
        matched = [x[control & (obs["batch"] == b)].mean(0) for b in obs["batch"].iloc[chosen]]
        return (x[chosen] - matched).mean(0)

    names = obs[obs["perturbation"] != "non-targeting"].drop_duplicates(["perturbation", "cell_type", "split"])
    own = scores[scores["method"] == "MeanShift"]
    genes = list(back.var_names)
    is_control = (obs["perturbation"] == "non-targeting").to_numpy()
    controls = {t: x[is_control & (obs["cell_type"] == t).to_numpy()].mean(0) for t in names["cell_type"].unique()}
    train = {
        (p, t): shift(p, t) for p, t, s in names[["perturbation", "cell_type", "split"]].to_numpy() if s == "train"
    }
    masked = slow_masked(train, genes)
    n_own = 0
    for cell_type, part in names.groupby("cell_type"):
        mean = np.mean([s for (_, t), s in masked.items() if t == cell_type], axis=0)
        for perturbation in part.loc[part["split"] == "test", "perturbation"]:
            rows = own[(own["perturbation"] == perturbation) & (own["cell_type"] == cell_type)]
            found = rows.set_index("metric")["value"]
            change = slow_own_change(perturbation, cell_type, train, controls, genes)
            expected = pearsonr(mean + change, shift(perturbation, cell_type)).statistic
            assert found["pearson_delta"] == pytest.approx(expected, abs=1e-4)
            n_own += np.count_nonzero(change)
    assert n_own > 0


def test_existing_results_are_refused_and_left_untouched(finished, screen_file):
    folder = finished[0]
    before = hashes(*folder.iterdir())
    status, _, err = run("--adata", screen_file, "--out", folder)
    assert status == 1
    assert "exists. Pass --overwrite or another --out." in err
    assert hashes(*folder.iterdir()) == before


def test_one_existing_picture_is_enough_to_refuse(screen_file, tmp_path):
    (tmp_path / "effect.png").write_bytes(b"mine")
    status, _, err = run("--adata", screen_file, "--out", tmp_path)
    assert status == 1
    assert "'effect.png'" in err
    assert (tmp_path / "effect.png").read_bytes() == b"mine"


def test_overwrite_replaces_results_and_no_retrieval_leaves_no_picture_of_it(
    finished, screen_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(_cli, "fitted_baselines", lambda adata: {})  # their scores would take most of the time
    folder = shutil.copytree(finished[0], tmp_path / "made")
    before = hashes(*folder.iterdir())
    status, _, err = run("--adata", screen_file, "--out", folder, "--overwrite", "--retrieval", "none", "--seed", "1")
    assert status == 0, err
    after = hashes(*folder.iterdir())
    assert set(after) == {"predicted.h5ad", "scores.csv", "training.png", "effect.png", "embedding.png"}
    assert not [name for name in after if after[name] == before[name]]


@pytest.mark.slow  # the whole demo once more
def test_a_run_can_be_repeated(finished, screen_file, tmp_path):
    status, _, err = run("--adata", screen_file, "--batch-key", "batch", "--out", tmp_path / "again")
    assert status == 0, err
    first, second = (pd.read_csv(folder / "scores.csv") for folder in (finished[0], tmp_path / "again"))
    pd.testing.assert_frame_equal(first, second)


@pytest.mark.slow
def test_one_cell_type_holds_out_genes_and_too_large_k_is_clipped(tmp_path, caplog):
    """Genes without embedding do not count as candidates; those that are left decide K."""
    caplog.set_level("INFO")
    adata, path = count_screen(n_cell_types=1), tmp_path / "screen.h5ad"
    table = adata.uns.pop("gene_embedding")
    known = table["genes"][2:]
    np.savez(tmp_path / "table.npz", genes=np.array(known, dtype=str), vectors=table["vectors"][2:])
    adata.write_h5ad(path)
    status, _, err = run("--adata", path, "--gene-embedding", tmp_path / "table.npz", "--out", tmp_path / "made")
    assert status == 0, err
    back = anndata.read_h5ad(tmp_path / "made" / "predicted.h5ad")
    labels = back.obs[["perturbation", "split"]].astype(str).drop_duplicates().set_index("perturbation")["split"]
    genes = {g for name in labels.index[labels == "train"] for g in name.split("+")}
    held_out = {g for g, split in labels.items() if split == "test" and "+" not in g}
    assert held_out
    assert not held_out & genes
    candidates = [n for n, split in labels.items() if split == "train" and set(n.split("+")) <= set(known)]
    assert list(back.uns["ptrag"]["candidates"]) == sorted(candidates)
    assert f"{len(candidates) - 1} candidates in place of 32: there are no more." in caplog.text
    assert "Held out by perturbation" in caplog.text
    assert "2 genes have no vector" in caplog.text
    assert back.uns["ptrag"]["retrieval"].groupby("perturbation").size().max() <= len(candidates) - 1
    assert set(pd.read_csv(tmp_path / "made" / "scores.csv")["perturbation"]) <= {
        name for name, split in labels.items() if split == "test" and set(name.split("+")) <= set(known)
    }


@pytest.mark.parametrize("matrix", [sp.csr_matrix, np.asarray, lambda x: np.asarray(x).astype(int)])
def test_size_factors_normalise(tmp_path, matrix, caplog):
    caplog.set_level("INFO")
    adata = count_screen()
    counts = adata.X.toarray()
    adata.X = matrix(counts)
    adata.write_h5ad(tmp_path / "screen.h5ad")
    before = hashes(tmp_path / "screen.h5ad")
    read = _cli.read_counts(options("--adata", tmp_path / "screen.h5ad", "--size-factors", "depth"))
    expected = np.log1p(1e4 * counts / adata.obs["depth"].to_numpy()[:, None])
    np.testing.assert_allclose(read.X.toarray(), expected, rtol=1e-5)
    layer = read.layers["counts"]
    np.testing.assert_array_equal(layer.toarray() if sp.issparse(layer) else layer, counts)
    assert read.X.dtype == np.float32
    assert "obs['depth']" in caplog.text
    assert hashes(tmp_path / "screen.h5ad") == before


@pytest.mark.parametrize("matrix", [sp.csr_matrix, sp.csc_matrix, np.asarray])
def test_row_sums_normalise_by_default(tmp_path, matrix, caplog):
    caplog.set_level("INFO")
    adata = count_screen()
    counts = adata.X.toarray()
    adata.X = matrix(counts)
    adata.write_h5ad(tmp_path / "screen.h5ad")
    read = _cli.read_counts(options("--adata", tmp_path / "screen.h5ad"))
    found = read.X.toarray() if sp.issparse(read.X) else read.X
    np.testing.assert_allclose(found, np.log1p(1e4 * counts / counts.sum(1, keepdims=True)), rtol=1e-5)
    assert "counts per 10,000 of each cell's row sum" in caplog.text


def test_log_normalised_values_are_taken_as_they_are(tmp_path, caplog):
    caplog.set_level("INFO")
    adata = count_screen()
    sc.pp.normalize_total(adata, target_sum=1e3)
    sc.pp.log1p(adata)
    adata.write_h5ad(tmp_path / "screen.h5ad")
    read = _cli.read_counts(options("--adata", tmp_path / "screen.h5ad"))
    np.testing.assert_array_equal(read.X.toarray(), adata.X.toarray())
    assert "counts" not in read.layers
    assert "X does not hold counts" in caplog.text
    with pytest.raises(ValueError, match="does not hold counts"):
        _cli.read_counts(options("--adata", tmp_path / "screen.h5ad", "--size-factors", "depth"))


def many_genes(seed=0):
    """Return log values of 120 cells x 5,001 genes, a third of them test cells; few genes vary."""
    rng = np.random.default_rng(seed)
    x = rng.gamma(2, 0.5, size=(120, _cli.MAX_GENES + 1)).astype(np.float32)
    x[:, :2500] *= rng.gamma(1, size=(120, 2500))
    split = np.repeat(["train", "val", "test"], 40)
    label = np.tile(["non-targeting", "A", "B", "C"], 30)
    return AnnData(x, obs=pd.DataFrame({"perturbation": label, "split": split}, index=[f"c{i}" for i in range(120)]))


def test_many_genes_are_reduced_to_variable_ones_of_training_cells_and_controls(caplog):
    caplog.set_level("INFO")
    adata = many_genes()
    kept = _cli.select_genes(adata, options())
    assert kept.shape == (120, 2000)
    assert "2000 of 5001 genes kept" in caplog.text
    seen = (adata.obs["split"] == "train") | (adata.obs["perturbation"] == "non-targeting")
    expected = sc.pp.highly_variable_genes(adata[seen.to_numpy()].copy(), n_top_genes=2000, inplace=False)
    assert list(kept.var_names) == list(adata.var_names[expected["highly_variable"].to_numpy()])
    hidden = np.flatnonzero(~seen)
    noisy, loud = many_genes(), many_genes()
    noisy.X[hidden, 2500:] += np.random.default_rng(1).gamma(1, 9, size=(len(hidden), 2501))
    loud.X[np.flatnonzero(seen)[::2], 2500:] += 9
    assert list(_cli.select_genes(noisy, options()).var_names) == list(kept.var_names)
    assert list(_cli.select_genes(loud, options()).var_names) != list(kept.var_names)


def test_few_genes_are_all_kept():
    adata = many_genes()[:, : _cli.MAX_GENES].copy()
    assert _cli.select_genes(adata, options()) is adata


def test_pairs_of_one_cell_type_and_chosen_holdouts():
    def held_out(*arguments):
        adata = count_screen()
        _cli.hold_out(adata, options(*arguments), KEYS)
        rows = adata.obs[adata.obs["split"] == "test"].drop_duplicates(["perturbation", "cell_type"])
        return adata.obs, rows[["perturbation", "cell_type"]].astype(str)

    _, pairs = held_out("--test-cell-type", "type_1", "--test-fraction", "0.5")
    assert set(pairs["cell_type"]) == {"type_1"}
    assert len(pairs) == 6  # of 12 perturbations, two of them combinations
    _, whole = held_out("--holdout", "cell_type", "--test-cell-type", "type_1")
    assert set(whole["cell_type"]) == {"type_1"}
    assert len(whole) == 12
    obs, genes = held_out("--holdout", "perturbation")
    trained = {g for name in obs.loc[obs["split"] == "train", "perturbation"].astype(str) for g in name.split("+")}
    assert not {name for name in genes["perturbation"] if "+" not in name} & trained


def without_embedding(adata):
    del adata.uns["gene_embedding"]


def without_controls(adata):
    bare = (adata.obs["perturbation"] == "non-targeting") & (adata.obs["cell_type"] == "type_1")
    adata._inplace_subset_obs(~bare.to_numpy())


def with_nan(adata):
    adata.X = np.log1p(adata.X.toarray())
    adata.X[0, 0] = np.nan


def zero_depth(adata):
    adata.obs.iloc[3, adata.obs.columns.get_loc("depth")] = 0


def no_x(adata):
    adata.X = None


def strange_embedding(adata):
    adata.uns["gene_embedding"] = {"a": np.ones(3)}


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (None, ["--control", "ctrl"], "Control label 'ctrl' does not occur in adata.obs['perturbation'] (found: "),
        (None, ["--perturbation-key", "gene"], "Column 'gene' does not occur in adata.obs (found: "),
        (None, ["--cell-type-key", "tissue"], "Column 'tissue' does not occur"),
        (None, ["--batch-key", "gem"], "Column 'gem' does not occur"),
        (None, ["--size-factors", "umis"], "Column 'umis' does not occur in adata.obs"),
        (zero_depth, ["--size-factors", "depth"], "are not all positive. Correct --size-factors."),
        (None, ["--test-fraction", "0"], "holds out no test condition"),
        (None, ["--test-fraction", "1.5"], "leave no training conditions"),
        (None, ["--test-cell-type", "type_9"], "Cell type 'type_9' does not occur"),
        (None, ["--n-candidates", "0"], "n_candidates=0 in the constructor"),
        (None, ["--gene-embedding", "nowhere.npz"], "nowhere.npz"),
        (without_embedding, [], "Pass --gene-embedding FILE (or genept)."),
        (strange_embedding, [], "is a dict, not a table of genes, vectors and source"),
        (without_controls, [], "Cell type 'type_1' in this object has no control cells."),
        (with_nan, [], "NaN"),
        (no_x, [], "is missing. Put the counts into X."),
    ],
)
def test_unusable_input_ends_with_a_message_and_no_results(tmp_path, change, arguments, message):
    adata = count_screen()
    if change is not None:
        change(adata)
    adata.write_h5ad(tmp_path / "screen.h5ad")
    status, out, err = run("--adata", tmp_path / "screen.h5ad", "--out", tmp_path / "made", *arguments)
    assert status == 1
    assert "ptrag-sc: " in err
    assert message in err
    assert "Traceback" not in err
    assert "Held-out test conditions" not in out
    assert not list((tmp_path / "made").iterdir())


def test_a_missing_file(tmp_path):
    status, _, err = run("--adata", tmp_path / "nowhere.h5ad", "--out", tmp_path / "made")
    assert status == 1
    assert err.startswith("ptrag-sc: --adata in ")
    assert err.endswith("nowhere.h5ad was not found. Pass an existing h5ad file.\n")


def test_a_file_that_is_no_h5ad(tmp_path):
    (tmp_path / "screen.h5ad").write_text("not a screen")
    status, _, err = run("--adata", tmp_path / "screen.h5ad", "--out", tmp_path / "made")
    assert status == 1
    assert err.startswith("ptrag-sc: ")


@pytest.mark.parametrize("arguments", [[], ["demo", "--holdout", "gene"], ["demo", "--retrieval", "all"], ["train"]])
def test_wrong_arguments_are_refused_by_the_parser(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        _cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: ptrag-sc" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        _cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.strip() == ptrag_sc.__version__


@pytest.mark.slow
def test_the_simulated_screen_is_the_default(tmp_path):
    status, out, err = run("--out", tmp_path / "made")
    assert status == 0, err
    assert {path.name for path in (tmp_path / "made").iterdir()} == {"predicted.h5ad", "scores.csv", *PICTURES}
    scores = pd.read_csv(tmp_path / "made" / "scores.csv")
    assert np.isfinite(scores["value"]).all()
    assert set(scores["method"]) == METHODS
    assert "type_2" in out
    better = scores.pivot_table(index="method", columns="metric", values="value")["pearson_delta"]
    assert better["NearestPerturbations"] > better["MeanShift"] > better["NoEffect"] == 0
