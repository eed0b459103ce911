"""Is there room on the disk, and what is said when there is none?"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ptrag_sc._validation import unusable

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_space(path: Path, n_bytes: int) -> None:
    """Refuse a write for which the disk has too little space.

    Raises
    ------
    OSError
        With ``errno.ENOSPC``.
    """
    free = shutil.disk_usage(path.parent).free
    if n_bytes > free:
        raise OSError(errno.ENOSPC, f"{n_bytes:,} bytes are needed, {free:,} are free")


@contextmanager
def full_disk_named(path: Path, folder: Path) -> Iterator[None]:
    """Make one error of the many that libraries raise when a disk is full."""
    free = shutil.disk_usage(folder).free
    try:
        yield
    except Exception as error:  # h5py, zarr, zip files and pandas raise different ones
        code = _full_disk_code(error)
        if code is None:
            raise
        found = f"more than the {free:,} bytes that were free are needed"
        if isinstance(error, OSError) and "bytes are needed" in str(error.strerror):
            found = str(error.strerror)  # of check_space
        elif code == errno.EFBIG:
            found = f"files are limited here, {free:,} bytes were free"
        problem = f"could not be written: {os.strerror(code)} ({found})"
        remedy = "Free some space, or write to another disk."
        raise OSError(code, unusable("The file", str(path), problem, remedy)) from error


def _full_disk_code(error: BaseException) -> int | None:
    """Return which limit of the disk an error, or one behind it, speaks of."""
    current: BaseException | None = error
    while current is not None:
        # HDF5 has the number in its text only.
        stated = re.search(r"errno = (\d+)", str(current))
        codes = (getattr(current, "errno", None), stated and int(stated[1]))
        for code in codes:
            if code in FULL:
                return code
        current = current.__cause__ or current.__context__
    return None
