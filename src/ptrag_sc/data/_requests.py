"""What is to be predicted: which control cell becomes which output row, in which set?"""

import math
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple, TypeAlias

import numpy as np

from ptrag_sc._validation import absent, unusable
from ptrag_sc.data._deal import deal_sets
from ptrag_sc.data._fields import Screen
from ptrag_sc.data._labels import label_text
from ptrag_sc.data._set_sampler import PlannedSet, name_hash
from ptrag_sc.data._sizes import ALL

ControlSet: TypeAlias = tuple[int, int, np.ndarray]  # cell type, ordinal, control rows (s,)
DealtSet: TypeAlias = tuple[np.ndarray, np.ndarray]  # cells to predict (s,) and their control cells (s,), as rows


class Request(NamedTuple):
    """What is to be predicted: N output rows in sets."""

    planned: list[PlannedSet]
    source: np.ndarray  # (N,) row of the control cell that each output row is generated from; -1: not predicted
    query: np.ndarray  # (N,) q > 0 is the q-th perturbation of the call, 0 the control
    named: np.ndarray  # (N,) row of the cell whose name, beside the perturbation's, fixes what is drawn for the row

    @property
    def stays(self) -> np.ndarray:
        """Whether each output row is a control cell predicted from itself (N,): nothing happens to it."""
        return (self.query == 0) & (self.source == self.named)


class Population(NamedTuple):
    """What is to be predicted: sets of control cells under every perturbation.

    Output rows are ordered by perturbation and then by set, so that consecutive sets are consecutive rows.
    """

    sets: list[list[ControlSet]]  # of each perturbation; those with the same cells share one list

    @property
    def n_labels(self) -> int:
        """Number of perturbations."""
        return len(self.sets)

    @property
    def distinct(self) -> list[list[ControlSet]]:
        """The lists of sets that differ."""
        return list({id(sets): sets for sets in self.sets}.values())

    @property
    def rows(self) -> np.ndarray:
        """Control rows (n,) that any perturbation is given, ascending."""
        return np.unique(np.concatenate([rows for sets in self.distinct for _, _, rows in sets]))

    @property
    def cell_types(self) -> list[int]:
        """Codes of the cell types."""
        return sorted({cell_type for sets in self.distinct for cell_type, _, _ in sets})

    @property
    def largest(self) -> int:
        """Number of cells in the largest set."""
        return max(len(rows) for sets in self.distinct for _, _, rows in sets)

    @property
    def n_obs(self) -> int:
        """Number of output rows."""
        n = {id(sets): sum(len(rows) for _, _, rows in sets) for sets in self.distinct}
        return sum(n[id(sets)] for sets in self.sets)

    @property
    def first(self) -> np.ndarray:
        """Number of the first set of each perturbation, and of all sets (Q + 1,)."""
        return np.append(0, np.cumsum([len(sets) for sets in self.sets]))

    def asks(self, label: int, cell_type: int) -> bool:
        """Whether a perturbation (counted from 0) is to be predicted in a cell type (code)."""
        return any(t == cell_type for t, _, _ in self.sets[label])

    def whole(self) -> Request:
        """Return one request for all rows."""
        return self._piece(range(self.first[-1]))

    def n_pieces(self, n_sets: int) -> int:
        """Return how many requests :meth:`pieces` yields."""
        return math.ceil(self.first[-1] / n_sets)

    def pieces(self, n_sets: int, numbers: range | None = None) -> Iterator[Request]:
        """Yield requests of up to ``n_sets`` sets each; together they are the population, row by row.

        With ``numbers``, only those of them that have these numbers.
        """
        every = range(self.first[-1])
        for i in range(self.n_pieces(n_sets)) if numbers is None else numbers:
            yield self._piece(every[i * n_sets : (i + 1) * n_sets])

    def _piece(self, numbers: range) -> Request:
        """Return the request for the sets of these numbers, counted over perturbations and then over sets."""
        planned = []
        n_rows = 0
        first = self.first
        labels = np.searchsorted(first, numbers, side="right") - 1  # (m,)
        for number, label in zip(numbers, labels.tolist(), strict=True):
            cell_type, ordinal, rows = self.sets[label][number - first[label]]
            output = np.arange(n_rows, n_rows + len(rows))  # (s,)
            planned.append(PlannedSet(label + 1, cell_type, ordinal, output, rows))  # query 0 is the control
            n_rows += len(rows)
        source = np.concatenate([one.source for one in planned])  # (N,)
        query = np.repeat([one.query for one in planned], [len(one.source) for one in planned])  # (N,)
        return Request(planned, source, query, named=source)


def require_controls(screen: Screen, cell_type: int) -> np.ndarray:
    """Return the rows of the control cells of a cell type that predictions start from.

    Raises
    ------
    ValueError
        If it has none in this object.
    """
    rows = screen.index.sources(cell_type)
    if not len(rows):
        name = str(screen.index.cell_types[cell_type])
        if screen.index.start is not None:
            remedy = "Predictions start from control cells at the start: add some of this cell type, or leave it out."
            problem = "has no control cells at the start"
            raise ValueError(unusable(f"Cell type {name!r}", "this object", problem, remedy))
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
        Largest number of cells in a set.
    seed
        Draw of the control cells; None is a fixed draw.

    Notes
    -----
    The source of a predicted control cell is the cell itself, unless it is one at the end of a differentiation.
    """
    index = screen.index
    order = name_hash(screen.names, seed or 0)  # (n,)
    source = np.full(index.n_obs, -1, dtype=np.int64)  # (n,)
    active = np.flatnonzero(assigned >= 0)  # (m,) cells that are predicted
    asked = np.stack([assigned[active], index.cell_type[active]])  # (2, m) query and cell type
    pairs, of_pair = np.unique(asked, axis=1, return_inverse=True)
    of_pair = of_pair.ravel()  # (m,): one version of numpy returns (1, m)
    planned = []
    # Sets are dealt per condition, so that other conditions in the call do not change them.
    for i, (q, t) in enumerate(pairs.T):
        cells = active[of_pair == i]
        controls = require_controls(screen, t)
        itself = cells[index.is_source[cells]]
        others = cells[~index.is_source[cells]]
        sets = [(rows, rows) for rows, _ in _dealt(index.batch, order, itself, itself, set_size)]
        sets += _dealt(index.batch, order, others, controls, set_size)
        for ordinal, (rows, sources) in enumerate(sets):
            source[rows] = sources
            planned.append(PlannedSet(int(q), int(t), ordinal, rows, sources))
    return Request(planned, source, np.asarray(assigned), named=np.arange(index.n_obs))


def _dealt(
    batch: np.ndarray, order: np.ndarray, cells: np.ndarray, controls: np.ndarray, set_size: int
) -> list[DealtSet]:
    """Deal cells (rows) and control cells (rows) into sets, given batch and hash of every cell (n,)."""
    if not len(cells):
        return []
    sets = deal_sets(batch[cells], order[cells], batch[controls], order[controls], set_size)
    return [(cells[c], controls[s]) for c, s in sets]


def request_population(
    screen: Screen,
    n_labels: int,
    cell_types: list[int],
    *,
    n_cells: int | np.ndarray | None,
    set_size: int,
    seed: int | None,
) -> Population:
    """Plan one output row per perturbation, cell type and control cell.

    Parameters
    ----------
    screen
        The screen.
    n_labels
        Number of perturbations.
    cell_types
        Codes of the cell types.
    n_cells
        Number of control cells taken of each cell type; None takes all. An array (Q, V) has the number of each
        perturbation in each of these cell types, as :func:`ptrag_sc.data._sizes.read_sizes` returns it.
    set_size
        Largest number of cells in a set.
    seed
        Draw of the control cells; None is a fixed draw.

    Raises
    ------
    ValueError
        If a cell type has no controls, or fewer than ``n_cells``.
    """
    # The hash of a name, not its row, orders the cells: permuting the rows of the AnnData changes no prediction.
    order = name_hash(screen.names, seed or 0)  # (n,)
    if not isinstance(n_cells, np.ndarray):
        n_cells = np.full((n_labels, len(cell_types)), ALL if n_cells is None else n_cells)
    dealt: dict[tuple[int, int], list[ControlSet]] = {}  # for each cell type and number of cells
    for t, numbers in zip(cell_types, n_cells.T, strict=True):
        for n in np.unique(numbers[numbers != 0]).tolist():
            controls = _first_controls(screen, t, order, None if n == ALL else n)
            sets = _dealt(screen.index.batch, order, controls, controls, set_size)
            dealt[t, n] = [(t, ordinal, rows) for ordinal, (rows, _) in enumerate(sets)]
    patterns: dict[tuple[int, ...], list[ControlSet]] = {}  # perturbations with the same numbers share their sets
    for pattern in map(tuple, np.unique(n_cells, axis=0).tolist()):
        chosen = [dealt[t, n] for t, n in zip(cell_types, pattern, strict=True) if n != 0]
        patterns[pattern] = list(chain.from_iterable(chosen))
    return Population([patterns[tuple(numbers)] for numbers in n_cells.tolist()])


def _first_controls(screen: Screen, cell_type: int, order: np.ndarray, n_cells: int | None) -> np.ndarray:
    """Return the rows, ascending, of the ``n_cells`` controls of lowest hash (``order``), or of all controls."""
    controls = require_controls(screen, cell_type)
    if n_cells is None:
        return controls
    if not 0 < n_cells <= len(controls):
        name = str(screen.index.cell_types[cell_type])
        problem = f"cannot be drawn from the {len(controls)} control cells of {name!r}"
        remedy = "Leave n_cells=None to use every control cell once, or ask for fewer."
        raise ValueError(unusable(f"n_cells={n_cells}", "the request", problem, remedy))
    first = np.argsort(order[controls], kind="stable")[:n_cells]  # (n_cells,)
    return np.sort(controls[first])


def as_name_list(names: object, argument: str) -> list[str]:
    """Return one name or several as a list of str.

    Raises
    ------
    TypeError
        If it is neither a string nor a collection.
    """
    # A string is a collection of letters too; a whole number can be a label.
    if isinstance(names, str | bytes | int | np.integer) and names is not True and names is not False:
        return [label_text(names)]
    if not isinstance(names, Iterable):
        problem = f"is {names!r}"
        raise TypeError(unusable(argument, "the request", problem, "Pass a name or a list of names."))
    return [label_text(name) for name in names]


def find_cell_types(screen: Screen, names: Iterable[str] | None) -> list[int]:
    """Return the codes of named cell types; None takes all that have control cells.

    Raises
    ------
    KeyError
        If a name does not occur.
    ValueError
        If no name is given.
    """
    index = screen.index
    if names is None:
        return [t for t in range(len(index.cell_types)) if len(index.sources(t))]
    known = {name: t for t, name in enumerate(index.cell_types)}
    wanted = list(dict.fromkeys(as_name_list(names, "cell_types")))
    if not wanted:
        raise ValueError(unusable("cell_types", "the request", "is empty", "Leave cell_types=None to take all."))
    for name in wanted:
        if name not in known:
            raise KeyError(absent("Cell type", name, "the cell types of this object", known, "Correct cell_types=..."))
    return [known[name] for name in wanted]
