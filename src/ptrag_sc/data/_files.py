"""How is a file replaced so that no reader ever sees half of it?"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from ptrag_sc._validation import unusable


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


def write_beside(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a file of the same name in a folder beside the target, then rename it.

    If writing fails, an existing file stays as it is.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}") as beside:
        part = Path(beside) / path.name
        write(part)
        part.replace(path)
