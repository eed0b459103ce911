"""Which perturbations would move these cells along a wanted change, and how far can that be trusted?"""

import logging
from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from ptrag_sc._validation import absent, unusable
from ptrag_sc.data import Predictor, Screen
from ptrag_sc.data._intervals import KNOWN, UNSEEN
from ptrag_sc.data._requests import find_cell_types
from ptrag_sc.data._targets import target_columns
from ptrag_sc.tl._candidates import EVIDENCE, Candidates, known_candidates
from ptrag_sc.tl._model import check_predictor
from ptrag_sc.tl._recovery import N_FOLDS, Recovery, find_recovery
from ptrag_sc.tl._scores import SCORES, Sums, cosine
from ptrag_sc.tl._signatures import Signatures, read_signatures

logger = logging.getLogger(__name__)

KIND_OF = {"other cell type": KNOWN, "embedding": UNSEEN}
FEWEST, FEW = 10, 40  # measured perturbations: below the first a ranking is refused, below the second it warns
ALIKE = 1e-4  # cosines that differ by less are no ranking
SCALE = 3.0  # times the norm of measured shifts at which a signature counts as on another scale


class _Scored(NamedTuple):
    """What the predicted shifts of Q candidates have to do with S signatures."""

    score: np.ndarray  # (Q, S)
    strength: np.ndarray  # (Q,)
    spread: np.ndarray  # (S,) largest less smallest cosine before own targets are left out


def rank_perturbations(
    adata: AnnData,
    model: Predictor,
    signature: object,
    *,
    cell_type: str,
    candidates: str | Iterable[str] | None = None,
    reverse: bool = False,
    score: Literal["cosine", "distance"] = "cosine",
    gene_embedding: object = None,
) -> pd.DataFrame:
    """Rank perturbations by how well their predicted effect agrees with a wanted one.

    The mean shift of every candidate is predicted, without generating cells, and compared with the signature. Genes
    that a candidate targets do not count in its score: knocking a gene down lowers it, whatever else happens.

    Parameters
    ----------
    adata
        Object with control cells of the cell type.
    model
        Trained :class:`ptrag_sc.PTRAG` or fitted baseline; :class:`ptrag_sc.baselines.KernelRidge` ranks best
        (:doc:`/rank_genes`).
    signature
        The wanted change, one of:

        - a Series of numbers, with genes as index (or a dict of genes and numbers);
        - a table of differential expression, as :func:`scanpy.get.rank_genes_groups_df` (its ``scores`` are used) or
          pertpy (``log_fc``) return it; several groups or contrasts are several signatures;
        - ``{"up": [...], "down": [...]}``, genes that shall rise and fall; all others shall stay;
        - a pair of groups of cells, the wanted and the present one, each an AnnData or a boolean mask of the cells of
          ``adata``: the difference of their means;
        - several of these: a dict of names and signatures, or a DataFrame with genes as index and one signature per
          column.
    cell_type
        Cell type in which the change is wanted.
    candidates
        Genes or combinations. None: all genes with a vector in the gene embeddings of model, ``adata`` and
        ``gene_embedding``, and all that was measured.
    reverse
        Rank perturbations that work against the signature first.
    score
        ``"cosine"`` of predicted shift and signature, or ``"distance"``: minus their squared distance, for signatures
        on the scale of the data only.
    gene_embedding
        Table (any source of :func:`ptrag_sc.pp.gene_embedding`) of further genes.

    Returns
    -------
    DataFrame
        One row per candidate (and signature), best first. ``signature`` (only if several were given), ``perturbation``,
        ``rank`` (from 1), ``score`` (of the change asked for, so also with ``reverse`` the largest is best),
        ``expected_accuracy`` with ``lower``, ``upper`` (correlation of predicted and true deviation from the mean shift
        of measured perturbations, and where it lies for 90 % of those that were left out; NaN for candidates that were
        measured, that are farther from all that was measured than any that was left out, or if nothing could be left
        out), ``similarity`` (cosine of gene embeddings) with the ``nearest`` other perturbation measured in the cell
        type, ``strength`` (norm of the predicted deviation from the mean shift, in units of expression), ``evidence``
        (``"measured"`` in this cell type; in an ``"other cell type"``; ``"embedding"``: known by its vector alone;
        ``"none"``), and ``far`` (known by its vector alone and less similar to all that was measured than what the
        recovery was checked on).

        ``attrs["recovery"]`` says how well this works in this cell type. The measured perturbations are left out in
        five groups, predicted by a fit to the others without trained weights, and looked for by their observed shift
        among those of their group. It is a list of dicts, one for candidates unseen everywhere
        (``evidence="embedding"``) and one for those measured in another cell type: ``n`` perturbations, ``auroc`` (how
        often the true one is before another), ``top_1``, ``top_5``, ``top_10`` (how often it is in the first percents;
        NaN where groups are too small for that) and ``correlation``. ``attrs["recovery_from"]`` says in words what was
        done. It takes most of the time of a first call and is kept.

    Raises
    ------
    KeyError
        If the cell type does not occur, or a candidate has no embedding anywhere.
    TypeError
        If the form of the signature is unknown.
    ValueError
        If the signature has no change of any measured gene, the score is unknown or needs another signature, there are
        no control cells, or fewer than ten perturbations were measured.

    Notes
    -----
    A model answers for a candidate that was measured as it answers otherwise: :class:`ptrag_sc.baselines.KernelRidge`
    from what was observed too, :class:`ptrag_sc.PTRAG` and neighbours from other perturbations only. Among all genes of
    a genome, nearness to what was measured alone separates well, so an AUROC over them would mean little: none is
    reported.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=1200, n_genes=60, n_perturbations=12, n_cell_types=1)
    >>> ptrag_sc.PTRAG.setup_anndata(
    ...     adata, perturbation_key="perturbation", control="non-targeting", cell_type_key="cell_type"
    ... )
    >>> model = ptrag_sc.baselines.KernelRidge(adata).fit()
    >>> wanted = {"up": list(adata.var_names[:5]), "down": list(adata.var_names[5:10])}
    >>> table = ptrag_sc.tl.rank_perturbations(adata, model, wanted, cell_type="type_0")
    >>> table["rank"].tolist() == list(range(1, 13))
    True
    """
    check_predictor(model)
    if score not in SCORES:
        raise ValueError(absent("score=", score, "the known values", SCORES, "Pass one of them."))
    screen = model.read(adata)
    (t,) = find_cell_types(screen, [cell_type])
    if not len(screen.index.controls(t)):
        problem = "has no control cells"
        raise ValueError(unusable(f"Cell type {cell_type!r}", "adata", problem, "Add them, or name another cell type."))
    wanted = read_signatures(signature, model, screen, adata)
    _check_measured(model, cell_type)
    names = model.nameable(adata, gene_embedding) if candidates is None else candidates
    asked = known_candidates(model, model.canonical_labels(names), adata, cell_type, gene_embedding)
    kinds = [KIND_OF[name] for name in KIND_OF if (asked.evidence == EVIDENCE.index(name)).any()]
    recovery = find_recovery(model, cell_type, kinds or [UNSEEN])
    if score == "distance":
        _check_scale(wanted, recovery)
    if reverse:
        wanted = wanted._replace(values=-wanted.values)
    found = _score(model, asked, wanted, screen, t, score, recovery)
    for name in [name for name, spread in zip(wanted.names, found.spread, strict=True) if spread < ALIKE]:
        logger.warning(
            f"{name!r}: this is no ranking. The predictions of all {len(asked.labels)} candidates agree alike with it "
            "(to the 4th decimal), because the model knows nothing that sets them apart"
        )
    table = _table(asked, wanted, found, recovery)
    _report(table, model, cell_type, score, recovery)
    return table


def _check_measured(model: Predictor, cell_type: str) -> None:
    """Refuse a ranking that rests on too little."""
    known = model.known_conditions_
    here = known["cell_type"] == cell_type
    n = int(here.sum()) if here.any() else known["perturbation"].nunique()
    if n < FEWEST:
        problem = "are too few to rank others by"
        raise ValueError(unusable(f"{n} perturbations", repr(cell_type), problem, f"Measure {FEWEST} or more."))
    if not here.any():
        logger.warning(
            f"no perturbation was measured in {cell_type!r}: the ranking rests on other cell types, and how well that "
            "works cannot be told from these data"
        )


def _check_scale(wanted: Signatures, recovery: dict[str, Recovery]) -> None:
    """Refuse signatures without a scale, and warn of those on another one."""
    lists = [name for name, scaled in zip(wanted.names, wanted.scaled, strict=True) if not scaled]
    if lists:
        problem = "holds lists of genes, whose distance from a shift means nothing"
        raise ValueError(unusable(f"Signature {lists[0]!r}", "the request", problem, 'Pass score="cosine".'))
    if not recovery:
        return
    size = next(iter(recovery.values())).size
    for name, norm in zip(wanted.names, np.linalg.norm(wanted.values, axis=1), strict=True):
        if not size / SCALE < norm < size * SCALE:
            logger.warning(
                f"signature {name!r} has norm {norm:.3g}, measured shifts have {size:.3g}: on another scale "
                'the distance ranks by size. Use score="cosine"'
            )


def _score(
    model: Predictor,
    asked: Candidates,
    wanted: Signatures,
    screen: Screen,
    cell_type: int,
    score: str,
    recovery: dict[str, Recovery],
) -> _Scored:
    """Predict the shifts of all candidates, a block at a time, and compare each with every signature."""
    counted = None if wanted.counted.all() else wanted.counted
    own = target_columns(asked.labels, model.genes_, model.keys_.sep)
    scores, strengths = [], []
    low, high = np.full(len(wanted.names), np.inf), np.full(len(wanted.names), -np.inf)
    done = 0
    for shift in model.shift_blocks(asked.labels, asked.vectors, screen, cell_type):
        targets = own[done : done + len(shift)]
        done += len(shift)
        sums = Sums.of(shift, wanted.values, counted)
        agreement = cosine(sums)  # (B, S)
        low, high = np.minimum(low, agreement.min(0)), np.maximum(high, agreement.max(0))
        scores.append(SCORES[score](sums.without(targets, shift, wanted.values, counted)))
        strength = np.full(len(shift), np.nan)
        if recovery:
            deviation = shift - next(iter(recovery.values())).mean.astype(shift.dtype)
            for b, columns in enumerate(targets):
                deviation[b, columns] = 0
            strength = np.linalg.norm(deviation, axis=1)
        strengths.append(strength)
    return _Scored(np.concatenate(scores), np.concatenate(strengths), high - low)


def _table(asked: Candidates, wanted: Signatures, found: _Scored, recovery: dict[str, Recovery]) -> pd.DataFrame:
    """Return the ranking of every signature, one below the other."""
    columns = {name: np.full(len(asked.labels), np.nan) for name in ("expected_accuracy", "lower", "upper")}
    far = np.zeros(len(asked.labels), dtype=bool)
    for name, kind in KIND_OF.items():
        fitted = recovery[kind].accuracy if kind in recovery else None
        rows = np.flatnonzero(asked.evidence == EVIDENCE.index(name))
        if fitted is None:
            continue
        of_kind = fitted.expected(asked.similarity[rows], found.strength[rows])
        for column, values in zip(columns.values(), of_kind, strict=True):
            column[rows] = values
        if kind == UNSEEN:
            far[rows] = fitted.is_far(asked.similarity[rows])
    candidates = pd.DataFrame(
        {
            "perturbation": list(asked.labels),
            **columns,
            "similarity": asked.similarity,
            "nearest": pd.Categorical(asked.nearest),
            "strength": found.strength,
            "evidence": pd.Categorical.from_codes(asked.evidence, EVIDENCE),
            "far": far,
        }
    )
    parts = []
    for s, name in enumerate(wanted.names):
        order = np.argsort(-found.score[:, s], kind="stable")
        part = candidates.iloc[order]
        part.insert(1, "rank", np.arange(1, len(order) + 1))
        part.insert(2, "score", found.score[order, s])
        if len(wanted.names) > 1:
            part.insert(0, "signature", name)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _report(table: pd.DataFrame, model: Predictor, cell_type: str, score: str, recovery: dict[str, Recovery]) -> None:
    """Write into a table, and say, how well the ranking can be trusted."""
    names = {kind: name for name, kind in KIND_OF.items()}
    found = [{"evidence": names[kind], **row} for kind, one in recovery.items() for row in one.rows]
    table.attrs["recovery"] = [row for row in found if row.pop("score") == score]
    if not recovery:
        table.attrs["recovery_from"] = (
            f"nothing: the model has no training data or no memory, or too little was measured in {cell_type!r}"
        )
        logger.warning(f"how well this ranking works is not known ({table.attrs['recovery_from']})")
        return
    table.attrs["recovery_from"] = (
        f"the measured perturbations of {cell_type!r}, left out in {N_FOLDS} groups and predicted by "
        f"{type(model).__name__} fitted to the others, without trained weights; signatures: their observed shifts, "
        f"candidates: those of the group, score: {score}"
    )
    said = [
        f"of {row['n']} measured perturbations left out in turn, the true one is before another with AUROC "
        f"{row['auroc']:.2f}, and predicted and observed deviations correlate by {row['correlation']:.2f} "
        f"({row['evidence']})"
        for row in table.attrs["recovery"]
    ]
    n = int((model.known_conditions_["cell_type"] == cell_type).sum())
    if n < FEW:
        text = "; ".join(said) or "too few to leave any out"
        logger.warning(f"only {n} perturbations were measured in {cell_type!r}, so expect little: {text}")
        return
    logger.info("; ".join(said))
