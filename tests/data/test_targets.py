"""Is what a perturbation does to its own target kept out of everything else, and learned as one share?"""

import json

import numpy as np
import pandas as pd
import pytest
import scvi
import torch

import ptrag_sc
from baselines.oracles import predicted_shift, slow_shifts
from own_targets import slow_controls, slow_masked, slow_own_change, slow_share, slow_shares, targeted_screen
from ptrag_sc.data import OwnEffects, masked_shifts, measured_targets, own_change
from ptrag_sc.data._targets import target_columns
from screens import SMALL, TRAIN, make_screen

GENES = np.array([f"G{i}" for i in range(5)] + [f"other{i}" for i in range(4)])


def own_of(label):
    """Columns of the targets of a perturbation, and the genes."""
    return target_columns([label], GENES, "+")[0], GENES


def conditions(*, n_types=2, n_conditions=24, seed=0):
    """Random shifts of conditions, {(perturbation, cell type): (G,)}; G7 is not measured, other0 is never a target."""
    rng = np.random.default_rng(seed)
    names = [*GENES[:5], "G7", "G0+G1", "G1+G7", "G2+G4"]
    pairs = [(name, f"t{t}") for name in names for t in range(n_types)]
    kept = rng.permutation(len(pairs))[:n_conditions]
    return {pairs[i]: rng.normal(size=len(GENES)) for i in kept}


def as_arrays(shifts):
    names, types = (np.array(values, dtype=object) for values in zip(*shifts, strict=True))
    return names, types, np.stack(list(shifts.values()))


def learned_from(shifts, controls, genes=GENES):
    names, types, array = as_arrays(shifts)
    own = measured_targets(names, genes, "+")
    masked = masked_shifts(array, own, types)
    table = pd.DataFrame({"perturbation": names, "cell_type": types})
    return OwnEffects.learn(table, array, masked, own, controls, genes)


def test_targets_are_the_measured_components():
    labels = ["G1", "G7", "G0+G4", "G2+G7", "other2"]
    assert [columns.tolist() for columns in target_columns(labels, GENES, "+")] == [[1], [], [0, 4], [2], [7]]
    own = measured_targets(np.array(labels), GENES, "+")
    assert np.argwhere(own).tolist() == [[0, 1], [2, 0], [2, 4], [3, 2], [4, 7]]
    assert [c.tolist() for c in target_columns(["G0+G4", "G0/G4"], GENES, "/")] == [[], [0, 4]]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n_conditions", [18, 7, 2])
def test_masked_values_are_means_of_the_others(seed, n_conditions):
    shifts = conditions(n_conditions=n_conditions, seed=seed)
    names, types, array = as_arrays(shifts)
    before = array.copy()
    own = measured_targets(names, GENES, "+")
    found = masked_shifts(array, own, types)
    np.testing.assert_allclose(found, np.stack(list(slow_masked(shifts, list(GENES)).values())))
    np.testing.assert_array_equal(array, before)
    np.testing.assert_array_equal(found[~own], before[~own])


def test_what_replaces_a_value_at_last_is_zero():
    shifts = {("G0", "t0"): np.ones(9), ("G0", "t1"): np.full(9, 2.0), ("G0+G1", "t1"): np.full(9, 4.0)}
    names, types, array = as_arrays(shifts)
    found = masked_shifts(array, measured_targets(names, GENES, "+"), types)
    assert found[:, 0].tolist() == [0, 0, 0]  # all target G0
    assert found[2, 1] == 2.0  # the other of the cell type


def test_only_training_conditions_replace():
    shifts = conditions(seed=3)
    names, types, array = as_arrays(shifts)
    own = measured_targets(names, GENES, "+")
    among = np.arange(len(names)) % 3 > 0
    found = masked_shifts(array, own, types, among=among)
    train = {key: shift for key, shift, kept in zip(shifts, array, among, strict=True) if kept}
    for c, key in enumerate(shifts):
        expected = slow_masked({**train, key: shifts[key]}, list(GENES))[key]
        if not among[c]:  # what is not trained on replaces nothing, itself included
            np.testing.assert_allclose(found[c], expected)
    changed = array.copy()
    changed[~among] = 100.0
    np.testing.assert_array_equal(masked_shifts(changed, own, types, among=among)[among], found[among])


@pytest.mark.parametrize("share", [-0.7, 0.4])
def test_a_share_that_all_targets_have_is_found_exactly(share):
    controls = {"t0": np.linspace(0.2, 3.0, 9)}
    shifts = {(str(g), "t0"): np.full(9, 0.5) for g in GENES[:5]}
    for i in range(5):
        shifts[str(GENES[i]), "t0"][i] = 0.5 + share * controls["t0"][i]
    found = learned_from(shifts, controls)
    assert found.shares["t0"] == pytest.approx(share)
    assert found.pooled == pytest.approx(share)
    assert found.share("unknown") == found.pooled


def test_a_share_is_a_weighted_median_shrunk_by_its_error():
    """Three targets of expression 1, 1 and 2 change by -.5, -.4 and -.6 of it: half of the weight lies at or below."""
    controls = {"t0": np.array([1.0, 1.0, 2.0, 1, 1, 1, 1, 1, 1])}
    shifts = {(f"G{i}", "t0"): np.zeros(9) for i in range(3)}
    for i, change in enumerate((-0.5, -0.4, -1.2)):
        shifts[f"G{i}", "t0"][i] = change
    median, spread, n = -0.6, 0.1, 16 / 6
    error = 1.25 * 1.4826 * spread / np.sqrt(n)
    found = learned_from(shifts, controls).shares["t0"]
    assert found == pytest.approx(median * (1 - error**2 / median**2))
    assert found == pytest.approx(slow_share([-0.5, -0.4, -1.2], [1.0, 1.0, 2.0]))


def test_targets_that_agree_on_nothing_have_a_share_of_zero():
    controls = {"t0": np.ones(9)}
    shifts = {(f"G{i}", "t0"): np.zeros(9) for i in range(5)}
    for i, change in enumerate((-2.0, -1.0, -0.1, 1.0, 2.0)):
        shifts[f"G{i}", "t0"][i] = change
    assert learned_from(shifts, controls).shares["t0"] == 0
    silent = {"t0": np.zeros(9)}
    assert learned_from(shifts, silent).shares["t0"] == 0


def test_fewer_than_three_targets_teach_nothing_alone():
    shifts = {(f"G{i}", t): np.zeros(9) for i in range(2) for t in ("t0", "t1")}
    for i, t in shifts:
        shifts[i, t][int(i[1])] = -0.5
    controls = {"t0": np.ones(9), "t1": np.ones(9)}
    found = learned_from(shifts, controls)
    assert found.shares == {}
    assert found.pooled == found.share("t0") == pytest.approx(-0.5)
    two = {key: shift for key, shift in shifts.items() if key[1] == "t0"}
    nothing = learned_from(two, controls)
    assert (nothing.shares, nothing.pooled) == ({}, 0.0)
    np.testing.assert_array_equal(own_change(nothing, "G3", "t0", controls["t0"], *own_of("G3")), 0)
    # What a gene did alone is still known in its combinations.
    assert own_change(nothing, "G0+G3", "t0", controls["t0"], *own_of("G0+G3"))[0] == pytest.approx(-0.5)


@pytest.mark.parametrize("seed", range(4))
def test_shares_and_changes_equal_slow_ones(seed):
    shifts = conditions(seed=seed, n_conditions=14)
    rng = np.random.default_rng(seed)
    controls = {t: rng.gamma(0.5, 1.0, len(GENES)) for t in ("t0", "t1", "t2")}
    for (label, t), shift in shifts.items():
        for g in target_columns([label], GENES, "+")[0]:
            shift[g] -= 0.8 * controls[t][g]
    found = learned_from(shifts, controls)
    by_type, pooled = slow_shares(shifts, controls, list(GENES))
    assert found.shares == pytest.approx(by_type)
    assert found.pooled == pytest.approx(pooled)
    for label in ("G0", "G3", "G7", "other1", "G0+G1", "G0+G3", "G1+G7", "G4+other1"):
        for t in controls:
            expected = slow_own_change(label, t, shifts, controls, list(GENES))
            np.testing.assert_allclose(own_change(found, label, t, controls[t], *own_of(label)), expected, atol=1e-12)


def test_a_combination_repeats_what_its_genes_did_alone_in_this_cell_type():
    controls = {"t0": np.ones(9), "t1": np.ones(9)}
    shifts = {(f"G{i}", "t0"): np.zeros(9) for i in range(5)}
    for i, change in enumerate((-0.5, -0.5, -0.5, -0.5, -0.9)):
        shifts[f"G{i}", "t0"][i] = change
    found = learned_from(shifts, controls)
    assert found.shares["t0"] == pytest.approx(-0.5)
    change = own_change(found, "G4+other0", "t0", controls["t0"], *own_of("G4+other0"))
    assert change[[4, 5]].tolist() == pytest.approx([-0.9, -0.5])
    assert own_change(found, "G4", "t0", controls["t0"], *own_of("G4"))[4] == pytest.approx(-0.5)
    assert own_change(found, "G4+other0", "t1", controls["t1"], *own_of("G4+other0"))[4] == pytest.approx(-0.5)
    assert np.flatnonzero(change).tolist() == [4, 5]
    assert not own_change(None, "G4", "t0", controls["t0"], *own_of("G4")).any()


def test_what_was_learned_survives_json():
    controls = {t: np.ones(9) for t in ("t0", "t1")}
    found = learned_from(conditions(seed=1), controls)
    again = OwnEffects.from_json(json.loads(json.dumps(found.to_json())))
    assert (again.shares, again.pooled) == (found.shares, found.pooled)
    pd.testing.assert_frame_equal(again.alone, found.alone, check_dtype=False)
    change = [own_change(each, "G0+G3", "t1", controls["t1"], *own_of("G0+G3")) for each in (found, again)]
    np.testing.assert_array_equal(*change)


@pytest.mark.parametrize("left", [0.3, 3])
def test_predicted_targets_equal_the_slow_rule(left):
    """A screen of knock-downs, and one of activations: the sign is learned."""
    held_out = {("G1", "K562"), ("G1", "RPE1"), ("G2", "RPE1")}
    adata = targeted_screen(left=left, held_out=held_out)
    shifts, controls, genes = slow_shifts(adata), slow_controls(adata), list(adata.var_names)
    by_type, _ = slow_shares(shifts, controls, genes)
    assert all((share < -0.2) if left < 1 else (share > 0.2) for share in by_type.values())
    assert set(by_type) == {"K562", "RPE1"}
    masked = slow_masked(shifts, genes)
    fitted = ptrag_sc.baselines.MeanShift(adata).fit()
    for line in ("K562", "RPE1"):
        mean = np.mean([s for (_, t), s in masked.items() if t == line], axis=0)
        for label in ("G1", "G2", "G4", "G0+G3", "G1+G2", "unknown"):
            expected = mean + slow_own_change(label, line, shifts, controls, genes)
            np.testing.assert_allclose(predicted_shift(fitted, label, line), expected, atol=1e-5)


def moved(x, own):
    """The values of own targets of perturbed cells, all moved far by the same."""
    return np.where(own, x + 5, x)


def scattered(x, own):
    """The same, each by a number of its own."""
    return np.where(own, np.minimum(np.random.default_rng(0).gamma(0.3, 9.0, x.shape), 14), x).astype(np.float32)


QUERIES = ["G1", "G5", "G0+G1", "G4+G6"]


def elsewhere(predicted):
    """Predicted cells without the genes that their own perturbation targets."""
    table = predicted.to_df().sort_index()
    labels = predicted.obs.loc[table.index, "gene"].astype(str).str.split("+")
    for label in QUERIES:
        table.loc[(labels.str.join("+") == label).to_numpy(), label.split("+")] = 0
    return table.to_numpy()


@pytest.mark.parametrize("name", ptrag_sc.baselines.__all__)
def test_own_falls_reach_no_other_prediction_of_a_baseline(name):
    found = []
    for change in (None, scattered):
        adata = targeted_screen(change)
        adata.obs["split"] = np.where(adata.obs["gene"] == "G3", "val", "train")
        fitted = getattr(ptrag_sc.baselines, name)(adata).fit()
        found.append(elsewhere(fitted.predict(perturbations=QUERIES, counts=False)))
    np.testing.assert_allclose(*found, atol=1e-6)


@pytest.mark.parametrize(("memory", "change"), [(None, scattered), ("response", moved)])
def test_own_falls_reach_no_other_prediction_of_a_model(memory, change, monkeypatch):
    """Neither tables nor memory, nor what is trained; an unmeasured query is predicted as before at every gene.

    The variance between cells of the same condition, by which the memory is shrunk, is pooled over all conditions, so
    the values that it sees are moved together.
    """
    monkeypatch.setattr(ptrag_sc.PTRAG, "learn_effect_errors", lambda self: None)  # costs time and changes no shift
    states, found = [], []
    for far in (None, change):
        scvi.settings.seed = 0
        model = ptrag_sc.PTRAG(targeted_screen(far), **{**SMALL, "memory": memory})
        before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
        model.train(2, **TRAIN)
        states.append([before, model.module.state_dict()])
        new = {"gene_embedding": {"G77": np.linspace(-1, 1, 30)}, "counts": False}
        found.append(
            [
                elsewhere(model.predict(perturbations=QUERIES, counts=False)),
                model.predict(perturbations="G77", **new).X,
            ]
        )
    assert any(not torch.equal(*(state[name] for state in states[0])) for name in states[0][0])
    for first, second in zip(*states, strict=True):
        for name, tensor in first.items():
            torch.testing.assert_close(tensor, second[name], atol=1e-4, rtol=1e-4, msg=name)
    for first, second in zip(*found, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-4)


def test_a_screen_without_measured_targets_is_as_it_was():
    """No gene of the small screen is a target: nothing is masked or added."""
    adata = make_screen()
    genes = adata.var_names.to_numpy()
    names = np.array(sorted(set(adata.obs["gene"]) - {"ctl"}))
    assert not measured_targets(names, genes, "+").any()
    shifts = np.random.default_rng(0).normal(size=(len(names), len(genes)))
    np.testing.assert_array_equal(masked_shifts(shifts, measured_targets(names, genes, "+"), names), shifts)
