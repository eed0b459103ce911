"""Is a file replaced in one step, is nothing of the user lost, and does a full disk end in one error?"""

import errno
import logging
import os
import shutil
from collections import namedtuple
from pathlib import Path

import anndata
import numpy as np
import pytest
from anndata import AnnData
from filelock import FileLock, Timeout

from ptrag_sc.data import _disk_space, _files
from ptrag_sc.data._files import check_place, check_target, write_beside, write_together
from ptrag_sc.data._stores import foreign_entry


def text(content):
    return lambda part: part.write_text(content)


def store(value=1.0):
    """Make a zarr store of an AnnData with a sparse and a dense matrix, as large as a few chunks."""
    adata = AnnData(np.full((6, 4), value, np.float32), uns={"ptrag": {"a b": 1}})
    return adata.write_zarr


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def left_by_a_killed_write(target, **content):
    """Return a folder as a killed write leaves it."""
    folder = target.parent / f".{target.name}.ab_cd12x.part"
    folder.mkdir()
    (folder / "lock").touch()
    for name, written in content.items():
        (folder / name).write_text(written)
    return folder


@pytest.mark.parametrize("name", ["a.h5ad", "ä b.csv", "x" * 240 + ".pt"])
def test_what_a_killed_write_left_is_removed_by_the_next_one(tmp_path, caplog, name):
    target = tmp_path / name
    folder = Path(shutil.move(left_by_a_killed_write(tmp_path / "a.h5ad", part="half"), tmp_path / "other"))
    folder.rename(tmp_path / f"{_files._hidden(target)}ab_cd12x.part")
    (tmp_path / ".a.h5ad.notes.part").mkdir()  # nobody's name for a write
    left_by_a_killed_write(tmp_path / "b.h5ad")  # of another target
    write_beside(target, text("new"))
    assert target.read_text() == "new"
    assert names(tmp_path) == sorted([".a.h5ad.notes.part", ".b.h5ad.ab_cd12x.part", name])
    assert "left when it was killed" in caplog.text


def test_what_a_living_write_has_is_left_alone(tmp_path):
    target = tmp_path / "a.csv"
    folder = left_by_a_killed_write(target, part="half")
    with FileLock(folder / "lock"):
        write_beside(target, text("new"))
        assert (folder / "part").read_text() == "half"
    write_beside(target, lambda part: write_beside(target, text("inner")) or part.write_text("outer"))
    assert (names(tmp_path), target.read_text()) == (["a.csv"], "outer")


def test_what_is_left_is_removed_while_it_is_locked(tmp_path, monkeypatch):
    """Its process may only have begun: it must not get the lock of a folder that is about to go."""
    folder = left_by_a_killed_write(tmp_path / "a.csv", part="half")
    remove, tried = shutil.rmtree, []

    def removing(path, **options):
        if Path(path) == folder:
            with pytest.raises(Timeout):
                FileLock(folder / "lock").acquire(timeout=0)
            tried.append(path)
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", removing)
    write_beside(tmp_path / "a.csv", text("new"))
    assert tried
    assert names(tmp_path) == ["a.csv"]


def test_a_folder_without_a_lock_is_removed_and_its_process_makes_it_anew(tmp_path, monkeypatch):
    target, make = tmp_path / "a.csv", _files.tempfile.mkdtemp

    def cleared(**options):
        folder = make(**options)
        check_place(target, overwrite=True)  # of another process, before the first one has its lock
        assert names(tmp_path) == []
        return folder

    monkeypatch.setattr(_files.tempfile, "mkdtemp", cleared)
    write_beside(target, text("new"))
    assert names(tmp_path) == ["a.csv"]


def test_chunks_that_come_while_a_failed_write_is_removed_are_removed_too(tmp_path, monkeypatch):
    remove, removed = shutil.rmtree, []

    def late(path, **options):
        remove(path, **options)
        removed.append(path)
        if len(removed) < 3:  # threads of zarr have not ended
            (Path(path) / "a.zarr" / "X").mkdir(parents=True)

    def fail(part):
        raise RuntimeError("full")

    monkeypatch.setattr(shutil, "rmtree", late)
    with pytest.raises(RuntimeError, match="full"):
        write_beside(tmp_path / "a.zarr", fail)
    assert names(tmp_path) == []


def test_a_folder_that_was_half_removed_is_removed(tmp_path):
    folder = left_by_a_killed_write(tmp_path / "a.csv", part="half")
    (folder / "lock").unlink()
    write_beside(tmp_path / "a.csv", text("new"))
    assert names(tmp_path) == ["a.csv"]


def test_a_folder_that_another_process_took_is_made_anew(tmp_path, monkeypatch):
    made, make = [], _files.tempfile.mkdtemp

    def taken_once(**options):
        made.append(make(**options))
        if len(made) == 1:  # gone with its lock, as if it had been left
            monkeypatch.setattr(Path, "exists", lambda path, real=Path.exists: "lock" != path.name and real(path))
        else:
            monkeypatch.undo()
        return made[-1]

    monkeypatch.setattr(_files.tempfile, "mkdtemp", taken_once)
    write_beside(tmp_path / "a.csv", text("new"))
    assert len(made) == 2
    assert (tmp_path / "a.csv").read_text() == "new"


def test_a_folder_that_was_half_replaced_comes_back(tmp_path, caplog):
    target = tmp_path / "v.zarr"
    write_beside(target, store(1))
    folder = left_by_a_killed_write(target, part="the new one")
    target.rename(folder / "replaced")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        check_target(target, suffixes=(".zarr",), overwrite=False)
    assert anndata.read_zarr(target).X[0, 0] == 1
    assert names(tmp_path) == ["v.zarr"]
    assert "is back" in caplog.text


def test_everything_is_on_the_disk_before_the_rename_and_the_rename_after_it(tmp_path, monkeypatch):
    done, fsync, rename = [], os.fsync, Path.replace

    def recorded(handle):
        done.append(os.stat(handle).st_ino)
        fsync(handle)

    def renaming(self, target):
        if target == tmp_path / "v.zarr":  # zarr renames its own files
            done.append("rename")
            wanted.update(path.stat().st_ino for path in (self, *self.rglob("*")))
        return rename(self, target)

    wanted = set()
    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(Path, "replace", renaming)
    write_beside(tmp_path / "v.zarr", store())
    assert len(wanted) > 20
    assert set(done[: done.index("rename")]) == wanted
    assert done[done.index("rename") + 1 :] == [tmp_path.stat().st_ino]


@pytest.mark.parametrize(
    "foreign", ["thesis.txt", ".hidden", "obs/thesis.txt", "X/thesis.txt", "X/c/thesis", "images/zarr.json", "uns/new"]
)
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.filterwarnings("ignore:zarr v3 autosharding", "ignore:Consolidated metadata")
def test_a_store_that_holds_something_else_is_kept(tmp_path, foreign, zarr_format):
    target = tmp_path / "v.zarr"
    with anndata.settings.override(zarr_write_format=zarr_format):
        write_beside(target, store())
    assert foreign_entry(target) is None
    (target / foreign).parent.mkdir(exist_ok=True)
    (target / foreign).write_text("mine")
    with pytest.raises(FileExistsError, match=r"is no zarr store of an AnnData alone: it holds '.*'. Pass another"):
        write_beside(target, store(2))
    assert (target / foreign).read_text() == "mine"
    (target / foreign).unlink()
    (target / "X" / "link").symlink_to(tmp_path)
    with pytest.raises(FileExistsError, match="X/link"):
        write_beside(target, store(2))


def test_other_stores_and_folders_are_kept(tmp_path):
    for name, content in {"a.zarr": "zarr.json", "b.zarr": "thesis.txt", "model.pt": "thesis.txt"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / content).write_text('{"attributes": {"encoding-type": "spatialdata"}}')
        with pytest.raises(FileExistsError, match="it holds"):
            write_beside(tmp_path / name, text("new"))
        assert (tmp_path / name / content).exists()
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(FileExistsError, match="it holds 'nothing'"):
        check_place(tmp_path / "empty.zarr", overwrite=True)


@pytest.mark.parametrize("name", ["v.csv", "v.zarr"])
@pytest.mark.parametrize("is_there", [True, False])
def test_a_symbolic_link_stays(tmp_path, name, is_there):
    (tmp_path / "far").mkdir()
    real, link = tmp_path / "far" / "real", tmp_path / name
    write = store if name.endswith("zarr") else text
    if is_there:
        write_beside(real, write("1") if write is text else write(1))
    link.symlink_to(real)
    write_beside(link, lambda part: (text("2") if write is text else store(2))(part))
    assert link.is_symlink()
    assert (anndata.read_zarr(real).X[0, 0] == 2) if write is store else (real.read_text() == "2")
    assert names(tmp_path / "far") == ["real"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_no_file_to_replace(tmp_path):
    os.mkfifo(tmp_path / "v.h5ad")
    for overwrite in (True, False):
        with pytest.raises(FileExistsError, match=r"is no file|exists"):
            write_beside(tmp_path / "v.h5ad", text("new"), overwrite=overwrite)
    assert (tmp_path / "v.h5ad").is_fifo()


@pytest.mark.parametrize(("write", "has_links"), [(text, True), (text, False), (store, True)])
def test_the_second_of_two_writers_fails(tmp_path, monkeypatch, write, has_links):
    target = tmp_path / "v"
    first, second = (text("1"), text("2")) if write is text else (store(1), store(2))
    if not has_links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links here")))

    def late(part):
        second(part)
        write_beside(target, first, overwrite=False)  # the other process is faster

    with pytest.raises(FileExistsError, match=r"exists|meantime"):
        write_beside(target, late, overwrite=False)
    found = target.read_text() if write is text else anndata.read_zarr(target).X[0, 0]
    assert found in ("1", 1)
    assert names(tmp_path) == ["v"]


def test_a_place_taken_between_the_last_look_and_the_rename_stays_taken(tmp_path):
    (tmp_path / "part").write_text("2")
    (tmp_path / "v").write_text("1")
    with pytest.raises(FileExistsError, match="in the meantime"):
        _files._move(tmp_path / "part", tmp_path / "v", overwrite=False)
    assert (tmp_path / "v").read_text() == "1"


def test_files_that_belong_together_are_replaced_together(tmp_path):
    def fail(part):
        part.write_text("half")
        raise RuntimeError("no")

    one, two = tmp_path / "one", tmp_path / "two"
    write_together({one: text("1"), two: text("1")})
    with pytest.raises(RuntimeError):
        write_together({one: text("2"), two: fail})
    assert (one.read_text(), two.read_text(), names(tmp_path)) == ("1", "1", ["one", "two"])


HDF5 = "Can't write data (file write failed: errno = 28, error message = 'No space left on device', buf = 0x5)"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        RuntimeError(HDF5),
    ],
)
@pytest.mark.parametrize("is_wrapped", [True, False])
def test_a_full_disk_is_one_error_that_names_file_and_bytes(tmp_path, error, is_wrapped):
    target = tmp_path / "v.h5ad"
    target.write_text("old")

    def fail(part):
        part.write_text("half")
        try:
            raise error
        except Exception as cause:
            if is_wrapped:
                raise ValueError("while closing") from cause
            raise

    with pytest.raises(OSError, match=r"v\.h5ad could not be written: .*bytes.*\. Free some space") as caught:
        write_beside(target, fail)
    assert caught.value.errno in _disk_space.FULL
    assert (target.read_text(), names(tmp_path)) == ("old", ["v.h5ad"])


def test_other_errors_stay_as_they_are(tmp_path):
    def fail(part):
        raise OSError("errno = 5, bad sector")

    with pytest.raises(OSError, match=r"^errno = 5"):
        write_beside(tmp_path / "v", fail)


def test_space_is_looked_for_before_a_large_write(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 5000, 5000)
    monkeypatch.setattr(_files.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"v could not be written: No space .*6,000 bytes are needed, 5,000 are free"):
        write_beside(tmp_path / "v", None, n_bytes=6000)
    write_beside(tmp_path / "v", text("new"), n_bytes=4000)
    assert names(tmp_path) == ["v"]


def test_nothing_is_logged_where_nothing_was_left(tmp_path, caplog):
    with caplog.at_level(logging.DEBUG, "ptrag_sc"):
        write_beside(tmp_path / "v", text("1"))
        write_beside(tmp_path / "v", text("2"))
    assert not caplog.records
