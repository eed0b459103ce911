"""How is a file replaced so that no reader ever sees half of it?"""

import os
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeAlias

from ptrag_sc._validation import unusable

StrPath: TypeAlias = str | os.PathLike[str]

ZARR_GROUP = ("zarr.json", ".zgroup")  # files of which the folder of a zarr store holds one


def make_folder(path: Path) -> None:
    """Make a folder, parents included, if it is not there.

    Raises
    ------
    NotADirectoryError
        If a file stands in its place.
    """
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(unusable("The path", str(path), "is a file", "Pass the path of a folder."))
    path.mkdir(parents=True, exist_ok=True)


def check_target(path: StrPath, *, suffixes: Collection[str], overwrite: bool) -> Path:
    """Return the path of a file to write, after checking that it can be written.

    Raises
    ------
    TypeError
        If it is no path.
    ValueError
        If its suffix names no known format.
    FileNotFoundError
        If its folder does not exist.
    FileExistsError
        If it exists and ``overwrite`` is False, or a folder that is no zarr store is in its place.
    """
    # Callers check before they predict, because predictions may take hours.
    if not isinstance(path, str | os.PathLike):
        raise TypeError(unusable(f"out={path!r}", "the request", "is no path", "Pass the name of a file."))
    path = Path(path)
    if path.suffix not in suffixes:
        problem = "has no suffix"
        if path.suffix:
            problem = f"ends in {path.suffix!r}"
        remedy = f"Pass a name that ends in {' or '.join(suffixes)}."
        raise ValueError(unusable(f"out={str(path)!r}", "the request", problem, remedy))
    if not path.parent.is_dir():
        problem = f"should stand in the folder {str(path.parent)!r}, which does not exist"
        raise FileNotFoundError(unusable(f"out={str(path)!r}", "the request", problem, "Make the folder first."))
    if path.exists() and not overwrite:
        raise FileExistsError(unusable("A file", str(path), "exists", "Pass overwrite=True or another name."))
    # Any other folder may hold work of the user, which overwrite=True must not delete.
    if path.is_dir() and not any((path / name).is_file() for name in ZARR_GROUP):
        raise FileExistsError(unusable("A folder", str(path), "is no zarr store", "Pass another name."))
    return path


def write_beside(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file or folder of the same name in a folder beside the target, then rename it.

    If writing fails, the target keeps its old content.
    """
    # In the same folder, because a rename is one step only within one file system.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}") as beside:
        part = Path(beside) / path.name
        write(part)
        # Path.replace cannot replace a folder that is not empty.
        if path.is_dir() or (part.is_dir() and path.exists()):
            _exchange(part, path, Path(beside) / "replaced")
        else:
            part.replace(path)


def _exchange(part: Path, path: Path, aside: Path) -> None:
    """Move ``path`` aside, as a folder cannot be replaced in one step, and back if the new one cannot be moved."""
    path.rename(aside)
    try:
        part.rename(path)
    except OSError:
        aside.rename(path)
        raise
