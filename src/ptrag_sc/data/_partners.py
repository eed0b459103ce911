"""Which labels of one object have no partner in another, and what happens to their cells?"""

import logging
from collections.abc import Iterable

from ptrag_sc._validation import unknown

logger = logging.getLogger(__name__)


def without_partner(
    what: str,
    names: Iterable[object],
    known: Iterable[object],
    *,
    place: str,
    result: str,
    level: int = logging.WARNING,
) -> list[str]:
    """Return the labels that another object lacks, and name them in a log line, each with the closest known ones.

    Parameters
    ----------
    what
        Kind of label, such as ``"Batch"``.
    names
        Labels of one object.
    known
        Labels of the other.
    place
        The other object.
    result
        What happens to the cells with these labels.
    level
        Level of the log line. A label that differs from a known one in case or blanks only is a warning in any case.
    """
    present = {str(name) for name in known}
    lacking = sorted({str(name) for name in names} - present)
    if lacking:
        written = {_simplified(name) for name in present}
        if any(_simplified(name) in written for name in lacking):
            level = logging.WARNING
        logger.log(level, "%s", unknown(what, lacking, place, sorted(present), result))
    return lacking


def _simplified(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())
