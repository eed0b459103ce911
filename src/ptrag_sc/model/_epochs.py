"""How many epochs were done in all trainings, and the weights of which one does a model have?"""

import logging
from typing import Any

import pandas as pd
from scvi.train import TrainRunner

from ptrag_sc.model._trainer import KeepBest
from ptrag_sc.model._training_plan import PTRAGTrainingPlan

logger = logging.getLogger(__name__)


class Epochs:
    """Epochs of one training, numbered beyond those of earlier ones.

    What is written into the model: ``n_epochs_``; ``kept_epoch_``, None for the weights of before the first training;
    and ``history_``, which scvi-tools numbers by rows in a further training (wrong where a value is not logged in every
    epoch) and forgets where checkpoints are saved. Unlike the history both numbers are known to every process of a
    distributed training.

    Parameters
    ----------
    model, runner, plan
        As in :func:`run_training`.
    """

    def __init__(self, model: Any, runner: TrainRunner, plan: PTRAGTrainingPlan):
        self.model, self.trainer, self.plan = model, runner.trainer, plan
        plan.n_before, plan.kept_before = model.n_epochs_, model.kept_epoch_
        self.history = dict(model.history_ or {})
        self.keep = next((callback for callback in self.trainer.callbacks if isinstance(callback, KeepBest)), None)

    def write(self) -> None:
        """Write what was done so far."""
        model, plan, offset = self.model, self.plan, self.plan.epoch_offset
        added = getattr(self.trainer.logger, "history", None)
        added = added if isinstance(added, dict) else {}  # not of every logger
        logged = [frame.index[-1] + 1 for frame in added.values() if frame.index.name == "epoch" and len(frame)]
        done = max([min(self.trainer.current_epoch + plan.running, self.trainer.max_epochs), *logged])
        model.n_epochs_ = max(plan.n_before, offset + int(done))
        if not plan.running and self.keep is not None and self.keep.best_state is not None:
            model.kept_epoch_ = self.keep.best_epoch
        else:
            model.kept_epoch_ = model.n_epochs_ - 1 if model.n_epochs_ > plan.n_before else plan.kept_before
        if self.trainer.is_global_zero and (added or self.history):
            model.history_ = {name: self._joined(name, added.get(name), offset) for name in {**self.history, **added}}

    def _joined(self, name: str, added: pd.DataFrame | None, offset: int) -> pd.DataFrame:
        """Return the values of earlier trainings and of this one; what is logged by steps is numbered on."""
        before = self.history.get(name)
        if added is None or before is None:
            return before if added is None else added.set_index(added.index + offset * (added.index.name == "epoch"))
        shift = offset if added.index.name == "epoch" else before.index[-1] + 1
        both = pd.concat([before, added.set_index(added.index + shift)])
        return both[~both.index.duplicated(keep="last")]


def run_training(model: Any, runner: TrainRunner, plan: PTRAGTrainingPlan) -> None:
    """Train; whether that ends, fails or is interrupted, the best weights so far are the model's, and it knows which.

    Parameters
    ----------
    model
        :class:`ptrag_sc.PTRAG`.
    runner, plan
        Of this training.
    """
    epochs, was_trained = Epochs(model, runner, plan), model.is_trained_
    model.epochs_, model.support_ = epochs, None
    model.module.train()
    try:
        runner()
    finally:
        model.epochs_ = None
        model.module.eval()
        model.is_trained_ = model.is_trained_ or was_trained  # checkpoints of scvi-tools forget it
        plan.running = False
        if epochs.keep is not None:
            epochs.keep.restore(plan)
        epochs.write()
    if epochs.keep is not None and epochs.keep.is_start and epochs.keep.best_state is not None:
        how = "clearly better" if plan.has_memory else "better"
        found = f"was {how} on" if epochs.keep.n_checks else "was checked on"
        logger.warning("No epoch %s the validation conditions: weights stay as before.", found)
