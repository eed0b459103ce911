"""Are predicted effects the means of predicted cells, with the evidence that they say they have?"""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

import ptrag_sc
from baselines.oracles import slow_shifts
from own_targets import slow_masked, targeted_screen, targets
from ptrag_sc.baselines import MeanShift, NearestPerturbations, NoEffect, Stacked
from ptrag_sc.data._intervals import KNOWN, UNSEEN
from ptrag_sc.model._trainer import KeepBest
from screens import SMALL, TRAIN

HELD_OUT = {("G1", "K562"), ("G1", "RPE1"), ("G2", "RPE1")}
LABELS = ["G1", "G2", "G4", "G0+G1", "G3+G5"]  # seen nowhere, elsewhere, here; combinations, one of them measured
COLUMNS = {
    "perturbation": "category",
    "cell_type": "category",
    "gene": "category",
    "control": "float32",
    "shift": "float32",
    "lower": "float32",
    "upper": "float32",
    "call": "bool",
    "own": "bool",
    "agreement": "float32",
    "neighbour": "category",
    "neighbour_shift": "float32",
}


@pytest.fixture(scope="module")
def adata():
    """Two cell types, measured targets; do not change it."""
    made = targeted_screen(held_out=HELD_OUT)
    made.obs.loc[(made.obs["gene"] == "G6").to_numpy(), "split"] = "val"
    return made


@pytest.fixture(scope="module")
def neighbours(adata):
    return NearestPerturbations(adata, n_neighbors=4).fit()


@pytest.fixture(scope="module")
def table(adata, neighbours):
    return ptrag_sc.tl.predict_effects(adata, neighbours, LABELS)


def predicted_means(model, adata, labels, cell_types=None):
    """Mean over all control cells of smooth prediction minus control cell: {(perturbation, cell type): (G,)}."""
    predicted = model.predict(adata, perturbations=labels, cell_types=cell_types, counts=False)
    source = adata[predicted.obs["ptrag_source"]].X
    change = predicted.X.astype(float) - (source if isinstance(source, np.ndarray) else source.toarray())
    keys = [predicted.obs["gene"].astype(str).to_numpy(), predicted.obs["line"].astype(str).to_numpy()]
    means = pd.DataFrame(change).groupby(keys).mean()
    return {key: row.to_numpy() for key, row in means.iterrows()}


def of_condition(table, label, line):
    part = table[(table["perturbation"] == label) & (table["cell_type"] == line)]
    assert len(part)
    return part


@pytest.mark.parametrize("name", ptrag_sc.baselines.__all__)
def test_shifts_of_baselines_are_means_of_their_cells(name, adata):
    fitted = getattr(ptrag_sc.baselines, name)(adata).fit()
    before = predicted_means(fitted, adata, LABELS)
    table = ptrag_sc.tl.predict_effects(adata, fitted, LABELS)
    for (label, line), mean in before.items():
        np.testing.assert_allclose(of_condition(table, label, line)["shift"], mean, atol=1e-5)
    after = predicted_means(fitted, adata, LABELS)  # what intervals are learned from changes no prediction
    for key, mean in before.items():
        np.testing.assert_array_equal(mean, after[key])
    assert np.isfinite(table[["shift", "lower", "upper"]].to_numpy()).all()


@pytest.mark.parametrize("memory", [None, "response"])
def test_shifts_of_an_untrained_model_are_means_of_its_cells(memory, adata):
    model = ptrag_sc.PTRAG(adata, **{**SMALL, "memory": memory})
    table = ptrag_sc.tl.predict_effects(adata, model, LABELS)
    means = predicted_means(model, adata, LABELS)
    for (label, line), mean in means.items():
        np.testing.assert_allclose(of_condition(table, label, line)["shift"], mean, atol=1e-4)
    assert np.abs(list(means.values())).max() > 0.3


def test_shifts_of_a_trained_model_are_nearly_those_of_its_cells(adata, monkeypatch):
    """Sixteen control cells, chosen by name, stand for all: in any order of the rows the same."""
    monkeypatch.setattr(KeepBest, "restore", lambda *_: None)
    model = ptrag_sc.PTRAG(adata, **{**SMALL, "memory": "response"})
    model.train(6, **TRAIN, plan_kwargs={"lr": 1e-2})
    model.module.recalled_share.fill_(0.5)
    table = ptrag_sc.tl.predict_effects(adata, model, LABELS)
    for (label, line), mean in predicted_means(model, adata, LABELS).items():
        shift = of_condition(table, label, line)["shift"].to_numpy()
        assert np.linalg.norm(shift - mean) < 0.15 * np.linalg.norm(mean)
    order = np.random.default_rng(0).permutation(adata.n_obs)
    again = ptrag_sc.tl.predict_effects(adata[order].copy(), model, LABELS)
    np.testing.assert_allclose(again["shift"], table["shift"], atol=1e-5)
    np.testing.assert_allclose(again["lower"], table["lower"], atol=1e-5)


def test_rows_and_columns(table, adata):
    assert table.dtypes.astype(str).to_dict() == COLUMNS
    assert list(table.columns) == list(COLUMNS)
    assert len(table) == 2 * len(LABELS) * adata.n_vars
    assert list(table["gene"].cat.categories) == list(adata.var_names)
    assert list(table["gene"][: adata.n_vars]) == list(adata.var_names)
    assert list(table["perturbation"].cat.categories) == LABELS
    assert set(table["cell_type"]) == {"K562", "RPE1"}
    control = adata[(adata.obs["gene"] == "ctl") & (adata.obs["line"] == "RPE1")].X.toarray().mean(0)
    np.testing.assert_allclose(of_condition(table, "G4", "RPE1")["control"], control, rtol=1e-5)
    for label in LABELS:
        own = of_condition(table, label, "K562")["own"].to_numpy()
        assert np.flatnonzero(own).tolist() == sorted(targets(label, list(adata.var_names)))
    np.testing.assert_allclose(table["upper"] - table["shift"], table["shift"] - table["lower"], atol=1e-5)


def test_requests_are_canonical_and_chosen(adata, neighbours, table):
    few = ptrag_sc.tl.predict_effects(adata, neighbours, ["G1+G0", "G4", "G4"], cell_types="RPE1")
    assert few["perturbation"].unique().tolist() == ["G0+G1", "G4"]
    for label in ("G0+G1", "G4"):
        same = of_condition(table, label, "RPE1")
        found = of_condition(few, label, "RPE1")
        np.testing.assert_array_equal(found[["shift", "lower"]], same[["shift", "lower"]])
    with pytest.raises(KeyError, match="Cell type 'HeLa' does not occur"):
        ptrag_sc.tl.predict_effects(adata, neighbours, "G1", cell_types="HeLa")
    with pytest.raises(ValueError, match="hold the control"):
        ptrag_sc.tl.predict_effects(adata, neighbours, "ctl")
    with pytest.raises(TypeError, match="Pass the data first"):
        ptrag_sc.tl.predict_effects(neighbours, adata, "G1")


def test_many_perturbations_are_answered_as_one_by_one(adata, neighbours):
    genes = [f"G{i}" for i in range(8)]
    labels = [*genes, *(f"{a}+{b}" for i, b in enumerate(genes) for a in genes[:i])]
    labels += [f"{a}+{b}+{c}" for k, c in enumerate(genes) for j, b in enumerate(genes[:k]) for a in genes[:j]]
    assert len(labels) > 64
    together = ptrag_sc.tl.predict_effects(adata, neighbours, labels, cell_types="K562")
    for label in (labels[0], labels[63], labels[64], labels[-1]):
        alone = ptrag_sc.tl.predict_effects(adata, neighbours, label, cell_types="K562")
        found = of_condition(together, label, "K562")
        for column in ("shift", "lower", "agreement", "neighbour_shift"):
            np.testing.assert_allclose(found[column], alone[column], atol=1e-6)
        assert found["neighbour"].astype(str).tolist() == alone["neighbour"].astype(str).tolist()


def test_evidence_equals_a_slow_loop(adata, neighbours, table):
    """Weights from the table of retrieval; what the candidates did from the cells, own targets masked."""
    retrieved = neighbours.predict(perturbations=LABELS).uns["ptrag"]["retrieval"]
    genes = list(adata.var_names)
    measured = slow_masked(slow_shifts(adata), genes)
    for label in LABELS:
        for line in ("K562", "RPE1"):
            part = of_condition(table, label, line)
            own = retrieved[(retrieved["perturbation"] == label) & (retrieved["cell_type"] == line)]
            for g in range(len(genes)):
                row, sign = part.iloc[g], np.sign(part["shift"].iloc[g])
                evidence = [(r.weight, measured[r.candidate, line][g], r.candidate) for r in own.itertuples()]
                agreement = sum(w for w, value, _ in evidence if value * sign > 0)
                assert row["agreement"] == pytest.approx(agreement / own["weight"].sum(), abs=1e-5)
                _, value, name = max(evidence, key=lambda e: e[0] * e[1] * sign)
                assert row["neighbour"] == name
                assert row["neighbour_shift"] == pytest.approx(value, abs=1e-5)


def test_without_candidates_there_is_no_evidence(adata):
    table = ptrag_sc.tl.predict_effects(adata, MeanShift(adata).fit(), "G1")
    assert table[["agreement", "neighbour", "neighbour_shift"]].isna().all(axis=None)
    nothing = ptrag_sc.tl.predict_effects(adata, NoEffect(adata).fit(), "G1")
    assert (nothing["shift"] == 0).all()
    assert nothing.loc[nothing["gene"] == "G1", "own"].all()


def test_intervals_and_calls_equal_the_formula(adata, neighbours, table):
    errors = neighbours.effect_errors_
    kinds = {("G1", "K562"): UNSEEN, ("G2", "RPE1"): KNOWN, ("G2", "K562"): UNSEEN, ("G4", "K562"): KNOWN}
    n_calls = 0
    for (label, line), kind in kinds.items():
        part, found = of_condition(table, label, line), errors.of[line, kind]
        control = adata[(adata.obs["gene"] == "ctl") & (adata.obs["line"] == line)].X.toarray().astype(float)
        error = np.maximum(control.var(0) / len(control), found.control)
        t = student.ppf(0.95, found.n - 1)
        others = ~part["own"].to_numpy()
        width = (part["upper"] - part["shift"]).to_numpy()
        np.testing.assert_allclose(width[others], (t * np.sqrt(found.square))[others], rtol=1e-4)
        called = np.abs(part["shift"].to_numpy()) > t * np.sqrt(found.square + error)
        np.testing.assert_array_equal(part["call"].to_numpy()[others], called[others])
        n_calls += called.sum()
        (g,) = np.flatnonzero(~others)
        expected = found.own_half_width(0.9, control.mean(0)[[g]], control.var(0)[[g]])
        assert width[g] == pytest.approx(expected[0], rel=1e-4)
        wider = found.own_half_width(0.9, control.mean(0)[[g]], control.var(0)[[g]], further=error[[g]])
        assert part["call"].iloc[g] == (abs(part["shift"].iloc[g]) > wider[0])
    assert n_calls > 0


def test_genes_that_no_control_shows_are_not_called_for_that():
    """Few controls may miss a gene that all others show by chance; its error is that between all cells."""
    screen = targeted_screen(held_out=HELD_OUT)
    is_control = (screen.obs["gene"] == "ctl").to_numpy()
    values = screen.X.toarray()
    values[:, 3] = np.random.default_rng(5).random(screen.n_obs) < 0.3
    values[is_control, 3] = 0
    screen.X = values
    fitted = MeanShift(screen).fit()
    found = ptrag_sc.tl.predict_effects(screen, fitted, ["G1"], cell_types=["K562"])
    errors = fitted.effect_errors_.of["K562", UNSEEN]
    n_controls = (is_control & (screen.obs["line"] == "K562")).sum()
    assert errors.control[3] == pytest.approx(0.3 * 0.7 / n_controls, rel=0.25)
    half_width = found["upper"][3] - found["shift"][3]
    wider = np.hypot(half_width, student.ppf(0.95, errors.n - 1) * np.sqrt(errors.control[3]))
    assert found["call"][3] == (found["shift"][3] > wider)


def test_a_gene_that_no_cell_shows_is_never_called(monkeypatch):
    screen = targeted_screen(held_out=HELD_OUT)
    values = screen.X.toarray()
    values[:, 12] = 0
    screen.X = values
    fitted = MeanShift(screen).fit()
    answer = type(fitted)._shift
    leak = np.arange(screen.n_vars) == 12

    def leaking(self, *arguments):
        found = answer(self, *arguments)
        return found._replace(shift=found.shift + 1e-6 * leak)

    fitted.learn_effect_errors()  # its residuals are 0
    monkeypatch.setattr(type(fitted), "_shift", leaking)
    table = ptrag_sc.tl.predict_effects(screen, fitted, ["G1"], cell_types=["K562"])
    assert table["shift"][12] > table["upper"][12] - table["shift"][12] == 0
    assert not table["call"][12]


def test_nothing_is_called_from_a_single_control_cell(adata, neighbours):
    """Its distance from the mean of controls is not known."""
    control = (adata.obs["gene"] == "ctl").to_numpy()
    one = adata[np.flatnonzero(control & (adata.obs["line"] == "K562").to_numpy())[:1]].copy()
    table = ptrag_sc.tl.predict_effects(one, neighbours, LABELS)
    assert not table["call"].any()
    others = table[~table["own"]]
    assert np.isfinite(others[["lower", "upper"]]).all(axis=None)
    assert (np.abs(others["shift"]) > (others["upper"] - others["shift"])).any()


def test_levels(adata, neighbours):
    for level in (0, 1, 1.2, -0.5):
        message = f"level={level} in the request is not between 0 and 1. Pass for example 0.9"
        with pytest.raises(ValueError, match=message):
            ptrag_sc.tl.predict_effects(adata, neighbours, "G1", level=level)
    widths = []
    for level in (0.5, 0.9, 0.99):
        table = ptrag_sc.tl.predict_effects(adata, neighbours, "G4", level=level)
        widths.append((table["upper"] - table["lower"]).to_numpy())
    assert (widths[0] < widths[1]).all()
    assert (widths[1] <= widths[2]).all()


def test_a_cell_type_that_was_never_seen_has_no_intervals(adata, neighbours):
    new = adata[adata.obs["gene"] == "ctl"].copy()
    new.obs["line"] = np.where(new.obs["line"] == "RPE1", "Jurkat", new.obs["line"])
    table = ptrag_sc.tl.predict_effects(new, neighbours, ["G1", "G4"])
    assert set(table["cell_type"]) == {"Jurkat", "K562"}
    unknown = table["cell_type"] == "Jurkat"
    assert table.loc[unknown, ["lower", "upper"]].isna().all(axis=None)
    assert not table.loc[unknown, "call"].any()
    assert np.isfinite(table["shift"]).all()
    assert np.isfinite(table.loc[~unknown, ["lower", "upper"]].to_numpy()).all()
    for (label, line), mean in predicted_means(neighbours, new, ["G1", "G4"]).items():
        np.testing.assert_allclose(of_condition(table, label, line)["shift"], mean, atol=1e-5)


def test_a_new_fit_learns_its_intervals_anew(adata):
    fitted = Stacked(adata).fit()
    ptrag_sc.tl.predict_effects(adata, fitted, "G1")
    learned = fitted.effect_errors_
    ptrag_sc.tl.predict_effects(adata, fitted, "G4")
    assert fitted.effect_errors_ is learned
    assert fitted.fit().effect_errors_ is None


def test_validation_conditions_that_chose_weights_answer_nothing(adata):
    """G6 is one: where it is asked for, the interval is that of an unseen perturbation."""
    fitted = Stacked(adata).fit()
    assert "G6" in set(fitted.trained_on_["perturbation"])
    table = ptrag_sc.tl.predict_effects(adata, fitted, "G6", cell_types="K562")
    half_width = fitted.effect_errors_.find("K562", UNSEEN).half_width(0.9)
    others = (~table["own"]).to_numpy()
    found = ((table["upper"] - table["lower"]) / 2).to_numpy()[others]
    np.testing.assert_allclose(found, half_width[others], rtol=1e-4)


@pytest.mark.slow
def test_a_loaded_model_has_the_same_intervals(adata, tmp_path):
    model = ptrag_sc.PTRAG(adata, **{**SMALL, "memory": "response"})
    model.train(1, **TRAIN)
    expected = ptrag_sc.tl.predict_effects(adata, model, LABELS)
    model.save(tmp_path / "model")
    controls = adata[adata.obs["gene"] == "ctl"].copy()
    for data in (False, controls):
        again = ptrag_sc.PTRAG.load(tmp_path / "model", data, accelerator="cpu")
        found = ptrag_sc.tl.predict_effects(controls, again, LABELS)
        pd.testing.assert_frame_equal(found, expected, check_exact=False, atol=1e-6)
