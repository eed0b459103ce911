"""Do validation conditions gain more from training than the luckiest of many checks would show by chance?"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LEVEL = 0.05  # share of trainings without any gain whose weights are kept
N_ENUMERATED = 11  # conditions up to which every flip of signs is tried
N_FLIPS = 2000  # beyond that, so many random ones
SEED = 0  # of these: the same gains are always judged alike


def surpasses(gains: Float[Tensor, "E N"]) -> bool:
    r"""Return whether the best of E checks gains more than chance, given how much N conditions gained in each.

    Without a true gain, the sign of a condition's gains is arbitrary. So the gains of whole conditions are multiplied
    by -1 at random, in all checks together, and each time the largest t statistic of all checks is noted (the
    single-step maximum test of Westfall & Young 1993 with flips of signs). The observed maximum must be among the
    largest 5 % of these. The choice of the best check is part of every flip, and how alike consecutive checks are is
    kept exactly, so the error rate holds over the whole training, whatever the number of checks.

    Parameters
    ----------
    gains
        By how much each condition got better than before training. Checks that are not finite do not count.

    Returns
    -------
    bool
        False with fewer than five conditions: then no arrangement of signs is rare enough.
    """
    gains = gains[gains.isfinite().all(1)].double()
    if not len(gains):
        return False
    # Monotone in t, because flips change no square: the sum of gains over the root of their sum of squares.
    scaled = gains / gains.square().sum(1, keepdim=True).sqrt().clamp(min=torch.finfo(gains.dtype).tiny)  # (E, N)
    # Sorted by size, the conditions meet the same random flips in whatever order they come.
    scaled = scaled[:, gains.abs().sum(0).argsort(stable=True)]
    signs = 1.0 - 2.0 * _flips(gains.shape[1]).double()  # (F, N)
    largest = (signs @ scaled.T).amax(1)  # (F,); the first flip changes nothing
    p_value = (largest >= largest[0] - 1e-9).double().mean()
    return bool(largest[0] > 0) and bool(p_value <= LEVEL)


def _flips(n_conditions: int) -> Bool[Tensor, "F N"]:
    """Return which conditions are flipped: all arrangements, or random ones; the first flips none."""
    if n_conditions <= N_ENUMERATED:
        numbers = torch.arange(2**n_conditions)[:, None]
        return (numbers >> torch.arange(n_conditions)) % 2 == 1
    generator = torch.Generator().manual_seed(SEED)
    flips = torch.rand(N_FLIPS, n_conditions, generator=generator) < 0.5
    flips[0] = False
    return flips
