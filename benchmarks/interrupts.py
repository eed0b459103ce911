"""What does a training leave behind when a signal, a fault or a kill ends it at a random moment?

Each training runs in a process of its own (a fork, so on Linux and macOS only). Ctrl-C and SIGTERM must leave a usable
model and the right exception, a kill must cost nothing that the file of ``resume=`` does not give back bitwise, and a
diverging training must end in an error or in finite predictions.
"""

import argparse
import hashlib
import itertools
import json
import logging
import os
import pickle
import signal
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import scvi
from lightning.pytorch import Callback

import ptrag_sc
from ptrag_sc import PTRAG

KEYS = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}
OPTIONS = {"accelerator": "cpu", "enable_progress_bar": False, "set_size": 16, "batch_size": 4}
EPOCHS = 8
DATA = {"validation": ptrag_sc.datasets.simulated(n_cells=900, n_genes=60, n_perturbations=12, n_cell_types=2, seed=0)}
DATA["none"] = DATA["validation"].copy()
DATA["none"].obs["split"] = "train"


class Begun(Callback):
    """Tell the parent that the training has begun, and fail at a step if asked to."""

    def __init__(self, pipe: int, fails_at: int | None = None):
        self.pipe = pipe
        self.fails_at = fails_at
        self.steps = 0

    def setup(self, trainer, plan, stage):
        os.write(self.pipe, b"x")

    def on_before_zero_grad(self, trainer, plan, optimizer):
        self.steps = trainer.global_step + 1

    def on_train_batch_end(self, trainer, plan, *_):
        if trainer.global_step == self.fails_at:
            raise ZeroDivisionError("a callback of the user")


def new(validation: str, **options) -> PTRAG:
    scvi.settings.seed = 0
    small = {"n_candidates": 4, "n_hidden": 16, "n_layers": 1}
    return PTRAG(DATA[validation], **{**small, **options})


def digest(model: PTRAG) -> str:
    """Return a digest of weights and history."""
    parts = [tensor.numpy().tobytes() for tensor in model.module.state_dict().values()]
    parts += [name.encode() + pickle.dumps(frame.to_dict()) for name, frame in sorted(model.history.items())]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def state(model: PTRAG, error: BaseException | None, handlers: list, steps: int) -> dict:
    """Return what is left of a model."""
    history = model.history or {}
    losses = history.get("train_loss")
    epochs = [] if losses is None else list(losses.index)
    finite = all(bool(tensor.isfinite().all()) for tensor in model.module.parameters())
    predicted: object = "not asked"
    if model.is_trained_:
        try:
            predicted = bool(np.isfinite(model.predict(perturbations=[str(model.candidates_[0])]).X.data).all())
        except FloatingPointError:
            predicted = "refused"
    return {
        "error": type(error).__name__,
        "status": getattr(error, "code", None),
        "trained": model.is_trained_,
        "support": model.support_ is not None,
        "intervals": model.effect_errors_ is not None,
        "finite": finite,
        "predicted": predicted,
        "history is true": epochs == list(range(model.n_epochs_)),
        "kept": model.kept_epoch_ is None or model.kept_epoch_ < model.n_epochs_,
        "eval": not model.module.training,
        "handlers": handlers == [signal.default_int_handler, signal.SIG_DFL],
        "epochs": model.n_epochs_,
        "steps": steps,
        "digest": digest(model),
    }


def attack(signals: list[tuple[float, int]], *training, **options) -> dict | None:
    """Run a training in a fork, send signals some seconds after its beginning, and return what it reports."""
    begun, report = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found = trained(begun[1], *training, **options)
            os.write(report[1], json.dumps(found).encode())
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.close(begun[1]), os.close(report[1])
    os.read(begun[0], 1)
    for seconds, number in signals:
        time.sleep(seconds)
        try:
            os.kill(child, number)
        except ProcessLookupError:
            break
    with os.fdopen(report[0], "rb") as pipe:
        text = pipe.read()
    os.close(begun[0])
    os.waitpid(child, 0)
    return json.loads(text) if text else None


def trained(
    pipe: int, memory: str | None, validation: str, *, fails_at: int | None = None, resume: Path | None = None
) -> dict:
    """Train in this process and report."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    model, error, begun = new(validation, memory=memory), None, Begun(pipe, fails_at)
    try:
        model.train(EPOCHS, **OPTIONS, callbacks=[begun], resume=resume, early_stopping=False)
    except BaseException as raised:
        error = raised
    return state(model, error, ignore_signals(), begun.steps)


def ignore_signals() -> list:
    """Ignore what is sent when the training is over, and return the handlers that stood there."""
    return [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)]


def is_usable(found: dict | None, error: str, validation: str) -> bool:
    """Return whether a training that was ended left what is promised."""
    if found is None:
        return False
    ok = ["finite", "history is true", "kept", "eval", "handlers"]
    if found["steps"] == 0:  # nothing was learned, so the model is as it was
        return all(found[name] is True for name in ok) and not found["trained"] and found["error"] == error
    ok += ["trained", "predicted"]
    with_support = found["support"] or validation == "none"
    came_late = found["error"] == "NoneType" and found["epochs"] == EPOCHS
    return all(found[name] is True for name in ok) and with_support and (found["error"] == error or came_late)


def signalled(n: int, rng: np.random.Generator, whole: dict[tuple, float]) -> list[dict]:
    """Return the rows of signals and of failing callbacks."""
    rows = []
    kinds = {"Ctrl-C": (signal.SIGINT, "KeyboardInterrupt"), "SIGTERM": (signal.SIGTERM, "SystemExit")}
    for memory, validation in itertools.product(("response", None), DATA):
        for kind, (number, error) in kinds.items():
            found = []
            for _ in range(n):
                seconds = float(rng.uniform(0, whole[memory, validation]))
                found.append(attack([(seconds, number)], memory, validation))
            bad = [one for one in found if not is_usable(one, error, validation)]
            rows.append({"attack": kind, "memory": memory, "validation": validation, "n": n, "bad": len(bad)})
            print(rows[-1], bad[:1], flush=True)
        found = []
        for _ in range(n):
            step = int(rng.integers(1, 40))
            found.append(attack([], memory, validation, fails_at=step))
        bad = [one for one in found if not is_usable(one, "ZeroDivisionError", validation)]
        rows.append({"attack": "callback fails", "memory": memory, "validation": validation, "n": n, "bad": len(bad)})
        print(rows[-1], bad[:1], flush=True)
        found = []
        for _ in range(n):  # the second one ends whatever runs: expected errors may be missing
            seconds = float(rng.uniform(0, whole[memory, validation]))
            pair = [(seconds, signal.SIGINT), (float(rng.exponential(0.05)), signal.SIGINT)]
            found.append(attack(pair, memory, validation))
        found = [one and {**one, "support": True} for one in found]
        bad = [one for one in found if not is_usable(one, "KeyboardInterrupt", validation)]
        rows.append({"attack": "Ctrl-C twice", "memory": memory, "validation": validation, "n": n, "bad": len(bad)})
        print(rows[-1], bad[:1], flush=True)
    return rows


def killed(n: int, rng: np.random.Generator, whole: dict[tuple, float], digests: dict[tuple, str]) -> list[dict]:
    """Return the rows of kills, each followed by a training that goes on from the file."""
    rows = []
    for memory, validation in itertools.product(("response", None), DATA):
        bad = 0
        for _ in range(n):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "training.ckpt"
                seconds = float(rng.uniform(0, whole[memory, validation]))
                attack([(seconds, signal.SIGKILL)], memory, validation, resume=path)
                found = attack([], memory, validation, resume=path)
                bad += found is None or found["digest"] != digests[memory, validation]
        rows.append({"attack": "kill, resume", "memory": memory, "validation": validation, "n": n, "bad": int(bad)})
        print(rows[-1], flush=True)
    return rows


def diverging() -> list[dict]:
    """Return the rows of trainings whose learning rate is far too large."""
    rows = []
    for memory, retrieval in itertools.product(("response", None), ("gumbel", "attention", "none")):
        for validation, lr in itertools.product(DATA, (10.0, 1e6, 1e20)):
            model, error = new(validation, memory=memory, retrieval=retrieval), None
            try:
                model.train(EPOCHS, **OPTIONS, plan_kwargs={"lr": lr})
            except FloatingPointError as raised:
                error = raised
            found = state(model, error, [], 1)
            named = error is None or " in " in str(error)
            bad = not (found["finite"] and named and (error is not None or found["predicted"] is True))
            kinds = {"memory": memory, "retrieval": retrieval, "validation": validation}
            rows.append({"attack": f"lr={lr:g}", **kinds, "n": 1, "bad": int(bad), "error": found["error"]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=20, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("signals", "kills", "diverging"))
    parser.add_argument("--out", type=Path, help="file that the counts are added to, as lines of JSON")
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    for validation, adata in DATA.items():
        PTRAG.setup_anndata(adata, **KEYS, split_key="split" if validation == "none" else None)
    rng, whole, digests, rows = np.random.default_rng(chosen.seed), {}, {}, []
    if chosen.only != "diverging":
        for memory, validation in itertools.product(("response", None), DATA):
            start = time.monotonic()
            found = attack([], memory, validation)
            whole[memory, validation] = time.monotonic() - start
            digests[memory, validation] = found["digest"]
            print(memory, validation, f"{whole[memory, validation]:.1f} s", found, flush=True)
    if chosen.only in (None, "signals"):
        rows += signalled(chosen.n, rng, whole)
    if chosen.only in (None, "kills"):
        rows += killed(chosen.n, rng, whole, digests)
    if chosen.only in (None, "diverging"):
        rows += diverging()
    if chosen.out is not None:
        with chosen.out.open("a") as file:
            file.writelines(json.dumps({"group": chosen.only or "all", **row}) + "\n" for row in rows)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    print(json.dumps({"attacks": int(table["n"].sum()), "bad": int(table["bad"].sum())}))


if __name__ == "__main__":
    main()
