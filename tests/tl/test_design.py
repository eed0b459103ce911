"""Does the design choose what tells most about the targets, from what was measured and no more?"""

import logging

import numpy as np
import pandas as pd
import pytest

import ptrag_sc
from planned_screens import N_GROUPS, group_of, grouped_screen, set_up
from ptrag_sc.baselines import MeanShift, NearestPerturbations
from ptrag_sc.retrieval import similarity_kernel

NAMES = [f"P{i}" for i in range(48)]
HERE = {"cell_type": "K562", "candidates": NAMES}


@pytest.fixture(scope="module")
def adata():
    """Two lines; in K562 the first eight perturbations are trained on, P8 and P9 are held out. Do not change it."""
    made = grouped_screen(lines=("K562", "RPE1"))
    held_out = (made.obs["line"] == "K562") & ~made.obs["gene"].isin(["ctl", *NAMES[:8]])
    made.obs["split"] = np.where(held_out, "test", "train")
    return set_up(made, split_key="split")


@pytest.fixture(scope="module")
def model(adata):
    return MeanShift(adata).fit()


def slow_design(vectors, candidates, targets, measured, n):
    """Greedy choice with the whole covariance of the text kernel."""
    whole = similarity_kernel(vectors, vectors, 0.2).astype(float)
    centre = np.eye(len(whole)) - np.isin(np.arange(len(whole)), targets)[None] / len(targets)
    whole = centre @ whole @ centre.T
    shares = []
    chosen = []

    def measure(j):
        nonlocal whole
        whole = whole - np.outer(whole[:, j], whole[j]) / (whole[j, j] + 1)

    for j in measured:
        measure(j)
    total = whole[targets, targets].sum()
    for _ in range(n):
        left = [j for j in candidates if j not in chosen]
        gain = [(whole[targets, j] ** 2).sum() / (whole[j, j] + 1) for j in left]
        chosen.append(left[int(np.argmax(gain))])
        shares.append(max(gain) / total)
        measure(chosen[-1])
    return chosen, shares


def test_from_nothing_one_of_each_group_comes_first(adata):
    table = ptrag_sc.tl.design(adata, None, N_GROUPS, **HERE)
    assert table.columns.tolist() == ["order", "perturbation", "variance_reduction"]
    assert {group_of(name) for name in table["perturbation"]} == set(range(N_GROUPS))
    assert table["variance_reduction"].is_monotonic_decreasing
    assert table.attrs["n_measured"] == 0


@pytest.mark.parametrize("measured", [[], NAMES[5:9]])
def test_choice_is_that_of_the_whole_covariance(adata, measured):
    targets = NAMES[20:45]
    table = ptrag_sc.tl.design(
        None, None, 10, **HERE, targets=targets, measured=measured, gene_embedding=adata.uns["gene_embedding"]
    )
    candidates = [i for i, name in enumerate(NAMES) if name not in measured]
    vectors = adata.uns["gene_embedding"].to_numpy()
    place = [NAMES.index(name) for name in targets]
    chosen, shares = slow_design(vectors, candidates, place, [NAMES.index(name) for name in measured], 10)
    assert table["perturbation"].tolist() == [NAMES[j] for j in chosen]
    np.testing.assert_allclose(table["variance_reduction"], shares, rtol=1e-3)


def test_what_the_model_learned_from_counts_as_measured(adata, model, caplog):
    with caplog.at_level(logging.WARNING):
        table = ptrag_sc.tl.design(adata, model, 5, **HERE, space="text")
    assert "8 candidates were measured in K562 and are left out: 'P0'" in caplog.text
    named = ptrag_sc.tl.design(adata, None, 5, **HERE, measured=NAMES[:8])
    pd.testing.assert_frame_equal(table, named)
    assert table.attrs == named.attrs  # P8 and others that are held out are not among the measured
    assert not set(table["perturbation"]) & set(NAMES[:8])


def test_batch_by_batch_is_as_at_once(adata):
    at_once = ptrag_sc.tl.design(adata, None, 12, **HERE)["perturbation"].tolist()
    found = []
    for _ in range(3):
        batch = ptrag_sc.tl.design(adata, None, 4, **HERE, measured=found, targets=NAMES)
        found += batch["perturbation"].tolist()
    assert found == at_once


def test_responses_are_those_of_other_cell_types(adata, model):
    table = ptrag_sc.tl.design(adata, model, 6, **HERE)
    assert table.attrs["space"] == "responses in other cell types"
    changed = adata.copy()
    here = (adata.obs["line"] == "K562").to_numpy() & (adata.obs["gene"] != "ctl").to_numpy()
    changed.X[here] = np.random.default_rng(0).permutation(changed.X[here])
    del changed.uns["gene_embedding"]  # not needed where every response is known
    again = ptrag_sc.tl.design(changed, model, 6, **HERE)
    pd.testing.assert_frame_equal(table, again)
    elsewhere = (adata.obs["line"] == "RPE1").to_numpy() & (adata.obs["gene"] != "ctl").to_numpy()
    changed.X[elsewhere] = np.random.default_rng(0).permutation(changed.X[elsewhere])
    other = ptrag_sc.tl.design(changed, model, 6, **HERE)
    assert not np.allclose(table["variance_reduction"], other["variance_reduction"])


def test_text_where_no_response_is_known(adata):
    half = set_up(
        adata[~((adata.obs["line"] == "RPE1") & adata.obs["gene"].isin(NAMES[30:]))].copy(), split_key="split"
    )
    fitted = MeanShift(half).fit()
    table = ptrag_sc.tl.design(half, fitted, 10, **HERE)
    assert "responses of 30 of 48 perturbations" in table.attrs["space"]
    assert set(table["perturbation"]) & set(NAMES[30:])
    with pytest.raises(ValueError, match=r"18 perturbations without a response .*'P30'.* Pass space='auto'"):
        ptrag_sc.tl.design(half, fitted, 10, **HERE, space="response")


def test_a_new_cell_type_has_nothing_measured(adata, model):
    table = ptrag_sc.tl.design(adata, model, 6, cell_type="HepG2", candidates=NAMES)
    assert table.attrs["n_measured"] == 0
    assert table.attrs["space"] == "responses in other cell types"


def test_include_and_exclude(adata):
    first = ptrag_sc.tl.design(adata, None, 3, **HERE)["perturbation"].tolist()
    table = ptrag_sc.tl.design(adata, None, 3, **HERE, include=["P7"], exclude=first[:1])
    assert table["perturbation"][0] == "P7"
    assert first[0] not in set(table["perturbation"])


def test_costs(adata):
    cheap = dict.fromkeys(NAMES, 10.0) | {"P7": 0.01}
    table = ptrag_sc.tl.design(adata, None, 48, **HERE, costs=cheap, budget=35)
    assert table["perturbation"][0] == "P7"
    assert len(table) == 4  # .01 + 3 x 10


def test_of_many_targets_a_sample_is_used(monkeypatch, adata):
    monkeypatch.setattr("ptrag_sc.tl._design.MAX_TARGETS", 30)
    table = ptrag_sc.tl.design(adata, None, N_GROUPS, **HERE)
    assert table.attrs["n_targets"] == 30
    assert {group_of(name) for name in table["perturbation"]} == set(range(N_GROUPS))


def test_few_targets_are_warned_of(adata, caplog):
    ptrag_sc.tl.design(adata, None, 2, **HERE, targets=["P1", "P2"])
    assert "Only 2 targets" in caplog.text


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"n": 49}, ValueError, "n=49 in tl.design is above the 48 candidates that are left"),
        ({"n": 1, "include": ["P1", "P2"]}, ValueError, "n=1 in tl.design is below the 2 perturbations to include"),
        ({"candidates": [*NAMES, "XYZ"]}, KeyError, "'XYZ' is not in the gene embedding.*gene_embedding="),
        ({"candidates": ["ctl", "P1"]}, ValueError, "hold the control 'ctl'"),
        ({"exclude": ["Q1"]}, KeyError, "'Q1' is not in candidates"),
        ({"include": ["P1"], "exclude": ["P1"]}, ValueError, "which is in exclude too"),
        ({"include": ["P1"], "measured": ["P1"]}, ValueError, "what has been measured too"),
        ({"space": "gene"}, ValueError, "'gene' does not occur in the known values"),
        ({"space": "response"}, ValueError, "without a response in another cell type"),
        ({"budget": 3}, ValueError, "comes without costs"),
        ({"costs": {"P1": 1.0}}, KeyError, "are not in costs"),
        ({"costs": dict.fromkeys(NAMES, 1.0) | {"P3": 0.0}}, ValueError, "not above 0 for 'P3'"),
        ({"costs": dict.fromkeys(NAMES, 1.0), "budget": 1, "include": ["P1", "P2"]}, ValueError, "below the cost 2"),
        ({"targets": []}, ValueError, "targets in tl.design are empty"),
        ({"n": 2.5}, TypeError, "no whole number"),
        ({"model": "RPE1"}, TypeError, "is no Predictor"),
    ],
)
def test_bad_input_is_refused(adata, change, error, words):
    options = {"model": None, "n": 3} | HERE | change
    with pytest.raises(error, match=words):
        ptrag_sc.tl.design(adata, options.pop("model"), options.pop("n"), **options)


def test_curve_design_beats_random_choice(adata):
    everything = set_up(grouped_screen())
    curve = ptrag_sc.tl.design_curve(
        everything, NearestPerturbations(everything).fit(), cell_type="K562", n_perturbations=[6, 32], n_repeats=6
    )
    mean = curve.set_index(["choice", "n_perturbations"])["pearson_delta_pert"]
    assert mean["design", 6] > mean["random", 6] + 0.1
    assert np.isclose(mean["design", 32], mean["random", 32])  # all that there are
    assert (curve["low"] <= curve["pearson_delta_pert"]).all()
    assert (curve["pearson_delta_pert"] <= curve["high"]).all()
    assert curve.attrs["predictor"] == "kernel ridge on the gene embedding"
    with pytest.raises(ValueError, match=r"n_perturbations=33 .* is not between 2 and the 32 perturbations"):
        ptrag_sc.tl.design_curve(everything, None, cell_type="K562", n_perturbations=[33])


def test_curve_of_few_perturbations(adata, caplog):
    # Eight were measured in K562; the others are held out.
    with pytest.raises(ValueError, match="holds 8 measured perturbations of 'K562'"):
        ptrag_sc.tl.design_curve(adata, None, cell_type="K562")
    with pytest.raises(KeyError, match="Cell type 'A549' does not occur"):
        ptrag_sc.tl.design_curve(adata, None, cell_type="A549")
    few = set_up(adata[adata.obs["gene"].isin(["ctl", *NAMES[:20]])].copy())
    ptrag_sc.tl.design_curve(few, None, cell_type="K562", n_repeats=1, space="text")
    assert "Only 20 perturbations were measured in K562. With fewer than 40, expect a pearson_delta_pert below .1" in (
        caplog.text
    )
