"""With which arguments does the trainer run, and which weights are kept?"""

import logging
import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ptrag_sc._validation import unusable

logger = logging.getLogger(__name__)

STEPS_BETWEEN_CHECKS = 25
PATIENCE = 20  # validation checks without improvement
FEW_CONDITIONS = 5


class KeepBest(Callback):
    """Keep the weights of the lowest ``validation_loss`` and restore them at the end.

    With a memory these are the untrained ones, retrieval alone, unless the trained ones clearly surpass them: the
    lowest of many checks on few conditions is low by chance too. Without a memory untrained weights predict no effect
    and are no candidate. In a further training the weights of before it are one. Also restored where training fails or
    is interrupted, and part of a checkpoint.
    """

    def __init__(self):
        self.best_loss = float("inf")
        self.best_state: dict[str, torch.Tensor] | None = None
        self.best_epoch: int | None = None  # among those of all trainings
        self.is_start, self.n_checks = True, 0  # whether the best weights are those of before; checks after these

    def on_validation_end(self, trainer: Trainer, plan: LightningModule) -> None:
        """Remember the weights that were just validated if they are the best so far."""
        loss = float(trainer.callback_metrics["validation_loss"])
        self.n_checks += not trainer.sanity_checking
        is_first = self.best_state is None and math.isfinite(loss)
        if is_first or (loss < self.best_loss and plan.surpasses):
            self.best_loss, self.is_start = loss, trainer.sanity_checking
            self.best_state = {name: tensor.detach().clone() for name, tensor in plan.module.state_dict().items()}
            self.best_epoch = plan.kept_before if self.is_start else plan.epoch_offset + trainer.current_epoch

    def restore(self, plan: LightningModule) -> None:
        """Give the module the best weights."""
        if self.best_state is not None:
            plan.module.load_state_dict(self.best_state)
            plan.running = False

    def on_train_end(self, trainer: Trainer, plan: LightningModule) -> None:
        """Restore the best weights."""
        self.restore(plan)

    def on_exception(self, trainer: Trainer, plan: LightningModule, exception: BaseException) -> None:
        """Restore the best weights so far."""
        self.restore(plan)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {name: getattr(self, name) for name in ("best_loss", "best_state", "best_epoch", "is_start", "n_checks")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what a checkpoint kept."""
        vars(self).update(state_dict)


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
    """
    n_val = 0 if given.get("limit_val_batches") == 0 else n_val
    interval = check_interval(n_steps, max_epochs)
    defaults = {
        "early_stopping": early_stopping and n_val > 0,
        "early_stopping_monitor": "validation_loss",
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
        logger.warning("Only %d validation conditions: which weights are kept is largely chance.", n_val)
    return {**arguments, "callbacks": [KeepBest(), *callbacks]}
