"""Which parts of a model are saved, and how is a model rebuilt from them, with or without data?"""

from abc import abstractmethod
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata
import mudata as mudata_io
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from scvi.model._utils import parse_device_args
from scvi.model.base import BaseModelClass

from ptrag_sc._constants import MODEL_FILE
from ptrag_sc._validation import unusable
from ptrag_sc.data import ScreenKeys
from ptrag_sc.data._fields import setup
from ptrag_sc.data._files import make_folder, write_beside
from ptrag_sc.model._io import ModelFile, read_model, write_model
from ptrag_sc.model._module import MEMORY
from ptrag_sc.model._support import Calibration
from ptrag_sc.model._tables import TrainingTables
from ptrag_sc.retrieval import GeneEmbedding, ResponseMemory

MODULE = "module."
VECTORS = "gene_embedding.vectors"
BASIS = MODULE + "generator.basis"


def pack(
    tables: TrainingTables,
    keys: ScreenKeys,
    module: torch.nn.Module,
    *,
    init_params: dict[str, Any],
    state: dict[str, Any],
) -> ModelFile:
    """Return everything that prediction needs, and the history, as tensors and JSON-able values."""
    tensors = {MODULE + name: tensor for name, tensor in module.state_dict().items()}
    tensors[VECTORS] = torch.as_tensor(tables.embedding.vectors)
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
        "init_params": init_params,
        "state": state,
    }
    return ModelFile(tensors, meta)


def unpack(content: ModelFile) -> tuple[TrainingTables, ScreenKeys, dict[str, torch.Tensor]]:
    """Return tables, keys and the state of the module from a model file."""
    meta, tensors = content.meta, content.tensors
    embedding = GeneEmbedding(
        genes=np.array(meta["embedding"]["genes"], dtype=str),
        vectors=tensors[VECTORS].numpy(),
        source=meta["embedding"]["source"],
        excluded=tuple(meta["embedding"]["excluded"]),
    )
    prefix, memory = MODULE + MEMORY, None
    if prefix + "entries" in tensors:
        memory = ResponseMemory(**{name: tensors[prefix + name] for name in ResponseMemory._fields})
    tables = TrainingTables(
        genes=np.array(meta["genes"], dtype=str),
        candidates=np.array(meta["candidates"], dtype=str),
        embedding=embedding,
        split=pd.DataFrame(meta["split"]),
        basis=tensors[BASIS].numpy(),
        memory=memory,
        cell_types=tuple(meta.get("memory_cell_types", ())),
    )
    state = {name.removeprefix(MODULE): t for name, t in tensors.items() if name.startswith(MODULE)}
    return tables, ScreenKeys(**meta["keys"]), state


def history_to_json(history: dict[str, pd.DataFrame] | None) -> dict | None:
    """Return the training history as lists of epochs and values."""
    if history is None:
        return None
    return {
        name: {"epoch": [int(e) for e in frame.index], "value": [float(v) for v in frame.iloc[:, 0]]}
        for name, frame in history.items()
    }


def history_from_json(saved: dict | None) -> dict[str, pd.DataFrame] | None:
    """Return the training history in the layout of scvi-tools."""
    if saved is None:
        return None
    return {
        name: pd.DataFrame({name: column["value"]}, index=pd.Index(column["epoch"], name="epoch"))
        for name, column in saved.items()
    }


class SavedModel(BaseModelClass):
    """An scvi-tools model that saves itself as one file of tensors and JSON."""

    tables_: TrainingTables
    keys_: ScreenKeys
    init_params_: dict[str, Any]
    set_size_: int
    n_epochs_: int
    kept_epoch_: int | None
    epochs_: Any  # of the training that is running, else None
    support_: Calibration | None

    @abstractmethod
    def _build(self, tables: TrainingTables, keys: ScreenKeys, params: dict[str, Any]) -> None:
        """Set the state that the constructor and :meth:`load` need."""

    def save(
        self,
        dir_path: str | Path,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        **anndata_write_kwargs,
    ) -> None:
        """Write ``model.pt`` (and the data, if asked for) into a folder.

        Parameters
        ----------
        dir_path
            Folder; made if it does not exist.
        prefix
            Put before the file names.
        overwrite
            Whether existing files may be replaced.
        save_anndata
            Whether to write the registered AnnData beside the model.
        **anndata_write_kwargs
            Of :meth:`anndata.AnnData.write_h5ad`.

        Raises
        ------
        FileExistsError
            If a file is there and ``overwrite`` is False.
        """
        model, data, mudata = _paths(dir_path, prefix)
        data = mudata if isinstance(self.adata, MuData) else data
        for path in (model, data) if save_anndata else (model,):
            if path.exists() and not overwrite:
                raise FileExistsError(unusable("A file", str(path), "exists", "Pass overwrite=True or another folder."))
        make_folder(model.parent)
        if self.epochs_ is not None:  # a checkpoint of scvi-tools
            self.epochs_.write()
        state = {
            "class": type(self).__name__,
            "is_trained": self.is_trained_,
            "n_epochs": self.n_epochs_,
            "kept_epoch": self.kept_epoch_,
            "history": history_to_json(self.history_),
            "set_size": self.set_size_,
            "support": None if self.support_ is None else self.support_.to_json(),
        }
        write_model(model, pack(self.tables_, self.keys_, self.module, init_params=self.init_params_, state=state))
        if save_anndata:
            in_memory = self.adata.to_memory() if self.adata.isbacked else self.adata
            write_beside(data, lambda path: in_memory.write(path, **anndata_write_kwargs))

    @classmethod
    def load(
        cls,
        dir_path: str | Path,
        adata: AnnData | bool | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
    ):
        """Rebuild a saved model.

        Parameters
        ----------
        dir_path
            Folder given to :meth:`save`.
        adata
            Data to attach; control cells are enough for predictions. None attaches the data saved with the model,
            False none.
        accelerator, device
            Where the module is put.
        prefix
            As given to :meth:`save`.

        Returns
        -------
        The model, in evaluation mode.

        Raises
        ------
        FileNotFoundError
            If the model was not saved there, or ``adata=None`` and no data was saved with it.
        ValueError
            If the file is not a model of this class.
        """
        model_file, data_file, mudata_file = _paths(dir_path, prefix)
        content = read_model(model_file)
        tables, keys, module_state = unpack(content)
        saved = content.meta["state"]
        if saved["class"] != cls.__name__:
            problem = f"is a {saved['class']}, not a {cls.__name__}"
            raise ValueError(unusable("The model", str(model_file), problem, f"Call {saved['class']}.load."))
        if adata is None:
            if mudata_file.is_file():
                adata = mudata_io.read_h5mu(mudata_file)
            elif data_file.is_file():
                adata = anndata.read_h5ad(data_file)
            else:
                remedy = "Pass adata=..., or adata=False to load without data."
                raise FileNotFoundError(unusable("Data", str(data_file), "was not saved with the model", remedy))
        model = cls.__new__(cls)
        _attach(model, keys, adata)
        model._build(tables, keys, content.meta["init_params"])
        model.module.load_state_dict(module_state)
        for name in ("set_size", "is_trained", "n_epochs", "kept_epoch"):
            setattr(model, f"{name}_", saved[name])
        model.history_ = history_from_json(saved["history"])
        model.support_ = None if saved["support"] is None else Calibration.from_json(saved["support"])
        _, _, target = parse_device_args(accelerator, device, return_device="torch", validate_single_device=True)
        model.to_device(target)
        model.module.eval()
        return model


def _paths(dir_path: str | Path, prefix: str | None) -> tuple[Path, Path, Path]:
    """Return where the model, an AnnData and a MuData stand in a folder."""
    names = (MODEL_FILE, "adata.h5ad", "mdata.h5mu")
    return tuple(Path(dir_path) / f"{prefix or ''}{name}" for name in names)


def _attach(model: SavedModel, keys: ScreenKeys, adata: AnnData | bool) -> None:
    """Register data with a rebuilt model, or give it an empty registry."""
    method = "setup_mudata" if keys.modalities else "setup_anndata"
    arguments = {"model_name": type(model).__name__, "setup_method_name": method, "setup_args": keys.to_uns()}
    if adata is False:
        BaseModelClass.__init__(model, registry={"field_registries": {}, **arguments})
        return
    if keys.split_key is not None and keys.split_key not in keys.container(adata, "split_key").obs:
        keys = replace(keys, split_key=None)  # the split of the saved conditions is known: new data needs no column
    setup(type(model), adata, keys, arguments)
    BaseModelClass.__init__(model, adata)
