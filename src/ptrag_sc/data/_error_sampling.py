"""Which training conditions are visited more often, because they are predicted worse than others?

Error-guided sampling, a form of prioritised sampling: a condition is drawn by the energy distance of its predicted from
its observed cells. The observed cells are held-out cells of training conditions, because the loss of cells that were
trained on is lowest where it chased noise; validation conditions never count.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from ptrag_sc.data._conditions import ConditionIndex
from ptrag_sc.data._set_sampler import RandomSets

HELD_OUT = 0.2  # of the cells of a training condition
LEAST = 10  # cells of a condition of which some are held out
DECAY = 0.5  # weight of the latest error in the moving average
ALPHA = 1.0  # power of the error
ETA = 0.2  # share of the draws that every condition has alike
HIGHEST = 95  # percentile of the errors beyond which they count as equal


class ConditionErrors:
    """Moving averages of the errors of C training conditions, and how often these follow to be drawn.

    All ranks of a distributed run, and the sampler and the callback of a training, share one.
    """

    def __init__(self, n_conditions: int):
        self.average = np.full(n_conditions, np.nan)  # (C,); NaN where no error is known

    def update(self, errors: np.ndarray) -> None:
        """Take in new errors (C,), NaN where there is none."""
        first = np.isnan(self.average)
        mixed = DECAY * errors + (1 - DECAY) * self.average
        mixed[first] = errors[first]
        self.average = np.where(np.isfinite(errors), mixed, self.average)

    def probability(self) -> np.ndarray | None:
        r"""Return the probability (C,) of each condition, None before any error is known.

        .. math:: p_c = (1 - \eta)\, s_c^{\alpha} / \sum_i s_i^{\alpha} + \eta / C

        with the averages s clipped at 0 and at their 95th percentile. A condition without an error has the mean of the
        others.
        """
        known = np.isfinite(self.average)
        if not known.any():
            return None
        n = len(self.average)
        score = np.clip(self.average, 0, max(0.0, float(np.percentile(self.average[known], HIGHEST)))) ** ALPHA
        score[~known] = score[known].mean()
        share = score / score.sum() if score.sum() > 0 else np.full(n, 1 / n)
        return (1 - ETA) * share + ETA / n

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"average": self.average.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what a checkpoint kept."""
        self.average = np.array(state["average"], dtype=float)


class GuidedSets(RandomSets):
    """Training sets whose conditions are drawn by their errors: as many in an epoch as there are conditions."""

    def __init__(self, errors: ConditionErrors, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.errors = errors

    def _order(self) -> np.ndarray:
        """Return the conditions of an epoch: each once until errors are known, then by their probability."""
        probability = self.errors.probability()
        if probability is None:
            return super()._order()
        rng = np.random.default_rng([self.seed, self.epoch])
        return rng.choice(len(probability), size=len(probability), p=probability)


def guided_sets(sets: RandomSets, errors: ConditionErrors) -> tuple[GuidedSets, RandomSets, np.ndarray]:
    """Return training sets that follow the errors, sets of the cells that these leave out, and their conditions.

    The last value (C',) says which condition each set of the second kind is of.
    """
    codes = [sets.index.perturbation[rows[0]] for rows in sets.rows_of]
    conditions = pd.DataFrame({"perturbation": codes, "cell_type": sets.cell_type})
    kept, shown = hold_out_cells(sets.index, conditions, sets.seed)
    options = {name: getattr(sets, name) for name in ("set_size", "batch_size", "seed", "matching")}
    guided = GuidedSets(errors, kept, conditions, sets.query, **options)
    n = [len(shown.rows(p, t)) for p, t in conditions.itertuples(index=False)]
    places = np.flatnonzero(n)
    probes = RandomSets(shown, conditions.iloc[places], sets.query[places], fresh=False, **options)
    return guided, probes, places


def hold_out_cells(index: ConditionIndex, conditions: pd.DataFrame, seed: int) -> tuple[ConditionIndex, ConditionIndex]:
    """Return the screen with a fifth of the cells of each condition (codes) left out, and one with only this fifth.

    Conditions of fewer than 10 cells keep all, and have none in the second screen. All control cells are in both.
    """
    held = np.zeros(index.n_obs, dtype=bool)
    for p, t in zip(conditions["perturbation"], conditions["cell_type"], strict=True):
        rows = index.rows(p, t)
        if len(rows) >= LEAST:
            rng = np.random.default_rng([seed, int(p), int(t)])
            held[rng.choice(rows, size=round(HELD_OUT * len(rows)), replace=False)] = True
    perturbed = index.perturbation != index.control
    kept = replace(index, perturbation=np.where(held, -1, index.perturbation))
    shown = replace(index, perturbation=np.where(perturbed & ~held, -1, index.perturbation))
    return kept, shown
