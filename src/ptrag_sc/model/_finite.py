"""Is every loss and gradient of a training finite, and which weights were the last that gave finite ones?"""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from ptrag_sc._validation import unusable

Codes: TypeAlias = tuple[Tensor, Tensor]  # query (B,) and cell type (B,) of the sets of a mini-batch


def codes(batch: dict[str, Tensor]) -> Codes:
    """Return which sets a mini-batch holds."""
    return batch["query"], batch["cell_type"]


class Snapshot(NamedTuple):
    """Parameters of one moment."""

    epoch: int | None  # among those of all trainings; None before the first one
    parameters: dict[str, Tensor]


class _Step(NamedTuple):
    """What is to be known of one step."""

    finite: Tensor  # () on the host; valid when ``copied`` is over
    copied: Any  # CUDA event, None where nothing is to be waited for
    sets: list[Codes]
    number: int
    before: Snapshot | None  # the weights of which this is the first step


class StopNonFinite(Callback):
    """End a training at the first loss or gradient that is not finite, and keep weights that gave finite ones.

    On the host a step is judged before it changes the weights. A GPU computes ahead of the host, which must not wait:
    a step is judged as soon as its result has arrived, and by then later ones may have run. So snapshots are kept:
    one of the weights before training and, where nothing is validated, one every few epochs, which counts as soon as
    a step with it was finite. Mixed precision of 16 bits skips steps with infinite gradients by itself; there the loss
    alone is judged.

    Parameters
    ----------
    labels
        Perturbations; row q - 1 is query q.
    cell_types
        Names of the cell types of the screen.
    every
        Epochs between two snapshots; 0 takes none after the first.
    """

    def __init__(self, labels: Sequence[str], cell_types: Sequence[str], *, every: int):
        self.labels = labels
        self.cell_types = cell_types
        self.every = every
        self.good: Snapshot | None = None
        self._taken: Snapshot | None = None  # not known to be good yet
        self._waiting: deque[_Step] = deque()
        self.has_failed = False

    def on_train_start(self, trainer: Trainer, plan: Any) -> None:
        """Keep the weights before training."""
        self.good = _snapshot(plan, plan.kept_before)

    def on_before_optimizer_step(self, trainer: Trainer, plan: Any, optimizer: Any) -> None:
        """Judge this step, on a GPU the earlier ones whose results are there."""
        finite = torch.stack([loss.isfinite() for loss in plan.losses]).all()
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            gradients = [p.grad for p in plan.module.parameters() if p.grad is not None]
            finite = finite & torch.nn.utils.get_total_norm(gradients).isfinite()
        copied = None
        if finite.is_cuda:
            finite = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(finite, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self._waiting.append(_Step(finite, copied, plan.sets, trainer.global_step, self._taken))
        self._taken = None
        plan.losses, plan.sets = [], []
        while self._waiting and (self._waiting[0].copied is None or self._waiting[0].copied.query()):
            self._judge(plan)

    def on_train_epoch_end(self, trainer: Trainer, plan: Any) -> None:
        """Take a snapshot if it is time to."""
        if self.every and (trainer.current_epoch + 1) % self.every == 0:
            self._judge_all(plan)
            self._taken = _snapshot(plan, plan.epoch_offset + trainer.current_epoch)

    def on_validation_start(self, trainer: Trainer, plan: Any) -> None:
        """Judge all steps before their weights are validated."""
        self._judge_all(plan)

    def on_validation_end(self, trainer: Trainer, plan: Any) -> None:
        """Judge the validation losses."""
        if not plan.is_finite:
            raise self._error("validation loss", plan.not_finite, plan, trainer.global_step)

    def on_train_end(self, trainer: Trainer, plan: Any) -> None:
        """Judge the last weights, with which no step was made."""
        self._judge_all(plan)
        if not answers(plan):
            raise self._error("loss after the last step", [codes(plan.batch)], plan, trainer.global_step)

    def _judge_all(self, plan: Any) -> None:
        while self._waiting:
            self._judge(plan)

    def _judge(self, plan: Any) -> None:
        step = self._waiting.popleft()
        if step.copied is not None:
            step.copied.synchronize()
        if not step.finite:
            raise self._error("loss or a gradient", step.sets, plan, step.number)
        if step.before is not None:
            self.good = step.before

    def _error(self, what: str, sets: list[Codes], plan: Any, step: int) -> FloatingPointError:
        """Return the error of a step, which names the conditions of its mini-batch."""
        self.has_failed = True
        names = sorted({name for one in sets for name in self._names(*one)})
        conditions = ", ".join(map(repr, names)) or "those of another process"
        place = f"step {step + 1} of the training (conditions: {conditions})"
        problem = "is not finite, so the training ends with the last weights that gave finite values"
        remedy = f"Lower plan_kwargs={{'lr': ...}}, now {plan.lr:g}, or look at the cells of these conditions."
        return FloatingPointError(unusable(f"The {what}", place, problem, remedy))

    def _names(self, query: Tensor, cell_type: Tensor) -> list[str]:
        names = ["control", *self.labels]
        return [f"{names[q]} in {self.cell_types[t]}" for q, t in zip(query.tolist(), cell_type.tolist(), strict=True)]


def answers(plan: Any) -> bool:
    """Return whether the weights are finite, and their answer for the last mini-batch too."""
    if plan.batch is None:
        return True
    if not all(bool(parameter.isfinite().all()) for parameter in plan.module.parameters()):
        return False
    was_training = plan.module.training
    plan.module.eval()
    with torch.no_grad():
        batch = {name: tensor.to(plan.device) for name, tensor in plan.batch.items()}
        _, _, output = plan.forward(batch)
    plan.module.train(was_training)
    return bool(output.loss.isfinite())


def _snapshot(plan: Any, epoch: int | None) -> Snapshot:
    return Snapshot(epoch, {name: p.detach().clone() for name, p in plan.module.named_parameters()})
