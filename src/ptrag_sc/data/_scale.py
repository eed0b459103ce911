"""Is expression log1p of normalised counts, and on the scale that is known from other control cells?"""

import logging
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from ptrag_sc._validation import unusable
from ptrag_sc.data._on_disk import Block
from ptrag_sc.data._reader import CellReader, go_over

LARGEST = 15.0  # log1p of all the molecules of a cell that are scaled to a million is 13.8
RATIO = 1.4  # of two levels that are still one scale: other bases of the logarithm differ by 1.44 and more
TO_LOGS = "Run sc.pp.normalize_total(adata, target_sum=1e4) and sc.pp.log1p(adata) first."

logger = logging.getLogger(__name__)


class Values(NamedTuple):
    """What the stored values of a matrix look like."""

    n_bad: int  # NaN or infinite
    smallest: float
    largest: float
    whole: bool  # no value has a fraction

    @property
    def are_counts(self) -> bool:
        """Whether these are raw counts: whole numbers, some above 1."""
        return self.whole and self.smallest >= 0 and self.largest > 1


NO_VALUES = Values(0, 0.0, 0.0, whole=True)


class Look:
    """Learns in a pass what the values of a matrix look like; those that are not finite do not count for the others."""

    def __init__(self) -> None:
        self.found = NO_VALUES

    def add(self, rows: np.ndarray, block: Block) -> None:
        """Take some rows (n,) and their expression (n, G)."""
        n_bad, smallest, largest, whole = self.found
        values = block.data if sp.issparse(block) else np.asarray(block)
        low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
        if not np.isfinite(low + high):  # min and max propagate NaN and infinities
            finite = np.isfinite(values)
            n_bad += int(values.size - finite.sum())
            values = values[finite]
            low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
        smallest, largest = min(smallest, low), max(largest, high)
        # The first values are tried alone: for logarithms they nearly always decide, without a look at the rest.
        whole = whole and all((v == np.rint(v)).all() for v in (values[:64], values))
        self.found = Values(n_bad, smallest, largest, whole)


def look_at(reader: CellReader) -> Values:
    """Return what the values of a matrix look like, in one pass; see :class:`Look`."""
    look = Look()
    go_over(reader, [look], text="Checking")
    return look.found


def log_base(uns: Mapping[str, object]) -> float | None:
    """Return the base of the logarithm that scanpy wrote down, None if it is e or not known.

    Examples
    --------
    >>> log_base({"log1p": {"base": 2}}), log_base({"log1p": {}})
    (2.0, None)
    """
    noted = uns.get("log1p")
    if not isinstance(noted, Mapping) or noted.get("base") is None:
        return None
    base = float(np.asarray(noted["base"]).item())
    if np.isclose(base, np.e):
        return None
    return base


def check_expression(
    reader: CellReader,
    *,
    place: str,
    declared: bool,
    base: float | None = None,
    negative: bool = False,
    query: bool = False,
    found: Values | None = None,
) -> Values:
    """Refuse values that are no log1p of normalised counts, and return what the values look like.

    NaN and infinities are refused everywhere. The others are refused only in ``X``, because who names a layer declares
    its scale.

    Parameters
    ----------
    reader
        The matrix.
    place
        Its name, for messages.
    declared
        Whether it is a layer that the user named.
    base
        Base of the logarithm, if it is another than e.
    negative
        Whether values below 0 are allowed, as in predictions that are not realised as counts.
    query
        Whether a model reads it that knows other control cells. Then large values are warned of, not refused.
    found
        What its values look like; None: they are looked at.

    Raises
    ------
    ValueError
        With the number and kind of the offending values.
    """
    found = look_at(reader) if found is None else found
    if found.n_bad:
        problem = f"holds {found.n_bad} NaN or infinite values"
        raise ValueError(unusable("Expression", place, problem, "Remove or impute them, or leave these cells out."))
    if declared:
        return found
    problem, remedy = why_not_logs(found, base=base, negative=negative)
    if problem and query and found.largest > LARGEST and found.smallest >= 0 and not found.whole:
        logger.warning("Expression in %s %s.", place, problem)
    elif problem:
        raise ValueError(unusable("Expression", place, problem, remedy))
    return found


def why_not_logs(found: Values, *, base: float | None, negative: bool) -> tuple[str, str]:
    """Return why values are no log1p of normalised counts, and the remedy; two empty texts if they may be.

    Parameters
    ----------
    found
        What the values look like.
    base, negative
        As in :func:`check_expression`.
    """
    problem, remedy = "", TO_LOGS
    if found.smallest < 0 and not negative:
        problem = f"holds negative values (smallest {found.smallest:.3g})"
        remedy = "Use log1p of normalised counts, or register scaled data as a layer with layer=..."
    elif found.whole and found.largest == 0 and not negative:
        problem, remedy = "is zero everywhere", "Load the expression matrix."
    elif found.whole and found.smallest >= 0 and (found.largest > 1 or not negative):
        # Normalised expression has fractions, so whole numbers everywhere are counts.
        problem = f"holds raw counts (whole numbers up to {found.largest:g})"
    elif found.largest > LARGEST:
        problem = f"holds values up to {found.largest:.4g}; log1p of normalised counts stays below {LARGEST:g}"
        remedy = "Run sc.pp.log1p(adata) if it is normalised only, or register another scale as a layer with layer=..."
    elif base is not None:
        problem = f"is a logarithm to base {base:g} (uns['log1p']['base'])"
        remedy = f"Multiply it by log({base:g}): adata.X = adata.X * np.log({base:g}); del adata.uns['log1p']['base']."
    return problem, remedy if problem else ""


def level(mean: np.ndarray) -> float:
    """Return the level of mean expression (G,): its root mean square over genes."""
    return float(np.sqrt(np.mean(np.square(mean, dtype=float))))


def warn_of_levels(found: Mapping[str, float], known: Mapping[str, float], *, place: str, other: str) -> None:
    """Log a warning for each cell type whose mean expression is on another scale than in known control cells.

    Parameters
    ----------
    found
        Level of the cells of each cell type.
    known
        The same of the control cells that are known. A cell type that is not among them is compared with all of them.
    place
        Where the cells are, for messages.
    other
        What knows the other controls, for messages.
    """
    for name, value in found.items():
        levels = [known[name]] if name in known else list(known.values())
        levels = [one for one in levels if np.isfinite(one) and one > 0]
        if not levels or not np.isfinite(value) or min(levels) / RATIO <= value <= max(levels) * RATIO:
            continue
        nearest = min(levels, key=lambda one: abs(np.log(max(value, 1e-12) / one)))
        logger.warning(
            "The cells of %r in %s have a level of %.3g (root mean square over genes of their mean expression), the "
            "control cells that %s knows have %.3g. Is the expression normalised in the same way, to the same "
            "target_sum and base of the logarithm?",
            *(name, place, value, other, nearest),
        )
