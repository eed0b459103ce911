"""What happens when a download is cut off, wrong or impossible, or what it keeps is damaged?

Called by ``faults.py`` (attack ``downloads``). A server on this machine answers as the last part of a path says.
"""

import functools
import gzip
import hashlib
import http.server
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
import time
import zipfile

import anndata
import numpy as np
import pandas as pd
from attempts import in_a_child

from ptrag_sc.datasets import genept, replogle_nadig
from ptrag_sc.datasets._genept import MEMBER

TABLE = {f"GENE{i}": np.random.default_rng(i).normal(size=200).tolist() for i in range(300)}


def _archive(path, member=MEMBER, content=None, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as files:
        files.writestr(member, pickle.dumps(TABLE) if content is None else content)


def _screen(path):
    obs = pd.DataFrame({"gene": ["AARS", "non-targeting"] * 20, "cell_line": "k562", "gem_group": 1})
    obs.index = [f"cell{i}" for i in range(40)]
    anndata.AnnData(np.ones((40, 5), np.float32), obs=obs).write_h5ad(path)


def _answer_whole(handler, content):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def _status(code, headers=()):
    def answer(handler, content):
        handler.send_response(code)
        for name, value in headers:
            handler.send_header(name, value)
        handler.send_header("Content-Length", "5")
        handler.end_headers()
        handler.wfile.write(b"error")

    return answer


def _with_length(length, share, **headers):
    """Announce a length and send a share of the content."""

    def answer(handler, content):
        handler.send_response(200)
        if length is not None:
            handler.send_header("Content-Length", str(length(len(content)) if callable(length) else length))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content[: int(len(content) * share)])
        handler.wfile.flush()
        handler.close_connection = True

    return answer


def _raw(text):
    def answer(handler, content):
        handler.wfile.write(text)
        handler.close_connection = True

    return answer


def _other(change):
    return lambda handler, content: _answer_whole(handler, change(content))


def _slow(handler, content):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    for start in range(0, len(content), 2000):
        handler.wfile.write(content[start : start + 2000])
        time.sleep(0.05)


def same(n):
    return n


ANSWERS = {
    "cut off": _with_length(same, 0.5),
    "cut off at once": _with_length(same, 0),
    "cut off near the end": _with_length(same, 0.999),
    "too long a length": _with_length(lambda n: n + 1000, 1),
    "too short a length": _with_length(lambda n: n - 1000, 1),
    "no length and cut off": _with_length(None, 0.5),
    "a length of text": _with_length("many", 1),
    "a negative length": _with_length(-5, 1),
    "a huge length": _with_length(10**15, 0.5),
    "chunks cut off": _with_length(None, 0.3, Transfer_Encoding="chunked"),
    "bad chunks": _raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n"),
    "says gzip": _with_length(same, 1, Content_Encoding="gzip"),
    "is packed again": _with_length(None, 1, Content_Encoding="gzip"),
    "404": _status(404),
    "403": _status(403),
    "500": _status(500),
    "503": _status(503),
    "401": _status(401),
    "204": _status(204),
    "a circle": _status(302, [("Location", "")]),
    "moved to nowhere": _status(302, [("Location", "http://127.0.0.1:9/x.zip")]),
    "moved to another protocol": _status(302, [("Location", "gopher://x/y")]),
    "moved without a place": _status(301),
    "an error page": _other(lambda content: b"<html>Please log in</html>"),
    "nothing": _other(lambda content: b""),
    "one bit changed": _other(lambda content: content[:500] + bytes([content[500] ^ 1]) + content[501:]),
    "packed": _other(gzip.compress),
    "no answer": _raw(b""),
    "no http": _raw(b"220 ftp ready\r\n"),
    "half a header": _raw(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "a header without end": _raw(b"HTTP/1.1 200 OK\r\nA: " + b"x" * 100_000),
}


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        _, how, name = f"//{self.path}".split("?")[0].rsplit("/", 2)
        file = self.server.folder / name
        content = file.read_bytes() if file.is_file() else b"a list of files"
        how = how.replace("%20", " ")
        self.server.n_requests += 1
        try:
            answers = {"right": _answer_whole, "slow": _slow, **ANSWERS}
            answers.get(how, _answer_whole)(self, content)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, *args):
        pass


class _Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.text = ""

    def emit(self, record):
        self.text += record.getMessage() + "\n"


def downloads(work):
    """Yield, for each kind of fault, what became of each attempt."""
    os.environ.update(NO_PROXY="127.0.0.1", TQDM_DISABLE="1")
    served = work / "served"
    served.mkdir()
    _archive(served / "genept.zip")
    _screen(served / "replogle.h5ad")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.folder, server.n_requests = served, 0
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    cache = work / "cache"
    sources = [_GenePT(served, cache), _Replogle(served, cache)]
    try:
        for kind, attacks in (
            ("answers of a server", _of_answers),
            ("addresses", _of_addresses),
            ("checksums", _of_checksums),
            ("caches", _of_caches),
            ("killed and concurrent downloads", _of_processes),
        ):
            results = []
            for source in sources:
                for what, said in attacks(source, address):
                    results.append(said if said in ("refused", "same") else f"[{source.name}: {what}] {said}")
                    shutil.rmtree(cache, ignore_errors=True)
                    cache.unlink(missing_ok=True)
            yield f"downloads: {kind}", results
    finally:
        server.shutdown()


class _GenePT:
    name, file = "genept", "genept.zip"

    def __init__(self, served, cache):
        self.cache = cache
        self.content = (served / self.file).read_bytes()
        self.digest = "md5:" + hashlib.md5(self.content).hexdigest()

    def fetch(self, url, digest):
        table = genept(url=url, known_hash=digest, cache_dir=self.cache)
        return table.genes.tolist() == list(TABLE) and np.allclose(table.vectors, list(TABLE.values()))


class _Replogle:
    name, file = "replogle", "replogle.h5ad"

    def __init__(self, served, cache):
        self.cache = cache
        self.content = (served / self.file).read_bytes()
        self.digest = hashlib.sha256(self.content).hexdigest()

    def fetch(self, url, digest):
        adata = replogle_nadig(url=url, sha256=digest, cache_dir=self.cache)
        right = adata.shape == (40, 5)
        adata.file.close()
        return right


def _attempt(source, url, digest=None):
    """Fetch; a failure must name the address or the file, and leave nothing behind."""
    try:
        right = source.fetch(url, source.digest if digest is None else digest)
    except (OSError, ValueError) as error:
        said, text = "refused", str(error)
        if not any(name in text for name in (url, str(source.cache), source.file)) or ". " not in text:
            said = f"{type(error).__name__} without a name or remedy: {text[:150]}"
    except Exception as error:
        said = f"foreign {type(error).__name__}: {str(error)[:150]}"
    else:
        said = "same" if right else "read otherwise"
    left = []
    if source.cache.is_dir():
        left = [path.name for path in source.cache.iterdir() if ".part" in path.name or path.name.startswith("tmp")]
    return f"{said}, left {left}" if left else said


def _then_right(said, source, address):
    """Whatever happened, the next call to a server that works must succeed."""
    again = _attempt(source, f"{address}/right/{source.file}")
    return said if again == "same" else f"{said}, and then {again}"


def _of_answers(source, address):
    for what in ANSWERS:
        said = _attempt(source, f"{address}/{what.replace(' ', '%20')}/{source.file}")
        yield what, _then_right(said, source, address)


def _of_addresses(source, address):
    for url in (
        "http://127.0.0.1:9/x.zip",
        "http://absent.invalid/x.zip",
        "http://127.0.0.1:99999/x.zip",
        "ftp://127.0.0.1:9/x.zip",
        "sftp://127.0.0.1:9/x.zip",
        "doi:10.5281/absent/x.zip",
        "file:///etc/hostname",
        "gopher://x/y",
        "x.zip",
        "",
        "http://",
        "http:///x.zip",
        f"{address}/right/..",
        f"{address}/right/",
        address,
        f"{address}/right/" + "x" * 300 + ".zip",
        "http://[::1/x.zip",
        "http://a..b/x.zip",
        "http://" + "a" * 70 + ".invalid/x.zip",
    ):
        yield url[:60], _then_right(_attempt(source, url), source, address)
    url = f"{address}/right/{source.file}?download=1"
    yield "with a query", _attempt(source, url)


def _of_checksums(source, address):
    url = f"{address}/right/{source.file}"
    right = source.digest.rpartition(":")[2]
    for digest in ("", "md5:", "sha256:", "abc", "md5:abc", "evil:" + right, right[:-1], "0" * 64, "md5:" + "0" * 32):
        yield digest, _then_right(_attempt(source, url, digest), source, address)
    for digest in (source.digest.upper().replace("MD5", "md5"), f" {source.digest} ", f"{source.digest}\n"):
        yield f"{digest!r}", _attempt(source, url, digest)


def _of_caches(source, address):
    url = f"{address}/right/{source.file}"
    whole = source.content
    for what, content in (
        ("of no bytes", b""),
        ("cut short", whole[:-50]),
        ("one bit changed", whole[:500] + bytes([whole[500] ^ 1]) + whole[501:]),
        ("an error page", b"<html></html>"),
    ):
        source.cache.mkdir(exist_ok=True)
        (source.cache / source.file).write_bytes(content)
        lines = _Lines()
        logging.getLogger("ptrag_sc").addHandler(lines)
        disabled, logging.root.manager.disable = logging.root.manager.disable, 0
        said = _attempt(source, url)
        logging.root.manager.disable = disabled
        logging.getLogger("ptrag_sc").removeHandler(lines)
        if source.file not in lines.text:
            said += ", without a line in the log"
        yield f"a download {what}", said
        shutil.rmtree(source.cache, ignore_errors=True)
    source.cache.mkdir()
    (source.cache / source.file).mkdir()
    yield "a folder in place of the download", _attempt(source, url)
    shutil.rmtree(source.cache, ignore_errors=True)
    source.cache.write_text("a file")
    yield "the cache folder is a file", _attempt(source, url)
    source.cache.unlink(missing_ok=True)
    source.cache.symlink_to("absent")
    yield "the cache folder is a link to nothing", _attempt(source, url)
    source.cache.unlink(missing_ok=True)
    usual, source.cache = source.cache, source.cache.parent / "served" / source.file / "cache"
    yield "a file above the cache folder", _attempt(source, url)
    source.cache = type(usual)("/proc/ptrag_sc/cache")
    yield "a cache folder that cannot be made", _attempt(source, url)
    source.cache = type(usual)("/proc")
    yield "a cache folder that cannot be written to", _attempt(source, url)
    source.cache = usual
    if isinstance(source, _GenePT):
        yield from _of_archives(source)
        yield from _of_tables(source, url)


def _of_archives(source):
    """Archives that have the checksum that is asked for, and hold something else."""
    hostile = b"cos\nsystem\n(Vtouch executed\ntR."
    bomb = b"\x80\x04}(" + b"\x8c\x01A]." + bytes(3 * 10**8)
    for what, write in (
        ("no zip", lambda path: path.write_bytes(b"no archive")),
        ("nothing", lambda path: path.write_bytes(b"")),
        ("another member", lambda path: _archive(path, "other.pickle")),
        ("a hostile pickle", lambda path: _archive(path, content=hostile)),
        ("half a pickle", lambda path: _archive(path, content=pickle.dumps(TABLE)[:-100])),
        ("an empty member", lambda path: _archive(path, content=b"")),
        ("packed zeros", lambda path: _archive(path, content=bomb)),
    ):
        source.cache.mkdir(exist_ok=True)
        write(source.cache / source.file)
        digest = "md5:" + hashlib.md5((source.cache / source.file).read_bytes()).hexdigest()
        yield (
            f"an archive with {what}",
            in_a_child(functools.partial(_attempt, source, f"http://127.0.0.1:9/{source.file}", digest)),
        )


def _of_tables(source, url):
    genes, vectors = np.array(list(TABLE)), np.array(list(TABLE.values()), np.float32)

    def saved(**arrays):
        return lambda path: np.savez(path, **arrays)

    for what, write in (
        ("cut short", lambda path: path.write_bytes(path.read_bytes()[:-100])),
        ("of no bytes", lambda path: path.write_bytes(b"")),
        ("one bit changed", lambda path: path.write_bytes(_flipped(path.read_bytes()))),
        ("zeros", lambda path: path.write_bytes(bytes(5000))),
        ("other arrays", saved(names=genes)),
        ("fewer rows", saved(genes=genes, vectors=vectors[:5])),
        ("no rows", saved(genes=genes[:0], vectors=vectors[:0])),
        ("objects", saved(genes=genes.astype(object), vectors=vectors)),
        ("numbers for names", saved(genes=np.arange(300), vectors=vectors)),
        ("words for vectors", saved(genes=genes, vectors=np.full(vectors.shape, "word"))),
        ("an array", lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}")),
        ("a folder", lambda path: (path.unlink(), path.mkdir())),
    ):
        _attempt(source, url)
        (table,) = source.cache.glob("*.npz")
        write(table)
        yield f"a table: {what}", _attempt(source, url)
        shutil.rmtree(source.cache, ignore_errors=True)


def _flipped(content):
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def _of_processes(source, address):
    slow, url = f"{address}/slow/{source.file}", f"{address}/right/{source.file}"
    for number in range(3):
        pid = os.fork()
        if pid == 0:
            _attempt(source, slow)
            os._exit(0)
        time.sleep(0.3 + 0.2 * number)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        left = [path.name for path in source.cache.rglob("*") if path.is_file()]
        said = _attempt(source, url)
        yield "killed", said if left else f"{said}, but nothing was there to be removed"
        shutil.rmtree(source.cache, ignore_errors=True)
    context = multiprocessing.get_context("fork")
    for address_of in (slow, url):
        with context.Pool(2) as pool:
            said = pool.starmap(_attempt, [(source, address_of)] * 2)
        # What one process has not finished the other one sees, and that is no fault.
        said = [text.partition(", left")[0] for text in said]
        yield "two at once", "same" if said == ["same", "same"] else f"{said}"
        shutil.rmtree(source.cache, ignore_errors=True)
