"""Does a model know its epochs and have the weights it says, whatever happens to a training?"""

import pytest
import scvi
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

import ptrag_sc
from screens import KEYS, SMALL, TRAIN, make_screen

EVERY = {**TRAIN, "check_val_every_n_epoch": 1, "plan_kwargs": {"lr": 1e-2}}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(scvi.settings, "logging_dir", tmp_path)


@pytest.fixture(scope="module")
def screen():
    adata = make_screen()
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    return adata


def new(screen, memory=None):
    scvi.settings.seed = 0
    return ptrag_sc.PTRAG(screen, **{**SMALL, "memory": memory})


class Record(Callback):
    """Keep the weights of every epoch."""

    def __init__(self):
        self.weights = {}

    def on_train_batch_end(self, trainer, plan, *_):
        tensors = {name: tensor.clone() for name, tensor in plan.module.named_parameters()}
        self.weights[trainer.current_epoch] = tensors


class Fail(Callback):
    """Fail in a hook, in some epoch."""

    def __init__(self, hook, epoch=0, error=RuntimeError):
        def fail(trainer, *_):
            if trainer.current_epoch == epoch:
                raise error("stop here")

        setattr(self, hook, fail)


class Do(Callback):
    """Do something in a hook, in some epoch."""

    def __init__(self, hook, action, epoch):
        setattr(self, hook, lambda trainer, *_: action(trainer) if trainer.current_epoch == epoch else None)


def fails(model, hook, epoch=0, error=RuntimeError, n=6, **options):
    with pytest.raises(error):
        model.train(n, **{**EVERY, **options, "callbacks": [Fail(hook, epoch, error), *options.get("callbacks", [])]})


def assert_has(model, weights):
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.module.named_parameters())


def epochs_of(model, name="train_loss"):
    return list(model.history[name].index)


@pytest.mark.parametrize("memory", [None, pytest.param("response", marks=pytest.mark.slow)])
def test_a_checkpoint_with_nothing_left_to_train(screen, tmp_path, memory):
    first, again = new(screen, memory), new(screen, memory)
    saver = ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, filename="{epoch}")
    first.train(4, **EVERY, callbacks=saver, enable_checkpointing=True)
    again.train(4, **EVERY, ckpt_path=str(tmp_path / "epoch=3.ckpt"))
    assert (again.n_epochs_, again.kept_epoch_) == (4, first.kept_epoch_)
    assert_has(again, dict(first.module.named_parameters()))


@pytest.mark.slow
def test_what_an_interruption_left_is_to_be_beaten_by_the_next_training(screen):
    model, record = new(screen), Record()
    fails(model, "on_train_epoch_start", 4, callbacks=[record], batch_size=4)
    kept = model.kept_epoch_
    assert_has(model, record.weights[kept])
    model.train(2, **{**EVERY, "batch_size": 4, "plan_kwargs": {"lr": 5.0}})
    assert (model.kept_epoch_, model.n_epochs_, epochs_of(model)) == (kept, 6, list(range(6)))
    assert_has(model, record.weights[kept])


def test_a_training_that_fails_before_it_begins_changes_nothing(screen):
    model = new(screen)
    model.train(3, **EVERY)
    before, support = (model.n_epochs_, model.kept_epoch_, epochs_of(model)), model.support_
    weights = {name: tensor.clone() for name, tensor in model.module.named_parameters()}
    for hook in ("on_fit_start", "on_train_start", "on_validation_batch_start"):
        fails(model, hook)
        assert (model.n_epochs_, model.kept_epoch_, epochs_of(model)) == before
        assert_has(model, weights)
        assert model.is_trained_
        assert model.support_ is support


@pytest.mark.parametrize("hook", ["on_validation_end", "on_train_epoch_end"])
def test_a_failure_between_validation_and_the_end_of_the_epoch(screen, hook):
    model, record = new(screen), Record()
    fails(model, hook, 2, callbacks=[record])
    assert model.n_epochs_ == 3
    assert_has(model, record.weights[model.kept_epoch_])
    model.train(1, **EVERY)
    assert epochs_of(model, "validation_loss") == [0, 1, 2, 3]
    ptrag_sc.pl.training(model, show=False)


def test_resuming_in_the_model_that_was_interrupted(screen, tmp_path):
    model, record, later, path = new(screen), Record(), Record(), tmp_path / "saved.ckpt"
    saver = Do("on_train_epoch_end", lambda trainer: trainer.save_checkpoint(path), 2)
    fails(model, "on_train_epoch_start", 4, callbacks=[record, saver])
    model.train(8, **EVERY, ckpt_path=str(path), callbacks=later)
    loss, kept = model.history["validation_loss"].iloc[:, 0].astype(float), model.kept_epoch_
    assert model.n_epochs_ == 8  # it takes the place of the training that was interrupted
    assert_has(model, record.weights[kept] if kept <= 2 else later.weights[kept])
    assert epochs_of(model) == list(range(8))
    assert loss[kept] == loss.drop(3).min()  # that epoch came after the checkpoint


def test_a_model_saved_in_a_hook_says_what_it_has(screen, tmp_path):
    model = new(screen)
    model.train(3, **EVERY)
    kept, found, callbacks = model.kept_epoch_, {}, []
    for hook, epoch in (("on_train_start", 0), ("on_validation_end", 2), ("on_train_end", 4)):

        def save(trainer, path=tmp_path / hook):
            if not trainer.sanity_checking:
                trainer._model.save(path)

        callbacks.append(Do(hook, save, epoch))
    other = ptrag_sc.PTRAG.load(save_of(model, tmp_path / "before"), screen, accelerator="cpu")
    other.train(4, **EVERY, callbacks=callbacks)
    for hook in ("on_train_start", "on_validation_end", "on_train_end"):
        saved = ptrag_sc.PTRAG.load(tmp_path / hook, False, accelerator="cpu")
        found[hook] = saved.n_epochs_, saved.kept_epoch_
    assert found == {"on_train_start": (3, kept), "on_validation_end": (6, 5), "on_train_end": (7, other.kept_epoch_)}


def test_a_model_saved_at_the_end_without_validation(tmp_path):
    adata = make_screen()
    adata.obs["split"] = "train"
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, split_key="split")
    model, path = new(adata), tmp_path / "end"
    model.train(3, **TRAIN, callbacks=Do("on_train_end", lambda trainer: trainer._model.save(path), 3))
    saved = ptrag_sc.PTRAG.load(path, False, accelerator="cpu")
    assert (saved.n_epochs_, saved.kept_epoch_) == (model.n_epochs_, model.kept_epoch_) == (3, 2)


def save_of(model, path):
    model.save(path)
    return path


def test_checks_that_could_not_compare_are_refused_or_made_whole(screen):
    model = new(screen, "response")
    with pytest.raises(ValueError, match=r"check_val_every_n_epoch=9 .* more than max_epochs=3"):
        model.train(3, **{**EVERY, "check_val_every_n_epoch": 9})
    model.train(1, **{**EVERY, "batch_size": 1}, num_sanity_val_steps=1)
    assert model.n_epochs_ == 1


def test_no_check_at_all_is_said(screen, caplog):
    model = new(screen, "response")
    model.train(50, **TRAIN, max_steps=1)
    assert "No epoch was checked on the validation conditions" in caplog.text
