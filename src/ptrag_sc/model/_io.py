"""How does a model become one file, and back? Tensors and one JSON string; nothing in it is executed on reading."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ptrag_sc._validation import unusable
from ptrag_sc.data._files import write_beside

FORMAT = 3


class ModelFile(NamedTuple):
    """Content of ``model.pt``."""

    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]  # JSON-able


def saved_registry(meta: dict[str, Any]) -> dict[str, Any]:
    """Return what a model was set up with, in the form of a registry of scvi-tools without data."""
    keys = meta["keys"]
    return {
        "scvi_version": meta.get("scvi_version", ""),  # older files do not say
        "model_name": meta["state"]["class"],
        "setup_method_name": "setup_mudata" if keys.get("modalities") else "setup_anndata",
        "setup_args": dict(keys),
        "field_registries": {},
    }


def write_model(path: Path, content: ModelFile) -> None:
    """Write a model file."""
    tensors = {name: tensor.detach().cpu() for name, tensor in content.tensors.items()}
    meta = json.dumps({"format": FORMAT, **content.meta}, default=lambda scalar: scalar.item())  # numpy scalars
    # Where the helpers of scvi-tools' hub look for them.
    plain = json.loads(meta)
    init_params = {"non_kwargs": plain["init_params"], "kwargs": {}}
    for_hub = {"registry_": saved_registry(plain), "init_params_": init_params}
    everything = {"tensors": tensors, "json": meta, "attr_dict": for_hub}
    write_beside(path, lambda beside: torch.save(everything, beside))


def read_model(path: Path) -> ModelFile:
    """Read a file of :func:`write_model` with ``weights_only=True``.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file is not a model, or has another format.
    """
    if not path.is_file():
        remedy = "Pass the folder given to save()."
        raise FileNotFoundError(unusable("A saved model", str(path), "was not found", remedy))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        tensors = content["tensors"]
        meta = json.loads(content["json"])
    except Exception as error:  # what torch raises depends on the content of the file
        remedy = "Pass a folder written by PTRAG.save of this package."
        raise ValueError(unusable("The file", str(path), "is not a ptrag_sc model", remedy)) from error
    # A newer file needs a newer package; older formats are not converted.
    if meta["format"] != FORMAT:
        problem = f"has format {meta['format']}, this version reads format {FORMAT}"
        remedy = "Update ptrag_sc." if meta["format"] > FORMAT else "Train and save the model again."
        raise ValueError(unusable("The file", str(path), problem, remedy))
    return ModelFile(tensors, meta)
