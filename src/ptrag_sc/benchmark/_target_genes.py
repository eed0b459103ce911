"""Which genes are the perturbed ones themselves, and so left out of a comparison?"""

import logging
from collections.abc import Iterable

import numpy as np

from ptrag_sc.benchmark._pairing import Pair, place_in
from ptrag_sc.data import components
from ptrag_sc.data._fields import AnnOrMuData
from ptrag_sc.data._gene_names import column_with, gene_names, unmeasured_targets
from ptrag_sc.data._mudata import as_anndata
from ptrag_sc.metrics import Reference

logger = logging.getLogger(__name__)


def target_names(real: AnnOrMuData, reference: Reference, column: str | None) -> np.ndarray:
    """Return the names (G,) of the genes of the reference by which perturbations are labelled.

    Parameters
    ----------
    real
        Observed cells.
    reference
        The genes.
    column
        Column of ``real.var`` with the names; None: the names in the reference.

    Raises
    ------
    KeyError
        If the column does not exist.
    """
    if column is None:
        return reference.genes
    adata = as_anndata(real, reference.keys)
    return gene_names(adata, column, required=True)[place_in(adata, reference, place="real")]


def perturbed_genes(labels: Iterable[str], names: np.ndarray, sep: str | None) -> np.ndarray:
    """Return whether each gene (G,) is perturbed in one of the conditions."""
    targets = {gene for label in labels for gene in components(label, sep)}
    return np.array([name in targets for name in names], dtype=bool)


def warn_of_unmeasured(real: AnnOrMuData, pairs: list[Pair], reference: Reference, names: np.ndarray) -> None:
    """Log a warning if no perturbed gene can be left out, because none is among the genes."""
    labels = [pair.perturbation for pair in pairs]
    text = unmeasured_targets(labels, names, reference.keys.sep)
    if not text:
        return
    targets = {gene for label in labels for gene in components(label, reference.keys.sep)}
    found = column_with(as_anndata(real, reference.keys).var, targets)
    column = repr(found) if found else "<the column of real.var with their names>"
    logger.warning("%s: no perturbed gene is left out. Pass gene_symbols=%s if they have other names.", text, column)
