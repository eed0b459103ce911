"""How is a table of gene vectors read from each kind of file, without running it or filling the memory?"""

import csv
import math
import mmap
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import torch

from ptrag_sc._validation import listed, shortened, unusable
from ptrag_sc.datasets._gene_vectors import GeneVectors, check_size, gene_names
from ptrag_sc.datasets._pickled_vectors import read_pickled_vectors
from ptrag_sc.retrieval._gene_embeddings import frame_arrays
from ptrag_sc.retrieval._vector_tables import OF_CELLS, from_anndata, from_mapping

GAPS = ("", "NA", "NaN", "nan")  # how CSV files write a missing number
MAX_COLUMNS = 8_000  # of a table; pandas needs half a minute for six times as many
MAX_LINE = 2**22  # letters of the header of a CSV file, and of its first row
BLOCK = 2**20  # bytes
NUMBER = 8  # bytes
HEAP, HEAP_HEADER = b"GCOL\x01\0\0\0", 16  # where HDF5 keeps texts, and bytes before each of them
PICKLE_BYTES = 2**21  # of a .pt file, to which are added
PICKLE_BYTES_PER_RECORD = 500  # names and shapes of one tensor


def read_file(read: Callable[[Path], GeneVectors], path: Path) -> GeneVectors:
    """Read a file, and say of which file it is that a library complains.

    Raises
    ------
    ValueError
        If it cannot be used; the message names it.
    OSError
        If the system does not let it be read.
    ImportError
        If a package is needed for it.
    """
    try:
        return read(path)
    except (ImportError, PermissionError):  # they say what to install, and the file
        raise
    except Exception as error:  # pandas, pyarrow, h5py, anndata and zipfile raise many kinds
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        problem = f"could not be read ({type(error).__name__}: {shortened(error)})"
        remedy = "Pass a complete file whose kind is that of its suffix."
        raise ValueError(unusable("Gene embedding", str(path), problem, remedy)) from error


def from_npz(path: Path) -> GeneVectors:
    """Read arrays of numpy."""
    remedy = "Save arrays 'genes' (text, not objects) and 'vectors' (n x D)."
    try:
        # Objects in an .npz are pickles, which could run code.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = set(arrays.files)
            name = next((key for key in ("vectors", "emb") if {"genes", key} <= found), None)
            if name is not None:
                check_size(sum(_n_numbers(arrays, key) for key in ("genes", name)), path.stat().st_size, str(path))
                return GeneVectors(_names(arrays["genes"], path), arrays[name])
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        if str(path) in str(error):
            raise
        problem = f"could not be read ({shortened(error)})"
        raise ValueError(unusable("Gene embedding", str(path), problem, remedy)) from error
    raise ValueError(unusable("Gene embedding", str(path), f"holds the arrays {listed(sorted(found))}", remedy))


def _n_numbers(arrays: Any, key: str) -> int:
    """Return how many numbers an array says it has, or how many would need the memory of its text."""
    name = key if key in arrays.zip.namelist() else f"{key}.npy"
    with arrays.zip.open(name) as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
    return math.prod(shape) * math.ceil(dtype.itemsize / NUMBER)


def _names(genes: np.ndarray, path: Path) -> np.ndarray:
    if genes.ndim != 1 or genes.dtype.kind not in "USiu":
        problem = f"has names of type {genes.dtype} and shape {genes.shape}"
        raise ValueError(unusable("Gene embedding", str(path), problem, "Save 'genes' as text, one name for each row."))
    return gene_names(genes.tolist(), str(path))


def from_parquet(path: Path) -> GeneVectors:
    """Read columns of numbers, and an index or one column of names."""
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        stored = pq.ParquetFile(file)
        size = stored.metadata
        if size.num_columns > MAX_COLUMNS:
            raise ValueError(_too_wide(path, size.num_columns))
        groups = [size.row_group(i) for i in range(size.num_row_groups)]
        n_numbers = size.num_rows * size.num_columns
        n_bytes = sum(group.total_byte_size for group in groups)
        check_size(max(n_numbers, n_bytes // NUMBER), path.stat().st_size, str(path))
        # As a dictionary, a text that occurs many times is in memory once.
        text = [field.name for field in stored.schema_arrow if str(field.type).endswith(("string", "binary"))]
        frame = pq.ParquetFile(file, read_dictionary=text).read().to_pandas()
    return GeneVectors(*frame_arrays(frame, str(path)))


def _too_wide(path: Path, n_columns: object) -> str:
    remedy = "Save a table as wide as this as .npz."
    return unusable("Gene embedding", str(path), f"has {n_columns} columns", remedy)


def from_csv(path: Path) -> GeneVectors:
    """Read text with a header, whose first column has the names."""
    _check_rows(path)
    names, *columns = pd.read_csv(path, nrows=0).columns
    # Without a header pandas would take the first gene for one, and the gene would be lost silently.
    if columns and _is_fraction(columns[0]):
        problem = f"begins with a row of numbers ({columns[0]!r}), not with a header"
        remedy = "Add a header row, the first column being genes."
        raise ValueError(unusable("Gene embedding", str(path), problem, remedy))
    # "NA" is a gap among numbers but a symbol among names, and "1" may be a name too.
    options = {"keep_default_na": False, "na_values": list(GAPS), "index_col": False, "low_memory": False}
    frame = pd.read_csv(path, converters={names: str}, **options).set_index(names)
    return GeneVectors(*frame_arrays(frame, str(path)))


def _check_rows(path: Path) -> None:
    """Refuse a header that does not name the column of genes, and tables that are too wide to be read as text."""
    with path.open("rb") as file:
        if any(b"\0" in block for block in iter(lambda: file.read(BLOCK), b"")):  # where pandas ends a value
            raise ValueError(unusable("Gene embedding", str(path), "is no text in UTF-8", "Save it as UTF-8."))
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = (line for line in iter(lambda: file.readline(MAX_LINE), "") if line.strip())  # pandas skips empty ones
        first = [next(lines, "") for _ in range(2)]
    if max(map(len, first)) == MAX_LINE:
        raise ValueError(_too_wide(path, "too many"))
    header, row = (next(csv.reader([line]), []) for line in first)
    remedy = "Name every column in the header, the first being the genes."
    if row and len(row) != len(header):
        problem = f"has {len(header)} names in its header and {len(row)} values in its first row"
        raise ValueError(unusable("Gene embedding", str(path), problem, remedy))
    if len(header) > MAX_COLUMNS:
        raise ValueError(_too_wide(path, len(header)))
    words = [name for name, value in zip(header[1:], row[1:], strict=False) if not _is_number(value)]
    if words:
        problem = f"has columns that are not numbers: {listed(words)}"
        raise ValueError(unusable("Gene embedding", str(path), problem, remedy))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.strip() in GAPS or text.strip().lower() in ("true", "false")
    return True


def _is_fraction(text: str) -> bool:
    """Return whether a column is named by a number such as 0.12; 0, 1, 2 are names that pandas gives."""
    try:
        return not float(text).is_integer()
    except ValueError:
        return False


def from_h5ad(path: Path) -> GeneVectors:
    """Read the parts of an AnnData that hold vectors and their names, and no others."""
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
        _check_heaps(content)
    with h5py.File(path) as file:
        in_varm = any(key not in OF_CELLS for key in file.get("varm", ()))
        parts = ["var", "varm"] if in_varm else ["obs", "X"]
        parts = [part for part in parts if part != "X" or part in file]
        check_size(sum(_n_stored(file[part]) for part in parts), path.stat().st_size, str(path))
        if isinstance(file[parts[0]], h5py.Group):
            adata = ad.AnnData(**{part: ad.io.read_elem(file[part]) for part in parts})
        else:  # as anndata wrote it before 0.7
            adata = ad.read_h5ad(path)
    return from_anndata(adata, str(path))


def _check_heaps(content: mmap.mmap) -> None:
    """Refuse a file among whose texts HDF5 would search for ever, because one of them says that it takes no room."""
    start = content.find(HEAP)
    while start >= 0:
        end = min(start + _whole(content, start + 8, 8), len(content))
        place = start + HEAP_HEADER
        while place + HEAP_HEADER <= end:
            size = _whole(content, place + 8, 8)
            if _whole(content, place, 2):  # else it is the free room, whose size counts its header
                size = HEAP_HEADER + -(-size // 8) * 8
            if not size:
                raise ValueError("the texts in it are damaged")
            place += size
        start = content.find(HEAP, start + len(HEAP))


def _whole(content: mmap.mmap, start: int, n_bytes: int) -> int:
    return int.from_bytes(content[start : start + n_bytes], "little")


def _n_stored(part: h5py.Group | h5py.Dataset) -> int:
    """Return how many numbers a part of a file says it has, sparse ones as if they were dense."""
    shapes = []

    def look(_: str, inner: h5py.Group | h5py.Dataset) -> None:
        shape = inner.attrs.get("shape", getattr(inner, "shape", None))  # a sparse matrix has it among its attributes
        if shape is not None:
            shapes.append(tuple(map(int, shape)))

    look("", part)
    if isinstance(part, h5py.Group):
        part.visititems(look)
    return sum(map(math.prod, shapes))


def from_pt(path: Path) -> GeneVectors:
    """Read what ``torch.save`` wrote of tensors, numbers and texts."""
    remedy = "Save it as torch.save({gene: vector, ...}, file), or as {'genes': [...], 'vectors': tensor}."
    _check_archive(path, remedy)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)  # executes nothing
    except Exception as error:  # what torch raises depends on the content, and it advises to execute the file
        problem = "could not be read as tensors, numbers and texts alone"
        raise ValueError(unusable("Gene embedding", str(path), problem, remedy)) from error
    if not isinstance(content, Mapping) or not content:
        raise ValueError(unusable("Gene embedding", str(path), f"holds a {type(content).__name__}", remedy))
    n_numbers = sum(math.prod(value.shape) for value in content.values() if isinstance(value, torch.Tensor))
    check_size(n_numbers, path.stat().st_size, str(path))  # a tensor may be one number, many times
    content = {name: _as_array(value) for name, value in content.items()}
    name = next((key for key in ("vectors", "emb") if {"genes", key} == set(content)), None)
    if name is not None:
        return GeneVectors(_names(np.asarray(content["genes"], dtype=str), path), content[name])
    return from_mapping(content, str(path))


def _check_archive(path: Path, remedy: str) -> None:
    """Refuse an archive whose records are larger than the file; torch checks neither their sizes nor their number."""
    if not zipfile.is_zipfile(path):  # the format before torch 1.6
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    problem = None
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        problem = "holds compressed records"
    elif sum(entry.file_size for entry in entries) > path.stat().st_size:
        problem = "says that it holds more than its bytes"
    elif any(
        entry.file_size > PICKLE_BYTES + PICKLE_BYTES_PER_RECORD * len(entries)
        for entry in entries
        if entry.filename.endswith(".pkl")
    ):
        problem = "holds a description that is too long for its tensors"
    if problem is not None:
        raise ValueError(unusable("Gene embedding", str(path), problem, remedy))


def _as_array(value: object) -> Any:
    """Return a tensor of any type as an array; numpy has no bfloat16."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().to(torch.float32).numpy()


def from_pickle(path: Path) -> GeneVectors:
    """Read a dict of lists or arrays without executing it."""
    with path.open("rb") as file:
        return read_pickled_vectors(file, place=str(path))
