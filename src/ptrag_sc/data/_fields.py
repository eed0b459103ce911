"""How does an AnnData or MuData enter the package?

``read_screen`` turns an object that was set up (or a new one, with the keys of a trained model) into a :class:`Screen`
of arrays.
"""

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
from ptrag_sc.data._conditions import ConditionIndex, as_names, read_labels, read_perturbations
from ptrag_sc.data._reader import CellReader, as_row_matrix
from ptrag_sc.data._times import read_start

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
    sep: str = "+"
    counts_layer: str | None = None
    time_key: str | None = None
    start: str | None = None
    modalities: dict[str, str] = field(default_factory=dict)

    def to_uns(self) -> dict[str, object]:
        """Return what can be written to h5ad and zarr (no None)."""
        # h5ad and zarr cannot store None.
        return {k: v for k, v in asdict(self).items() if v not in (None, {})}

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
        return cls(**adata.uns[SETUP_KEY])

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
            remedy = "Pass modalities={'layer': <modality of the RNA>}."
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
    """A categorical obs column in which new labels may appear after training.

    New data may have perturbations, cell types and batches that the model never saw: the package looks names up and
    never uses the codes of the registry.
    """

    def transfer_field(self, state_registry: dict[str, Any], adata_target: AnnData, **kwargs: Any) -> dict[str, Any]:
        """Transfer the field and accept labels that the source did not have."""
        return super().transfer_field(state_registry, adata_target, **{**kwargs, "extend_categories": True})


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
    """

    reader: CellReader
    index: ConditionIndex
    genes: np.ndarray
    names: np.ndarray
    counts: CellReader | None = None


def read_screen(adata: AnnOrMuData, keys: ScreenKeys, *, genes: np.ndarray | None = None) -> Screen:
    """Read and validate a screen.

    Parameters
    ----------
    adata
        The object; it is not changed.
    keys
        Where everything is in it.
    genes
        Genes (G,) of a trained model: columns are put into this order. None takes the object's own.

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
    holder = keys.expression_holder(adata)
    reader, genes = _read_expression(holder, keys, genes)
    obs = {name: keys.container(adata, name).obs for name in ("perturbation_key", "cell_type_key", "batch_key")}
    batch = None
    if keys.batch_key is not None:
        batch = read_labels(obs["batch_key"], keys.batch_key)
    labels = read_perturbations(obs["perturbation_key"], keys.perturbation_key, control=keys.control, sep=keys.sep)
    times = keys.container(adata, "time_key").obs
    index = ConditionIndex.from_labels(
        labels,
        read_labels(obs["cell_type_key"], keys.cell_type_key),
        batch,
        control=keys.control,
        start=read_start(times, keys.time_key, keys.start, is_control=labels == keys.control),
    )
    # Prediction sets are ordered by a hash of the cell names, so that the order of rows does not matter.
    if not holder.obs_names.is_unique:
        twice = holder.obs_names[holder.obs_names.duplicated()].unique()
        problem = f"are not unique ({listed(twice)})"
        raise ValueError(unusable("Cell names", "adata.obs_names", problem, "Call adata.obs_names_make_unique()."))
    counts = None
    if keys.counts_layer is not None and keys.counts_layer in holder.layers:
        counts = replace(reader, matrix=as_row_matrix(holder.layers[keys.counts_layer]))
    return Screen(reader, index, genes, holder.obs_names.to_numpy(dtype=object), counts)


def _read_expression(holder: AnnData, keys: ScreenKeys, genes: np.ndarray | None) -> tuple[CellReader, np.ndarray]:
    """Return the checked matrix and its genes (G,), in the order of ``genes`` if given."""
    if not holder.var_names.is_unique:
        twice = holder.var_names[holder.var_names.duplicated()].unique()
        problem = f"are not unique ({listed(twice)})"
        raise ValueError(unusable("Gene names", "adata.var_names", problem, "Call adata.var_names_make_unique()."))
    if keys.layer is not None and keys.layer not in holder.layers:
        raise KeyError(absent("Layer", keys.layer, "adata.layers", holder.layers, "Pass layer=<an existing layer>."))
    matrix = holder.X
    if keys.layer is not None:
        matrix = holder.layers[keys.layer]
    if matrix is None:
        remedy = "Put log1p of normalised counts into X, or pass layer=..."
        raise ValueError(unusable("Expression", keys.expression_place, "is missing", remedy))
    own = as_names(holder.var_names)
    reader = CellReader(as_row_matrix(matrix))
    check_expression(reader, place=keys.expression_place, declared=keys.layer is not None)
    if genes is None or np.array_equal(own, genes):
        return reader, own
    column = pd.Index(own).get_indexer(genes)  # (G,) where each of the model's genes is here; -1: nowhere
    if (column < 0).any():
        lacking = np.asarray(genes)[column < 0]
        problem = f"lacks {len(lacking)} of the model's {len(genes)} genes ({listed(lacking)})"
        remedy = "Predict on data with the genes that the model was trained on (model.genes_)."
        raise KeyError(unusable("The gene set", "adata.var_names", problem, remedy))
    return replace(reader, columns=column), np.asarray(genes)


def check_expression(reader: CellReader, *, place: str, declared: bool) -> None:
    """Refuse values that a model cannot learn from.

    NaN and infinities are refused everywhere. Negative values and raw counts are refused only in ``X``, because who
    names a layer declares its scale.

    Raises
    ------
    ValueError
        With the number and kind of the offending values.
    """
    whole = True
    largest = 0.0
    for values in reader.values():
        # First of all, because comparisons with NaN are False and would pass below.
        n_bad = int(values.size - np.isfinite(values).sum())
        if n_bad:
            problem = f"holds {n_bad} NaN or infinite values"
            raise ValueError(unusable("Expression", place, problem, "Remove or impute them."))
        if not declared and values.size and values.min() < 0:
            problem = f"holds negative values (smallest {values.min():.3g})"
            remedy = "Use log1p of normalised counts, or register scaled data as a layer with layer=..."
            raise ValueError(unusable("Expression", place, problem, remedy))
        whole = whole and bool((values == np.rint(values)).all())
        largest = max(largest, float(values.max(initial=0.0)))
    # Normalised expression has fractions, so whole numbers everywhere are counts.
    if not declared and whole:
        if largest == 0:
            raise ValueError(unusable("Expression", place, "is zero everywhere", "Load the expression matrix."))
        remedy = "Run sc.pp.normalize_total(adata, target_sum=1e4) and sc.pp.log1p(adata) first."
        raise ValueError(unusable("Expression", place, f"holds raw counts (whole numbers up to {largest:g})", remedy))


def read_split(adata: AnnOrMuData, keys: ScreenKeys) -> np.ndarray | None:
    """Return the split label of every cell (n,), or None if no ``split_key`` was registered."""
    if keys.split_key is None:
        return None
    return read_labels(keys.container(adata, "split_key").obs, keys.split_key).astype(str)
