"""Which further arguments does training take, and what is to be done about others?"""

from inspect import signature
from typing import Any

from lightning.pytorch import Trainer as LightningTrainer
from scvi.train import Trainer, TrainingPlan

from ptrag_sc._validation import unknown, unusable
from ptrag_sc.model._training_plan import PTRAGTrainingPlan

SETS = "because every epoch draws its own sets"
# scvi-tools takes the first from the arguments of the trainer; the second is refused with a reason of its own.
OF_RUNNER = ("ckpt_path", "load_best_on_end")
NOT_GIVEN = {"module", "table", "plan_kwargs", "loss_kwargs"}  # arguments of the plan that are not the user's
NO_MODULE = "Write the screen with ptrag_sc.datasets.write_store: training then reads from the disk."
REPLACED = {"overfit_batches": "limit_train_batches=1, limit_val_batches=0"}  # what to pass instead


def check_trainer_arguments(given: dict[str, Any]) -> None:
    """Refuse arguments that neither trainer takes, or that cannot work.

    Raises
    ------
    TypeError
        If a name is unknown; arguments of the training plan go into ``plan_kwargs``.
    ValueError
        If batches are to be repeated.
    """
    known = {*signature(Trainer).parameters, *signature(LightningTrainer).parameters, *OF_RUNNER} - {"kwargs"}
    of_plan = {*signature(PTRAGTrainingPlan).parameters, *signature(TrainingPlan).parameters} - NOT_GIVEN
    for name in [name for name in given if name not in known]:
        remedy = "See the arguments of scvi.train.Trainer."
        if name in ("datamodule", "registry"):
            remedy = NO_MODULE
        if name in of_plan:
            remedy = f"Pass plan_kwargs={{{name!r}: {given[name]!r}}}."
        raise TypeError(unknown("Argument", [name], "the arguments of the trainer", known, remedy))
    for name, instead in REPLACED.items():
        if given.get(name):
            problem = f"cannot be used, {SETS}"
            raise ValueError(unusable(f"{name}={given[name]!r}", "train", problem, f"Pass {instead}."))
