"""How many epochs have been run, which epoch's weights are kept, and in which state does a training leave a model?"""

import logging
import threading
from collections.abc import Callable

import pandas as pd
from scvi.train import TrainRunner
from scvi.train._logger import SimpleLogger

from ptrag_sc._validation import unusable
from ptrag_sc.model._finite import StopNonFinite, answers
from ptrag_sc.model._resume import Resumable
from ptrag_sc.model._saving import History, SavedModel
from ptrag_sc.model._signals import StopSignals
from ptrag_sc.model._trainer import KeepBest
from ptrag_sc.model._training_plan import PTRAGTrainingPlan

logger = logging.getLogger(__name__)


class Epochs:
    """Epochs of one training, numbered on from those of earlier trainings.

    Three attributes of the model are written: ``n_epochs_``; ``kept_epoch_``, which is None for the weights before the
    first training; and ``history_``. In a further training scvi-tools numbers the history by rows, which is wrong if a
    value is not logged in every epoch, and it forgets the history if checkpoints are saved. Every process of a
    distributed training knows both numbers, but only one has the history. A training that goes on from a checkpoint
    takes the place of the one that wrote it: its epochs are numbered as they were.

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
        self.thread = threading.get_ident()
        self.history: History = dict(model.history_ or {})
        # What is logged by step is numbered on from here.
        self.first_step = {name: int(frame.index[-1]) + 1 for name, frame in self.history.items() if len(frame)}
        if self.trainer.loggers and self._logged() is None:  # those of the user keep none
            self.trainer.loggers = [*self.trainer.loggers, SimpleLogger()]
        callbacks = self.trainer.callbacks
        self.keep = next((callback for callback in callbacks if isinstance(callback, KeepBest)), None)
        self.guard = next(callback for callback in callbacks if isinstance(callback, StopNonFinite))
        resumable = next(callback for callback in callbacks if isinstance(callback, Resumable))
        resumable.epochs = self
        self._kept_otherwise: int | None = None  # epoch of weights that were not validated

    def write(self) -> None:
        """Write the state so far into the model.

        Raises
        ------
        RuntimeError
            If another thread than that of the training asks for it, amid a step.
        """
        if threading.get_ident() != self.thread:
            remedy = "Save it in a callback, or when the training is over."
            raise RuntimeError(unusable("The model", "save", "is being trained by another thread", remedy))
        self.model.n_epochs_ = self._n_epochs()
        self.model.kept_epoch_ = self._kept_epoch()
        history = self.so_far()
        if self.trainer.is_global_zero and history:
            self.model.history_ = history

    def settle(self) -> None:
        """Give the module the weights to keep, and write the state.

        These are the best validated ones; without any, the last ones, or those of a moment in which loss and gradient
        were finite.
        """
        plan, guard = self.plan, self.guard
        best = None if self.keep is None else self.keep.best
        # An epoch that is not over counts if its weights are kept.
        plan.running = self._is_amid_epoch and plan.n_sets > 0 and best is None
        if best is not None and self.keep is not None:
            self.keep.restore(plan)
        elif guard.good is not None and (guard.has_failed or not answers(plan)):
            plan.module.load_state_dict(guard.good.parameters, strict=False)
            plan.running = False
            self._kept_otherwise = guard.good.epoch
        plan.batch = None  # mini-batches are large
        self.write()

    @property
    def _is_amid_epoch(self) -> bool:
        return self.plan.running and self.plan.epoch_begun == self.trainer.current_epoch

    def so_far(self) -> History:
        """Return the history of all trainings."""
        added = self._logged() or {}
        offset = self.plan.epoch_offset
        added = {name: _as_numbers(frame) for name, frame in added.items()}
        joined = {name: self._joined(name, added.get(name), offset) for name in {**self.history, **added}}
        last = self._n_epochs() - 1
        if last != offset + self.plan.epoch_begun or not any(
            isinstance(one, SimpleLogger) for one in self.trainer.loggers
        ):
            return joined
        for name, mean in self.plan.means_of_epoch().items():  # where Lightning has not logged them yet
            row = pd.DataFrame({name: [mean]}, index=pd.Index([last], name="epoch"))
            if name not in joined:
                joined[name] = row
            elif last not in joined[name].index:
                joined[name] = pd.concat([joined[name], row])
        return joined

    def _n_epochs(self) -> int:
        frames = (self._logged() or {}).values()
        logged = [int(frame.index[-1]) + 1 for frame in frames if frame.index.name == "epoch" and len(frame)]
        # The trainer counts an epoch when it ends, so the running one is added; a log may be ahead of the count.
        counted = min(self.trainer.current_epoch + self._is_amid_epoch, self.trainer.max_epochs)
        return max(self.plan.n_before, self.plan.epoch_offset + max([counted, *logged]))

    @property
    def has_weights(self) -> bool:
        """Whether the weights of the model come from a training, or were found to be the best of one."""
        best = None if self.keep is None else self.keep.best
        return best is not None or self.model.kept_epoch_ is not None

    def _logged(self) -> dict[str, pd.DataFrame] | None:
        """Return what this training logged; None if no logger keeps it, as those of other packages do not."""
        found = [getattr(logger, "history", None) for logger in self.trainer.loggers]
        return next((history for history in found if isinstance(history, dict)), None)

    def _kept_epoch(self) -> int | None:
        """Return the epoch of the model's weights, given the number of epochs that were run."""
        best = None if self.keep is None else self.keep.best
        if not self.plan.running and best is not None:
            return best.epoch
        if self.guard.has_failed:
            return self._kept_otherwise
        if self.model.n_epochs_ > self.plan.n_before:
            return self.model.n_epochs_ - 1
        return self.plan.kept_before

    def _joined(self, name: str, added: pd.DataFrame | None, offset: int) -> pd.DataFrame:
        """Return the values of earlier trainings and of this one; values logged by step are numbered on."""
        before = self.history.get(name)
        if added is None:
            return before
        shift = offset if added.index.name == "epoch" else self.first_step.get(name, 0)
        added = added.set_index(added.index + shift)
        if before is None:
            return added
        both = pd.concat([before.rename_axis(index=added.index.name), added])
        return both[~both.index.duplicated(keep="last")]


def _as_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table of the logger, whose values are objects, as numbers, as a saved history has them."""
    return frame.astype(float).set_index(frame.index.astype(int))


def run_training(
    model: SavedModel, runner: TrainRunner, plan: PTRAGTrainingPlan, *, set_size: int, finish: Callable[[], None]
) -> None:
    """Train, and leave a usable model whatever ends the training.

    The best weights so far are restored, the epochs and their history are written, and what follows from the weights
    is computed, before the exception that ended the training is raised. A training that ended before its first step
    leaves the model as it was.

    Parameters
    ----------
    model
        Instance of :class:`ptrag_sc.PTRAG`; its ``kept_epoch_`` becomes the epoch of the weights that are kept.
    runner, plan
        Runner and plan of this training.
    set_size
        Cells in a set.
    finish
        Computes what follows from the weights: support and intervals.

    Raises
    ------
    FloatingPointError
        If a loss or a gradient was not finite.
    KeyboardInterrupt
        After Ctrl-C.
    SystemExit
        After SIGTERM.
    """
    signals = next(callback for callback in runner.trainer.callbacks if isinstance(callback, StopSignals))
    before = model.is_trained_, model.set_size_, model.support_, model.effect_errors_
    epochs = Epochs(model, runner, plan)
    model.epochs_ = epochs
    error: BaseException | None = None
    with signals:
        if runner.trainer.world_size > 1:
            signals.leave_to_lightning()
        try:
            model.set_size_, model.support_, model.effect_errors_ = set_size, None, None
            model.module.train()
            runner()
        except BaseException as raised:
            error = raised
        signals.holds = True  # a second signal must not come between the weights and what is said of them
        model.module.eval()
        epochs.settle()
        model.epochs_ = None
        has_begun = error is None or runner.trainer.global_step > 0
        if has_begun:
            model.is_trained_ = before[0] or error is None or epochs.has_weights
        else:
            model.is_trained_, model.set_size_, model.support_, model.effect_errors_ = before
        signals.holds = False
        if has_begun and model.is_trained_ and signals.n < 2:
            error = _finished(finish, error)
    error = signals.as_error(error)
    if error is not None:
        raise error
    if epochs.keep is not None and epochs.keep.keeps_initial:
        how = "clearly better" if plan.has_memory else "better"
        found = f"was {how} on" if epochs.keep.n_checks > 0 else "was checked on"
        logger.warning("No epoch %s the validation conditions: weights stay as before.", found)


def _finished(finish: Callable[[], None], error: BaseException | None) -> BaseException | None:
    """Compute what follows from the weights, and return the error to raise: the one that ended the training."""
    if error is not None:
        logger.warning("The training ended early: its best weights so far are kept, and errors are expected from them.")
    try:
        finish()
    except BaseException as raised:
        if error is None or not isinstance(raised, Exception):
            return raised
        logger.warning("No errors are expected of predictions, because computing them failed: %s", raised)
    return error
