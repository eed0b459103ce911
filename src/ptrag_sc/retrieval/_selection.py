"""Which options do as well as the best one, as far as the conditions can tell?"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def alike(scores: Float[Tensor, "O C"], among: Bool[Tensor, " O"] | None = None) -> Bool[Tensor, " O"]:
    """Return the options whose mean score is within one standard error of the best one's, paired by condition.

    This is the one-standard-error rule of Breiman et al. (1984). The caller takes the simplest of what is returned.

    Parameters
    ----------
    scores
        Score of each option for each condition; higher is better.
    among
        Options to choose from; None: all.

    Returns
    -------
    Mask (O,), with the best option in it. With a single condition all options are alike, because it has no error.
    """
    if among is None:
        among = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    n_conditions = scores.shape[1]
    if n_conditions == 1:
        return among
    best = int(scores.mean(1).masked_fill(~among, -torch.inf).argmax())
    behind = scores[best] - scores  # (O, C)
    error = behind.std(1) / math.sqrt(n_conditions)
    return among & (behind.mean(1) <= error)
