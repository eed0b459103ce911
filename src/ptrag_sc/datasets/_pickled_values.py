"""What can a pickled table consist of, and how is it rebuilt without calling what the pickle names?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np


class RefusedError(Exception):
    """The pickle is not a plain table of vectors; the message is the problem."""


@dataclass
class Vector:
    """A list, tuple or array of numbers while it is read."""

    chunks: list[np.ndarray] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self.chunks))

    def joined(self) -> np.ndarray:
        """Return all numbers (D,) float32; only here memory is taken for what a pickle names many times."""
        if len(self.chunks) != 1 or self.chunks[0].dtype != np.float32:
            self.chunks = [np.concatenate([*self.chunks, np.zeros(0, np.float32)], dtype=np.float32)]
        return self.chunks[0]


@dataclass
class Dtype:
    """The type of the numbers of an array."""

    code: str
    order: str = "="


@dataclass(frozen=True)
class Named:
    """A function or class that a pickle names."""

    name: str  # "module attribute"; never imported


def as_vector(items: Sequence[object]) -> Vector:
    """Read the items of a list or tuple as numbers."""
    strange = [type(item).__name__ for item in items if not isinstance(item, np.ndarray) and type(item) is not int]
    if strange:
        raise RefusedError(f"holds a list that is not of numbers (found: {strange[0].strip('_').lower()})")
    return Vector([np.atleast_1d(np.asarray(item, dtype=np.float32)) for item in items])


def as_array(data: bytes | bytearray, dtype: Dtype, shape: tuple[int, ...], order: str = "C") -> Vector:
    """Read the bytes of a numpy array of one axis."""
    values = np.frombuffer(data, np.dtype(dtype.order + dtype.code))
    if shape != values.shape:
        raise RefusedError(f"holds an array of shape {shape}, where one vector was expected")
    return Vector([values])


def _dtype(code: str, *_: bool) -> Dtype:
    if code not in ("f2", "f4", "f8"):
        raise RefusedError(f"holds an array of dtype {code!r}, not of floats")
    return Dtype(code)


CALLS: dict[str, Callable[..., object]] = {
    "_codecs encode": lambda text, _: text.encode("latin-1"),  # how protocols 0 to 2 write bytes
    "numpy dtype": _dtype,
    "numpy.core.multiarray _reconstruct": lambda *_: Vector(),
    "numpy._core.multiarray _reconstruct": lambda *_: Vector(),
    "numpy.core.numeric _frombuffer": as_array,
    "numpy._core.numeric _frombuffer": as_array,
}
ARGUMENTS = frozenset({"numpy ndarray"})  # named by a pickled array, never called
