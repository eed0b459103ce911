"""How are predictions written to the pair of files that cell-eval2 reads?"""

import logging
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from ptrag_sc._validation import absent, listed, unusable
from ptrag_sc.benchmark._pairing import Cells, Pair, check_scales, pair_conditions, place_in, read_cells
from ptrag_sc.data import CellReader, components
from ptrag_sc.data._fields import AnnOrMuData
from ptrag_sc.data._files import check_place, make_folder, write_together
from ptrag_sc.data._mudata import as_anndata
from ptrag_sc.data._reader import as_row_matrix
from ptrag_sc.metrics import Reference

SCALES = ("log1p", "decode", "sample")
NAMES = ("real.h5ad", "predicted.h5ad")
TARGET = "target_gene"  # obs column of the perturbation

logger = logging.getLogger(__name__)


class CellEvalFiles(NamedTuple):
    """Files for cell-eval2, and the settings of its ``EvalConfig`` that describe them."""

    real: Path
    predicted: Path
    settings: dict[str, Any]


def to_cell_eval(
    real: AnnOrMuData,
    predicted: AnnOrMuData,
    folder: str | Path,
    *,
    reference: Reference,
    cell_type: str | None = None,
    counts: Literal["log1p", "decode", "sample"] = "log1p",
    counts_layer: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> CellEvalFiles:
    """Write real and predicted cells of one cell type as the two h5ad files that cell-eval2 compares.

    Both files contain the conditions that both objects have, the genes of the reference in its order, and the same
    real control cells; predicted controls are left out. Because cell-eval2 does not know cell types, each cell type
    needs its own pair of files.

    Parameters
    ----------
    real
        Observed cells with controls, on the registered scale.
    predicted
        Predicted cells, as for :func:`evaluate`.
    folder
        Where ``real.h5ad`` and ``predicted.h5ad`` are written. It is created if it does not exist.
    reference
        Source of the columns, the genes and the control label.
    cell_type
        Needed if the objects share several.
    counts
        Scale of the files. ``"log1p"``: the cells are not changed. The other two are for metrics that need counts: real
        cells are taken from ``counts_layer``, and a predicted cell x becomes expm1(x) (negative values 0) times the
        size factor (total counts over total expm1) of a control cell drawn for it. ``"decode"`` writes these expected
        counts, with fractions. ``"sample"`` writes Poisson draws from them: whole numbers, which the ``vcc2026`` set
        needs, but with counting noise in addition to the predicted variation.
    counts_layer
        Layer of ``real`` with raw counts.
    seed
        Seed of the draws of control cells and counts.
    overwrite
        Whether existing files may be replaced. Each is replaced only when the new one is complete.

    Returns
    -------
    CellEvalFiles
        Named tuple of both paths and ``settings``, keyword arguments of ``cell_eval2.compute_metrics`` and
        ``EvalConfig``: ``pert_col``, ``control``, ``input_type``; ``target_gene_map`` if some labels are not genes of
        the files (for a combination cell-eval2 leaves out one gene: the first that is measured);
        ``allow_fractional_counts`` for ``"decode"``.

    Raises
    ------
    KeyError
        If genes, columns, the cell type or the layer are missing.
    ValueError
        If no condition is shared, there are no real control cells, an argument is unknown, counts are not whole, or
        both objects hold raw counts on the scale of ``X``.
    FileExistsError
        If a file exists and ``overwrite`` is False.

    Examples
    --------
    >>> import tempfile
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=600, n_genes=60, n_perturbations=10, n_cell_types=2)
    >>> ptrag_sc.PTRAG.setup_anndata(
    ...     adata, perturbation_key="perturbation", control="non-targeting", cell_type_key="cell_type"
    ... )
    >>> reference = ptrag_sc.metrics.Reference.from_adata(adata)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = to_cell_eval(adata, adata, folder, reference=reference, cell_type=reference.cell_types[0])
    >>> files.predicted.name, files.settings["input_type"]
    ('predicted.h5ad', 'lognorm')

    Then ``cell_eval2.compute_metrics(files.predicted, files.real, metrics="anndata", **files.settings)``.
    """
    _check_scale(counts, counts_layer)
    real_path, predicted_path = _targets(folder, overwrite=overwrite)
    real, predicted = as_anndata(real, reference.keys), as_anndata(predicted, reference.keys)
    observed = read_cells(real, reference, place="real")
    guessed = read_cells(predicted, reference, place="predicted")
    check_scales(observed, guessed, reference)
    panel = _panel(observed, guessed, cell_type, reference)
    controls = _controls(observed, panel[0].cell_type, reference)
    own = np.concatenate([pair.real for pair in panel])  # (n,) rows
    other = np.concatenate([pair.predicted for pair in panel])  # (m,) rows
    truth = observed.reader
    cells = guessed.reader.rows(other)  # (m, G)
    if counts_layer is not None:  # the scale is one of counts
        rng = np.random.default_rng(seed)
        truth = _count_reader(real, counts_layer, reference)
        factors = _size_factors(truth.rows(controls), observed.reader.rows(controls))
        cells = np.expm1(np.maximum(cells, 0)) * rng.choice(factors, (len(cells), 1))
        if counts == "sample":
            cells = rng.poisson(cells)
    control_cells = truth.rows(controls)  # the same in both files
    control_obs = observed.labels.iloc[controls].set_index(real.obs_names[controls])
    obs = pd.concat([observed.labels.iloc[own].set_index(real.obs_names[own]), control_obs])
    of_real = _cells(np.concatenate([truth.rows(own), control_cells]), obs, reference)
    obs = pd.concat([guessed.labels.iloc[other].set_index(predicted.obs_names[other]), control_obs])
    of_predicted = _cells(np.concatenate([cells, control_cells]), obs, reference)
    # Together, because one is of no use with the other of an earlier call.
    writes = {real_path: of_real.write_h5ad, predicted_path: of_predicted.write_h5ad}
    write_together(writes, overwrite=overwrite)
    return CellEvalFiles(real_path, predicted_path, _settings(panel, counts, reference))


def _check_scale(counts: str, counts_layer: str | None) -> None:
    if counts not in SCALES:
        raise ValueError(absent("counts=", counts, "the known scales", SCALES, "Pass one of them."))
    if (counts == "log1p") != (counts_layer is None):
        problem = f"do not go together: counts={counts!r}, counts_layer={counts_layer!r}"
        remedy = "Name the layer of raw counts for 'decode' and 'sample', and only for them."
        raise ValueError(unusable("The arguments", "to_cell_eval", problem, remedy))


def _targets(folder: str | Path, *, overwrite: bool) -> list[Path]:
    folder = Path(folder)
    make_folder(folder)
    paths = [folder / name for name in NAMES]
    for path in paths:
        check_place(path, overwrite=overwrite)
    return paths


def _panel(observed: Cells, guessed: Cells, cell_type: str | None, reference: Reference) -> list[Pair]:
    """Return the conditions of one cell type that both sides hold."""
    pairs = pair_conditions(observed, guessed, control=reference.keys.control)
    found = sorted({pair.cell_type for pair in pairs})
    if cell_type is None and len(found) > 1:
        problem = f"share several cell types ({listed(found)})"
        remedy = "Pass cell_type=..., one call for each."
        raise ValueError(unusable("The objects", "to_cell_eval", problem, remedy))
    chosen = found[0] if cell_type is None else str(cell_type)
    if chosen not in found:
        raise KeyError(absent("Cell type", chosen, "the shared conditions", found, "Correct cell_type=..."))
    panel = [pair for pair in pairs if pair.cell_type == chosen]
    for side, cells in (("real", observed), ("predicted", guessed)):
        of_type = [p for p, t in cells.conditions() if t == chosen and p != reference.keys.control]
        if len(of_type) > len(panel):
            logger.info("%d of %d %s conditions are left out.", len(of_type) - len(panel), len(of_type), side)
    return panel


def _controls(observed: Cells, cell_type: str, reference: Reference) -> np.ndarray:
    """Return the rows of the real control cells."""
    control = reference.keys.control
    rows = observed.conditions().get((control, cell_type))
    if rows is None:
        place = f"the cells of {cell_type!r} in real.obs[{reference.keys.perturbation_key!r}]"
        found = sorted(set(observed.labels["perturbation"].dropna()))
        raise ValueError(absent("Control label", control, place, found, "Keep the control cells in real."))
    return rows


def _count_reader(real: AnnData, layer: str, reference: Reference) -> CellReader:
    """Return the raw counts of the real cells, genes in the order of the reference."""
    if layer not in real.layers:
        raise KeyError(absent("Layer", layer, "real.layers", real.layers, "Name the layer of raw counts."))
    reader = CellReader(as_row_matrix(real.layers[layer]), place_in(real, reference, place="real"))
    if not all(((values >= 0) & (values == np.rint(values))).all() for values in reader.values()):
        problem = "holds values that are no counts"  # negative or fractional
        raise ValueError(unusable("Layer", f"real.layers[{layer!r}]", problem, "Name the layer of raw counts."))
    return reader


def _size_factors(counts: np.ndarray, logged: np.ndarray) -> np.ndarray:
    """Return size factors (n,): counts per unit of expm1.

    They do not depend on the total that the cells were normalised to, nor on the genes that were counted for it.

    Parameters
    ----------
    counts, logged
        Raw counts and log1p expression of the same cells (n, G).
    """
    units = np.expm1(np.maximum(logged, 0)).sum(1)  # (n,)
    if not (units > 0).all():
        problem = "hold no expression in some cells"
        raise ValueError(unusable("The control cells", "real", problem, "Leave empty cells out."))
    return counts.sum(1) / units


def _cells(matrix: np.ndarray, obs: pd.DataFrame, reference: Reference) -> AnnData:
    obs = obs.rename(columns={"perturbation": TARGET})
    obs = obs.apply(lambda column: pd.Categorical(column.astype(str)))
    adata = AnnData(
        sp.csr_matrix(matrix.astype(np.float32)), obs=obs, var=pd.DataFrame(index=reference.genes.astype(str))
    )
    adata.obs_names_make_unique()  # a predicted cell can have the name of its control cell
    return adata


def _settings(panel: list[Pair], counts: str, reference: Reference) -> dict[str, Any]:
    """Return the settings that cell-eval2 needs, such as the target gene of a label that is not itself a gene."""
    settings: dict[str, Any] = {
        "pert_col": TARGET,
        "control": reference.keys.control,
        "input_type": "lognorm" if counts == "log1p" else "counts",
    }
    genes = set(reference.genes.astype(str))
    targets = {}
    for label in dict.fromkeys(pair.perturbation for pair in panel):
        if label not in genes:
            measured = [gene for gene in components(label, reference.keys.sep) if gene in genes]
            targets[label] = next(iter(measured), None)  # cell-eval2 takes one gene; None if no gene is measured
    if targets:
        settings["target_gene_map"] = targets
    if counts == "decode":
        settings["allow_fractional_counts"] = True
    return settings
