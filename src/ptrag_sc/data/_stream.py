"""How is a population written that is larger than memory?"""

import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from anndata import AnnData
from anndata.io import sparse_dataset, write_elem

from ptrag_sc._validation import unusable
from ptrag_sc.data._disk_space import check_space

STREAMED = (".h5ad", ".zarr")
X_CHUNK = 2**18  # numbers: 1 MiB
COLUMN_CHUNK = 2**14

# A group or array of h5py or zarr. The two agree on names, rows and attributes, but share no type that says so.
Group = Any
Array = Any


def write_stream(
    path: Path,
    pieces: Iterator[AnnData],
    *,
    n_obs: int,
    uns: Callable[[], Mapping[str, object]],
    n_whole: int | None = None,
) -> None:
    """Write one AnnData that arrives in pieces; one piece is in memory at a time.

    anndata writes the first piece, which decides the layout. Then the arrays are made long enough for all rows, and
    the rows of every further piece are assigned.

    Parameters
    ----------
    path
        File to make, named ``.h5ad`` or ``.zarr``.
    pieces
        Consecutive rows: ``X`` and layers, each dense or CSR in all pieces, ``obs`` with the same columns and
        categories, CSR ``obsm``, the same ``var``.
    n_obs
        Rows of all pieces together.
    uns
        Called when all pieces are written.
    n_whole
        Rows of the whole that these are a part of: chunks and row pointers are those that it needs. None: they are all.

    Raises
    ------
    OSError
        If the disk has too little space for as many rows as large as those of the first piece, or becomes full.
    """
    first = next(pieces)
    check_space(path, math.ceil(_n_bytes(first) * n_obs / max(1, first.n_obs)))
    with _opened(path) as (root, check):
        # A complete file without cells, to which the rest is added.
        write_elem(root, "/", AnnData(var=first.var))
        if "raw" in root:  # which anndata leaves out of the files that it makes itself
            del root["raw"]
        columns = _write_first(root, first, n_obs, n_whole or n_obs)
        start = first.n_obs
        for piece in pieces:
            check()
            _write_rows(root, columns, piece, start)
            start += piece.n_obs
        # Last, because uns may hold what was counted while the pieces were made.
        write_elem(root, "uns", uns())


def _n_bytes(piece: AnnData) -> int:
    """Return about how many bytes a piece takes on the disk, without names and columns."""
    total = 0
    for matrix in (piece.X, *piece.layers.values(), *piece.obsm.values()):
        arrays = (matrix.data, matrix.indices, matrix.indptr) if sp.issparse(matrix) else (matrix,)
        total += sum(array.nbytes for array in arrays)
    return total


def storable(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a data frame with strings that anndata cannot write (those with gaps) as categories.

    This is what ``AnnData.write`` does with every column of strings.
    """
    no_nullable = anndata.settings.allow_write_nullable_strings is False
    changed = {}
    for name, column in frame.items():
        # Columns of objects are writable without gaps, the string types of pandas only if anndata is told to.
        lost = no_nullable
        if column.dtype == object:
            lost = column.isna().any()
        if lost and pd.api.types.infer_dtype(column, skipna=True) == "string":
            changed[name] = column.astype(object).astype("category")
    return frame.assign(**changed)


def check_columns(path: Path, **frames: pd.DataFrame) -> None:
    """Refuse columns that anndata cannot write, before any cell is generated.

    Raises
    ------
    TypeError
        With the name of the first one.
    """
    for place, frame in frames.items():
        for name in frame:
            try:
                # Written to memory and thrown away, because only anndata itself knows what it can write.
                _encoded(frame[[name]], like_zarr=path.suffix == ".zarr")
            except Exception as error:  # anndata, h5py and zarr raise many kinds
                problem = f"cannot be written to {path.name} ({error})"
                raise TypeError(
                    unusable(f"Column {name!r}", f"adata.{place}", problem, "Convert it, or drop it.")
                ) from error


class _Unfailing(io.FileIO):
    """A file that keeps the first error of writing and goes on as if nothing had happened.

    HDF5 cannot close a file whose last parts it failed to write: the interpreter crashes.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write, or remember why not."""
        n_bytes = memoryview(data).nbytes
        rest = memoryview(data).cast("B")
        while self.error is None and len(rest):
            try:
                rest = rest[super().write(rest) :]  # a disk that becomes full takes the first bytes
            except OSError as error:
                self.error = error
        return n_bytes

    def truncate(self, size: int | None = None) -> int:
        """Change the size, or remember why not."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def check(self) -> None:
        """Raise the error, if there was one."""
        if self.error is not None:
            raise self.error


@contextmanager
def _first_error(file: _Unfailing) -> Iterator[None]:
    """Raise what went wrong with the disk, in place of what HDF5 makes of bytes that it wrote and does not find."""
    try:
        yield
    except Exception as error:
        if file.error is not None and error is not file.error:
            raise file.error from error
        raise
    file.check()


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Group, Callable[[], None]]]:
    """Make a file; yield its root, and a function that raises what went wrong with the disk so far."""
    if path.suffix == ".h5ad":
        with _Unfailing(path, "w+b") as file, _first_error(file), h5py.File(file, "w") as root:
            yield root, file.check
        return
    root = zarr.open_group(path, mode="w", zarr_format=anndata.settings.zarr_write_format)
    yield root, lambda: None
    consolidate(root)


def consolidate(root: zarr.Group) -> None:
    """Write the metadata of all parts of a zarr store into its root, as anndata does."""
    with warnings.catch_warnings():
        # anndata writes it too, although version 3 of the format does not define it yet.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(root.store)


def _write_first(root: Group, piece: AnnData, n_obs: int, n_whole: int) -> dict[str, Array]:
    """Write the first piece, make room for all rows, and return the arrays of ``obs``."""
    n_genes = piece.n_vars
    # No chunk is larger than its array, because HDF5 stores whole chunks.
    rows = max(1, min(n_whole, X_CHUNK // max(1, n_genes)))
    of_matrix: dict[str, object] = {"chunks": (rows, max(1, n_genes))}
    of_columns: dict[str, object] = {"chunks": (max(1, min(n_whole, COLUMN_CHUNK)),)}
    if isinstance(root, h5py.Group):  # an HDF5 array cannot grow unless it is told so; a zarr array always can
        of_matrix["maxshape"] = (None, n_genes)
        of_columns["maxshape"] = (None,)
    matrices = {"X": piece.X}
    matrices |= {f"layers/{name}": matrix for name, matrix in piece.layers.items()}
    dense = []
    for name, matrix in matrices.items():
        if sp.issparse(matrix):
            _write_sparse(root, name, matrix, n_whole)
        else:
            write_elem(root, name, matrix, dataset_kwargs=of_matrix)
            dense.append(root[name])
    write_elem(root, "obs", piece.obs, dataset_kwargs=of_columns)
    for name, matrix in piece.obsm.items():
        _write_sparse(root, f"obsm/{name}", matrix, n_whole)
    columns = arrays_of(root["obs"])
    for array in (*dense, *columns.values()):
        array.resize((n_obs, *array.shape[1:]))
    return columns


def _write_sparse(root: Group, name: str, matrix: sp.csr_matrix, n_obs: int) -> None:
    # The last row pointer is the number of entries, which may exceed 32 bits although the first piece's does not.
    indptr_dtype = "int32" if n_obs * matrix.shape[1] < 2**31 else "int64"
    n_entries = max(n_obs, math.ceil(matrix.nnz * n_obs / max(1, matrix.shape[0])))  # in all rows, about
    chunk = max(1, min(X_CHUNK, n_entries))
    write_elem(root, name, matrix, dataset_kwargs={"chunks": (chunk,), "indptr_dtype": indptr_dtype})


def _write_rows(root: Group, columns: dict[str, Array], piece: AnnData, start: int) -> None:
    rows = slice(start, start + piece.n_obs)
    sparse = {f"obsm/{name}": matrix for name, matrix in piece.obsm.items()}
    for name, matrix in [("X", piece.X), *((f"layers/{name}", matrix) for name, matrix in piece.layers.items())]:
        if sp.issparse(matrix):
            sparse[name] = matrix
        else:
            root[name][rows] = matrix
    # anndata splits a column into several arrays (codes, values, masks), other ones in each format.
    for name, values in _encoded(piece.obs, like_zarr=isinstance(root, zarr.Group)).items():
        columns[name][rows] = values
    for name, matrix in sparse.items():
        sparse_dataset(root[name]).append(matrix)


def _encoded(obs: pd.DataFrame, *, like_zarr: bool) -> dict[str, np.ndarray]:
    """Return the arrays that anndata makes of a data frame."""
    root: Group
    if like_zarr:
        root = zarr.open_group({}, mode="w", zarr_format=2)
        write_elem(root, "obs", obs)
        return {name: array[...] for name, array in arrays_of(root["obs"]).items()}
    with h5py.File(io.BytesIO(), "w") as root:
        write_elem(root, "obs", obs)
        return {name: array[...] for name, array in arrays_of(root["obs"]).items()}


def arrays_of(group: Group, prefix: str = "") -> dict[str, Array]:
    """Return the arrays of a written data frame that have one entry per row."""
    names = list(group)
    if group.attrs["encoding-type"] == "categorical":
        names = ["codes"]  # the categories are as many as there are labels, not rows
    found: dict[str, Array] = {}
    for name in names:
        item = group[name]
        if isinstance(item, h5py.Group | zarr.Group):
            found |= arrays_of(item, f"{prefix}{name}/")
        else:
            found[prefix + name] = item
    return found
