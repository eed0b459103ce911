"""How do predictions leave: as rows of arrays, a table of what was retrieved, and AnnData?"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from ptrag_sc._constants import PREDICTED_SUFFIX, SOURCE_SUFFIX
from ptrag_sc._validation import absent, unusable
from ptrag_sc.data._fields import Screen, ScreenKeys
from ptrag_sc.data._set_sampler import CellSets, PlannedSet, deal_sets, name_hash

RETRIEVAL_COLUMNS = ["perturbation", "cell_type", "candidate", "rank", "similarity", "weight", "selected"]


class Request(NamedTuple):
    """What is to be predicted: N output rows in sets."""

    labels: tuple[str, ...]  # the perturbations; query q > 0 is labels[q - 1], query 0 the control
    planned: list[PlannedSet]
    source: np.ndarray  # (N,) row of the control cell that each output is generated from; -1: not predicted
    query: np.ndarray  # (N,)


class PredictedSets(NamedTuple):
    """What a predictor returns for one mini-batch of sets; K = 0 where nothing is retrieved."""

    cells: np.ndarray  # (B, S, G)
    indices: np.ndarray  # (B, K) rows of the predictor's candidates
    present: np.ndarray  # (B, K)
    similarity: np.ndarray  # (B, K)
    weights: np.ndarray  # (B, S, K)
    gates: np.ndarray  # (B, S, K)


class Prediction(NamedTuple):
    """Predicted rows and what they rest on."""

    cells: np.ndarray  # (N, G) float32, NaN where not predicted
    weights: sp.csr_matrix  # (N, C)
    retrieval: pd.DataFrame  # RETRIEVAL_COLUMNS, one row per condition and retrieved candidate


def require_controls(screen: Screen, cell_type: int) -> np.ndarray:
    """Return the control rows of a cell type.

    Raises
    ------
    ValueError
        If it has none in this object.
    """
    rows = screen.index.controls(cell_type)
    if not len(rows):
        name = str(screen.index.cell_types[cell_type])
        remedy = "Predictions start from control cells: add controls of this cell type, or leave it out."
        raise ValueError(unusable(f"Cell type {name!r}", "this object", "has no control cells", remedy))
    return rows


def request_cells(
    screen: Screen, assigned: np.ndarray, labels: Iterable[str], *, set_size: int, seed: int | None
) -> Request:
    """Plan one output row per cell of the screen.

    Parameters
    ----------
    screen
        The screen.
    assigned
        Query of every cell (n,): 0 control, q > 0 ``labels[q - 1]``, -1 not predicted.
    labels
        Perturbations.
    set_size
        Largest set.
    seed
        Draw of the control cells; None is a fixed draw.

    Notes
    -----
    A control cell that is predicted is its own source.
    """
    index, planned = screen.index, []
    source = np.full(index.n_obs, -1, dtype=np.int64)
    order = name_hash(screen.names, seed or 0)
    active = np.flatnonzero(assigned >= 0)
    pairs, of_pair = np.unique(np.stack([assigned[active], index.cell_type[active]]), axis=1, return_inverse=True)
    of_pair = of_pair.ravel()
    for i, (q, t) in enumerate(pairs.T):
        cells, controls = active[of_pair == i], require_controls(screen, t)
        itself, others = cells[index.is_control[cells]], cells[~index.is_control[cells]]
        sets = [(rows, rows) for rows, _ in _dealt(index.batch, order, itself, itself, set_size)]
        sets += _dealt(index.batch, order, others, controls, set_size)
        for ordinal, (rows, sources) in enumerate(sets):
            source[rows] = sources
            planned.append(PlannedSet(int(q), int(t), ordinal, rows, sources))
    return Request(tuple(labels), planned, source, np.asarray(assigned))


def _dealt(batch, order, cells, controls, set_size):
    if not len(cells):
        return []
    sets = deal_sets(batch[cells], order[cells], batch[controls], order[controls], set_size)
    return [(cells[c], controls[s]) for c, s in sets]


def request_population(
    screen: Screen,
    labels: Iterable[str],
    cell_types: list[int],
    *,
    n_cells: int | None,
    set_size: int,
    seed: int | None,
) -> Request:
    """Plan one output row per (perturbation, cell type, control cell); ``n_cells`` takes that many of the controls.

    Raises
    ------
    ValueError
        If a cell type has no controls, or fewer than ``n_cells``.
    """
    labels, planned, source, query = tuple(labels), [], [], []
    order = name_hash(screen.names, seed or 0)
    n_rows = 0
    for q in range(1, len(labels) + 1):
        for t in cell_types:
            controls = _first_controls(screen, t, order, n_cells)
            sets = _dealt(screen.index.batch, order, controls, controls, set_size)
            for ordinal, (rows, _) in enumerate(sets):
                output = n_rows + np.searchsorted(controls, rows)
                planned.append(PlannedSet(q, t, ordinal, output, rows))
            source.append(controls)
            query.append(np.full(len(controls), q))
            n_rows += len(controls)
    return Request(labels, planned, np.concatenate(source), np.concatenate(query))


def _first_controls(screen: Screen, cell_type: int, order: np.ndarray, n_cells: int | None) -> np.ndarray:
    controls = require_controls(screen, cell_type)
    if n_cells is None:
        return controls
    if not 0 < n_cells <= len(controls):
        what = f"n_cells={n_cells}"
        problem = (
            f"cannot be drawn from the {len(controls)} control cells of {str(screen.index.cell_types[cell_type])!r}"
        )
        remedy = "Leave n_cells=None to use every control cell once, or ask for fewer."
        raise ValueError(unusable(what, "the request", problem, remedy))
    return np.sort(controls[np.argsort(order[controls], kind="stable")[:n_cells]])


def as_name_list(names: object, argument: str) -> list[str]:
    """Return one name or several as a list of str.

    Raises
    ------
    TypeError
        If it is neither a string nor a collection.
    """
    if isinstance(names, str):
        return [names]
    if not isinstance(names, Iterable):
        problem = f"is {names!r}"
        raise TypeError(unusable(argument, "the request", problem, "Pass a name or a list of names."))
    return [str(name) for name in names]


def find_cell_types(screen: Screen, names: Iterable[str] | None) -> list[int]:
    """Return the codes of named cell types; None means all that have controls.

    Raises
    ------
    KeyError
        If a name does not occur.
    """
    index = screen.index
    if names is None:
        return [t for t in range(len(index.cell_types)) if len(index.controls(t))]
    known = {name: t for t, name in enumerate(index.cell_types)}
    names = list(dict.fromkeys(as_name_list(names, "cell_types")))
    if not names:
        raise ValueError(unusable("cell_types", "the request", "is empty", "Leave cell_types=None to take all."))
    for name in names:
        if name not in known:
            raise KeyError(absent("Cell type", name, "the cell types of this object", known, "Correct cell_types=..."))
    return [known[name] for name in names]


def assemble(
    batches: Iterable[tuple[CellSets, PredictedSets]],
    request: Request,
    *,
    n_genes: int,
    candidates: np.ndarray,
    cell_types: np.ndarray,
) -> Prediction:
    """Put generated sets back in row order and sum up what was retrieved for each condition."""
    cells = np.full((len(request.source), n_genes), np.nan, dtype=np.float32)
    entries, tally = [], {}
    for sets, predicted in batches:
        cells[sets.target[sets.target_mask]] = predicted.cells[sets.target_mask]
        for b, condition in enumerate(zip(sets.query.tolist(), sets.cell_type.tolist(), strict=True)):
            real, shown = sets.target_mask[b], predicted.present[b]
            weights, gates = (x[b][real][:, shown] for x in (predicted.weights, predicted.gates))
            columns, similarity = predicted.indices[b][shown], predicted.similarity[b][shown]
            s, k = np.nonzero(weights)
            entries.append((sets.target[b][real][s], columns[k], weights[s, k]))
            sums = np.array([real.sum() * np.ones(len(columns)), weights.sum(0), gates.sum(0)])
            previous = tally.get(condition, (columns, similarity, 0.0))[2]
            tally[condition] = (columns, similarity, previous + sums)
    rows, columns, values = (np.concatenate(e) for e in zip(*entries, strict=True)) if entries else ([], [], [])
    weights = sp.csr_matrix((values, (rows, columns)), shape=(len(cells), len(candidates)), dtype=np.float32)
    return Prediction(cells, weights, _retrieval_table(tally, request.labels, candidates, cell_types))


def _retrieval_table(
    tally: dict, labels: tuple[str, ...], candidates: np.ndarray, cell_types: np.ndarray
) -> pd.DataFrame:
    tables = [
        pd.DataFrame(
            {
                "perturbation": labels[q - 1],
                "cell_type": cell_types[t],
                "candidate": candidates[columns],
                "rank": np.arange(len(columns)),
                "similarity": similarity,
                "weight": weight / n,
                "selected": gate / n,
            }
        )
        for (q, t), (columns, similarity, (n, weight, gate)) in sorted(tally.items(), key=lambda item: item[0])
        if q > 0 and len(columns)
    ]
    if not tables:
        return pd.DataFrame(
            {c: pd.Series(dtype=object if c in RETRIEVAL_COLUMNS[:3] else float) for c in RETRIEVAL_COLUMNS}
        )
    return pd.concat(tables, ignore_index=True)


def source_obs(adata, keys: ScreenKeys, rows: np.ndarray) -> pd.DataFrame:
    """Return the user's own obs columns of some cells, the registered ones included.

    The split is left out, as it speaks of the source cell's condition, and so is what earlier predictions wrote.
    """
    obs = keys.expression_holder(adata).obs.iloc[rows].copy()
    for argument in ("perturbation_key", "cell_type_key", "batch_key"):
        column = getattr(keys, argument)
        if column is not None:
            obs[column] = keys.container(adata, argument).obs[column].iloc[rows].to_numpy()
    written = {name + suffix for name in adata.uns for suffix in (SOURCE_SUFFIX, PREDICTED_SUFFIX)}
    dropped = [c for c in obs if str(c).startswith("_scvi_") or c in written or c == keys.split_key]
    return obs.drop(columns=dropped)


def population_anndata(
    adata, keys: ScreenKeys, request: Request, prediction: Prediction, *, genes: np.ndarray, key: str
) -> AnnData:
    """Return predicted cells as an AnnData with the genes of the model and the obs columns of the source cells."""
    holder = keys.expression_holder(adata)
    obs = source_obs(adata, keys, request.source)
    sources = holder.obs_names[request.source].astype(str)
    labels = np.array(request.labels, dtype=object)[request.query - 1]
    obs[keys.perturbation_key] = pd.Categorical(labels)
    obs[key + SOURCE_SUFFIX] = sources.to_numpy()
    obs.index = pd.Index([f"{s}-{p}" for s, p in zip(sources, labels, strict=True)])
    return AnnData(prediction.cells, obs=obs, var=holder.var.loc[genes].copy())
