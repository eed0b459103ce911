"""How do the GenePT vectors come to this machine?"""

import logging
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ptrag_sc._validation import shortened, unknown, unusable
from ptrag_sc.data._files import StrPath, write_beside
from ptrag_sc.datasets._download import cache_folder, check_hash, download
from ptrag_sc.datasets._gene_vectors import GeneVectors
from ptrag_sc.datasets._pickled_vectors import read_pickled_vectors

URL = "https://zenodo.org/records/10833191/files/GenePT_emebdding_v2.zip"
KNOWN_HASH = "md5:3f6ce4317e3a0091978ae5cb8fbf05a3"
MEMBER = "GenePT_emebdding_v2/GenePT_gene_embedding_ada_text.pickle"

logger = logging.getLogger(__name__)


def genept(
    *,
    cache_dir: StrPath | None = None,
    url: str = URL,
    known_hash: str = KNOWN_HASH,
    genes: Iterable[str] | None = None,
) -> GeneVectors:
    """Load GenePT, the text-embedding-ada-002 vectors of gene descriptions.

    The vectors are those of [1]_. The first call downloads the archive (574,395,233 bytes), checks it, reads the pickle
    in it without executing it and saves the table as .npz in the same folder (0.6 GB; about half a minute and 1.3 GB of
    memory). Later calls read the .npz, and the archive may be deleted. On a machine without network, put the archive
    into ``cache_dir``.

    Parameters
    ----------
    cache_dir
        Folder of the archive and the table; None is the user's cache folder for ptrag_sc.
    url
        Where the archive is.
    known_hash
        Its checksum, as ``md5:...``; the name of the saved table contains part of it.
    genes
        Symbols to return, in this order; None returns all.

    Returns
    -------
    GeneVectors
        A named tuple of ``genes`` (n,) and ``vectors`` (n, 1536) float32, as published (not rescaled).

    Raises
    ------
    OSError
        If the download fails.
    ValueError
        If there is no checksum, it differs, or the archive holds something else.
    KeyError
        If a symbol of ``genes`` is not in the table.

    References
    ----------
    .. [1] Chen & Zou (2023), GenePT: a simple but effective foundation model for genes and cells built from ChatGPT.

    Examples
    --------
    >>> import ptrag_sc
    >>> table = ptrag_sc.datasets.genept(genes=["STAT1", "JAK2"])  # doctest: +SKIP
    >>> table.vectors.shape  # doctest: +SKIP
    (2, 1536)
    """
    folder = cache_folder(cache_dir)
    check_hash(known_hash or "", url, "The GenePT archive")
    # Another archive has another checksum, so it never meets the table of this one.
    table = folder / f"genept_ada_{known_hash.split(':')[-1][:8]}.npz"
    everything = _kept(table)
    if everything is None:
        remedy = f"Download it elsewhere and put it into {str(folder)!r}, or pass the path of its .pickle as source."
        everything = _converted(download(url, known_hash, folder, what="The GenePT archive", remedy=remedy))
        _write(everything, table)
    if genes is None:
        return everything
    return _selected(everything, list(genes))


def _kept(table: Path) -> GeneVectors | None:
    """Return a table that was saved before; None if there is none, or if it is damaged and was therefore removed."""
    if not table.exists():
        return None
    try:
        with table.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = GeneVectors(arrays["genes"], arrays["vectors"])  # zipfile compares checksums on the way
        is_text, is_single = found.genes.dtype.kind == "U", found.vectors.dtype == np.dtype(np.float32)
        if is_text and is_single and found.vectors.ndim == 2 and len(found.vectors) == len(found.genes) > 0:
            return found
        problem = f"holds vectors of type {found.vectors.dtype} and shape {found.vectors.shape}"
    except Exception as error:  # numpy and zipfile raise many kinds
        problem = shortened(error)
    if table.is_dir():  # which this package did not make
        raise OSError(unusable("The table", str(table), "has a folder in its place", "Remove the folder."))
    logger.warning("Removed the damaged table %s (%s). It is made again.", table, problem)
    table.unlink()
    return None


def _converted(archive: Path) -> GeneVectors:
    logger.info("Converting %s to a table of float32; this happens once.", archive)
    try:
        with zipfile.ZipFile(archive) as files, files.open(MEMBER) as member:
            return read_pickled_vectors(member, place=f"{archive}/{MEMBER}")
    except ValueError:  # of the pickle, with the name of the file
        raise
    except Exception as error:  # zipfile and the readers below it raise many kinds
        remedy = "Pass the url and known_hash of GenePT v2."
        problem = f"lacks {MEMBER!r} ({shortened(error)})"
        raise ValueError(unusable("The GenePT archive", str(archive), problem, remedy)) from error


def _write(table: GeneVectors, path: Path) -> None:
    # An interrupted conversion must leave no half table, because later calls trust what they find.
    write_beside(path, lambda part: np.savez(part, genes=table.genes, vectors=table.vectors))


def _selected(table: GeneVectors, genes: list[str]) -> GeneVectors:
    position = {gene: i for i, gene in enumerate(table.genes.tolist())}
    missing = [gene for gene in genes if gene not in position]
    if missing:
        raise KeyError(unknown("Gene", missing, "GenePT", position, "Correct the symbols."))
    return GeneVectors(np.array(genes, dtype=str), table.vectors[[position[gene] for gene in genes]])
