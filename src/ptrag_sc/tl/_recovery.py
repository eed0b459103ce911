"""Would the perturbation behind an observed effect have been found, had it not been measured?

The measured perturbations of a cell type are left out in five groups, each predicted by a fit to the others, without
trained weights. Their observed shifts are the signatures. The candidates for a signature are the perturbations of the
same group only: predictions of the others were made from the very shift that is the signature.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ptrag_sc.data import Predictor, masked_shifts, measured_targets
from ptrag_sc.data._intervals import residual_folds
from ptrag_sc.data._refits import Refits
from ptrag_sc.tl._accuracy import Accuracy
from ptrag_sc.tl._scores import SCORES, Sums

N_FOLDS = 5
TOP = (1, 5, 10)  # percent of the candidates
MIN_SCORED = 10  # perturbations of a kind that anything is learned from
TINY = 1e-12


class Recovery(NamedTuple):
    """What was learned from the measured perturbations of one cell type about candidates of one kind."""

    mean: np.ndarray  # (G,) mean shift, own targets apart
    size: float  # median norm of a shift
    rows: list[dict[str, Any]]  # one for each score; empty if too few could be left out
    accuracy: Accuracy | None  # what to expect of one candidate


class _Scored(NamedTuple):
    """n left-out perturbations of one kind."""

    rows: np.ndarray  # (n,) of the conditions
    shift: np.ndarray  # (n, G) predicted
    mean: np.ndarray  # (n, G) of the perturbations that remained
    similarity: np.ndarray  # (n,) with the nearest of them
    group: np.ndarray  # (n,) those with the same number were left out together


def find_recovery(model: Predictor, cell_type: str, kinds: Iterable[str]) -> dict[str, Recovery]:
    """Return the recovery of candidates of some kinds, from the model's store if they were asked for before.

    Returns
    -------
    dict
        Empty if the model cannot be fitted anew, or too little was measured in the cell type.
    """
    store = {} if model.recoveries_ is None else model.recoveries_
    model.recoveries_ = store
    wanted = [kind for kind in kinds if (cell_type, kind) not in store]
    if wanted:
        refits = model.refits()
        for kind in wanted:
            store[cell_type, kind] = None if refits is None else _recover(model, refits, cell_type, kind)
    return {kind: store[cell_type, kind] for kind in kinds if store[cell_type, kind] is not None}


def _recover(model: Predictor, refits: Refits, cell_type: str, kind: str) -> Recovery | None:
    types = refits.conditions["cell_type"].to_numpy(dtype=str)
    here = types == cell_type  # (C,)
    if here.sum() < MIN_SCORED:
        return None
    own = measured_targets(refits.conditions["perturbation"].to_numpy(), model.genes_, model.keys_.sep)
    masked = masked_shifts(refits.shifts, own, types)  # (C, G)
    mean, size = masked[here].mean(0), float(np.median(np.linalg.norm(masked[here], axis=1)))
    vectors = model.resolve(tuple(refits.conditions["perturbation"]), model.training_data())
    scored = _predicted(model, refits, masked, here, vectors, cell_type, kind)
    if scored is None:
        return Recovery(mean, size, [], None)
    truth = masked[scored.rows]
    correlation, strength = _agreement(scored, truth, own[scored.rows])
    average = float(correlation[np.isfinite(correlation)].mean()) if np.isfinite(correlation).any() else np.nan
    targets = [np.flatnonzero(own[c]) for c in scored.rows]
    rows = [{**row, "correlation": average} for row in _found(scored, truth, targets)]
    return Recovery(mean, size, rows, Accuracy.fit(scored.similarity, strength, correlation))


def _predicted(
    model: Predictor,
    refits: Refits,
    masked: np.ndarray,
    here: np.ndarray,
    vectors: np.ndarray | None,
    cell_type: str,
    kind: str,
) -> _Scored | None:
    """Return the predictions of the perturbations of a cell type, each from a fit without it; None of too few."""
    labels = refits.conditions["perturbation"].to_numpy(dtype=str)
    t = refits.screen.index.cell_types.tolist().index(cell_type)
    parts = []
    for group, (left_out, scored) in enumerate(_folds(refits, here, model.keys_.sep, kind)):
        kept = np.setdiff1d(np.arange(len(labels)), left_out)
        remaining = kept[here[kept]]
        if not len(remaining):
            continue
        other = refits.fit(kept)
        own_vectors = None if vectors is None else vectors[scored]
        shift = np.concatenate(list(other.shift_blocks(tuple(labels[scored]), own_vectors, refits.screen, t)))
        similarity = np.full(len(scored), np.nan)
        if vectors is not None:
            similarity = (vectors[scored] @ vectors[remaining].T).max(1)
        mean = np.broadcast_to(masked[remaining].mean(0), shift.shape)
        parts.append(_Scored(scored, shift, mean, similarity, np.full(len(scored), group)))
    if sum(len(part.rows) for part in parts) < MIN_SCORED:
        return None
    return _Scored(*(np.concatenate(field) for field in zip(*parts, strict=True)))


def _folds(refits: Refits, here: np.ndarray, sep: str | None, kind: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the rows that are left out together, and those of them that are scored in the cell type."""
    for fold in residual_folds(refits.conditions, sep, N_FOLDS):
        scored = fold.scored[here[fold.scored]]
        if fold.kind == kind and len(scored):
            yield fold.left_out, scored


def _agreement(scored: _Scored, truth: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the correlation of predicted and observed deviations from the mean shift, and the norm of the predicted.

    Own targets do not count.
    """
    correlation, strength = np.full(len(truth), np.nan), np.zeros(len(truth))
    for i, counted in enumerate(~own):  # (G,)
        deviation = (scored.shift[i] - scored.mean[i])[counted]
        observed = (truth[i] - scored.mean[i])[counted]
        strength[i] = np.linalg.norm(deviation)
        deviation -= deviation.mean()
        observed -= observed.mean()
        size = np.linalg.norm(deviation) * np.linalg.norm(observed)
        if size > TINY:
            correlation[i] = deviation @ observed / size
    return correlation, strength


def _found(scored: _Scored, truth: np.ndarray, targets: list[np.ndarray]) -> Iterator[dict[str, Any]]:
    """Yield, for each score, how high the true perturbation of each signature ranks in its group."""
    n = len(truth)
    above = {name: np.full(n, np.nan) for name in SCORES}  # candidates before the true one, ties count half
    size = np.zeros(n)  # of the group
    for rows in pd.Series(scored.group).groupby(scored.group).indices.values():
        shift, signatures = scored.shift[rows], truth[rows]
        sums = Sums.of(shift, signatures).without([targets[i] for i in rows], shift, signatures)
        size[rows] = len(rows)
        for name, score in SCORES.items():
            values = score(sums)  # candidates x signatures
            true = values.diagonal()
            above[name][rows] = (values > true).sum(0) + ((values == true).sum(0) - 1) / 2
    several = size > 1
    for name, before in above.items():
        share = before[several] / (size[several] - 1)
        yield {"score": name, "n": n, "auroc": float(1 - share.mean()), **_top(before, size)}


def _top(above: np.ndarray, size: np.ndarray) -> dict[str, float]:
    """Return how often the true one is in the first percents of its group; NaN where that is less than one candidate.

    Of 29 candidates 5 % are 1.45: the first counts in full and the second by .45, so that chance gives 5 %.
    """
    found = {}
    for percent in TOP:
        places = percent / 100 * size
        share = np.clip(places - above, 0, 1).mean()
        found[f"top_{percent}"] = float(share) if places.min() >= 1 else np.nan
    return found
