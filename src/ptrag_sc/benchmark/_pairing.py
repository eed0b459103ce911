"""Which real and predicted cells belong together?"""

import logging
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from ptrag_sc._constants import PREDICTED_SUFFIX
from ptrag_sc._validation import absent, listed, unusable
from ptrag_sc.data import CellReader, canonical_labels, read_labels
from ptrag_sc.data._fields import AnnOrMuData
from ptrag_sc.data._gene_names import column_with, gene_names, why_unknown
from ptrag_sc.data._lazy import load_tables
from ptrag_sc.data._mudata import as_anndata
from ptrag_sc.data._partners import without_partner
from ptrag_sc.data._reader import as_row_matrix
from ptrag_sc.data._scale import Values, check_expression, level, log_base, warn_of_levels, why_not_logs
from ptrag_sc.data._shifts import sampled_means
from ptrag_sc.metrics import Reference

logger = logging.getLogger(__name__)

N_LEVEL = 500  # cells of a cell type whose mean is compared with that of control cells


class Cells(NamedTuple):
    """The real or the predicted cells of a comparison."""

    reader: CellReader
    labels: pd.DataFrame  # perturbation (canonical), cell_type, and batch if registered; one row per cell
    values: Values  # what the expression looks like
    base: float | None  # of its logarithm, None if it is e or not known
    done: np.ndarray  # (n,) False for a row that tl.predict left empty

    def conditions(self) -> dict[tuple[str, str], np.ndarray]:
        """Return the rows of every (perturbation, cell type), controls included."""
        groups = self.labels.groupby(["perturbation", "cell_type"]).indices
        found = {condition: rows[self.done[rows]] for condition, rows in groups.items()}
        return {condition: rows for condition, rows in found.items() if len(rows)}

    def batches(self, rows: np.ndarray) -> np.ndarray | None:
        """Return the batch names (n,) of some cells, or None without batches."""
        if "batch" not in self.labels:
            return None
        return self.labels["batch"].to_numpy()[rows]


class Pair(NamedTuple):
    """One condition in both objects."""

    perturbation: str
    cell_type: str
    real: np.ndarray  # rows
    predicted: np.ndarray  # rows


def read_cells(adata: AnnOrMuData, reference: Reference, *, place: str) -> Cells:
    """Return expression, in the gene order of the reference, and labels of one object.

    Raises
    ------
    KeyError
        If genes or columns are missing.
    ValueError
        If the expression contains NaN or infinite values, or gene names are not unique.
    """
    keys = reference.keys
    adata = as_anndata(adata, keys)
    load_tables(adata)
    if not adata.n_obs:
        raise ValueError(unusable("The object", place, "holds no cells", "Pass the cells to compare."))
    columns = place_in(adata, reference, place=place)
    matrix = adata.X
    # Predicted cells are in X on the registered scale, even if the object is a copy of real cells with their layers.
    if place == "real" and keys.layer is not None:
        if keys.layer not in adata.layers:
            remedy = "Compare cells on the scale that was registered."
            raise KeyError(absent("Layer", keys.layer, f"{place}.layers", adata.layers, remedy))
        matrix = adata.layers[keys.layer]
    if matrix is None:
        raise ValueError(unusable("Expression", place, "is missing", "Put the cells' expression into X."))
    in_order = np.array_equal(columns, np.arange(adata.n_vars))  # then whole rows can be read
    reader = CellReader(as_row_matrix(matrix), None if in_order else columns)
    values = check_expression(reader, place=place, declared=True)  # scales are compared when both sides are known
    labels = read_conditions(adata, reference, place=place)
    done = np.ones(adata.n_obs, dtype=bool)
    if place == "predicted":
        done = _predicted_rows(adata)
    return Cells(reader, labels, values, log_base(adata.uns), done)


def place_in(adata: AnnData, reference: Reference, *, place: str) -> np.ndarray:
    """Return where each gene of the reference (G,) is in an object.

    Raises
    ------
    KeyError
        If genes are missing.
    ValueError
        If gene names are not unique.
    """
    own = pd.Index(gene_names(adata, reference.keys.gene_symbols))
    if not own.is_unique:
        twice = listed(own[own.duplicated()].unique())
        remedy = "Call var_names_make_unique() on it."
        raise ValueError(unusable("Gene names", f"{place}.var_names", f"are not unique ({twice})", remedy))
    columns: np.ndarray = own.get_indexer(reference.genes)  # (G,), -1 if the object lacks the gene
    lacking = reference.genes[columns < 0]
    if len(lacking):
        problem = f"lacks {len(lacking)} of {len(reference.genes)} genes ({listed(lacking)})"
        remedy = "Compare objects with the same genes."
        if why := why_unknown(lacking, own):
            remedy = f"Name genes alike in all objects: {why}"
            if found := column_with(adata.var, lacking):
                remedy += f"; {place}.var_names = {place}.var[{found!r}] does so"
            remedy += "."
        raise KeyError(unusable("The gene set", f"{place}.var_names", problem, remedy))
    return columns


def read_conditions(adata: AnnData, reference: Reference, *, place: str) -> pd.DataFrame:
    """Return perturbation (canonical), cell type and, where it is known, batch of every cell."""
    keys = reference.keys
    perturbation = read_labels(adata.obs, keys.perturbation_key)
    labels = {
        "perturbation": canonical_labels(perturbation, control=keys.controls, sep=keys.sep),
        "cell_type": read_labels(adata.obs, keys.cell_type_key),
    }
    if place == "real" and keys.time_key is not None and keys.time_key in adata.obs:
        at_start = read_labels(adata.obs, keys.time_key) == keys.start
        labels["perturbation"][at_start] = None  # nothing is compared with control cells at the start
    if keys.batch_key is not None and keys.batch_key in adata.obs:
        labels["batch"] = read_labels(adata.obs, keys.batch_key)
    return pd.DataFrame(labels)


def _predicted_rows(adata: AnnData) -> np.ndarray:
    """Return which rows were predicted (n,): one that was not stores nothing, and a column of obs says so."""
    done = np.ones(adata.n_obs, dtype=bool)
    if sp.issparse(adata.X):  # in a dense matrix these rows are NaN
        empty = np.diff(adata.X.tocsr().indptr) == 0  # (n,)
        for column in adata.obs.columns[adata.obs.columns.astype(str).str.endswith(PREDICTED_SUFFIX)]:
            done &= ~(empty & (adata.obs[column] == False).to_numpy())  # noqa: E712
    return done


def check_scales(real: Cells, predicted: Cells, reference: Reference) -> None:
    """Refuse values that are no log1p of normalised counts where this is the registered scale, else counts on one side.

    A warning names cell types whose level differs from that of the control cells of the reference.

    Raises
    ------
    ValueError
        The message names the object.
    """
    sides = {"real": real, "predicted": predicted}
    layer = reference.keys.layer
    counts = [name for name, side in sides.items() if side.values.are_counts]
    if layer is not None and len(counts) == 1:
        problem = "looks like raw counts (whole numbers), unlike the reference"
        remedy = f"Give both sides on the scale of the registered layer {layer!r}."
        raise ValueError(unusable("Expression", counts[0], problem, remedy))
    for name, side in sides.items():
        problem, remedy = why_not_logs(side.values, base=side.base, negative=name == "predicted")
        if layer is None and problem:
            raise ValueError(unusable("Expression", name, problem, remedy.replace("adata", name)))
    known = {str(t): level(mean) for t, mean in zip(reference.cell_types, reference.control, strict=True)}
    for name, side in sides.items():
        warn_of_levels(_levels(side), known, place=name, other="the reference")


def _levels(side: Cells) -> dict[str, float]:
    """Return the level of the mean of up to 500 cells of each cell type."""
    rows = {str(t): found[side.done[found]] for t, found in side.labels.groupby("cell_type").indices.items()}
    rows = {t: found[:: -(-len(found) // N_LEVEL)] for t, found in rows.items() if len(found)}
    if not rows:
        return {}
    means = sampled_means(side.reader, list(rows.values()))  # (T, G)
    return {t: level(mean) for t, mean in zip(rows, means, strict=True)}


def warn_of_batches(sides: Mapping[str, Cells], reference: Reference) -> None:
    """Name the batches of which the reference knows no control cells."""
    if not reference.control_of_batch:
        return
    for name, side in sides.items():
        if "batch" not in side.labels:
            if name == "predicted":
                logger.info("predicted.obs has no column %r: controls are not matched.", reference.keys.batch_key)
            continue
        found = side.labels[["cell_type", "batch"]].dropna().drop_duplicates().itertuples(index=False)
        known = [f"{batch} of {t}" for t, batch in reference.control_of_batch]
        result = f"The shifts of its cells in {name} are measured from all control cells of their cell type."
        pairs = [f"{batch} of {t}" for t, batch in found if t in set(reference.cell_types)]
        without_partner("Batch", pairs, known, place="the reference", result=result)


def pair_conditions(real: Cells, predicted: Cells, *, control: str) -> list[Pair]:
    """Return the conditions, without the control, that are in both objects, in sorted order.

    Raises
    ------
    ValueError
        If there is none.
    """
    real_rows = real.conditions()
    predicted_rows = predicted.conditions()
    shared = sorted(c for c in predicted_rows if c in real_rows and c[0] != control)
    if not shared:
        known = [[sorted({c[i] for c in rows}) for rows in (real_rows, predicted_rows)] for i in (0, 1)]
        i = 0  # perturbations differ, unless they are shared in other cell types
        if (set(known[0][0]) & set(known[0][1])) - {control}:
            i = 1
        what = ("", " in the same cell type")[i]
        problem = f"share no perturbed condition{what} (real: {listed(known[i][0])}; predicted: {listed(known[i][1])})"
        raise ValueError(unusable("The objects", "evaluate", problem, "Label both with the same names."))
    asked, known_real = ([f"{p} in {t}" for p, t in rows if p != control] for rows in (predicted_rows, real_rows))
    result = "They have no real cells and are left out."
    without_partner("Predicted condition", asked, known_real, place="real", result=result)
    return [Pair(*c, real_rows[c], predicted_rows[c]) for c in shared]
