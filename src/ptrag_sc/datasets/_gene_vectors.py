"""What is a table of gene vectors, and how much may come out of a file that says it holds one?"""

from collections.abc import Iterable
from numbers import Integral
from typing import NamedTuple

import numpy as np

from ptrag_sc._validation import unusable

MAX_NAME = 500  # letters; numpy gives every name of an array as much room as the longest
FREE_NUMBERS = 2**24  # 128 MB as float64: what any file may hold
NUMBERS_PER_BYTE = 8  # of a larger file: more cannot come of vectors, but of zeros that were packed


class GeneVectors(NamedTuple):
    """A table of vectors with the names of its rows."""

    genes: np.ndarray  # (n,) str
    vectors: np.ndarray  # (n, D) float32


def gene_names(values: Iterable[object], place: str) -> np.ndarray:
    """Return the names of rows as an array of text.

    Parameters
    ----------
    values
        Names (n,): text, bytes or whole numbers.
    place
        Name of the table in messages.

    Raises
    ------
    ValueError
        If a name is longer than any gene's, or is nothing of these.

    Examples
    --------
    >>> gene_names(["AARS", b"JAK2"], "the example").tolist()
    ['AARS', 'JAK2']
    """
    values = list(values)
    strange = [value for value in values if not isinstance(value, str | bytes | Integral)]
    if strange:
        problem = f"has names that are no text (a {type(strange[0]).__name__})"
        raise ValueError(unusable("Gene embedding", place, problem, "Name the rows by symbols of genes."))
    names = [value.decode() if isinstance(value, bytes) else str(value) for value in values]
    longest = max(names, key=len, default="")
    if len(longest) > MAX_NAME:
        problem = f"has a name of {len(longest)} letters ({longest[:20]!r}...)"
        raise ValueError(unusable("Gene embedding", place, problem, "Name the rows by symbols of genes."))
    if any("\0" in name for name in names):  # numpy and h5py end a text there
        raise ValueError(unusable("Gene embedding", place, "has a name with a zero byte", "Remove it from the names."))
    return np.array(names, dtype=str)


def is_too_large(n_numbers: int, n_bytes: int) -> bool:
    """Return whether more numbers are said to be in a file than vectors in so many bytes can be.

    Examples
    --------
    >>> is_too_large(10**6, 1000), is_too_large(10**9, 10**6), is_too_large(10**9, 10**9)
    (False, True, False)
    """
    return n_numbers > FREE_NUMBERS + NUMBERS_PER_BYTE * n_bytes


def check_size(n_numbers: int, n_bytes: int, place: str) -> None:
    """Refuse a file that would fill the memory.

    Raises
    ------
    ValueError
        If :func:`is_too_large`.

    Examples
    --------
    >>> check_size(10**6, 1000, "the example")
    """
    if is_too_large(n_numbers, n_bytes):
        problem = f"says that it holds {n_numbers:,} numbers in {n_bytes:,} bytes"
        remedy = "Pass a file of gene vectors only, as .npz without compression if most of their numbers are equal."
        raise ValueError(unusable("Gene embedding", place, problem, remedy))
