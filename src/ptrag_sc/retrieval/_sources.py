"""From what can a gene embedding be read?

A source is one function (path -> names, vectors) and one row in ``SOURCES``.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ptrag_sc._validation import listed, unknown, unusable
from ptrag_sc.data._files import StrPath
from ptrag_sc.datasets._gene_vectors import GeneVectors
from ptrag_sc.datasets._genept import genept
from ptrag_sc.retrieval._gene_embeddings import GeneEmbedding, frame_arrays
from ptrag_sc.retrieval._vector_files import (
    from_csv,
    from_h5ad,
    from_npz,
    from_parquet,
    from_pickle,
    from_pt,
    read_file,
)
from ptrag_sc.retrieval._vector_tables import from_anndata, from_mapping

EmbeddingSource: TypeAlias = StrPath | pd.DataFrame | Mapping[str, ArrayLike] | ad.AnnData
ALIASES = "Pass aliases={label: symbol}, or missing='drop' to leave their conditions out."


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
        return "mapping", from_mapping(source, "the mapping")
    if isinstance(source, ad.AnnData):
        return "AnnData", from_anndata(source, "the AnnData")
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
    return path.name, read_file(SOURCES[kind], path)


def _from_genept(_: Path) -> GeneVectors:
    return genept()


SOURCES: dict[str, Callable[[Path], GeneVectors]] = {
    "genept": _from_genept,
    ".npz": from_npz,
    ".parquet": from_parquet,
    ".csv": from_csv,
    ".h5ad": from_h5ad,
    ".pt": from_pt,
    ".pth": from_pt,
    ".pickle": from_pickle,
    ".pkl": from_pickle,
}
