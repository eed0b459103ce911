"""How is a screen laid out on disk so that the cells of a condition are read at once?"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import zarr
from anndata import AnnData
from anndata.io import read_elem, sparse_dataset, write_elem
from zarr.codecs import BloscCodec

from ptrag_sc._constants import COUNTS_LAYER
from ptrag_sc._validation import unusable
from ptrag_sc.data._files import StrPath, check_target, write_beside
from ptrag_sc.data._labels import read_labels, read_perturbations, read_sep
from ptrag_sc.data._lazy import load_tables
from ptrag_sc.data._mudata import require_anndata
from ptrag_sc.data._on_disk import SparseOnDisk, as_row_matrix
from ptrag_sc.data._progress import shown_if_slow
from ptrag_sc.data._shards import COMPLETE
from ptrag_sc.data._stream import storable
from ptrag_sc.datasets._log_normalised import log_normalised

CHUNK = 2**15  # values that are compressed together
SHARD = 2**23  # values in one file
CODEC = BloscCodec(cname="lz4", clevel=5, shuffle="shuffle")
PIECE_BYTES = 2**27  # of the rows that are in memory at once
VALUE_BYTES = 8  # of a stored value and its column
COMPRESSED = 0.4  # of what values and columns take in memory: less than that no screen needs, about


def write_store(
    adata: AnnData,
    out: StrPath,
    *,
    perturbation_key: str,
    control: object,
    cell_type_key: str,
    sep: str | None = "+",
    counts: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write a screen so that a model is trained from the disk nearly as fast as from memory.

    The result is an AnnData in zarr format 3 that :func:`anndata.read_zarr` reads. Cells are sorted by cell type and
    perturbation, so the cells of a condition are one read; ``X`` and layers are CSR, compressed, and in few files.
    Memory stays bounded whatever ``adata`` is: in memory, backed, made of dask arrays, or read lazily.

    Parameters
    ----------
    adata
        Screen; ``obsp`` and ``raw`` are not written.
    out
        Name that ends in ``.zarr``.
    perturbation_key, cell_type_key
        Columns of ``obs``.
    control
        Label of control cells, or a list of them.
    sep
        Separator of combinations; None: labels are never split.
    counts
        Whether ``X`` holds counts. They become ``layers["counts"]``, and ``X`` log1p of counts per 10,000 of each cell.
    overwrite
        Whether an AnnData store that exists is replaced.

    Returns
    -------
    pathlib.Path
        The path of the store. Open it with :func:`open_store`.

    Raises
    ------
    KeyError
        If a column does not exist.
    TypeError
        If ``out`` is no path, or ``adata`` no AnnData.
    ValueError
        If ``X`` is missing, labels cannot be used, or ``counts=True`` and ``X`` holds no counts.
    FileExistsError
        If the store exists and ``overwrite`` is False, or something else stands there.
    OSError
        If the disk is full.

    Examples
    --------
    >>> import tempfile
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=600, n_genes=60, n_perturbations=10, n_cell_types=2)
    >>> keys = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = ptrag_sc.datasets.write_store(adata, folder + "/screen.zarr", **keys)
    ...     stored = ptrag_sc.datasets.open_store(path)
    ...     ptrag_sc.PTRAG.setup_anndata(stored, **keys)
    ...     model = ptrag_sc.PTRAG(stored)
    >>> stored.obs["cell_type"].is_monotonic_increasing
    True
    """
    require_anndata(adata, "ptrag_sc.datasets.write_store", column=perturbation_key)
    path = check_target(out, suffixes=(".zarr",), overwrite=overwrite)
    load_tables(adata)
    if adata.X is None:
        raise ValueError(unusable("Expression", "adata.X", "is missing", "Put the expression into X."))
    if counts and COUNTS_LAYER in adata.layers:
        problem = "exists, and would be replaced by the counts in X"
        raise ValueError(
            unusable(f"Layer {COUNTS_LAYER!r}", "adata.layers", problem, "Rename it, or pass counts=False.")
        )
    perturbation = read_perturbations(adata.obs, perturbation_key, control=control, sep=read_sep(sep))
    order = np.lexsort((perturbation.astype(str), read_labels(adata.obs, cell_type_key).astype(str)))  # (n,)
    matrices = {"X": as_row_matrix(adata.X)}
    matrices |= {f"layers/{name}": as_row_matrix(layer) for name, layer in adata.layers.items()}
    n_bytes = sum(_row_bytes(matrix) * adata.n_obs for matrix in matrices.values()) * COMPRESSED

    def write(target: Path) -> None:
        with warnings.catch_warnings():
            # anndata and zarr: small tables need no shards, and consolidated metadata is what anndata writes too.
            warnings.filterwarnings("ignore", message="zarr v3 autosharding|Consolidated metadata")
            fill(target)

    def fill(target: Path) -> None:
        root = zarr.open_group(target, mode="w", zarr_format=3)
        aligned = {name: value[order] if _is_array(value) else value.iloc[order] for name, value in adata.obsm.items()}
        tables: Any = {"obs": storable(adata.obs.iloc[order]), "var": storable(adata.var), "uns": dict(adata.uns)}
        rest = AnnData(obsm=aligned, varm=dict(adata.varm), varp=dict(adata.varp), **tables)
        write_elem(root, "/", rest)
        for name in ("raw", "X"):
            if name in root:  # without content
                del root[name]
        for name, matrix in matrices.items():
            _write_matrix(root, name, matrix, order, counts=counts and name == "X", names=adata.obs_names)
        zarr.consolidate_metadata(root.store)

    write_beside(path, write, overwrite=overwrite, n_bytes=int(n_bytes))
    return path


def open_store(path: StrPath) -> AnnData:
    """Open an AnnData in zarr format without reading its expression.

    Parameters
    ----------
    path
        Written by :func:`write_store`, or by :meth:`anndata.AnnData.write_zarr`; then models are trained from it too,
        but slower.

    Returns
    -------
    AnnData
        ``X`` and layers stay on disk; everything else is in memory.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If it holds no AnnData.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.open_store("screen.zarr")  # doctest: +SKIP
    """
    if not Path(path).exists():
        remedy = "Pass the folder that write_store wrote."
        raise FileNotFoundError(unusable("The store", str(path), "does not exist", remedy))
    try:
        root: Any = zarr.open_group(path, mode="r")
        found = root.attrs.get("encoding-type")
    except Exception as error:  # zarr raises many kinds
        problem = f"is no zarr store ({error})"
        raise ValueError(unusable("The folder", str(path), problem, "Pass what write_store wrote.")) from error
    if found != "anndata":
        raise ValueError(unusable("The folder", str(path), "holds no AnnData", "Pass what write_store wrote."))
    tables = {name: read_elem(root[name]) for name in ("obs", "var", "uns", "obsm", "varm") if name in root}
    layers = {name: _on_disk(root["layers"][name]) for name in root.get("layers", {})}
    return AnnData(_on_disk(root["X"]), layers=layers, **tables)


def _on_disk(element: Any) -> Any:
    return element if isinstance(element, zarr.Array) else sparse_dataset(element)


def _is_array(value: Any) -> bool:
    return not hasattr(value, "iloc")


def _row_bytes(matrix: Any) -> float:
    """Return about how many bytes a row takes as CSR."""
    n_obs, n_vars = matrix.shape
    n_values = n_obs * n_vars * 1.0
    if sp.issparse(matrix):
        n_values = matrix.nnz
    elif isinstance(matrix, SparseOnDisk):
        n_values = float(matrix.indptr[-1])
    elif not isinstance(matrix, np.ndarray):
        first = matrix.take(np.arange(min(n_obs, 1000)))
        n_values = (first.nnz if sp.issparse(first) else np.count_nonzero(first)) / max(1, first.shape[0]) * n_obs
    return max(1.0, VALUE_BYTES * n_values / max(1, n_obs))


def _pieces(matrix: Any, order: np.ndarray) -> Iterator[tuple[np.ndarray, sp.csr_matrix]]:
    """Yield some rows at a time in a given order, as CSR; what stands together on disk is read together."""
    dense = isinstance(matrix, np.ndarray) or not (sp.issparse(matrix) or isinstance(matrix, SparseOnDisk))
    row_bytes = max(_row_bytes(matrix), 4.0 * matrix.shape[1] if dense else 0.0)
    size = max(1, int(PIECE_BYTES / row_bytes))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        ascending = np.sort(rows)
        found = matrix[ascending] if hasattr(matrix, "__getitem__") else matrix.take(ascending)
        yield rows, sp.csr_matrix(sp.csr_matrix(found)[np.searchsorted(ascending, rows)])


def _write_matrix(root: Any, name: str, matrix: Any, order: np.ndarray, *, counts: bool, names: Any) -> None:
    """Write the rows of a matrix in a given order; counts as what they become, and beside it as they are."""
    writer = _Rows(root, name, matrix.shape)
    beside = _Rows(root, f"layers/{COUNTS_LAYER}", matrix.shape) if counts else None
    n_pieces = -(-len(order) // max(1, int(PIECE_BYTES / _row_bytes(matrix))))
    for rows, block in shown_if_slow(_pieces(matrix, order), f"Writing {name}", n_pieces):
        block.sum_duplicates()
        if beside is not None:
            if not ((block.data >= 0) & (block.data == np.rint(block.data))).all():
                problem = "does not hold counts"
                raise ValueError(unusable("Expression", "adata.X", problem, "Pass counts=False."))
            block = block.astype(np.float32)
            totals = np.asarray(block.sum(1, dtype=np.float64)).ravel()  # (n,)
            if not totals.all():
                cell = str(names[rows[int(np.argmin(totals))]])
                raise ValueError(unusable(f"Cell {cell!r}", "adata.X", "has no counts", "Remove such cells."))
            beside.add(block)
            block = log_normalised(block, totals)
        writer.add(block)
    for one in (writer, beside):
        if one is not None:
            one.close()


class _Rows:
    """A CSR matrix in a zarr group that grows by rows; whole files are written.

    Parameters
    ----------
    root, name
        Where it goes.
    shape
        Of the complete matrix.
    """

    def __init__(self, root: Any, name: str, shape: tuple[int, int]):
        self.group = root.require_group(name)
        marks = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [int(n) for n in shape]}
        self.group.attrs.update(marks)
        self.lengths: list[np.ndarray] = []  # of the rows so far
        self.waiting: dict[str, list[np.ndarray]] = {"data": [], "indices": []}
        self.arrays: dict[str, Any] = {}
        self.n_written = 0

    def add(self, block: sp.csr_matrix) -> None:
        """Add rows, whose columns ascend."""
        self.lengths.append(np.diff(block.indptr))
        self.waiting["data"].append(block.data)
        self.waiting["indices"].append(block.indices.astype(np.int32))
        if sum(map(len, self.waiting["data"])) >= SHARD:
            self._write(whole=True)

    def close(self) -> None:
        """Write what is left, and where each row begins."""
        self._write(whole=False)
        indptr = np.append(0, np.cumsum(np.concatenate([np.zeros(0, np.int64), *self.lengths]), dtype=np.int64))
        if indptr[-1] < 2**31:  # as scipy has them, which converts others at each use
            indptr = indptr.astype(np.int32)
        self.group.create_array("indptr", data=indptr, compressors=CODEC)

    def _write(self, *, whole: bool) -> None:
        n = 0
        for name, parts in self.waiting.items():
            joined = np.concatenate(parts) if parts else np.zeros(0, np.float32 if name == "data" else np.int32)
            if name not in self.arrays:
                # Chunks of zeros are written too, so that one that is lost is noticed.
                options: Any = {"attributes": {COMPLETE: True}, "config": {"write_empty_chunks": True}}
                options |= {"chunks": (CHUNK,), "shards": (SHARD,), "compressors": CODEC}
                self.arrays[name] = self.group.create_array(name, shape=(0,), dtype=joined.dtype, **options)
            array = self.arrays[name]
            n = len(joined) // SHARD * SHARD if whole else len(joined)
            array.resize((self.n_written + n,))
            for start in range(0, n, SHARD):
                stop = min(start + SHARD, n)
                array[self.n_written + start : self.n_written + stop] = joined[start:stop]
            self.waiting[name] = [joined[n:].copy()]
        self.n_written += n
