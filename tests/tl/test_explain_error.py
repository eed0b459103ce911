"""Does the error that was planted go to its cause, and is bad input refused in words?"""

import logging

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import ptrag_sc
from ptrag_sc.metrics import Reference
from ptrag_sc.tl import explain_error

G, N_TEST, N_NEIGHBOURS = 150, 8, 4
KEYS = {"perturbation_key": "gene", "control": "ctl", "cell_type_key": "line"}
TEST = [f"gene{c}" for c in range(N_TEST)]  # each targets a measured gene


NOTHING = {"confounded": 0.0, "own_missed": False, "common": 0.0, "wrong": 0.0, "disagree": 0.0, "generator": 0.0}


def plant(*, seed=0, n_cells=60, n_controls=600, composition=False, **faults):
    """Return screen and predicted cells of a nearly perfect predictor, with one thing wrong.

    Every test perturbation has four neighbours, training perturbations that do the same. ``common``, ``wrong``,
    ``disagree`` and ``generator`` are standard deviations over genes of what is wrong; ``confounded`` is that between
    batches, and test perturbations are then in batches without control cells.
    """
    confounded, own_missed, common, wrong, disagree, generator = {**NOTHING, **faults}.values()
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 0.3, (N_TEST, G))
    truth -= truth.mean(0)
    truth[np.arange(N_TEST), np.arange(N_TEST)] = -1.5
    of_neighbours = np.repeat(truth, N_NEIGHBOURS, axis=0) + np.repeat(
        rng.normal(0, wrong, truth.shape), N_NEIGHBOURS, 0
    )
    of_neighbours += rng.normal(0, disagree, of_neighbours.shape)
    of_neighbours += rng.normal(0, common, G)
    names = [f"N{k:02d}" for k in range(len(of_neighbours))]
    sizes = [n_controls, *[n_cells] * N_TEST, *[100] * len(names)]
    label = np.repeat(["ctl", *TEST, *names], sizes)
    shift = np.repeat(np.vstack([np.zeros((1, G)), truth, of_neighbours]), sizes, axis=0)
    batch = np.arange(len(label)) % 3
    is_test = np.isin(label, TEST)
    if confounded:
        batch[is_test] = 3 + np.unique(label[is_test], return_inverse=True)[1] % 4
    phase = np.arange(len(label)) // 3 % 2
    if composition:
        phase[is_test] = 1
    of_phase = np.vstack([np.zeros(G), rng.normal(0, 0.6, G)]) * composition
    cells = 8 + shift + rng.normal(0, confounded, (7, G))[batch] + of_phase[phase] + rng.normal(0, 0.5, shift.shape)
    obs = pd.DataFrame({"gene": label, "line": "K562", "lane": batch.astype(str), "phase": phase.astype(str)})
    obs["split"] = np.where(is_test, "test", "train")
    obs.index = [f"c{i}" for i in range(len(obs))]
    adata = AnnData(cells.astype(np.float32), obs, pd.DataFrame(index=[f"gene{g}" for g in range(G)]))
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="lane", split_key="split")
    mean = of_neighbours.reshape(N_TEST, N_NEIGHBOURS, G).mean(1)
    if own_missed:
        mean[np.arange(N_TEST), np.arange(N_TEST)] = 0
    predicted_shift = mean + rng.normal(0, generator, mean.shape)
    control = cells[label == "ctl"][:40]
    virtual = (control + predicted_shift[:, None]).reshape(-1, G).astype(np.float32)
    virtual_obs = obs[label == "ctl"].iloc[np.tile(np.arange(len(control)), N_TEST)].copy()
    virtual_obs["ptrag_source"] = virtual_obs.index.to_numpy()
    virtual_obs["gene"] = np.repeat(TEST, len(control))
    virtual_obs.index = [f"v{i}" for i in range(len(virtual_obs))]
    predicted = AnnData(virtual, virtual_obs, adata.var.copy())
    retrieval = {
        "perturbation": np.repeat(TEST, N_NEIGHBOURS),
        "cell_type": "K562",
        "candidate": names,
        "role": "neighbour",
        "weight": 1 / N_NEIGHBOURS,
    }
    predicted.uns["ptrag"] = {"params": {}, "retrieval": pd.DataFrame(retrieval)}
    return adata, predicted


def explained(adata, predicted, **options):
    """Mean over conditions of every part, and of the total; parts add up."""
    table = explain_error(adata, predicted, reference=Reference.from_adata(adata), **options)
    of_conditions = table.groupby(["perturbation", "cell_type"])
    np.testing.assert_allclose(of_conditions["squared_error"].sum(), of_conditions["total"].first(), rtol=0.01)
    np.testing.assert_allclose(table["share"], table["squared_error"] / table["total"])
    parts = table.groupby("cause", observed=True)["squared_error"].sum() / of_conditions.ngroups
    return parts, of_conditions["total"].first().mean()


@pytest.fixture(scope="module")
def planted():
    """Screen and predicted cells with nothing wrong; do not change them."""
    return plant()


@pytest.fixture(scope="module")
def base(planted):
    return explained(*planted)


def simulated():
    """A simulated screen with held-out perturbations, and its reference."""
    adata = ptrag_sc.datasets.simulated(n_cells=900, n_genes=60, n_perturbations=12, n_cell_types=2)
    keys = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}
    ptrag_sc.pp.split(adata, **keys, holdout="perturbation", test_fraction=0.3)
    ptrag_sc.PTRAG.setup_anndata(adata, **keys, batch_key="batch", split_key="split")
    return adata, Reference.from_adata(adata)


def held_out(adata):
    return adata.obs.loc[adata.obs["split"] == "test", "perturbation"].unique().tolist()


PLANTED = {
    "observed cells": {"n_cells": 4},
    "control cells": {"n_controls": 12},
    "batches": {"confounded": 0.4},
    "own gene": {"own_missed": True},
    "common shift": {"common": 0.3},
    "neighbours wrong": {"wrong": 0.3},
    "neighbours disagree": {"disagree": 0.6},
    "generator": {"generator": 0.3},
}


@pytest.mark.parametrize("cause", PLANTED)
def test_excess_error_goes_to_the_planted_cause(base, cause):
    parts, total = explained(*plant(**PLANTED[cause]))
    excess = total - base[1]
    assert excess > 0.5 * base[1]  # it was planted
    share = (parts[cause] - base[0][cause]) / excess
    assert 0.8 < share < 1.2


def test_composition():
    adata, predicted = plant(composition=True)
    parts, total = explained(adata, predicted, by="phase")
    before = explained(*plant(), by="phase")
    share = (parts["composition"] - before[0]["composition"]) / (total - before[1])
    assert 0.8 < share < 1.2


def test_measured_neighbours_are_those_of_a_baseline_that_averages_them():
    """The nearest-neighbour baseline is its evidence: nothing is left for the generator, with or without the model."""
    adata, reference = simulated()
    model = ptrag_sc.baselines.NearestPerturbations(adata, n_neighbors=4).fit()
    virtual = ptrag_sc.tl.perturb(adata, model, held_out(adata), counts=False)
    measured = explain_error(adata, virtual, reference=reference)
    recalled = explain_error(adata, virtual, reference=reference, model=model)
    np.testing.assert_allclose(measured["squared_error"], recalled["squared_error"], atol=1e-4)
    parts = measured.groupby("cause", observed=True)["squared_error"].sum()
    total = measured.groupby(["perturbation", "cell_type"])["total"].first().sum()
    assert abs(parts["generator"]) < 1e-3 * total
    assert parts["neighbours wrong"] > 0.1 * total


def test_totals_are_squared_differences_of_shifts():
    adata, reference = simulated()
    virtual = ptrag_sc.tl.perturb(adata, ptrag_sc.baselines.MeanShift(adata).fit(), held_out(adata), counts=False)
    table = explain_error(adata, virtual, reference=reference)
    ptrag_sc.tl.effect(adata, predicted=virtual)
    shifts = ptrag_sc.tl.effect_table(virtual)
    error = np.square(shifts["shift"] - shifts["observed"]).groupby([shifts["perturbation"], shifts["cell_type"]]).sum()
    total = table.groupby(["perturbation", "cell_type"])["total"].first()
    pd.testing.assert_series_equal(total, error.loc[total.index], check_names=False, rtol=1e-3, check_dtype=False)
    assert table["total"].is_monotonic_decreasing
    parts = table.groupby("cause", observed=True)["squared_error"].sum()
    assert parts["neighbours wrong"] == parts["neighbours disagree"] == 0
    # Cells without sources, of another tool, are measured from the controls of their batches.
    foreign = AnnData(virtual.X, virtual.obs.drop(columns="ptrag_source"), virtual.var)
    again = explain_error(adata, foreign, reference=reference).groupby(["perturbation", "cell_type"])["total"].first()
    pd.testing.assert_series_equal(again, total, rtol=1e-3)


def test_groups_of_genes(tmp_path):
    adata, predicted = plant()
    reference = Reference.from_adata(adata)
    plain = explain_error(adata, predicted, reference=reference)
    adata.var["block"] = pd.Categorical(["a"] * 50 + ["b"] * 60 + [None] * 40)
    table = explain_error(adata, predicted, reference=reference, groups="block")
    assert table["group"].unique().tolist() == ["a", "b", "other"]
    keys = ["perturbation", "cell_type", "cause"]
    summed = table.groupby(keys, observed=True)["squared_error"].sum()
    pd.testing.assert_series_equal(summed, plain.groupby(keys, observed=True)["squared_error"].sum())
    own = table[(table["cause"] == "own gene") & (table["group"] != "a")]
    assert not own["squared_error"].any()  # the targets are the first genes
    file = tmp_path / "sets.gmt"
    file.write_text("a\tnote\t" + "\t".join(adata.var_names[:50]) + "\nabsent\tnote\tX\n", encoding="utf-8")
    of_file = explain_error(adata, predicted, reference=reference, groups=file)
    assert of_file["group"].unique().tolist() == ["a", "other"]
    in_a = [part.loc[part["group"] == "a", "squared_error"].to_numpy() for part in (table, of_file)]
    np.testing.assert_allclose(*in_a)


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ("nowhere.gmt", KeyError, "'nowhere.gmt' does not occur in adata.var and on disk"),
        ("empty", ValueError, "is empty"),
        ("list", ValueError, "has no genes in line 1"),
        ({"a": ["X"]}, ValueError, "hold none of the 150 genes"),
    ],
)
def test_groups_that_cannot_be_read(planted, tmp_path, groups, error, message):
    files = {"empty": "", "list": "gene1\ngene2\n"}
    if str(groups) in files:
        (tmp_path / "file").write_text(files[groups], encoding="utf-8")
        groups = tmp_path / "file"
    adata, predicted = planted
    with pytest.raises(error, match=message):
        explain_error(adata, predicted, reference=Reference.from_adata(adata), groups=groups)


def test_conditions_without_cells_are_named(planted, caplog):
    adata, predicted = planted
    reference = Reference.from_adata(adata)
    known = adata[adata.obs["gene"] != TEST[0]].copy()
    with caplog.at_level(logging.WARNING):
        table = explain_error(known, predicted, reference=reference)
    assert "without observed cells: 'gene0 in K562'" in caplog.text
    assert set(table["perturbation"]) == set(TEST[1:])
    with pytest.raises(ValueError, match="share no perturbed condition"):
        explain_error(known, predicted[predicted.obs["gene"] == TEST[0]], reference=reference)


def test_one_observed_cell(planted, caplog):
    adata, predicted = planted
    single = np.flatnonzero(adata.obs["gene"] == TEST[1])[1:]
    few = adata[np.setdiff1d(np.arange(adata.n_obs), single)].copy()
    with caplog.at_level(logging.WARNING):
        table = explain_error(few, predicted, reference=Reference.from_adata(few))
    assert "unknown with one cell per batch: 'gene1' in K562" in caplog.text
    of_cells = table[table["cause"] == "observed cells"].set_index("perturbation")["squared_error"]
    assert np.isnan(of_cells).sum() == 1 and np.isnan(of_cells[TEST[1]])
    sums = table.groupby("perturbation")[["squared_error", "total"]].agg({"squared_error": "sum", "total": "first"})
    np.testing.assert_allclose(sums["squared_error"], sums["total"])


def test_one_batch_with_controls_says_that_the_others_are_unknown(caplog):
    adata, predicted = plant(confounded=0.4)
    kept = adata[(adata.obs["gene"] != "ctl") | (adata.obs["lane"] == "0")].copy()
    predicted.obs = predicted.obs.drop(columns="ptrag_source")
    with caplog.at_level(logging.WARNING):
        table = explain_error(kept, predicted, reference=Reference.from_adata(kept))
    assert "the variance between batches is unknown" in caplog.text
    assert table.loc[table["cause"] == "batches", "squared_error"].isna().all()


def test_conditions_that_were_learned_from_are_named(planted, caplog):
    adata, predicted = planted
    adata = adata.copy()
    adata.obs["split"] = "train"
    with caplog.at_level(logging.WARNING):
        explain_error(adata, predicted, reference=Reference.from_adata(adata))
    assert "8 conditions are not held out ('gene0 in K562'" in caplog.text


def scaled(predicted):
    predicted.X = np.expm1(predicted.X)
    return predicted


def renamed(predicted):
    predicted.var_names = [f"ENSG{g}" for g in range(predicted.n_vars)]
    return predicted


def with_gap(predicted):
    predicted.X[0, 0] = np.nan
    return predicted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (scaled, "is it on another scale, such as counts"),
        (renamed, "share no gene with the reference"),
        (with_gap, "holds NaN or infinite values"),
        (lambda predicted: predicted[:0], "holds no cells"),
    ],
)
def test_predictions_that_cannot_be_compared(planted, change, message):
    adata, predicted = planted
    with pytest.raises(ValueError, match=message):
        explain_error(adata, change(predicted.copy()), reference=Reference.from_adata(adata))


def test_other_controls_than_those_of_the_reference(planted):
    adata, predicted = planted
    other = plant(seed=1)[0]
    predicted = predicted.copy()
    del predicted.obs["ptrag_source"]
    with pytest.raises(ValueError, match="has other control cells of cell type 'K562' than the reference"):
        explain_error(adata, predicted, reference=Reference.from_adata(other))
    with pytest.raises(KeyError, match=r"'cycle' does not occur in adata\.obs"):
        explain_error(adata, predicted, reference=Reference.from_adata(adata), by="cycle")
    with pytest.raises(TypeError, match="is no Predictor"):
        explain_error(adata, predicted, reference=Reference.from_adata(adata), model=adata)
