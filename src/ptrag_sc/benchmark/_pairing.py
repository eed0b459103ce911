"""Which real and predicted cells belong together?"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from ptrag_sc._constants import PREDICTED_SUFFIX
from ptrag_sc._validation import absent, listed, unusable
from ptrag_sc.data import CellReader, canonical_labels, read_labels
from ptrag_sc.data._reader import as_row_matrix
from ptrag_sc.metrics import Reference


class Cells(NamedTuple):
    """The real or the predicted cells of a comparison."""

    reader: CellReader
    labels: pd.DataFrame  # perturbation (canonical), cell_type, and batch if registered; one row per cell
    counts: bool  # whether the values look like raw counts
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


def read_cells(adata: AnnData, reference: Reference, *, place: str) -> Cells:
    """Return expression, in the gene order of the reference, and labels of one object.

    Raises
    ------
    KeyError
        If genes or columns are missing.
    ValueError
        If the expression contains NaN or infinite values, or gene names are not unique.
    """
    keys = reference.keys
    if not adata.n_obs:
        raise ValueError(unusable("The object", place, "holds no cells", "Pass the cells to compare."))
    if not adata.var_names.is_unique:
        twice = listed(adata.var_names[adata.var_names.duplicated()].unique())
        remedy = "Call var_names_make_unique() on it."
        raise ValueError(unusable("Gene names", f"{place}.var_names", f"are not unique ({twice})", remedy))
    columns = adata.var_names.get_indexer(reference.genes)  # (G,), -1 if the object lacks the gene
    lacking = reference.genes[columns < 0]
    if len(lacking):
        problem = f"lacks {len(lacking)} of {len(reference.genes)} genes ({listed(lacking)})"
        raise KeyError(unusable("The gene set", f"{place}.var_names", problem, "Compare objects with the same genes."))
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
    counts = _look_like_counts(reader, place=place)
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
    done = np.ones(adata.n_obs, dtype=bool)
    if place == "predicted":
        done = _predicted_rows(adata)
    return Cells(reader, pd.DataFrame(labels), counts, done)


def _predicted_rows(adata: AnnData) -> np.ndarray:
    """Return which rows were predicted (n,): one that was not stores nothing, and a column of obs says so."""
    done = np.ones(adata.n_obs, dtype=bool)
    if sp.issparse(adata.X):  # in a dense matrix these rows are NaN
        empty = np.diff(adata.X.tocsr().indptr) == 0  # (n,)
        for column in adata.obs.columns[adata.obs.columns.astype(str).str.endswith(PREDICTED_SUFFIX)]:
            done &= ~(empty & (adata.obs[column] == False).to_numpy())  # noqa: E712
    return done


def _look_like_counts(reader: CellReader, *, place: str) -> bool:
    """Return whether all values are whole and some exceed 1.

    Raises
    ------
    ValueError
        If there are NaN or infinite values.
    """
    n_bad = 0
    whole = True
    largest = 0.0
    for values in reader.values():
        smallest = values.min(initial=0.0)
        top = values.max(initial=0.0)
        if not np.isfinite(smallest + top):  # min and max propagate NaN and infinities
            n_bad += int(values.size - np.isfinite(values).sum())
        # The first values are tried alone: for logarithms they nearly always decide, without a look at the rest.
        whole = whole and smallest >= 0 and all((v == np.rint(v)).all() for v in (values[:64], values))
        largest = max(largest, float(top))
    if n_bad:
        raise ValueError(
            unusable("Expression", place, f"holds {n_bad} NaN or infinite values", "Leave these cells out.")
        )
    return bool(whole and largest > 1)


def check_scales(real: Cells, predicted: Cells, *, layer: str | None) -> None:
    """Refuse raw counts in one object only, and in both if the registered scale is that of ``X``.

    Raises
    ------
    ValueError
        If there are any; the message names the object.
    """
    sides = {"real": real.counts, "predicted": predicted.counts}
    if not any(sides.values()) or (layer is not None and all(sides.values())):
        return
    place = " and ".join(name for name, counts in sides.items() if counts)
    remedy = "Run sc.pp.normalize_total(adata, target_sum=1e4) and sc.pp.log1p(adata) on it first."
    if layer is not None:
        remedy = f"Give both sides on the scale of the registered layer {layer!r}."
    problem = "looks like raw counts (whole numbers), unlike the reference"
    raise ValueError(unusable("Expression", place, problem, remedy))


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
        names = [listed(sorted({c[0] for c in rows})) for rows in (real_rows, predicted_rows)]
        problem = f"share no perturbed condition (real: {names[0]}; predicted: {names[1]})"
        raise ValueError(unusable("The objects", "evaluate", problem, "Label both with the same names."))
    return [Pair(*c, real_rows[c], predicted_rows[c]) for c in shared]
