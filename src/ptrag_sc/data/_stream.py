"""How is a population written that is larger than memory?"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
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

STREAMED = (".h5ad", ".zarr")
X_CHUNK = 2**18  # numbers: 1 MiB
COLUMN_CHUNK = 2**14

# A group or array of h5py or zarr. The two agree on names, rows and attributes, but share no type that says so.
Group = Any
Array = Any


def write_stream(path: Path, pieces: Iterator[AnnData], *, n_obs: int, uns: Callable[[], Mapping[str, object]]) -> None:
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
    """
    first = next(pieces)
    _write_genes(path, first.var)
    with _opened(path) as root:
        columns = _write_first(root, first, n_obs)
        start = first.n_obs
        for piece in pieces:
            _write_rows(root, columns, piece, start)
            start += piece.n_obs
        # Last, because uns may hold what was counted while the pieces were made.
        write_elem(root, "uns", uns())


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


def _write_genes(path: Path, var: pd.DataFrame) -> None:
    """Make a complete file without cells."""
    empty = AnnData(var=var)
    if path.suffix == ".h5ad":
        empty.write_h5ad(path, convert_strings_to_categoricals=False)
    else:
        empty.write_zarr(path, convert_strings_to_categoricals=False)


@contextmanager
def _opened(path: Path) -> Iterator[Group]:
    if path.suffix == ".h5ad":
        with h5py.File(path, "r+") as root:
            yield root
        return
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    yield root
    with warnings.catch_warnings():
        # anndata writes it too, although version 3 of the format does not define it yet.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(root.store)


def _write_first(root: Group, piece: AnnData, n_obs: int) -> dict[str, Array]:
    """Write the first piece, make room for all rows, and return the arrays of ``obs``."""
    n_genes = piece.n_vars
    rows = max(1, X_CHUNK // max(1, n_genes))
    of_matrix: dict[str, object] = {"chunks": (rows, max(1, n_genes))}
    of_columns: dict[str, object] = {"chunks": (COLUMN_CHUNK,)}
    if isinstance(root, h5py.Group):  # an HDF5 array cannot grow unless it is told so; a zarr array always can
        of_matrix["maxshape"] = (None, n_genes)
        of_columns["maxshape"] = (None,)
    matrices = {"X": piece.X}
    matrices |= {f"layers/{name}": matrix for name, matrix in piece.layers.items()}
    dense = []
    for name, matrix in matrices.items():
        if sp.issparse(matrix):
            _write_sparse(root, name, matrix, n_obs)
        else:
            write_elem(root, name, matrix, dataset_kwargs=of_matrix)
            dense.append(root[name])
    write_elem(root, "obs", piece.obs, dataset_kwargs=of_columns)
    for name, matrix in piece.obsm.items():
        _write_sparse(root, f"obsm/{name}", matrix, n_obs)
    columns = _arrays(root["obs"])
    for array in (*dense, *columns.values()):
        array.resize((n_obs, *array.shape[1:]))
    return columns


def _write_sparse(root: Group, name: str, matrix: sp.csr_matrix, n_obs: int) -> None:
    # The last row pointer is the number of entries, which may exceed 32 bits although the first piece's does not.
    indptr_dtype = "int32" if n_obs * matrix.shape[1] < 2**31 else "int64"
    write_elem(root, name, matrix, dataset_kwargs={"chunks": (X_CHUNK,), "indptr_dtype": indptr_dtype})


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
        return {name: array[...] for name, array in _arrays(root["obs"]).items()}
    with h5py.File(BytesIO(), "w") as root:
        write_elem(root, "obs", obs)
        return {name: array[...] for name, array in _arrays(root["obs"]).items()}


def _arrays(group: Group, prefix: str = "") -> dict[str, Array]:
    """Return the arrays of a written data frame that have one entry per row."""
    names = list(group)
    if group.attrs["encoding-type"] == "categorical":
        names = ["codes"]  # the categories are as many as there are labels, not rows
    found: dict[str, Array] = {}
    for name in names:
        item = group[name]
        if isinstance(item, h5py.Group | zarr.Group):
            found |= _arrays(item, f"{prefix}{name}/")
        else:
            found[prefix + name] = item
    return found
