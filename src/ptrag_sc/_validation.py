"""How is a user told that an input cannot be used? Value, place, remedy, in three shapes.

Each of the three returns the message; the caller raises the exception type that fits. The two checks below raise.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral

N_SHOWN = 6
MAX_TEXT = 300  # letters of what a library says


def listed(values: Iterable[object], limit: int = N_SHOWN) -> str:
    """``'a', 'b', ... (12 in all)``: the first ``limit`` values, quoted, and how many there are."""
    names = [str(value) for value in values]
    shown = ", ".join(repr(name) for name in names[:limit])
    if len(names) <= limit:
        return shown
    return f"{shown}, ... ({len(names)} in all)"


def shortened(error: object) -> str:
    """Text of an error of a library, which may hold a part of a file, for a message of ours."""
    text = str(error)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..."


def absent(what: str, value: object, place: str, found: Iterable[object], remedy: str) -> str:
    """Message for a value that was named but does not occur.

    >>> absent("Control label", "nt", "adata.obs['gene']", ["AARS", "ctrl"], "Pass control=...")
    "Control label 'nt' does not occur in adata.obs['gene'] (found: 'AARS', 'ctrl'). Pass control=..."
    """
    return f"{what} {str(value)!r} does not occur in {place} (found: {listed(found) or 'nothing'}). {remedy}"


def unusable(what: str, place: str, problem: str, remedy: str) -> str:
    """Message for something that is there but cannot be used.

    >>> unusable("Expression", "adata.X", "holds 3 NaN values", "Remove or impute them.")
    'Expression in adata.X holds 3 NaN values. Remove or impute them.'
    """
    return f"{what} in {place} {problem}. {remedy}"


def unknown(what: str, names: Iterable[str], place: str, known: Iterable[str], remedy: str) -> str:
    """Message for names that a table lacks, each with the closest names that it has, whatever their case.

    >>> unknown("Gene", ["STAT11"], "the gene embedding", ["STAT1", "JAK2"], "Pass aliases=...")
    "Gene 'STAT11' is not in the gene embedding (closest: 'STAT1'). Pass aliases=..."
    """
    lacking = [str(name) for name in names]
    written = {str(name).casefold(): str(name) for name in known}  # compared in lower case, shown as written
    close = {}
    for name in lacking[:N_SHOWN]:  # a comparison with a whole genome takes its time
        found = get_close_matches(name.casefold(), written, n=3, cutoff=0.6)
        if found:
            close[name] = listed(written[match] for match in found)
    if len(lacking) == 1:
        subject = f"{what} {lacking[0]!r} is not in {place}"
        closest = "".join(close.values())
    else:
        subject = f"{len(lacking)} {what.lower()}s are not in {place}: {listed(lacking)}"
        closest = "; ".join(f"{name!r}: {hits}" for name, hits in close.items())
    if not closest:
        return f"{subject}. {remedy}"
    return f"{subject} (closest: {closest}). {remedy}"


def check_whole(name: str, value: object, place: str, *, minimum: int = 0) -> None:
    """Refuse anything but a whole number of at least ``minimum``.

    Raises
    ------
    TypeError
        If the value is no whole number.
    ValueError
        If it is too small.

    Examples
    --------
    >>> check_whole("n_cells", 3, "the request", minimum=1)
    """
    # True is an Integral to Python, and a mistake here; numpy's whole numbers are Integral too.
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(unusable(f"{name}={value!r}", place, "is no whole number", f"Pass {name} as an int."))
    if int(value) < minimum:
        raise ValueError(unusable(f"{name}={value}", place, f"is below {minimum}", f"Pass {minimum} or more."))


def check_key(key: object, place: str, *, taken: Iterable[str] = ()) -> None:
    """Refuse a key under which nothing can be written, or under which an input is stored.

    Raises
    ------
    ValueError
        If the key is no string, is empty, contains ``/`` (which h5ad and zarr cannot read back), or is taken.

    Examples
    --------
    >>> check_key("ptrag", "tl.predict", taken=["gene_embedding"])
    """
    problem = None
    # The first problem found is enough for one message.
    if not isinstance(key, str) or not key:
        problem = "is no name"
    elif "/" in key:
        problem = "holds '/', which files cannot hold in a key"
    elif key in taken:
        problem = "is the name of an input"
    if problem:
        raise ValueError(unusable(f"key_added={key!r}", place, problem, "Pass another name."))
