"""How many epochs were done in all trainings, and the weights of which one does a model have?"""

from typing import Any

import pandas as pd
from scvi.train import TrainRunner

from ptrag_sc.model._trainer import KeepBest
from ptrag_sc.model._training_plan import PTRAGTrainingPlan


class Epochs:
    """Epochs of one training, counted beyond those of earlier ones.

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
        self.n_before, self.history_before = model.n_epochs_, dict(model.history_ or {})

    def write(self, *, running: bool = False) -> None:
        """Write what was done so far; ``running``: the model has the weights of an epoch that is about to end."""
        model, trainer, history = self.model, self.trainer, self.history_before
        offset = max(0, self.n_before - self.plan.first_epoch)
        model.n_epochs_ = offset + trainer.current_epoch + running
        keep = next((callback for callback in trainer.callbacks if isinstance(callback, KeepBest)), None)
        if running or keep is None or keep.best_state is None:
            model.kept_epoch_ = model.n_epochs_ - 1 if model.n_epochs_ else None
        elif keep.best_epoch is not None:
            model.kept_epoch_ = offset + keep.best_epoch
        added = getattr(trainer.logger, "history", None)
        if added and trainer.is_global_zero:
            later = {name: frame.set_index(frame.index + offset) for name, frame in added.items()}
            parts = {name: [h[name] for h in (history, later) if name in h] for name in {**history, **later}}
            model.history_ = {name: pd.concat(frames) for name, frames in parts.items()}


def run_training(model: Any, runner: TrainRunner, plan: PTRAGTrainingPlan) -> None:
    """Train, and whether that ends, fails or is interrupted, say which epochs the model has behind it.

    Parameters
    ----------
    model
        :class:`ptrag_sc.PTRAG`.
    runner, plan
        Of this training.
    """
    kept, model.epochs_, model.support_ = model.kept_epoch_, Epochs(model, runner, plan), None
    model.module.train()
    try:
        runner()
    finally:
        model.module.eval()
        model.kept_epoch_ = kept  # a model saved on the way had another
        model.epochs_.write()
        model.epochs_ = None
