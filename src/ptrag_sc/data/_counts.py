"""How many molecules were counted in each cell, and by which factor does its expression exceed them?

Expression is log1p of counts times a factor of the cell. Both are taken from a registered layer of counts, or recovered
from the expression alone: the smallest step between the values ``expm1(x)`` of a cell is its factor if all values are
whole multiples of it.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from ptrag_sc._validation import unusable
from ptrag_sc.data._fields import Screen
from ptrag_sc.data._reader import CellReader
from ptrag_sc.data._set_sampler import name_hash

MAX_CONTROLS = 2000  # control cells that stand for a cell type
MOLECULES = np.arange(1, 7)  # of the least expressed gene of a cell: which one of them is tried
TOLERANCE = 0.02  # of a whole number; expression is float32, so that values of 10 are known to .00001
LARGEST = 50.0  # of log1p of counts: no cell has e^50 molecules, and expm1 of much more is infinite
REMEDY = "Register the raw counts with setup_anndata(counts_layer=...), or pass counts=False."


class CellCounts(NamedTuple):
    """Counts of n cells."""

    counts: sp.csr_matrix  # (n, G) whole numbers, float32
    factor: np.ndarray  # (n,) expm1(expression) / counts; NaN for a cell without any

    @property
    def size(self) -> np.ndarray:
        """Relative library size (n,), see :func:`relative_size`."""
        return relative_size(self.factor)


def relative_size(factor: np.ndarray) -> np.ndarray:
    """Return the relative library sizes (n,) of cells; that of an average cell where no molecule was counted."""
    size = 1 / factor
    if np.isnan(size).all():
        return np.ones_like(size)
    return np.where(np.isnan(size), np.nanmean(size), size)


class CountsUnknown(ValueError):
    """Expression that is not log1p of counts times a factor of the cell."""


def read_counts(screen: Screen, rows: np.ndarray) -> CellCounts:
    """Return the counts of some cells.

    Raises
    ------
    CountsUnknown
        If they are neither registered nor recoverable, or do not belong to the expression.
    """
    parts = [_read(screen, part, cells) for part, cells in screen.reader.chunks(rows)]
    if not parts:
        return CellCounts(sp.csr_matrix((0, screen.reader.n_genes), dtype=np.float32), np.zeros(0))
    counts, factors = zip(*parts, strict=True)
    return CellCounts(sp.vstack(counts, format="csr"), np.concatenate(factors))


def _read(screen: Screen, rows: np.ndarray, cells: np.ndarray) -> CellCounts:
    """Return the counts of a few cells, given their expression (n, G)."""
    logged = sp.csr_matrix(cells)
    if logged.nnz and logged.data.min() < 0:
        raise CountsUnknown(_refusal(screen, rows[_rows_where(logged, logged.data < 0)], "holds negative values"))
    if logged.nnz and logged.data.max() > LARGEST:
        problem = f"holds values above {LARGEST:g}"
        raise CountsUnknown(_refusal(screen, rows[_rows_where(logged, logged.data > LARGEST)], problem))
    if screen.counts is None:
        return _recovered(screen, rows, logged)
    return _registered(screen, rows, logged, screen.counts)


def known_controls(screen: Screen, cell_type: int, n_most: int | None = None) -> np.ndarray:
    """Return up to ``n_most`` cells of a type that predictions start from (rows), chosen by name; None: 2,000."""
    n_most = MAX_CONTROLS if n_most is None else n_most
    controls = screen.index.sources(cell_type)
    order = name_hash(screen.names[controls], 0)
    return np.sort(controls[np.argsort(order, kind="stable")[:n_most]])


def find_counts(screen: Screen) -> str | None:
    """Return why the counts of the control cells are not known; None if those of all are."""
    try:
        read_counts(screen, np.flatnonzero(screen.index.is_source))
    except CountsUnknown as error:
        return str(error)
    return None


def _registered(screen: Screen, rows: np.ndarray, logged: sp.csr_matrix, layer: CellReader) -> CellCounts:
    """Return counts from the registered layer."""
    counts = sp.csr_matrix(layer.rows(rows))
    broken = _rows_where(counts, (counts.data < 0) | (counts.data != np.rint(counts.data)))
    if len(broken):
        problem = "belongs to a layer of counts with negative or broken numbers"
        raise CountsUnknown(_refusal(screen, rows[broken], problem))
    counts.eliminate_zeros()
    total = np.asarray(counts.sum(1)).ravel()
    units = np.expm1(logged.data.astype(float))
    factor = _row_sums(units, logged.indptr) / np.where(total > 0, total, np.nan)  # (n,)
    expected = counts.multiply(np.nan_to_num(factor)[:, None]).tocsr()
    found = logged.astype(float)
    found.data = units
    excess = (abs(found - expected) - TOLERANCE * found).tocsr()
    allowed = np.repeat(TOLERANCE * np.nan_to_num(factor), np.diff(excess.indptr))  # of one molecule of the cell
    # A cell without any expression has a factor of 0, which fits all counts.
    broken = np.union1d(_rows_where(excess, excess.data > allowed), np.flatnonzero(factor == 0))
    if len(broken):
        problem = "is not log1p of these counts times one factor for each cell"
        raise CountsUnknown(_refusal(screen, rows[broken], problem))
    return CellCounts(counts, factor)


def _recovered(screen: Screen, rows: np.ndarray, logged: sp.csr_matrix) -> CellCounts:
    """Return counts that are whole multiples of each cell's smallest step."""
    counts = logged.astype(float)
    counts.eliminate_zeros()
    units = np.expm1(counts.data)
    of_row = np.repeat(np.arange(len(rows)), np.diff(counts.indptr))
    least = np.full(len(rows), np.inf)
    np.minimum.at(least, of_row, units)
    factor = np.full(len(rows), np.nan)
    for n in MOLECULES:  # the least expressed gene has one molecule in most cells, more in cells with few genes
        multiple = units * (n / least)[of_row]
        is_broken = np.abs(multiple - np.rint(multiple)) > TOLERANCE + 1e-6 * multiple
        broken = np.bincount(of_row, weights=is_broken, minlength=len(rows)) > 0
        fits = np.isnan(factor) & ~broken & np.isfinite(least)
        factor[fits] = least[fits] / n
    if np.isnan(factor[np.isfinite(least)]).any():
        problem = "is not log1p of whole numbers times one factor for each cell"
        raise CountsUnknown(_refusal(screen, rows[np.isnan(factor) & np.isfinite(least)], problem))
    counts.data = np.rint(units / factor[of_row])
    return CellCounts(counts.astype(np.float32), factor)


def _refusal(screen: Screen, rows: np.ndarray, problem: str) -> str:
    return unusable("The expression", f"cell {str(screen.names[rows[0]])!r}", problem, REMEDY)


def _rows_where(matrix: sp.csr_matrix, chosen: np.ndarray) -> np.ndarray:
    """Return the rows of a CSR matrix that hold some of its stored values."""
    return np.unique(np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))[chosen])


def _row_sums(values: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """Return the sums of the rows of a CSR matrix, given its values."""
    of_row = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    return np.bincount(of_row, weights=values, minlength=len(indptr) - 1)
