"""Which genes do the names of an object stand for, and why are genes not found under their names?"""

import logging
import re
from collections.abc import Iterable
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData

from ptrag_sc._validation import absent, listed, unusable
from ptrag_sc.data._labels import as_names, components

ENSEMBL = re.compile(r"ENS[A-Z]{0,6}G\d{6,}(\.\d+)?")
SHARE = 0.5  # of some genes that another column of var must hold, to be named in a remedy
MissingGenes: TypeAlias = Literal["error", "zero"]
MISSING = ("error", "zero")

logger = logging.getLogger(__name__)


def gene_names(holder: AnnData, column: str | None, *, required: bool = False) -> np.ndarray:
    """Return the names (G,) of the genes of an object: a column of ``var``, or ``var_names``.

    A gene whose name in the column is missing, blank, or that of several genes keeps its name in ``var_names``.

    Parameters
    ----------
    holder
        The object.
    column
        Column of ``var`` with the names; None: ``var_names``.
    required
        Whether the column must exist. If not, an object without it has the names in ``var_names``.

    Raises
    ------
    KeyError
        If the column is required and does not exist.
    """
    own = as_names(holder.var_names)
    if column is None:
        return own
    if column not in holder.var:
        if not required:
            return own
        remedy = "Pass gene_symbols=<a column of adata.var>."
        raise KeyError(absent("Column", column, "adata.var", holder.var.columns, remedy))
    named = holder.var[column]
    text = named.astype(str).str.strip()
    unclear = (named.isna() | (text == "") | text.duplicated(keep=False)).to_numpy(dtype=bool)
    return np.where(unclear, own, as_names(text))


def kind(names: Iterable[str]) -> str:
    """Return what most names are, in words.

    Examples
    --------
    >>> kind(["ENSG00000115415", "ENSMUSG00000026104.5"]), kind(["STAT1"])
    ('Ensembl identifiers', 'symbols')
    """
    names = list(names)
    n_ensembl = sum(ENSEMBL.fullmatch(name) is not None for name in names)
    return "Ensembl identifiers" if names and n_ensembl > len(names) / 2 else "symbols"


def why_unknown(wanted: Iterable[str], known: Iterable[str]) -> str:
    """Return why none of the wanted genes is known, where their names say so; else an empty text.

    Examples
    --------
    >>> why_unknown(["STAT1"], ["ENSG00000115415"])
    "'STAT1' are symbols, 'ENSG00000115415' are Ensembl identifiers"
    >>> why_unknown(["Stat1"], ["STAT1", "JAK2"])
    "'Stat1' and 'STAT1' differ in upper and lower case only"
    """
    wanted, known = list(wanted), list(known)
    if not wanted or not known:
        return ""
    kinds = kind(wanted), kind(known)
    if kinds[0] != kinds[1]:
        return f"{listed(wanted[:2])} are {kinds[0]}, {listed(known[:2])} are {kinds[1]}"
    found = _pair([name.casefold() for name in wanted], [name.casefold() for name in known])
    words = "differ in upper and lower case only"
    if found is None and kinds[0] != "symbols":
        found = _pair([name.partition(".")[0] for name in wanted], [name.partition(".")[0] for name in known])
        words = "differ in the version of the identifier only"
    return "" if found is None else f"{wanted[found[0]]!r} and {known[found[1]]!r} {words}"


def _pair(first: list[str], second: list[str]) -> tuple[int, int] | None:
    """Return the positions of the first name that is in both lists; None if there is none."""
    place = {name: i for i, name in enumerate(second)}
    return next(((i, place[name]) for i, name in enumerate(first) if name in place), None)


def column_with(var: pd.DataFrame, wanted: Iterable[str]) -> str | None:
    """Return the column of ``var`` that holds most of some genes, None if there is none."""
    wanted = set(wanted)
    best, most = None, SHARE * len(wanted)
    for column in var.columns:
        n_found = len(wanted & set(var[column].astype(str)))
        if n_found > most or (n_found == most and best is None and n_found):
            best, most = str(column), n_found
    return best


def var_of(holder: AnnData, column: str | None, genes: np.ndarray) -> pd.DataFrame:
    """Return the rows of ``var`` of a model's genes (G,), under the names that the object gives them."""
    place = pd.Index(gene_names(holder, column)).get_indexer(genes)  # (G,)
    if (place >= 0).all():
        return holder.var.iloc[place].copy()
    lacking = place < 0
    var = holder.var.set_axis(gene_names(holder, column)).reindex(genes)
    var.index = pd.Index(np.where(lacking, genes, as_names(holder.var_names)[place]))
    if column in var:
        var[column] = np.where(lacking, genes, var[column].astype(object))
    return var


def place_genes(holder: AnnData, own: np.ndarray, genes: np.ndarray, missing: MissingGenes | None) -> np.ndarray:
    """Return where each gene of a model (G,) is in an object, -1 for one that it lacks.

    Parameters
    ----------
    holder, own
        The object and the names of its genes.
    genes
        Genes of the model.
    missing
        ``"error"``: none may be lacking. ``"zero"``: their expression counts as 0, and they are named in a warning.
        None: none may be lacking, and the function that was called has no such argument.

    Raises
    ------
    KeyError
        If genes are lacking.
    ValueError
        If ``missing`` is another value, or no gene is there.
    """
    if missing not in (None, *MISSING):
        raise ValueError(absent("missing_genes=", missing, "the known values", MISSING, "Pass one of them."))
    column = pd.Index(own).get_indexer(genes)  # (G,)
    lacking = np.asarray(genes)[column < 0]
    if not len(lacking):
        return column
    problem = f"lacks {len(lacking)} of the model's {len(genes)} genes ({listed(lacking)})"
    if missing == "zero" and len(lacking) < len(genes):
        logger.warning("The gene set in adata.var_names %s; their expression counts as 0.", problem)
        return column
    remedy = "Predict on data with the genes that the model was trained on (model.genes_)"
    if missing == "error" and len(lacking) < len(genes):
        remedy += ", or pass missing_genes='zero'"
    if why := why_unknown(lacking, own):
        remedy = f"Name the genes as in model.genes_: {why}"
        if found := column_with(holder.var, lacking):
            remedy += f"; adata.var_names = adata.var[{found!r}] does so"
    raise KeyError(unusable("The gene set", "adata.var_names", problem, f"{remedy}."))


def unmeasured_targets(labels: Iterable[str], genes: np.ndarray, sep: str | None) -> str:
    """Return why no perturbed gene is among the genes that were measured; empty if some are, or none is asked for."""
    targets = sorted({gene for label in labels for gene in components(label, sep)})
    measured = set(genes.tolist())
    if not targets or not measured.isdisjoint(targets):
        return ""
    why = why_unknown(targets, genes.tolist())
    text = f"None of the {len(targets)} perturbed genes is among the genes that were measured"
    return f"{text} ({why})" if why else f"{text} ({listed(targets[:2])}; measured: {listed(genes[:2])})"


def warn_of_targets(holder: AnnData, labels: Iterable[str], genes: np.ndarray, sep: str | None) -> None:
    """Log a warning if the perturbed genes are measured under other names, with the column that has theirs."""
    targets = {gene for label in labels for gene in components(label, sep)}
    text = unmeasured_targets(labels, genes, sep)
    if not text or not why_unknown(targets, genes.tolist()):
        return
    column = column_with(holder.var, targets)
    remedy = "Pass gene_symbols=<the column of adata.var with their names>."
    if column is not None:
        remedy = f"Pass gene_symbols={column!r}."
    text += ", so what a perturbation does to its own gene is not told from its other effects"
    logger.warning("%s. %s", text, remedy)
