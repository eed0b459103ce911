"""Which parts of a model are saved, and how is a model rebuilt from them, with or without data?"""

from abc import abstractmethod
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeAlias

import anndata
import mudata as mudata_io
import numpy as np
import pandas as pd
import torch
from mudata import MuData
from scvi.model._utils import parse_device_args
from scvi.model.base import BaseModelClass

from ptrag_sc._constants import MODEL_FILE
from ptrag_sc._validation import unusable
from ptrag_sc.data import Drift, OwnEffects, ScreenKeys
from ptrag_sc.data._fields import AnnOrMuData
from ptrag_sc.data._files import StrPath, make_folder, write_beside
from ptrag_sc.data._intervals import EffectErrors
from ptrag_sc.data._setup import setup
from ptrag_sc.model._io import ModelFile, read_model, write_model
from ptrag_sc.model._module import MEMORY
from ptrag_sc.model._support import Calibration
from ptrag_sc.model._tables import TrainingTables
from ptrag_sc.retrieval import GeneEmbedding, ResponseMemory

if TYPE_CHECKING:
    from ptrag_sc.model._epochs import Epochs

History: TypeAlias = dict[str, pd.DataFrame]  # for each logged quantity a table of one column
SavedHistory: TypeAlias = dict[str, dict[str, list[float]]]  # for each one "epoch" and "value"
Data: TypeAlias = AnnOrMuData | Literal[False]  # False: a model without data

MODULE = "module."
VECTORS = "gene_embedding.vectors"
BASIS = MODULE + "generator.basis"
DRIFT = "drift"


def pack(
    tables: TrainingTables,
    keys: ScreenKeys,
    module: torch.nn.Module,
    *,
    init_params: dict[str, Any],
    state: dict[str, Any],
) -> ModelFile:
    """Return everything that prediction needs, and the history, as tensors and values that JSON can hold."""
    tensors = {MODULE + name: tensor for name, tensor in module.state_dict().items()}
    tensors[VECTORS] = torch.as_tensor(tables.embedding.vectors)
    if tables.drift is not None:
        tensors[DRIFT] = torch.as_tensor(tables.drift.mean)
    meta = {
        "version": version("ptrag_sc"),
        "keys": keys.to_uns(),
        "genes": tables.genes.tolist(),
        "candidates": tables.candidates.tolist(),
        "split": tables.split.to_dict(orient="list"),
        "embedding": {
            "genes": tables.embedding.genes.tolist(),
            "source": tables.embedding.source,
            "excluded": list(tables.embedding.excluded),
        },
        "memory_cell_types": list(tables.cell_types),
        "own_effects": tables.own_effects.to_json(),
        "control_levels": tables.control_levels,
        "drift_cell_types": [] if tables.drift is None else list(tables.drift.cell_types),
        "init_params": init_params,
        "state": state,
    }
    return ModelFile(tensors, meta)


def unpack(content: ModelFile) -> tuple[TrainingTables, ScreenKeys, dict[str, torch.Tensor]]:
    """Return tables, keys and the state of the module from a model file."""
    meta = content.meta
    tensors = content.tensors
    embedding = GeneEmbedding(
        genes=np.array(meta["embedding"]["genes"], dtype=str),
        vectors=tensors[VECTORS].numpy(),
        source=meta["embedding"]["source"],
        excluded=tuple(meta["embedding"]["excluded"]),
    )
    prefix = MODULE + MEMORY
    memory = None
    if prefix + "entries" in tensors:
        memory = ResponseMemory(**{name: tensors[prefix + name] for name in ResponseMemory._fields})
    tables = TrainingTables(
        genes=np.array(meta["genes"], dtype=str),
        candidates=np.array(meta["candidates"], dtype=str),
        embedding=embedding,
        split=pd.DataFrame(meta["split"]),
        basis=tensors[BASIS].numpy(),
        own_effects=OwnEffects.from_json(meta["own_effects"]),
        memory=memory,
        cell_types=tuple(meta.get("memory_cell_types", ())),
        control_levels=meta.get("control_levels", {}),
        drift=Drift(tuple(meta["drift_cell_types"]), tensors[DRIFT].numpy()) if DRIFT in tensors else None,
    )
    # Tensors of the module have a prefix, so that no name of theirs can be that of a table.
    state = {name.removeprefix(MODULE): tensor for name, tensor in tensors.items() if name.startswith(MODULE)}
    return tables, ScreenKeys.from_uns(meta["keys"]), state


def history_to_json(history: History | None) -> SavedHistory | None:
    """Return the training history as lists of epochs and values."""
    if history is None:
        return None
    saved: SavedHistory = {}
    for name, frame in history.items():
        saved[name] = {"epoch": [int(e) for e in frame.index], "value": [float(v) for v in frame.iloc[:, 0]]}
    return saved


def history_from_json(saved: SavedHistory | None) -> History | None:
    """Return the training history in the layout of scvi-tools."""
    if saved is None:
        return None
    history = {}
    for name, column in saved.items():
        history[name] = pd.DataFrame({name: column["value"]}, index=pd.Index(column["epoch"], name="epoch"))
    return history


class SavedModel(BaseModelClass):
    """An scvi-tools model that saves itself as one file of tensors and JSON."""

    tables_: TrainingTables
    keys_: ScreenKeys
    init_params_: dict[str, Any]
    set_size_: int
    n_epochs_: int
    kept_epoch_: int | None
    epochs_: "Epochs | None"  # epochs of the training that is running
    support_: Calibration | None

    @abstractmethod
    def _build(self, tables: TrainingTables, keys: ScreenKeys, params: dict[str, Any]) -> None:
        """Set the state that the constructor and :meth:`load` need."""

    def save(
        self,
        dir_path: StrPath,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        **anndata_write_kwargs: Any,
    ) -> None:
        """Write ``model.pt``, and the data if asked for, into a folder.

        Parameters
        ----------
        dir_path
            Folder; made if it does not exist.
        prefix
            Put before the file names.
        overwrite
            Whether existing files may be replaced.
        save_anndata
            Whether to write the registered data into the same folder.
        **anndata_write_kwargs
            Options of :meth:`anndata.AnnData.write_h5ad`.

        Raises
        ------
        FileExistsError
            If a file exists and ``overwrite`` is False.
        """
        files = _Files.of(dir_path, prefix)
        data_file = files.mudata if isinstance(self.adata, MuData) else files.anndata
        written = [files.model]
        if save_anndata:
            written.append(data_file)
        for path in written:
            if path.exists() and not overwrite:
                raise FileExistsError(unusable("A file", str(path), "exists", "Pass overwrite=True or another folder."))
        make_folder(files.model.parent)
        if self.epochs_ is not None:  # scvi-tools saves checkpoints during a training
            self.epochs_.write()
        state = {
            "class": type(self).__name__,
            "is_trained": self.is_trained_,
            "n_epochs": self.n_epochs_,
            "kept_epoch": self.kept_epoch_,
            "history": history_to_json(self.history_),
            "set_size": self.set_size_,
            "support": None if self.support_ is None else self.support_.to_json(),
            "effect_errors": None if self.effect_errors_ is None else self.effect_errors_.to_json(),
        }
        content = pack(self.tables_, self.keys_, self.module, init_params=self.init_params_, state=state)
        write_model(files.model, content)
        if save_anndata:
            in_memory = self.adata.to_memory() if self.adata.isbacked else self.adata
            write_beside(data_file, lambda path: in_memory.write(path, **anndata_write_kwargs))

    @classmethod
    def load(
        cls,
        dir_path: StrPath,
        adata: Data | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
    ) -> Self:
        """Rebuild a saved model.

        Parameters
        ----------
        dir_path
            Folder given to :meth:`save`.
        adata
            Data to attach; control cells are enough for predictions. None attaches the data saved with the model,
            False attaches none.
        accelerator, device
            Device of the module.
        prefix
            As given to :meth:`save`.

        Returns
        -------
        Self
            The model, in evaluation mode.

        Raises
        ------
        FileNotFoundError
            If the model was not saved there, or ``adata=None`` and no data was saved with it.
        ValueError
            If the file is not a model of this class.
        """
        files = _Files.of(dir_path, prefix)
        content = read_model(files.model)
        tables, keys, module_state = unpack(content)
        saved = content.meta["state"]
        if saved["class"] != cls.__name__:
            problem = f"is a {saved['class']}, not a {cls.__name__}"
            raise ValueError(unusable("The model", str(files.model), problem, f"Call {saved['class']}.load."))
        if adata is None:
            adata = _read_data(files)
        model = cls.__new__(cls)  # without the constructor, which computes the tables
        # Data first, as in the constructor, because scvi-tools resets the state of a model that data is attached to.
        _attach(model, keys, adata)
        model._build(tables, keys, content.meta["init_params"])
        model.module.load_state_dict(module_state)
        model.set_size_ = saved["set_size"]
        model.is_trained_ = saved["is_trained"]
        model.n_epochs_ = saved["n_epochs"]
        model.kept_epoch_ = saved["kept_epoch"]
        model.history_ = history_from_json(saved["history"])
        model.support_ = None if saved["support"] is None else Calibration.from_json(saved["support"])
        if saved["effect_errors"] is not None:
            model.effect_errors_ = EffectErrors.from_json(saved["effect_errors"])
        _, _, target = parse_device_args(accelerator, device, return_device="torch", validate_single_device=True)
        model.to_device(target)
        model.module.eval()
        return model


class _Files(NamedTuple):
    """Paths of a saved model and its data, which is one of the two kinds."""

    model: Path
    anndata: Path
    mudata: Path

    @classmethod
    def of(cls, dir_path: StrPath, prefix: str | None) -> Self:
        start = prefix or ""
        folder = Path(dir_path)
        return cls(folder / f"{start}{MODEL_FILE}", folder / f"{start}adata.h5ad", folder / f"{start}mdata.h5mu")


def _read_data(files: _Files) -> AnnOrMuData:
    """Return the data that was saved with a model."""
    if files.mudata.is_file():
        return mudata_io.read_h5mu(files.mudata)
    if files.anndata.is_file():
        return anndata.read_h5ad(files.anndata)
    remedy = "Pass adata=..., or adata=False to load without data."
    raise FileNotFoundError(unusable("Data", str(files.anndata), "was not saved with the model", remedy))


def _attach(model: SavedModel, keys: ScreenKeys, adata: Data) -> None:
    """Register data with a rebuilt model, or give it an empty registry."""
    method = "setup_mudata" if keys.modalities else "setup_anndata"
    arguments = {"model_name": type(model).__name__, "setup_method_name": method, "setup_args": keys.to_uns()}
    if adata is False:
        BaseModelClass.__init__(model, registry={"field_registries": {}, **arguments})
        return
    if keys.split_key is not None and keys.split_key not in keys.container(adata, "split_key").obs:
        # The model knows the split of its conditions, so new data needs no column for it.
        keys = replace(keys, split_key=None)
    if keys.batch_key is not None and keys.batch_key not in keys.container(adata, "batch_key").obs:
        keys = replace(keys, batch_key=None)  # no model input
    setup(type(model), adata, keys, arguments)
    BaseModelClass.__init__(model, adata)
