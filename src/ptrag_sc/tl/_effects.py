"""Which genes would a perturbation change, by how much, and how sure is that?"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

from ptrag_sc._docs import documented
from ptrag_sc._validation import unusable
from ptrag_sc.data import Predictor
from ptrag_sc.data._assembly import ExpectedShifts
from ptrag_sc.data._gene_names import MissingGenes
from ptrag_sc.data._intervals import KNOWN, UNSEEN, Controls
from ptrag_sc.data._requests import find_cell_types
from ptrag_sc.data._run import Run
from ptrag_sc.tl._alike import warn_if_alike
from ptrag_sc.tl._model import check_predictor

# Columns of numbers in the table of effects, in their order.
COLUMNS = {
    "control": np.float32,
    "shift": np.float32,
    "lower": np.float32,
    "upper": np.float32,
    "call": bool,
    "own": bool,
    "agreement": np.float32,
    "neighbour": np.int32,
    "neighbour_shift": np.float32,
}
KEPT = ("control", "shift", "lower", "upper", "call", "own", "agreement")  # beside a prediction
LEVEL = 0.9
N_SHOWN = 5  # neighbours that are kept beside a prediction
MAX_VALUES = 2 * 10**7  # conditions x genes x neighbours that are kept beside a prediction


class Effects(NamedTuple):
    """Predicted effects of B perturbations in one cell type, (B, G) each."""

    shift: np.ndarray
    half_width: np.ndarray
    call: np.ndarray
    own: np.ndarray
    agreement: np.ndarray
    neighbour: np.ndarray  # row of the candidates, -1 where there is none
    neighbour_shift: np.ndarray
    found: ExpectedShifts  # what they were made from


def expected_effects(
    model: Predictor, run: Run, labels: tuple[str, ...], cell_type: int, controls: Controls, *, level: float
) -> Iterator[Effects]:
    """Yield the effects of the perturbations of a run in a cell type, a few at a time."""
    screen = run.screen
    name = str(screen.index.cell_types[cell_type])
    known = model.known_conditions_
    elsewhere = set(known.loc[known["cell_type"] != name, "perturbation"])
    widths = {kind: _half_widths(model, name, kind, controls, level) for kind in (KNOWN, UNSEEN)}
    q = 0
    for found in model.expected_shifts(labels, screen, cell_type, state=run.state):
        shift = found.shift.astype(np.float32)
        own = np.zeros(shift.shape, dtype=bool)
        half_width = np.empty_like(shift)
        to_call = np.empty_like(shift)
        for b in range(len(shift)):
            q += 1
            kind = KNOWN if labels[q - 1] in elsewhere else UNSEEN
            half_width[b], to_call[b] = widths[kind]
            columns, change = run.own_effects(q, cell_type)
            own[b, columns] = True
            shift[b, columns] += change.astype(np.float32)
            errors = None if model.effect_errors_ is None else model.effect_errors_.find(name, kind)
            if errors is not None and len(columns):
                at = controls.mean[columns], controls.variance[columns]
                half_width[b, columns] = errors.own_half_width(level, *at)
                further = controls.squared_error(errors)[columns]
                to_call[b, columns] = errors.own_half_width(level, *at, further=further)
        call = np.abs(shift) > to_call  # False where the interval is NaN
        yield Effects(shift, half_width, call, own, *_evidence(found, shift), found)


def _half_widths(
    model: Predictor, cell_type: str, kind: str, controls: Controls, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return half the width of the intervals (G,), and of those with the error of the controls, NaN if unknown."""
    errors = None if model.effect_errors_ is None else model.effect_errors_.find(cell_type, kind)
    if errors is None:
        unknown = np.full(len(model.genes_), np.nan)
        return unknown, unknown
    further = controls.squared_error(errors)
    # Of a gene that no cell of the cell type shows, nothing is known.
    return errors.half_width(level), np.where(further > 0, errors.half_width(level, further), np.inf)


def _evidence(found: ExpectedShifts, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return agreement, the strongest neighbour and its shift (B, G), given the predicted shifts."""
    agreement = np.full(shift.shape, np.nan, dtype=np.float32)
    neighbour = np.full(shift.shape, -1, dtype=np.int32)
    neighbour_shift = np.full(shift.shape, np.nan, dtype=np.float32)
    for b, (rows, weights, responses) in enumerate(zip(found.rows, found.weights, found.responses, strict=True)):
        used = np.flatnonzero(weights > 0)  # (j,)
        if not len(used):
            continue
        weight = weights[used] / weights[used].sum()
        signed = responses[used] * np.sign(shift[b])  # (j, G) positive where the entry has the sign of the prediction
        agreement[b] = weight @ (signed > 0)
        strongest = (weight[:, None] * signed).argmax(0)  # (G,)
        neighbour[b] = rows[used][strongest]
        neighbour_shift[b] = responses[used[strongest], np.arange(shift.shape[1])]
    return agreement, neighbour, neighbour_shift


def effects_of(
    model: Predictor,
    run: Run,
    cell_types: list[int],
    *,
    level: float = LEVEL,
    asked: Callable[[int, int], bool] = lambda label, cell_type: True,
) -> dict[str, Any] | None:
    """Return what is kept beside a prediction: the effects of all perturbations of a run in some cell types (codes).

    With ``asked``, a function of perturbation (from 0) and cell type, only those for which it is true.

    Returns
    -------
    dict or None
        ``conditions`` (``perturbation``, ``cell_type``), ``genes``, ``level``, and arrays (conditions, genes):
        ``control``, ``shift``, ``lower``, ``upper``, ``call``, ``own``, ``agreement``. Also ``neighbours`` (conditions,
        5), the names of those with the largest weights ("" where there are fewer), and ``neighbour_shifts``
        (conditions, 5, genes). None if there is no condition and, with a log line, if these would be large.
    """
    n_values = len(cell_types) * len(run.labels) * len(model.genes_) * N_SHOWN
    if n_values > MAX_VALUES:
        sc.logging.info("effects of so many genes are not kept: ptrag_sc.tl.predict_effects returns them as a table")
        return None
    if not cell_types:  # nothing but control cells
        return None
    model.learn_effect_errors()
    values: dict[str, list[np.ndarray]] = {name: [] for name in KEPT}
    nearest: list[tuple[np.ndarray, np.ndarray]] = []
    for t in cell_types:
        controls = Controls.of(run.screen, t, run.drift)
        for part in expected_effects(model, run, run.labels, t, controls, level=level):
            values["control"].append(np.broadcast_to(controls.mean, part.shift.shape))
            values["lower"].append(part.shift - part.half_width)
            values["upper"].append(part.shift + part.half_width)
            for name in set(KEPT) & set(Effects._fields):
                values[name].append(getattr(part, name))
            nearest.append(_heaviest(part.found, model.candidates_))
    warn_if_alike(model, np.concatenate(values["shift"]), np.concatenate(values["own"]), len(cell_types))
    kept = np.array([asked(q, t) for t in cell_types for q in range(len(run.labels))])  # (conditions,)
    neighbours, shifts = (np.concatenate(found)[kept] for found in zip(*nearest, strict=True))
    names = [str(run.screen.index.cell_types[t]) for t in cell_types]
    every = [(label, name) for name in names for label in run.labels]
    conditions = [condition for condition, is_kept in zip(every, kept, strict=True) if is_kept]
    return {
        "conditions": pd.DataFrame(conditions, columns=["perturbation", "cell_type"]),
        "genes": model.genes_.astype(object),
        "level": level,
        "neighbours": neighbours,
        "neighbour_shifts": shifts,
        **{name: np.concatenate(found)[kept].astype(COLUMNS[name]) for name, found in values.items()},
    }


def _heaviest(found: ExpectedShifts, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return names (B, 5) and shifts (B, 5, G) of the places with the largest weights."""
    n_queries, n_genes = found.shift.shape
    names = np.full((n_queries, N_SHOWN), "", dtype=object)
    shifts = np.full((n_queries, N_SHOWN, n_genes), np.nan, dtype=np.float32)
    for b, weights in enumerate(found.weights):
        top = np.argsort(-weights, kind="stable")[:N_SHOWN]
        top = top[weights[top] > 0]
        names[b, : len(top)] = candidates[found.rows[b, top]]
        shifts[b, : len(top)] = found.responses[b, top]
    return names, shifts


def check_level(level: float) -> None:
    """Refuse a level that is no share."""
    if not 0 < level < 1:
        raise ValueError(unusable(f"level={level}", "the request", "is not between 0 and 1", "Pass for example 0.9."))


@documented
def predict_effects(
    adata: AnnData,
    model: Predictor,
    perturbations: str | Iterable[str],
    *,
    cell_types: str | Iterable[str] | None = None,
    gene_embedding: object = None,
    level: float = LEVEL,
    missing_genes: MissingGenes = "error",
) -> pd.DataFrame:
    """Predict which genes perturbations change, with intervals, without generating cells.

    A row is one gene. Sort by the size of ``shift`` and read the interval: it is where the observed shift of this gene
    is expected in ``level`` of all perturbations. Virtual cells are not to be tested against control cells, because
    their number is chosen by you and any difference becomes significant.

    Parameters
    ----------
    adata
        Object with control cells; perturbed cells in it are ignored.
    model
        Trained :class:`ptrag_sc.PTRAG` or fitted baseline.
    perturbations
        Genes, or combinations such as ``"A+B"``; they need not have been measured.
    cell_types
        None takes all that have control cells in ``adata``.
    gene_embedding
        Table (any source of :func:`ptrag_sc.pp.gene_embedding`) for genes that neither the model nor ``adata`` knows.
    level
        Share of perturbations whose observed shift lies in the interval.
    missing_genes
        As in :func:`perturb`.

    Returns
    -------
    DataFrame
        One row per perturbation, cell type and gene. ``control`` (mean expression of the control cells), ``shift``,
        ``lower``, ``upper`` (all on the scale of the registered expression), ``call`` (the interval, widened by the
        error of the controls, leaves out 0), ``own`` (the gene is a target of the perturbation), ``agreement`` (share
        of the weight of what was retrieved whose shift has the same sign), ``neighbour`` (the perturbation that
        contributes most; the perturbation itself: what it did in other cell types) and ``neighbour_shift`` (its own).
        Intervals are NaN for a cell type in which nothing was measured (of targets also with a single control cell),
        and infinite with too few targets or perturbations; the last three are NaN if nothing is retrieved.

    Raises
    ------
    KeyError
        If a cell type does not occur, or a gene has no embedding anywhere.
    ValueError
        If ``level`` is no share, or a cell type has no control cells.

    Notes
    -----
    The mean is that of up to 16 control cells per cell type, chosen by name, whose gates and generated change are
    averaged; a generated population of all control cells differs from it a little (see :doc:`/method`). Intervals come
    from training perturbations that are left out in turn (in up to 30 groups) and, for :class:`ptrag_sc.PTRAG`, from
    validation conditions; trained weights have seen both.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=600, n_genes=60, n_perturbations=10, n_cell_types=2)
    >>> ptrag_sc.PTRAG.setup_anndata(
    ...     adata, perturbation_key="perturbation", control="non-targeting", cell_type_key="cell_type"
    ... )
    >>> model = ptrag_sc.baselines.NearestPerturbations(adata, n_neighbors=3).fit()
    >>> gene = str(model.candidates_[0])
    >>> table = ptrag_sc.tl.predict_effects(adata, model, gene, cell_types="type_0")
    >>> table.loc[table["own"], "gene"].tolist() == [gene]
    True
    """
    check_predictor(model)
    check_level(level)
    labels = model.canonical_labels(perturbations)
    screen = model.read(adata, missing_genes=missing_genes)
    types = find_cell_types(screen, cell_types)
    run = model.run(adata, screen, labels, gene_embedding=gene_embedding)
    model.learn_effect_errors()
    shape = len(types), len(labels), len(model.genes_)
    values = {name: np.empty(shape, dtype=dtype) for name, dtype in COLUMNS.items()}
    for v, t in enumerate(types):
        controls = Controls.of(run.screen, t, run.drift)
        values["control"][v] = controls.mean
        done = 0
        for part in expected_effects(model, run, labels, t, controls, level=level):
            rows = slice(done, done + len(part.shift))
            for name in set(COLUMNS) & set(Effects._fields):
                values[name][v, rows] = getattr(part, name)
            values["lower"][v, rows] = part.shift - part.half_width
            values["upper"][v, rows] = part.shift + part.half_width
            done += len(part.shift)
    warn_if_alike(model, values["shift"].reshape(-1, shape[2]), values["own"].reshape(-1, shape[2]), len(types))
    types_, labels_, genes_ = np.ogrid[tuple(map(slice, shape))]
    names = [str(screen.index.cell_types[t]) for t in types]
    codes = {
        "perturbation": (labels_.astype(_smallest(len(labels))), list(labels)),
        "cell_type": (types_.astype(_smallest(len(types))), names),
        "gene": (genes_.astype(_smallest(len(model.genes_))), list(model.genes_.astype(str))),
        "neighbour": (values.pop("neighbour"), list(model.candidates_.astype(str))),
    }
    table: dict[str, object] = {name: column.ravel() for name, column in values.items()}
    for name, (code, categories) in codes.items():
        table[name] = pd.Categorical.from_codes(np.broadcast_to(code, shape).ravel(), categories)
    effects = pd.DataFrame({name: table[name] for name in ("perturbation", "cell_type", "gene", *COLUMNS)}, copy=False)
    effects.attrs = {"level": level, "layer": model.keys_.layer}
    return effects


def _smallest(n: int) -> np.dtype:
    """Return the smallest type of integer for n codes."""
    return np.result_type(np.min_scalar_type(-n), np.int8)
