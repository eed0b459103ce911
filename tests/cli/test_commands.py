"""Do the commands write what the functions return, and can their results be used by each other?"""

import hashlib
import json
from argparse import Namespace

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from pandas.testing import assert_frame_equal

import ptrag_sc
from command_line import run
from ptrag_sc._cli._decide import _signature
from ptrag_sc._cli._predict import requests
from ptrag_sc.datasets._log_normalised import log_normalised

PICTURES = ("training", "benchmark", "effect", "embedding", "retrieval", "retrieval_matrix", "support")
METHODS = {"PTRAG", "NearestPerturbations", "KernelRidge", "Stacked", "no effect", "mean shift"}
CONDITION = ["perturbation", "cell_type"]
FIRST = "GENE0002"


def hashes(*paths):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def normalised(path):
    """Return the screen as the commands see it with ``--normalize``."""
    adata = anndata.read_h5ad(path)
    adata.layers["counts"] = adata.X.copy()
    adata.X = log_normalised(adata.X.tocsr(), np.asarray(adata.X.sum(1)).ravel())
    return adata


def test_train_writes_model_scores_vectors_plots_and_settings(trained_model):
    folder, out = trained_model
    written = {"model.pt", "scores.csv", "gene_embedding.npz", "settings.json", *(f"{name}.png" for name in PICTURES)}
    assert {path.name for path in folder.iterdir()} == written
    for name in PICTURES:
        assert plt.imread(folder / f"{name}.png").std() > 0.01
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["command"] == "train"
    assert settings["version"] == ptrag_sc.__version__
    assert settings["arguments"]["val_fraction"] == 0.2
    assert "the counts are in layers['counts']" in out
    assert "Two halves of the same cells agree by" in out
    assert "The mean shift of all training perturbations has" in out


def test_train_scores_what_the_model_did_not_see(trained_model):
    folder, out = trained_model
    scores = pd.read_csv(folder / "scores.csv")
    split = ptrag_sc.PTRAG.load(folder, adata=False).split_
    held_out = set(split.loc[split["split"] == "test", CONDITION].itertuples(index=False, name=None))
    assert len(held_out) > 2
    assert METHODS < set(scores["method"])
    for _, part in scores.groupby(["method", "metric", "truth"]):
        assert set(part[CONDITION].itertuples(index=False, name=None)) == held_out
    shown = scores.query("method == 'mean shift' and metric == 'pearson_delta' and truth == 'half'")
    by_perturbation = shown.groupby("perturbation")["value"].mean()
    assert f"has {by_perturbation.mean():.2f}, so that is" in out


def test_existing_results_are_refused_and_left_untouched(trained_model, screen_file):
    folder = trained_model[0]
    before = hashes(*folder.iterdir())
    status, _, err = run("train", screen_file, "--normalize", "--out", folder)
    assert status == 1
    assert "exists. Pass --overwrite or another --out." in err
    assert hashes(*folder.iterdir()) == before


def test_one_existing_picture_is_enough_to_refuse(screen_file, tmp_path):
    (tmp_path / "effect.png").write_bytes(b"mine")
    status, _, err = run("train", screen_file, "--normalize", "--out", tmp_path)
    assert status == 1
    assert "'effect.png'" in err
    assert (tmp_path / "effect.png").read_bytes() == b"mine"


def test_predict_writes_cells_effects_and_support(virtual_file, trained_model, screen_file):
    path, out = virtual_file
    assert {file.name for file in path.parent.iterdir()} == {
        "virtual.h5ad",
        "virtual.h5ad.settings.json",
        "effects.csv",
        "support.csv",
    }
    virtual = anndata.read_h5ad(path)
    assert virtual.n_obs == 2 * 2 * 20
    assert (virtual.layers["counts"].data == np.rint(virtual.layers["counts"].data)).all()
    model = ptrag_sc.PTRAG.load(trained_model[0], adata=False)
    expected = ptrag_sc.tl.predict_effects(normalised(screen_file), model, [FIRST, "GENE0005"])
    effects = pd.read_csv(path.with_name("effects.csv"))
    both = effects.merge(expected.astype(dict.fromkeys((*CONDITION, "gene"), str)), on=[*CONDITION, "gene"])
    assert len(both) == len(effects) == len(expected)
    for column in ("shift", "lower", "upper", "agreement"):
        assert_allclose(both[f"{column}_x"], both[f"{column}_y"], atol=1e-5)
    for _, part in effects.groupby(CONDITION, sort=False):
        assert part["shift"].abs().is_monotonic_decreasing
    support = pd.read_csv(path.with_name("support.csv"))
    assert_frame_equal(support[CONDITION], virtual.uns["ptrag"]["support"][CONDITION].astype(str), check_dtype=False)
    assert f"{FIRST} in type_0:" in out
    assert "experiments" in out


def test_prepare_writes_a_store_on_the_scale_of_models(screen_file, tmp_path):
    path, again = tmp_path / "screen.zarr", tmp_path / "again.zarr"
    status, _, err = run("prepare", screen_file, "--out", path, "--normalize")
    assert status == 0, err
    expected, found = normalised(screen_file), anndata.read_zarr(path)
    assert_allclose(found.X.toarray(), expected[found.obs_names].X.toarray(), rtol=1e-5)
    assert found.obs["cell_type"].is_monotonic_increasing
    status, _, err = run("prepare", path, "--out", again, "--quiet")
    assert status == 0, err
    assert (anndata.read_zarr(again).X != found.X).nnz == 0
    assert json.loads((tmp_path / "screen.zarr.settings.json").read_text())["command"] == "prepare"
    status, _, err = run("prepare", screen_file, "--out", path)
    assert status == 1
    assert "exists. Pass --overwrite" in err


def test_a_query_with_other_names_gives_the_same_prediction(virtual_file, trained_model, screen_file, tmp_path):
    adata = normalised(screen_file)
    adata.obs = adata.obs.rename(columns={"perturbation": "guide", "cell_type": "line", "batch": "gem"})
    adata.obs["guide"] = adata.obs["guide"].astype(str).replace("non-targeting", "nt")
    adata.write_zarr(tmp_path / "query.zarr")
    names = "--perturbation-key", "guide", "--cell-type-key", "line", "--batch-key", "gem", "--control", "nt"
    asked = "--perturbations", f"{FIRST},GENE0005", "--n-cells", "20", "--out", tmp_path / "virtual.h5ad"
    status, _, err = run("predict", trained_model[0], tmp_path / "query.zarr", *asked, *names, "--quiet")
    assert status == 0, err
    first, second = anndata.read_h5ad(virtual_file[0]), anndata.read_h5ad(tmp_path / "virtual.h5ad")
    assert_allclose(first.X.toarray(), second.X.toarray(), rtol=1e-5)


def test_a_file_of_perturbations(tmp_path):
    def asked(text, **given):
        (tmp_path / "asked").write_text(text)
        options = {"perturbations": None, "perturbations_file": tmp_path / "asked", "n_cells": None, **given}
        return requests(Namespace(**options))

    assert asked("A\n\nB+C \n") == (["A", "B+C"], None)
    assert asked("perturbation,n_cells\nA,5\nB+C,7\n") == (["A", "B+C"], {"A": 5, "B+C": 7})
    assert asked("n_cells\tperturbation\n5\tNA\n") == (["NA"], {"NA": 5})
    assert asked("perturbation,note\nA,x\n", n_cells=3) == (["A"], 3)
    for text, message in [
        ("perturbation,n_cells\nA,5.5\n", "whole numbers above 0"),
        ("perturbation,n_cells\nA,0\n", "whole numbers above 0"),
        ("perturbation,n_cells\nA,5\nA,6\n", "names one twice"),
        ("gene,n_cells\nA,5\n", "without a column 'perturbation'"),
        ("", "holds no name"),
    ]:
        with pytest.raises(ValueError, match=message):
            asked(text)
    with pytest.raises(ValueError, match="is given beside --n-cells"):
        asked("perturbation,n_cells\nA,5\n", n_cells=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--perturbations", "NOGENE", "--out", "v.h5ad"], "Gene 'NOGENE' is not in the model's gene embedding"),
        (["--perturbations", "non-targeting", "--out", "v.h5ad"], "hold the control 'non-targeting'"),
        (["--perturbations", FIRST, "--cell-types", "liver", "--out", "v.h5ad"], "Correct --cell-types."),
        (["--perturbations", FIRST, "--out", "v.csv"], "ends in '.csv'. Pass a name that ends in .h5ad or .zarr."),
        (["--perturbations", FIRST, "--out", "nowhere/v.h5ad"], "Make the folder first."),
        (["--perturbations", FIRST, "--out", "v.h5ad", "--effects", "e.txt"], "Pass a name that ends in .csv."),
        (["--perturbations", FIRST, "--out", "v.h5ad", "--n-cells", "9999"], "Leave --n-cells out"),
    ],
)
def test_what_cannot_be_predicted(trained_model, screen_file, tmp_path, monkeypatch, arguments, message):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    status, _, err = run("predict", trained_model[0], screen_file, "--normalize", *arguments)
    monkeypatch.chdir(tmp_path / "cwd")
    assert status == 1
    assert message in err
    assert err.count("\n") == 1
    assert not list((tmp_path / "out").iterdir())


def evaluated(real, virtual, tmp_path, *arguments):
    out = tmp_path / "scores.csv"
    status, text, err = run("evaluate", real, virtual, "--out", out, "--overwrite", "--normalize", *arguments)
    assert status == 0, err
    return pd.read_csv(out).set_index([*CONDITION, "metric"])["value"], text


def test_without_a_split_the_centre_leaves_out_what_is_scored(virtual_file, screen_file, tmp_path):
    path = virtual_file[0]
    values, text = evaluated(screen_file, path, tmp_path, "--metrics", "pearson_delta_pert", "--batch-key", "batch")
    assert "No split was named: the centre of pearson_delta_pert is the mean of 20 conditions not scored." in text
    adata, virtual = normalised(screen_file), anndata.read_h5ad(path)
    scored = adata.obs["perturbation"].isin([FIRST, "GENE0005"])
    adata.obs["part"] = np.where(scored, "test", "train")
    keys = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}
    ptrag_sc.PTRAG.setup_anndata(adata, **keys, batch_key="batch", split_key="part")
    reference = ptrag_sc.metrics.Reference.from_adata(adata)
    table = ptrag_sc.benchmark.evaluate(adata, virtual, reference=reference, metrics="pearson_delta_pert")
    expected = table.set_index([*CONDITION, "metric"])["value"]
    assert_allclose(values.loc[expected.index], expected, atol=1e-5)
    alone = adata[scored | (adata.obs["perturbation"] == "non-targeting").to_numpy()].copy()
    alone.X = alone.layers["counts"]
    del alone.layers["counts"]
    alone.write_h5ad(tmp_path / "alone.h5ad")
    _, text = evaluated(tmp_path / "alone.h5ad", path, tmp_path, "--metrics", "pearson_delta_pert")
    assert "all real conditions are scored: the centre of pearson_delta_pert is the control mean" in text


def test_the_centre_of_a_model_is_that_of_its_training_conditions(virtual_file, trained_model, screen_file, tmp_path):
    """From the model and from the column of its split, and whether or not the real cells hold its training cells."""
    path, folder = virtual_file[0], trained_model[0]
    split = ptrag_sc.PTRAG.load(folder, adata=False).split_.set_index(CONDITION)["split"]
    adata = anndata.read_h5ad(screen_file)
    pairs = pd.MultiIndex.from_frame(adata.obs[CONDITION].astype(str))
    adata.obs["part"] = split.reindex(pairs).fillna("train").to_numpy()
    adata.write_h5ad(tmp_path / "split.h5ad")
    few = adata[adata.obs["perturbation"].isin(["non-targeting", FIRST, "GENE0005"])].copy()
    few.write_h5ad(tmp_path / "few.h5ad")
    metric = "--metrics", "pearson_delta_pert", "--batch-key", "batch"
    by_column, _ = evaluated(tmp_path / "split.h5ad", path, tmp_path, *metric, "--split-key", "part")
    for name in ("split.h5ad", "few.h5ad"):
        by_model, text = evaluated(tmp_path / name, path, tmp_path, *metric, "--reference-from", folder)
        assert_allclose(by_model.loc[by_column.index], by_column, atol=2e-3)
        assert f"the mean of the {(split == 'train').sum()} conditions that the model was trained on" in text


def test_evaluate_writes_the_files_of_cell_eval(virtual_file, screen_file, tmp_path):
    folder = tmp_path / "eval"
    evaluated(screen_file, virtual_file[0], tmp_path, "--metrics", "pearson_delta", "--cell-eval", folder)
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.h5ad"))
    assert found == [f"type_{t}/{name}.h5ad" for t in (0, 1) for name in ("predicted", "real")]
    out = "--out", tmp_path / "more.csv", "--cell-eval", folder
    status, _, err = run("evaluate", screen_file, virtual_file[0], "--normalize", *out)
    assert (status, (tmp_path / "more.csv").exists()) == (1, False)
    assert "exists. Pass --overwrite or another folder." in err


def test_diagnose_prints_and_writes_the_findings(screen_file, tmp_path):
    status, out, err = run("diagnose", screen_file, "--normalize", "--batch-key", "batch", "--out", tmp_path / "report")
    assert (status, err) == (0, "")
    adata = normalised(screen_file)
    keys = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}
    ptrag_sc.PTRAG.setup_anndata(adata, **keys, batch_key="batch", counts_layer="counts")
    ptrag_sc.tl.diagnose(adata)
    expected = adata.uns["diagnose"]["findings"]
    written = pd.read_csv(tmp_path / "report" / "findings.csv")
    assert written["message"].tolist() == expected["message"].tolist()
    assert all(message in out for message in expected["message"])
    names = {"findings.csv", "conditions.csv", "groups.csv", "diagnose.png", "settings.json"}
    assert {path.name for path in (tmp_path / "report").iterdir()} == names


@pytest.fixture(scope="module")
def ridge(screen_file):
    adata = normalised(screen_file)
    keys = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}
    ptrag_sc.PTRAG.setup_anndata(adata, **keys, counts_layer="counts")
    return adata, ptrag_sc.baselines.KernelRidge(adata).fit()


def decided(command, screen_file, tmp_path, *arguments):
    out = tmp_path / f"{command}.csv"
    place = "--cell-type", "type_0", "--normalize", "--out", out
    status, text, err = run(command, screen_file, *place, *arguments)
    assert status == 0, err
    assert json.loads((tmp_path / f"{command}.csv.settings.json").read_text())["command"] == command
    return pd.read_csv(out), text


def test_rank_is_the_table_of_the_function(ridge, screen_file, tmp_path):
    adata, model = ridge
    genes = adata.var_names[:4].tolist()
    up, down = ("--up", ",".join(genes[:2])), ("--down", ",".join(genes[2:]))
    table, _ = decided("rank", screen_file, tmp_path, *up, *down, "--candidates", f"{FIRST},GENE0005,GENE0007")
    signature = {"up": genes[:2], "down": genes[2:]}
    names = [FIRST, "GENE0005", "GENE0007"]
    expected = ptrag_sc.tl.rank_perturbations(adata, model, signature, cell_type="type_0", candidates=names)
    assert table["perturbation"].tolist() == expected["perturbation"].tolist()
    assert_allclose(table["score"], expected["score"], atol=1e-6)


def test_every_form_of_a_signature(ridge, tmp_path):
    def read(text):
        (tmp_path / "signature.csv").write_text(text)
        given = {"signature": tmp_path / "signature.csv", "cells": None, "up": None, "down": None, "screen": "s"}
        return _signature(Namespace(**given), ridge[0])

    assert read("gene,change\nA,1.5\nB,-2\n").to_dict() == {"A": 1.5, "B": -2}
    assert read("gene\tchange\nA\t1.5\n").to_dict() == {"A": 1.5}
    assert set(read("names,scores,group\nA,1.5,x\n")) == {"names", "scores", "group"}
    assert read("gene,one,two\nA,1,2\n").loc["A"].to_dict() == {"one": 1, "two": 2}
    groups = Namespace(signature=None, cells=["cell_type", "type_1", "type_0"], screen="s")
    wanted, present = _signature(groups, ridge[0])
    assert wanted.tolist() == (ridge[0].obs["cell_type"] == "type_1").tolist()
    assert not (wanted & present).any()
    with pytest.raises(KeyError, match=r"Label 'liver' does not occur in obs\['cell_type'\]"):
        _signature(Namespace(signature=None, cells=["cell_type", "liver", "type_0"], screen="s"), ridge[0])


def test_design_and_power_are_the_tables_of_the_functions(ridge, screen_file, tmp_path):
    adata, model = ridge
    (tmp_path / "costs.csv").write_text("perturbation,cost\nGENE0033,1\nGENE0034,2\nGENE0035,1\n")
    names = ["GENE0033", "GENE0034", "GENE0035"]
    vectors = np.random.default_rng(0).normal(size=(3, adata.uns["gene_embedding"]["vectors"].shape[1]))
    np.savez(tmp_path / "all.npz", genes=np.array(names), vectors=vectors)
    known = adata.uns["gene_embedding"]
    whole = {**dict(zip(known["genes"], known["vectors"], strict=True)), **dict(zip(names, vectors, strict=True))}
    np.savez(tmp_path / "all.npz", genes=np.array(list(whole), dtype=str), vectors=np.stack(list(whole.values())))
    given = "--candidates", ",".join(names), "--costs", tmp_path / "costs.csv", "--gene-embedding", tmp_path / "all.npz"
    table, _ = decided("design", screen_file, tmp_path, "--n", 2, *given)
    costs = pd.read_csv(tmp_path / "costs.csv").set_index("perturbation")["cost"]
    further = {"cell_type": "type_0", "candidates": names, "costs": costs, "gene_embedding": tmp_path / "all.npz"}
    expected = ptrag_sc.tl.design(adata, model, 2, **further)
    assert table["perturbation"].tolist() == expected["perturbation"].tolist()
    sizes = {"n_perturbations": [5, 10], "n_cells": [8], "n_repeats": 2}
    asked = "--n-perturbations", "5,10", "--n-cells", "8", "--n-repeats", "2"
    table, _ = decided("power", screen_file, tmp_path, *asked)
    expected = ptrag_sc.tl.power(adata, None, cell_type="type_0", **sizes)
    assert_allclose(table["pearson_delta_pert"], expected["pearson_delta_pert"], atol=1e-5)


def test_a_saved_model_knows_what_it_was_trained_on(trained_model, screen_file, tmp_path):
    known = ptrag_sc.PTRAG.load(trained_model[0], adata=False).known_conditions_
    measured = set(known.loc[known["cell_type"] == "type_0", "perturbation"])
    genes = set(map(str, anndata.read_h5ad(screen_file).uns["gene_embedding"]["genes"]))
    given = "--model", trained_model[0], "--n", len(genes - measured), "--candidates", ",".join(sorted(genes))
    table, text = decided("design", screen_file, tmp_path, *given)
    assert set(table["perturbation"]) == genes - measured
    assert f"{len(genes & measured)} candidates were measured in type_0" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rank", "--cell-type", "type_0"], "Pass one of --signature, --up with --down, and --cells."),
        (["rank", "--up", "GENE0000"], "holds several cell types ('type_0', 'type_1'). Pass --cell-type."),
        (["rank", "--up", "GENE0000", "--cell-type", "liver"], "Cell type 'liver' does not occur"),
        (["design", "--n", "99", "--cell-type", "type_0", "--candidates", FIRST], "--n "),
        (["power", "--cell-type", "type_0", "--budget", "9", "--n-perturbations", "5"], "is given with a budget"),
    ],
)
def test_what_cannot_be_decided(screen_file, tmp_path, arguments, message):
    command, *further = arguments
    status, _, err = run(command, screen_file, "--normalize", "--out", tmp_path / "t.csv", *further)
    assert status == 1
    assert message in err
    assert not list(tmp_path.glob("*.csv"))


@pytest.mark.slow  # trains once more
def test_demo_with_a_file_names_train_and_still_writes_what_it_wrote(screen_file, tmp_path):
    out = tmp_path / "made"
    given = "--adata", screen_file, "--batch-key", "batch", "--out", out, "--max-epochs", "2", "--no-progress"
    status, text, err = run("demo", *given)
    assert status == 0, err
    assert f"Use: ptrag-sc train {screen_file} --out {out}" in text
    back = anndata.read_h5ad(out / "predicted.h5ad")
    assert back.obs["ptrag_predicted"].all()
    assert (out / "scores.csv").is_file()


@pytest.mark.slow  # the whole demo
def test_the_demo_tells_its_story(tmp_path):
    status, text, err = run("demo", "--out", tmp_path / "demo")
    assert status == 0, err
    written = {path.name for path in (tmp_path / "demo").iterdir()}
    assert {"virtual.h5ad", "effects.csv", "scores.csv", "model", "settings.json"} < written
    assert len([name for name in written if name.endswith(".png")]) >= 4
    for start in ("Asked:", "Who answered:", "What they did", "So predicted,", "Observed", "Who is better?", "When it"):
        assert start in text
    scores = pd.read_csv(tmp_path / "demo" / "scores.csv")
    own = scores.query("method == 'PTRAG' and metric == 'pearson_delta' and truth == 'all'")
    own = own.groupby("perturbation")["value"].mean()
    assert (own[["JAK2", "IFNGR1", "STAT1"]] > 0.6).all()
    assert (own[["CD86", "CAV1"]] < 0.4).all()
    support = anndata.read_h5ad(tmp_path / "demo" / "virtual.h5ad").uns["ptrag"]["support"].set_index("perturbation")
    assert support.loc[["CD86", "CAV1"], "abstain"].all()
    split = ptrag_sc.PTRAG.load(tmp_path / "demo" / "model", adata=False).split_.set_index("perturbation")["split"]
    assert (split[["JAK2", "CD86", "CAV1"]] == "test").all()
