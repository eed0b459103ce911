"""How much does nearness in each space mean in this screen, and how much the same perturbation elsewhere?

Every training condition is answered from the others by retrieval alone, and what answers best is where a model starts:
nothing is tuned, and embeddings whose cosines are crowded (or spread) get the sharpness they need.
"""

import math
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ptrag_sc.retrieval._candidates import Candidates
from ptrag_sc.retrieval._response_memory import MemoryView

SHARPNESS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
OWN = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
MAX_CONDITIONS = 2000


class Start(NamedTuple):
    """Where the weights of a model start."""

    sharpness: Float[Tensor, " 2"]  # factor of the cosine in gene embedding and responses
    own: float  # weight of the query's own response in other cell types
    score: float  # mean cosine of predicted and observed deviation


def calibrate(
    view: MemoryView,
    candidates: Candidates,
    perturbation: Int[Tensor, " C"],
    cell_type: Int[Tensor, " C"],
) -> Start:
    """Return what predicts the training conditions best, each from the others; the simplest of what does so alike.

    Among starts whose mean cosine is within one standard error of the best one's, in paired differences (the rule of
    Breiman et al. 1984), the one of lowest sharpness is taken: where a screen says nothing, all neighbours count alike.

    Parameters
    ----------
    view
        The memory.
    candidates
        Slots of the C conditions.
    perturbation, cell_type
        Row and column of each condition in the view.
    """
    if len(perturbation) > MAX_CONDITIONS:
        kept = torch.linspace(0, len(perturbation) - 1, MAX_CONDITIONS).long()
        candidates, perturbation, cell_type = candidates.take(kept), perturbation[kept], cell_type[kept]
    truth = view.low[cell_type, perturbation]
    n = view.observed.sum(1)[cell_type].to(truth.dtype)[:, None]
    # The mean shift of the cell type holds the condition itself: without it, every deviation moves by this much.
    moved = truth / (n - 1).clamp(min=1)
    slots, present = candidates.indices[:, 1:], candidates.present[:, 1:]
    neighbours = view.low[cell_type[:, None], slots] * present[..., None]
    own = view.elsewhere[cell_type, candidates.indices[:, 0]] * candidates.present[:, :1]
    text, response = candidates.similarity[:, 1:].nan_to_num().unbind(-1)
    has_response, has_own = bool((response != 0).any()), bool((own != 0).any())
    options, scores = [], []
    for s_text, s_response in product(SHARPNESS, SHARPNESS if has_response else (DEFAULT.sharpness,)):
        nearness = (s_text * text + s_response * response).masked_fill(~present, -torch.inf)
        weights = torch.softmax(nearness, dim=1).nan_to_num()
        answer = (weights[:, None] @ neighbours).squeeze(1) + moved * present.any(1, keepdim=True)
        for weight in OWN if has_own else (DEFAULT.own,):
            options.append(Option(s_text + s_response, weight, s_text, s_response))
            scores.append(torch.cosine_similarity(answer + weight * own, truth + moved, dim=1))
    kept = _simplest(options, torch.stack(scores))
    best = options[kept]
    return Start(torch.tensor([best.text, best.response]), best.own, float(scores[kept].mean()))


class Option(NamedTuple):
    """Starting weights, in the order of their simplicity."""

    sharpness: float  # sum over the spaces
    own: float
    text: float
    response: float


DEFAULT = Option(4.0, 0.2, 4.0, 4.0)  # where nothing can be learned: no responses elsewhere


def _simplest(options: list[Option], scores: Float[Tensor, "O C"]) -> int:
    """Return the simplest option that is within a standard error of the best one, condition by condition."""
    behind = scores[scores.mean(1).argmax()] - scores
    error = behind.std(1) / math.sqrt(scores.shape[1]) if scores.shape[1] > 1 else torch.zeros(len(options))
    near = (behind.mean(1) <= error).nonzero().squeeze(1).tolist()
    return min(near, key=lambda i: options[i])
