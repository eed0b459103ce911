"""How does the Replogle-Nadig screen, 22 GB, become an AnnData that fits into memory?"""

import logging
from collections.abc import Iterator
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pooch
import scipy.sparse as sp
from anndata import AnnData

from ptrag_sc._validation import absent, check_whole, shortened, unusable
from ptrag_sc.data._files import StrPath
from ptrag_sc.data._labels import read_optional_labels
from ptrag_sc.data._reader import CellReader, as_row_matrix
from ptrag_sc.datasets._download import cache_folder, download

URL = "https://huggingface.co/datasets/arcinstitute/Replogle-Nadig-Preprint/resolve/main/replogle.h5ad"
COLUMNS = ("gene", "cell_line", "gem_group")
CONTROL = "non-targeting"
N_BINS = 20  # of mean expression, within which dispersions are compared

logger = logging.getLogger(__name__)


def replogle_nadig(
    path: StrPath | None = None,
    *,
    url: str = URL,
    sha256: str | None = None,
    cache_dir: StrPath | None = None,
) -> AnnData:
    """Open the Replogle-Nadig CRISPRi screen, without reading its expression.

    643,413 cells of K562, RPE1, Jurkat and HepG2, 6,642 genes, 2,023 perturbed genes and controls: the screens of [1]_
    and [2]_ in one file of 22 GB, as published with STATE. Either download it yourself and pass its path, or pass the
    SHA-256 that its page shows; then it is downloaded once and checked.

    Parameters
    ----------
    path
        The downloaded file; None downloads it.
    url
        Where it is.
    sha256
        Its checksum. This package knows none, and downloads nothing without one. If given, a local file is checked too.
    cache_dir
        Folder of the download; None is the user's cache folder for ptrag_sc.

    Returns
    -------
    AnnData
        Backed by the file. Its conventions: ``perturbation_key="gene"``, ``control="non-targeting"``,
        ``cell_type_key="cell_line"``, ``batch_key="gem_group"`` (two cell lines may have the same number; ptrag_sc
        still counts two batches). The 2,000 genes of ``obsm["X_hvg"]`` were not chosen from the training cells of your
        split; :func:`select_training_genes` does that.

    Raises
    ------
    OSError
        If the download fails, or there is no such file.
    ValueError
        If a download has no checksum, the checksum of a file differs, or the file is no h5ad file.
    KeyError
        If the file lacks a column or the control label.

    References
    ----------
    .. [1] Replogle et al. (2022), Mapping information-rich genotype-phenotype landscapes with genome-scale Perturb-seq.
    .. [2] Nadig et al. (2025), Transcriptome-wide analysis of differential expression in perturbation atlases.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.replogle_nadig("replogle.h5ad")  # doctest: +SKIP
    >>> keys = {"perturbation_key": "gene", "control": "non-targeting", "cell_type_key": "cell_line"}
    >>> ptrag_sc.pp.split(adata, **keys, test_cell_type="hepg2", test_fraction=0.36)  # doctest: +SKIP
    >>> adata = ptrag_sc.datasets.select_training_genes(adata, counts=True)  # doctest: +SKIP

    The same in the shell, with a model at the end, is one call (:doc:`/commands`).
    """
    if path is None:
        file = _downloaded(url, sha256, cache_dir)  # pooch checks it
    else:
        file = Path(path)
        _check_file(file, sha256)
    # Backed, because 22 GB do not fit into the memory of most machines.
    try:
        adata = anndata.read_h5ad(file, backed="r")
    except Exception as error:  # anndata and h5py raise many kinds
        problem = f"is no h5ad file, or is damaged ({shortened(error)})"
        raise ValueError(unusable("The file", str(file), problem, "Download replogle.h5ad again.")) from error
    for column in COLUMNS:
        if column not in adata.obs:
            raise KeyError(absent("Column", column, f"obs of {file}", adata.obs.columns, "Pass replogle.h5ad."))
    if CONTROL not in set(adata.obs[COLUMNS[0]]):
        found = adata.obs[COLUMNS[0]].astype(str).unique()
        raise KeyError(absent("Control label", CONTROL, f"obs['gene'] of {file}", found, "Pass replogle.h5ad."))
    return adata


def select_training_genes(
    adata: AnnData,
    *,
    counts: bool,
    split_key: str = "split",
    n_genes: int = 2000,
    target_sum: float = 1e4,
) -> AnnData:
    """Bring the variable genes of the training cells into memory, log-normalised.

    Reads ``X`` twice, a few thousand cells at a time. Genes are ranked as the flavor "seurat" of scanpy does [1]_ (the
    dispersion var/mean of normalised expression, standardised among genes of similar mean), only from cells labelled
    ``train``, because a choice that used test cells would leak information about them.

    Parameters
    ----------
    adata
        Screen with a split, in memory or backed by a file; it is not changed.
    counts
        Whether ``X`` holds counts, which become log1p(count / total of the cell over *all* genes * ``target_sum``).
        Otherwise it holds log1p of normalised counts, which are kept.
    split_key
        Column of ``obs`` written by :func:`ptrag_sc.pp.split`; control cells are ``train`` there.
    n_genes
        Number of genes to keep; all, if there are no more.
    target_sum
        Counts per cell after normalisation.

    Returns
    -------
    AnnData
        A new object of all cells x ``n_genes``: ``X`` CSR float32, ``obs`` and the chosen rows of ``var`` copied.

    Raises
    ------
    KeyError
        If the split column does not exist.
    ValueError
        If no cell is labelled ``train``, ``X`` is not on the scale that ``counts`` says, or a cell has no counts.

    References
    ----------
    .. [1] Satija et al. (2015), Spatial reconstruction of single-cell gene expression data.

    Examples
    --------
    >>> import numpy as np
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=600, n_genes=60, n_perturbations=10, n_cell_types=2)
    >>> keys = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}
    >>> ptrag_sc.pp.split(adata, **keys)
    >>> select_training_genes(adata, counts=False, n_genes=20).shape
    (600, 20)
    """
    check_whole("n_genes", n_genes, "select_training_genes", minimum=1)
    seen = read_optional_labels(adata.obs, split_key, missing="train") == "train"  # (n,); only controls may have none
    if not seen.any():
        place = f"adata.obs[{split_key!r}]"
        raise ValueError(unusable("The split", place, "has no cell labelled 'train'", "Split it."))
    mean, variance = _moments(adata, seen, counts, target_sum)  # (G,) each
    chosen = np.sort(_most_variable(mean, variance, n_genes))  # sorted, so that genes keep the order of the file
    # A second pass over the file; only the chosen genes stay in memory.
    parts = [sp.csr_matrix(cells[:, chosen]) for _, cells in _logged(adata, counts, target_sum)]
    logger.info("%d of %d genes kept: the most variable in %d training cells.", len(chosen), adata.n_vars, seen.sum())
    return AnnData(sp.vstack(parts, format="csr"), obs=adata.obs.copy(), var=adata.var.iloc[chosen].copy())


def _check_file(file: Path, sha256: str | None) -> None:
    if not file.is_file():
        remedy = "Pass the path of the downloaded replogle.h5ad."
        raise FileNotFoundError(unusable("The file", str(file), "does not exist", remedy))
    if sha256 is not None and pooch.file_hash(str(file)) != _digest(sha256):
        remedy = "Download it again, or correct sha256."
        raise ValueError(unusable("The file", str(file), "has another SHA-256", remedy))


def _downloaded(url: str, sha256: str | None, cache_dir: StrPath | None) -> Path:
    if sha256 is None:
        remedy = "Pass path= of a file that you downloaded, or the sha256= that its page shows."
        raise ValueError(unusable("The file", url, "has no checksum known to ptrag_sc", remedy))
    remedy = "Download it elsewhere and pass its path."
    return download(url, f"sha256:{_digest(sha256)}", cache_folder(cache_dir), what="The file", remedy=remedy)


def _digest(sha256: str) -> str:
    return sha256.removeprefix("sha256:").lower()


def _logged(adata: AnnData, counts: bool, target_sum: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows and their log-normalised expression (n, G) float32, piece by piece."""
    for rows, block in CellReader(as_row_matrix(adata.X)).blocks():
        dense = block.toarray() if sp.issparse(block) else block
        cells = np.array(dense, dtype=np.float32)  # (n, G), a copy
        _check(cells, counts)
        if counts:
            totals = cells.sum(1, dtype=np.float64)[:, None]  # (n, 1)
            if not totals.all():
                first = adata.obs_names[rows[int(np.argmin(totals))]]
                raise ValueError(unusable(f"Cell {first!r}", "adata.X", "has no counts", "Remove such cells."))
            cells = np.log1p(cells * (target_sum / totals)).astype(np.float32)
        yield rows, cells


def _check(cells: np.ndarray, counts: bool) -> None:
    # One piece is enough to see the scale: normalised expression of thousands of cells is never all whole numbers.
    whole = bool((cells == np.rint(cells)).all())
    if not np.isfinite(cells).all() or cells.min() < 0:
        problem = "holds negative, NaN or infinite values"
        raise ValueError(unusable("Expression", "adata.X", problem, "Pass counts, or log1p of normalised counts."))
    if whole != counts:
        problem = "holds whole numbers, not log1p of normalised counts"
        if counts:
            problem = "holds fractions, not counts"
        raise ValueError(unusable("Expression", "adata.X", problem, f"Pass counts={not counts}."))


def _moments(adata: AnnData, seen: np.ndarray, counts: bool, target_sum: float) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance (G,) of normalised, not logged, expression of the cells seen."""
    n = 0
    total = np.zeros(adata.n_vars)
    square = np.zeros(adata.n_vars)
    for rows, cells in _logged(adata, counts, target_sum):
        linear = np.expm1(cells[seen[rows]].astype(np.float64))  # (n_seen, G)
        n += len(linear)
        total += linear.sum(0)
        square += np.einsum("ng,ng->g", linear, linear)
    mean = total / n
    return mean, np.maximum(square / n - mean**2, 0) * n / max(n - 1, 1)


def _most_variable(mean: np.ndarray, variance: np.ndarray, n_genes: int) -> np.ndarray:
    """Return the genes whose log dispersion stands out most among genes of similar log mean."""
    with np.errstate(divide="ignore", invalid="ignore"):
        dispersion = np.log(variance / mean)  # NaN, last in the order, for genes without expression or variance
    dispersion[~np.isfinite(dispersion)] = np.nan
    # Dispersion rises with the mean by itself, so genes are compared within bins of similar mean only.
    table = pd.DataFrame({"dispersion": dispersion, "bin": pd.cut(np.log1p(mean), N_BINS, labels=False)})
    bins = table.groupby("bin")["dispersion"]
    centre = bins.transform("mean")
    spread = bins.transform("std")
    # A gene alone in its bin has no spread to compare with: its score is 1, as in Seurat.
    score = ((dispersion - centre) / spread).where(spread.notna(), 1.0).where(np.isfinite(dispersion))
    order = np.argsort(-score.to_numpy(), kind="stable")  # NaN comes last
    return order[: min(n_genes, len(order))]
