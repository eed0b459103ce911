"""How does an AnnData or MuData enter the package?

``setup`` writes down which columns matter and validates them once; ``read_screen`` turns an object that was set up
(or a new one, with the keys of a trained model) into a :class:`Screen` of arrays.
"""

import logging
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import BaseAnnDataField, CategoricalObsField, LayerField, MuDataLayerField, MuDataWrapper

from ptrag_sc._constants import CELL_TYPE_FIELD, PERTURBATION_FIELD, SETUP_KEY
from ptrag_sc._validation import absent, listed, unusable
from ptrag_sc.data._conditions import ConditionIndex, as_names, condition_split, read_labels, read_perturbations
from ptrag_sc.data._diagnose import design_warnings
from ptrag_sc.data._reader import CellReader, as_row_matrix

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScreenKeys:
    """Where things stand in the object: the arguments of ``setup_anndata`` and ``setup_mudata``."""

    perturbation_key: str
    control: str
    cell_type_key: str
    batch_key: str | None = None
    split_key: str | None = None
    embedding_key: str = "gene_embedding"
    layer: str | None = None
    sep: str = "+"
    modalities: dict[str, str] = field(default_factory=dict)

    def to_uns(self) -> dict:
        """Return what can be written to h5ad and zarr (no None)."""
        return {k: v for k, v in asdict(self).items() if v not in (None, {})}

    @classmethod
    def of(cls, adata: AnnData | MuData) -> "ScreenKeys":
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

    def container(self, adata: AnnData | MuData, argument: str) -> AnnData | MuData:
        """Return the object that holds the field of one setup argument: a modality of a MuData, or the object."""
        if isinstance(adata, AnnData) or argument not in self.modalities:
            return adata
        name = self.modalities[argument]
        if name not in adata.mod:
            raise KeyError(absent("Modality", name, "mdata.mod", adata.mod, f"Correct modalities[{argument!r}]."))
        return adata.mod[name]

    def expression_holder(self, adata: AnnData | MuData) -> AnnData:
        """Return the AnnData whose matrix is the expression."""
        holder = self.container(adata, "layer")
        if not isinstance(holder, AnnData):
            raise ValueError(
                unusable(
                    "Expression", "the MuData", "is not located", "Pass modalities={'layer': <modality of the RNA>}."
                )
            )
        if holder.n_obs != adata.n_obs or not (holder.obs_names == adata.obs_names).all():
            problem = "does not hold the same cells in the same order as the MuData"
            raise ValueError(unusable("The expression modality", "mdata.mod", problem, "Subset both to shared cells."))
        return holder

    @property
    def expression_place(self) -> str:
        """Name of the registered matrix, for messages."""
        return "adata.X" if self.layer is None else f"adata.layers[{self.layer!r}]"


class OpenLabelField(CategoricalObsField):
    """A categorical obs column in which new labels may appear after training.

    Perturbations, cell types and batches of new data need not have been seen: names are looked up, never codes.
    """

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs) -> dict:
        """Transfer the field and accept labels that the source did not have."""
        return super().transfer_field(state_registry, adata_target, **{**kwargs, "extend_categories": True})


MuDataOpenLabelField = MuDataWrapper(OpenLabelField)


def scvi_fields(keys: ScreenKeys, *, mudata: bool) -> list[BaseAnnDataField]:
    """Return the fields of the scvi registry for one set of keys."""
    columns = {
        "perturbation_key": (PERTURBATION_FIELD, keys.perturbation_key),
        "cell_type_key": (CELL_TYPE_FIELD, keys.cell_type_key),
        "batch_key": (REGISTRY_KEYS.BATCH_KEY, keys.batch_key),
    }
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
    """

    reader: CellReader
    index: ConditionIndex
    genes: np.ndarray
    names: np.ndarray


def read_screen(adata: AnnData | MuData, keys: ScreenKeys, *, genes: np.ndarray | None = None) -> Screen:
    """Read and validate a screen.

    Parameters
    ----------
    adata
        The object; it is not changed.
    keys
        Where things stand in it.
    genes
        Genes (G,) of a trained model: columns are put into this order. None takes the object's own.

    Raises
    ------
    KeyError
        If a column, layer or modality does not exist, or genes are missing.
    TypeError
        If the object is something else.
    ValueError
        If the control label does not occur, labels or expression are unusable, or names are not unique.
    """
    if not isinstance(adata, AnnData | MuData):
        remedy = "Pass the object, read with anndata.read_h5ad for example; in tl functions the data come first."
        raise TypeError(unusable(repr(adata)[:60], "the place of the data", "is no AnnData or MuData", remedy))
    holder = keys.expression_holder(adata)
    reader, genes = _read_expression(holder, keys, genes)
    obs = {name: keys.container(adata, name).obs for name in ("perturbation_key", "cell_type_key", "batch_key")}
    batch = None if keys.batch_key is None else read_labels(obs["batch_key"], keys.batch_key)
    index = ConditionIndex.from_labels(
        read_perturbations(obs["perturbation_key"], keys.perturbation_key, control=keys.control, sep=keys.sep),
        read_labels(obs["cell_type_key"], keys.cell_type_key),
        batch,
        control=keys.control,
    )
    if not holder.obs_names.is_unique:
        twice = holder.obs_names[holder.obs_names.duplicated()].unique()
        problem = f"are not unique ({listed(twice)})"
        raise ValueError(unusable("Cell names", "adata.obs_names", problem, "Call adata.obs_names_make_unique()."))
    return Screen(reader, index, genes, holder.obs_names.to_numpy(dtype=object))


def _read_expression(holder: AnnData, keys: ScreenKeys, genes: np.ndarray | None) -> tuple[CellReader, np.ndarray]:
    if not holder.var_names.is_unique:
        twice = holder.var_names[holder.var_names.duplicated()].unique()
        problem = f"are not unique ({listed(twice)})"
        raise ValueError(unusable("Gene names", "adata.var_names", problem, "Call adata.var_names_make_unique()."))
    if keys.layer is not None and keys.layer not in holder.layers:
        raise KeyError(absent("Layer", keys.layer, "adata.layers", holder.layers, "Pass layer=<an existing layer>."))
    matrix = holder.X if keys.layer is None else holder.layers[keys.layer]
    if matrix is None:
        remedy = "Put log1p of normalised counts into X, or pass layer=..."
        raise ValueError(unusable("Expression", keys.expression_place, "is missing", remedy))
    own = as_names(holder.var_names)
    reader = CellReader(as_row_matrix(matrix))
    check_expression(reader, place=keys.expression_place, declared=keys.layer is not None)
    if genes is None or np.array_equal(own, genes):
        return reader, own
    column = pd.Index(own).get_indexer(genes)
    if (column < 0).any():
        lacking = np.asarray(genes)[column < 0]
        problem = f"lacks {len(lacking)} of the model's {len(genes)} genes ({listed(lacking)})"
        remedy = "Predict on data with the genes that the model was trained on (model.genes_)."
        raise KeyError(unusable("The gene set", "adata.var_names", problem, remedy))
    return replace(reader, columns=column), np.asarray(genes)


def check_expression(reader: CellReader, *, place: str, declared: bool) -> None:
    """Refuse values that a model cannot learn from.

    NaN and infinities are refused everywhere; negative values and raw counts only in ``X``: a named layer is taken
    as the user's declaration of its scale.

    Raises
    ------
    ValueError
        With the number and kind of the offending values.
    """
    whole, largest = True, 0.0
    for values in reader.values():
        n_bad = int(values.size - np.isfinite(values).sum())
        if n_bad:
            raise ValueError(
                unusable("Expression", place, f"holds {n_bad} NaN or infinite values", "Remove or impute them.")
            )
        if not declared and values.size and values.min() < 0:
            problem = f"holds negative values (smallest {values.min():.3g})"
            remedy = "Use log1p of normalised counts, or register scaled data as a layer with layer=..."
            raise ValueError(unusable("Expression", place, problem, remedy))
        whole = whole and bool((values == np.rint(values)).all())
        largest = max(largest, float(values.max(initial=0.0)))
    if not declared and whole:
        if largest == 0:
            raise ValueError(unusable("Expression", place, "is zero everywhere", "Load the expression matrix."))
        remedy = "Run sc.pp.normalize_total(adata, target_sum=1e4) and sc.pp.log1p(adata) first."
        raise ValueError(unusable("Expression", place, f"holds raw counts (whole numbers up to {largest:g})", remedy))


def read_split(adata: AnnData | MuData, keys: ScreenKeys) -> np.ndarray | None:
    """Return the split label of every cell (n,), or None where no ``split_key`` was registered."""
    if keys.split_key is None:
        return None
    return read_labels(keys.container(adata, "split_key").obs, keys.split_key).astype(str)


def setup(model_class: type, adata: AnnData | MuData, keys: ScreenKeys, setup_method_args: dict) -> None:
    """Validate an object once, write down its keys, and register it with scvi-tools.

    Raises
    ------
    KeyError, ValueError
        As :func:`read_screen` and :func:`read_split` do, and for a view or an unknown split value.
    """
    if adata.is_view:
        raise ValueError(unusable("This object", "memory", "is a view of another", "Pass adata.copy()."))
    screen = read_screen(adata, keys)
    split = read_split(adata, keys)
    if split is not None:
        condition_split(screen.index, split, place=f"adata.obs[{keys.split_key!r}]")
    if bad := design_warnings(screen.index):
        logger.warning("%s. ptrag_sc.tl.diagnose(adata) tells more.", bad)
    adata.uns[SETUP_KEY] = keys.to_uns()
    fields = scvi_fields(keys, mudata=isinstance(adata, MuData))
    manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
    manager.register_fields(adata)
    model_class.register_manager(manager)
