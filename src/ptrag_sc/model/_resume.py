"""How does a training go on from a file as if it had never ended?"""

import copy
import hashlib
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from ptrag_sc._validation import listed, unusable
from ptrag_sc.data._files import StrPath, make_folder, write_beside
from ptrag_sc.model._finite import answers
from ptrag_sc.model._saving import history_from_json, history_to_json
from ptrag_sc.model._tables import TrainingTables

if TYPE_CHECKING:
    from ptrag_sc.model._epochs import Epochs

logger = logging.getLogger(__name__)

KEY = "ptrag_sc"  # of a checkpoint of Lightning: what Lightning does not keep
SHARE = 0.05  # of the time that writing may take


class SavedTraining(NamedTuple):
    """A checkpoint that was read."""

    path: Path
    content: dict[str, Any]

    @classmethod
    def of(cls, resume: StrPath | None, given: dict[str, Any]) -> "SavedTraining | None":
        """Return the checkpoint with which a training begins; None without one.

        Parameters
        ----------
        resume
            File of :meth:`ptrag_sc.PTRAG.train`; without it, the training begins anew and writes it.
        given
            Arguments of the trainer, of which ``ckpt_path`` may name a checkpoint of Lightning.

        Raises
        ------
        ValueError
            If both are given, or the file of ``resume`` is no state of a training.
        """
        theirs = given.get("ckpt_path")
        if resume is None:
            return cls._of_lightning(theirs)
        path = Path(resume)
        if theirs is not None:
            remedy = "Pass resume= to go on from a file and to keep it up to date, or ckpt_path= to go on only."
            raise ValueError(unusable("ckpt_path=", "train", "is given beside resume=", remedy))
        make_folder(path.parent)
        if not path.exists():
            logger.info("%s does not exist: the training begins anew and keeps its state there.", path)
            return None
        remedy = "Pass the path of another file, or delete this one to train from the beginning."
        try:
            content = _read(path)
        except Exception as error:  # whatever torch makes of bytes that it did not write
            raise ValueError(unusable("The file", str(path), "is no state of a training", remedy)) from error
        if KEY not in content:
            problem = "is no state of a training that this version of ptrag_sc wrote"
            raise ValueError(unusable("The file", str(path), problem, remedy))
        return cls(path, content)

    @classmethod
    def _of_lightning(cls, path: object) -> "SavedTraining | None":
        """Return a checkpoint of Lightning, None if only Lightning can say what it is."""
        if not isinstance(path, str | Path) or not Path(path).is_file():
            return None
        try:
            content = _read(Path(path))
        except Exception:
            return None
        return cls(Path(path), content) if KEY in content else None

    @property
    def seed(self) -> int:
        """Seed of the sets."""
        return int(self.content[KEY]["seed"])

    def check(self, facts: dict[str, Any]) -> None:
        """Refuse to go on with another model, other data or other sets.

        Raises
        ------
        ValueError
            If a fact is another one.
        """
        saved = self.content[KEY]["facts"]
        other = [name for name in facts if saved.get(name) != facts[name]]
        if other:
            problem = f"is of a training with other {listed(other)}"
            remedy = "Pass the same data and options as then, or the path of another file."
            raise ValueError(unusable("The file", str(self.path), problem, remedy))


def _read(path: Path) -> dict[str, Any]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    return content if isinstance(content, dict) else {}


def facts_of(tables: TrainingTables, params: dict[str, Any], sampling: dict[str, Any]) -> dict[str, Any]:
    """Return by what the state of a training is recognised: data, options of the model and of its sets."""
    names = {
        "genes": tables.genes,
        "training perturbations": tables.candidates,
        "split": tables.split[["perturbation", "cell_type", "split"]].to_numpy().ravel(),
    }
    digests = {name: hashlib.sha256("\n".join(map(str, values)).encode()).hexdigest() for name, values in names.items()}
    # The length of a training may change, and whole numbers of numpy are not those of JSON.
    sizes = {name: str(value) for name, value in sampling.items() if name != "max_epochs"}
    return {**digests, **{name: str(value) for name, value in params.items()}, **sizes}


class _ReadOnce(TorchCheckpointIO):
    """Hand Lightning the checkpoint that was read, so that nothing in the file is executed."""

    def __init__(self, saved: SavedTraining):
        super().__init__()
        self.saved = saved

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        return self.saved.content


class Resumable(Callback):
    """Keep in a checkpoint what continues bitwise, and write one between epochs if asked for.

    Lightning keeps weights, optimiser, callbacks and the number of the epoch. This adds the state of torch's random
    numbers, the history and the seed of the sets. The file is written when an epoch is over in every respect (logged,
    learning rate adapted), which Lightning's own checkpoints do not wait for; writing takes at most a twentieth of the
    time.

    Parameters
    ----------
    saved
        The checkpoint with which the training begins.
    seed
        Of the sets.
    facts
        By which a checkpoint is recognised as one of this training.
    path
        The file; None writes none.
    """

    def __init__(self, saved: SavedTraining | None, *, seed: int, facts: dict[str, Any], path: StrPath | None):
        if saved is not None:
            saved.check(facts)
        self.saved = saved
        self.seed = seed
        self.facts = facts
        self.path = None if path is None else Path(path)
        self.epochs: Epochs | None = None  # of the running training
        self._loops: dict[str, Any] | None = None  # state of the loop when the last epoch ended
        self._random: dict[str, torch.Tensor] | None = None  # to be set before the first step
        self._written, self._took = -np.inf, 0.0  # seconds

    def on_train_start(self, trainer: Any, plan: Any) -> None:
        """End at once if the training of the checkpoint was stopped early."""
        stoppers = [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]
        if self.saved is not None and any(callback.stopped_epoch > 0 for callback in stoppers):
            trainer.should_stop = True

    def on_train_batch_start(self, trainer: Any, plan: Any, batch: Any, batch_idx: int) -> None:
        """Set the random numbers of a training that resumes."""
        if self._random is None:
            return
        torch.set_rng_state(self._random["cpu"])
        if "cuda" in self._random and plan.device.type == "cuda":
            torch.cuda.set_rng_state(self._random["cuda"], plan.device)
        self._random = None
        iter(trainer.train_dataloader)  # every epoch begins with one, which draws a number

    def on_train_epoch_end(self, trainer: Trainer, plan: Any) -> None:
        """Note where the training is: the next epoch must not have begun."""
        if self.path is not None:
            self._loops = copy.deepcopy(trainer.fit_loop.state_dict())

    def on_train_epoch_start(self, trainer: Trainer, plan: Any) -> None:
        """Write the file if the last one took little of the time since."""
        if time.monotonic() - self._written > self._took / SHARE:
            self._write(trainer)
        self._loops = None

    def on_train_end(self, trainer: Trainer, plan: Any) -> None:
        """Write the file with the last weights, before others are chosen."""
        if answers(plan):
            self._write(trainer)
        self._loops = None

    def _write(self, trainer: Trainer) -> None:
        if self.path is None or self._loops is None:
            return
        start = time.monotonic()
        if trainer.world_size > 1:  # every process takes part, and one writes
            trainer.save_checkpoint(self.path)
        else:
            write_beside(self.path, trainer.save_checkpoint)
        self._written = time.monotonic()
        self._took = self._written - start

    def on_save_checkpoint(self, trainer: Trainer, plan: Any, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not keep."""
        if self._loops is not None:
            checkpoint["loops"]["fit_loop"] = self._loops
        random = {"cpu": torch.get_rng_state()}
        if plan.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(plan.device)
        assert self.epochs is not None  # a trainer saves while it trains
        history = self.epochs.so_far()
        checkpoint[KEY] = {
            "seed": self.seed,
            "facts": self.facts,
            "random": random,
            "n_before": plan.n_before,
            "kept_before": plan.kept_before,
            "history": history_to_json(history),
            "counted_by": {name: frame.index.name for name, frame in history.items()},
            "first_step": self.epochs.first_step,
        }

    def on_load_checkpoint(self, trainer: Trainer, plan: Any, checkpoint: dict[str, Any]) -> None:
        """Go on with the epochs, the history and the random numbers of a checkpoint."""
        own = checkpoint.get(KEY)
        if own is None:
            return
        plan.n_before, plan.kept_before = own["n_before"], own["kept_before"]
        self._random = own["random"]
        assert self.epochs is not None
        history = history_from_json(own["history"]) or {}
        self.epochs.history = {
            name: frame.rename_axis(index=own["counted_by"][name]) for name, frame in history.items()
        }
        self.epochs.first_step = own["first_step"]

    def added_to(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of the trainer with this callback, which comes before the choice of weights."""
        arguments = {**arguments, "callbacks": [self, *arguments["callbacks"]]}
        if self.path is None or self.saved is None:
            return arguments
        plugins = arguments.get("plugins") or []
        plugins = [*plugins] if isinstance(plugins, list | tuple) else [plugins]
        return {**arguments, "ckpt_path": str(self.path), "plugins": [*plugins, _ReadOnce(self.saved)]}
