"""Which parts of a model are saved, and how is a model rebuilt from them, with or without data?"""

from abc import abstractmethod
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias
from uuid import uuid4

import numpy as np
import pandas as pd
import torch
from mudata import MuData
from scvi.model._utils import parse_device_args
from scvi.model.base import BaseModelClass

from ptrag_sc._validation import unusable
from ptrag_sc.data import Drift, OwnEffects, ScreenKeys
from ptrag_sc.data._files import StrPath, Write, check_place, make_folder, write_together
from ptrag_sc.data._intervals import EffectErrors
from ptrag_sc.model._attach import Data, attach, check_data
from ptrag_sc.model._io import ModelFile, n_bytes, read_model, refusing, write_model
from ptrag_sc.model._module import MEMORY, PTRAGModule
from ptrag_sc.model._saved_data import SavedFiles, read_data, write_data
from ptrag_sc.model._schema import BASIS, DRIFT, MODULE, VECTORS
from ptrag_sc.model._support import Calibration
from ptrag_sc.model._tables import TrainingTables
from ptrag_sc.retrieval import GeneEmbedding, ResponseMemory

if TYPE_CHECKING:
    from ptrag_sc.model._epochs import Epochs

History: TypeAlias = dict[str, pd.DataFrame]  # for each logged quantity a table of one column
SavedHistory: TypeAlias = dict[str, dict[str, list[float]]]  # for each one "epoch" and "value"


def pack(
    tables: TrainingTables,
    keys: ScreenKeys,
    module: torch.nn.Module,
    *,
    init_params: dict[str, Any],
    state: dict[str, Any],
    data_token: str | None = None,
) -> ModelFile:
    """Return everything that prediction needs, and the history, as tensors and values that JSON can hold."""
    tensors = {MODULE + name: tensor for name, tensor in module.state_dict().items()}
    tensors[VECTORS] = torch.as_tensor(tables.embedding.vectors)
    if tables.drift is not None:
        tensors[DRIFT] = torch.as_tensor(tables.drift.mean)
    meta = {
        "version": version("ptrag_sc"),
        "scvi_version": version("scvi-tools"),
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
        "data_token": data_token,
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
        cell_types=tuple(meta["memory_cell_types"]),
        control_levels=meta["control_levels"],
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

        Both are replaced together, and each knows the other: :meth:`load` refuses a model beside the data of another
        call.

        Raises
        ------
        FileExistsError
            If a file exists and ``overwrite`` is False, or something that is no file is in its place.
        OSError
            If the disk is full.
        """
        files = SavedFiles.of(dir_path, prefix)
        data_file = files.mudata if isinstance(self.adata, MuData) else files.anndata
        written = [files.model]
        if save_anndata:
            written.append(data_file)
        for path in written:  # before data is copied
            check_place(path, overwrite=overwrite)
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
        token = uuid4().hex if save_anndata else None
        content = pack(
            self.tables_, self.keys_, self.module, init_params=self.init_params_, state=state, data_token=token
        )
        writes: dict[Path, Write] = {}
        if token is not None:
            in_memory = self.adata.to_memory() if self.adata.isbacked else self.adata
            writes[data_file] = lambda path: write_data(path, in_memory, token, anndata_write_kwargs)
        writes[files.model] = lambda path: write_model(path, content)
        write_together(writes, overwrite=overwrite, n_bytes=n_bytes(content))

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
        TypeError
            If ``adata`` is something else, such as a path.
        ValueError
            If the file is not a model of this class, is damaged, or was saved by another version that this one cannot
            read; or if the data beside it was saved by another call.
        """
        check_data(adata)
        files = SavedFiles.of(dir_path, prefix)
        content = read_model(files.model, has_own_module=cls._module_cls is not PTRAGModule)
        with refusing(files.model):
            tables, keys, module_state = unpack(content)
        saved = content.meta["state"]
        if saved["class"] != cls.__name__:
            problem = f"is a {saved['class']}, not a {cls.__name__}"
            raise ValueError(unusable("The model", str(files.model), problem, f"Call {saved['class']}.load."))
        if adata is None:
            adata = read_data(files, content.meta["data_token"])
        model = cls.__new__(cls)  # without the constructor, which computes the tables
        # Data first, as in the constructor, because scvi-tools resets the state of a model that data is attached to.
        attach(model, keys, adata)
        with torch.random.fork_rng(devices=[]), refusing(files.model):  # the weights drawn here are replaced
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
