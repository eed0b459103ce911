"""How is a file replaced so that no reader ever sees half of it, and nothing else is lost?"""

import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from filelock import FileLock, Timeout

from ptrag_sc._validation import unusable
from ptrag_sc.data._disk_space import check_space, full_disk_named
from ptrag_sc.data._stores import foreign_entry

StrPath: TypeAlias = str | os.PathLike[str]
Write: TypeAlias = Callable[[Path], object]  # makes the file or folder that it is given

LOCK = "lock"  # file in the folder of a write, locked while its process lives
REPLACED = "replaced"  # in the same folder: the old target while a folder takes its place
PART = ".part"  # end of that folder's name
TRIES = 20  # of removing a folder
LONGEST = 200  # bytes of a name that a hidden name can hold, of the 255 that most file systems allow

logger = logging.getLogger(__name__)


def make_folder(path: Path) -> None:
    """Make a folder, parents included, if it is not there.

    Raises
    ------
    NotADirectoryError
        If a file stands in its place.
    OSError
        If the system does not let it be made.
    """
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(unusable("The path", str(path), "is a file", "Pass the path of a folder."))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # a file above it, a link to nothing, no permission
        problem = f"cannot be made ({error.strerror})"
        raise OSError(error.errno, unusable("The folder", str(path), problem, "Pass another folder.")) from error


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
        If it exists and ``overwrite`` is False, or what is in its place would not be replaced (:func:`check_place`).
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
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        problem = f"should stand in the folder {str(target.parent)!r}, which does not exist"
        raise FileNotFoundError(unusable(f"out={str(path)!r}", "the request", problem, "Make the folder first."))
    check_place(path, overwrite=overwrite)
    return path


def check_place(path: Path, *, overwrite: bool) -> None:
    """Refuse a target that must not be replaced, after the traces of a killed write to it were removed.

    Raises
    ------
    FileExistsError
        If it exists and ``overwrite`` is False, if it is neither file nor folder (a pipe, a device), or a folder that
        holds anything but the parts of an AnnData store.
    """
    target = Path(os.path.realpath(path))
    _clear_killed(target)
    if not target.exists():
        return
    if not overwrite:
        raise FileExistsError(unusable("A file", str(path), "exists", "Pass overwrite=True or another name."))
    # Whatever else is there may be work of the user, which overwrite=True must not delete.
    if target.is_dir():
        foreign = foreign_entry(target)
        if foreign is not None:
            problem = f"is no zarr store of an AnnData alone: it holds {foreign!r}"
            raise FileExistsError(unusable("A folder", str(path), problem, "Pass another name."))
    elif not target.is_file():
        raise FileExistsError(unusable("What stands", str(path), "is no file", "Pass another name."))


def write_beside(path: Path, write: Write, *, overwrite: bool = True, n_bytes: int = 0) -> None:
    """Write one file or folder as :func:`write_together` does."""
    write_together({path: write}, overwrite=overwrite, n_bytes=n_bytes)


def write_together(writes: Mapping[Path, Write], *, overwrite: bool = True, n_bytes: int = 0) -> None:
    """Fill files or folders beside their targets, and rename them when all are complete and on the disk.

    If one write fails, all targets keep their old content. A symbolic link stays and the file that it names is
    replaced. What a killed process left of a write to the same target is removed, with a line in the log.

    Parameters
    ----------
    writes
        For each target the function that makes it.
    overwrite
        Whether a target that exists may be replaced; if not, of two processes one fails.
    n_bytes
        How many bytes all of them need, as far as known; they are looked for before the first write.

    Raises
    ------
    FileExistsError
        See :func:`check_place`.
    OSError
        If the disk is full; the message names the target and the bytes.
    """
    with ExitStack() as stack:
        complete = []
        for path, write in writes.items():
            check_place(path, overwrite=overwrite)
            target = Path(os.path.realpath(path))
            with full_disk_named(path, target.parent):
                check_space(target, n_bytes)
                part = stack.enter_context(_folder_beside(target)) / path.name
                write(part)
                _flush(part)
            complete.append((part, target))
        for part, target in complete:
            check_place(target, overwrite=overwrite)  # again, because writing may have taken hours
            _move(part, target, overwrite=overwrite)
            _sync(target.parent)


@contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    """Make a folder for one write in the folder of the target, and remove it with all that it still holds."""
    # In the same folder, because a rename is one step only within one file system.
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_hidden(target), suffix=PART, dir=target.parent))
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
            if (folder / LOCK).exists():
                break
            lock.release()
        except (Timeout, FileNotFoundError, FileExistsError):
            pass  # another process took the folder for one of a killed write, and removes it
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    try:
        yield folder
    finally:
        _remove(folder, lock, target)


def _hidden(target: Path) -> str:
    """Return how the names of folders beside a target begin."""
    name = target.name
    if len(os.fsencode(name)) > LONGEST:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".{name}."


def _clear_killed(target: Path) -> None:
    """Remove what killed processes left of writes to a target, and move it back if one died while it was replaced."""
    pattern = re.compile(re.escape(_hidden(target)) + r"\w{8}" + re.escape(PART))
    entries = target.parent.iterdir() if target.parent.is_dir() else ()
    for folder in [entry for entry in entries if pattern.fullmatch(entry.name)]:
        with suppress(OSError):
            folder.rmdir()  # empty: its process was killed before it had a lock, or makes it anew
            continue
        lock = FileLock(folder / LOCK)
        try:
            # A process that lives holds the lock of its folder, so two writes to one target do not disturb each other.
            lock.acquire(timeout=0)
        except (Timeout, OSError, NotImplementedError):  # alive, or not to be told where files cannot be locked
            continue
        _remove(folder, lock, target)
        logger.warning("Removed %s, which a write to %s left when it was killed.", folder, target)


def _remove(folder: Path, lock: FileLock, target: Path) -> None:
    """Remove the folder of a write while it is locked, so that nobody else begins to remove it or to write there."""
    _restore(folder, target)
    for _ in range(TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if _is_empty(folder):
            break
        time.sleep(0.1)  # threads of a write that failed still write chunks
    lock.release()
    with suppress(OSError):  # gone, except where a file that is open cannot be removed
        folder.rmdir()


def _is_empty(folder: Path) -> bool:
    """Return whether nothing but a lock that is open is left of a folder."""
    try:
        return set(os.listdir(folder)) <= {LOCK}
    except OSError:  # it is gone
        return True


def _restore(folder: Path, target: Path) -> None:
    aside = folder / REPLACED
    if aside.exists() and not target.exists():
        aside.rename(target)
        logger.warning("%s is back: a write was interrupted while it was replaced.", target)


def _move(part: Path, target: Path, *, overwrite: bool) -> None:
    if not overwrite:
        _move_to_free_place(part, target)
    elif target.is_dir() or (part.is_dir() and target.exists()):
        # A folder cannot be replaced in one step. Until the second rename the next write would move the old one back.
        target.rename(part.with_name(REPLACED))
        part.rename(target)
    else:
        part.replace(target)


def _move_to_free_place(part: Path, target: Path) -> None:
    """Rename, unless another process made the target in the meantime."""
    try:
        if part.is_dir():
            part.rename(target)  # fails if the target is a folder that is not empty
            return
        os.link(part, target)  # fails if the target exists, as a rename does not
        part.unlink()
    except OSError as error:
        if target.exists():
            problem = "was made by another process in the meantime"
            raise FileExistsError(unusable("A file", str(target), problem, "Pass another name.")) from error
        part.rename(target)  # some file systems have no hard links


def _flush(path: Path) -> None:
    """Wait until a file, or a folder with all in it, is on the disk: a rename may be there before the content."""
    if path.is_dir():
        for entry in path.iterdir():
            _flush(entry)
    _sync(path)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # where a folder cannot be opened
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
