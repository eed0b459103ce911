"""What is left of a model whose training is ended by a signal, by an interrupt or by a fault?"""

import signal
import threading

import numpy as np
import pytest
import scvi
import torch
from lightning.pytorch import Callback

import ptrag_sc
from ptrag_sc.model import _epochs, _ptrag
from ptrag_sc.model._signals import Interrupted, StopSignals
from screens import KEYS, SMALL, TRAIN, make_screen

EVERY = {**TRAIN, "check_val_every_n_epoch": 1}
N_STEPS = 2  # in an epoch


@pytest.fixture(autouse=True)
def ctrl_c_interrupts():
    """Processes that a shell starts in the background ignore Ctrl-C."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.fixture(scope="module")
def screen():
    adata = make_screen()
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    return adata


@pytest.fixture(scope="module")
def without_validation():
    adata = make_screen()
    adata.obs["split"] = "train"
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, split_key="split")
    return adata


@pytest.fixture(autouse=True)
def handlers():
    """The handlers of signals are those of before, whatever happens in a test."""
    former = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == former


class At(Callback):
    """Do something in a hook at some step, and record the weights behind every step."""

    def __init__(self, hook, step, action):
        self.weights = []
        setattr(self, hook, lambda trainer, *_: action() if trainer.global_step == step else None)

    def on_train_batch_end(self, trainer, plan, *_):
        self.weights.append({name: tensor.clone() for name, tensor in plan.module.named_parameters()})


def new(adata, memory=None):
    scvi.settings.seed = 0
    return ptrag_sc.PTRAG(adata, **{**SMALL, "memory": memory})


def raises(error):
    def fail():
        raise error

    return fail


def assert_has(model, weights):
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.module.named_parameters())


ENDS = {
    "Ctrl-C": (lambda: signal.raise_signal(signal.SIGINT), KeyboardInterrupt),
    "SIGTERM": (lambda: signal.raise_signal(signal.SIGTERM), SystemExit),
    "interrupt of a callback": (raises(KeyboardInterrupt()), KeyboardInterrupt),
    "fault of a callback": (raises(ZeroDivisionError("mine")), ZeroDivisionError),
}


slow = [name if name == "Ctrl-C" else pytest.param(name, marks=pytest.mark.slow) for name in ENDS]


@pytest.mark.parametrize("end", slow)
def test_the_best_weights_and_what_follows_from_them_are_left(screen, end):
    action, error = ENDS[end]
    model = new(screen, "response" if end == "SIGTERM" else None)
    at = At("on_train_batch_start", 2 * N_STEPS + 1, action)  # amid the third epoch
    with pytest.raises(error) as found:
        model.train(9, **EVERY, callbacks=[at])
    assert model.is_trained_ and not model.module.training
    assert model.support_ is not None and model.effect_errors_ is not None
    assert model.set_size_ == EVERY["set_size"]
    loss = model.history["validation_loss"].iloc[:, 0]
    assert list(loss.index) == list(model.history["train_loss"].index) == list(range(model.n_epochs_)) == [0, 1]
    if model.init_params_["memory"] is None:
        assert model.kept_epoch_ == loss.idxmin()
        assert_has(model, at.weights[N_STEPS * (model.kept_epoch_ + 1) - 1])
    if error is SystemExit:
        assert found.value.code == 128 + signal.SIGTERM
    assert np.isfinite(model.predict(perturbations="G0", counts=False).X).all()


def test_a_signal_never_cuts_a_step(without_validation):
    """It comes between gradients and the change of the weights: the step is finished, and the epoch counts."""
    quiet = new(without_validation)
    record = At("on_before_optimizer_step", None, None)
    quiet.train(2, **EVERY, callbacks=[record])
    model = new(without_validation)
    at = At("on_before_optimizer_step", N_STEPS, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        model.train(9, **EVERY, callbacks=[at])
    assert_has(model, record.weights[N_STEPS])
    assert (model.n_epochs_, model.kept_epoch_) == (2, 1)
    assert all(list(frame.index) == [0, 1] for frame in model.history.values())
    assert float(model.history["train_loss"].loc[0].iloc[0]) == float(quiet.history["train_loss"].loc[0].iloc[0])
    model.train(1, **EVERY)
    assert list(model.history["train_loss"].index) == [0, 1, 2]


def test_a_second_signal_does_not_wait_for_expected_errors(screen, monkeypatch):
    def twice(*_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(_ptrag, "calibrate_support", twice)
    model = new(screen)
    with pytest.raises(KeyboardInterrupt):
        model.train(1, **EVERY)
    assert (model.is_trained_, model.n_epochs_, model.support_, model.epochs_) == (True, 1, None, None)


def test_signals_are_noted_until_they_are_asked_for():
    signals = StopSignals()
    with signals:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted):
            signals.check()
        signals.holds = True
        signal.raise_signal(signal.SIGINT)
        signals.holds = False
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)
        assert (signals.first, signals.n) == (signal.SIGTERM, 3)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as Lightning leaves it
    assert signals.as_error(Interrupted()).code == 143


def test_handlers_of_the_user_and_other_threads_are_left_alone():
    seen = []
    former = signal.signal(signal.SIGTERM, lambda *_: seen.append("mine"))
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, former)
    assert seen == ["mine"] and signals.first is None
    thread = threading.Thread(target=lambda: StopSignals().__enter__())
    thread.start(), thread.join()


def test_the_exit_that_lightning_makes_of_an_interrupt_is_undone():
    signals, interrupt = StopSignals(), KeyboardInterrupt()
    made, other = SystemExit(1), SystemExit(2)
    made.__context__ = interrupt
    assert signals.as_error(made) is interrupt
    assert signals.as_error(other) is other
    assert signals.as_error(None) is None


def test_a_failure_behind_a_failure_hides_nothing(caplog):
    first, second = ValueError("first"), RuntimeError("second")
    assert _epochs._finished(raises(second), first) is first
    assert "second" in caplog.text
    assert _epochs._finished(raises(second), None) is second
    assert isinstance(_epochs._finished(raises(KeyboardInterrupt()), first), KeyboardInterrupt)


def test_other_calls_are_refused_while_a_model_is_trained(screen, tmp_path):
    """Asked for in another thread and in a callback; the training goes on as if nobody had asked."""
    quiet, refused = new(screen), []
    quiet.train(2, **EVERY)
    model = new(screen)
    calls = {
        "predict": lambda: model.predict(perturbations="G0"),
        "retrieval": lambda: model.get_retrieval(perturbations="G0"),
        "effects": lambda: ptrag_sc.tl.predict_effects(screen, model, "G0"),
        "tl": lambda: ptrag_sc.tl.predict(screen, model),
        "extend": lambda: model.extend_memory(screen),
        "train": lambda: model.train(1, **EVERY),
    }

    def ask(more=()):
        for name, call in {**calls, **dict(more)}.items():
            with pytest.raises(RuntimeError, match="is being trained"):
                call()
            refused.append(name)

    def ask_twice():
        ask()
        thread = threading.Thread(target=ask, args=[{"save": lambda: model.save(tmp_path / "model")}.items()])
        thread.start(), thread.join()

    model.train(2, **EVERY, callbacks=[At("on_train_batch_start", 1, ask_twice)])
    assert refused == [*calls, *calls, "save"]
    assert_has(model, dict(quiet.module.named_parameters()))
    assert model.predict(perturbations="G0").n_obs > 0


def test_a_training_that_begins_makes_an_answer_void(screen):
    model = new(screen)
    with pytest.raises(RuntimeError, match="is being trained"), model.answering():
        model.epochs_ = "a training"
    model.epochs_ = None
    with model.answering():
        assert not model.module.training and not torch.is_grad_enabled()
