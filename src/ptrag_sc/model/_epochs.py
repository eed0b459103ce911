"""How many epochs were done in all trainings, and the weights of which one does a model have?"""

from typing import Any

import pandas as pd
from lightning.pytorch import Trainer

from ptrag_sc.model._training_plan import KeepBest, PTRAGTrainingPlan


def count_epochs(model: Any, trainer: Trainer, plan: PTRAGTrainingPlan, *, before: dict[str, pd.DataFrame]) -> None:
    """Add the epochs of a training that has ended to ``n_epochs_``, and set ``kept_epoch_`` and ``history_``.

    Unlike the history, both numbers are known to every process of a distributed training. ``kept_epoch_`` None: the
    weights of before the first training.

    Parameters
    ----------
    model
        Trained :class:`ptrag_sc.PTRAG`.
    trainer, plan
        Of this training.
    before
        History of earlier ones. scvi-tools numbers what is added by rows, which is wrong where a value is not logged in
        every epoch, and forgets earlier epochs where checkpoints are saved.
    """
    offset = model.n_epochs_ - plan.first_epoch
    model.n_epochs_ = offset + trainer.current_epoch
    keep = next((callback for callback in trainer.callbacks if isinstance(callback, KeepBest)), None)
    if keep is None or keep.best_state is None:
        model.kept_epoch_ = model.n_epochs_ - 1
    elif keep.best_epoch is not None:
        model.kept_epoch_ = offset + keep.best_epoch
    added = getattr(trainer.logger, "history", None)
    if added and trainer.is_global_zero:
        later = {name: frame.set_index(frame.index + offset) for name, frame in added.items()}
        parts = {name: [h[name] for h in (before, later) if name in h] for name in {**before, **later}}
        model.history_ = {name: pd.concat(frames) for name, frames in parts.items()}
