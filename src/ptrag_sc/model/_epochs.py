"""How many epochs have been run, and which epoch's weights are kept?"""

import logging

import pandas as pd
from scvi.train import TrainRunner
from scvi.train._logger import SimpleLogger

from ptrag_sc.model._saving import SavedModel
from ptrag_sc.model._trainer import KeepBest
from ptrag_sc.model._training_plan import PTRAGTrainingPlan

logger = logging.getLogger(__name__)


class Epochs:
    """Epochs of one training, numbered on from those of earlier trainings.

    Three attributes of the model are written: ``n_epochs_``; ``kept_epoch_``, which is None for the weights before the
    first training; and ``history_``. In a further training scvi-tools numbers the history by rows, which is wrong if a
    value is not logged in every epoch, and it forgets the history if checkpoints are saved. Every process of a
    distributed training knows both numbers, but only one has the history.

    Parameters
    ----------
    model, runner, plan
        As in :func:`run_training`.
    """

    def __init__(self, model: SavedModel, runner: TrainRunner, plan: PTRAGTrainingPlan):
        self.model = model
        self.trainer = runner.trainer
        self.plan = plan
        plan.n_before = model.n_epochs_
        plan.kept_before = model.kept_epoch_
        self.history: dict[str, pd.DataFrame] = dict(model.history_ or {})
        if self.trainer.loggers and self._logged() is None:  # those of the user keep none
            self.trainer.loggers = [*self.trainer.loggers, SimpleLogger()]
        self.keep = next((callback for callback in self.trainer.callbacks if isinstance(callback, KeepBest)), None)

    def write(self) -> None:
        """Write the state so far into the model."""
        offset = self.plan.epoch_offset
        added = self._logged() or {}
        logged = [frame.index[-1] + 1 for frame in added.values() if frame.index.name == "epoch" and len(frame)]
        # The trainer counts an epoch when it ends, so the running one is added; a log may be ahead of the count.
        counted = min(self.trainer.current_epoch + self.plan.running, self.trainer.max_epochs)
        self.model.n_epochs_ = max(self.plan.n_before, offset + int(max([counted, *logged])))
        self.model.kept_epoch_ = self._kept_epoch()
        if self.trainer.is_global_zero and (added or self.history):
            names = {**self.history, **added}
            self.model.history_ = {name: self._joined(name, added.get(name), offset) for name in names}

    def _logged(self) -> dict[str, pd.DataFrame] | None:
        """Return what this training logged; None if no logger keeps it, as those of other packages do not."""
        found = [getattr(logger, "history", None) for logger in self.trainer.loggers]
        return next((history for history in found if isinstance(history, dict)), None)

    def _kept_epoch(self) -> int | None:
        """Return the epoch of the model's weights, given the number of epochs that were run."""
        best = None if self.keep is None else self.keep.best
        if not self.plan.running and best is not None:
            return best.epoch
        if self.model.n_epochs_ > self.plan.n_before:
            return self.model.n_epochs_ - 1
        return self.plan.kept_before

    def _joined(self, name: str, added: pd.DataFrame | None, offset: int) -> pd.DataFrame:
        """Return the values of earlier trainings and of this one; values logged by step are numbered on."""
        before = self.history.get(name)
        if added is None:
            return before
        by_epoch = added.index.name == "epoch"
        if before is None:
            return added.set_index(added.index + offset * by_epoch)
        shift = offset if by_epoch else before.index[-1] + 1
        both = pd.concat([before, added.set_index(added.index + shift)])
        return both[~both.index.duplicated(keep="last")]  # a resumed training repeats epochs


def run_training(model: SavedModel, runner: TrainRunner, plan: PTRAGTrainingPlan) -> None:
    """Train, and leave the best weights so far in the model even if training fails or is interrupted.

    Parameters
    ----------
    model
        Instance of :class:`ptrag_sc.PTRAG`; its ``kept_epoch_`` becomes the epoch of these weights.
    runner, plan
        Runner and plan of this training.
    """
    epochs = Epochs(model, runner, plan)
    was_trained = model.is_trained_
    model.epochs_ = epochs
    model.support_ = None  # calibrated with other weights
    model.effect_errors_ = None
    model.module.train()
    try:
        runner()
    finally:
        model.epochs_ = None
        model.module.eval()
        model.is_trained_ = model.is_trained_ or was_trained  # the checkpoints of scvi-tools reset it
        plan.running = False
        if epochs.keep is not None:
            epochs.keep.restore(plan)
        epochs.write()
    if epochs.keep is not None and epochs.keep.keeps_initial:
        how = "clearly better" if plan.has_memory else "better"
        found = f"was {how} on" if epochs.keep.n_checks > 0 else "was checked on"
        logger.warning("No epoch %s the validation conditions: weights stay as before.", found)
