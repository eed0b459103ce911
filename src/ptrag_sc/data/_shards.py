"""How are values of a compressed zarr array read in tenths of a millisecond?

zarr takes milliseconds for each read, whatever its size, and a mini-batch needs dozens of reads. The layout that
:func:`ptrag_sc.datasets.write_store` chooses (one axis, shards, Blosc) is read directly here; all others by zarr.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import blosc  # type: ignore[import-untyped]
from zarr.storage import LocalStore

from ptrag_sc._validation import unusable

COMPLETE = "ptrag_sc_complete"  # attribute of an array of which every chunk was written, zeros too
CODECS = ["sharding_indexed", "bytes", "blosc", "bytes", "crc32c"]
CHECKSUM_BYTES = 4  # after the index of a shard
SIZE = slice(4, 8)  # where Blosc notes how many bytes a chunk has when it is unpacked


class Shards:
    """Values of a one-dimensional sharded array.

    Parameters
    ----------
    array
        As :func:`is_readable` accepts it.
    """

    def __init__(self, array: Any):
        store: Any = array.store
        self.folder = Path(store.root) / array.path / "c"
        self.shape = array.shape
        self.chunks = array.chunks
        self.dtype = np.dtype(array.dtype)
        self._shard = int(array.shards[0]) if array.shards else 0
        self._index: dict[int, np.ndarray] = {}

    def __getitem__(self, part: slice) -> np.ndarray:
        """Return values from ``start`` to ``stop``, both of which are given and within the array."""
        chunk = int(self.chunks[0])
        first, last = part.start // chunk, -(-part.stop // chunk)
        found = np.empty((last - first) * chunk, dtype=self.dtype)
        for shard in range(part.start // self._shard, -(-part.stop // self._shard)):
            per_shard = self._shard // chunk
            begin, end = max(first, shard * per_shard), min(last, (shard + 1) * per_shard)
            into = found[(begin - first) * chunk : (end - first) * chunk].reshape(end - begin, chunk)
            self._read(shard, begin - shard * per_shard, into)
        return found[part.start - first * chunk : part.stop - first * chunk]

    def _read(self, shard: int, first: int, into: np.ndarray) -> None:
        """Read chunks (n, size) of a shard, from one of them on."""
        path = self.folder / str(shard)
        damaged = unusable("A shard", str(path), "is damaged", "Write the store again with write_store.")
        if not path.is_file():
            raise OSError(damaged)
        with path.open("rb") as file:
            if shard not in self._index:
                n_bytes = 16 * (self._shard // into.shape[1])
                file.seek(-(n_bytes + CHECKSUM_BYTES), 2)
                self._index[shard] = np.frombuffer(file.read(n_bytes), dtype="<u8").reshape(-1, 2)
            end = path.stat().st_size
            index = self._index[shard][first : first + len(into)]  # offset and size of each chunk
            for (offset, size), values in zip(index, into, strict=True):
                packed = b""
                if offset + size <= end:
                    file.seek(int(offset))
                    packed = file.read(int(size))
                if int.from_bytes(packed[SIZE], "little") != values.nbytes:
                    raise OSError(damaged)
                try:
                    blosc.decompress(packed, values)
                except (RuntimeError, ValueError) as error:
                    raise OSError(damaged) from error


def is_readable(array: Any) -> bool:
    """Return whether an array has the layout that is read directly."""
    if not (isinstance(array, zarr.Array) and array.ndim == 1 and isinstance(array.store, LocalStore)):
        return False
    if COMPLETE not in array.attrs:
        return False
    # Read from the file itself, whose form is fixed, while that of the objects of zarr is not.
    noted = json.loads((Path(array.store.root) / array.path / "zarr.json").read_text(encoding="utf-8"))
    outer = noted["codecs"][0].get("configuration", {})
    codecs = [*noted["codecs"], *outer.get("codecs", []), *outer.get("index_codecs", [])]
    names = [codec["name"] for codec in codecs]
    little = all(c["configuration"]["endian"] == "little" for c in codecs if c["name"] == "bytes")
    keys = noted["chunk_key_encoding"]
    usual = keys["name"] == "default" and keys.get("configuration", {}).get("separator", "/") == "/"
    return usual and little and names == CODECS and outer.get("index_location", "end") == "end"


def quickly_read(array: Any) -> Any:
    """Return an array in the form that is read fastest."""
    return Shards(array) if is_readable(array) else array
