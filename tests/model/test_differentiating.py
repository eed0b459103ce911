"""Does a model with time recover effects, and what happens to control cells with a learned residual?"""

import numpy as np
import pytest
import scvi
import torch

import ptrag_sc
from ptrag_sc.data import read_screen
from ptrag_sc.data._fields import ScreenKeys
from ptrag_sc.data._null_sets import WithNullSets
from ptrag_sc.model._objective import training_losses
from ptrag_sc.model._sets import training_sets
from ptrag_sc.nn import Changes
from screens import SMALL, TRAIN, set_up_screen, train_small

KEYS = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}
TIME = {"time_key": "time", "start": "start"}


def simulated(drift, n_cells=1500):
    shape = {"n_genes": 60, "n_perturbations": 12, "n_cell_types": 2}
    adata = ptrag_sc.datasets.simulated(n_cells=n_cells, **shape, differentiating=True, drift=drift)
    names = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "control": "non-targeting"}
    ptrag_sc.pp.split(adata, **names, holdout="pair", test_fraction=0.3, val_fraction=0.1)
    return adata


def set_up(adata, **keys):
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="batch", split_key="split", **keys)
    return adata


@pytest.fixture(scope="module")
def adata():
    return set_up(simulated(2.0), **TIME)


@pytest.fixture(scope="module")
def baseline(adata):
    return ptrag_sc.baselines.PerturbationMean(adata).fit()


@pytest.fixture(scope="module")
def hidden():
    """A model whose control cells change, on a screen without time."""
    return train_small(set_up_screen(), max_epochs=4, residual="hidden")


def effect_error(adata):
    """Root mean squared error of the predicted effects of the test conditions."""
    model = ptrag_sc.baselines.NearestPerturbations(adata, n_neighbors=4).fit()
    truth = adata.uns["truth"]
    test = adata.obs[adata.obs["split"] == "test"][["perturbation", "cell_type"]].drop_duplicates()
    errors = []
    for name, table in test[test["perturbation"] != "non-targeting"].groupby("cell_type", observed=True):
        labels = tuple(table["perturbation"])
        screen = model.read(adata)
        state = model.prepare(labels, model.resolve(labels, adata), screen)
        code = list(screen.index.cell_types).index(name)
        shift = np.concatenate([part.shift for part in model.expected_shifts(labels, screen, code, state=state)])
        place = {tuple(row): i for i, row in enumerate(truth["conditions"].to_numpy())}
        rows = [place[label, name] for label in labels]
        errors.append(np.square(shift - truth["effects"][rows]))
    return np.sqrt(np.concatenate(errors).mean())


@pytest.mark.parametrize("drift", [2.0, 4.0])
def test_effects_are_recovered_in_spite_of_the_drift(drift):
    adata = simulated(drift, n_cells=3000)
    at_start = adata[(adata.obs["perturbation"] != "non-targeting") | (adata.obs["time"] == "start")].copy()
    assert effect_error(set_up(adata, **TIME)) < 0.5 * effect_error(set_up(at_start))


def test_without_drift_time_costs_nothing():
    adata = simulated(0.0, n_cells=3000)
    assert effect_error(set_up(adata.copy(), **TIME)) < 1.05 * effect_error(set_up(adata))


def test_control_cells_drift_from_start_to_end_only(adata, baseline):
    """The exact null holds from start to start: there T(x, control) = x; to the end it is x plus the drift."""
    predicted = ptrag_sc.tl.predict(adata, baseline, counts=False, copy=True)
    drift = baseline.drift_.of(adata.obs["cell_type"].to_numpy())  # (n, G)
    cells = adata.X.toarray()
    sources = adata.obs_names.get_indexer(predicted.obs["ptrag_source"].astype(str))
    at_start = (adata.obs["time"] == "start").to_numpy()
    assert at_start[sources].all()
    np.testing.assert_array_equal(predicted.obsm["ptrag"][at_start], cells[at_start])
    end = ~at_start & (adata.obs["perturbation"] == "non-targeting").to_numpy()
    np.testing.assert_allclose(predicted.obsm["ptrag"][end], (cells[sources] + drift)[end], atol=1e-5)
    realised = ptrag_sc.tl.predict(adata, baseline, counts=True, copy=True)
    counts = realised.obsm["ptrag_counts"].toarray()
    np.testing.assert_array_equal(counts[at_start], adata.layers["counts"].toarray()[at_start])
    assert (counts[end] != adata.layers["counts"].toarray()[sources[end]]).any(1).all()
    moved = realised.obsm["ptrag"].toarray()[end].mean(0) - cells[sources[end]].mean(0)
    assert np.corrcoef(moved, drift[end].mean(0))[0, 1] > 0.95
    ptrag_sc.tl.effect(predicted)
    effect = predicted.uns["ptrag"]["effect"]
    table = ptrag_sc.tl.predict_effects(adata, baseline, str(effect["conditions"]["perturbation"].iloc[0]))
    wanted = table[table["cell_type"] == effect["conditions"]["cell_type"].iloc[0]]["shift"]
    np.testing.assert_allclose(effect["predicted"][0], wanted, atol=1e-4)
    assert effect["conditions"]["pearson_delta"].median() > 0.3


def test_prediction_for_cells_at_the_start_alone(adata, baseline):
    at_start = adata[adata.obs["time"] == "start"].copy()
    name = str(adata.uns["gene_embedding"]["genes"][0])
    for counts in (False, True):
        virtual = ptrag_sc.tl.perturb(at_start, baseline, name, counts=counts)
        both = ptrag_sc.tl.perturb(adata, baseline, name, counts=counts)
        difference = virtual.to_df() - both.to_df()
        assert np.abs(difference.to_numpy()).mean() < 0.05  # own effects: level at the end observed, or predicted
    table = ptrag_sc.tl.predict_effects(at_start, baseline, name)
    observed = ptrag_sc.tl.predict_effects(adata, baseline, name)
    assert np.abs(table["control"] - observed["control"]).mean() < 0.2
    keys = {"perturbation": name, "counts": False, "copy": True}
    assert ptrag_sc.tl.predict(adata, baseline, **keys).obs["ptrag_predicted"].sum() == len(at_start)


def test_null_error_is_that_at_the_end(adata, baseline):
    reference = ptrag_sc.metrics.Reference.from_adata(adata)
    table = ptrag_sc.benchmark.null_error(adata, baseline, reference=reference)
    still = baseline.drift_
    baseline.drift_ = still._replace(mean=np.zeros_like(still.mean))
    without = ptrag_sc.benchmark.null_error(adata, baseline, reference=reference)
    baseline.drift_ = still
    assert (table["value"] < 0.3 * without["value"]).all()


@pytest.mark.parametrize("residual", ["anchored", "hidden"])
def test_training_saving_and_growing(adata, tmp_path, residual):
    old = set_up(adata[adata.obs["cell_type"] == "type_0"].copy(), **TIME)
    scvi.settings.seed = 0
    model = ptrag_sc.PTRAG(old, **SMALL | {"memory": "response"}, residual=residual)
    model.train(2, **TRAIN)
    model.save(tmp_path)
    again = ptrag_sc.PTRAG.load(tmp_path, old, accelerator="cpu")
    name = str(model.candidates_[0])
    first, second = (m.predict(old, perturbations=name, counts=False).X for m in (model, again))
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert again.keys_.start == "start"
    again.extend_memory(adata)
    assert again.drift_.cell_types == ("type_0", "type_1")
    np.testing.assert_allclose(again.drift_.mean[0], model.drift_.mean[0])


def test_a_hidden_residual_changes_control_cells(hidden, trained):
    """The anchored form leaves them exactly as they are, the hidden one does not, and effects are differences."""
    adata = hidden.adata
    control = (adata.obs["gene"] == "ctl").to_numpy()
    cells = adata.X.toarray()[control]
    for model, stays in ((trained, True), (hidden, False)):
        predicted = ptrag_sc.tl.predict(model.adata, model, counts=False, copy=True).obsm["ptrag"][control]
        assert np.array_equal(predicted, cells) == stays
    labels, screen = ("G0", "G1+G2"), hidden.read(adata)
    state = hidden.prepare(labels, hidden.resolve(labels, adata), screen)
    (basal,) = hidden.module.encode_cells(torch.as_tensor(cells[:8])[None]).detach()
    found = hidden.module.mean_shift(basal, state, torch.tensor([0, 1, 2]), 0).shift
    recall = state.recall(torch.tensor([0, 1, 2]), torch.zeros(3, dtype=torch.int64))
    inputs = torch.as_tensor(cells[:8]).expand(3, 8, -1), torch.ones(3, 8, dtype=torch.bool)
    with torch.no_grad():
        inferred = hidden.module.inference(*inputs, recall=recall, keys=state.keys, slots=recall.joined.rows)
        parts = {name: inferred[name] for name in ("basal", "refined", "recall")}
        means = hidden.module.generative(*inputs, **parts)["cells"].mean(1)
    np.testing.assert_allclose(found, means - means[0], atol=1e-5)
    assert found[1:].abs().max() > 1e-3
    assert (found[0] == 0).all()


def samplers(adata, keys):
    screen = read_screen(adata, keys)
    split = screen.index.named(screen.index.conditions)
    held_out = screen.index.cell_types[-1]
    split = split.assign(split=np.where(split["cell_type"] == held_out, "test", "train"))
    _, train, _ = training_sets(screen.index, split, set_size=12, batch_size=4, seed=0)
    return screen, train


@pytest.mark.parametrize("timed", [False, True])
def test_null_sets(adata, timed):
    keys = ScreenKeys(**KEYS, batch_key="batch", **(TIME if timed else {}))
    screen, train = samplers(adata, keys)
    index, seen = screen.index, set()
    both = WithNullSets(train)
    assert len(both) == len(train)
    for epoch in range(6):
        both.set_epoch(epoch)
        for plain, joined in zip(train, both, strict=True):
            n = len(plain.query)
            assert all(np.array_equal(a, b[:n]) for a, b in zip(plain, joined, strict=True))
            assert len(joined.query) == n + np.ceil(n / 4)
            assert not joined.query[n:].any()
            for b in range(n, len(joined.query)):
                a = joined.control[b][joined.control_mask[b]]
                other = joined.target[b][joined.target_mask[b]]
                assert index.is_source[a].all()
                assert index.is_control[other].all()
                assert len({*a, *other}) == len(a) + len(other)
                assert len(set(index.batch[[*a, *other]])) == 1
                seen.add(int(joined.cell_type[b]))
    assert seen == {0, 1}  # the held-out cell type too


def test_losses_of_null_sets_stand_apart():
    torch.manual_seed(0)
    mask = torch.ones(5, 6, dtype=torch.bool)
    tensors = {"target_cells": torch.randn(5, 6, 4), "control_mask": mask, "target_mask": mask}
    changes = Changes(torch.randn(5, 6, 4), torch.randn(5, 4), torch.randn(5, 6, 2), torch.randn(2, 4))
    recalled = torch.randn(5, 4)
    is_null = torch.tensor([False, False, True, False, True])

    def some(rows):
        parts = {name: x[rows] for name, x in tensors.items()}
        some_changes = Changes(*(x[rows] for x in changes[:3]), changes.directions)
        return training_losses(parts, {"changes": some_changes, "recalled": recalled[rows]}, "energy_distance")

    query = {"query": torch.where(is_null, 0, 3)}
    found = training_losses(
        {**tensors, **query}, {"changes": changes, "recalled": recalled}, "energy_distance", with_null=True
    )
    torch.testing.assert_close(found["set_loss"], some(~is_null)["set_loss"])
    torch.testing.assert_close(found["recalled_loss"], some(~is_null)["recalled_loss"])
    torch.testing.assert_close(found["null_loss"], some(is_null)["set_loss"])


def test_a_null_weight_without_effect_is_refused(screen):
    with pytest.raises(ValueError, match="changes nothing with residual='anchored'"):
        ptrag_sc.PTRAG(screen, **SMALL, null_weight=1.0)
    with pytest.raises(ValueError, match="residual="):
        ptrag_sc.PTRAG(screen, **SMALL, residual="learned")
    assert ptrag_sc.PTRAG(screen, **SMALL, residual="hidden").module.params.null_weight == 1.0
