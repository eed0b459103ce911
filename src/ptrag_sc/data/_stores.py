"""Does a folder hold the zarr store of an AnnData, and nothing else?"""

import json
import re
from pathlib import Path
from typing import Any

SLOTS = ("X", "layers", "obs", "obsm", "obsp", "raw", "uns", "var", "varm", "varp")
NODE = ("zarr.json", ".zgroup", ".zarray")  # the folder of a group or an array holds one of them
METADATA = (*NODE, ".zattrs", ".zmetadata")
CHUNK = re.compile(r"c|\d+(\.\d+)*")  # file or folder of an array's chunks, in version 3 and 2 of the format


def foreign_entry(store: Path) -> str | None:
    """Return the first entry of a folder that is no part of an AnnData's zarr store, or None.

    Parameters
    ----------
    store
        A folder. If it is no store of an AnnData at all, its first entry is foreign, or ``"nothing"`` if it is empty.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "thesis.txt").write_text("...")
    ...     foreign_entry(Path(folder))
    'thesis.txt'
    """
    if _attributes(store).get("encoding-type") != "anndata":
        entries = sorted(entry.name for entry in store.iterdir() if entry.name not in METADATA)
        return next(iter(entries), "nothing")
    for entry in sorted(store.iterdir()):
        if entry.name in METADATA and _is_plain_file(entry):
            continue
        found = str(entry.relative_to(store))
        if entry.name in SLOTS:
            found = _foreign_below(entry, store)
        if found:
            return found
    return None


def _foreign_below(node: Path, store: Path) -> str:
    """Return the first foreign entry at or below a group or array, or nothing."""
    here = str(node.relative_to(store))
    if node.is_symlink() or not node.is_dir() or not any((node / name).is_file() for name in NODE):
        return here
    is_array = (node / ".zarray").is_file() or _read(node / "zarr.json").get("node_type") == "array"
    for entry in sorted(node.iterdir()):
        if entry.name in METADATA and _is_plain_file(entry):
            continue
        found = _foreign_chunk(entry, store) if is_array else _foreign_below(entry, store)
        if found:
            return found
    return ""


def _foreign_chunk(entry: Path, store: Path) -> str:
    """Return the first entry at or below a place of chunks whose name is none of a chunk, or nothing."""
    if entry.is_symlink() or not CHUNK.fullmatch(entry.name):
        return str(entry.relative_to(store))
    if entry.is_dir():
        for inner in sorted(entry.iterdir()):
            found = _foreign_chunk(inner, store)
            if found:
                return found
    return ""


def _is_plain_file(entry: Path) -> bool:
    return entry.is_file() and not entry.is_symlink()


def _attributes(group: Path) -> dict[str, Any]:
    if (group / ".zgroup").is_file():
        return _read(group / ".zattrs")
    attributes = _read(group / "zarr.json").get("attributes")
    return attributes if isinstance(attributes, dict) else {}


def _read(path: Path) -> dict[str, Any]:
    """Return the metadata in a file, or nothing if there are none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
