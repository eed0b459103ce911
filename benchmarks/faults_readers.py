"""What happens when the file of a gene embedding is broken or hostile?

Called by ``faults.py`` (attack ``readers``).
"""

import gc
import gzip
import io
import itertools
import os
import pickle
import random
import struct
import warnings
import zipfile
from functools import partial
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from attempts import in_children, within_limits
from scipy.sparse import csr_matrix

from ptrag_sc.retrieval import SOURCES, read_embedding

REMEDIES = ("Pass ", "Save ", "Give ", "Keep ", "Remove ", "Add ", "Name ", "Put ", "Expected ", "Copy ", "A gene ")
SUFFIXES = [kind for kind in SOURCES if kind.startswith(".")]
GENES = [f"GENE{i}" for i in range(30)]
VECTORS = np.random.default_rng(0).normal(size=(30, 16)).astype(np.float32)
UNIT = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
FRAME = pd.DataFrame(VECTORS, index=GENES, columns=[f"d{i}" for i in range(16)])
TABLE = dict(zip(GENES, VECTORS, strict=True))
BATCH = 20
BIG = 3 * 10**8


def _h5ad(path):
    ad.AnnData(VECTORS, obs=pd.DataFrame(index=GENES)).write_h5ad(path)


def _pickle(path):
    path.write_bytes(pickle.dumps({gene: vector.tolist() for gene, vector in TABLE.items()}))


def _npz(path):
    with path.open("wb") as file:
        np.savez(file, genes=np.array(GENES), vectors=VECTORS)


def _pt(path):
    torch.save({gene: torch.tensor(vector) for gene, vector in TABLE.items()}, path)


WRITERS = {
    ".npz": _npz,
    ".parquet": FRAME.to_parquet,
    ".csv": FRAME.to_csv,
    ".h5ad": _h5ad,
    ".pt": _pt,
    ".pth": _pt,
    ".pickle": _pickle,
    ".pkl": _pickle,
}


def readers(work, n):
    """Yield, for each kind of file, its name and what became of each attempt."""
    n = n or 4
    originals = {}
    for suffix, write in WRITERS.items():
        write(work / f"original{suffix}")
        originals[suffix] = (work / f"original{suffix}").read_bytes()
        read_embedding(work / f"original{suffix}")  # so that the first attempt imports nothing
    gc.freeze()  # so that the processes of the attempts do not look at all that was imported
    for suffix in SUFFIXES:
        attacks = itertools.chain(_damaged(suffix, originals, n), _of_kind(suffix))
        results, number = [], 0
        while batch := list(itertools.islice(attacks, BATCH)):
            works = []
            for _, make, right in batch:
                path = work / f"a{suffix[1:]}{number}{suffix}"
                make(path)
                works.append(partial(within_limits, partial(_attempt, path, right)))
                number += 1
            for (what, _, _), said in zip(batch, in_children(works), strict=True):
                results.append(said if said in ("refused", "same") else f"[{what}] {said}")
        yield f"embedding files {suffix}", results


def _attempt(path, right):
    """Read a file; the answer is the right one, any one (damage that no format can show), or a refusal."""
    warnings.simplefilter("ignore")
    try:
        table = read_embedding(path)
    except Exception as error:
        text = str(error)
        allowed = ValueError if path.is_file() else (ValueError, FileNotFoundError)
        if not isinstance(error, allowed):
            return f"foreign {type(error).__name__}: {text[:100]}"
        if path.name not in text:
            return f"does not name the file: {text[:100]}"
        if len(text) > 1000:
            return f"a message of {len(text)} letters: {text[:100]}"
        if not any(remedy in text for remedy in REMEDIES):
            return f"no remedy: {text[:150]}"
        return "refused" if right != "must be read" else f"refused although it is right: {text[:150]}"
    norms = np.linalg.norm(table.vectors.astype(np.float64), axis=1)
    if not (np.isfinite(norms).all() and np.allclose(norms, 1, atol=1e-4)):
        return "vectors without unit norm"
    if right == "any":
        return "same"
    if right == "must be refused":
        return f"read as {table.genes[:3]} {table.vectors.shape}"
    if table.genes.tolist() == GENES and np.allclose(table.vectors, UNIT, atol=1e-3):
        return "same"
    return f"read otherwise: {table.genes[:3]} {table.vectors.shape}"


def _bytes(content):
    return lambda path: path.write_bytes(content)


def _damaged(suffix, originals, n):
    """Yield damage that any kind of file can have: what, how to make it, what is right."""
    original = originals[suffix]
    for _ in range(2 * n):
        yield "cut short", _bytes(original[: random.randrange(len(original))]), "any" if suffix == ".csv" else "right"
    for _ in range(3 * n):
        content = bytearray(original)
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        yield "bit flip", _bytes(bytes(content)), "any"
    for _ in range(n):
        start = random.randrange(len(original))
        stop = start + random.randrange(1, 200)
        yield "zeros inside", _bytes(original[:start] + bytes(stop - start) + original[stop:]), "any"
        yield "bytes lost", _bytes(original[:start] + original[stop:]), "any"
        yield "garbage", _bytes(random.randbytes(random.choice([1, 7, 100, 10_000]))), "must be refused"
        yield "garbage behind the first bytes", _bytes(original[:60] + random.randbytes(3000)), "any"
    same = {".pt": ".pth", ".pth": ".pt", ".pickle": ".pkl", ".pkl": ".pickle"}
    for other, content in originals.items():
        if other not in (suffix, same.get(suffix)):
            yield f"a {other} file", _bytes(content), "must be refused"
    for content in (b"", b"\n", b"\0", bytes(5000), b"\xff" * 5000, original[::-1], gzip.compress(original)):
        yield f"{content[:4]!r}...", _bytes(content), "must be refused"
    for text in ("<!DOCTYPE html><html><body>404 Not Found</body></html>", "version https://git-lfs", "{}", "[1, 2]"):
        yield text[:20], _bytes(text.encode()), "must be refused"
    yield "utf-16", _bytes("gene,x\nA,1\n".encode("utf-16")), "must be refused"
    yield "twice", _bytes(original * 2), "any"
    yield "something behind", _bytes(original + b"trailing"), "any"
    yield "a folder", lambda path: path.mkdir(), "must be refused"
    yield "nothing", lambda path: None, "must be refused"
    yield "a link to nothing", lambda path: path.symlink_to(path.with_name("nothing")), "must be refused"
    yield "a link to itself", lambda path: path.symlink_to(path), "must be refused"
    yield "a pipe", os.mkfifo, "must be refused"
    yield "empty zip", _bytes(b"PK\x05\x06" + bytes(18)), "must be refused"


def _of_kind(suffix):
    """Return what can be wrong inside a file of one kind."""
    return {
        ".npz": _of_npz,
        ".parquet": _of_parquet,
        ".csv": _of_csv,
        ".h5ad": _of_h5ad,
        ".pt": _of_pt,
        ".pth": _of_pt,
        ".pickle": _of_pickle,
        ".pkl": _of_pickle,
    }[suffix]()


REFUSE, RIGHT, READ, ANY = "must be refused", "right", "must be read", "any"


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def _with(rows, value, at=(3, 2)):
    changed = rows.copy()
    changed[at] = value
    return changed


def _tables():
    """Yield names and vectors that are wrong in any kind of file, and some that are right."""
    genes = np.array(GENES)
    yield "right", genes, VECTORS, READ
    yield "float64", genes, VECTORS.astype(np.float64), READ
    yield "float16", genes, VECTORS.astype(np.float16), READ
    yield "one name for two", np.array([*GENES[:-1], GENES[0]]), VECTORS, REFUSE
    yield "NaN", genes, _with(VECTORS, np.nan), REFUSE
    yield "infinite", genes, _with(VECTORS, -np.inf), REFUSE
    yield "a row of zeros", genes, _with(VECTORS, 0, np.s_[4]), REFUSE
    yield "only NaN", genes, VECTORS * np.nan, REFUSE
    yield "whole numbers", genes, np.rint(VECTORS * 1000).astype(np.int32), READ
    yield "tiny", genes, (VECTORS * np.float64(1e-30)).astype(np.float32), READ
    yield "huge", genes, (VECTORS * np.float64(1e30)).astype(np.float32), READ
    yield "huge float64", genes, VECTORS * np.float64(1e200), ANY
    yield "tiny float64", genes, VECTORS * np.float64(1e-200), ANY
    yield "no rows", genes[:0], VECTORS[:0], REFUSE
    yield "no columns", genes, VECTORS[:, :0], REFUSE
    yield "an empty name", np.array(["", *GENES[1:]]), VECTORS, REFUSE
    yield "a long name", np.array(["G" * 300, *GENES[1:]]), VECTORS, ANY
    yield "unicode names", np.array([f"β{gene}☃" for gene in GENES]), VECTORS, ANY


# --- .npz


def _savez(pack=np.savez, **arrays):
    def write(path):
        with path.open("wb") as file:
            pack(file, **arrays)

    return write


def _npy(shape, descr="<f4", body=b"", version=b"\x01\x00"):
    """Bytes of an array file that says what it likes."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY" + version + struct.pack("<H", len(text) + 1) + text + b"\n" + body


def _zipped(members, compression=zipfile.ZIP_STORED, change=None):
    def write(path):
        buffer = io.BytesIO()
        with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as archive:
            warnings.simplefilter("ignore")
            for name, content in members:
                archive.writestr(name, content)
        content = buffer.getvalue()
        path.write_bytes(content if change is None else change(content))

    return write


def _encrypted(content):
    """Set the flag of encryption in both headers of every member."""
    changed = bytearray(content)
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = changed.find(mark)
        while start >= 0:
            changed[start + place] |= 1
            start = changed.find(mark, start + 4)
    return bytes(changed)


def _method(number):
    def change(content):
        changed = bytearray(content)
        for mark, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
            start = changed.find(mark)
            while start >= 0:
                changed[start + place] = number
                start = changed.find(mark, start + 4)
        return bytes(changed)

    return change


def _array_bytes(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def _of_npz():
    genes = np.array(GENES)
    for what, names, vectors, right in _tables():
        yield what, _savez(genes=names, vectors=vectors), right
        yield f"{what}, packed", _savez(np.savez_compressed, genes=names, emb=vectors), right
    objects = genes.astype(object)
    yield "object names", _savez(genes=objects, vectors=VECTORS), REFUSE
    yield "object vectors", _savez(genes=genes, vectors=VECTORS.astype(object)), REFUSE
    yield "hostile objects", _savez(genes=np.array([Hostile()] * 30, dtype=object), vectors=VECTORS), REFUSE
    yield "other names", _savez(names=genes, vectors=VECTORS), REFUSE
    yield "no names", _savez(vectors=VECTORS), REFUSE
    yield "no vectors", _savez(genes=genes), REFUSE
    yield "positional", lambda path: np.savez(path, genes, VECTORS), REFUSE
    yield "fewer names", _savez(genes=genes[:-1], vectors=VECTORS), REFUSE
    yield "transposed", _savez(genes=genes, vectors=VECTORS.T), REFUSE
    yield "names in a table", _savez(genes=genes.reshape(5, 6), vectors=VECTORS), REFUSE
    yield "one number", _savez(genes=genes, vectors=np.float32(3)), REFUSE
    yield "one name", _savez(genes=np.array("A"), vectors=VECTORS[0]), REFUSE
    yield "one row", _savez(genes=genes, vectors=VECTORS[0]), REFUSE
    yield "three axes", _savez(genes=genes, vectors=VECTORS[:, :, None]), REFUSE
    yield "names of bytes", _savez(genes=genes.astype("S"), vectors=VECTORS), READ
    yield "names of other bytes", _savez(genes=np.array([b"\xff\xfe"] * 30), vectors=VECTORS), REFUSE
    yield "names of fractions", _savez(genes=np.arange(30) / 7, vectors=VECTORS), REFUSE
    yield "names of dates", _savez(genes=np.arange(30).astype("M8[D]"), vectors=VECTORS), REFUSE
    yield "names of truth values", _savez(genes=np.arange(30) > 3, vectors=VECTORS), REFUSE
    yield "complex", _savez(genes=genes, vectors=VECTORS * 1j), REFUSE
    yield "dates", _savez(genes=genes, vectors=(VECTORS * 100).astype("M8[s]")), REFUSE
    yield "durations", _savez(genes=genes, vectors=(VECTORS * 100).astype("m8[s]")), REFUSE
    yield "text", _savez(genes=genes, vectors=VECTORS.astype(str)), ANY
    yield "words", _savez(genes=genes, vectors=np.full((30, 16), "word")), REFUSE
    yield "fields", _savez(genes=genes, vectors=np.zeros(30, dtype=[("a", "f4"), ("b", "f4")])), REFUSE
    yield "raw bytes", _savez(genes=genes, vectors=np.zeros((30, 16), dtype="V4")), REFUSE
    yield "column order", _savez(genes=genes, vectors=np.asfortranarray(VECTORS)), READ
    yield "other byte order", _savez(genes=genes, vectors=VECTORS.astype(">f4")), READ
    yield "long double", _savez(genes=genes, vectors=VECTORS.astype(np.longdouble)), READ
    yield "more arrays", _savez(genes=genes, vectors=VECTORS, further=objects), READ
    yield "an array file", _bytes(_array_bytes(VECTORS)), REFUSE
    yield "a pickle", _bytes(pickle.dumps(TABLE)), REFUSE
    names = ("genes.npy", _array_bytes(genes))
    for shape in ((BIG, BIG), (30, 10**8), (-1, 16), (30, -16), (2**63, 2), (30, "16"), (), None, (30.0, 16), [30, 16]):
        yield f"claims {shape}", _zipped([names, ("vectors.npy", _npy(shape, body=VECTORS.tobytes()))]), REFUSE
    for descr in ("<U1000000000", "O", "|O", "<f3", "evil", "<c8", "|V100000000", [("a", "O")], "<M8[ns]", "", None):
        content = _npy((30, 16), descr, VECTORS.tobytes())
        yield f"claims {descr}", _zipped([names, ("vectors.npy", content)]), REFUSE
        content = _npy((30,), descr, VECTORS.tobytes())
        yield f"names claim {descr}", _zipped([("genes.npy", content), ("vectors.npy", _array_bytes(VECTORS))]), REFUSE
    for header in (b"(" * 5000, b"{" * 60_000, b"__import__('os').system('touch executed')", b"1" * 9000, b"{'a':1}\n"):
        content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
        yield f"header {header[:5]}", _zipped([names, ("vectors.npy", content)]), REFUSE
    yield "version 9", _zipped([names, ("vectors.npy", _npy((30, 16), version=b"\x09\x00"))]), REFUSE
    content = _npy((10**7, 10)) + bytes(4 * 10**8)
    yield "packed zeros", _zipped([names, ("vectors.npy", content)], zipfile.ZIP_DEFLATED), REFUSE
    content = _npy((1000, 10**5), "|i1") + bytes(10**8)
    many = ("genes.npy", _array_bytes(np.arange(1000).astype(str)))
    yield "packed small zeros", _zipped([many, ("vectors.npy", content)], zipfile.ZIP_DEFLATED), REFUSE
    content = _npy((30,), "<U2500000") + bytes(30 * 10**7)
    vectors = ("vectors.npy", _array_bytes(VECTORS))
    yield "packed names", _zipped([("genes.npy", content), vectors], zipfile.ZIP_DEFLATED), REFUSE
    long = np.array(["A" * 10**6, *GENES[1:]])
    yield "a name of a million", _savez(np.savez_compressed, genes=long, vectors=VECTORS), REFUSE
    both = [names, vectors]
    yield "bzip2", _zipped(both, zipfile.ZIP_BZIP2), READ
    yield "lzma", _zipped(both, zipfile.ZIP_LZMA), READ
    yield "encrypted", _zipped(both, change=_encrypted), REFUSE
    for number in (6, 97, 99):
        yield f"method {number}", _zipped(both, change=_method(number)), REFUSE
    yield "two of one name", _zipped([names, vectors, ("vectors.npy", _array_bytes(VECTORS * 2))]), ANY
    yield "no suffix", _zipped([("genes", names[1]), ("vectors", vectors[1])]), ANY
    yield "text members", _zipped([("genes.npy", b"AARS\n"), ("vectors.npy", b"1,2\n")]), REFUSE
    yield "outside", _zipped([("../genes.npy", names[1]), ("/vectors.npy", vectors[1])]), REFUSE
    yield "40,000 members", _zipped([*both, *((f"{i}.npy", b"") for i in range(40_000))]), ANY
    yield "in a folder", _zipped([("a/genes.npy", names[1]), ("a/vectors.npy", vectors[1])]), REFUSE


# --- .csv


def _csv(header="gene,x,y", rows=("AARS,0.5,2", "JAK2,1,1"), encoding="utf-8", end="\n"):
    return _bytes(end.join([header, *rows, ""]).encode(encoding))


def _of_csv():
    for what, names, vectors, right in _tables():
        yield what, pd.DataFrame(vectors, index=names).to_csv, right if len(names) and vectors.size else REFUSE
    text = FRAME.to_csv()
    yield "windows lines", _bytes(text.replace("\n", "\r\n").encode()), READ
    yield "old mac lines", _bytes(text.replace("\n", "\r").encode()), READ
    yield "byte order mark", _bytes(text.encode("utf-8-sig")), READ
    yield "quoted", _bytes(FRAME.to_csv(quoting=1).encode()), READ
    yield "empty lines", _bytes(text.replace("\n", "\n\n").encode()), READ
    yield "no last line end", _bytes(text.rstrip().encode()), READ
    for sep in ";\t| ":
        yield f"separated by {sep!r}", _bytes(FRAME.to_csv(sep=sep).encode()), REFUSE
    yield "decimal commas", _bytes(FRAME.to_csv(sep=";", decimal=",").encode()), REFUSE
    yield "a header like R", _csv("x,y"), REFUSE
    yield "a header too long", _csv("gene,x,y,z"), REFUSE
    yield "a longer row", _csv(rows=("AARS,0.5,2", "JAK2,1,1,7")), REFUSE
    yield "a shorter row", _csv(rows=("AARS,0.5,2", "JAK2,1")), REFUSE
    yield "a longer first row", _csv(rows=("AARS,0.5,2,", "JAK2,1,1,")), REFUSE
    yield "no header", _bytes(FRAME.to_csv(header=False).encode()), REFUSE
    yield "no header, whole numbers", _csv("AARS,5,2", rows=("JAK2,1,1",)), ANY
    yield "header only", _csv(rows=()), REFUSE
    yield "names only", _csv("gene", rows=("AARS", "JAK2")), REFUSE
    yield "numbers only", _csv("x,y,z", rows=("1.5,2,3", "2.5,1,1")), ANY
    yield "a word", _csv(rows=("AARS,0.5,two", "JAK2,1,1")), REFUSE
    yield "a word in the second row", _csv(rows=("AARS,0.5,2", "JAK2,one,1")), REFUSE
    for value in (
        "1e999",
        "inf",
        "-inf",
        "NaN",
        "",
        "NA",
        "null",
        "None",
        "0x1F",
        "1_000",
        "1+2j",
        "2020-01-01",
        "1;2",
    ):
        yield f"the value {value}", _csv(rows=(f"AARS,0.5,{value}", "JAK2,1,1")), REFUSE
    yield "truth values", _csv(rows=("AARS,True,True", "JAK2,True,False")), ANY
    yield "long number", _csv(rows=("AARS,0.5," + "1" * 10**6, "JAK2,1,1")), REFUSE
    yield "long whole number", _csv(rows=("AARS,0.5," + "1" * 300, "JAK2,1,1")), ANY
    yield "a name of a million", _csv(rows=("A" * 10**6 + ",0.5,2", *(f"G{i},1,1" for i in range(1000)))), REFUSE
    yield "names of 3,000 columns", _csv("gene" + ",x" * 3000, rows=("A" + ",1" * 3000,)), ANY
    for n in (60_000, 100_000, 1_000_000):
        yield f"{n} columns", _csv("gene" + ",x" * n, rows=("A" + ",1" * n, "B" + ",2" * n)), REFUSE
    yield "100,000 columns of text", _csv("gene" + ",x" * 49_000, rows=["A" + ",word" * 49_000] * 20), REFUSE
    yield "9,000 columns", _csv("gene" + "".join(f",x{i}" for i in range(9000)), rows=("A" + ",1" * 9000,)), ANY
    yield "100,000 columns in the second row", _csv(rows=("A,1,2", "B" + ",1" * 100_000)), REFUSE
    yield "one line of 40 MB", _bytes(b"x" * 40_000_000), REFUSE
    yield "one line of 40 MB of commas", _bytes(b"," * 40_000_000), REFUSE
    yield "an open quote", _csv(rows=('"AARS,0.5,2', "JAK2,1,1")), REFUSE
    yield "an open quote in the header", _csv('"gene,x,y'), REFUSE
    yield "an open quote and 30 MB", _csv(rows=('"AARS,0.5,2', *["JAK2,1,1"] * 3_000_000)), REFUSE
    yield "a name of two lines", _csv(rows=('"AA\nRS",0.5,2', "JAK2,1,1")), ANY
    yield "latin letters", _csv(rows=("ÄRS,0.5,2", "JAK2,1,1"), encoding="latin-1"), REFUSE
    yield (
        "latin letters far down",
        _csv(rows=[f"G{i},1,2" for i in range(9000)] + ["Ä,1,2"], encoding="latin-1"),
        REFUSE,
    )
    for encoding in ("utf-16", "utf-16-le", "utf-32", "cp037", "utf-7"):
        yield encoding, _csv(encoding=encoding), ANY if encoding == "utf-7" else REFUSE
    yield "a zero byte", _csv(rows=("AA\0RS,0.5,2", "JAK2,1\0,1")), REFUSE
    yield "columns of one name", _csv("gene,x,x"), ANY
    yield "comments", _csv("# a table\ngene,x,y"), REFUSE
    yield "a title", _csv("Gene vectors\ngene,x,y"), REFUSE
    yield "text column behind", _csv("x,y,gene", rows=("0.5,2,AARS", "1,1,JAK2")), REFUSE
    yield "index and names", _csv(",gene,x", rows=("0,AARS,0.5", "1,JAK2,1")), REFUSE
    yield "formula", _csv(rows=('AARS,=cmd|"/C calc",2', "JAK2,1,1")), REFUSE
    yield "gzip", _bytes(gzip.compress(text.encode())), REFUSE


# --- .parquet


def _parquet(table, **options):
    return lambda path: pq.write_table(table, path, **options)


def _arrow(**columns):
    return pa.table({"gene": GENES, **columns})


def _of_parquet():
    for what, names, vectors, right in _tables():
        frame = pd.DataFrame(vectors, index=names, columns=[f"d{i}" for i in range(vectors.shape[1])])
        yield what, frame.to_parquet, right
        if what != "float16":
            yield f"{what}, names in a column", frame.rename_axis("gene").reset_index().to_parquet, right
    numbers = {f"d{i}": VECTORS[:, i] for i in range(16)}
    yield "arrow", _parquet(_arrow(**numbers)), READ
    for compression in ("gzip", "brotli", "zstd", "lz4", "none"):
        yield compression, _parquet(_arrow(**numbers), compression=compression), READ
    yield "no names", _parquet(pa.table(numbers)), REFUSE
    yield "two columns of text", _parquet(_arrow(text=GENES, **numbers)), REFUSE
    yield "names only", _parquet(_arrow()), REFUSE
    yield "lists", _parquet(_arrow(vector=VECTORS.tolist())), REFUSE
    yield "fixed lists", _parquet(_arrow(v=pa.FixedSizeListArray.from_arrays(VECTORS.ravel(), 16))), REFUSE
    yield "records", _parquet(_arrow(v=[{"a": 1.0}] * 30)), REFUSE
    yield "maps", _parquet(_arrow(v=pa.array([[("a", 1.0)]] * 30, pa.map_(pa.string(), pa.float32())))), REFUSE
    yield "bytes", _parquet(_arrow(v=[b"\xff"] * 30)), REFUSE
    yield "dates", _parquet(_arrow(v=pd.date_range("2020", periods=30))), REFUSE
    yield "far dates", _parquet(_arrow(v=pa.array([2**62] * 30, pa.timestamp("us")))), REFUSE
    yield "durations", _parquet(_arrow(v=pd.timedelta_range("1s", periods=30))), REFUSE
    yield "decimals", _parquet(_arrow(v=pa.array([1] * 30).cast(pa.decimal128(30, 2)))), REFUSE
    yield "nothing in a column", _parquet(_arrow(v=pa.nulls(30))), REFUSE
    yield "gaps", _parquet(_arrow(v=[None, *range(1, 30)])), REFUSE
    yield "gaps in names", _parquet(pa.table({"gene": [None, *GENES[1:]], **numbers})), REFUSE
    yield "dictionary", _parquet(pa.table({"gene": pa.array(GENES).dictionary_encode(), **numbers})), READ
    yield "truth values", _parquet(_arrow(v=[True] * 30)), ANY
    yield "no rows, no columns", _parquet(pa.table({})), REFUSE
    yield "two columns of one name", _parquet(pa.Table.from_arrays([pa.array(GENES)] * 2, ["a", "a"])), REFUSE
    yield (
        "numbers of one name",
        _parquet(pa.Table.from_arrays([pa.array(GENES), *[pa.array(VECTORS[:, 0])] * 2], ["gene", "x", "x"])),
        ANY,
    )
    for text in (b"{", b"\xff\xfe", b"null", b"[]", b'{"index_columns": ["absent"], "columns": []}', b"{}" * 1000):
        yield f"metadata {text[:9]}", _parquet(_arrow(**numbers).replace_schema_metadata({b"pandas": text})), ANY
    for text in (b"", b"garbage", b"!" * 5000):
        yield f"schema {text[:9]}", _parquet(_arrow(**numbers).replace_schema_metadata({b"ARROW:schema": text})), ANY
    many = pd.DataFrame(np.ones((2, 60_000), np.float32), index=["A", "B"]).rename(columns=str)
    yield "60,000 columns", many.to_parquet, REFUSE
    zeros = pa.table({"gene": ["A"] * 10**7, "x": np.zeros(10**7, np.float32), "y": np.zeros(10**7, np.float32)})
    yield "packed zeros", _parquet(zeros, compression="zstd"), REFUSE
    long = pa.table({"gene": ["A" * 10**6, *(f"G{i}" for i in range(200))], "x": np.ones(201)})
    yield "a name of a million", _parquet(long), REFUSE
    same = pa.table({"gene": pa.array(["A" * 10**5] * 10_000), "x": np.ones(10_000)})
    yield "one long name, many times", _parquet(same, compression="zstd"), REFUSE
    yield "several indices", FRAME.set_index("d0", append=True).to_parquet, REFUSE
    yield "encrypted", _bytes(b"PARE" + bytes(100) + b"PARE"), REFUSE
    yield "feather", lambda path: FRAME.reset_index().to_feather(path), REFUSE
    yield "no footer", _bytes(b"PAR1" + struct.pack("<I", 0) + b"PAR1"), REFUSE
    yield "large footer", _bytes(b"PAR1" + bytes(50) + struct.pack("<I", 2**31 - 1) + b"PAR1"), REFUSE


# --- .h5ad


def _changed(change, write=_h5ad):
    def make(path):
        write(path)
        with h5py.File(path, "r+") as file:
            change(file)

    return make


def _set(place, value, **options):
    """Put something else in a place of the file, with the attributes that were there."""

    def change(file):
        attributes = dict(file[place].attrs) if place in file else {}
        if place in file:
            del file[place]
        if value is not None:
            data = {"data": value} if not options else {"data": None}
            file.create_dataset(place, **data, **options).attrs.update(attributes)

    return change


def _attribute(place, name, value):
    def change(file):
        if value is None:
            del file[place].attrs[name]
        else:
            file[place].attrs[name] = value

    return change


def _sparse(path):
    ad.AnnData(csr_matrix(VECTORS), obs=pd.DataFrame(index=GENES)).write_h5ad(path)


def _varm(path):
    cells = ad.AnnData(np.zeros((2, 30), dtype=np.float32), var=pd.DataFrame(index=GENES))
    cells.varm["scgpt"] = VECTORS
    cells.write_h5ad(path)


def _hdf5(fill):
    def make(path):
        with h5py.File(path, "w") as file:
            fill(file)

    return make


def _of_h5ad():
    for what, names, vectors, right in _tables():

        def write(path, names=names, vectors=vectors):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ad.AnnData(vectors, obs=pd.DataFrame(index=names)).write_h5ad(path)

        yield what, write, right
    yield "sparse", _sparse, READ
    yield "varm", _varm, READ
    yield "empty", _hdf5(lambda file: None), REFUSE
    yield "a table only", _hdf5(lambda file: file.create_dataset("X", data=VECTORS)), REFUSE
    yield "other groups", _hdf5(lambda file: file.create_group("a/b/c")), REFUSE
    yield "pandas", lambda path: _hdf5(lambda file: file.create_dataset("df/block0_values", data=VECTORS))(path), REFUSE
    for place in ("X", "obs", "obs/_index", "var", "var/_index"):
        yield f"no {place}", _changed(_set(place, None)), REFUSE if place in ("X", "obs", "obs/_index") else ANY
        yield f"{place} is a number", _changed(_set(place, 3)), ANY if "var" in place else REFUSE
        yield f"{place} is short", _changed(_set(place, np.arange(3))), ANY if "var" in place else REFUSE
        yield f"{place} is text", _changed(_set(place, "text")), ANY if "var" in place else REFUSE
    for name, value in (
        ("encoding-type", "evil"),
        ("encoding-type", 3),
        ("encoding-version", "9.9.9"),
        ("encoding-type", None),
    ):
        for place in ("/", "X", "obs"):
            yield f"{place} {name} {value}", _changed(_attribute(place, name, value)), ANY
    yield "obs index absent", _changed(_attribute("obs", "_index", "absent")), REFUSE
    yield "obs index a number", _changed(_attribute("obs", "_index", 3)), REFUSE
    yield "obs order absent", _changed(_attribute("obs", "column-order", np.array(["a", "b"], dtype="S1"))), ANY
    yield "X of text", _changed(_set("X", np.full((30, 16), b"word"))), REFUSE
    yield "X of objects", _changed(_set("X", np.full((30, 16), "w", dtype=h5py.string_dtype()).astype(object))), REFUSE
    yield "X complex", _changed(_set("X", VECTORS * 1j)), REFUSE
    yield "X with fields", _changed(_set("X", np.zeros(30, dtype=[("a", "f4")]))), REFUSE
    yield "X truth", _changed(_set("X", VECTORS > 0)), ANY
    yield "X with three axes", _changed(_set("X", VECTORS[:, :, None])), REFUSE
    yield "X other width", _changed(_set("X", VECTORS[:, :5])), ANY
    yield "X other length", _changed(_set("X", VECTORS[:5])), REFUSE
    for claim in ((10**7, 10**7), (30, 10**7), (30, 2 * 10**6)):
        options = {"shape": claim, "dtype": np.float32, "chunks": (10, 10)}
        yield f"X claims {claim}", _changed(_set("X", None, **options) if 0 else partial(_claim, claim)), REFUSE
        yield f"layer claims {claim}", _changed(partial(_claim, claim, place="layers/a")), ANY
        yield f"varm claims {claim}", _changed(partial(_claim, claim, place="varm/scgpt"), _varm), REFUSE
        yield f"obsm claims {claim}", _changed(partial(_claim, claim, place="obsm/a")), ANY
        yield f"uns claims {claim}", _changed(partial(_claim, claim, place="uns/a")), ANY
        yield f"sparse claims {claim}", _changed(_attribute("X", "shape", list(claim)), _sparse), REFUSE
    yield "names claim", _changed(partial(_claim, (10**9,), place="obs/_index", dtype=np.int8)), REFUSE
    yield "negative shape", _changed(_attribute("X", "shape", [-30, 16]), _sparse), REFUSE
    yield "shape of text", _changed(_attribute("X", "shape", "many"), _sparse), REFUSE
    yield "no shape", _changed(_attribute("X", "shape", None), _sparse), REFUSE
    for place, value in (
        ("X/indices", np.full(480, 10**6)),
        ("X/indices", np.full(480, -1)),
        ("X/indptr", np.arange(3)),
        ("X/indptr", np.arange(31)[::-1] * 16),
        ("X/indptr", np.full(31, 10**9)),
        ("X/data", np.ones(3)),
        ("X/data", None),
    ):
        yield f"{place} {value}"[:30], _changed(_set(place, value), _sparse), REFUSE
    yield "link outside", _changed(lambda file: _link(file, h5py.ExternalLink("absent.h5", "/X"))), REFUSE
    yield "link to nothing", _changed(lambda file: _link(file, h5py.SoftLink("/absent"))), REFUSE
    yield "link in a circle", _changed(lambda file: _link(file, h5py.SoftLink("/X"))), REFUSE
    yield "link to the root", _changed(lambda file: _link(file, h5py.SoftLink("/"))), REFUSE
    yield "groups in a circle", _changed(lambda file: file["uns"].__setitem__("again", file["uns"])), ANY
    yield "several tables", _changed(lambda file: file["varm"].create_dataset("more", data=VECTORS), _varm), ANY
    yield "packed zeros", _changed(lambda file: _packed(file, (30, 10**6))), REFUSE
    yield "a name of a million", _changed(_set("obs/_index", np.array(["A" * 10**6, *GENES[1:]], dtype=object))), REFUSE


def _claim(shape, file, place="X", dtype=np.float32):
    attributes = dict(file[place].attrs) if place in file else {"encoding-type": "array", "encoding-version": "0.2.0"}
    if place in file:
        del file[place]
    chunks = (10,) * len(shape)
    file.create_dataset(place, shape, dtype, chunks=chunks).attrs.update(attributes)


def _packed(file, shape):
    attributes = dict(file["X"].attrs)
    del file["X"]
    file.create_dataset("X", shape, np.float32, compression="gzip", compression_opts=9, chunks=(30, 10**5))
    file["X"][:, : 10**5] = 1
    file["X"].attrs.update(attributes)


def _link(file, target):
    del file["X"]
    file["X"] = target


# --- .pt


def _saved(content, **options):
    return lambda path: torch.save(content, path, **options)


def _of_pt():
    for what, names, vectors, right in _tables():
        as_dict = {str(name): torch.tensor(vector) for name, vector in zip(names, vectors, strict=True)}
        if len(as_dict) == len(names):
            yield what, _saved(as_dict), right
        yield f"{what}, arrays", _saved({"genes": [str(n) for n in names], "vectors": torch.tensor(vectors)}), right
    tensors = {gene: torch.tensor(vector) for gene, vector in TABLE.items()}
    whole = torch.tensor(VECTORS)
    yield "old format", _saved(tensors, _use_new_zipfile_serialization=False), READ
    yield "bfloat16", _saved({gene: tensor.bfloat16() for gene, tensor in tensors.items()}), ANY
    yield "a part of a tensor", _saved({gene: whole[i] for i, gene in enumerate(GENES)}), READ
    yield "a parameter", _saved({"genes": GENES, "emb": torch.nn.Parameter(whole)}), READ
    yield "lists", _saved({gene: vector.tolist() for gene, vector in TABLE.items()}), READ
    for what, value in {
        "a tensor": whole,
        "nothing": {},
        "None": None,
        "a list": [1, 2],
        "a text": "text",
        "numbers": dict.fromkeys(GENES, 1.0),
        "texts": dict.fromkeys(GENES, "word"),
        "Nones": dict.fromkeys(GENES, None),
        "dicts": dict.fromkeys(GENES, {"a": 1}),
        "widths": {"A": whole[0], "B": whole[1, :3]},
        "matrices": {"A": whole, "B": whole},
        "complex": {gene: tensor * 1j for gene, tensor in tensors.items()},
        "sparse": {gene: tensor.to_sparse() for gene, tensor in tensors.items()},
        "quantised": {gene: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8) for gene, t in tensors.items()},
        "without data": {gene: tensor.to("meta") for gene, tensor in tensors.items()},
        "numbers for names": {i: tensor for i, tensor in enumerate(tensors.values())},
        "tuples for names": {(gene,): tensor for gene, tensor in tensors.items()},
        "genes and more": {"genes": GENES, "vectors": whole, "more": 1},
        "genes only": {"genes": GENES},
        "vectors only": {"vectors": whole},
        "fewer genes": {"genes": GENES[:3], "vectors": whole},
        "genes None": {"genes": None, "vectors": whole},
        "genes a text": {"genes": "GENE", "vectors": whole},
        "genes a tensor": {"genes": torch.arange(30), "vectors": whole},
        "genes lists": {"genes": [["A"], ["B", "C"]], "vectors": whole[:2]},
        "vectors None": {"genes": GENES, "vectors": None},
        "vectors a text": {"genes": GENES, "vectors": "text"},
        "vectors ragged": {"genes": GENES[:2], "vectors": [[1.0], [1.0, 2.0]]},
        "a network": torch.nn.Linear(2, 2),
        "its state": torch.nn.Linear(16, 30).state_dict(),
        "hostile": {"A": Hostile()},
        "hostile behind": {**tensors, "A": Hostile()},
        "an array": {gene: vector for gene, vector in TABLE.items()},
        "a frame": FRAME,
    }.items():
        right = {"numbers": ANY, "sparse": ANY, "quantised": ANY, "an array": ANY, "genes a tensor": ANY}
        right |= {"numbers for names": ANY}
        yield what, _saved(value), right.get(what, REFUSE)
        if what not in ("sparse", "quantised", "without data"):
            yield f"{what}, old", _saved(value, _use_new_zipfile_serialization=False), right.get(what, REFUSE)
    yield (
        "expanded",
        _saved({f"G{i}": torch.zeros(1).expand(10**7) + 0 if 0 else torch.ones(1).expand(10**7) for i in range(8)}),
        REFUSE,
    )
    yield "expanded matrix", _saved({"genes": GENES, "vectors": torch.ones(1, 1).expand(30, 10**7)}), REFUSE
    shared = torch.ones(10**5)
    yield "one for many", _saved({f"G{i}": shared for i in range(3000)}), REFUSE
    yield "a name of a million", _saved({"A" * 10**6: whole[0], **tensors}), REFUSE
    for how in (
        "packed zeros",
        "packed data",
        "short record",
        "pickle cut",
        "zeros behind",
        "call",
        "no pickle",
        "long",
        "encrypted",
        "nested",
    ):
        yield how, partial(_archive, how), REFUSE if how != "zeros behind" else ANY


def _archive(how, path):
    _pt(path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    pkl = next(name for name in records if name.endswith("data.pkl"))
    first = next(name for name in records if name.endswith("/data/0"))
    packed, change = zipfile.ZIP_STORED, None
    if how == "packed zeros":
        records[pkl], packed = records[pkl] + bytes(BIG), zipfile.ZIP_DEFLATED
    elif how == "packed data":
        records[first], packed = bytes(BIG), zipfile.ZIP_DEFLATED
    elif how == "short record":
        records[first] = b""
    elif how == "pickle cut":
        records[pkl] = records[pkl][:-30]
    elif how == "zeros behind":
        records[pkl] += bytes(10**6)
    elif how == "call":
        records[pkl] = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R."
    elif how == "long":
        records[pkl] = b"\x80\x02" + b"}" * 10**7 + b"."
    elif how == "nested":
        records[pkl] = b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."
    elif how == "encrypted":
        change = _encrypted
    else:
        del records[pkl]
    _zipped(list(records.items()), packed, change)(path)


# --- .pickle


def _of_pickle():
    for what, names, vectors, right in _tables():
        lists = {str(name): vector.tolist() for name, vector in zip(names, vectors, strict=True)}
        if len(lists) == len(names):
            yield what, _bytes(pickle.dumps(lists)), ANY if "float64" in what else right
            yield (
                f"{what}, arrays",
                _bytes(pickle.dumps(dict(zip(lists, vectors, strict=True)))),
                (ANY if "64" in what or what == "whole numbers" else right),
            )
    for protocol in range(6):
        lists = {gene: vector.tolist() for gene, vector in TABLE.items()}
        yield f"protocol {protocol}", _bytes(pickle.dumps(lists, protocol)), READ
    for what, value in {
        "a frame": FRAME,
        "an array": VECTORS,
        "a list": [1.0],
        "None": None,
        "nothing": {},
        "numbers": dict.fromkeys(GENES, 1.0),
        "texts": dict.fromkeys(GENES, "word"),
        "dicts": dict.fromkeys(GENES, {"a": [1.0]}),
        "empty lists": {gene: [] for gene in GENES},
        "widths": {"A": [1.0], "B": [1.0, 2.0]},
        "lists of lists": {"A": [[1.0]]},
        "numbers for names": {1: [1.0]},
        "bytes for names": {b"A": [1.0]},
        "sets": {"A": {1.0}},
        "complex": {"A": [1j]},
        "objects": {"A": np.array([1.0], dtype=object)},
        "matrices": {"A": VECTORS},
        "hostile": Hostile(),
        "hostile inside": {"A": Hostile()},
        "a number of a million digits": {"A": [1 << 4_000_000]},
        "a large number": {"A": [1 << 200, 1.0]},
        "truth values": {"A": [True, False]},
        "an exception": ValueError("text"),
        "a class": Path,
        "a tensor": {"A": torch.ones(3)},
        "itself": _circle(),
        "a name of a million": {"A" * 10**6: [1.0], **{f"G{i}": [2.0] for i in range(200)}},
    }.items():
        yield what, _bytes(pickle.dumps(value)), ANY if what in ("truth values", "a large number") else REFUSE
    vector = np.ones(10**5).tolist()
    yield "one list for many", _bytes(pickle.dumps({f"G{i}": vector for i in range(3000)})), REFUSE
    floats = b"".join(b"G" + struct.pack(">d", 1.0) for _ in range(1500))
    run = b"\x80\x04}(" + b"\x8c\x01A" + b"](" + floats + b"q\x00" + b"h\x00" * 300_000 + b"e" + b"u."
    yield "one run many times", _bytes(run), REFUSE
    for code in (b"\x8b", b"X", b"B", b"\x8d", b"\x8e", b"\x96"):
        for size in (2**31 - 1, 2**31, 2**32 - 1):
            length = struct.pack("<Q" if code in (b"\x8d", b"\x8e", b"\x96") else "<I", size)
            yield f"{code!r} of {size} bytes", _bytes(b"\x80\x05" + code + length + b"short"), REFUSE
    yield "a frame of 2**63", _bytes(b"\x80\x04\x95" + struct.pack("<Q", 2**63) + b"}."), REFUSE
    for body in (
        b".",
        b"}",
        b"a.",
        b"0.",
        b"1.",
        b"h\x00.",
        b"g1\n.",
        b"(" * 10**6 + b".",
        b"]" * 10**6 + b".",
        b"t.",
        b"u.",
    ):
        yield f"program {body[:3]}", _bytes(b"\x80\x04" + body), REFUSE
    for name in (
        b"os\nsystem",
        b"builtins\neval",
        b"numpy.core.multiarray\nscalar",
        b"torch\nload",
        b"\n",
        b"a b\nc d",
    ):
        yield f"calls {name!r}", _bytes(b"c" + name + b"\n(Vtouch executed\ntR."), REFUSE
    array = b"cnumpy\ndtype\n(Vf4\nI0\nI1\ntR"
    yield "a dtype only", _bytes(array + b"."), REFUSE
    yield "a dtype of objects", _bytes(b"cnumpy\ndtype\n(VO\ntR."), REFUSE
    yield "a dtype without an argument", _bytes(b"cnumpy\ndtype\n(tR."), REFUSE
    yield "a number in text", _bytes(b"(dVA\n(lF1.5\naF" + b"9" * 10**6 + b"\nas."), REFUSE
    yield "a whole number in text", _bytes(b"(dVA\n(lF1.5\naI" + b"9" * 10**6 + b"\nas."), REFUSE
    yield "no number in text", _bytes(b"(dVA\n(lFword\nas."), REFUSE


def _circle():
    table = {}
    table["A"] = table
    return table
