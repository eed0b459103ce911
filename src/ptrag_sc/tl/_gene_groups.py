"""Which genes belong together: by a column of var, a file in GMT format, or names?"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd

from ptrag_sc._validation import absent, listed, unusable

logger = logging.getLogger(__name__)

OTHER = "other"
GeneGroups: TypeAlias = str | Path | Mapping[str, Iterable[str]] | None


def read_groups(groups: GeneGroups, var: pd.DataFrame, genes: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Return names of groups and which genes are in each (M, G); genes in none are in the last, ``"other"``.

    Parameters
    ----------
    groups
        A column of ``var``, a path of a GMT file, or names of genes by name of group. None: one group of all genes.
    var
        Its index holds gene names.
    genes
        Genes (G,) of the result, all of them in ``var``.

    Raises
    ------
    KeyError
        If the text names neither a column nor a file.
    ValueError
        If a file cannot be read as GMT, or no gene is in a group.
    """
    if groups is None:
        return ["all"], np.ones((1, len(genes)), dtype=bool)
    if isinstance(groups, Mapping):
        sets = {str(name): set(map(str, members)) for name, members in groups.items()}
        place = "groups="
    elif str(groups) in var:
        sets = _by_column(var[str(groups)])
        place = f"adata.var[{str(groups)!r}]"
    elif Path(groups).is_file():
        sets = _read_gmt(Path(groups))
        place = str(groups)
    else:
        what = "Column or file"
        remedy = "Pass groups=<a column of adata.var, or the path of a GMT file>."
        raise KeyError(absent(what, groups, "adata.var and on disk", var.columns, remedy))
    member = np.array([[gene in names for gene in genes.tolist()] for names in sets.values()], dtype=bool)
    member = member.reshape(len(sets), len(genes))  # (M, G), also without groups
    kept = member.sum(1) > 0
    if not kept.any():
        problem = f"hold none of the {len(genes)} genes (genes: {listed(genes)})"
        remedy = "Name genes as in adata.var_names, for example by symbol."
        raise ValueError(unusable("The groups", place, problem, remedy))
    if not kept.all():
        logger.info("%d groups hold none of the genes and are left out.", (~kept).sum())
    names = [name for name, is_kept in zip(sets, kept, strict=True) if is_kept]
    member = member[kept]
    without = member.sum(0) == 0
    if without.any():
        if OTHER in names:
            member[names.index(OTHER)] |= without
        else:
            names, member = [*names, OTHER], np.vstack([member, without])
    return names, member


def _by_column(column: pd.Series) -> dict[str, set[str]]:
    """Return the genes of every value; those that are True, if the column is a mask."""
    if column.dtype == bool:
        return {str(column.name): set(column.index[column].astype(str))}
    column = column[column.notna()]
    return {
        str(value): set(column.index[rows].astype(str))
        for value, rows in column.groupby(column, observed=True).indices.items()
    }


def _read_gmt(path: Path) -> dict[str, set[str]]:
    """Return the gene sets of a file: one set a line, its name, a description, and its genes, separated by tabs."""
    sets = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        name, *rest = line.split("\t")
        if len(rest) < 2:
            problem = f"has no genes in line {number}"
            remedy = "A GMT file holds name, description and genes in each line, separated by tabs."
            raise ValueError(unusable("The file", str(path), problem, remedy))
        sets[name.strip()] = {gene.strip() for gene in rest[1:] if gene.strip()}
    if not sets:
        remedy = "Pass a GMT file with a set in each line."
        raise ValueError(unusable("The file", str(path), "is empty", remedy))
    return sets
