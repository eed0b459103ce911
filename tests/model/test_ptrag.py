"""Does the model keep its promises: null at the control, deterministic, invariant, honest about its split?"""

import logging

import numpy as np
import pytest
import scvi
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

import ptrag_sc
from ptrag_sc.data import RandomSets
from ptrag_sc.model._trainer import check_interval
from screens import KEYS, SMALL, TRAIN, make_screen, train_small


def predictions(model, adata, **options):
    result = model.predict(adata, perturbations=["G0", "G1+G2"], counts=False, **options)
    return result.to_df().sort_index()


def test_training_lowers_the_loss_and_writes_a_history(trained):
    loss = trained.history["train_loss"].to_numpy(dtype=float).ravel()
    assert loss[-3:].mean() < 0.85 * loss[:2].mean()
    assert set(trained.history) >= {"train_loss", "validation_loss", "gate_open_train"}


def test_every_parameter_is_trained(screen):
    scvi.settings.seed = 0
    model = ptrag_sc.PTRAG(screen, **SMALL)
    before = {name: p.clone() for name, p in model.module.named_parameters()}
    callback = _Snapshot()
    model.train(4, **TRAIN, callbacks=[callback])
    unmoved = [name for name, p in before.items() if torch.equal(p, callback.last[name])]
    assert unmoved == []


class _Snapshot(Callback):
    """Remember the last weights that were trained, before the best ones are restored."""

    def on_train_epoch_end(self, trainer, plan):
        self.last = {name: p.detach().clone() for name, p in plan.module.named_parameters()}


def test_two_runs_with_one_seed_are_bitwise_equal():
    runs = []
    for _ in range(2):
        adata = make_screen()
        ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem")
        model = train_small(adata, max_epochs=3, seed=5)
        runs.append((model.history["train_loss"].to_numpy(), predictions(model, adata).to_numpy()))
    assert (runs[0][0] == runs[1][0]).all()
    assert (runs[0][1] == runs[1][1]).all()


@pytest.fixture
def two_threads():
    """Two threads, as a user has by default; the other tests run on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow  # three models of the usual size
def test_several_threads_give_equal_runs_too(two_threads):
    results = []
    for _ in range(3):
        adata = ptrag_sc.datasets.simulated(n_cells=4000)
        keys = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}
        ptrag_sc.PTRAG.setup_anndata(adata, **keys)
        scvi.settings.seed = 0
        model = ptrag_sc.PTRAG(adata)
        model.train(1, accelerator="cpu", enable_progress_bar=False)
        results.append(model.predict(adata, perturbations=str(model.candidates_[0]), n_cells=50, counts=False).X)
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


@pytest.mark.shapes
@pytest.mark.parametrize("retrieval", ["gumbel", "attention", "none"])
def test_the_control_is_returned_exactly_and_perturbations_are_not(retrieval, screen):
    model = train_small(screen, max_epochs=3, retrieval=retrieval)
    ptrag_sc.tl.predict(screen, model, counts=False)
    control = (screen.obs["gene"] == "ctl").to_numpy()
    observed = screen.X.toarray()
    assert np.array_equal(screen.obsm["ptrag"][control], observed[control])
    assert (
        np.abs(
            screen.obsm["ptrag"][~control]
            - observed[screen.obs_names.get_indexer(screen.obs["ptrag_source"])][~control]
        ).max()
        > 0.1
    )
    table = screen.uns["ptrag"]["retrieval"]
    assert (len(table) == 0) == (retrieval == "none")


def test_nothing_in_the_call_changes_a_prediction(trained):
    adata = make_screen()
    base = predictions(trained, adata)
    rng = np.random.default_rng(0)
    permuted = adata[rng.permutation(adata.n_obs)].copy()
    np.testing.assert_allclose(predictions(trained, permuted), base, atol=1e-5)
    more = trained.predict(adata, perturbations=["G5", "G0", "G3", "G1+G2"], counts=False).to_df()
    np.testing.assert_allclose(more.loc[base.index], base, atol=1e-5)
    one = trained.predict(adata, perturbations="G0", cell_types="RPE1", counts=False).to_df()
    np.testing.assert_allclose(one, base.loc[one.index], atol=1e-5)
    controls = adata[adata.obs["gene"] == "ctl"]
    np.testing.assert_allclose(predictions(trained, controls), base, atol=1e-5)


def test_the_batch_size_of_prediction_changes_nothing(trained, monkeypatch):
    adata = make_screen()
    base = predictions(trained, adata)
    for size in (1, 3, 100):
        monkeypatch.setattr(type(trained), "_prediction_batch_size", size)
        np.testing.assert_allclose(predictions(trained, adata), base, atol=1e-5)


def test_annotated_predictions_do_not_depend_on_row_order(trained):
    adata = make_screen()
    permuted = adata[np.random.default_rng(1).permutation(adata.n_obs)].copy()
    for seed in (None, 4):
        for each in (adata, permuted):
            ptrag_sc.tl.predict(each, trained, seed=seed, counts=False)
        np.testing.assert_allclose(permuted[adata.obs_names].obsm["ptrag"], adata.obsm["ptrag"], atol=1e-5)
        assert (
            permuted[adata.obs_names].obs["ptrag_source"].astype(str) == adata.obs["ptrag_source"].astype(str)
        ).all()


def test_seeds_sample_gates_and_none_is_deterministic(screen):
    model = train_small(screen, max_epochs=2)
    torch.nn.init.constant_(model.module.refiner.gates.scorer.out.bias, 0.0)  # gates that noise decides
    fixed = [predictions(model, screen) for _ in range(2)]
    assert np.array_equal(*fixed)
    sampled = [predictions(model, screen, seed=seed) for seed in (1, 1, 2)]
    assert np.array_equal(sampled[0], sampled[1])
    assert not np.allclose(sampled[0], sampled[2])
    subset = model.predict(screen, perturbations="G1+G2", seed=1, counts=False).to_df()
    np.testing.assert_allclose(subset, sampled[0].loc[subset.index], atol=1e-5)


def test_candidates_are_training_perturbations_and_never_the_query(screen):
    screen.obs["split"] = "train"
    screen.obs.loc[(screen.obs["gene"] == "G7"), "split"] = "test"
    screen.obs.loc[(screen.obs["gene"] == "G6"), "split"] = "val"
    screen.obs.loc[(screen.obs["gene"] == "G5") & (screen.obs["line"] == "RPE1"), "split"] = "test"
    ptrag_sc.PTRAG.setup_anndata(screen, **KEYS, split_key="split")
    model = ptrag_sc.PTRAG(screen, **SMALL)
    assert set(model.candidates_) == {f"G{i}" for i in range(6)} | {"G0+G1", "G2+G3"}
    table = model.get_retrieval(perturbations=[*model.candidates_, "G7", "G6"])
    assert (table["perturbation"] != table["candidate"]).all()
    assert table.groupby(["perturbation", "cell_type"]).size().eq(4).all()
    assert set(table["candidate"]) <= set(model.candidates_)
    assert "G0" in set(table.loc[table["perturbation"] == "G0+G1", "candidate"])  # a component may answer


def test_held_out_cells_reach_nothing_that_is_learned(screen):
    rows = ((screen.obs["gene"] == "G7") | ((screen.obs["gene"] == "G5") & (screen.obs["line"] == "RPE1"))).to_numpy()
    screen.obs["split"] = np.where(rows, "test", np.where(screen.obs["gene"] == "G6", "val", "train"))
    results = []
    for noise in (False, True):
        adata = screen.copy()
        if noise:
            dense = adata.X.toarray()
            dense[rows] = np.random.default_rng(0).exponential(size=dense[rows].shape) + 0.01
            adata.X = dense
        ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, split_key="split")
        model = train_small(adata, max_epochs=3)
        results.append(model.predict(adata, perturbations=["G7", "G5"], counts=False).X)
    assert np.array_equal(*results)


def test_the_own_validation_split_holds_out_conditions(screen):
    model = ptrag_sc.PTRAG(screen, **SMALL)
    assert model.split_["split"].value_counts().to_dict() == {"train": 18, "val": 2}
    assert not model.split_.duplicated(["perturbation", "cell_type"]).any()


def test_the_weights_of_the_lowest_validation_loss_are_kept(screen):
    seen = []

    class Watch(Callback):
        def on_validation_end(self, trainer, plan):
            state = {name: tensor.clone() for name, tensor in plan.module.state_dict().items()}
            seen.append((float(trainer.callback_metrics["validation_loss"]), state))

    scvi.settings.seed = 0
    model = ptrag_sc.PTRAG(screen, **SMALL)
    model.train(12, **TRAIN, check_val_every_n_epoch=3, plan_kwargs={"lr": 0.02}, callbacks=[Watch()])
    losses = [loss for loss, _ in seen]
    assert len(set(losses)) > 1
    best = seen[int(np.argmin(losses))][1]
    assert all(torch.equal(tensor, best[name]) for name, tensor in model.module.state_dict().items())
    assert not all(torch.equal(tensor, best[name]) for name, tensor in seen[int(np.argmax(losses))][1].items())


@pytest.mark.parametrize(("max_epochs", "n_steps"), [(3000, 1), (250, 12), (7, 2), (1, 50), (100, 3)])
def test_the_last_epoch_is_always_checked(max_epochs, n_steps):
    interval = check_interval(n_steps, max_epochs)
    assert max_epochs % interval == 0
    assert interval * n_steps <= max(n_steps, 40)


def test_the_learning_rate_can_follow_the_validation_loss(screen):
    model = ptrag_sc.PTRAG(screen, **SMALL)
    model.train(2, **TRAIN, plan_kwargs={"reduce_lr_on_plateau": True})
    assert model.is_trained


def test_few_validation_conditions_are_named(screen, caplog):
    with caplog.at_level(logging.WARNING):
        train_small(screen, max_epochs=1)
    assert "Only 2 validation conditions" in caplog.text


def test_an_untrained_model_warns(screen):
    with pytest.warns(UserWarning, match="untrained"):
        ptrag_sc.PTRAG(screen, **SMALL).predict(perturbations="G0")


def test_further_training_draws_other_sets(screen, monkeypatch):
    seeds = []
    original = RandomSets.__iter__
    monkeypatch.setattr(RandomSets, "__iter__", lambda self: seeds.append(self.seed) or original(self))
    model = train_small(screen, max_epochs=2)
    model.train(1, **TRAIN)
    assert len(set(seeds)) == 2


def test_combinations_that_tie_all_genes_leave_something_to_train_on():
    adata = make_screen()
    adata = adata[(adata.obs["line"] == "K562").to_numpy()].copy()
    labels = adata.obs["gene"].astype(str)
    adata.obs["gene"] = [g if g in ("ctl", "G0") or "+" in g else f"G0+{g}" for g in labels]
    for seed in range(5):
        scvi.settings.seed = seed
        ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
        split = ptrag_sc.PTRAG(adata, **SMALL).split_["split"]
        assert (split == "train").sum() >= len(split) / 2
        assert (split == "val").any()


def test_training_continues_and_resumes_from_a_checkpoint(screen, tmp_path, monkeypatch):
    monkeypatch.setattr(scvi.settings, "logging_dir", tmp_path)
    model = train_small(screen, max_epochs=2)
    assert not model.module.training
    model.train(3, **TRAIN)
    assert list(model.history["train_loss"].index) == [0, 1, 2, 3, 4]
    saver = ModelCheckpoint(dirpath=tmp_path, save_last=True, filename="first")
    model.train(2, **TRAIN, callbacks=[saver], enable_checkpointing=True)
    seen = []

    class Count(Callback):
        def on_train_epoch_start(self, trainer, plan):
            seen.append(trainer.current_epoch)

    model.train(4, **TRAIN, ckpt_path=str(tmp_path / "last.ckpt"), callbacks=[Count()])
    assert seen == [2, 3]
    # The last two epochs take the place of those that followed the checkpoint: 5 and 4.
    assert model.n_epochs_ == 9
    assert list(model.history["train_loss"].index) == list(range(9))


either_form = [None, pytest.param("response", marks=pytest.mark.slow)]


@pytest.mark.parametrize("memory", either_form)
def test_further_training_goes_on_with_the_epochs(screen, memory):
    model = train_small(screen, max_epochs=4, memory=memory)
    model.train(6, **TRAIN, check_val_every_n_epoch=3)
    loss = model.history["validation_loss"].iloc[:, 0].astype(float)
    assert list(loss.index[-2:]) == [6, 9]
    assert list(model.history["train_loss"].index) == list(range(10))
    assert model.n_epochs_ == 10
    weights = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    kept = model.kept_epoch_
    model.train(2, **TRAIN, plan_kwargs={"lr": 0.0}, early_stopping=False)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.module.named_parameters())
    assert model.kept_epoch_ == kept


@pytest.mark.slow
@pytest.mark.parametrize("memory", either_form)
def test_a_further_training_that_harms_changes_no_weight(screen, memory):
    model = train_small(screen, max_epochs=24, memory=memory)
    weights, kept = {name: x.clone() for name, x in model.module.named_parameters()}, model.kept_epoch_
    model.train(4, **{**TRAIN, "batch_size": 4}, plan_kwargs={"lr": 0.5})
    assert all(torch.equal(x, weights[name]) for name, x in model.module.named_parameters())
    assert model.kept_epoch_ == kept


@pytest.mark.slow
def test_resuming_does_not_forget_the_weights_to_beat(screen, tmp_path, monkeypatch):
    monkeypatch.setattr(scvi.settings, "logging_dir", tmp_path)
    scvi.settings.seed = 0
    model = ptrag_sc.PTRAG(screen, **{**SMALL, "memory": "response"})
    weights = {name: x.clone() for name, x in model.module.named_parameters()}
    options = {**TRAIN, "plan_kwargs": {"lr": 0.5}}  # a rate that destroys the weights
    saver = ModelCheckpoint(dirpath=tmp_path, save_last=True, filename="first")
    model.train(2, **options, callbacks=saver, enable_checkpointing=True)
    again = ptrag_sc.PTRAG(screen, **{**SMALL, "memory": "response"})
    again.train(4, **options, ckpt_path=str(tmp_path / "last.ckpt"))
    for trained in (model, again):
        assert trained.kept_epoch_ is None
        assert all(torch.equal(x, weights[name]) for name, x in trained.module.named_parameters())
    assert again.n_epochs_ == 4


class Interrupt(Callback):
    def on_train_epoch_start(self, trainer, plan):
        if trainer.current_epoch == 3:
            raise RuntimeError("stop here")


@pytest.mark.slow
def test_an_interrupted_training_is_counted_and_its_best_weights_stay(screen):
    scvi.settings.seed = 0
    model = ptrag_sc.PTRAG(screen, **SMALL)
    options = {**TRAIN, "plan_kwargs": {"lr": 1e-2}, "check_val_every_n_epoch": 1}
    with pytest.raises(RuntimeError, match="stop here"):
        model.train(6, **options, callbacks=[Interrupt()])
    loss = model.history["validation_loss"].iloc[:, 0].astype(float)
    assert (model.n_epochs_, model.kept_epoch_, list(loss.index)) == (3, loss.idxmin(), [0, 1, 2])
    model.train(2, **options)
    assert list(model.history["train_loss"].index) == [0, 1, 2, 3, 4]
    with pytest.raises(RuntimeError, match="stop here"):
        model.train(6, **options, callbacks=[Interrupt()])
    assert list(model.history["train_loss"].index) == list(range(8))
    assert model.support_ is not None
    assert not model.module.training
    ptrag_sc.pl.training(model, show=False)


def test_training_arguments_that_would_be_ignored_are_refused(screen):
    model = ptrag_sc.PTRAG(screen, **SMALL)
    with pytest.raises(ValueError, match=r"'learning_rate' is not in the training plan.*lr"):
        model.train(1, **TRAIN, plan_kwargs={"learning_rate": 1e-3})
    with pytest.raises(ValueError, match=r"load_best_on_end=True.*kept anyway"):
        model.train(1, **TRAIN, load_best_on_end=True)
    assert model.n_epochs_ == 0


def test_an_epoch_draws_fresh_sets(screen, monkeypatch):
    drawn = []
    original = RandomSets._draw

    def spy(self, condition, epoch, visit):
        if self.fresh:
            drawn.append(epoch)
        return original(self, condition, epoch, visit)

    monkeypatch.setattr(RandomSets, "_draw", spy)
    train_small(screen, max_epochs=3)
    assert sorted(set(drawn)) == [0, 1, 2]


def test_small_conditions_and_few_controls_are_named(caplog):
    adata = make_screen()
    rows = np.flatnonzero((adata.obs["gene"] == "G3") & (adata.obs["line"] == "K562"))[1:]
    adata = adata[np.setdiff1d(np.arange(adata.n_obs), rows)].copy()
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    with caplog.at_level(logging.WARNING):
        model = ptrag_sc.PTRAG(adata, **SMALL)
        assert "G3 in K562" in caplog.text
        model.train(1, **{**TRAIN, "set_size": 500})
    assert "Fewer control cells than set_size=500 in 'K562', 'RPE1'" in caplog.text
    assert not ((model.split_["perturbation"] == "G3") & (model.split_["cell_type"] == "K562")).any()
    assert model.predict(perturbations="G3", cell_types="K562").n_obs > 0


@pytest.mark.shapes
def test_unseen_cell_types_batches_genes_and_combinations_are_predicted(trained):
    adata = make_screen(seed=9)
    adata.obs["line"] = adata.obs["line"].replace({"RPE1": "HepG2"})
    adata.obs["gem"] = "new"
    result = trained.predict(adata, perturbations=["G4+G6", "G0"], counts=False)
    assert set(result.obs["line"]) == {"K562", "HepG2"}
    assert np.isfinite(result.X).all()
    with pytest.raises(KeyError, match=r"Gene 'G77' is not in the model's gene embedding \(closest: 'G7'"):
        trained.predict(adata, perturbations="G77")
    rng = np.random.default_rng(0)
    given = trained.predict(adata, perturbations="G77", gene_embedding={"G77": rng.normal(size=30)}, counts=False)
    assert np.isfinite(given.X).all()
    with pytest.raises(ValueError, match=r"has width 3, the model's has 30"):
        trained.predict(adata, perturbations="G77", gene_embedding={"G77": np.ones(3)})
    other_space = {"G77": rng.normal(size=30), "G0": rng.normal(size=30), "unused": np.full(30, np.nan)}
    with pytest.raises(ValueError, match="gives genes other vectors than the model knows them by"):
        trained.predict(adata, perturbations="G77", gene_embedding=other_space)


def test_constructor_arguments_that_cannot_work(screen):
    for options, message in (
        ({"n_candidates": 99}, "n_candidates=99 .* is not between 1 and the 10 training perturbations"),
        ({"n_layers": 0}, "n_layers=0 .* is not between 1 and inf"),
        ({"retrieval": "vanilla"}, "retrieval= 'vanilla' does not occur"),
        ({"loss": "mse"}, "loss= 'mse' does not occur"),
        ({"n_heads": 3}, "is no multiple of n_heads=3"),
        ({"temperature": 0.0}, "temperature=0.0 .* is not between 1e-06 and inf"),
        ({"candidate_dropout": 1.0}, "candidate_dropout=1.0 .* is not between 0 and 0.99"),
    ):
        with pytest.raises(ValueError, match=message):
            ptrag_sc.PTRAG(screen, **{**SMALL, **options})


def test_missing_embeddings_are_an_error_or_excluded_by_name(caplog):
    adata = make_screen()
    del adata.uns["gene_embedding"]
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    with pytest.raises(KeyError, match=r"Run ptrag_sc.pp.gene_embedding first"):
        ptrag_sc.PTRAG(adata, **SMALL)
    table = {f"G{i}": np.eye(8)[i] for i in range(1, 8)}
    with caplog.at_level(logging.WARNING):
        ptrag_sc.pp.gene_embedding(adata, table, perturbation_key="gene", control="ctl", missing="drop")
        model = train_small(adata, max_epochs=1)
    assert "Left out 4 conditions of which a gene was left out of the gene embedding" in caplog.text
    assert not model.split_["perturbation"].str.contains("G0").any()
    without = adata.obs["gene"].str.contains("G0").to_numpy(dtype=bool)
    for counts in (False, True):
        ptrag_sc.tl.predict(adata, model, counts=counts)
        assert not adata.obs.loc[without, "ptrag_predicted"].any()
        assert adata.obs.loc[~without, "ptrag_predicted"].all()
        if counts:  # nothing is stored
            assert [adata.obsm[key][without].nnz for key in ("ptrag", "ptrag_counts")] == [0, 0]
        else:
            assert np.isnan(adata.obsm["ptrag"][without]).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_epochs": 0}, ValueError, r"max_epochs=0 in train is below 1"),
        ({"max_epochs": -1}, ValueError, r"max_epochs=-1 in train is below 1"),
        ({"max_epochs": 1.5}, TypeError, r"max_epochs=1.5 in train is no whole number"),
        ({"set_size": 0}, ValueError, r"set_size=0 in train is below 1"),
        ({"batch_size": 2.5}, TypeError, r"batch_size=2.5 in train is no whole number"),
    ],
)
def test_sizes_that_cannot_be_trained_with(screen, options, error, message):
    model = ptrag_sc.PTRAG(screen, **SMALL)
    with pytest.raises(error, match=message):
        model.train(**{**TRAIN, **options})
    assert not model.is_trained
