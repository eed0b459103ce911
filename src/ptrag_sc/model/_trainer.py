"""With which arguments does the trainer run, and which weights are kept?"""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from scvi.train._callbacks import LoudEarlyStopping

from ptrag_sc._validation import absent, unusable
from ptrag_sc.model._gain import surpasses

logger = logging.getLogger(__name__)

STEPS_BETWEEN_CHECKS = 25
MONITOR = "validation_loss"
PATIENCE = 8  # validation checks without improvement
FEW_CONDITIONS = 5
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")  # those that leave the weights in float32


class Kept(NamedTuple):
    """Weights of one check."""

    loss: float
    epoch: int | None  # among those of all trainings; None before the first one
    state: dict[str, torch.Tensor]


class KeepBest(Callback):
    """Keep the weights of the lowest ``validation_loss`` and restore them at the end.

    With a memory these are weighed against the ones before training (retrieval alone) once, at the end: the lowest
    of many checks on few conditions is low by chance too, so trained weights must gain more than that
    (:func:`surpasses`). Without a memory, untrained weights are never kept, because they predict no effect. In a
    further training the weights before it may be kept. The weights are also restored if training fails or is
    interrupted, and they are part of a checkpoint. Every hook is given the :class:`PTRAGTrainingPlan` of the training.
    """

    def __init__(self) -> None:
        self.initial: Kept | None = None  # before this training
        self.trained: Kept | None = None  # of the lowest loss since
        self.gains: list[torch.Tensor] = []  # of each check, in every validation condition; empty without a memory
        self.n_checks = 0  # since training began

    def on_validation_end(self, trainer: Trainer, plan: Any) -> None:
        """Remember the weights that were just validated if they are the best so far."""
        loss = float(trainer.callback_metrics["validation_loss"])
        if not trainer.sanity_checking:
            self.n_checks += 1
        if not (math.isfinite(loss) and plan.is_finite):
            return
        if trainer.sanity_checking:
            if self.initial is None:  # else this training resumes, and the checkpoint holds the weights before it
                self.initial = Kept(loss, plan.kept_before, _copied(plan))
            return
        if plan.gain is not None:
            self.gains.append(plan.gain.cpu())
        if self.trained is None or loss < self.trained.loss:
            self.trained = Kept(loss, plan.epoch_offset + trainer.current_epoch, _copied(plan))

    @property
    def best(self) -> Kept | None:
        """The weights to keep; None if nothing was validated."""
        if self.initial is None or self.trained is None:
            return self.trained or self.initial
        is_better = self.trained.loss < self.initial.loss
        if is_better and self.gains:
            is_better = surpasses(torch.stack(self.gains))
        if is_better:
            return self.trained
        return self.initial

    @property
    def keeps_initial(self) -> bool:
        """Whether the weights before training are the ones to keep."""
        return self.initial is not None and self.best is self.initial

    def restore(self, plan: Any) -> None:
        """Give the module the best weights."""
        best = self.best
        if best is not None:
            plan.module.load_state_dict(best.state)
            plan.running = False

    def on_train_end(self, trainer: Trainer, plan: Any) -> None:
        """Restore the best weights."""
        self.restore(plan)

    def on_exception(self, trainer: Trainer, plan: Any, exception: BaseException) -> None:
        """Restore the best weights so far."""
        self.restore(plan)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        kept = {"initial": self.initial, "trained": self.trained}
        plain = {name: None if weights is None else tuple(weights) for name, weights in kept.items()}
        return {**plain, "gains": self.gains, "n_checks": self.n_checks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what a checkpoint kept."""
        for name in ("initial", "trained"):
            weights = state_dict[name]
            setattr(self, name, None if weights is None else Kept(*weights))
        self.gains = state_dict["gains"]
        self.n_checks = state_dict["n_checks"]


def _copied(plan: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in plan.module.state_dict().items()}


def check_interval(n_steps: int, max_epochs: int) -> int:
    """Return the epochs between validation checks: about 25 steps, and a divisor, so that the last epoch is checked."""
    wanted = max(1, round(STEPS_BETWEEN_CHECKS / n_steps))
    return max(d for d in range(1, wanted + 1) if max_epochs % d == 0)


def trainer_arguments(
    max_epochs: int,
    *,
    n_steps: int,
    n_val: int,
    share: float | None,
    check_first: bool,
    early_stopping: bool,
    given: dict[str, Any],
    further: list[Callback] | None = None,
) -> dict[str, Any]:
    """Return the arguments of the trainer; those that are given replace ours.

    Parameters
    ----------
    max_epochs, n_steps
        Number of epochs, and of steps in each.
    n_val
        Number of validation conditions.
    share
        Of the memory in the answer, as it is; None without one.
    check_first
        Whether the weights of before are validated too.
    early_stopping
        Whether to stop when the validation loss no longer falls.
    given
        Arguments of the user.
    further
        Callbacks of this package.
    """
    n_val = 0 if given.get("limit_val_batches") == 0 else n_val
    interval = check_interval(n_steps, max_epochs)
    defaults = {
        "early_stopping": early_stopping and n_val > 0,
        "early_stopping_monitor": MONITOR,
        "early_stopping_patience": PATIENCE,
        "check_val_every_n_epoch": interval,
        "gradient_clip_val": 10.0,
        "num_sanity_val_steps": -1 if check_first else 0,
        "use_distributed_sampler": False,
        "callbacks": [],
    }
    arguments = {**defaults, **given}
    if check_first and arguments["num_sanity_val_steps"]:
        arguments["num_sanity_val_steps"] = -1  # all of them, or none
    callbacks = arguments["callbacks"] or []
    callbacks = [callbacks] if isinstance(callbacks, Callback) else [*callbacks]
    callbacks = [*(further or []), *callbacks]
    if arguments.get("load_best_on_end") or any(getattr(c, "load_best_on_end", False) for c in callbacks):
        problem = "is of scvi-tools' checkpoints, but the best weights on validation conditions are kept anyway"
        raise ValueError(unusable("load_best_on_end=True", "train", problem, "Leave it out."))
    every = arguments["check_val_every_n_epoch"]
    if n_val and every is not None and every > max_epochs:
        problem = f"is more than max_epochs={max_epochs}: no epoch would be validated"
        raise ValueError(unusable(f"check_val_every_n_epoch={every}", "train", problem, "Pass a smaller number."))
    arguments["callbacks"] = callbacks
    if not n_val:
        kept = "" if share is None else f" The memory's share of the answer, chosen on them, stays {share:.0%}."
        logger.warning("No validation conditions: training runs to max_epochs and keeps the last weights.%s", kept)
        arguments.pop("check_val_every_n_epoch")
        return arguments
    if n_val < FEW_CONDITIONS:
        if share is None:
            logger.warning("Only %d validation conditions: which weights are kept is largely chance.", n_val)
        else:
            remedy = "Hold out five or more with ptrag_sc.pp.split(val_fraction=...) to let trained weights be kept."
            logger.warning("Only %d validation conditions: too few to show a gain of training. %s", n_val, remedy)
    return {**arguments, "callbacks": [KeepBest(), _UnvalidatedEnd(), *callbacks]}


class _UnvalidatedEnd(Callback):
    """Lets a training end before its first validation, as with ``max_steps``; early stopping would raise an error."""

    def on_train_start(self, trainer: Any, pl_module: LightningModule) -> None:
        for callback in trainer.callbacks:
            if isinstance(callback, EarlyStopping) and callback.monitor == MONITOR:
                callback.strict = False


def add_early_stopping(trainer: Any, arguments: dict[str, Any]) -> None:
    """Add the early stopping that scvi-tools leaves out of distributed trainings.

    It can be used here, because the loss is that of all validation conditions in every process.

    Parameters
    ----------
    trainer
        The trainer that was made.
    arguments
        Value of :func:`trainer_arguments`.
    """
    is_there = any(isinstance(callback, LoudEarlyStopping) for callback in trainer.callbacks)
    if not arguments["early_stopping"] or is_there:
        return
    names = {"monitor": MONITOR, "min_delta": 0.0, "patience": PATIENCE, "mode": "min", "warmup_epochs": 0}
    options = {name: arguments.get(f"early_stopping_{name}", usual) for name, usual in names.items()}
    trainer.callbacks.append(LoudEarlyStopping(**options))


def check_precision(trainer: Trainer) -> None:
    """Refuse a precision in which the weights are no float32: the rest of a model is, and predictions would fail.

    Raises
    ------
    ValueError
        If the precision, or a plugin that sets it, is another one.
    """
    if trainer.precision not in PRECISIONS:
        remedy = f"Pass one of {PRECISIONS}."
        raise ValueError(absent("precision=", trainer.precision, "train", PRECISIONS, remedy))


@contextmanager
def kept_settings() -> Iterator[None]:
    """Give torch's settings back as they were: a trainer sets some for the whole process."""
    cudnn, gradients = torch.backends.cudnn, torch.is_grad_enabled()
    benchmark, deterministic = cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        cudnn.benchmark = benchmark
        torch.use_deterministic_algorithms(deterministic)
        torch.set_grad_enabled(gradients)
