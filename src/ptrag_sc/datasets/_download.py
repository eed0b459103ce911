"""How is a file fetched once, checked, and kept?"""

import importlib.util
import logging
from pathlib import Path
from urllib.parse import unquote

import pooch
from pooch.hashes import hash_matches

from ptrag_sc._validation import shortened, unusable
from ptrag_sc.data._files import LONGEST, StrPath, make_folder, write_beside

logger = logging.getLogger(__name__)


def cache_folder(chosen: StrPath | None) -> Path:
    """Return the folder of downloads: the chosen one, or the user's cache folder for ptrag_sc."""
    if chosen is None:
        chosen = pooch.os_cache("ptrag_sc")
    return Path(chosen)


def download(url: str, known_hash: str | None, folder: Path, *, what: str, remedy: str) -> Path:
    """Return a file of a folder, downloaded if it is not there or has another checksum.

    A download that was killed leaves nothing for long: the next one removes it.

    Parameters
    ----------
    url, known_hash
        Address and checksum, as for :func:`pooch.retrieve`.
    folder
        Where it is kept.
    what, remedy
        Its name, and what helps if it cannot be downloaded, for messages.

    Raises
    ------
    ValueError
        If the address has no name of a file, there is no usable checksum, or that of the download differs.
    OSError
        If the download fails, or its folder cannot be used.
    """
    known_hash = str(known_hash or "").strip()
    check_hash(known_hash, url, what)
    file = folder / _file_name(url, what)
    make_folder(folder)
    if _is_whole(file, known_hash):
        return file
    # pooch draws its progress bar with tqdm, which this package does not require.
    has_tqdm = importlib.util.find_spec("tqdm") is not None

    def fetch(part: Path) -> None:
        try:
            pooch.retrieve(url, known_hash, fname=part.name, path=part.parent, progressbar=has_tqdm)
        except OSError:  # requests has such an error even for an address that is none
            raise
        except ValueError as error:
            raise ValueError(unusable(what, url, f"cannot be used ({shortened(error)})", remedy)) from error
        except Exception as error:  # of ftplib, or for a package that is not installed
            raise OSError(f"{type(error).__name__}: {error}") from error

    try:
        write_beside(file, fetch)
    except OSError as error:
        problem = f"could not be downloaded to {str(file)!r} ({shortened(error)})"
        stated = [] if error.errno is None else [error.errno]  # so that callers can tell a full disk
        raise OSError(*stated, unusable(what, url, problem, remedy)) from error
    return file


def check_hash(known_hash: str, url: str, what: str) -> None:
    """Refuse a checksum with which nothing can be compared.

    Raises
    ------
    ValueError
        If it is empty, of an unknown kind, or not as long as its kind is.
    """
    kind, _, digits = known_hash.rpartition(":")
    if not digits:
        raise ValueError(unusable(what, url, f"has no checksum ({known_hash!r})", "Pass the one that its page shows."))
    lengths = {"": 64, "sha256": 64, "md5": 32, "sha1": 40, "sha512": 128}
    if len(digits) != lengths.get(kind) or set(digits.lower()) - set("0123456789abcdef"):
        remedy = "Pass it as 'md5:' or 'sha256:' and its 32 or 64 digits."
        raise ValueError(unusable(what, url, f"cannot be compared with the checksum {known_hash!r}", remedy))


def _file_name(url: str, what: str) -> str:
    """Return under which name an address is kept: its last part, without a query."""
    name = Path(unquote(url.partition("?")[0].partition("#")[0])).name
    if "/" not in url or url.partition("://")[2].strip("/") == name or name in ("", "..") or len(name) > LONGEST:
        problem = "is no address of a file"
        raise ValueError(unusable(what, repr(url), problem, "Pass one that ends in the name of a file."))
    return name


def _is_whole(file: Path, known_hash: str) -> bool:
    """Return whether a file was downloaded before and has the checksum; say so if it has another."""
    if not file.is_file():
        if file.exists():
            raise OSError(unusable("A download", str(file), "has a folder in its place", "Remove the folder."))
        return False
    if hash_matches(str(file), known_hash):
        return True
    logger.warning("%s is damaged or another file: its checksum is not %s. It is fetched again.", file, known_hash)
    return False
