"""Is GenePT downloaded once, checked, converted and kept?"""

import functools
import hashlib
import http.server
import pickle
import threading
import zipfile

import numpy as np
import pytest

from ptrag_sc.datasets import _genept
from ptrag_sc.datasets._genept import MEMBER, genept

TABLE = {f"GENE{i}": np.random.default_rng(i).normal(size=6).tolist() for i in range(12)}


def write_archive(path, member=MEMBER):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as files:
        files.writestr("GenePT_emebdding_v2/NCBI_summary_of_genes.json", "{}")
        files.writestr(member, pickle.dumps(TABLE))
    return "md5:" + hashlib.md5(path.read_bytes()).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    n_requests = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/genept.zip"


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.n_requests += 1
        super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A server on this machine that holds a small archive of the same layout, and the archive's checksum."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    known_hash = write_archive(folder / "genept.zip")
    server = Server(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server, known_hash
    server.shutdown()
    server.server_close()
    thread.join()


def test_first_call_downloads_later_calls_read_the_table(served, tmp_path):
    server, known_hash = served
    cache = tmp_path / "cache"
    first = genept(cache_dir=cache, url=server.url, known_hash=known_hash)
    assert first.genes.tolist() == list(TABLE)
    np.testing.assert_array_equal(first.vectors, np.array(list(TABLE.values()), np.float32))
    assert server.n_requests == 1

    (cache / "genept.zip").unlink()
    again = genept(cache_dir=cache, url=server.url, known_hash=known_hash)
    np.testing.assert_array_equal(again.vectors, first.vectors)
    assert again.vectors.dtype == np.float32
    assert server.n_requests == 1


def test_genes_are_returned_in_the_order_asked_for(served, tmp_path):
    server, known_hash = served
    table = genept(cache_dir=tmp_path / "cache", url=server.url, known_hash=known_hash, genes=["GENE7", "GENE2"])
    assert table.genes.tolist() == ["GENE7", "GENE2"]
    np.testing.assert_array_equal(table.vectors, np.array([TABLE["GENE7"], TABLE["GENE2"]], np.float32))
    with pytest.raises(KeyError, match=r"'GENE77' is not in GenePT \(closest: 'GENE7'"):
        genept(cache_dir=tmp_path / "cache", url=server.url, known_hash=known_hash, genes=["GENE77"])


def test_a_wrong_checksum_keeps_nothing(served, tmp_path):
    server, _ = served
    cache = tmp_path / "cache"
    with pytest.raises(ValueError, match="hash"):
        genept(cache_dir=cache, url=server.url, known_hash="md5:" + "0" * 32)
    assert not list(cache.iterdir())


def test_another_archive_is_not_answered_from_the_first_ones_table(served, tmp_path):
    server, known_hash = served
    genept(cache_dir=tmp_path / "cache", url=server.url, known_hash=known_hash)
    with pytest.raises(ValueError, match="hash"):
        genept(cache_dir=tmp_path / "cache", url=server.url, known_hash="md5:" + "0" * 32)


def test_without_a_server_the_error_says_what_to_do(served, tmp_path):
    server, known_hash = served
    with pytest.raises(OSError, match="could not be downloaded") as caught:
        genept(cache_dir=tmp_path / "cache", url=server.url.replace("genept.zip", "absent.zip"), known_hash=known_hash)
    assert "Download it elsewhere" in str(caught.value)


def test_an_archive_already_in_the_folder_needs_no_network(tmp_path):
    known_hash = write_archive(tmp_path / "genept.zip")
    table = genept(cache_dir=tmp_path, url="http://127.0.0.1:9/genept.zip", known_hash=known_hash)
    assert table.genes.tolist() == list(TABLE)


def test_an_archive_without_the_table_is_named(tmp_path):
    known_hash = write_archive(tmp_path / "genept.zip", member="other.pickle")
    with pytest.raises(ValueError, match=MEMBER):
        genept(cache_dir=tmp_path, url="http://127.0.0.1:9/genept.zip", known_hash=known_hash)
    assert not list(tmp_path.glob("*.npz"))


def test_a_broken_write_leaves_no_table(tmp_path, monkeypatch):
    known_hash = write_archive(tmp_path / "genept.zip")

    def broken(path, **arrays):
        path.write_bytes(b"half a table")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(_genept.np, "savez", broken)
        with pytest.raises(OSError, match="no space left"):
            genept(cache_dir=tmp_path, url="http://127.0.0.1:9/genept.zip", known_hash=known_hash)
    assert [path.name for path in tmp_path.iterdir()] == ["genept.zip"]
    assert len(genept(cache_dir=tmp_path, url="http://127.0.0.1:9/genept.zip", known_hash=known_hash).genes) == len(
        TABLE
    )


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("damage", [lambda b: b[:-100], lambda b: b"", lambda b: b[:300] + b"?" + b[301:], "other"])
def test_a_damaged_table_is_made_again(served, tmp_path, caplog, damage):
    server, known_hash = served
    options = {"cache_dir": tmp_path / "cache", "url": server.url, "known_hash": known_hash}
    first = genept(**options)
    table = next((tmp_path / "cache").glob("*.npz"))
    if damage == "other":
        np.savez(table, genes=first.genes, vectors=first.vectors[:3])
    else:
        table.write_bytes(damage(table.read_bytes()))
    again = genept(**options)
    np.testing.assert_array_equal(again.vectors, first.vectors)
    assert "Removed the damaged table" in caplog.text
    assert server.n_requests == 1  # the archive is still there


def test_a_damaged_archive_is_fetched_again(served, tmp_path, caplog):
    server, known_hash = served
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "genept.zip").write_bytes(b"half")
    assert len(genept(cache_dir=cache, url=server.url, known_hash=known_hash).genes) == len(TABLE)
    assert "genept.zip is damaged or another file" in caplog.text


def test_what_a_killed_download_left_is_removed(served, tmp_path):
    server, known_hash = served
    cache = tmp_path / "cache"
    left = cache / ".genept.zip.abcdefgh.part"
    left.mkdir(parents=True)
    (left / "tmpxyz").write_bytes(b"half")
    genept(cache_dir=cache, url=server.url, known_hash=known_hash)
    assert not left.exists()
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("known_hash", [None, "", "md5:"])
def test_nothing_is_fetched_without_a_checksum(tmp_path, known_hash):
    with pytest.raises(ValueError, match="has no checksum"):
        genept(cache_dir=tmp_path, known_hash=known_hash)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("known_hash", ["md5:abc", "evil:" + "0" * 32, "0" * 32, "md5:" + "z" * 32])
def test_a_checksum_that_is_none_is_refused(tmp_path, known_hash):
    with pytest.raises(ValueError, match="cannot be compared with the checksum"):
        genept(cache_dir=tmp_path, known_hash=known_hash)


@pytest.mark.parametrize("url", ["", "x.zip", "http://host", "http://host/", "http://host/..", "http://h/" + "x" * 300])
def test_an_address_of_no_file_is_refused(tmp_path, url):
    with pytest.raises(ValueError, match="is no address of a file"):
        genept(cache_dir=tmp_path, url=url)
    assert not list(tmp_path.iterdir())


def test_a_query_is_no_part_of_the_name(served, tmp_path):
    server, known_hash = served
    genept(cache_dir=tmp_path / "cache", url=server.url + "?download=1", known_hash=known_hash)
    assert (tmp_path / "cache" / "genept.zip").is_file()


@pytest.mark.parametrize("kind", ["file", "link", "archive", "table"])
def test_what_is_in_the_place_of_the_cache_is_named(served, tmp_path, kind):
    server, known_hash = served
    cache = tmp_path / "cache"
    if kind == "file":
        cache.write_text("a file")
        cache = cache / "below"
    elif kind == "link":
        cache.symlink_to("absent")
    else:
        name = {"archive": "genept.zip", "table": f"genept_ada_{known_hash[4:12]}.npz"}[kind]
        (cache / name).mkdir(parents=True)
    with pytest.raises(OSError, match=r"cannot be made .*Pass another folder|a folder in its place. Remove the folder"):
        genept(cache_dir=cache, url=server.url, known_hash=known_hash)
