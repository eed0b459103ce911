"""How is a pickled table of vectors read without running what the pickle asks for?

A pickle is a program for a stack machine. The machine of this file knows only the instructions that a dict of names and
vectors needs. It refuses every other one, and every callable but those that rebuild a numpy array, before it acts.
"""

import io
import pickletools
from collections.abc import Callable
from typing import IO, Any, cast

import numpy as np

from ptrag_sc._validation import shortened, unusable
from ptrag_sc.datasets._gene_vectors import GeneVectors, gene_names, is_too_large
from ptrag_sc.datasets._pickled_values import ARGUMENTS, CALLS, Dtype, Named, RefusedError, Vector, as_array, as_vector

Step = Callable[["_Machine", Any], None]  # what an instruction does, given its argument

INSTRUCTIONS = {instruction.code: instruction for instruction in pickletools.opcodes}
BUFFER_BYTES = 1 << 14  # more than the 9,000 bytes of a full run of floats, little enough to copy for every run
MAX_STACK, MAX_DEPTH = 50_000, 100  # values at once (a tuple of whole numbers), and open marks
FLOAT_CODE = ord("G")
FLOAT_RECORD = np.dtype([("code", "u1"), ("value", ">f8")])
REMEDY = "Expected is a dict of names to lists of floats; from a source that you trust, save it as .npz instead."


def read_pickled_vectors(file: IO[bytes], *, place: str = "the file") -> GeneVectors:
    """Read a pickled dict of names to vectors; nothing that the pickle names is imported or called.

    A vector is a list, tuple or one-dimensional numpy array of numbers. Each becomes float32 while it is read, so that
    the Python floats of the whole table (24 bytes each) never exist.

    Parameters
    ----------
    file
        Binary file, pickle protocol 0 to 5. It is read to the end of the pickle or beyond, and left open.
    place
        Name of the file in messages.

    Returns
    -------
    Names (n,) and vectors (n, D) float32, in the order of the dict.

    Raises
    ------
    ValueError
        If the pickle asks for anything else (named in the message), is cut short, or holds vectors of unequal width.

    Examples
    --------
    >>> import io, pickle
    >>> table = read_pickled_vectors(io.BytesIO(pickle.dumps({"AARS": [0.5, 1.0], "STAT1": [2.0, 0.0]})))
    >>> table.genes.tolist(), table.vectors.tolist()
    (['AARS', 'STAT1'], [[0.5, 1.0], [2.0, 0.0]])
    """
    counted = _Counted(file)
    buffered: io.BufferedReader = io.BufferedReader(cast(Any, counted), BUFFER_BYTES)
    try:
        with np.errstate(over="ignore"):  # a number beyond float32 becomes inf, which GeneEmbedding.from_table refuses
            return _stacked(_Machine(buffered, counted).run(), counted.n_bytes, place)
    except RefusedError as error:
        raise ValueError(unusable("The pickle", place, shortened(error), REMEDY)) from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        problem = f"is cut short or damaged ({shortened(error)})"
        raise ValueError(unusable("The pickle", place, problem, REMEDY)) from error
    finally:
        buffered.detach()


class _Counted(io.RawIOBase):
    """A file, and how much of it was read."""

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.n_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self.file.read(len(buffer))
        buffer[: len(content)] = content
        self.n_bytes += len(content)
        return len(content)


class _Machine:
    """Stack machine for the instructions in ``STEPS``; its stack holds floats as arrays of one or more ("runs")."""

    def __init__(self, file: io.BufferedReader, counted: _Counted):
        self.file = file
        self.counted = counted
        self.n_numbers = 0  # of all vectors of tables
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each open mark
        self.memo: dict[int, object] = {}

    def run(self) -> object:
        while (code := self.file.read(1)) != b".":
            if not code:
                raise RefusedError("ends before its last instruction")
            instruction = INSTRUCTIONS.get(code.decode("latin-1"))
            if instruction is None:
                raise RefusedError(f"holds the unknown instruction {code!r}")
            argument = instruction.arg.reader(self.file) if instruction.arg else None
            if instruction.name not in STEPS:
                what = f"{instruction.name} {argument!r}".removesuffix(" None")
                raise RefusedError(f"asks for {what}, which a table does not need; nothing was run")
            STEPS[instruction.name](self, argument)
            if len(self.stack) > MAX_STACK or len(self.outer) > MAX_DEPTH:
                raise RefusedError("puts more on its stack than a table needs")
        return self.stack[-1]

    def close_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def take(self, n: int) -> list[Any]:
        if len(self.stack) < n:
            raise IndexError("too few values on the stack")
        items = self.stack[len(self.stack) - n :]
        del self.stack[len(self.stack) - n :]
        return items


def _check_size(n_numbers: int, n_bytes: int) -> None:
    """Refuse a pickle that names the same numbers again and again."""
    if is_too_large(n_numbers, n_bytes):
        raise RefusedError(f"makes {n_numbers:,} numbers of {n_bytes:,} bytes")


def _stacked(table: object, n_bytes: int, place: str) -> GeneVectors:
    if not isinstance(table, dict):
        raise RefusedError("holds something else, not a dict of vectors")
    if not table:
        raise RefusedError("holds nothing, not a dict of vectors")
    widths = np.array([len(value) for value in table.values()])  # (n,)
    odd = np.flatnonzero(widths != widths[0])
    genes = gene_names(table, place)  # (n,)
    _check_size(int(widths.sum()), n_bytes)
    if len(odd):
        name, width = str(genes[odd[0]]), widths[odd[0]]
        raise RefusedError(f"gives {name!r} {width} numbers, where {str(genes[0])!r} has {widths[0]}")
    return GeneVectors(genes, np.stack([value.joined() for value in table.values()]))


def _push_floats(machine: _Machine, value: float) -> None:
    """Push a float, and with it the floats that follow at once if the innermost mark holds nothing but floats."""
    only_floats = machine.outer and (not machine.stack or isinstance(machine.stack[0], np.ndarray))
    machine.stack.append(np.array([value], dtype=np.float32))
    if not only_floats:
        return
    # A vector is a thousand instructions "G, 8 bytes": one numpy call for what the buffer holds of them saves minutes.
    ahead = machine.file.peek()
    records = np.frombuffer(ahead, FLOAT_RECORD, count=len(ahead) // FLOAT_RECORD.itemsize)
    is_other = np.append(records["code"] != FLOAT_CODE, True)  # so that there is always a first other one
    n = int(np.argmax(is_other))
    if n:
        machine.stack.append(records["value"][:n].astype(np.float32))
        machine.file.read(n * FLOAT_RECORD.itemsize)


def _push(machine: _Machine, value: object) -> None:
    machine.stack.append(value)


def _mark(machine: _Machine, _: None) -> None:
    machine.outer.append(machine.stack)
    machine.stack = []


def _remember(machine: _Machine, place: int | None) -> None:
    machine.memo[len(machine.memo) if place is None else place] = machine.stack[-1]  # MEMOIZE names no place


def _push_tuple(machine: _Machine, items: list[Any]) -> None:
    # With floats it is a vector, else the arguments of a callable.
    machine.stack.append(as_vector(items) if any(isinstance(item, np.ndarray) for item in items) else tuple(items))


def _extend(machine: _Machine, items: list[Any]) -> None:
    vector = machine.stack[-1]
    if not isinstance(vector, Vector):
        raise TypeError("a list was expected")
    vector.chunks.extend(as_vector(items).chunks)


def _set_items(machine: _Machine, items: list[Any]) -> None:
    table = machine.stack[-1]
    if not isinstance(table, dict) or len(items) % 2:
        raise TypeError("a dict was expected")
    for name, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(name, str):
            raise RefusedError(f"holds the key {name!r}, which is no name")
        value = as_vector(value) if isinstance(value, tuple) else value  # a tuple of whole numbers
        if not isinstance(value, Vector):
            raise RefusedError(f"gives {name!r} a value of type {type(value).__name__}, not a vector")
        machine.n_numbers += len(value)
        _check_size(machine.n_numbers, machine.counted.n_bytes)
        value.joined()
        table[name] = value


def _push_dict(machine: _Machine, _: None) -> None:
    items = machine.close_mark()
    machine.stack.append({})
    _set_items(machine, items)


def _push_callable(machine: _Machine, name: str) -> None:
    if name not in CALLS and name not in ARGUMENTS:
        raise RefusedError(f"asks for the callable {name.replace(' ', '.')!r}, which is refused; nothing was run")
    machine.stack.append(Named(name))


def _call(machine: _Machine, _: None) -> None:
    function, arguments = machine.take(2)
    name = function.name.replace(" ", ".") if isinstance(function, Named) else type(function).__name__
    if not isinstance(function, Named) or function.name not in CALLS or not isinstance(arguments, tuple):
        raise RefusedError(f"asks to call {name!r}, which is refused; nothing was run")
    machine.stack.append(CALLS[function.name](*arguments))


def _build(machine: _Machine, _: None) -> None:
    target, state = machine.take(2)
    if isinstance(target, Dtype):
        target.order = {"<": "<", ">": ">"}.get(state[1], "=")
    elif isinstance(target, Vector):
        _, shape, dtype, _, data = state  # version and Fortran order do not matter for one axis
        target.chunks = as_array(data, dtype, shape).chunks
    else:
        raise RefusedError(f"asks to set the state of {type(target).__name__!r}, which is refused; nothing was run")
    machine.stack.append(target)


STEPS: dict[str, Step] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    "MARK": _mark,
    "FLOAT": lambda machine, value: machine.stack.append(np.array([value], dtype=np.float32)),
    "BINFLOAT": _push_floats,
    "NONE": _push,
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_TUPLE": lambda machine, _: _push_tuple(machine, []),
    "TUPLE1": lambda machine, _: _push_tuple(machine, machine.take(1)),
    "TUPLE2": lambda machine, _: _push_tuple(machine, machine.take(2)),
    "TUPLE3": lambda machine, _: _push_tuple(machine, machine.take(3)),
    "TUPLE": lambda machine, _: _push_tuple(machine, machine.close_mark()),
    "EMPTY_LIST": lambda machine, _: machine.stack.append(Vector()),
    "LIST": lambda machine, _: _push(machine, as_vector(machine.close_mark())),
    "APPEND": lambda machine, _: _extend(machine, machine.take(1)),
    "APPENDS": lambda machine, _: _extend(machine, machine.close_mark()),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "DICT": _push_dict,
    "SETITEM": lambda machine, _: _set_items(machine, machine.take(2)),
    "SETITEMS": lambda machine, _: _set_items(machine, machine.close_mark()),
    "GLOBAL": _push_callable,
    "STACK_GLOBAL": lambda machine, _: _push_callable(machine, " ".join(machine.take(2))),
    "REDUCE": _call,
    "BUILD": _build,
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"), _push),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), _push),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, place: machine.stack.append(machine.memo[place])),
}
