"""How are tensors read from a file of ``torch.save`` without running anything that the file asks for?

Such a file is a zip archive: a pickle says which part of which record each tensor is. A pickle is a program. The
machine of this file knows only the instructions that a dict of tensors and plain values needs, and none of them makes
anything that is larger than the file: records are stored as they are, and a tensor is never larger than its record.
``torch.load`` checks neither the lengths nor the checksums of records.
"""

import math
import pickletools
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

MAX_RECORDS = 10_000  # many times what a model has; an archive of more takes long to open
STEPS_PER_RECORD = 40  # of the pickle, which has 25 for each tensor
STEPS_FOR_HUB = 2000
FOR_HUB = "attr_dict"  # what scvi-tools reads from a file is stored too, and not read here
DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
}
REBUILD = "torch._utils _rebuild_tensor_v2"
EMPTY = "collections OrderedDict"  # of hooks, which a stored tensor has none of
MARK = object()


class DamagedError(ValueError):
    """What a file holds is not what was written; the message says what, without the name of the file."""


class _Storage(NamedTuple):
    """A record of the archive."""

    dtype: torch.dtype
    record: str
    numel: int


class _Tensor(NamedTuple):
    """A part of a record."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_stored(path: Path) -> dict[str, Any]:
    """Return the dict that was given to ``torch.save``: strings, tensors on the host, and dicts of them.

    Raises
    ------
    DamagedError
        If the file is no such archive, is damaged, or asks for anything else.
    OSError
        If it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = _records(archive, path.stat().st_size)
            max_steps = STEPS_PER_RECORD * len(records) + STEPS_FOR_HUB
            content = _plain(_Machine(archive.read(records["data.pkl"]), max_steps).run())
            # zipfile compares the checksum of each record that it reads.
            return {name: _filled(value, archive, records) for name, value in content.items() if name != FOR_HUB}
    except DamagedError:
        raise
    except (zipfile.BadZipFile, EOFError) as error:
        raise DamagedError(f"is cut short or damaged ({error})") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise DamagedError(f"is damaged ({error})") from error
    except Exception as error:  # zipfile, pickletools and torch raise many kinds
        raise DamagedError(f"is damaged or no model ({type(error).__name__}: {error})") from error


def _records(archive: zipfile.ZipFile, n_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """Return the records of an archive by the names that the pickle gives them."""
    entries = archive.infolist()
    if len(entries) > MAX_RECORDS:
        raise DamagedError(f"holds {len(entries)} records, more than any model has")
    # Whatever is packed could be any size when it is unpacked.
    packed = [e.filename for e in entries if e.compress_type != zipfile.ZIP_STORED or e.file_size != e.compress_size]
    if packed:
        raise DamagedError(f"holds the compressed record {packed[0]!r}")
    if sum(entry.file_size for entry in entries) > n_bytes:
        raise DamagedError(f"says that it holds more than its {n_bytes} bytes")
    roots = [entry.filename.removesuffix("data.pkl") for entry in entries if entry.filename.endswith("/data.pkl")]
    if len(roots) != 1 or len({entry.filename for entry in entries}) < len(entries):
        raise DamagedError("is no archive of torch.save")
    root = roots[0]
    records = {e.filename.removeprefix(root): e for e in entries if e.filename.startswith(root)}
    order = b"little"
    if "byteorder" in records:
        order = archive.read(records["byteorder"])
    if order.decode("ascii") != sys.byteorder:
        raise DamagedError(f"was written by a machine of another byte order ({order!r})")
    return records


def _filled(value: Any, archive: zipfile.ZipFile, records: dict[str, zipfile.ZipInfo]) -> Any:
    """Return a value with tensors in place of their descriptions."""
    if isinstance(value, dict):
        return {name: _filled(inner, archive, records) for name, inner in _plain(value).items()}
    if isinstance(value, str):
        return value
    if not isinstance(value, _Tensor):
        raise DamagedError(f"holds a {type(value).__name__.lower().strip('_')} where a tensor was expected")
    storage, offset, size, stride = value
    record = records[f"data/{storage.record}"]
    if storage.numel * storage.dtype.itemsize != record.file_size:
        raise DamagedError(f"holds {record.file_size} bytes in {record.filename!r}, not {storage.numel} numbers")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or math.prod(size) > storage.numel or (all(size) and last >= storage.numel):
        raise DamagedError(f"holds a tensor of shape {size} that is larger than its record {record.filename!r}")
    if not storage.numel:
        return torch.empty(size, dtype=storage.dtype)
    flat = torch.frombuffer(bytearray(archive.read(record)), dtype=storage.dtype)
    return flat.as_strided(size, stride, offset).contiguous()


def _plain(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise DamagedError("holds something else than a dict with names")
    return value


class _Machine:
    """Stack machine for the instructions in ``STEPS``, and no others."""

    def __init__(self, pickle: bytes, max_steps: int):
        self.pickle = pickle
        self.max_steps = max_steps
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for i, (instruction, argument, _) in enumerate(pickletools.genops(self.pickle)):
            if i > self.max_steps:
                raise DamagedError("holds a pickle that is too long for its tensors")
            if instruction.name == "STOP":
                return self.stack[-1]
            if instruction.name not in STEPS:
                raise DamagedError(f"asks for {instruction.name}, which tensors do not need; nothing was run")
            STEPS[instruction.name](self, argument)
        raise DamagedError("ends before its last instruction")

    def take(self, n: int) -> tuple[Any, ...]:
        if n > len(self.stack) or any(item is MARK for item in self.stack[len(self.stack) - n :]):
            raise DamagedError("holds a pickle with too few values")
        items = tuple(self.stack[len(self.stack) - n :])
        del self.stack[len(self.stack) - n :]
        return items

    def take_to_mark(self) -> tuple[Any, ...]:
        n = 0
        while self.stack[-1 - n] is not MARK:
            n += 1
        items = self.take(n)
        self.stack.pop()
        return items


def _push(machine: _Machine, value: Any) -> None:
    machine.stack.append(value)


def _push_name(machine: _Machine, name: str) -> None:
    known = (REBUILD, EMPTY, *(f"torch {storage}" for storage in DTYPES))
    if name not in known:
        raise DamagedError(f"asks for {name.replace(' ', '.')!r}, which is refused; nothing was run")
    machine.stack.append(_Name(name))


class _Name(NamedTuple):
    """What a pickle calls a function or class; never imported."""

    name: str


def _call(machine: _Machine, _: None) -> None:
    function, arguments = machine.take(2)
    if function == _Name(EMPTY) and arguments == ():
        machine.stack.append({})
        return
    if function != _Name(REBUILD) or not isinstance(arguments, tuple) or len(arguments) != 6:
        raise DamagedError("asks for a call, which is refused; nothing was run")
    storage, offset, size, stride, _, _ = arguments
    numbers = (offset, *size, *stride)
    if not isinstance(storage, _Storage) or any(type(number) is not int for number in numbers):
        raise DamagedError("describes a tensor by something else than numbers")
    machine.stack.append(_Tensor(storage, offset, tuple(size), tuple(stride)))


def _push_storage(machine: _Machine, _: None) -> None:
    (described,) = machine.take(1)
    kind, dtype, record, _, numel = described
    dtypes = {_Name(f"torch {storage}"): dtype for storage, dtype in DTYPES.items()}
    if kind != "storage" or not isinstance(record, str) or type(numel) is not int:
        raise DamagedError("describes a record by something else than its name and length")
    machine.stack.append(_Storage(dtypes[dtype], record, numel))


def _set_items(machine: _Machine, items: tuple[Any, ...]) -> None:
    table = machine.stack[-1]
    if not isinstance(table, dict) or len(items) % 2:
        raise DamagedError("holds a pickle that sets items of no dict")
    for name, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(name, str):
            raise DamagedError("holds a name that is no text")
        table[name] = value


def _append(machine: _Machine, items: tuple[Any, ...]) -> None:
    if not machine.stack or not isinstance(machine.stack[-1], list):
        raise DamagedError("holds a pickle that appends to no list")
    machine.stack[-1].extend(items)


def _remember(machine: _Machine, place: int) -> None:
    machine.memo[place] = machine.stack[-1]


STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "MARK": lambda machine, _: _push(machine, MARK),
    "GLOBAL": _push_name,
    "REDUCE": _call,
    "BINPERSID": _push_storage,
    "EMPTY_DICT": lambda machine, _: _push(machine, {}),
    "EMPTY_TUPLE": lambda machine, _: _push(machine, ()),
    "TUPLE1": lambda machine, _: _push(machine, machine.take(1)),
    "TUPLE2": lambda machine, _: _push(machine, machine.take(2)),
    "TUPLE3": lambda machine, _: _push(machine, machine.take(3)),
    "TUPLE": lambda machine, _: _push(machine, machine.take_to_mark()),
    "SETITEM": lambda machine, _: _set_items(machine, machine.take(2)),
    "SETITEMS": lambda machine, _: _set_items(machine, machine.take_to_mark()),
    "EMPTY_LIST": lambda machine, _: _push(machine, []),
    "APPEND": lambda machine, _: _append(machine, machine.take(1)),
    "APPENDS": lambda machine, _: _append(machine, machine.take_to_mark()),
    "NONE": lambda machine, _: _push(machine, None),
    "NEWTRUE": lambda machine, _: _push(machine, True),
    "NEWFALSE": lambda machine, _: _push(machine, False),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"), _push),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, place: _push(machine, machine.memo[place])),
}
