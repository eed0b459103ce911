"""How does a file become an AnnData on the scale that models need?"""

import argparse
import logging
from pathlib import Path

import anndata
import h5py
import mudata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from anndata import AnnData
from mudata import MuData

from ptrag_sc._constants import COUNTS_LAYER
from ptrag_sc._validation import absent, listed, unusable
from ptrag_sc.data import CellReader, ScreenKeys
from ptrag_sc.data._reader import as_row_matrix
from ptrag_sc.datasets import open_store
from ptrag_sc.datasets._log_normalised import TARGET_SUM, log_normalised

logger = logging.getLogger(__name__)

RNA = ("rna", "gex")  # usual names of the modality with the expression
ERRORS = 80  # characters of the error of a reader that are shown


def read_file(path: Path, *, modality: str | None = None, backed: bool = False) -> AnnData:
    """Read an AnnData, or the modality of a MuData that holds the expression.

    Parameters
    ----------
    path
        ``.h5ad``, ``.zarr`` or ``.h5mu``.
    modality
        Name of the modality; None takes the only one, or ``rna`` or ``gex``.
    backed
        Whether the matrix of an h5ad or zarr file stays on disk.

    Raises
    ------
    ValueError
        If the file cannot be read, or is a MuData whose modality is not clear.
    """
    try:
        found = _read(path, backed=backed)
    except Exception as error:  # the readers raise many kinds
        first = str(error).partition("\n")[0][:ERRORS]
        kind = path.suffix[1:]
        remedy = f"Pass a file that was written as {kind}, by write_{kind} of anndata or mudata."
        raise ValueError(unusable("The file", str(path), f"is no readable {kind} ({first})", remedy)) from error
    if isinstance(found, AnnData):
        return found
    return _of_mudata(found, path, modality)


def _read(path: Path, *, backed: bool) -> AnnData | MuData:
    if path.suffix == ".h5ad":
        with h5py.File(path, "r") as root:
            backed = backed and "X" in root
        return anndata.read_h5ad(path, backed="r" if backed else None)
    if path.suffix == ".h5mu":
        return mudata.read_h5mu(path)
    if "mod" in zarr.open_group(path, mode="r"):
        return mudata.read_zarr(path)
    if backed:
        return open_store(path)
    return anndata.read_zarr(path)


def _of_mudata(mdata: MuData, path: Path, modality: str | None) -> AnnData:
    """Return one modality, with the columns and entries of ``uns`` that stand above all modalities."""
    names = list(mdata.mod)
    name = modality
    if name is None:
        usual = [n for n in names if n.lower() in RNA]
        likely = names if len(names) == 1 else usual
        if len(likely) != 1:
            problem = f"holds several modalities ({listed(names)})"
            raise ValueError(unusable("The file", str(path), problem, "Pass --modality NAME."))
        name = likely[0]
    if name not in mdata.mod:
        raise KeyError(absent("Modality", name, str(path), names, "Correct --modality."))
    adata = mdata.mod[name].copy()
    shared = mdata.obs.reindex(adata.obs_names)
    for column in shared.columns.difference(adata.obs.columns):
        adata.obs[column] = shared[column]
    adata.uns = {**mdata.uns, **adata.uns}
    logger.info("Modality %r of %s is read.", name, path.name)
    return adata


def wants_counts(options: argparse.Namespace) -> bool:
    """Return whether counts are to be normalised."""
    return bool(options.normalize or options.size_factors is not None)


def on_scale(adata: AnnData, options: argparse.Namespace, path: Path) -> tuple[AnnData, str | None]:
    """Return an object in memory on the scale of log1p of normalised counts, and its layer of counts, if any.

    Without ``--normalize`` and ``--size-factors`` nothing is changed: set-up refuses what is on another scale.

    Raises
    ------
    KeyError
        If a layer or column does not exist.
    ValueError
        If counts are to be normalised that are none, or size factors are not positive.
    """
    layer = options.counts_layer
    if adata.isbacked:
        adata = adata.to_memory()
    if not wants_counts(options):
        return adata, layer
    if getattr(options, "layer", None) is not None:
        problem = "names expression, but counts are to be normalised"
        remedy = "Name the counts with --counts-layer, or leave --normalize and --size-factors out."
        raise ValueError(unusable(f"--layer {options.layer}", str(path), problem, remedy))
    counts = _counts(adata, layer, path)
    totals = np.asarray(counts.sum(1)).ravel()  # (n,)
    how = "their row sum"
    if options.size_factors is not None:
        totals, how = _size_factors(adata.obs, options.size_factors, totals, path)
    adata.X = log_normalised(counts, totals)
    if layer is None:
        layer = COUNTS_LAYER
        adata.layers[layer] = counts
    logger.info("X is log1p of counts per %s of %s; the counts are in layers[%r].", f"{TARGET_SUM:,.0f}", how, layer)
    return adata, layer


def _counts(adata: AnnData, layer: str | None, path: Path) -> sp.csr_matrix:
    """Return the counts (n, G) as CSR float32."""
    matrix, place = adata.X, f"X of {path}"
    if layer is not None:
        if layer not in adata.layers:
            raise KeyError(absent("Layer", layer, f"layers of {path}", adata.layers, "Correct --counts-layer."))
        matrix, place = adata.layers[layer], f"layers[{layer!r}] of {path}"
    elif COUNTS_LAYER in adata.layers:
        problem = f"is to be normalised, but layers[{COUNTS_LAYER!r}] exists too"
        remedy = f"Pass --counts-layer {COUNTS_LAYER} if that layer holds the counts, or remove it."
        raise ValueError(unusable("Expression", place, problem, remedy))
    if matrix is None:
        raise ValueError(unusable("Expression", place, "is missing", "Put the counts there, or pass --counts-layer."))
    for values in CellReader(as_row_matrix(matrix)).values():
        if not ((values >= 0) & (values == np.rint(values))).all():  # NaN fails both
            remedy = "Name the counts with --counts-layer, or leave --normalize and --size-factors out."
            raise ValueError(unusable("Expression", place, "does not hold counts", remedy))
    return sp.csr_matrix(matrix, dtype=np.float32)


def _size_factors(obs: pd.DataFrame, column: str, sums: np.ndarray, path: Path) -> tuple[np.ndarray, str]:
    """Return what counts as the total of each cell (n,), and how to call it.

    A factor below the counts of a typical cell is relative: it becomes a total under which the typical cell keeps its
    row sum.
    """
    if column not in obs:
        raise KeyError(absent("Column", column, f"obs of {path}", obs, "Correct --size-factors."))
    factor = pd.to_numeric(obs[column], errors="coerce").to_numpy(dtype=float)
    if not (np.isfinite(factor) & (factor > 0)).all():
        what = f"Size factors obs[{column!r}]"
        raise ValueError(unusable(what, str(path), "are not all positive numbers", "Correct --size-factors."))
    per_unit = float(np.median(sums / factor))  # counts for each unit of the factor
    if per_unit <= 1:
        return factor, f"obs[{column!r}]"
    return (
        factor * per_unit,
        f"obs[{column!r}], a relative factor, times {per_unit:,.0f}, so that the typical cell fits",
    )


def in_columns_of(adata: AnnData, keys: ScreenKeys, options: argparse.Namespace, path: Path) -> AnnData:
    """Return a query in the columns and labels of a model; the file's own are given by options.

    Raises
    ------
    KeyError
        If a column does not exist.
    ValueError
        If the model's name is taken by another column.
    """
    for argument in ("perturbation_key", "cell_type_key", "batch_key"):
        given, wanted = getattr(options, argument), getattr(keys, argument)
        if given is None or wanted is None or given == wanted:
            continue
        flag = options.flags[argument]
        if given not in adata.obs:
            raise KeyError(absent("Column", given, f"obs of {path}", adata.obs.columns, f"Correct {flag}."))
        if wanted in adata.obs:
            problem = f"exists beside {given!r}, and the model expects its labels there"
            remedy = f"Rename it, or leave {flag} out."
            raise ValueError(unusable(f"Column {wanted!r}", f"obs of {path}", problem, remedy))
        adata.obs = adata.obs.rename(columns={given: wanted})
    if options.control is not None and options.control != keys.control and keys.perturbation_key in adata.obs:
        labels = adata.obs[keys.perturbation_key].astype(str)
        if options.control not in set(labels):
            place = f"obs[{keys.perturbation_key!r}] of {path}"
            raise ValueError(absent("Control label", options.control, place, labels.unique(), "Correct --control."))
        adata.obs[keys.perturbation_key] = labels.replace(options.control, keys.control).astype("category")
    return adata


def read_query(path: Path, keys: ScreenKeys, options: argparse.Namespace) -> AnnData:
    """Read cells for a trained model: its columns, its scale, its layer of counts."""
    adata, layer = on_scale(read_file(path, modality=options.modality), options, path)
    if layer is not None and keys.counts_layer not in (None, layer):
        adata.layers[keys.counts_layer] = adata.layers[layer]
    return in_columns_of(adata, keys, options, path)
