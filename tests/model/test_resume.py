"""Is a training that goes on from a file the one that never ended?"""

import pickle

import pandas as pd
import pytest
import scvi
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

import ptrag_sc
from screens import KEYS, SMALL, TRAIN, make_screen

FEW = {**TRAIN, "check_val_every_n_epoch": 1}
N_STEPS = 2  # in an epoch


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(scvi.settings, "logging_dir", tmp_path)
    monkeypatch.setattr(ptrag_sc.PTRAG, "_learn_errors", lambda *_: None)  # takes most of the time


@pytest.fixture(scope="module")
def screen():
    adata = make_screen()
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    return adata


class Stop(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise ZeroDivisionError


def new(screen, memory=None):
    scvi.settings.seed = 0
    return ptrag_sc.PTRAG(screen, **{**SMALL, "memory": memory})


def assert_same(one, other):
    for name, tensor in one.module.state_dict().items():
        assert torch.equal(tensor, other.module.state_dict()[name]), name
    assert (one.n_epochs_, one.kept_epoch_) == (other.n_epochs_, other.kept_epoch_)
    assert set(one.history) == set(other.history)
    for name, frame in one.history.items():
        pd.testing.assert_frame_equal(frame, other.history[name])


FALLING = {"plan_kwargs": {"reduce_lr_on_plateau": True, "lr": 0.05, "lr_patience": 1}}
GUIDED = {"condition_sampling": "error", "set_size": 4}
OPTIONS = {
    "rate that falls": (None, FALLING, [N_STEPS + 1]),
    "memory": pytest.param("response", {}, [N_STEPS + 1, 3 * N_STEPS], marks=pytest.mark.slow),
    "all at once": pytest.param("response", {**FALLING, **GUIDED}, [2 * N_STEPS + 1], marks=pytest.mark.slow),
}


@pytest.mark.parametrize(("memory", "options", "stops"), OPTIONS.values(), ids=OPTIONS)
def test_an_interrupted_training_that_goes_on_is_the_uninterrupted_one(screen, tmp_path, memory, options, stops):
    """In the model that was interrupted, behind stops amid an epoch and at its end, and in a new one."""
    options, path = {**FEW, **options, "early_stopping": False}, tmp_path / "folder" / "training.ckpt"
    whole = new(screen, memory)
    whole.train(3 + len(stops) // 2, **options)
    numbers = torch.rand(3)
    stopped = new(screen, memory)
    for step in stops:
        with pytest.raises(ZeroDivisionError):
            stopped.train(3 + len(stops) // 2, **options, resume=path, callbacks=[Stop(step)])
    torch.manual_seed(7)
    stopped.train(3 + len(stops) // 2, **options, resume=path)
    assert torch.equal(torch.rand(3), numbers)  # those behind the training are the same too
    assert_same(whole, stopped)
    again = new(screen, memory)
    again.train(3 + len(stops) // 2, **options, resume=path)  # nothing is left to do
    assert_same(whole, again)


@pytest.mark.slow
def test_a_checkpoint_of_lightning_has_the_whole_history_too(screen, tmp_path):
    whole = new(screen)
    saver = ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, filename="{epoch}")
    whole.train(3, **FEW, callbacks=saver, enable_checkpointing=True)
    again = new(screen)
    again.train(3, **FEW, ckpt_path=str(tmp_path / "epoch=1.ckpt"))
    assert_same(whole, again)


@pytest.mark.slow
def test_a_training_that_was_stopped_early_stays_stopped(screen, tmp_path):
    options = {**FEW, "plan_kwargs": {"lr": 0.0}, "early_stopping_patience": 1, "resume": tmp_path / "training.ckpt"}
    model = new(screen)
    model.train(9, **options)
    n = model.n_epochs_
    assert n < 9
    again = new(screen)
    again.train(9, **options)
    assert_same(model, again)


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_files_that_are_no_state_of_this_training_are_refused(screen, tmp_path):
    path, mark = tmp_path / "training.ckpt", tmp_path / "executed"
    model = new(screen)
    model.train(1, **FEW, resume=path)
    whole = path.read_bytes()
    with pytest.raises(ValueError, match=r"The file in .*training\.ckpt is of a training with other 'set_size'"):
        new(screen).train(2, **{**FEW, "set_size": 7}, resume=path)
    with pytest.raises(ValueError, match="is of a training with other 'memory', 'n_candidates'"):
        ptrag_sc.PTRAG(screen, **{**SMALL, "memory": "response", "n_candidates": 3}).train(2, **FEW, resume=path)
    with pytest.raises(ValueError, match="ckpt_path= in train is given beside resume="):
        new(screen).train(2, **FEW, resume=path, ckpt_path=str(path))
    torch.save({"weights": torch.ones(2), "of": Harmful(mark)}, tmp_path / "harmful.ckpt")
    wrong = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"no checkpoint",
        "pickle": pickle.dumps(Harmful(mark)),
        "harmful": (tmp_path / "harmful.ckpt").read_bytes(),
    }
    for name, content in wrong.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"The file in .*{name} is no state of a training.*delete this one"):
            new(screen).train(2, **FEW, resume=tmp_path / name)
    torch.save({"state_dict": {}}, tmp_path / "other")
    with pytest.raises(ValueError, match="that this version of ptrag_sc wrote"):
        new(screen).train(2, **FEW, resume=tmp_path / "other")
    with pytest.raises(ValueError, match="is no state of a training"):
        new(screen).train(2, **FEW, resume=tmp_path)
    assert not mark.exists()
    assert path.read_bytes() == whole
