"""What happens in a training step, and in a validation step?"""

from inspect import signature
from typing import Any

import torch
from scipy.stats import t
from scvi.module.base import LossOutput
from scvi.train import TrainingPlan

from ptrag_sc._validation import unknown, unusable
from ptrag_sc.model._module import SHARES, PTRAGModule
from ptrag_sc.retrieval import QueryTable

CHANCE = 0.005  # by which one check of many may seem better than the untrained memory


class PTRAGTrainingPlan(TrainingPlan):
    """Training plan of cell sets.

    Parameters
    ----------
    module
        The module.
    table
        Queries of the training and validation conditions; their neighbours are found once, before training.
    lr, weight_decay, eps, optimizer, lr_scheduler_metric
        Of the optimiser.
    **plan_kwargs
        Further arguments of :class:`scvi.train.TrainingPlan`.
    """

    def __init__(
        self,
        module: PTRAGModule,
        *,
        table: QueryTable,
        optimizer: str = "AdamW",
        lr: float = 5e-4,
        weight_decay: float = 0.01,
        eps: float = 1e-8,
        lr_scheduler_metric: str = "validation_loss",
        **plan_kwargs,
    ):
        known = list(signature(TrainingPlan).parameters)[1:-1]  # without the module and what is left for its loss
        wrong = [name for name in plan_kwargs if name not in known]
        if wrong:  # scvi-tools would hand them to the loss, which does not know them
            remedy = f"Pass some of {', '.join(known)}."
            raise ValueError(unknown("Argument", wrong, "the training plan (plan_kwargs)", known, remedy))
        options = {"optimizer": optimizer, "lr": lr, "weight_decay": weight_decay, "eps": eps}
        if "fused_optimizer" in signature(TrainingPlan).parameters:
            options["fused_optimizer"] = False  # scvi-tools 1.5: a fused one refuses clipping in mixed precision
        super().__init__(module, **options, lr_scheduler_metric=lr_scheduler_metric, **plan_kwargs)
        self.table = table
        self.n_before = 0  # epochs of earlier trainings
        self.kept_before: int | None = None  # the epoch whose weights this training starts with
        self.first_epoch = 0  # of this training, beyond 0 where it resumes from a checkpoint
        self._saved_offset = 0
        self.running = False
        self._initial_roots: torch.Tensor | None = None  # of the set losses before training (N, 1)
        self.surpasses = True

    @property
    def has_memory(self) -> bool:
        """Whether the queries look at a memory."""
        return self.table.view is not None

    def forward(self, tensors: dict[str, torch.Tensor], **kwargs) -> tuple[dict, dict, LossOutput]:
        """Run the module on one mini-batch of cell sets; every candidate in it is encoded once."""
        self.table = self.table.to(self.device)
        recall = self.table.recall(tensors["query"], tensors["cell_type"])
        inputs = {"recall": recall}
        if self.module.reads_keys:
            inputs |= {"keys": self.module.encode_keys(tensors["rows"]), "slots": tensors["slots"]}
        return self.module(tensors, inference_kwargs=inputs, **kwargs)

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

    @property
    def epoch_offset(self) -> int:
        """Return what an epoch of this training is numbered by among those of all."""
        return max(0, self.n_before - self.first_epoch) if self.n_before else self._saved_offset

    def on_train_start(self) -> None:
        """Note with which epoch this training begins."""
        self.first_epoch = self.current_epoch

    def on_train_epoch_start(self) -> None:
        """Note that the weights are those of a running training."""
        self.running = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what later checks are compared with: a training that resumes starts with no check."""
        checkpoint.update(set_losses_at_start=self._initial_roots, epoch_offset=self.epoch_offset)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load what checks are compared with, and how epochs are numbered."""
        self._initial_roots = checkpoint.get("set_losses_at_start")
        self._saved_offset = checkpoint.get("epoch_offset", 0)
        self.first_epoch = checkpoint["epoch"] + 1

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
        if self._initial_roots is None:
            self._initial_roots = roots[:, share, None]
        elif len(self._initial_roots) != len(roots):
            problem = f"was validated on {len(self._initial_roots)} conditions, now there are {len(roots)}"
            raise ValueError(unusable("The checkpoint", "train", problem, "Resume with the same data, or train anew."))
        else:
            near = self._alike(roots, 2.0)
            share = int(self._alike(-agreement, 1.0, among=near).nonzero().max())
        gain, error, n = self._mean_and_error(self._initial_roots - roots)
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
