"""Which perturbations should be measured next?"""

import logging
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from ptrag_sc._constants import SETUP_KEY
from ptrag_sc._validation import check_whole, listed, unknown, unusable
from ptrag_sc.baselines._known import Known, SimilaritySpace, perturbation_kernel
from ptrag_sc.data import Predictor, ScreenKeys
from ptrag_sc.data._fields import AnnOrMuData
from ptrag_sc.data._labels import named_perturbations
from ptrag_sc.data._requests import as_name_list
from ptrag_sc.retrieval import RemainingVariance
from ptrag_sc.tl._model import check_predictor

logger = logging.getLogger(__name__)

FEW_TARGETS = 20
MAX_TARGETS = 2000
PLACE = "tl.design"


class Request(NamedTuple):
    """What is asked for, in canonical labels."""

    candidates: tuple[str, ...]  # those that can be chosen
    targets: tuple[str, ...]
    include: tuple[str, ...]
    measured: tuple[str, ...]


def design(
    adata: AnnOrMuData | None,
    model: Predictor | None,
    n: int,
    *,
    cell_type: str,
    candidates: Iterable[str],
    targets: Iterable[str] | None = None,
    space: SimilaritySpace = "auto",
    measured: Iterable[str] = (),
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    costs: Mapping[str, float] | pd.Series | None = None,
    budget: float | None = None,
    gene_embedding: object = None,
) -> pd.DataFrame:
    r"""Choose the perturbations whose measurement would tell most about the targets.

    One after the other the perturbation is taken that lowers the uncertainty about the shifts of all targets most,
    given what has been measured and what was taken before (integrated variance reduction; Cohn et al. 1996). See
    :doc:`/next_experiment`, and :func:`ptrag_sc.pl.design` for what it would have saved in your own screen.

    What a measurement tells does not depend on its outcome, so nothing needs to be measured to begin with, and n
    perturbations chosen at once are the same as in several batches. To design a batch later, when ``candidates`` or
    ``targets`` have changed, fit the model to what has been measured since, or name it in ``measured``.

    Parameters
    ----------
    adata
        Registered object with the cells. Without a model: any object with a gene embedding in ``uns``, or None if
        ``gene_embedding`` is given.
    model
        Model or baseline; what it learned from in the cell type counts as measured. None: nothing does.
    n
        How many perturbations to choose.
    cell_type
        Where they are to be measured.
    candidates
        Perturbations that can be measured, for example all genes of a library. Combinations such as ``"A+B"`` too.
    targets
        Perturbations that one wants to know about. They decide what is chosen. None: the candidates. Of more than
        2,000 a sample of 2,000 is used.
    space
        How perturbations are alike. ``"text"``: by gene embedding. ``"response"``: by what they did in other cell
        types, which is read from those conditions that the model knows and ``adata`` holds. ``"auto"``: by response
        where it is known, by gene embedding elsewhere.
    measured
        Further perturbations that were measured in this cell type.
    include
        Perturbations that must be measured; they come first and count towards n and the budget.
    exclude
        Candidates that cannot be measured. They remain targets.
    costs
        Cost of each candidate, above 0. The gain per cost is then what decides.
    budget
        With ``costs``: what all may cost together. The choice ends when no candidate is left that can be paid, so it
        may hold fewer than n.
    gene_embedding
        Table (any source of :func:`ptrag_sc.pp.gene_embedding`) for genes that neither the model nor ``adata`` knows.

    Returns
    -------
    DataFrame
        ``order`` (from 1), ``perturbation``, ``variance_reduction``: the share of what is uncertain about the targets
        before the first of these measurements that this one removes. ``.attrs`` holds ``cell_type``, ``space`` (in
        words), ``n_targets`` and ``n_measured``.

    Raises
    ------
    KeyError
        If a perturbation has no vector, or a cell type, an excluded candidate or a cost is missing.
    ValueError
        If fewer than n candidates are left, the choice contradicts itself, or a cost is not above 0.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=600, n_genes=60, n_perturbations=30, n_cell_types=1)
    >>> genes = adata.uns["gene_embedding"]["genes"]

    From nothing, by the gene embedding alone:

    >>> table = ptrag_sc.tl.design(adata, None, 5, cell_type="type_0", candidates=genes)
    >>> table["order"].tolist()
    [1, 2, 3, 4, 5]
    """
    check_whole("n", n, PLACE, minimum=1)
    labels = _labels(
        adata, model, candidates=candidates, targets=targets, measured=measured, include=include, exclude=exclude
    )
    known = None if model is None else Known.of(adata, model, cell_type)
    asked = _request(labels, known, n, cell_type)
    together = tuple(dict.fromkeys((*asked.candidates, *asked.targets, *asked.measured)))
    responses = None if known is None or space == "text" else known.responses()
    sep = _control_and_sep(adata, model)[1]
    kernel = perturbation_kernel(together, responses, adata, model, space=space, gene_embedding=gene_embedding, sep=sep)
    number = pd.Index(together)
    parts = (asked.targets, asked.candidates, asked.measured)
    state = RemainingVariance(kernel, *(number.get_indexer(list(part)) for part in parts))
    paid, limit = _costs(costs, budget, asked)
    first = pd.Index(asked.candidates).get_indexer(list(asked.include))
    choice = state.choose(n, first=first, costs=paid, budget=limit)
    table = pd.DataFrame(
        {
            "order": np.arange(1, len(choice.chosen) + 1),
            "perturbation": np.array(asked.candidates, dtype=object)[choice.chosen],
            "variance_reduction": choice.reduction / max(state.total, np.finfo(float).tiny),
        }
    )
    about = {"cell_type": cell_type, "space": kernel.space}
    table.attrs.update(about, n_targets=len(asked.targets), n_measured=len(asked.measured))
    return table


def _control_and_sep(adata: AnnOrMuData | None, model: Predictor | None) -> tuple[tuple[str, ...], str | None]:
    """Return the labels of the control, if there are any, and the separator of combinations."""
    if model is not None:
        return model.keys_.controls, model.keys_.sep
    if adata is not None and SETUP_KEY in adata.uns:
        keys = ScreenKeys.of(adata)
        return keys.controls, keys.sep
    return (), "+"


def _labels(adata: AnnOrMuData | None, model: Predictor | None, **names: object) -> dict[str, list[str] | None]:
    """Return distinct canonical labels by argument; None stays None."""
    if model is not None:
        check_predictor(model)
    control, sep = _control_and_sep(adata, model)
    found: dict[str, list[str] | None] = {}
    for argument, values in names.items():
        if values is None:
            found[argument] = None
            continue
        given = as_name_list(values, argument)
        labels = named_perturbations(given, control=control, sep=sep, what=argument) if given else ()
        found[argument] = list(labels)
    return found


def _request(labels: dict[str, list[str] | None], known: Known | None, n: int, cell_type: str) -> Request:
    """Return what can be chosen, or refuse what contradicts itself."""
    candidates, include, exclude = (labels[name] or [] for name in ("candidates", "include", "exclude"))
    targets = candidates if labels["targets"] is None else labels["targets"]
    measured = dict.fromkeys(labels["measured"] or [])
    if known is not None:
        measured |= dict.fromkeys(known.here)
    if strange := [name for name in exclude if name not in set(candidates)]:
        raise KeyError(unknown("Excluded perturbation", strange, "candidates", candidates, "Correct exclude=."))
    for place, others in (("exclude", set(exclude)), ("what has been measured", set(measured))):
        if both := [name for name in include if name in others]:
            problem = f"holds {listed(both)}, which is in {place} too"
            raise ValueError(unusable("include", PLACE, problem, "Name a perturbation in one of them."))
    if known_already := [name for name in candidates if name in measured]:
        shown = listed(known_already)
        logger.warning("%d candidates were measured in %s and are left out: %s.", len(known_already), cell_type, shown)
    closed = set(exclude) | set(measured)
    open_ = tuple(name for name in dict.fromkeys((*include, *candidates)) if name not in closed)
    if n > len(open_) or len(include) > n:
        problem = f"is above the {len(open_)} candidates that are left"
        remedy = f"Pass n={len(open_)} or fewer, or more candidates."
        if len(include) > n:
            problem = f"is below the {len(include)} perturbations to include"
            remedy = f"Pass n={len(include)} or more."
        raise ValueError(unusable(f"n={n}", PLACE, problem, remedy))
    if not targets:
        raise ValueError(unusable("targets", PLACE, "are empty", "Pass None for the candidates."))
    if len(targets) < FEW_TARGETS:
        logger.warning(
            "Only %d targets: a choice that is made for fewer than %d perturbations says little about any other.",
            len(targets),
            FEW_TARGETS,
        )
    if len(targets) > MAX_TARGETS:
        drawn = np.random.default_rng(0).choice(len(targets), MAX_TARGETS, replace=False)
        targets = [targets[i] for i in np.sort(drawn)]
    return Request(open_, tuple(targets), tuple(include), tuple(measured))


def _costs(
    costs: Mapping[str, float] | pd.Series | None, budget: float | None, asked: Request
) -> tuple[np.ndarray | None, float]:
    """Return the cost of each candidate (C,), None if all cost the same, and what they may cost together."""
    if costs is None:
        if budget is not None:
            raise ValueError(unusable(f"budget={budget}", PLACE, "comes without costs", "Pass costs= too."))
        return None, np.inf
    given = pd.Series(costs, dtype=float)
    if lacking := [name for name in asked.candidates if name not in given.index]:
        raise KeyError(unknown("Candidate", lacking, "costs", given.index, "Give the cost of every candidate."))
    paid = given.loc[list(asked.candidates)].to_numpy()  # (C,)
    if not (np.isfinite(paid) & (paid > 0)).all():
        bad = listed(np.array(asked.candidates)[~(np.isfinite(paid) & (paid > 0))])
        raise ValueError(unusable("costs", PLACE, f"are not above 0 for {bad}", "Give positive numbers."))
    limit = np.inf if budget is None else float(budget)
    needed = paid[: len(asked.include)].sum()  # those to include are the first candidates
    if needed > limit:
        problem = f"is below the cost {needed:g} of what is to be included"
        raise ValueError(unusable(f"budget={budget}", PLACE, problem, "Raise it or include fewer."))
    return paid, limit
