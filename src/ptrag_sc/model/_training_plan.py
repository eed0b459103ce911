"""What happens in a training step, and in a validation step?"""

from inspect import signature
from typing import Any

import torch
from scvi.module.base import LossOutput
from scvi.train import TrainingPlan

from ptrag_sc._validation import unknown, unusable
from ptrag_sc.model._finite import Codes, codes
from ptrag_sc.model._module import PTRAGModule
from ptrag_sc.model._objective import SHARES
from ptrag_sc.retrieval import QueryTable, alike


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
        **plan_kwargs: Any,
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
        self.running = False  # whether the weights are those of an epoch that is not over
        self.epoch_begun = -1  # the last epoch of this training that began
        self.epoch_sums: dict[str, torch.Tensor] = {}  # of what is logged at the end of this epoch, over its sets
        self.n_sets = 0  # of them
        self.losses: list[torch.Tensor] = []  # of the mini-batches since the optimiser's last step, and their sets
        self.sets: list[Codes] = []
        self.batch: dict[str, torch.Tensor] | None = None  # the last one
        self._initial_roots: torch.Tensor | None = None  # of the set losses before training (N,)
        self.is_finite = True  # of the last check
        self.not_finite: list[Codes] = []  # its sets whose loss is not
        self._asked: list[Codes] = []  # all its sets
        self.gain: torch.Tensor | None = None  # of the last check; None without a memory and before training

    @property
    def has_memory(self) -> bool:
        """Whether the queries look at a memory."""
        return self.table.view is not None

    def forward(
        self, tensors: dict[str, torch.Tensor], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], LossOutput]:
        """Run the module on one mini-batch of cell sets; every candidate in it is encoded once."""
        self.table = self.table.to(self.device)
        recall = self.table.recall(tensors["query"], tensors["cell_type"])
        inputs: dict[str, Any] = {"recall": recall}
        if self.module.reads_keys:
            inputs |= {"keys": self.module.encode_keys(tensors["rows"]), "slots": tensors["slots"]}
        return self.module(tensors, inference_kwargs=inputs, **kwargs)

    def configure_optimizers(self) -> dict[str, Any]:
        """Return the optimiser; a learning rate that follows the validation loss is stepped when that is known."""
        config = super().configure_optimizers()
        if "lr_scheduler" in config:
            config["lr_scheduler"]["frequency"] = self.trainer.check_val_every_n_epoch
        return config

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the loss and log it as ``train_loss``, together with its parts."""
        _, _, output = self.forward(batch)
        self.batch = batch
        self.sets.append(codes(batch))
        self.losses.append(output.loss.detach())
        self._add_up("train_loss", output.loss, output.n_obs_minibatch)
        self.n_sets += output.n_obs_minibatch
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
        return self.n_before

    def on_train_epoch_start(self) -> None:
        """Note that the weights are those of a running training."""
        self.running = True
        self.epoch_begun = self.current_epoch
        self.epoch_sums = {}
        self.n_sets = 0

    def _add_up(self, name: str, value: torch.Tensor, n_sets: int) -> None:
        self.epoch_sums[name] = self.epoch_sums.get(name, 0.0) + value.detach() * n_sets

    def means_of_epoch(self) -> dict[str, float]:
        """Return what is logged at the end of an epoch, of the last one's steps so far; nothing without a step.

        Lightning logs this when the epoch is over, and a checkpoint or an interruption may come before.
        """
        return {name: float(total / self.n_sets) for name, total in self.epoch_sums.items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what later checks are compared with: a training that resumes starts with no check."""
        checkpoint["initial_roots"] = self._initial_roots

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load what checks are compared with."""
        self._initial_roots = checkpoint.get("initial_roots")

    def on_validation_epoch_start(self) -> None:
        """Forget what the last check found."""
        self._found: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._asked = []

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
        self._asked.append(codes(batch))
        self._found.append((of_sets, output.extra_metrics.pop("agreement", of_sets)))
        return output

    def validated_loss(self) -> torch.Tensor:
        """Return the mean loss of what was validated; with a memory under the share of it that the module keeps.

        Of the shares whose distance is :func:`alike` the best one, this is the largest whose agreement is alike the
        best of them: measured responses are preferred to what was learned from them. The distance alone would favour
        blends even of a poor answer with a good one, because averaging shrinks predictions. The first check comes
        before training and leaves the share unchanged. Later ones set ``gain`` (N,): by how much the distance fell in
        each condition. Distances are compared by their roots: squared, the strongest conditions would decide.
        """
        losses, agreement = (self._of_all_ranks(torch.cat(found)) for found in zip(*self._found, strict=True))
        mean = losses.mean(0)  # (n shares,)
        self.is_finite = bool((mean + agreement.mean(0)).isfinite().all())
        self.gain = None
        if not self.is_finite:
            self.not_finite = self._sets_not_finite()
        if not self.has_memory or not self.is_finite:
            return mean[0]
        share = SHARES.index(min(SHARES, key=lambda s: abs(s - float(self.module.recalled_share))))
        roots = losses.clamp(min=0).sqrt()  # (N, n shares)
        if self._initial_roots is None:
            self._initial_roots = roots[:, share]
            return mean[share]
        if len(self._initial_roots) != len(roots):
            problem = f"was validated on {len(self._initial_roots)} conditions, now there are {len(roots)}"
            raise ValueError(unusable("The checkpoint", "train", problem, "Resume with the same data, or train anew."))
        near = alike(-roots.T)
        share = int(alike(agreement.T, among=near).nonzero().max())
        self.gain = self._initial_roots - roots[:, share]
        self.module.recalled_share.fill_(SHARES[share])
        return mean[share]

    def _sets_not_finite(self) -> list[Codes]:
        """Return the sets of this process whose loss or agreement is not finite."""
        wrong = []
        for (query, cell_type), (losses, agreement) in zip(self._asked, self._found, strict=False):
            is_wrong = ~(losses.isfinite().all(1) & agreement.isfinite().all(1))  # (B,)
            wrong.append((query[is_wrong], cell_type[is_wrong]))
        return wrong

    def _of_all_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values of all conditions (N, n), in order, given those of this process.

        Processes take every W-th condition, and the first ones again where their number does not divide by W.
        """
        if self.trainer.world_size == 1:
            return values
        datamodule: Any = self.trainer.datamodule
        gathered = self.all_gather(values)  # (W, n of a process, n)
        return gathered.transpose(0, 1).reshape(-1, values.shape[1])[: len(datamodule.val_sets.query)]

    def compute_and_log_metrics(self, loss_output: LossOutput, metrics: dict[str, Any], mode: str) -> None:
        """Log the parts of the loss once per epoch (no ELBO here)."""
        for name, value in loss_output.extra_metrics.items():
            if mode == "train":
                self._add_up(f"{name}_{mode}", value, loss_output.n_obs_minibatch)
            self.log(
                f"{name}_{mode}",
                value.detach(),
                on_step=False,
                on_epoch=True,
                batch_size=loss_output.n_obs_minibatch,
                sync_dist=self.use_sync_dist,
            )
