"""How many epochs were done in all trainings, and the weights of which one does a model have?"""

from typing import Any

import pandas as pd
from scvi.train import TrainRunner

from ptrag_sc.model._trainer import KeepBest
from ptrag_sc.model._training_plan import PTRAGTrainingPlan


def run_training(model: Any, runner: TrainRunner, plan: PTRAGTrainingPlan) -> None:
    """Train, and whether that ends, fails or is interrupted, say which epochs the model has behind it.

    Parameters
    ----------
    model
        :class:`ptrag_sc.PTRAG`.
    runner, plan
        Of this training.
    """
    before, model.support_ = dict(model.history_ or {}), None
    model.module.train()
    try:
        runner()
    finally:
        model.module.eval()
        _count_epochs(model, runner, plan, before)


def _count_epochs(model: Any, runner: TrainRunner, plan: PTRAGTrainingPlan, before: dict[str, pd.DataFrame]) -> None:
    """Add the epochs of a training to ``n_epochs_``, and set ``kept_epoch_`` and ``history_``.

    Unlike the history, both numbers are known to every process of a distributed training. ``kept_epoch_`` None: the
    weights of before the first training. ``before`` is the history of earlier ones: scvi-tools numbers what is added by
    rows, which is wrong where a value is not logged in every epoch, and forgets it where checkpoints are saved.
    """
    trainer = runner.trainer
    offset = max(0, model.n_epochs_ - plan.first_epoch)
    model.n_epochs_ = offset + trainer.current_epoch
    keep = next((callback for callback in trainer.callbacks if isinstance(callback, KeepBest)), None)
    if keep is None or keep.best_state is None:
        model.kept_epoch_ = model.n_epochs_ - 1 if model.n_epochs_ else None
    elif keep.best_epoch is not None:
        model.kept_epoch_ = offset + keep.best_epoch
    added = getattr(trainer.logger, "history", None)
    if added and trainer.is_global_zero:
        later = {name: frame.set_index(frame.index + offset) for name, frame in added.items()}
        parts = {name: [h[name] for h in (before, later) if name in h] for name in {**before, **later}}
        model.history_ = {name: pd.concat(frames) for name, frames in parts.items()}
