"""What is to be predicted: which control cell becomes which output row, in which set?"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ptrag_sc._validation import absent, unusable
from ptrag_sc.data._fields import Screen
from ptrag_sc.data._set_sampler import PlannedSet, deal_sets, name_hash


class Request(NamedTuple):
    """What is to be predicted: N output rows in sets."""

    planned: list[PlannedSet]
    source: np.ndarray  # (N,) row of the control cell that each output is generated from; -1: not predicted
    query: np.ndarray  # (N,) q > 0 is the q-th perturbation of the call, 0 the control


class Population(NamedTuple):
    """What is to be predicted: the same sets of control cells under every perturbation.

    Output rows stand perturbation by perturbation and set by set, so that consecutive sets are consecutive rows.
    """

    n_labels: int
    sets: list[tuple[int, int, np.ndarray]]  # cell type, ordinal, control rows (s,)

    @property
    def rows(self) -> np.ndarray:
        """Control rows under one perturbation."""
        return np.concatenate([rows for _, _, rows in self.sets])

    @property
    def n_obs(self) -> int:
        """Number of output rows."""
        return self.n_labels * len(self.rows)

    def whole(self) -> Request:
        """Return one request for all rows."""
        return self._piece(range(self.n_labels * len(self.sets)))

    def n_pieces(self, n_sets: int) -> int:
        """Return how many requests :meth:`pieces` yields."""
        return math.ceil(self.n_labels * len(self.sets) / n_sets)

    def pieces(self, n_sets: int) -> Iterator[Request]:
        """Yield requests of up to ``n_sets`` sets each; together they are the population, row by row."""
        run = range(self.n_labels * len(self.sets))
        for i in range(self.n_pieces(n_sets)):
            yield self._piece(run[i * n_sets : (i + 1) * n_sets])

    def _piece(self, run: range) -> Request:
        planned, n_rows = [], 0
        for i in run:
            q, s = divmod(i, len(self.sets))
            cell_type, ordinal, rows = self.sets[s]
            planned.append(PlannedSet(q + 1, cell_type, ordinal, np.arange(n_rows, n_rows + len(rows)), rows))
            n_rows += len(rows)
        query = np.repeat([each.query for each in planned], [len(each.source) for each in planned])
        return Request(planned, np.concatenate([each.source for each in planned]), query)


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


def request_cells(screen: Screen, assigned: np.ndarray, *, set_size: int, seed: int | None) -> Request:
    """Plan one output row per cell of the screen.

    Parameters
    ----------
    screen
        The screen.
    assigned
        Query of every cell (n,): 0 control, q > 0 the q-th perturbation, -1 not predicted.
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
    return Request(planned, source, np.asarray(assigned))


def _dealt(batch, order, cells, controls, set_size):
    if not len(cells):
        return []
    sets = deal_sets(batch[cells], order[cells], batch[controls], order[controls], set_size)
    return [(cells[c], controls[s]) for c, s in sets]


def request_population(
    screen: Screen,
    n_labels: int,
    cell_types: list[int],
    *,
    n_cells: int | None,
    set_size: int,
    seed: int | None,
) -> Population:
    """Plan one output row per (perturbation, cell type, control cell); ``n_cells`` takes that many of the controls.

    Raises
    ------
    ValueError
        If a cell type has no controls, or fewer than ``n_cells``.
    """
    order, sets = name_hash(screen.names, seed or 0), []
    for t in cell_types:
        controls = _first_controls(screen, t, order, n_cells)
        dealt = _dealt(screen.index.batch, order, controls, controls, set_size)
        sets += [(t, ordinal, rows) for ordinal, (rows, _) in enumerate(dealt)]
    return Population(n_labels, sets)


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
