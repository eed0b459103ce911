"""How is a population written that is larger than memory?"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from anndata.io import sparse_dataset, write_elem

from ptrag_sc._validation import unusable

STREAMED = (".h5ad", ".zarr")
X_CHUNK = 2**18  # numbers: 1 MiB
COLUMN_CHUNK = 2**14

GROUP = h5py.Group | zarr.Group
ARRAY = h5py.Dataset | zarr.Array


def write_stream(path: Path, pieces: Iterator[AnnData], *, n_obs: int, uns: Callable[[], dict]) -> None:
    """Write one AnnData that arrives in pieces; one piece is in memory at a time.

    anndata writes the first piece, and so decides the layout; the arrays are then made long enough, and the rows of
    every piece assigned.

    Parameters
    ----------
    path
        File to make, named ``.h5ad`` or ``.zarr``.
    pieces
        Consecutive rows: dense ``X``, ``obs`` with the same columns and categories in every piece, CSR ``obsm``, the
        same ``var``.
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
        write_elem(root, "uns", uns())


def storable(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a data frame with strings that anndata cannot write (those with gaps) as categories.

    This is what ``AnnData.write`` does with every column of strings.
    """
    no_nullable = anndata.settings.allow_write_nullable_strings is False
    changed = {}
    for name, column in frame.items():
        lost = column.isna().any() if column.dtype == object else no_nullable
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
                _encoded(frame[[name]], like_zarr=path.suffix == ".zarr")
            except Exception as error:  # anndata, h5py and zarr raise many kinds
                problem = f"cannot be written to {path.name} ({error})"
                raise TypeError(
                    unusable(f"Column {name!r}", f"adata.{place}", problem, "Convert it, or drop it.")
                ) from error


def _write_genes(path: Path, var: pd.DataFrame) -> None:
    """Make a complete file without cells."""
    empty = AnnData(var=var)
    write = empty.write_h5ad if path.suffix == ".h5ad" else empty.write_zarr
    write(path, convert_strings_to_categoricals=False)


@contextmanager
def _opened(path: Path) -> Iterator[GROUP]:
    if path.suffix == ".h5ad":
        with h5py.File(path, "r+") as root:
            yield root
        return
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    yield root
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")  # anndata writes it too
        zarr.consolidate_metadata(root.store)


def _write_first(root: GROUP, piece: AnnData, n_obs: int) -> dict[str, ARRAY]:
    """Write the first piece, make room for all rows, and return the arrays of ``obs``."""
    n_genes = piece.n_vars
    growing = [{"maxshape": (None, n_genes)}, {"maxshape": (None,)}] if isinstance(root, h5py.Group) else [{}, {}]
    rows = max(1, X_CHUNK // max(1, n_genes))
    write_elem(root, "X", piece.X, dataset_kwargs={"chunks": (rows, max(1, n_genes)), **growing[0]})
    write_elem(root, "obs", piece.obs, dataset_kwargs={"chunks": (COLUMN_CHUNK,), **growing[1]})
    for name, matrix in piece.obsm.items():
        # The last row pointer may outgrow 32 bits.
        options = {"chunks": (X_CHUNK,), "indptr_dtype": "int32" if n_obs * matrix.shape[1] < 2**31 else "int64"}
        write_elem(root["obsm"], name, matrix, dataset_kwargs=options)
    columns = _arrays(root["obs"])
    for array in (root["X"], *columns.values()):
        array.resize((n_obs, *array.shape[1:]))
    return columns


def _write_rows(root: GROUP, columns: dict[str, ARRAY], piece: AnnData, start: int) -> None:
    rows = slice(start, start + piece.n_obs)
    root["X"][rows] = piece.X
    for name, values in _encoded(piece.obs, like_zarr=isinstance(root, zarr.Group)).items():
        columns[name][rows] = values
    for name, matrix in piece.obsm.items():
        sparse_dataset(root["obsm"][name]).append(matrix)


def _encoded(obs: pd.DataFrame, *, like_zarr: bool) -> dict[str, np.ndarray]:
    """Return the arrays that anndata makes of a data frame."""
    if like_zarr:
        root = zarr.open_group({}, mode="w", zarr_format=2)
        write_elem(root, "obs", obs)
        return {name: array[...] for name, array in _arrays(root["obs"]).items()}
    with h5py.File(BytesIO(), "w") as root:
        write_elem(root, "obs", obs)
        return {name: array[...] for name, array in _arrays(root["obs"]).items()}


def _arrays(group: GROUP, prefix: str = "") -> dict[str, ARRAY]:
    """Return the arrays of a written data frame that have one entry per row."""
    names = ["codes"] if group.attrs["encoding-type"] == "categorical" else list(group)
    found = {}
    for name in names:
        item = group[name]
        found |= _arrays(item, f"{prefix}{name}/") if isinstance(item, GROUP) else {prefix + name: item}
    return found
