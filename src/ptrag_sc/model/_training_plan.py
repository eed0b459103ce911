"""What happens in a training step, in a validation step, and at the end?"""

import logging
import math
from inspect import signature
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from scipy.stats import t
from scvi.module.base import LossOutput
from scvi.train import TrainingPlan

from ptrag_sc.model._module import SHARES, PTRAGModule
from ptrag_sc.retrieval import Candidates, MemoryView, Queries, condition_row, distinct_rows

logger = logging.getLogger(__name__)

STEPS_BETWEEN_CHECKS = 25
PATIENCE = 20  # validation checks without improvement
FEW_CONDITIONS = 5
CHANCE = 0.005  # by which one check of many may seem better than the untrained memory


class PTRAGTrainingPlan(TrainingPlan):
    """Training plan of cell sets.

    Parameters
    ----------
    module
        The module.
    queries
        Query table of the training and validation conditions; neighbours are found once, here.
    lr, weight_decay, eps, optimizer, lr_scheduler_metric
        Of the optimiser.
    **plan_kwargs
        Further arguments of :class:`scvi.train.TrainingPlan`.
    """

    def __init__(
        self,
        module: PTRAGModule,
        *,
        queries: Queries,
        optimizer: str = "AdamW",
        lr: float = 5e-4,
        weight_decay: float = 0.01,
        eps: float = 1e-8,
        lr_scheduler_metric: str = "validation_loss",
        **plan_kwargs,
    ):
        options = {"optimizer": optimizer, "lr": lr, "weight_decay": weight_decay, "eps": eps}
        if "fused_optimizer" in signature(TrainingPlan).parameters:
            options["fused_optimizer"] = False  # scvi-tools 1.5: a fused one refuses clipping in mixed precision
        super().__init__(module, **options, lr_scheduler_metric=lr_scheduler_metric, **plan_kwargs)
        tables = {"query": {"vectors": queries.vectors, **queries.candidates._asdict()}}
        if queries.view is not None:
            tables["view"] = queries.view._asdict()
        for prefix, table in tables.items():
            for name, tensor in table.items():
                self.register_buffer(f"{prefix}_{name}", tensor, persistent=False)
        self.first_epoch = 0  # of this training; beyond 0 where it resumes from a checkpoint
        self._start, self.surpasses = None, True  # roots of the set losses (N, 1) before training
        self._n_views, self._n_parts = queries.n_views, queries.n_parts
        self._host_indices = queries.candidates.indices.cpu()

    @property
    def has_memory(self) -> bool:
        """Whether the queries look at a memory."""
        return self._n_views is not None

    def number_perturbations(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Number what is distinct in a mini-batch, on the host: the device never waits for it.

        Numbered are queries, conditions (queries in a cell type, where that matters) and candidates.
        """
        queries, query = torch.unique(batch["query"], return_inverse=True)
        condition = condition_row(batch["query"], batch["cell_type"], self._n_views)
        conditions, condition = torch.unique(condition, return_inverse=True)
        rows, slots = distinct_rows(self._host_indices[conditions])
        numbered = {"queries": queries, "query": query, "conditions": conditions, "condition": condition}
        return {**batch, **numbered, "rows": rows, "slots": slots}

    def forward(self, tensors: dict[str, torch.Tensor], **kwargs) -> tuple[dict, dict, LossOutput]:
        """Run the module on one mini-batch of cell sets; every perturbation in it is encoded once."""
        queries, query = tensors["queries"], tensors["query"]
        table = Candidates(self.query_indices, self.query_present, self.query_similarity)
        candidates = table.take(tensors["conditions"])
        encoded = self.module.encode(self.query_vectors[queries], tensors["rows"], tensors["slots"], candidates)
        retrieved = encoded.take(query, tensors["condition"])
        if self.has_memory:
            view = MemoryView(*(getattr(self, f"view_{name}") for name in MemoryView._fields))
            retrieved = self.module.recall(retrieved, view, tensors["cell_type"], queries[query] > 0, self._n_parts)
        return self.module(tensors, inference_kwargs={"retrieved": retrieved}, **kwargs)

    def configure_optimizers(self) -> dict:
        """Return the optimiser; a learning rate that follows the validation loss is stepped when that is known."""
        config = super().configure_optimizers()
        if "lr_scheduler" in config:
            config["lr_scheduler"]["frequency"] = self.trainer.check_val_every_n_epoch
        return config

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the loss and log it as ``train_loss``, together with its parts."""
        _, _, output = self.forward(batch)
        self.log(
            "train_loss",
            output.loss.detach(),
            on_step=False,
            on_epoch=True,
            prog_bar=True,
            batch_size=output.n_obs_minibatch,
            sync_dist=self.use_sync_dist,
        )
        self.compute_and_log_metrics(output, self.train_metrics, "train")
        return output.loss

    def on_train_start(self) -> None:
        """Note with which epoch this training begins."""
        self.first_epoch = self.current_epoch

    def on_validation_epoch_start(self) -> None:
        """Forget what the last check found."""
        self._found = []

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        """Note the set losses on held-out conditions, and log the other parts of the loss."""
        output = self.validate(batch)
        self.compute_and_log_metrics(output, self.val_metrics, "validation")

    def on_validation_epoch_end(self) -> None:
        """Log the set loss, without the sparsity penalty, as ``validation_loss``."""
        self.log("validation_loss", self.validated_loss())
        if self.has_memory:
            self.log("recalled_share", self.module.recalled_share.clone())

    def validate(self, batch: dict[str, torch.Tensor]) -> LossOutput:
        """Note the loss of every set of a mini-batch, with a memory under each share of it, and the agreement there."""
        _, _, output = self.forward(batch)
        mean = output.extra_metrics["set_loss"].reshape(1, 1).expand(output.n_obs_minibatch, 1)
        of_sets = output.extra_metrics.pop("of_sets", mean)  # a module may know the mean only
        self._found.append((of_sets, output.extra_metrics.pop("agreement", of_sets)))
        return output

    def validated_loss(self) -> torch.Tensor:
        """Return the mean loss of what was validated; with a memory under the share of it that the module keeps.

        Of the shares whose distance is within two standard errors of the best one, condition by condition, this is the
        largest whose agreement is within one of the best of them: what the experiments say is preferred to what was
        learned from them. The distance alone would ask for a blend even of a poor answer with a good one, as blends are
        smaller. The first check comes before training, with the share as it is. After it ``surpasses`` says whether the
        validation conditions gained more, on average, than chance would give them (one-sided t-test at ``CHANCE``, as
        there are many checks). Distances are compared by their roots: squared, the strongest conditions would decide.
        """
        losses, agreement = (torch.cat(found) for found in zip(*self._found, strict=True))
        mean = self._mean_and_error(losses)[0]
        self.surpasses = bool((mean + self._mean_and_error(agreement)[0]).isfinite().all())
        if not self.has_memory or not self.surpasses:
            return mean[0]
        share = SHARES.index(min(SHARES, key=lambda s: abs(s - float(self.module.recalled_share))))
        roots = losses.clamp(min=0).sqrt()
        if self._start is None:
            self._start = roots[:, share, None]
        else:
            near = self._alike(roots, 2.0)
            share = int(self._alike(-agreement, 1.0, among=near).nonzero().max())
        gain, error, n = self._mean_and_error(self._start - roots)
        self.surpasses = bool(gain[share] > float(t.isf(CHANCE, max(n - 1, 1))) * error[share])
        self.module.recalled_share.fill_(SHARES[share])
        return mean[share]

    def _alike(self, behind: torch.Tensor, n_errors: float, among: torch.Tensor | None = None) -> torch.Tensor:
        """Return which of the columns of (N, K) have means within some standard errors of the lowest one among them."""
        among = torch.ones_like(behind[0], dtype=torch.bool) if among is None else among
        best = int(self._mean_and_error(behind)[0].masked_fill(~among, torch.inf).argmin())
        mean, error, _ = self._mean_and_error(behind - behind[:, best, None])
        return among & (mean <= n_errors * error)

    def _mean_and_error(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Return mean and standard error (K,) over the conditions (N, K) of all devices, inf for one, and N."""
        sums = torch.stack([values.sum(0), values.square().sum(0), torch.full_like(values[0], len(values))])
        total, squared, n = self.trainer.strategy.reduce(sums, reduce_op="sum")
        mean = total / n
        variance = (squared / n - mean.square()).clamp(min=0) / (n - 1)
        return mean, variance.sqrt().nan_to_num(nan=torch.inf), int(n[0])

    def compute_and_log_metrics(self, loss_output: LossOutput, metrics: dict, mode: str) -> None:
        """Log the parts of the loss once per epoch (no ELBO here)."""
        for name, value in loss_output.extra_metrics.items():
            self.log(
                f"{name}_{mode}",
                value.detach(),
                on_step=False,
                on_epoch=True,
                batch_size=loss_output.n_obs_minibatch,
                sync_dist=self.use_sync_dist,
            )


class KeepBest(Callback):
    """Keep the weights of the lowest ``validation_loss`` and restore them at the end.

    With a memory these are the untrained ones, retrieval alone, unless the trained ones clearly surpass them: the
    lowest of many checks on few conditions is low by chance too. Without a memory untrained weights predict no effect
    and are no candidate.
    """

    def __init__(self):
        self.best_loss = float("inf")
        self.best_state: dict[str, torch.Tensor] | None = None
        self.best_epoch: int | None = None  # of the weights before training there is none

    def on_validation_end(self, trainer: Trainer, plan: LightningModule) -> None:
        """Remember the weights that were just validated if they are the best so far."""
        loss = float(trainer.callback_metrics["validation_loss"])
        is_first = self.best_state is None and math.isfinite(loss)
        if is_first or (loss < self.best_loss and plan.surpasses):
            self.best_loss = loss
            self.best_state = {name: tensor.detach().clone() for name, tensor in plan.module.state_dict().items()}
            self.best_epoch = None if trainer.sanity_checking else trainer.current_epoch

    def on_train_end(self, trainer: Trainer, plan: LightningModule) -> None:
        """Restore the best weights."""
        if self.best_state is not None:
            plan.module.load_state_dict(self.best_state)
            if self.best_epoch is None:
                logger.warning(
                    "No epoch clearly surpassed the memory alone on the validation conditions: "
                    "the weights stay as before training."
                )


def check_interval(n_steps: int, max_epochs: int) -> int:
    """Return the epochs between validation checks: about 25 steps, and a divisor, so that the last epoch is checked."""
    wanted = max(1, round(STEPS_BETWEEN_CHECKS / n_steps))
    return max(d for d in range(1, wanted + 1) if max_epochs % d == 0)


def trainer_arguments(
    max_epochs: int, *, n_steps: int, n_val: int, check_first: bool, early_stopping: bool, given: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments of the trainer; those that are given replace ours.

    Parameters
    ----------
    max_epochs, n_steps
        Number of epochs, and of steps in each.
    n_val
        Number of validation conditions.
    check_first
        Whether untrained weights are validated too.
    early_stopping
        Whether to stop when the validation loss no longer falls.
    given
        Arguments of the user.
    """
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
    if not n_val:
        memory = " With a memory, whose share is chosen on them, retrieval alone answers." if check_first else ""
        logger.warning("No validation conditions: training runs to max_epochs and keeps the last weights.%s", memory)
        arguments.pop("check_val_every_n_epoch")
        return arguments
    if n_val < FEW_CONDITIONS:
        logger.warning("Only %d validation conditions: which weights are kept is largely chance.", n_val)
    return {**arguments, "callbacks": [*arguments["callbacks"], KeepBest()]}
