"""How is a file fetched once, checked, and kept?"""

import importlib.util
from pathlib import Path

import pooch
from pooch.hashes import hash_matches

from ptrag_sc._validation import unusable
from ptrag_sc.data._files import StrPath, make_folder, write_beside


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
        If there is no checksum, or that of the download differs.
    OSError
        If the download fails.
    """
    if not (known_hash or "").rpartition(":")[2]:
        raise ValueError(unusable(what, url, f"has no checksum ({known_hash!r})", "Pass the one that its page shows."))
    file = folder / Path(url).name
    if file.is_file() and hash_matches(str(file), known_hash):
        return file
    # pooch draws its progress bar with tqdm, which this package does not require.
    has_tqdm = importlib.util.find_spec("tqdm") is not None

    def fetch(part: Path) -> None:
        pooch.retrieve(url, known_hash, fname=part.name, path=part.parent, progressbar=has_tqdm)

    make_folder(folder)
    try:
        write_beside(file, fetch)
    except OSError as error:
        raise OSError(unusable(what, url, f"could not be downloaded ({error})", remedy)) from error
    return file
