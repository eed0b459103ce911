"""How does a model become one file, and back? Tensors and one JSON string; nothing in it is executed on reading."""

import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import torch
from packaging.version import InvalidVersion, Version

from ptrag_sc._validation import unusable
from ptrag_sc.model._schema import check_meta, check_tensors
from ptrag_sc.model._stored_tensors import FOR_HUB, DamagedError, read_stored

FORMAT = 4  # 3 had no digest; 1 and 2 were of development versions before the first release
REMEDY = "Copy it again from where it was saved, or train and save the model again."


class ModelFile(NamedTuple):
    """Content of ``model.pt``."""

    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]  # JSON-able


def saved_registry(meta: dict[str, Any]) -> dict[str, Any]:
    """Return what a model was set up with, in the form of a registry of scvi-tools without data."""
    keys = meta["keys"]
    return {
        "scvi_version": meta["scvi_version"],  # "" in older files, which do not say
        "model_name": meta["state"]["class"],
        "setup_method_name": "setup_mudata" if keys.get("modalities") else "setup_anndata",
        "setup_args": dict(keys),
        "field_registries": {},
    }


def write_model(path: Path, content: ModelFile) -> None:
    """Write a model file.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    tensors = {name: _compact(tensor) for name, tensor in content.tensors.items()}
    meta = json.dumps({**content.meta, "format": FORMAT}, default=lambda scalar: scalar.item())  # numpy scalars
    # Where the helpers of scvi-tools' hub look for them; this package does not read them.
    plain = json.loads(meta)
    init_params = {"non_kwargs": plain["init_params"], "kwargs": {}}
    for_hub = {"registry_": saved_registry(plain), "init_params_": init_params}
    content_of_file = {"tensors": tensors, "json": meta, "digest": digest(tensors, meta), FOR_HUB: for_hub}
    with path.open("wb") as file:
        stored = _Kept(file)
        torch.save(content_of_file, cast(IO[bytes], stored))
        if stored.error is not None:
            raise stored.error


def n_bytes(content: ModelFile) -> int:
    """Return about how large the file of a model is, its JSON string aside."""
    return sum(tensor.nbytes for tensor in content.tensors.values())


def read_model(path: Path, *, has_own_module: bool = False) -> ModelFile:
    """Read a file of :func:`write_model`, or of one of the earlier formats that are known, and check all of it.

    Parameters
    ----------
    path
        The file.
    has_own_module
        Whether the model's class builds a module of its own, whose tensors only that class knows.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file is not a model, is damaged, holds what no model holds, or has a format that this version cannot
        read.
    """
    if not path.is_file():
        remedy = "Pass the folder given to save()."
        raise FileNotFoundError(unusable("A saved model", str(path), "was not found", remedy))
    with refusing(path):
        content = _read(path)
        check_meta(content.meta)
        check_tensors(content.tensors, content.meta, has_own_module=has_own_module)
    return content


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Make one error, which names the file, of all that its content can cause.

    Raises
    ------
    ValueError
        With what is wrong and what helps.
    """
    try:
        yield
    except _OtherVersionError as error:
        raise ValueError(unusable("The file", str(path), str(error), error.remedy)) from None
    except DamagedError as error:
        problem = f"is not a ptrag_sc model that can be used: it {error}"
        raise ValueError(unusable("The file", str(path), problem, REMEDY)) from error
    except Exception as error:  # values that are right by themselves but not together
        problem = f"is not a ptrag_sc model that can be used ({error})"
        raise ValueError(unusable("The file", str(path), problem, REMEDY)) from error


class _OtherVersionError(Exception):
    """The file may be right, but not for this version."""

    def __init__(self, problem: str, remedy: str):
        super().__init__(problem)
        self.remedy = remedy


def _read(path: Path) -> ModelFile:
    """Return the content of a file in the present format, its digest compared."""
    stored = read_stored(path)
    text, tensors = stored.get("json"), stored.get("tensors")
    if not isinstance(text, str) or not isinstance(tensors, dict):
        raise DamagedError("holds no tensors and no description")
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise DamagedError("holds something else than tensors")
    meta = json.loads(text)
    if not isinstance(meta, dict):
        raise DamagedError("holds no description")
    number, writer = meta.get("format"), meta.get("version")
    if type(number) is not int or number < 1:
        raise DamagedError(f"holds the format {str(number)[:20]!r}")
    _check_version(number, writer)
    if number == FORMAT and stored.get("digest") != digest(tensors, text):
        raise DamagedError("was changed after it was written: its digest does not fit its content")
    if number == 3:
        meta = _from_3(meta)
    return ModelFile(tensors, meta)


def _check_version(number: int, writer: object) -> None:
    """Refuse a newer file, which needs a newer package, and those of before the first release."""
    own = version("ptrag_sc")
    if number < 3:
        problem = f"has format {number}, of a development version before the first release, which no release reads"
        raise _OtherVersionError(problem, "Train and save the model again.")
    try:
        is_newer = Version(str(writer)) > Version(own)
    except InvalidVersion:
        raise DamagedError(f"holds the version {str(writer)[:20]!r}") from None
    if number > FORMAT or is_newer:
        problem = f"has format {number} of ptrag_sc {writer}, this is {own} and reads formats 3 to {FORMAT}"
        raise _OtherVersionError(problem, "Update ptrag_sc.")


def _from_3(meta: dict[str, Any]) -> dict[str, Any]:
    """Return the description of format 3 in the present format: what the first files of it lack gets its default."""
    meta = {
        "memory_cell_types": [],
        "drift_cell_types": [],
        "data_token": None,
        "control_levels": {},
        "scvi_version": "",
        **meta,
    }
    genes, state = meta.get("genes", ()), dict(meta.get("state") or {})
    if isinstance(state.get("effect_errors"), list):
        # Without errors of the mean control only the variance between control cells counts.
        state["effect_errors"] = [{"control": [0.0] * len(genes), **row} for row in state["effect_errors"]]
    return {**meta, "format": FORMAT, "state": {"kept_epoch": None, **state}}


def digest(tensors: dict[str, torch.Tensor], text: str) -> str:
    """Return the SHA-256 of all tensors, with their names and shapes, and of the JSON string."""
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor on the host that has its memory to itself: of a slice the whole would be stored."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.untyped_storage().nbytes() != tensor.nbytes:
        tensor = tensor.clone()
    return tensor


class _Kept(io.RawIOBase):
    """Pass bytes on to a file and keep the first error, which torch would turn into another one without its number."""

    def __init__(self, file: Any):
        super().__init__()
        self.file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        """Say that bytes can be written."""
        return True

    def write(self, data: Any) -> int:
        """Write, or remember why not."""
        if self.error is None:
            try:
                self.file.write(data)
                self.file.flush()
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes
