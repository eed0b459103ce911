"""Does a training end at the first loss or gradient that is not finite, and is no such prediction ever given?"""

from types import SimpleNamespace

import numpy as np
import pytest
import scvi
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import HalfPrecision

import ptrag_sc
from ptrag_sc.model import _trainer
from ptrag_sc.model._finite import StopNonFinite, _Step
from screens import KEYS, SMALL, TRAIN, make_screen

N_STEPS = 2  # in an epoch


@pytest.fixture(autouse=True)
def no_expected_errors(monkeypatch):
    monkeypatch.setattr(ptrag_sc.PTRAG, "_learn_errors", lambda *_: None)  # they take most of the time


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


def new(adata, **options):
    scvi.settings.seed = 0
    return ptrag_sc.PTRAG(adata, **{**SMALL, **options})


class Watch(Callback):
    """Record the sets of every step and the weights before it; spoil a gradient or the loss of one."""

    def __init__(self, monkeypatch=None, model=None, step=None, what="gradient"):
        self.seen, self.weights, self.step, self.what = [], [], step, what
        if what == "loss" and model is not None:
            loss = model.module.loss

            def spoilt(*arguments):
                output = loss(*arguments)
                return type(output)(
                    loss=output.loss * (np.nan if len(self.seen) == step + 1 else 1.0),
                    n_obs_minibatch=output.n_obs_minibatch,
                    extra_metrics=output.extra_metrics,
                )

            monkeypatch.setattr(model.module, "loss", spoilt)

    def on_train_batch_start(self, trainer, plan, batch, *_):
        self.seen.append((batch["query"].tolist(), batch["cell_type"].tolist()))
        self.weights.append({name: tensor.clone() for name, tensor in plan.module.named_parameters()})

    def on_after_backward(self, trainer, plan):
        if self.what == "gradient" and len(self.seen) - 1 == self.step:
            next(plan.module.parameters()).grad[0] = np.inf


@pytest.mark.parametrize(
    ("what", "memory"), [pytest.param("loss", None, marks=pytest.mark.slow), ("gradient", "response")]
)
def test_the_conditions_are_named_and_the_last_finite_weights_stay(without_validation, monkeypatch, what, memory):
    model = new(without_validation, memory=memory)
    watch = Watch(monkeypatch, model, 3, what)
    labels = ["control", *sorted(set(model.split_["perturbation"]))]
    with pytest.raises(FloatingPointError, match="step 4 of the training") as error:
        model.train(4, **TRAIN, callbacks=[watch])
    queries, types = watch.seen[3]
    names = {f"'{labels[q]} in {('K562', 'RPE1')[t]}'" for q, t in zip(queries, types, strict=True)}
    text = str(error.value)
    assert set(text[text.index("(conditions: ") + 13 : text.index(") is not finite")].split(", ")) == names
    # No snapshot was taken yet, so the last weights known to be finite are those of the beginning.
    assert all(torch.equal(tensor, watch.weights[0][name]) for name, tensor in model.module.named_parameters())
    assert (model.kept_epoch_, model.is_trained_, model.n_epochs_) == (None, False, 1)
    assert np.isfinite(model.history["train_loss"].to_numpy()).all()


def test_a_snapshot_counts_when_a_step_with_it_was_finite(without_validation, monkeypatch):
    """One is taken after every second epoch."""
    monkeypatch.setattr(_trainer, "STEPS_BETWEEN_CHECKS", 2 * N_STEPS)
    for step, kept in ((4, None), (5, 1)):  # the first step with that snapshot, and the second
        model, watch = new(without_validation), Watch(step=step)
        with pytest.raises(FloatingPointError):
            model.train(10, **TRAIN, callbacks=[watch])
        assert (model.kept_epoch_, model.n_epochs_, model.is_trained_) == (kept, 2, kept is not None)
        expected = watch.weights[0 if kept is None else 4]
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.module.named_parameters())


@pytest.mark.parametrize(
    ("memory", "retrieval", "validation"),
    [
        (None, "gumbel", True),
        pytest.param(None, "none", False, marks=pytest.mark.slow),
        pytest.param("response", "attention", True, marks=pytest.mark.slow),
        pytest.param("response", "gumbel", False, marks=pytest.mark.slow),
    ],
)
def test_a_diverging_training_leaves_finite_weights(screen, without_validation, memory, retrieval, validation):
    model = new(screen if validation else without_validation, memory=memory, retrieval=retrieval)
    with pytest.raises(FloatingPointError, match=r"conditions: '.* in .*Lower plan_kwargs"):
        model.train(20, **TRAIN, plan_kwargs={"lr": 1e6})
    assert all(tensor.isfinite().all() for tensor in model.module.state_dict().values() if tensor.is_floating_point())
    assert np.isfinite(model.predict(perturbations="G0", counts=False).X).all()
    assert all(np.isfinite(frame.to_numpy()).all() for frame in (model.history or {}).values())


def test_a_step_is_judged_when_its_result_arrives():
    """As on a GPU, where the host is ahead: the snapshot counts only when the step behind it is known to be finite."""
    guard, plan, arrived = StopNonFinite(["A", "B"], ["t"], every=1), SimpleNamespace(lr=0.1), set()

    def step(number, finite, before=None):
        event = SimpleNamespace(query=lambda: number in arrived, synchronize=lambda: arrived.add(number))
        sets = [(torch.tensor([number % 3]), torch.tensor([0]))]
        guard._waiting.append(_Step(torch.tensor(finite), event, sets, number, before))

    step(0, True), step(1, True, "first"), step(2, True), step(3, False, "second")
    guard._judge(plan), guard._judge(plan)
    assert guard.good == "first"
    with pytest.raises(FloatingPointError, match=r"step 4 of the training.*'control in t'"):
        guard._judge_all(plan)
    assert guard.good == "first" and guard.has_failed and arrived == {0, 1, 2, 3}


PRECISIONS = [{"precision": "64-true"}, {"precision": "bf16-true"}, {"plugins": [HalfPrecision("16-true")]}]


@pytest.mark.parametrize("options", PRECISIONS, ids=["64-true", "bf16-true", "plugin"])
def test_a_precision_of_other_weights_is_refused(screen, options):
    model = new(screen)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    with pytest.raises(ValueError, match=r"precision=.*does not occur in train.*Pass one of \('32-true'"):
        model.train(1, **TRAIN, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())
    assert {tensor.dtype for tensor in model.module.parameters()} == {torch.float32}
    assert (model.n_epochs_, model.epochs_, model.is_trained_) == (0, None, False)


def spoilt_predictor(adata, kind):
    if kind == "PTRAG":
        model = new(adata)
        model.is_trained_ = True
        with torch.no_grad():
            next(model.module.generator.parameters()).fill_(np.nan)
        return model
    baseline = getattr(ptrag_sc.baselines, kind)(adata).fit()
    shift = baseline._shift
    baseline._shift = lambda *arguments: shift(*arguments)._replace(shift=np.full(30, np.inf))
    return baseline


@pytest.mark.parametrize("kind", ["PTRAG", "MeanShift"])
def test_predictions_that_are_not_finite_are_refused(screen, kind, tmp_path):
    model = spoilt_predictor(screen, kind)
    before = sorted(screen.obsm), sorted(screen.obs), sorted(screen.uns)
    calls = [
        lambda: model.predict(perturbations="G0"),
        lambda: model.predict(perturbations="G0", counts=False, nonnegative=True),
        lambda: ptrag_sc.tl.predict(screen, model),
        lambda: ptrag_sc.tl.perturb(screen, model, "G0", out=tmp_path / "cells.h5ad"),
        lambda: ptrag_sc.tl.predict_effects(screen, model, "G0"),
    ]
    for call in calls:
        with pytest.raises(FloatingPointError, match=r"The prediction in '.*', '(K562|RPE1)' holds values"):
            call()
    assert (sorted(screen.obsm), sorted(screen.obs), sorted(screen.uns)) == before
    assert not list(tmp_path.iterdir())
