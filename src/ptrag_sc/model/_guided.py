"""How are the errors of training conditions measured during a training?"""

import math
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer

from ptrag_sc._validation import absent, unusable
from ptrag_sc.data import RandomSets
from ptrag_sc.data._error_sampling import LEAST, ConditionErrors, guided_sets
from ptrag_sc.model._trainer import check_interval

SAMPLINGS = ("uniform", "error")
WARM_UP = 0.1  # of the epochs, in which every condition is visited once


def guided_training(train: RandomSets, how: str, *, max_epochs: int) -> tuple[RandomSets, list[Callback]]:
    """Return the training sets and the callbacks of one way to sample conditions.

    Raises
    ------
    ValueError
        If the way is unknown, or no condition has enough cells that some can be held out.
    """
    if how not in SAMPLINGS:
        raise ValueError(absent("condition_sampling=", how, "train", SAMPLINGS, "Pass one of them."))
    if how == "uniform":
        return train, []
    errors = ConditionErrors(len(train.query))
    guided, probes, places = guided_sets(train, errors)
    if not len(places):
        remedy = "Leave condition_sampling='uniform'."
        problem = f"has no training condition of {LEAST} cells or more, of which some can be held out"
        raise ValueError(unusable("The screen", "train", problem, remedy))
    every = check_interval(len(train), max_epochs)
    return guided, [MeasureErrors(errors, probes, places, max_epochs=max_epochs, every=every)]


class MeasureErrors(Callback):
    """Predict held-out cells of the training conditions every few epochs and note the energy distance of each.

    Parameters
    ----------
    errors
        Of the C training conditions; its averages are part of a checkpoint.
    probes
        Sets of the held-out cells of some of these conditions, in order.
    places
        Which condition each of them is.
    max_epochs, every
        Epochs of the training, and between two measurements.
    """

    def __init__(self, errors: ConditionErrors, probes: RandomSets, places: np.ndarray, *, max_epochs: int, every: int):
        self.errors = errors
        self.probes = probes
        self.places = places
        self.first = math.ceil(WARM_UP * max_epochs)  # epochs without errors
        self.every = every

    def on_train_epoch_end(self, trainer: Trainer, plan: Any) -> None:
        """Measure, if it is time to: what is found decides the next epoch."""
        done = trainer.current_epoch + 1
        if done < self.first or (done - self.first) % self.every:
            return
        was_training = plan.module.training
        plan.module.eval()
        found = np.full(len(self.errors.average), np.nan)  # (C,)
        found[self.places] = np.concatenate([self._measured(trainer, plan, sets) for sets in self.probes])
        plan.module.train(was_training)
        # One table for all ranks: rounding may differ between devices, and each must draw the same epoch.
        self.errors.update(trainer.strategy.broadcast(found))

    @torch.no_grad()
    def _measured(self, trainer: Any, plan: Any, sets: Any) -> np.ndarray:
        """Return the distance of every set (B,), of the generator's own answer."""
        data = trainer.datamodule
        batch = data.prepare(data.dataset[sets])
        _, _, output = plan.forward({name: tensor.to(plan.device) for name, tensor in batch.items()})
        of_sets: np.ndarray = output.extra_metrics["of_sets"][:, 0].float().cpu().numpy()  # share 0 of the memory
        return of_sets

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return self.errors.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what a checkpoint kept."""
        self.errors.load_state_dict(state_dict)
