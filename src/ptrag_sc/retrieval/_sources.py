"""From what can a gene embedding be read?

A source is one function (path -> names, vectors) and one row in ``SOURCES``.
"""

import csv
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy.sparse import issparse

from ptrag_sc._validation import listed, unknown, unusable
from ptrag_sc.data._files import StrPath
from ptrag_sc.datasets._genept import genept
from ptrag_sc.datasets._pickled_vectors import GeneVectors, read_pickled_vectors
from ptrag_sc.retrieval._gene_embeddings import GeneEmbedding, frame_arrays

EmbeddingSource: TypeAlias = StrPath | pd.DataFrame | Mapping[str, ArrayLike] | ad.AnnData
OF_CELLS = ("PCs",)  # in varm: loadings that scanpy computes from cells, not vectors of genes
ALIASES = "Pass aliases={label: symbol}, or missing='drop' to leave their conditions out."
GAPS = ("", "NA", "NaN", "nan")  # how CSV files write a missing number
MAX_COLUMNS = 50_000  # of a CSV file; pandas needs half a minute for twice as many
MAX_LINE = 2**25  # letters of a line of a CSV file that are looked at
NUMBERS_PER_BYTE = 1000  # of an .h5ad file: more cannot come of any compression


def read_embedding(
    source: object,
    *,
    genes: Iterable[str] | None = None,
    missing: Literal["error", "drop"] = "error",
    remedy: str = ALIASES,
) -> GeneEmbedding:
    """Read a gene embedding and check it.

    Parameters
    ----------
    source
        ``"genept"``; the path of a file whose suffix is in ``SOURCES``; a DataFrame indexed by symbol; a mapping of
        symbols to vectors; an AnnData with the vectors of its genes in ``varm``, or with genes as observations.
    genes
        Symbols to keep; only these are checked. None keeps all.
    missing
        For symbols in ``genes`` that the source lacks: ``"error"``, or ``"drop"`` to leave them out.
    remedy
        What to do about them in the function that was called.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    KeyError
        If the kind of source is unknown, or genes are missing; the message names the closest.
    ValueError
        If the file or the table cannot be used.

    Examples
    --------
    >>> read_embedding({"AARS": [0.0, 2.0], "STAT1": [1.0, 0.0]}, genes=["AARS"]).vectors.tolist()
    [[0.0, 1.0]]
    """
    name, table = _read(source)
    if genes is None:
        return GeneEmbedding.from_table(table.genes, table.vectors, source=name)
    wanted = {str(gene) for gene in genes}
    absent = sorted(wanted - set(table.genes.tolist()))
    # If the source has none of the genes, then "drop" would leave nothing: labels and symbols do not fit.
    if absent and (missing == "error" or len(absent) == len(wanted)):
        raise KeyError(unknown("Gene", absent, f"the gene embedding {name!r}", table.genes, remedy))
    kept = np.flatnonzero(np.isin(table.genes, sorted(wanted)))
    return GeneEmbedding.from_table(table.genes[kept], table.vectors[kept], source=name)


def _read(source: object) -> tuple[str, GeneVectors]:
    """Return the name of a source and its table, unchecked."""
    if isinstance(source, pd.DataFrame):
        return "DataFrame", GeneVectors(*frame_arrays(source, "the DataFrame"))
    if isinstance(source, Mapping):
        return "mapping", _from_mapping(source, "the mapping")
    if isinstance(source, ad.AnnData):
        return "AnnData", _from_anndata(source, "the AnnData")
    if not isinstance(source, str | os.PathLike):
        remedy = f"Pass a DataFrame, a mapping, an AnnData, or one of {listed(SOURCES, len(SOURCES))}."
        raise TypeError(unusable("Gene embedding", "source", f"is a {type(source).__name__}", remedy))
    path = Path(source)
    kind = path.suffix.lower() or str(source).lower()  # "genept" has no suffix
    if kind not in SOURCES:
        remedy = f"Pass one of {listed(SOURCES, len(SOURCES))} (a suffix stands for a file), a DataFrame or a mapping."
        raise KeyError(unknown("Gene embedding source", [kind], "the table of sources", SOURCES, remedy))
    if not path.suffix:
        return kind, SOURCES[kind](path)
    if not path.is_file():
        raise FileNotFoundError(unusable("Gene embedding", repr(str(path)), "does not exist", "Pass an existing file."))
    return path.name, _from_file(SOURCES[kind], path)


def _from_file(read: Callable[[Path], GeneVectors], path: Path) -> GeneVectors:
    """Read a file, and say of which file it is that a library complains."""
    try:
        return read(path)
    except (ImportError, PermissionError):  # pandas names what to install, the system the file
        raise
    except Exception as error:  # pandas, pyarrow, h5py, anndata and zipfile raise many kinds
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        problem = f"could not be read ({type(error).__name__}: {error})"
        remedy = "Pass a complete file whose kind is that of its suffix."
        raise ValueError(unusable("Gene embedding", str(path), problem, remedy)) from error


def _from_mapping(table: Mapping[str, ArrayLike], place: str) -> GeneVectors:
    genes = np.array([str(gene) for gene in table], dtype=str)  # (n,)
    vectors = [np.atleast_1d(np.asarray(vector)) for vector in table.values()]  # (D,) each
    # One gene as an example of each shape that occurs.
    widths = {vector.shape: gene for gene, vector in zip(genes.tolist(), vectors, strict=True)}
    if len(widths) > 1:
        problem = f"has vectors of shapes {listed(widths)}, for example of {listed(widths.values())}"
        raise ValueError(unusable("Gene embedding", place, problem, "Give vectors of one width."))
    return GeneVectors(genes, np.array(vectors))


def _from_genept(_: Path) -> GeneVectors:
    return genept()


def _from_npz(path: Path) -> GeneVectors:
    remedy = "Save arrays 'genes' (text, not objects) and 'vectors' (n x D)."
    try:
        # Objects in an .npz are pickles, which could run code.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = set(arrays.files)
            name = next((key for key in ("vectors", "emb") if {"genes", key} <= found), None)
            if name is not None:
                return GeneVectors(arrays["genes"].astype(str), arrays[name])
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(unusable("Gene embedding", str(path), f"could not be read ({error})", remedy)) from error
    raise ValueError(unusable("Gene embedding", str(path), f"holds the arrays {listed(sorted(found))}", remedy))


def _from_parquet(path: Path) -> GeneVectors:
    return GeneVectors(*frame_arrays(pd.read_parquet(path), str(path)))


def _from_csv(path: Path) -> GeneVectors:
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
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = (line for line in iter(lambda: file.readline(MAX_LINE), "") if line.strip())  # pandas skips empty ones
        header, row = (next(csv.reader([next(lines, "")]), []) for _ in range(2))
    remedy = "Name every column in the header, the first being the genes."
    if row and len(row) != len(header):
        problem = f"has {len(header)} names in its header and {len(row)} values in its first row"
        raise ValueError(unusable("Gene embedding", str(path), problem, remedy))
    if len(header) > MAX_COLUMNS:
        problem = f"has {len(header)} columns"
        raise ValueError(unusable("Gene embedding", str(path), problem, "Save a table as wide as this as .npz."))


def _is_fraction(text: str) -> bool:
    """Return whether a column is named by a number such as 0.12; 0, 1, 2 are names that pandas gives."""
    try:
        return not float(text).is_integer()
    except ValueError:
        return False


def _from_h5ad(path: Path) -> GeneVectors:
    with h5py.File(path) as file:
        _check_size(file, path)
    return _from_anndata(ad.read_h5ad(path), str(path))


def _from_anndata(adata: ad.AnnData, place: str) -> GeneVectors:
    """Return the vectors of the genes in ``varm``, or if there are none there, genes as observations and ``X``."""
    keys = [key for key in adata.varm if key not in OF_CELLS]
    if len(keys) > 1:
        remedy = f"Pass the one: pandas.DataFrame(adata.varm[{keys[0]!r}], index=adata.var_names)."
        raise ValueError(unusable("Gene embedding", f"varm of {place}", f"has several tables: {listed(keys)}", remedy))
    names, vectors = adata.obs_names, adata.X
    if keys:
        names, vectors = adata.var_names, adata.varm[keys[0]]
    if vectors is None:
        remedy = "Put vectors into varm, or genes into obs_names and their vectors into X."
        raise ValueError(unusable("Gene embedding", place, "has neither vectors in varm nor X", remedy))
    if issparse(vectors):
        vectors = vectors.toarray()
    return GeneVectors(np.array(names.tolist(), dtype=str), np.asarray(vectors))


def _from_pt(path: Path) -> GeneVectors:
    remedy = "Save it as torch.save({gene: vector, ...}, file), or as {'genes': [...], 'vectors': tensor}."
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)  # executes nothing
    except Exception as error:  # what torch raises depends on the content, and it advises to execute the file
        problem = "could not be read as tensors, numbers and texts alone"
        raise ValueError(unusable("Gene embedding", str(path), problem, remedy)) from error
    if not isinstance(content, Mapping) or not content:
        raise ValueError(unusable("Gene embedding", str(path), f"holds a {type(content).__name__}", remedy))
    content = {name: _as_array(value) for name, value in content.items()}
    name = next((key for key in ("vectors", "emb") if {"genes", key} == set(content)), None)
    if name is not None:
        return GeneVectors(np.asarray(content["genes"], dtype=str), content[name])
    return _from_mapping(content, str(path))


def _as_array(value: object) -> Any:
    """Return a tensor of any type as an array; numpy has no bfloat16."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().to(torch.float32).numpy()


def _check_size(file: h5py.File, path: Path) -> None:
    """Refuse a matrix that says it is far larger than its file, which would fill the memory."""
    matrix = file.get("X")
    shape = () if matrix is None else tuple(map(int, matrix.attrs.get("shape", getattr(matrix, "shape", ()))))
    if math.prod(shape) > NUMBERS_PER_BYTE * path.stat().st_size:
        problem = f"holds a matrix of shape {shape} in {path.stat().st_size} bytes"
        raise ValueError(unusable("Gene embedding", str(path), problem, "Pass a table of gene vectors."))


def _from_pickle(path: Path) -> GeneVectors:
    with path.open("rb") as file:
        return read_pickled_vectors(file, place=str(path))


SOURCES: dict[str, Callable[[Path], GeneVectors]] = {
    "genept": _from_genept,
    ".npz": _from_npz,
    ".parquet": _from_parquet,
    ".csv": _from_csv,
    ".h5ad": _from_h5ad,
    ".pt": _from_pt,
    ".pth": _from_pt,
    ".pickle": _from_pickle,
    ".pkl": _from_pickle,
}
