"""Does the memory speak as it should: from the training split, never of the query's own cells, and exactly at first?"""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from lightning.pytorch import Callback
from scipy.spatial.distance import cosine

import ptrag_sc
from ptrag_sc.data import mean_shifts, read_screen
from ptrag_sc.data._fields import ScreenKeys
from ptrag_sc.model import _trainer
from ptrag_sc.model._objective import SHARES
from ptrag_sc.model._sets import gate_noise
from ptrag_sc.model._trainer import KeepBest
from ptrag_sc.model._training_plan import PTRAGTrainingPlan
from ptrag_sc.nn import Refined, energy_distance
from ptrag_sc.retrieval import Evidence, Recall, fit_ridge, view_memory
from screens import KEYS, SMALL, TRAIN, make_screen, train_small

MEMORY = {"memory": "response"}


def screen_of(seed=0):
    adata = make_screen(seed=seed, n_obs=900)
    ptrag_sc.pp.split(
        adata, perturbation_key="gene", control="ctl", cell_type_key="line", test_fraction=0.2, val_fraction=0.15
    )
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem", split_key="split")
    return adata


@pytest.fixture(scope="module")
def screen():
    return screen_of()


def train_kept(screen):
    """Return a model whose last weights are kept, and whose generator answers beside the memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeepBest, "restore", lambda *_: None)
        model = train_small(screen, **MEMORY)
    model.module.recalled_share.fill_(0.5)
    return model


@pytest.fixture(scope="module")
def trained(screen):
    return train_kept(screen)


@pytest.mark.parametrize("options", [MEMORY, {}])
def test_a_single_perturbation_retrieves_its_combinations_only_when_it_is_asked_for(screen, options):
    """Not in training and calibration, because a held-out gene has none."""
    model = ptrag_sc.PTRAG(screen, **{**SMALL, **options, "n_candidates": len(screen.obs["gene"].unique()) - 2})
    names = tuple(model.candidates_.tolist())
    assert {"G0+G1", "G2+G3"} <= set(names)
    view = model.view(model.read(screen))
    asked = model.query_table(names, model.tables_.embedding.vectors_for(names, "+"), view=view)
    trained = model.query_table(names, None, view=view, as_new=True)
    per_query = asked.neighbours.rows.shape[0] // (len(names) + 1)
    for q, name in enumerate(names, start=1):
        for row in range(q * per_query, (q + 1) * per_query):
            before, after = (
                {names[i] for i in t.neighbours.rows[row][t.neighbours.present[row]]} for t in (asked, trained)
            )
            own = {other for other in before if "+" not in name and name in other.split("+")}
            assert after == before - own
            assert not own or name in ("G0", "G1", "G2", "G3")
    assert any("G0+G1" in {names[i] for i in row} for row in asked.neighbours.rows[names.index("G0") * per_query :])


def test_the_trained_model_is_trained(screen, trained):
    scvi.settings.seed = 0
    before = dict(ptrag_sc.PTRAG(screen, **{**SMALL, **MEMORY}).module.named_parameters())
    of_generator = [name for name in before if name.startswith("generator")]
    assert all(not torch.equal(before[name], trained.module.get_parameter(name)) for name in of_generator)


def test_the_memory_does_not_learn_from_the_loss_of_the_generator(screen, monkeypatch):
    """Its weights follow from what it recalls: together with the generator it would learn that it is not needed."""
    model = ptrag_sc.PTRAG(screen, **{**SMALL, **MEMORY})
    weights = [p for name, p in model.module.refiner.named_parameters() if not name.startswith("value")]
    loss, reached = model.module.loss, {"loadings": [], "recalled": []}

    def watched(tensors, inferred, generated):
        if model.module.training:
            assert not generated["changes"].start.requires_grad
            outputs = {"loadings": generated["changes"].loadings, "recalled": generated["recalled"]}
            for name, found in reached.items():
                gradients = torch.autograd.grad(
                    outputs[name].square().sum(), weights, retain_graph=True, allow_unused=True
                )
                found.append(any(g is not None and bool(g.any()) for g in gradients))
        return loss(tensors, inferred, generated)

    monkeypatch.setattr(model.module, "loss", watched)
    model.train(2, **TRAIN)
    assert all(reached["recalled"])
    assert not any(reached["loadings"])
    assert len(reached["loadings"]) > 0


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_never_kept(screen):
    plan = plan_of(screen)
    start = np.full((1, 4, 11), 2.0)
    validated(plan, start)
    assert np.isnan(validated(plan, np.where(np.arange(4)[:, None] == 1, np.nan, start))[0])
    assert not plan.is_finite
    model = ptrag_sc.PTRAG(screen, **{**SMALL, **MEMORY})
    with pytest.raises(FloatingPointError, match="not finite"):
        model.train(3, **TRAIN, plan_kwargs={"lr": 1e20})
    assert all(tensor.isfinite().all() for tensor in model.module.parameters())


def test_an_untrained_model_answers_with_what_was_observed(screen):
    """The mean shift of the cell type plus weighted deviations of neighbours here and of the query elsewhere.

    A combination is the sum of its components' shifts, less what neighbours get.
    """
    model = ptrag_sc.PTRAG(screen, **{**SMALL, **MEMORY})
    memory, names = model.module.memory, list(model.candidates_)
    queries = ["G0", "G1+G2"]
    predicted = model.predict(screen, perturbations=queries, counts=False)
    table = model.get_retrieval(screen, perturbations=queries)
    for (query, line), part in table.groupby(["perturbation", "cell_type"]):
        t = model.tables_.cell_types.index(line)
        shift = memory.mean[t].clone()
        for row in part.itertuples():
            k = names.index(row.candidate)
            if row.candidate == query:
                share, data = model.module.mapped_share, read_screen(screen, ScreenKeys.of(screen))
                mapped = model.view(data, mapped_share=1.0).own[t, k]
                own = (1 - share) * memory.entries[k, 1 - t] + share * mapped
                shift += row.weight * own @ memory.directions
            elif row.candidate in query.split("+"):
                entry = memory.entries[k, t if memory.n_cells[k, t] > 0 else 1 - t] @ memory.directions
                shift += row.weight * (entry + memory.mean[t] @ memory.directions.T @ memory.directions / 2)
            else:
                shift += row.weight * memory.entries[k, t] @ memory.directions
        cells = predicted[(predicted.obs["gene"] == query) & (predicted.obs["line"] == line)]
        controls = screen[cells.obs["ptrag_source"].to_numpy()].X.toarray()
        np.testing.assert_allclose(cells.X - controls, np.tile(shift, (len(cells), 1)), atol=1e-5)


def test_a_medium_that_moves_all_perturbed_cells_moves_every_answer(screen):
    """Up to shrinkage, whose directions turn with it. In a combination it counts for each component, as a sum does."""
    medium, moved = np.random.default_rng(1).random(30).astype(np.float32), screen_of()
    moved.X = moved.X.toarray() + medium * (moved.obs["gene"] != "ctl").to_numpy()[:, None]
    ptrag_sc.PTRAG.setup_anndata(moved, **KEYS, batch_key="gem", split_key="split")
    asked = {"perturbations": ["G0", "G3", "G1+G2"], "counts": False}
    before, after = (ptrag_sc.PTRAG(s, **{**SMALL, **MEMORY}).predict(s, **asked) for s in (screen, moved))
    change = pd.DataFrame(after.X - before.X).groupby(before.obs["gene"].to_numpy()).mean()
    for name, times in (("G0", 1), ("G3", 1), ("G1+G2", 2)):
        np.testing.assert_allclose(change.loc[name], times * medium, atol=0.1)


def test_the_control_is_returned_as_it_is(trained, screen):
    ptrag_sc.tl.predict(screen, trained, key_added="null", counts=False)
    controls = (screen.obs["gene"] == "ctl").to_numpy()
    np.testing.assert_allclose(screen.obsm["null"][controls], screen.X.toarray()[controls], atol=1e-5)


def test_the_untrained_weights_are_kept_where_training_only_harms(screen, caplog):
    model, watch = ptrag_sc.PTRAG(screen, **{**SMALL, **MEMORY}), Watch()
    before = {name: tensor.clone() for name, tensor in model.module.named_parameters()}
    model.train(8, **TRAIN, plan_kwargs={"lr": 0.5}, callbacks=[watch])  # a rate that destroys the weights
    assert watch.losses[0] == watch.keep.best.loss < min(watch.losses[1:])  # the first check comes before training
    assert model.kept_epoch_ is None
    assert "No epoch was clearly better on the validation conditions: weights stay as before." in caplog.text
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.named_parameters())


class Watch(Callback):
    """Note every validation loss, and what was kept at the end."""

    def __init__(self):
        self.losses = []

    def on_validation_end(self, trainer, plan):
        self.losses.append(float(trainer.callback_metrics["validation_loss"]))

    def on_train_end(self, trainer, plan):
        self.keep = next(c for c in trainer.callbacks if isinstance(c, KeepBest))


@pytest.mark.slow
def test_the_kept_loss_is_that_of_the_kept_weights(screen, monkeypatch):
    """Validated again, by the check before a further training, the kept weights have the lowest loss that was seen."""
    monkeypatch.setattr(_trainer, "surpasses", lambda gains: True)  # no weights are refused
    scvi.settings.seed = 0
    model, first, again = ptrag_sc.PTRAG(screen, **{**SMALL, **MEMORY}), Watch(), Watch()
    model.train(8, **TRAIN, plan_kwargs={"lr": 1e-2}, callbacks=[first])
    assert len(set(first.losses)) > 1
    assert first.keep.best.loss == min(first.losses) < first.losses[0]
    loss = model.history["validation_loss"].iloc[:, 0].astype(float)
    assert loss[model.kept_epoch_] == pytest.approx(min(first.losses))
    model.n_epochs_ = 0  # so that the same validation sets are drawn
    model.train(1, **TRAIN, callbacks=[again])
    assert again.losses[0] == pytest.approx(min(first.losses), rel=1e-6)


def plan_of(screen):
    model = ptrag_sc.PTRAG(screen, **{**SMALL, **MEMORY})
    view = model.view(read_screen(screen, ScreenKeys.of(screen)))
    plan = PTRAGTrainingPlan(model.module, table=model.query_table(tuple(model.candidates_), None, view=view))
    plan._trainer = SimpleNamespace(world_size=1)
    return plan


def validated(plan, losses, agreement=None):
    agreement = np.zeros_like(losses) if agreement is None else agreement
    found = zip(losses, agreement, strict=True)
    plan._found = [tuple(torch.as_tensor(x, dtype=torch.float32) for x in part) for part in found]
    return float(plan.validated_loss()), round(float(plan.module.recalled_share), 1)


def test_the_share_of_the_memory_is_the_one_that_validates_best(screen):
    plan = plan_of(screen)
    assert validated(plan, np.tile([*range(10, -1, -1)], (2, 3, 1))) == (0.0, 1.0)
    assert validated(plan, np.tile([5.0] * 4 + [2.0] + [5.0] * 6, (2, 3, 1))) == (2.0, 0.4)
    assert validated(plan, np.tile([3.0] * 11, (2, 3, 1))) == (3.0, 1.0)  # of equals the largest
    first = plan_of(screen)
    losses = np.tile([1.0] * 10 + [2.0], (1, 4, 1))
    assert validated(first, losses) == (2.0, 1.0)  # before training the memory answers alone
    assert validated(first, losses)[0] == 1.0


def test_the_share_is_the_largest_of_those_alike_in_distance_and_then_in_agreement(screen):
    plan, rng = plan_of(screen), np.random.default_rng(0)
    noise, shares = rng.normal(size=(1, 50, 1)), np.array(SHARES)
    validated(plan, noise + 5 + 0 * shares)

    def worse_above(best):
        return (shares - best).clip(0) * rng.uniform(0.5, 1.5, (1, 50, 1))

    distance, agreement = noise + 5 + worse_above(0.6), -worse_above(0.3)
    assert validated(plan, distance)[1] == 0.6
    assert validated(plan, distance, agreement)[1] == 0.3
    assert validated(plan, noise + 5 + worse_above(0.2), agreement)[1] == 0.2
    assert validated(plan, distance, -agreement)[1] == 0.6  # agreement asks for the whole memory
    above = np.flip(distance, -1).copy()  # best for .4 and more: the nearest to the .3 of agreement
    assert validated(plan, above, agreement)[1] == 0.4
    unclear = distance + rng.normal(size=(1, 50, 1)) * 20 * (shares - 0.6).clip(0) ** 2
    assert validated(plan, unclear.clip(0))[1] > 0.6


def test_the_gain_of_a_check_is_how_far_the_distance_fell_in_each_condition(screen):
    plan, rng = plan_of(screen), np.random.default_rng(0)
    start = 20 + rng.random((1, 20, 1)) + np.ones((1, 20, 11))
    validated(plan, start**2)
    assert plan.gain is None  # nothing was trained
    gain = rng.normal(size=(1, 20, 1))
    validated(plan, (start - gain) ** 2)
    np.testing.assert_allclose(plan.gain, gain.ravel(), atol=1e-5)


@pytest.mark.parametrize(("gain", "kept"), [(0.3, "trained"), (0.02, "initial"), (-0.3, "initial")])
def test_trained_weights_are_kept_where_conditions_gain_beyond_chance(gain, kept):
    """A trainer and a plan that report losses of 20 conditions over 30 checks, and the epoch that is kept."""
    rng, keep = np.random.default_rng(0), _trainer.KeepBest()
    module = SimpleNamespace(state_dict=lambda: {})
    for check in range(31):
        gains = torch.from_numpy(gain + 0.2 * rng.normal(size=20))
        loss = 1 - float(gains.mean())
        plan = SimpleNamespace(module=module, is_finite=True, gain=gains, kept_before=None, epoch_offset=0)
        trainer = SimpleNamespace(
            callback_metrics={"validation_loss": loss}, sanity_checking=False, current_epoch=check
        )
        if not check:
            plan.gain = None
            trainer.sanity_checking, trainer.callback_metrics = True, {"validation_loss": 1.0}
        keep.on_validation_end(trainer, plan)
    assert keep.best is getattr(keep, kept)
    again = _trainer.KeepBest()
    again.load_state_dict(keep.state_dict())
    assert again.best == keep.best


def test_one_validation_condition_cannot_show_a_gain():
    keep = _trainer.KeepBest()
    keep.initial, keep.trained = _trainer.Kept(2.0, None, {}), _trainer.Kept(1.0, 3, {})
    keep.gains = [torch.ones(1)]
    assert keep.best is keep.initial


def noisy(adata, rows, seed=0):
    copy = adata.copy()
    x = copy.X.toarray()
    x[rows] += np.random.default_rng(seed).random(x[rows].shape).astype(np.float32)
    copy.X = x
    ptrag_sc.PTRAG.setup_anndata(copy, **KEYS, batch_key="gem", split_key="split")
    return copy


def test_held_out_cells_reach_nothing(screen, trained):
    other = train_kept(noisy(screen, (screen.obs["split"] == "test").to_numpy()))
    for name, tensor in trained.module.state_dict().items():
        assert torch.equal(tensor, other.module.state_dict()[name]), name
    asked = {"perturbations": ["G0", "G1+G2"], "counts": False}
    np.testing.assert_array_equal(trained.predict(screen, **asked).X, other.predict(screen, **asked).X)


def test_the_recall_of_a_training_condition_does_not_hold_its_own_cells(screen, trained):
    """With means, directions and shrinkage as they were: what is retrieved for a condition does not know its cells."""
    memory, labels = trained.module.memory, tuple(trained.candidates_)
    data = read_screen(screen, ScreenKeys.of(screen))
    p, t = 2, 1
    before, found = memory.entries.clone(), []
    for added in (0.0, 5.0):
        trained.module.memory_entries[p, t] += added
        found.append(trained.prepare(labels, None, data).recall(torch.tensor([p + 1]), torch.tensor([t])))
    trained.module.memory_entries.copy_(before)
    assert found[0].own.present.any() and found[0].neighbours.present.any()
    for first, second in zip(found[0].kinds, found[1].kinds, strict=True):
        for name, tensor in first._asdict().items():
            torch.testing.assert_close(tensor, getattr(second, name), rtol=0, atol=0, equal_nan=True, msg=name)
    assert torch.equal(found[0].mean, found[1].mean)


def test_nor_is_the_map_of_its_response_between_cell_types(screen, trained, monkeypatch):
    """With the penalty as it was: the map is learned from the other perturbations."""
    monkeypatch.setattr("ptrag_sc.retrieval._view.fit_ridge", partial(fit_ridge, penalties=(1.0,)))
    memory = trained.module.memory
    p, t = (memory.n_cells > 0).all(1).nonzero()[0].item(), 1
    changed = memory.entries.clone()
    changed[p, t] += 5.0
    before, after = (
        view_memory(m, torch.arange(len(m.mean)), m.controls, 1.0).own
        for m in (memory, memory._replace(entries=changed))
    )
    np.testing.assert_allclose(before[t, p], after[t, p], atol=1e-5)
    others = np.delete(np.arange(len(changed)), p)
    assert not np.allclose(before[t, others], after[t, others], atol=1e-3)


def test_entries_are_the_shifts_of_training_conditions_only(screen, trained):
    memory = trained.module.memory
    split = trained.split_
    train = {(r.perturbation, r.cell_type) for r in split[split["split"] == "train"].itertuples()}
    found = {
        (trained.candidates_[p], trained.tables_.cell_types[t]) for p, t in (memory.n_cells > 0).nonzero().tolist()
    }
    assert found == train
    view = read_screen(screen, ScreenKeys.of(screen))
    table = view.index.coded(split[split["split"] == "train"])
    shifts = mean_shifts(view.reader, view.index, table).shift
    for k, name in enumerate(trained.tables_.cell_types):
        rows = (split[split["split"] == "train"]["cell_type"] == name).to_numpy()
        np.testing.assert_allclose(memory.mean[k], shifts[rows].mean(0), atol=1e-5)


@pytest.mark.shapes
def test_a_saved_model_predicts_the_same_also_in_a_cell_type_that_it_never_saw(trained, screen, tmp_path):
    trained.save(tmp_path / "model")
    again = ptrag_sc.PTRAG.load(tmp_path / "model", screen, accelerator="cpu")
    new = screen[screen.obs["gene"] == "ctl"].copy()
    new.obs["line"] = np.where(new.obs["line"] == "RPE1", "HepG2", new.obs["line"])
    for cells in (screen, new):
        asked = {"perturbations": ["G0", "G1+G2"], "counts": False}
        np.testing.assert_array_equal(trained.predict(cells, **asked).X, again.predict(cells, **asked).X)
    assert set(again.predict(new, perturbations="G0").obs["line"]) == {"K562", "HepG2"}


def test_rows_batches_and_other_conditions_change_nothing(trained, screen):
    order = np.random.default_rng(0).permutation(screen.n_obs)
    first = trained.predict(screen, perturbations=["G0", "G3"], counts=False).to_df().sort_index()
    second = trained.predict(screen[order].copy(), perturbations=["G3", "G5", "G0"], counts=False).to_df()
    np.testing.assert_allclose(first, second.loc[first.index], atol=1e-5)
    trained._prediction_batch_size = 3
    third = trained.predict(screen, perturbations=["G0", "G3"], counts=False).to_df()
    trained._prediction_batch_size = 16
    np.testing.assert_allclose(first, third.loc[first.index], atol=1e-5)


def test_padded_cells_say_nothing_of_the_strength(trained, screen, monkeypatch):
    infer, n_padded = trained.module.inference, []

    def twice(control_cells, control_mask, **rest):
        found = infer(control_cells, control_mask, **rest)
        other = torch.where(control_mask[..., None], control_cells, 9.0)
        torch.testing.assert_close(infer(other, control_mask, **rest)["strength"], found["strength"])
        n_padded.append(int((~control_mask).sum()))
        return found

    monkeypatch.setattr(trained.module, "inference", twice)
    trained.predict(screen, perturbations=["G0", "G3"])
    assert sum(n_padded) > 0


def test_combinations_in_the_call_change_no_sampled_prediction(trained, screen):
    alone = trained.predict(screen, perturbations="G0", seed=3, counts=False).to_df()
    among = trained.predict(screen, perturbations=["G0", "G1+G2", "G4"], seed=3, counts=False).to_df()
    np.testing.assert_allclose(alone, among.loc[alone.index], atol=1e-5)
    one, two = np.ones(1, dtype=int), np.ones((1, 3), dtype=int)
    sets = SimpleNamespace(target=two, target_mask=two.astype(bool), query=one, cell_type=0 * one, ordinal=one)
    noise, more = (gate_noise(sets, ("G0",), np.array(["K562"]), [1, n, 4], seed=3) for n in (0, 2))
    assert torch.equal(noise, more[..., [0, 3, 4, 5, 6]])
    three = gate_noise(sets, ("G0",), np.array(["K562"]), [1, 3, 4], seed=3)  # beside a combination of three
    assert torch.equal(more, three[..., [0, 1, 2, 4, 5, 6, 7]])


@pytest.mark.slow
@pytest.mark.shapes
def test_two_runs_with_one_seed_are_bitwise_equal(trained):
    other = train_kept(screen_of())
    for name, tensor in trained.module.state_dict().items():
        assert torch.equal(tensor, other.module.state_dict()[name]), name


@pytest.mark.shapes
@pytest.mark.parametrize("retrieval", ["attention", "none"])
def test_other_retrievals_start_from_the_memory_too(screen, retrieval):
    model = ptrag_sc.PTRAG(screen, **{**SMALL, **MEMORY}, retrieval=retrieval)
    predicted = model.predict(screen, perturbations="G0", cell_types="K562", counts=False)
    change = predicted.X - screen[predicted.obs["ptrag_source"].to_numpy()].X.toarray()
    np.testing.assert_allclose(change, np.tile(change[0], (len(change), 1)), atol=1e-5)
    mean = model.module.memory.mean[model.tables_.cell_types.index("K562")].numpy()
    assert (np.abs(change[0] - mean).max() < 1e-5) == (retrieval == "none")
    model.train(2, **TRAIN)
    assert np.isfinite(model.history["validation_loss"].to_numpy(dtype=float)).all()


def test_random_candidates_are_a_null_of_the_memory_too(trained, screen):
    nearest, drawn = (trained.get_retrieval(screen, null=null) for null in (None, "random"))
    assert set(nearest.columns) == set(drawn.columns)
    itself = nearest["candidate"] == nearest["perturbation"]
    assert (nearest.loc[itself, "rank"] == 0).all()
    assert nearest.loc[itself, ["similarity", "similarity_response"]].isna().all(axis=None)
    is_part = [c in p.split("+") and c != p for p, c in zip(nearest["perturbation"], nearest["candidate"], strict=True)]
    itself |= np.array(is_part) & nearest["similarity"].isna()
    assert nearest.loc[~itself, "similarity"].between(-1, 1).all()
    assert nearest["similarity_response"].dropna().between(-1.0001, 1.0001).all()
    assert not nearest["candidate"].equals(drawn["candidate"])


def test_an_unknown_memory_is_refused(screen):
    with pytest.raises(ValueError, match="memory= 'text' does not occur"):
        ptrag_sc.PTRAG(screen, **{**SMALL, "memory": "text"})


def test_every_share_is_validated_as_the_prediction_with_that_share(screen):
    scvi.settings.seed = 0
    module = ptrag_sc.PTRAG(screen, **{**SMALL, **MEMORY}).module.eval()
    rng = torch.Generator().manual_seed(0)
    control, generated, recalled, target = torch.randn(4, 3, 6, 30, generator=rng)
    mask = torch.rand(2, 3, 6, generator=rng) < 0.8
    mask[..., :2] = True
    tensors = {"control_mask": mask[0], "target_mask": mask[1], "control_cells": control, "target_cells": target}
    present = torch.ones(3, 5, dtype=torch.bool)
    neighbours = Evidence(present.long(), present, torch.zeros(3, 5, 2), torch.zeros(3, 5, 7))
    nothing = Evidence(*(field[:, :0] for field in neighbours))
    gates = torch.ones(3, 6, 5)
    mean_shift = torch.randn(3, 30, generator=rng)
    recall = Recall(torch.zeros(3, 4), mean_shift, nothing, nothing, neighbours)
    inferred = {"recall": recall, "refined": Refined(control, gates, gates)}
    found = module.loss(tensors, inferred, {"generated": generated, "recalled": recalled}).extra_metrics
    for i, share in enumerate(SHARES):
        mixed = share * recalled + (1 - share) * generated
        torch.testing.assert_close(found["of_sets"][:, i], energy_distance(mixed, target, *mask))
        for b in range(3):
            means = [x[b, k[b]].mean(0).numpy() for x, k in ((control, mask[0]), (mixed, mask[0]), (target, mask[1]))]
            answer, true = means[1] - means[0], means[2] - means[0]
            cosines = [1 - cosine(answer - m, true - m) for m in (0, mean_shift[b].numpy())]
            assert float(found["agreement"][b, i]) == pytest.approx(sum(cosines), abs=1e-5)
