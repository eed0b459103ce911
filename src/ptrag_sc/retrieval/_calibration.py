"""How much does nearness in each space mean in this screen, and how much the same perturbation or its parts elsewhere?

Every training condition is answered from the others by retrieval alone, and what answers best is where a model starts:
nothing is tuned, and embeddings whose cosines are crowded (or spread) get the sharpness they need.
"""

import math
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from ptrag_sc.retrieval._candidates import Candidates
from ptrag_sc.retrieval._response_memory import MemoryView, tell

SHARPNESS = (0.0, 1.0, 1.4, 2.0, 2.8, 4.0, 5.7, 8.0, 11.3, 16.0, 22.6, 32.0)
OWN = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
MAPPED = (0.0, 0.25, 0.5, 0.75, 1.0)
PARTS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
MAX_CONDITIONS = 500


class Start(NamedTuple):
    """Where the weights of a model start."""

    sharpness: Float[Tensor, " 2"]  # factor of the cosine in gene embedding and responses
    own: float  # weight of the query's own response in other cell types
    mapped: float  # share of this that is mapped to the cell type
    parts: float  # weight of the components of a combination
    score: float  # mean score of the training conditions


def calibrate(
    view: MemoryView,
    candidates: Candidates,
    perturbation: Int[Tensor, " C"],
    cell_type: Int[Tensor, " C"],
    n_parts: int = 0,
) -> Start:
    """Return what predicts the training conditions best, each from the others; the simplest of what does so alike.

    A condition's score is what the field's metrics of means ask for: the cosine of predicted and observed shift, that
    of their deviations from the mean shift, and, at half the weight, the share of other conditions whose observed
    shift is farther from the prediction than its own.

    Among starts whose mean score is within one standard error of the best one's, in paired differences (the rule of
    Breiman et al. 1984), the one of lowest sharpness is taken: where a screen says nothing, all neighbours count alike.
    The weight of components is chosen after that, on combinations; of those alike the largest: additivity.

    Parameters
    ----------
    view
        The memory.
    candidates
        Slots of the C conditions.
    perturbation, cell_type
        Row and column of each condition in the view.
    n_parts
        Slots of components, behind slot 0.
    """
    if len(perturbation) > MAX_CONDITIONS:
        kept = torch.linspace(0, len(perturbation) - 1, MAX_CONDITIONS).long()
        candidates, perturbation, cell_type = candidates.take(kept), perturbation[kept], cell_type[kept]
    asked = _Asked(view, candidates, perturbation, cell_type, n_parts)
    # All weights of the own response at once: (weight, share of it that is mapped).
    owns = list(product(OWN, MAPPED)) if asked.has_own else [(DEFAULT.own, DEFAULT.mapped)]
    added = torch.stack([weight * asked.own(m) for weight, m in owns])
    options, scores, single = [], [], asked.single
    for s_text, s_response in product(SHARPNESS, SHARPNESS if asked.has_response else (DEFAULT.sharpness,)):
        options += [Option(s_text + s_response, *weights, s_text, s_response) for weights in owns]
        scores.append(asked.scores(asked.answer(s_text, s_response)[single] + added[:, single], single))
    scores = torch.cat(scores)
    kept = _simplest(options, scores)
    best, parts, combined = options[kept], PARTS[0], ~asked.is_whole
    if combined.any():
        rest = asked.answer(best.text, best.response) + best.own * asked.own(best.mapped)
        mixed = torch.stack([(1 - w) * rest + w * asked.parts for w in PARTS])[:, combined]
        parts = PARTS[_simplest(list(range(len(PARTS))), asked.scores(mixed, combined))]
    return Start(torch.tensor([best.text, best.response]), best.own, best.mapped, parts, float(scores[kept].mean()))


def agreement(
    answers: Float[Tensor, "N C R"], true: Float[Tensor, "C R"], mean: Float[Tensor, "C R"]
) -> Float[Tensor, "N C"]:
    """Return the cosine of answered and observed deviations from the mean shift, plus that of the shifts.

    Unlike a distance it does not reward an answer for being small.
    """
    specific = torch.cosine_similarity(answers, true, dim=-1)
    return specific + torch.cosine_similarity(mean + answers, mean + true, dim=-1)


class _Asked:
    """Training conditions (C), what the memory tells of each, and how an answer is scored."""

    def __init__(self, view, candidates, perturbation, cell_type, n_parts):
        slots = view, candidates.indices, candidates.present, cell_type, torch.ones_like(perturbation).bool()
        told, mapped = (tell(*slots, mapped=share, n_parts=n_parts) for share in (0.0, 1.0))
        self.cell_type, last = cell_type, 1 + n_parts
        truth = view.low[cell_type, perturbation]
        n = view.observed.sum(1)[cell_type].to(truth.dtype)[:, None]
        # The mean shift of the cell type holds the condition itself: without it, every deviation moves by this much.
        moved = truth / (n - 1).clamp(min=1)
        self.moved, self.others, self.true = moved, told.mean_low - moved, truth + moved
        self.elsewhere, self.mapped, self.parts = told.low[:, 0], mapped.low[:, 0], told.low[:, 1:last].sum(1)
        if n_parts:  # a component seen here moves too, and of m components m - 1 mean shifts are told
            shown = candidates.present[:, 1:last]
            here = view.observed[cell_type[:, None], candidates.indices[:, 1:last]] & shown
            n_moved = (here.sum(1) - shown.sum(1) + 1) * shown.any(1)
            self.parts = self.parts + n_moved[:, None] * moved
        self.neighbours, self.present = told.low[:, last:], candidates.present[:, last:]
        self.text, self.response = candidates.similarity[:, last:].nan_to_num().unbind(-1)
        self.has_own, self.has_response = bool(self.elsewhere.any()), bool((self.response != 0).any())
        self.is_whole = ~candidates.present[:, 1:last].any(1)
        # Where a response elsewhere is known for some, those who have none say nothing of its worth.
        known = candidates.present[:, 0] | ~candidates.present[:, 0].any()
        self.single = self.is_whole & known if (self.is_whole & known).any() else ~self.is_whole

    def own(self, mapped: float) -> Float[Tensor, "C R"]:
        return (1 - mapped) * self.elsewhere + mapped * self.mapped

    def answer(self, s_text: float, s_response: float) -> Float[Tensor, "C R"]:
        """Return what neighbours say to each condition."""
        nearness = (s_text * self.text + s_response * self.response).masked_fill(~self.present, -torch.inf)
        weights = torch.softmax(nearness, dim=1).nan_to_num()
        return (weights[:, None] @ self.neighbours).squeeze(1) + self.moved * self.present.any(1, keepdim=True)

    def scores(self, answers: Float[Tensor, "N c R"], rows: Bool[Tensor, " C"]) -> Float[Tensor, "N c"]:
        """Return the score of N answers to each of some conditions."""
        others, true = self.others[rows], self.true[rows]
        agree = agreement(answers, true, others)
        whole, true = F.normalize(others + answers, dim=-1), F.normalize(others + true, dim=-1)
        alike, same = whole @ true.T, self.cell_type[rows, None] == self.cell_type[rows]
        itself = alike.diagonal(dim1=1, dim2=2)
        nearer = ((alike >= itself[..., None]) & same).sum(-1) - 1
        return agree + (1 - nearer / (same.sum(1) - 1).clamp(min=1)) / 2


class Option(NamedTuple):
    """Starting weights, in the order of their simplicity."""

    sharpness: float  # sum over the spaces
    own: float
    mapped: float
    text: float
    response: float


DEFAULT = Option(4.0, 0.2, 0.0, 4.0, 4.0)  # where nothing can be learned: no responses elsewhere


def _simplest(options: list, scores: Float[Tensor, "O C"]) -> int:
    """Return the simplest option that is within a standard error of the best one, condition by condition."""
    behind = scores[scores.mean(1).argmax()] - scores
    error = behind.std(1) / math.sqrt(scores.shape[1]) if scores.shape[1] > 1 else torch.zeros(len(options))
    near = (behind.mean(1) <= error).nonzero().squeeze(1).tolist()
    return min(near, key=lambda i: options[i])
