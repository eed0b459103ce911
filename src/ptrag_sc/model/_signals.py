"""How does a training stop between two steps when the process is told to end?"""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.utilities.exceptions import SIGTERMException

NOTED = ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL))


class Interrupted(BaseException):
    """A signal ends the training. No Exception, so that no callback takes it for a failure of its own."""


class StopSignals(Callback):
    """Note Ctrl-C and SIGTERM while a training runs, and end it behind the step in which they came.

    A signal that Python handles at once could come between the changes of two parameters, or while weights are copied.
    So the first one is noted. A second one ends whatever runs, unless :attr:`holds` is True. Handlers that the user
    set, and threads other than the main one, are left alone. Distributed trainings are left to Lightning, which
    ends all processes: each would wait for the steps of the others.
    """

    def __init__(self) -> None:
        self.first: int | None = None  # number of the first signal
        self.n = 0
        self.holds = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Take the signals."""
        if threading.current_thread() is threading.main_thread():
            for number, default in NOTED:
                self._former[number] = signal.getsignal(number)
                if self._former[number] == default:
                    signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give them back, SIGINT too if Lightning left it ignored."""
        for number, handler in self._former.items():
            if handler is not None:  # None: set by another language than Python
                signal.signal(number, handler)

    def leave_to_lightning(self) -> None:
        """Give the signals back before a training of several processes."""
        self.__exit__(None, None, None)
        self._former = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.n += 1
        if self.first is None:
            self.first = number
        if self.n > 1 and not self.holds:
            raise Interrupted

    def on_train_batch_end(self, trainer: Trainer, plan: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End the training if a signal came."""
        self.check()

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """End the training if a signal came; the check before the first step is finished, which makes weights known."""
        if not trainer.sanity_checking:
            self.check()

    def on_exception(self, trainer: Trainer, plan: Any, exception: BaseException) -> None:
        """Let this process finish its work when the processes that it started end.

        Lightning would kill it some seconds after one of them has failed or was killed, also by Lightning itself.
        """
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            if isinstance(exception, KeyboardInterrupt):  # as Lightning would, which finds none below
                launcher.kill(getattr(signal, "SIGKILL", signal.SIGTERM))
            launcher.procs.clear()  # Lightning looks at this list

    def check(self) -> None:
        """Raise if a signal came.

        Raises
        ------
        Interrupted
            If one came.
        """
        if self.first is not None:
            raise Interrupted

    def as_error(self, error: BaseException | None) -> BaseException | None:
        """Return what the caller of a training is to see: the exception of the signal, or the error itself.

        Ctrl-C is a KeyboardInterrupt, which Lightning turns into the end of the process, or in a thread into a
        ValueError. SIGTERM is a SystemExit of the usual status (143): the process ends, and ``finally`` still runs.
        """
        # Lightning, which gets the signals of distributed trainings, ends the process as if it had succeeded.
        if self.first == signal.SIGTERM or isinstance(error, SIGTERMException):
            return SystemExit(128 + signal.SIGTERM)
        if self.first is not None or isinstance(error, Interrupted):
            return KeyboardInterrupt()
        context = None if error is None else error.__context__
        if isinstance(error, SystemExit | ValueError) and isinstance(context, KeyboardInterrupt):
            return context
        return error
