"""How does an AnnData or MuData enter the package?

``read_screen`` turns an object that was set up (or a new one, with the keys of a trained model) into a :class:`Screen`
of arrays.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scvi import REGISTRY_KEYS
from scvi.data.fields import BaseAnnDataField, CategoricalObsField, LayerField, MuDataLayerField, MuDataWrapper

from ptrag_sc._constants import CELL_TYPE_FIELD, PERTURBATION_FIELD, SETUP_KEY
from ptrag_sc._validation import absent, listed, unusable
from ptrag_sc.data._cell_labels import read_index
from ptrag_sc.data._conditions import UNLABELLED, ConditionIndex
from ptrag_sc.data._gene_names import MissingGenes, gene_names, place_genes
from ptrag_sc.data._labels import read_labels, read_optional_labels
from ptrag_sc.data._lazy import load_tables
from ptrag_sc.data._reader import CellReader, Collector, Held, as_row_matrix, go_over
from ptrag_sc.data._scale import NO_VALUES, Look, Values, check_expression, log_base

AnnOrMuData: TypeAlias = AnnData | MuData


@dataclass(frozen=True)
class ScreenKeys:
    """Where everything is in the object: the arguments of ``setup_anndata`` and ``setup_mudata``."""

    perturbation_key: str
    control: str
    cell_type_key: str
    batch_key: str | None = None
    split_key: str | None = None
    embedding_key: str = "gene_embedding"
    layer: str | None = None
    sep: str | None = "+"
    counts_layer: str | None = None
    time_key: str | None = None
    start: str | None = None
    modalities: dict[str, str] = field(default_factory=dict)
    gene_symbols: str | None = None
    further_controls: tuple[str, ...] = ()  # other labels of control cells; ``control`` names them all

    @property
    def controls(self) -> tuple[str, ...]:
        """All labels of control cells, the name of the control first."""
        return (self.control, *self.further_controls)

    def to_uns(self) -> dict[str, Any]:
        """Return what can be written to h5ad, zarr and JSON."""
        # None cannot be stored; a separator is never empty, so that "" can stand for none.
        stored = {**asdict(self), "sep": self.sep or "", "further_controls": list(self.further_controls)}
        return {name: value for name, value in stored.items() if value is not None and value not in ({}, [])}

    @classmethod
    def from_uns(cls, stored: Mapping[str, Any]) -> "ScreenKeys":
        """Return the keys among what :meth:`to_uns` returned, which may hold other entries too."""
        found = {name: stored[name] for name in cls.__dataclass_fields__ if name in stored}
        found["sep"] = str(found.get("sep", "+")) or None
        found["further_controls"] = tuple(str(name) for name in found.get("further_controls", ()))
        return cls(**found)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of ``setup_anndata`` or ``setup_mudata`` that give these keys."""
        given = {name: value for name, value in asdict(self).items() if name != "further_controls" and value != {}}
        return {**given, "control": list(self.controls)}

    @classmethod
    def of(cls, adata: AnnOrMuData) -> "ScreenKeys":
        """Return the keys that the object was set up with.

        Raises
        ------
        ValueError
            If it was not set up.
        """
        if SETUP_KEY not in adata.uns:
            remedy = (
                "Call ptrag_sc.PTRAG.setup_anndata(adata, perturbation_key=..., control=..., cell_type_key=...) first."
            )
            raise ValueError(unusable("This object", "memory", "was not set up for ptrag_sc", remedy))
        return cls.from_uns(adata.uns[SETUP_KEY])

    def container(self, adata: AnnOrMuData, argument: str) -> AnnOrMuData:
        """Return the object that holds the field of one setup argument: a modality of a MuData, or the object."""
        if isinstance(adata, AnnData) or argument not in self.modalities:
            return adata
        name = self.modalities[argument]
        if name not in adata.mod:
            raise KeyError(absent("Modality", name, "mdata.mod", adata.mod, f"Correct modalities[{argument!r}]."))
        return adata.mod[name]

    def expression_holder(self, adata: AnnOrMuData) -> AnnData:
        """Return the AnnData whose matrix is the expression."""
        holder = self.container(adata, "layer")
        if not isinstance(holder, AnnData):
            first = next(iter(holder.mod), "rna")
            remedy = (
                f"Pass the modality of the RNA, for example mdata[{first!r}], or set it up with "
                "ptrag_sc.PTRAG.setup_mudata(mdata, ..., modalities={'layer': <modality of the RNA>})."
            )
            raise ValueError(unusable("Expression", "the MuData", "is not located", remedy))
        # Rows are row numbers from here on, so one order must hold for labels and expression.
        if holder.n_obs != adata.n_obs or not (holder.obs_names == adata.obs_names).all():
            problem = "does not hold the same cells in the same order as the MuData"
            raise ValueError(unusable("The expression modality", "mdata.mod", problem, "Subset both to shared cells."))
        return holder

    @property
    def expression_place(self) -> str:
        """Name of the registered matrix, for messages."""
        if self.layer is None:
            return "adata.X"
        return f"adata.layers[{self.layer!r}]"


class OpenLabelField(CategoricalObsField):
    """A categorical obs column of any type, in which new labels may appear after training.

    New data may have perturbations, cell types and batches that the model never saw: the package looks names up and
    never uses the codes of the registry. Labels are registered as text, because scvi-tools cannot sort labels of
    several types.
    """

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Write a code for each cell and return the labels."""
        return self._registered(adata, [])

    def transfer_field(self, state_registry: dict[str, Any], adata_target: AnnData, **kwargs: Any) -> dict[str, Any]:
        """Transfer the field and accept labels that the source did not have."""
        return self._registered(adata_target, state_registry[self.CATEGORICAL_MAPPING_KEY])

    def _registered(self, adata: AnnData, known: Iterable[object]) -> dict[str, Any]:
        if self.is_default:  # no column was named: one label for all cells
            return super().register_field(adata)
        self.validate_field(adata)
        labels = read_labels(adata.obs, self._original_attr_key)
        names = dict.fromkeys([*(str(name) for name in known), *sorted(set(labels))])
        adata.obs[self.attr_key] = pd.Index(list(names)).get_indexer(labels)
        mapping = np.array(list(names), dtype=object)
        return {self.CATEGORICAL_MAPPING_KEY: mapping, self.ORIGINAL_ATTR_KEY: self._original_attr_key}


# scvi-tools finds the modality of a field through this wrapper.
MuDataOpenLabelField = MuDataWrapper(OpenLabelField)


def scvi_fields(keys: ScreenKeys, *, mudata: bool) -> list[BaseAnnDataField]:
    """Return the fields of the scvi registry for one set of keys."""
    columns = {
        "perturbation_key": (PERTURBATION_FIELD, keys.perturbation_key),
        "cell_type_key": (CELL_TYPE_FIELD, keys.cell_type_key),
        "batch_key": (REGISTRY_KEYS.BATCH_KEY, keys.batch_key),
    }
    # is_count_data=False, because scvi-tools would warn about values that are not whole numbers.
    if not mudata:
        labels = [OpenLabelField(name, column) for name, column in columns.values()]
        return [LayerField(REGISTRY_KEYS.X_KEY, keys.layer, is_count_data=False), *labels]
    labels = [
        MuDataOpenLabelField(name, column, mod_key=keys.modalities.get(argument))
        for argument, (name, column) in columns.items()
    ]
    layer = MuDataLayerField(
        REGISTRY_KEYS.X_KEY, keys.layer, is_count_data=False, mod_key=keys.modalities.get("layer"), mod_required=True
    )
    return [layer, *labels]


@dataclass(frozen=True)
class Screen:
    """A Perturb-seq screen as arrays: all that the package keeps of an AnnData.

    Parameters
    ----------
    reader
        Expression rows, genes in the order of ``genes``.
    index
        Cells as integers.
    genes
        Gene names (G,).
    names
        Cell names (n,), unique.
    counts
        Raw counts of the same cells and genes; None where no layer of counts is registered or the object lacks it.
    values
        What the values of the expression look like.
    """

    reader: CellReader
    index: ConditionIndex
    genes: np.ndarray
    names: np.ndarray
    counts: CellReader | None = None
    values: Values = NO_VALUES


def read_screen(
    adata: AnnOrMuData,
    keys: ScreenKeys,
    *,
    genes: np.ndarray | None = None,
    query: bool = False,
    missing_genes: MissingGenes | None = None,
    collect: Sequence[Collector] = (),
) -> Screen:
    """Read and validate a screen, in one pass over its matrix.

    Parameters
    ----------
    adata
        The object; it is not changed, but tables that were read lazily are loaded.
    keys
        Where everything is in it.
    genes
        Genes (G,) of a trained model: columns are put into this order. None takes the object's own.
    query
        Whether predictions start from it; see :func:`read_index`.
    missing_genes
        For genes that it lacks, see :func:`place_genes`.
    collect
        What else learns from the pass.

    Raises
    ------
    KeyError
        If a column, layer or modality does not exist, or genes are missing.
    TypeError
        If the object is something else.
    ValueError
        If the control label does not occur, labels, times or expression are unusable, or names are not unique.
    """
    if not isinstance(adata, AnnOrMuData):
        remedy = "Pass the object, read with anndata.read_h5ad for example; in tl functions the data come first."
        raise TypeError(unusable(repr(adata)[:60], "the place of the data", "is no AnnData or MuData", remedy))
    load_tables(adata)
    holder = keys.expression_holder(adata)
    reader, genes_read = _open_expression(holder, keys, genes, missing_genes)
    index = read_index(adata, keys, query=query)
    # Prediction sets are ordered by a hash of the cell names, so that the order of rows does not matter.
    _check_unique("Cell names", "obs_names", holder.obs_names)
    counts = None
    if keys.counts_layer is not None and keys.counts_layer in holder.layers:
        counts = replace(reader, matrix=as_row_matrix(holder.layers[keys.counts_layer]))
    look = Look()
    # Every set needs control cells, so these are kept in memory.
    held = None if reader.in_memory else Held(np.flatnonzero(index.is_control | index.is_source))
    go_over(reader, [look, *([] if held is None else [held]), *collect], text="Reading")
    given: Any = {"place": keys.expression_place, "declared": keys.layer is not None, "query": genes is not None}
    check_expression(reader, base=log_base(holder.uns), found=look.found, **given)
    if held is not None:
        reader = reader.holding(held)
    return Screen(reader, index, genes_read, holder.obs_names.to_numpy(dtype=object), counts, look.found)


def _open_expression(
    holder: AnnData, keys: ScreenKeys, genes: np.ndarray | None, missing_genes: MissingGenes | None
) -> tuple[CellReader, np.ndarray]:
    """Return the matrix, whose values are yet to be checked, and its genes (G,), in the order of ``genes`` if given."""
    _check_unique("Gene names", "var_names", holder.var_names)
    if keys.layer is not None and keys.layer not in holder.layers:
        remedy = "Pass layer=<an existing layer>."
        if genes is not None:
            remedy = "The model was set up with this layer: add it, on the same scale."
        raise KeyError(absent("Layer", keys.layer, "adata.layers", holder.layers, remedy))
    matrix = holder.X
    if keys.layer is not None:
        matrix = holder.layers[keys.layer]
    if matrix is None:
        remedy = "Put log1p of normalised counts into it."
        if genes is None:
            remedy = "Put log1p of normalised counts into X, or pass layer=..."
        raise ValueError(unusable("Expression", keys.expression_place, "is missing", remedy))
    own = gene_names(holder, keys.gene_symbols, required=genes is None)
    columns = None
    if genes is not None and not np.array_equal(own, genes):
        columns = place_genes(holder, own, genes, missing_genes)
    return CellReader(as_row_matrix(matrix), columns), own if genes is None else np.asarray(genes)


def _check_unique(what: str, place: str, names: pd.Index) -> None:
    if not names.is_unique:
        problem = f"are not unique ({listed(names[names.duplicated()].unique())})"
        raise ValueError(unusable(what, f"adata.{place}", problem, f"Call adata.{place}_make_unique()."))


def read_split(adata: AnnOrMuData, keys: ScreenKeys) -> np.ndarray | None:
    """Return the split label of every cell (n,), or None if no ``split_key`` was registered.

    Control cells need no label; :func:`condition_split` refuses perturbed cells without one.
    """
    if keys.split_key is None:
        return None
    obs = keys.container(adata, "split_key").obs
    return read_optional_labels(obs, keys.split_key, missing=UNLABELLED).astype(str)
