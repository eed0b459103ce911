"""How do stores of consecutive rows become one store, by processes that do not know of each other?

Every array of the whole is cut into regions of whole chunks. No two processes write the same chunk, and a region that
is written again holds the same bytes, so whatever was interrupted is done again.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import zarr

from ptrag_sc.data._stream import Group, arrays_of

REGION = 2**24  # numbers in a region, or one chunk if that is more
SPARSE = ("data", "indices", "indptr")


class Source(NamedTuple):
    """Where entries of an array of the whole come from."""

    store: Path
    start: int  # place of the first one in the whole
    skip: int  # place of the first one in the store
    n: int
    add: int  # what is added to them


class Region(NamedTuple):
    """A part of one array of the whole, and what it is made of."""

    name: str
    start: int
    stop: int
    sources: list[Source]


def make_whole(path: Path, stores: list[Path]) -> list[Region]:
    """Make the store of the whole, all arrays of it long enough, and return the regions to fill.

    Parameters
    ----------
    path
        Store to make.
    stores
        Stores of consecutive rows, as :func:`ptrag_sc.data._stream.write_stream` writes them with ``n_whole``.
    """
    shutil.copytree(stores[0], path)  # its layout is that of the whole
    root = _opened(path, "r+")
    parts = [_opened(store, "r") for store in stores]
    names = list(arrays_of(root["obs"], "obs/"))
    matrices = ["X", *(f"{group}/{name}" for group in ("layers", "obsm") for name in root.get(group, {}))]
    sparse = [name for name in matrices if isinstance(root[name], zarr.Group)]
    names += [name for name in matrices if name not in sparse]
    regions = []
    for name in names:
        regions += _regions(root, name, stores, [part[name].shape[0] for part in parts])
    for name in sparse:
        lengths = [part[f"{name}/data"].shape[0] for part in parts]
        for which in ("data", "indices"):
            regions += _regions(root, f"{name}/{which}", stores, lengths)
        regions += _pointer_regions(root, f"{name}/indptr", stores, parts, lengths)
        group = root[name]
        n_rows = sum(part[f"{name}/indptr"].shape[0] - 1 for part in parts)
        group.attrs["shape"] = [n_rows, group.attrs["shape"][1]]
    return regions


def fill(path: Path, region: Region) -> None:
    """Write one region of the whole."""
    parts = []
    for one in region.sources:
        low, high = max(region.start, one.start), min(region.stop, one.start + one.n)
        begin = low - one.start + one.skip
        values = _opened(one.store, "r")[region.name][begin : begin + high - low]
        parts.append(values + one.add if one.add else values)
    _opened(path, "r+")[region.name][region.start : region.stop] = np.concatenate(parts)


def _opened(path: Path, mode: Literal["r", "r+"]) -> Group:
    # What is consolidated in the copy of the first store tells of its own lengths.
    return zarr.open_group(path, mode=mode, use_consolidated=False)


def _regions(root: Group, name: str, stores: list[Path], lengths: list[int]) -> list[Region]:
    """Lengthen an array and return its regions, given how many entries each store has."""
    starts = np.cumsum([0, *lengths]).tolist()
    sources = [Source(store, start, 0, n, 0) for store, start, n in zip(stores, starts[:-1], lengths, strict=True)]
    return list(_cut(root, name, sources))


def _pointer_regions(
    root: Group, name: str, stores: list[Path], parts: list[Group], lengths: list[int]
) -> list[Region]:
    """Do the same for row pointers: each store begins with a 0, and counts its own entries."""
    sources = []
    start = entries = 0
    for store, part, n_entries in zip(stores, parts, lengths, strict=True):
        skip = int(start > 0)
        n = part[name].shape[0] - skip
        sources.append(Source(store, start, skip, n, entries))
        start += n
        entries += n_entries
    return list(_cut(root, name, sources))


def _cut(root: Group, name: str, sources: list[Source]) -> Iterator[Region]:
    array = root[name]
    n = sources[-1].start + sources[-1].n
    array.resize((n, *array.shape[1:]))
    chunk = array.chunks[0]
    in_row = int(np.prod(array.shape[1:]))
    step = chunk * max(1, REGION // (chunk * max(1, in_row)))
    for start in range(0, n, step):
        stop = min(start + step, n)
        here = [one for one in sources if one.start < stop and one.start + one.n > start]
        yield Region(name, start, stop, here)
