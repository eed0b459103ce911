"""How is a file replaced so that no reader ever sees half of it?"""

import os
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

from ptrag_sc._validation import unusable

ZARR_GROUP = ("zarr.json", ".zgroup")  # what stands in the folder of a zarr store


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


def check_target(path: str | Path, *, suffixes: Collection[str], overwrite: bool) -> Path:
    """Return the path of a file that is to be written, after a look at whether it can be.

    Raises
    ------
    TypeError
        If it is no path.
    ValueError
        If its suffix names no known format.
    FileNotFoundError
        If the folder it should stand in is not there.
    FileExistsError
        If it is there and ``overwrite`` is False, or something else is in its place.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(unusable(f"out={path!r}", "the request", "is no path", "Pass the name of a file."))
    path = Path(path)
    if path.suffix not in suffixes:
        problem = f"ends in {path.suffix!r}" if path.suffix else "has no suffix"
        remedy = f"Pass a name that ends in {' or '.join(suffixes)}."
        raise ValueError(unusable(f"out={str(path)!r}", "the request", problem, remedy))
    if not path.parent.is_dir():
        problem = f"should stand in the folder {str(path.parent)!r}, which does not exist"
        raise FileNotFoundError(unusable(f"out={str(path)!r}", "the request", problem, "Make the folder first."))
    if path.exists() and not overwrite:
        raise FileExistsError(unusable("A file", str(path), "exists", "Pass overwrite=True or another name."))
    if path.is_dir() and not any((path / name).is_file() for name in ZARR_GROUP):
        raise FileExistsError(unusable("A folder", str(path), "is no zarr store", "Pass another name."))
    return path


def write_beside(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a file or folder of the same name in a folder beside the target, then rename it.

    If writing fails, what stands at the target stays as it is.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}") as beside:
        part = Path(beside) / path.name
        write(part)
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
