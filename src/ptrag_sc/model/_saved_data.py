"""Where is the data of a saved model, and was it saved with it?"""

from pathlib import Path
from typing import Any, NamedTuple, Self

import anndata
import h5py
import mudata

from ptrag_sc._constants import MODEL_FILE
from ptrag_sc._validation import unusable
from ptrag_sc.data._fields import AnnOrMuData
from ptrag_sc.data._files import StrPath

TOKEN = "ptrag_sc_token"  # attribute of the file of data, equal to that of the model saved with it


class SavedFiles(NamedTuple):
    """Paths of a saved model and its data, which is one of the two kinds."""

    model: Path
    anndata: Path
    mudata: Path

    @classmethod
    def of(cls, dir_path: StrPath, prefix: str | None) -> Self:
        start = prefix or ""
        folder = Path(dir_path)
        return cls(folder / f"{start}{MODEL_FILE}", folder / f"{start}adata.h5ad", folder / f"{start}mdata.h5mu")


def write_data(path: Path, data: AnnOrMuData, token: str, options: dict[str, Any]) -> None:
    """Write data with the token that the model saved with it has too."""
    data.write(path, **options)
    with h5py.File(path, "r+") as file:
        file.attrs[TOKEN] = token


def read_data(files: SavedFiles, token: str | None) -> AnnOrMuData:
    """Return the data that was saved with a model, whose token is given.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it cannot be read, or was saved by another call than the model.
    """
    path = files.anndata
    if files.mudata.is_file():
        path = files.mudata
    remedy = "Pass adata=..., or adata=False to load without data."
    if not path.is_file():
        raise FileNotFoundError(unusable("Data", str(path), "was not saved with the model", remedy))
    try:
        with h5py.File(path, "r") as file:
            found = file.attrs.get(TOKEN)
        if found == token:
            return mudata.read_h5mu(path) if path == files.mudata else anndata.read_h5ad(path)
    except Exception as error:  # anndata and h5py raise many kinds
        raise ValueError(unusable("Data", str(path), f"cannot be read ({error})", remedy)) from error
    problem = f"was saved by another call than {files.model.name}"
    raise ValueError(unusable("Data", str(path), problem, remedy))
