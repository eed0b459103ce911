"""How much do nearness in each space, the same perturbation elsewhere, and the components of a combination count here?

Initial weights are chosen by leave-one-out on the training conditions: each is answered from the others by retrieval
alone. So embeddings whose cosines are crowded (or spread) get the sharpness that they need, and nobody tunes it.
"""

from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from ptrag_sc.retrieval._query_table import QueryTable
from ptrag_sc.retrieval._recall import Recall
from ptrag_sc.retrieval._selection import alike
from ptrag_sc.retrieval._view import MemoryView

SHARPNESS = (0.0, 1.0, 1.4, 2.0, 2.8, 4.0, 5.7, 8.0, 11.3, 16.0, 22.6, 32.0)
OWN = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
MAPPED = (0.0, 0.25, 0.5, 0.75, 1.0)
COMPONENTS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
MAX_CONDITIONS = 500


class InitialWeights(NamedTuple):
    """Weights of retrieval before training."""

    sharpness: Float[Tensor, " 2"]  # factor of the cosine in gene embedding and responses
    own: float  # weight of the query's own response in other cell types
    mapped: float  # share of this that is mapped to the cell type
    components: float  # weight of the components of a combination
    score: float  # mean score of the training conditions


def initial_weights(table: QueryTable, perturbation: Int[Tensor, " C"], cell_type: Int[Tensor, " C"]) -> InitialWeights:
    """Return the simplest weights among those that predict the training conditions, each from the others, alike.

    A condition's score is what the field's metrics of means ask for: the cosine of predicted and observed shift, that
    of their deviations from the mean shift, and, at half the weight, the share of other conditions whose observed
    shift is farther from the prediction than its own.

    Of the options that are :func:`alike`, the one of lowest sharpness is taken: where a screen has no information, all
    neighbours count the same. The weight of components is chosen after that, on combinations; of those that are alike
    the largest, because it means additivity.

    Parameters
    ----------
    table
        Queries: row ``p + 1`` is candidate p. Its view has ``mapped_share=1``.
    perturbation, cell_type
        Candidate and row of the view of each training condition.
    """
    if len(perturbation) > MAX_CONDITIONS:
        kept = torch.linspace(0, len(perturbation) - 1, MAX_CONDITIONS).long()
        perturbation, cell_type = perturbation[kept], cell_type[kept]
    recall = table.recall(perturbation + 1, cell_type)
    asked = _LeftOut(table.view, recall, perturbation, cell_type)
    # All weights of the own response at once: (weight, share of it that is mapped).
    owns = list(product(OWN, MAPPED)) if asked.has_own else [(DEFAULT.own, DEFAULT.mapped)]
    added = torch.stack([weight * asked.own(mapped) for weight, mapped in owns])  # (N, C, L)
    singles = asked.singles
    options, scores = [], []
    for s_text, s_response in product(SHARPNESS, SHARPNESS if asked.has_response else (DEFAULT.sharpness,)):
        options += [_Option(s_text + s_response, *weights, s_text, s_response) for weights in owns]
        answers = asked.answers(s_text, s_response)[singles] + added[:, singles]
        scores.append(asked.scores(answers, singles))
    scores = torch.cat(scores)  # (O, C)
    best = min(alike(scores).nonzero().squeeze(1).tolist(), key=lambda i: options[i])
    kept = options[best]
    return InitialWeights(
        sharpness=torch.tensor([kept.text, kept.response]),
        own=kept.own,
        mapped=kept.mapped,
        components=_weight_of_components(asked, kept),
        score=float(scores[best].mean()),
    )


def agreement(
    answers: Float[Tensor, "N C L"], true: Float[Tensor, "C L"], mean: Float[Tensor, "C L"]
) -> Float[Tensor, "N C"]:
    """Return the cosine of answered and observed deviations from the mean shift, plus that of the shifts.

    Unlike a distance it does not reward an answer for being small.
    """
    specific = torch.cosine_similarity(answers, true, dim=-1)
    return specific + torch.cosine_similarity(mean + answers, mean + true, dim=-1)


class _Option(NamedTuple):
    """Weights, in the order of their simplicity."""

    sharpness: float  # sum over the spaces
    own: float
    mapped: float
    text: float
    response: float


DEFAULT = _Option(4.0, 0.2, 0.0, 4.0, 4.0)  # where nothing can be learned: no responses elsewhere


def _weight_of_components(asked: "_LeftOut", kept: _Option) -> float:
    combinations = asked.is_combination
    if not combinations.any():
        return COMPONENTS[0]
    rest = asked.answers(kept.text, kept.response) + kept.own * asked.own(kept.mapped)
    mixed = torch.stack([(1 - weight) * rest + weight * asked.components for weight in COMPONENTS])
    scores = asked.scores(mixed[:, combinations], combinations)
    return COMPONENTS[int(alike(scores).nonzero().min())]


class _LeftOut:
    """Training conditions (C), what is recalled for each with the condition itself left out, and scores of answers."""

    def __init__(self, view: MemoryView, recall: Recall, perturbation: Int[Tensor, " C"], cell_type: Int[Tensor, " C"]):
        self.cell_type = cell_type
        truth = view.entries[cell_type, perturbation]  # (C, L)
        n_observed = view.observed.sum(1)[cell_type].to(truth.dtype)[:, None]
        # The mean shift of the cell type holds the condition itself: without it, every deviation moves by this much.
        self.moved = truth / (n_observed - 1).clamp(min=1)
        self.mean_of_others = view.mean_low[cell_type] - self.moved
        self.true = truth + self.moved

        has_own = recall.own.present[:, 0]
        self.elsewhere = view.elsewhere[cell_type, recall.own.rows[:, 0]] * has_own[:, None]
        self.mapped = recall.own.response[:, 0]
        self.has_own = bool(self.elsewhere.any())

        # A component measured here moves too, and the answer holds m - 1 mean shifts of m components.
        parts = recall.components
        is_here = view.observed[cell_type[:, None], parts.rows] & parts.present
        n_moved = (is_here.sum(1) - parts.present.sum(1) + 1) * parts.present.any(1)
        self.components = parts.response.sum(1) + n_moved[:, None] * self.moved

        self.neighbours, self.present = recall.neighbours.response, recall.neighbours.present
        self.text, self.response = recall.neighbours.similarity.nan_to_num().unbind(-1)  # (C, K) each
        self.has_response = bool((self.response != 0).any())

        self.is_combination = parts.present.any(1)
        # Where a response elsewhere is known for some conditions, the others cannot show what it is worth.
        informative = ~self.is_combination & (has_own | ~has_own.any())
        self.singles = informative if informative.any() else self.is_combination

    def own(self, mapped: float) -> Float[Tensor, "C L"]:
        """Return the query's own response in other cell types, a share of it mapped to this one."""
        return (1 - mapped) * self.elsewhere + mapped * self.mapped

    def answers(self, s_text: float, s_response: float) -> Float[Tensor, "C L"]:
        """Return the weighted mean of the neighbours' responses."""
        nearness = (s_text * self.text + s_response * self.response).masked_fill(~self.present, -torch.inf)
        weights = torch.softmax(nearness, dim=1).nan_to_num()  # (C, K)
        return (weights[:, None] @ self.neighbours).squeeze(1) + self.moved * self.present.any(1, keepdim=True)

    def scores(self, answers: Float[Tensor, "N c L"], rows: Bool[Tensor, " C"]) -> Float[Tensor, "N c"]:
        """Return the score of N answers to each of some conditions."""
        mean, true = self.mean_of_others[rows], self.true[rows]
        predicted = F.normalize(mean + answers, dim=-1)
        observed = F.normalize(mean + true, dim=-1)
        cosine = predicted @ observed.T  # (N, c, c)
        of_itself = cosine.diagonal(dim1=1, dim2=2)
        same_type = self.cell_type[rows, None] == self.cell_type[rows]  # (c, c)
        n_nearer = ((cosine >= of_itself[..., None]) & same_type).sum(-1) - 1
        rank = n_nearer / (same_type.sum(1) - 1).clamp(min=1)
        return agreement(answers, true, mean) + (1 - rank) / 2
