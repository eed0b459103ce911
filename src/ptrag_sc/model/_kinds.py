"""Is a value of a JSON text of the kind that is expected in its place?

A kind is a type, one of the names of this file, a value, a list of one kind, a dict of kinds (of one kind for all
names, if ``str`` is its key) or a tuple of alternatives.
"""

import math
from typing import Any, TypeAlias

from ptrag_sc.model._stored_tensors import DamagedError

Kind: TypeAlias = Any

NUMBER = "a finite number"
ANY_NUMBER = "a number, NaN or infinity"
COUNT = "a whole number that is not negative"
LARGEST = 1e300
SHOWN = 60  # letters of a wrong value or name in a message


def check_kind(value: object, kind: Kind, place: str) -> None:
    """Compare a value with the kind that is expected in its place.

    Raises
    ------
    DamagedError
        With the value and its place.

    Examples
    --------
    >>> check_kind({"n": 3, "names": ["a"]}, {"n": COUNT, "names": [str]}, "the file")
    """
    if isinstance(kind, list) and isinstance(value, list):
        for i, inner in enumerate([] if _are(value, kind[0]) else value):
            if not _is(inner, kind[0]):
                check_kind(inner, kind[0], f"{place}[{i}]")
    elif isinstance(kind, dict) and isinstance(value, dict):
        _check_dict(value, kind, place)
    elif isinstance(kind, tuple) and isinstance(kind[0], list | dict) and value is not None:
        check_kind(value, kind[0], place)  # the other alternative is None, and the first says what is wrong
    elif not _is(value, kind):
        shown = f"a {type(value).__name__}"
        if isinstance(value, str | int | float):
            shown = repr(value)[:SHOWN]
        raise DamagedError(f"holds {shown} in {place}, where {_named(kind)} is expected")


def _check_dict(value: dict[str, Any], kind: dict[Any, Kind], place: str) -> None:
    if str not in kind and set(value) != set(kind):
        lacking, further = sorted(set(kind) - set(value)), sorted(set(value) - set(kind))
        problem = f"lacks {lacking[0]!r}" if lacking else f"holds the unknown {further[0][:SHOWN]!r}"
        raise DamagedError(f"{problem} in {place}")
    for name, inner in value.items():
        check_kind(inner, kind.get(name, kind.get(str)), f"{place}/{name[:SHOWN]}")


def _are(values: list[Any], kind: Kind) -> bool:
    """Return whether all values of a list are surely of a kind: long lists are looked at as a whole."""
    types = set(map(type, values))
    if isinstance(kind, type):
        return types <= {kind}
    if isinstance(kind, tuple):  # alternatives, of which the texts are looked at
        texts = {one for one in kind if isinstance(one, str)} - {NUMBER, ANY_NUMBER, COUNT}
        return types == {str} and set(values) <= texts
    if kind == COUNT:
        return types == {int} and min(values) >= 0 and max(values) < 2**62
    if kind == NUMBER:
        # A NaN is neither above nor below anything, so it is looked for by itself.
        return types == {float} and math.isfinite(sum(map(abs, values))) and max(map(abs, values)) < LARGEST
    return False


def _is(value: object, kind: Kind) -> bool:
    """Return whether a value is of a kind without parts."""
    if isinstance(kind, tuple):
        return any(_is(value, one) for one in kind)
    if kind == ANY_NUMBER:
        return type(value) in (int, float)
    if kind == NUMBER:
        return isinstance(value, int | float) and type(value) is not bool and -LARGEST < value < LARGEST
    if kind == COUNT:
        return type(value) is int and 0 <= value < 2**62
    if isinstance(kind, type):
        return type(value) is kind  # True is no number here
    if isinstance(kind, list):
        return isinstance(value, list) and (_are(value, kind[0]) or all(_is(inner, kind[0]) for inner in value))
    if isinstance(kind, dict):
        if not isinstance(value, dict) or (str not in kind and set(value) != set(kind)):
            return False
        return all(_is(inner, kind.get(name, kind.get(str))) for name, inner in value.items())
    return type(value) is type(kind) and bool(value == kind)


def _named(kind: Kind) -> str:
    if isinstance(kind, tuple):
        return " or ".join(_named(one) for one in kind)
    if isinstance(kind, list | dict):
        return f"a {type(kind).__name__}"
    if isinstance(kind, type):
        return f"a {kind.__name__}"
    if kind in (NUMBER, ANY_NUMBER, COUNT):
        return str(kind)
    return repr(kind)
