"""Which change of which genes does a user want, in whatever form it is given?"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from ptrag_sc._validation import listed, unusable
from ptrag_sc.data import CellReader, Predictor, Screen
from ptrag_sc.data._gene_names import gene_names, why_unknown
from ptrag_sc.data._reader import as_row_matrix
from ptrag_sc.data._scale import check_expression, log_base
from ptrag_sc.data._shifts import sampled_means

logger = logging.getLogger(__name__)

LISTS = {"up": 1.0, "down": -1.0}
# Columns of tables of differential expression: of genes, of their change, of what the rows of one signature share.
TABLES = {"scanpy": ("names", "scores", "group"), "pertpy": ("variable", "log_fc", "contrast")}
REMEDY = (
    "Pass a Series of genes, a table of sc.get.rank_genes_groups_df or of pertpy, {'up': [...], 'down': [...]}, a pair "
    "of groups of cells (wanted, present), or several of these in a dict."
)


class Signatures(NamedTuple):
    """S wanted changes of the genes (G,) of a model."""

    names: list[str]
    values: np.ndarray  # (S, G), 0 where a gene does not count
    counted: np.ndarray  # (S, G) whether a gene counts
    scaled: np.ndarray  # (S,) False for lists of genes, whose values mean only a direction


class _One(NamedTuple):
    """One signature as it was given."""

    values: pd.Series  # number of each gene
    is_list: bool = False


def read_signatures(signature: object, model: Predictor, screen: Screen, adata: AnnData) -> Signatures:
    """Return signatures in the genes of a model.

    In a list of genes that shall rise and fall all other genes shall not change. In the other forms genes that the
    signature lacks do not count.

    Parameters
    ----------
    signature
        As in :func:`ptrag_sc.tl.rank_perturbations`.
    model
        The model.
    screen, adata
        Cells that masks refer to.

    Raises
    ------
    TypeError
        If the form is unknown.
    ValueError
        If a signature has no change of any gene of the model, or names a gene twice.
    """
    cells = _Cells(model, screen, adata)
    found = dict(_named(signature, cells))
    if not found:
        raise ValueError(unusable("signature", "the request", "is empty", REMEDY))
    genes = pd.Index(model.genes_.astype(str))
    values = np.zeros((len(found), len(genes)))
    counted = np.zeros(values.shape, dtype=bool)
    for row, (name, one) in enumerate(found.items()):
        counted[row], values[row] = _in_genes(name, one, genes)
    return Signatures(list(found), values, counted, np.array([not one.is_list for one in found.values()]))


def _in_genes(name: str, one: _One, genes: pd.Index) -> tuple[np.ndarray, np.ndarray]:
    """Return which genes (G,) of the model count in a signature, and their values (G,)."""
    what = f"Signature {name!r}"
    given = one.values
    if given.index.duplicated().any():
        twice = listed(given.index[given.index.duplicated()].unique())
        remedy = "Keep one value for each gene, for example its mean: signature.groupby(level=0).mean()."
        raise ValueError(unusable(what, "the request", f"names genes more than once ({twice})", remedy))
    finite = np.isfinite(given.to_numpy(float))
    if not finite.all():
        logger.warning(f"{what}: {(~finite).sum()} genes have no finite number and do not count")
        given = given[finite]
    lacking = given.index[~given.index.isin(genes)]
    if len(lacking):
        share = 1 - len(lacking) / len(given)
        logger.warning(
            f"{what}: {len(lacking)} of {len(given)} genes were not measured and do not count ({listed(lacking)}); "
            f"{share:.0%} are kept"
        )
    place = genes.get_indexer(given.index)
    known = place >= 0
    values = np.zeros(len(genes))
    values[place[known]] = given.to_numpy(float)[known]
    if not values.any():
        problem = "has no change of any gene that was measured"
        remedy = f"Use the names in model.genes_, such as {listed(genes[:2])}."
        if why := why_unknown(given.index, genes):
            remedy = f"Use the names in model.genes_: {why}."
        raise ValueError(unusable(what, "the request", problem, remedy))
    counted = np.full(len(genes), one.is_list)
    counted[place[known]] = True
    return counted, values


class _Cells(NamedTuple):
    """Where groups of cells are read from."""

    model: Predictor
    screen: Screen
    adata: AnnData

    def difference(self, wanted: object, present: object) -> pd.Series:
        """Return mean(wanted) - mean(present) of each gene, on the registered scale."""
        return self._mean(wanted) - self._mean(present)

    def _mean(self, group: object) -> pd.Series:
        if isinstance(group, AnnData):
            layer = self.model.keys_.layer
            matrix = group.X if layer is None else group.layers[layer]
            if not group.n_obs:
                raise ValueError(unusable("A group of cells", "signature", "is empty", "Choose at least one cell."))
            reader = CellReader(as_row_matrix(matrix))
            check_expression(reader, place="a group of cells", declared=layer is not None, base=log_base(group.uns))
            names = gene_names(group, self.model.keys_.gene_symbols)
            return pd.Series(sampled_means(reader, [np.arange(group.n_obs)])[0], index=names)
        mask = np.asarray(group)
        if mask.dtype != bool or mask.shape != (self.adata.n_obs,):
            problem = f"is no boolean mask of the {self.adata.n_obs} cells of adata (it has shape {mask.shape})"
            raise ValueError(unusable("A group of cells", "signature", problem, "Pass adata.obs[...] == ..."))
        rows = np.flatnonzero(mask)
        if not len(rows):
            raise ValueError(unusable("A group of cells", "signature", "is empty", "Choose at least one cell."))
        total = sum(cells.sum(0, dtype=np.float64) for _, cells in self.screen.reader.chunks(rows))
        return pd.Series(total / len(rows), index=self.model.genes_.astype(str))


def _named(signature: object, cells: _Cells, name: str = "signature") -> Iterator[tuple[str, _One]]:
    """Yield every signature with its name."""
    if isinstance(signature, pd.Series):
        yield name, _One(_of_genes(signature))
    elif isinstance(signature, pd.DataFrame):
        yield from _of_frame(signature, name)
    elif isinstance(signature, Mapping) and signature and set(signature) <= set(LISTS):
        yield name, _of_lists(signature)
    elif isinstance(signature, Mapping) and signature and all(map(_is_number, signature.values())):
        yield name, _One(_of_genes(pd.Series(dict(signature), dtype=float)))
    elif isinstance(signature, Mapping):
        for key, one in signature.items():
            yield from _named(one, cells, str(key))
    elif isinstance(signature, Sequence) and not isinstance(signature, str) and len(signature) == 2:
        yield name, _One(cells.difference(*signature))
    else:
        shown = f"signature={type(signature).__name__}"
        raise TypeError(unusable(shown, "the request", "is no signature", REMEDY))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _of_genes(values: pd.Series) -> pd.Series:
    return pd.Series(values.to_numpy(float, na_value=np.nan), index=values.index.astype(str))


def _of_lists(lists: Mapping[str, object]) -> _One:
    """Return +1 for genes that shall rise, -1 for those that shall fall."""
    parts = []
    for side, genes in lists.items():
        if isinstance(genes, str) or not isinstance(genes, Sequence | pd.Index | np.ndarray | pd.Series | set):
            problem = f"holds {type(genes).__name__} under {side!r}"
            raise TypeError(unusable("signature", "the request", problem, f"Pass {{{side!r}: [<genes>]}}."))
        names = dict.fromkeys(str(gene) for gene in genes)  # a gene twice in one list is still one gene
        parts.append(pd.Series(LISTS[side], index=list(names), dtype=float))
    return _One(pd.concat(parts), is_list=True)


def _of_frame(table: pd.DataFrame, name: str) -> Iterator[tuple[str, _One]]:
    """Yield the signatures of a table of differential expression, or else of the columns of a table of genes."""
    for gene, change, group in TABLES.values():
        if {gene, change} <= set(table):
            parts = {name: table}
            if group in table and table[group].nunique() > 1:
                parts = {str(key): part for key, part in table.groupby(group, observed=True)}
            for key, part in parts.items():
                yield key, _One(_of_genes(part.set_index(gene)[change]))
            return
    strange = [str(column) for column in table if not pd.api.types.is_numeric_dtype(table[column])]
    if strange:
        problem = f"has columns that are not numbers ({listed(strange)})"
        raise ValueError(unusable("The table", "signature", problem, "Set genes as index; keep only numbers."))
    for column in table:
        yield str(column), _One(_of_genes(table[column]))
