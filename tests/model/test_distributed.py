"""Do two processes see disjoint sets and end with equal weights?"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import ptrag_sc
from ptrag_sc.model._sets import training_sets
from ptrag_sc.model._training_plan import PTRAGTrainingPlan
from screens import KEYS, make_screen

SCRIPT = """
import json, os, sys, torch, scvi, ptrag_sc
from screens import KEYS, SMALL, TRAIN, make_screen
from ptrag_sc.data import RandomSets

drawn, original = [], RandomSets._draw
def spy(self, condition, epoch, visit):
    if self.fresh:
        drawn.append((self.seed, epoch, int(condition)))
    return original(self, condition, epoch, visit)
RandomSets._draw = spy
adata = make_screen()
ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem")
scvi.settings.seed = 0
model = ptrag_sc.PTRAG(adata, **{**SMALL, **json.loads(sys.argv[2])})
model.train(2, **TRAIN, devices=2, strategy="ddp")
model.train(1, **TRAIN, devices=2, strategy="ddp")
torch.save((model.module.state_dict(), drawn), os.path.join(sys.argv[1], os.environ.get("LOCAL_RANK", "0") + ".pt"))
"""


# Nothing is drawn but the sets: what two processes do must be what one does with mini-batches of twice the size.
COMPARED = """
import json, os, sys, torch, scvi, ptrag_sc
from screens import KEYS, SMALL, TRAIN, make_screen
from ptrag_sc.model._training_plan import PTRAGTrainingPlan

losses, gains, step, check = [], [], PTRAGTrainingPlan.training_step, PTRAGTrainingPlan.validated_loss
def spied_step(self, batch, batch_idx):
    loss = step(self, batch, batch_idx)
    losses.append((loss.item(), len(batch["query"])))
    return loss
def spied_check(self):
    loss = check(self)
    gains.append((loss.item(), None if self.gain is None else self.gain.tolist()))
    return loss
PTRAGTrainingPlan.training_step, PTRAGTrainingPlan.validated_loss = spied_step, spied_check
folder, n_processes, options = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
adata = make_screen(n_obs=700)
ptrag_sc.pp.split(adata, **KEYS, holdout="pair", test_fraction=0.15, val_fraction=0.25)
ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem", split_key="split")
scvi.settings.seed = 0
none = {"dropout_rate": 0.0, "candidate_dropout": 0.0, "memory_dropout": 0.0, "retrieval": "attention"}
model = ptrag_sc.PTRAG(adata, **{**SMALL, **none, **options.pop("model", {})})
spread = {"devices": 2, "strategy": "ddp"} if n_processes == 2 else {}
once = {"check_val_every_n_epoch": 1, "batch_size": 4 // n_processes}
model.train(**{"max_epochs": 4, **TRAIN, **once, **spread, **options})
found = {"losses": losses, "gains": gains, "kept": model.kept_epoch_, "n_epochs": model.n_epochs_}
found |= {"n_val": int((model.split_["split"] == "val").sum()), "errors": model.effect_errors_ is not None}
name = f"{n_processes}_{os.environ.get('LOCAL_RANK', '0')}.pt"
torch.save((model.module.state_dict(), found), os.path.join(folder, name))
"""
INTERRUPTED = """
import os, sys, time, scvi, ptrag_sc
from lightning.pytorch import Callback
from screens import KEYS, SMALL, TRAIN, make_screen

class Kick(Callback):
    def on_train_epoch_start(self, trainer, plan):
        if trainer.current_epoch == 5 and trainer.is_global_zero:
            os.killpg(os.getpgid(0), int(sys.argv[2]))

adata = make_screen()
ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
scvi.settings.seed = 0
model = ptrag_sc.PTRAG(adata, **SMALL)
learn = model.learn_effect_errors
model.learn_effect_errors = lambda: time.sleep(12) or learn()  # longer than Lightning lets a process live on
try:
    model.train(4000, **TRAIN, devices=2, strategy="ddp", callbacks=[Kick()])
except BaseException as error:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print("raised", type(error).__name__, error, flush=True)
    raise
finally:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        model.predict(perturbations="G1", n_cells=3)
        model.save(sys.argv[1])
"""


def run(script, folder, *arguments, check=True):
    """Run a script in a process group of its own, with the package that is tested here."""
    path = folder / "train.py"
    path.write_text(script)
    folders = Path(__file__).parents[1], Path(ptrag_sc.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), "OMP_NUM_THREADS": "1"}
    # A process that was started with Ctrl-C ignored, as jobs in the background are, would go on to ignore it.
    first = "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    first += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-W", "ignore"]
    command += [str(path), *arguments] if check else ["-c", first, str(path), *arguments]
    options = {"check": check, "capture_output": True, "text": True, "timeout": 240}
    return subprocess.run(command, env=environment, cwd=folder, start_new_session=True, **options)


def test_each_validation_condition_counts_once():
    """Those of three processes, one of which has a condition again, are put into the order of one process."""
    adata = make_screen(n_obs=700)
    ptrag_sc.pp.split(adata, **KEYS, holdout="pair", test_fraction=0.1, val_fraction=0.4)
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, split_key="split")
    model = ptrag_sc.PTRAG(adata, memory=None, n_candidates=4, n_hidden=8, n_layers=1, n_heads=1)
    screen = model.read(adata)
    _, _, sets = training_sets(screen.index, model.split_, set_size=8, batch_size=2, seed=0)
    n = len(sets.query)
    assert n % 3

    def conditions(sampler):
        return np.concatenate([np.stack([one.query, one.cell_type], 1) for one in sampler])  # (n, 2)

    shares = [torch.as_tensor(conditions(sets.for_rank(rank, 3))) for rank in range(3)]
    assert sum(map(len, shares)) > n
    trainer = SimpleNamespace(world_size=3, datamodule=SimpleNamespace(val_sets=sets))
    plan = SimpleNamespace(trainer=trainer, all_gather=lambda values: torch.stack(shares))
    found = PTRAGTrainingPlan._of_all_ranks(plan, shares[0])
    assert found.tolist() == conditions(sets).tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"model": {"memory": "response"}},
        {"max_epochs": 60, "early_stopping_patience": 2, "plan_kwargs": {"lr": 0.05}},
    ],
)
def test_two_processes_take_the_steps_of_one(tmp_path, options):
    for n in "12":
        run(COMPARED, tmp_path, str(tmp_path), n, json.dumps(options))
    (_, alone), (first, found), (second, other) = (
        torch.load(tmp_path / f"{name}.pt", weights_only=False) for name in ("1_0", "2_0", "2_1")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len(alone["losses"]) == len(found["losses"]) == len(other["losses"])
    for (loss, n), (a, n_a), (b, n_b) in zip(alone["losses"], found["losses"], other["losses"], strict=True):
        if n == n_a + n_b:  # else the last mini-batch holds a condition again
            assert (a * n_a + b * n_b) / n == pytest.approx(loss, abs=1e-4)
    assert alone["n_val"] % 2  # one of them is seen by both processes
    for (loss, gain), (loss_here, gain_here), (loss_there, _) in zip(
        alone["gains"], found["gains"], other["gains"], strict=True
    ):
        assert loss_here == loss_there == pytest.approx(loss, abs=1e-4)
        if gain is not None:
            np.testing.assert_allclose(gain_here, gain, atol=1e-3)
            assert len(gain) == alone["n_val"]
    for name in ("kept", "n_epochs", "errors"):
        assert found[name] == other[name] == alone[name]
    assert found["errors"]
    if "max_epochs" in options:
        assert found["n_epochs"] < 60


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "SystemExit 143")]
)
def test_what_an_interrupt_leaves(tmp_path, number, raised):
    """Ctrl-C in a shell reaches all processes, and so does the end of a job."""
    ended = run(INTERRUPTED, tmp_path, str(tmp_path / "model"), str(int(number)), check=False)
    assert ended.returncode != 0
    assert f"raised {raised}" in ended.stdout
    model = ptrag_sc.PTRAG.load(tmp_path / "model", adata=False)
    assert model.is_trained_
    assert model.n_epochs_ in (5, 6)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"memory": "response", "retrieval": "attention"}])
def test_two_processes_share_the_conditions(tmp_path, options):
    run(SCRIPT, tmp_path, str(tmp_path), json.dumps(options))
    (first, drawn_first), (second, drawn_second) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert set(drawn_first).isdisjoint(drawn_second)
    assert len(drawn_first) == len(drawn_second) == 27  # nine of eighteen conditions in each of two epochs and one more
    assert {drawn[0] for drawn in drawn_first} == {0, 2}  # the second training draws other sets, alike on both
