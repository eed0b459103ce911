"""Do the workers of a dask cluster write exactly what one process writes, whatever happens to them?"""

import os
import pickle
import signal
import threading
import time
from dataclasses import replace
from itertools import pairwise

import anndata
import distributed
import numpy as np
import pytest
import zarr

import ptrag_sc
from ptrag_sc.data import _cluster, _disk_space, _job, _joined_stores, _predictor, _run, _stream
from screens import KEYS, make_screen

# Of distributed itself, when a cluster ends.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
slow = pytest.mark.slow  # many small arrays: zarr takes some milliseconds for each
CHUNKS = {name: getattr(_stream, name) for name in ("X_CHUNK", "COLUMN_CHUNK")}
REQUEST = ["G5", "G0", "G2+G1"]


@pytest.fixture(scope="module")
def client():
    """Two workers in threads of this process."""
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        yield client


@pytest.fixture(autouse=True)
def in_small_pieces(monkeypatch):
    """A few slices of unequal length and several pieces, chunks that slices straddle, regions of a few chunks."""
    monkeypatch.setattr(_run, "CHUNK", 48)
    monkeypatch.setattr(_job, "SLICES_PER_THREAD", 1)
    monkeypatch.setattr(_predictor.Predictor, "_prediction_batch_size", 2)
    monkeypatch.setattr(_stream, "X_CHUNK", 2500)
    monkeypatch.setattr(_stream, "COLUMN_CHUNK", 75)
    monkeypatch.setattr(_joined_stores, "REGION", 6000)


@pytest.fixture(scope="module")
def adata():
    """Control cells with columns of several kinds, which no test changes."""
    screen = make_screen(n_obs=240)
    screen.obs["line"] = screen.obs["line"].astype("category")
    screen.obs["text"] = [f"Zürich {i}" for i in range(screen.n_obs)]
    screen.obs["gap"] = np.arange(screen.n_obs)
    screen.obs["gap"] = screen.obs["gap"].astype("Int64").where(screen.obs["gap"] % 3 > 0)
    ptrag_sc.PTRAG.setup_anndata(screen, **KEYS, batch_key="gem")
    return screen


def content(store):
    """``{path: bytes}`` of all files of a store."""
    return {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}


def assert_same(found, expected):
    """Every file is the same, byte by byte."""
    found, expected = content(found), content(expected)
    assert set(found) == set(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


def both(adata, model, client, folder, **options):
    """Paths of what the workers and what one process wrote."""
    paths = folder / "workers.zarr", folder / "one.zarr"
    for path, one in zip(paths, (client, None), strict=True):
        ptrag_sc.tl.perturb(adata, model, REQUEST, out=path, client=one, progress=False, **options)
    assert sorted(path.name for path in folder.iterdir()) == ["one.zarr", "workers.zarr"]
    return paths


@pytest.fixture(scope="module")
def mean(adata):
    """A baseline of small sets."""
    model = ptrag_sc.baselines.MeanShift(adata).fit()
    model.set_size_ = 8
    return model


def test_workers_write_what_one_process_writes(adata, mean, client, tmp_path):
    workers, one = both(adata, mean, client, tmp_path, counts=False, n_cells=9)
    assert_same(workers, one)


@slow
def test_workers_write_counts_too(adata, mean, client, tmp_path):
    workers, one = both(adata, mean, client, tmp_path)
    assert_same(workers, one)


@slow
@pytest.mark.parametrize("options", [{}, {"seed": 3, "counts": False, "n_cells": {"G5": 20, "G0": 31, "G2+G1": 5}}])
def test_trained_models_too(trained, adata, client, tmp_path, monkeypatch, options):
    loads, load = [], type(trained).load
    monkeypatch.setattr(type(trained), "load", lambda *args, **kwargs: loads.append(1) or load(*args, **kwargs))
    workers, one = both(adata, trained, client, tmp_path, **options)
    assert_same(workers, one)
    assert anndata.read_zarr(workers).n_obs == anndata.read_zarr(one).n_obs > 100
    assert 1 <= len(loads) <= 2  # once in a process; both threads may begin at the same time


@slow
def test_predictors_that_ask_others_and_files_that_are_open(adata, client, tmp_path, monkeypatch):
    adata.write_h5ad(tmp_path / "screen.h5ad")
    backed = anndata.read_h5ad(tmp_path / "screen.h5ad", backed="r")
    stacked = a_stack(adata)
    (tmp_path / "out").mkdir()
    workers, one = both(backed, stacked, client, tmp_path / "out")
    backed.file.close()
    assert_same(workers, one)


def a_stack(adata):
    """A baseline that asks two others."""
    data = adata.copy()
    ptrag_sc.pp.split(data, **KEYS, holdout="perturbation", test_fraction=0.2, val_fraction=0.3)
    ptrag_sc.PTRAG.setup_anndata(data, **KEYS, batch_key="gem", split_key="split")
    stacked = ptrag_sc.baselines.Stacked(data).fit()
    stacked.set_size_ = 8
    return stacked


def test_a_job_holds_the_control_cells_that_are_used_and_no_data(adata, tmp_path):
    """It is sent as bytes: they give the same slices, and do not grow with the cells of the screen."""
    stacked = a_stack(adata)
    job = a_job(adata, stacked, tmp_path, n_cells=3)
    other = pickle.loads(pickle.dumps(job))
    assert other.virtual.run.screen.index.n_obs == len(other.virtual.obs) == 2 * 3
    predictor = other.predictor()
    assert predictor.adata is None
    assert predictor.ridge_.adata is None
    assert stacked.ridge_.adata is stacked.adata is not None
    assert len(pickle.dumps(job)) < 10 * len(pickle.dumps(job.virtual.run.screen)) + 500_000


def a_job(adata, model, folder, **options):
    arguments = {"perturbations": REQUEST, "cell_types": None, "n_cells": None, "gene_embedding": None, "seed": None}
    virtual = model.virtual_cells(adata, **{**arguments, "counts": "auto", "nonnegative": False, **options})
    return _job.Job.of(virtual.storable(folder / "v.zarr"), folder, 2)


@slow
def test_what_is_done_twice_is_the_same(adata, mean, tmp_path):
    job = a_job(adata, mean, tmp_path)
    found = [_job.write_slice(job, number) for number in range(job.n_slices)]
    before = content(job.store(0))
    assert _job.write_slice(job, 0).n_obs == found[0].n_obs
    assert content(job.store(0)) == before
    regions = _joined_stores.make_whole(tmp_path / "whole.zarr", [job.store(i) for i in range(job.n_slices)])
    for region in regions:
        _joined_stores.fill(tmp_path / "whole.zarr", region)
    before = content(tmp_path / "whole.zarr")
    for region in regions[::-1]:
        _joined_stores.fill(tmp_path / "whole.zarr", region)
    assert content(tmp_path / "whole.zarr") == before
    assert zarr.open_group(tmp_path / "whole.zarr", mode="r", use_consolidated=False)["X/indptr"][-1] > 0


@slow
def test_no_two_regions_share_a_chunk(adata, mean, tmp_path):
    job = a_job(adata, mean, tmp_path)
    for number in range(job.n_slices):
        _job.write_slice(job, number)
    whole = tmp_path / "whole.zarr"
    regions = _joined_stores.make_whole(whole, [job.store(i) for i in range(job.n_slices)])
    root = zarr.open_group(whole, mode="r", use_consolidated=False)
    for name in {region.name for region in regions}:
        own = sorted((r.start, r.stop) for r in regions if r.name == name)
        assert own[0][0] == 0
        assert own[-1][1] == root[name].shape[0]
        assert all(stop == start for (_, stop), (start, _) in pairwise(own))
        assert all(start % root[name].chunks[0] == 0 for start, _ in own)
    assert len({r.name for r in regions}) < len(regions)


def test_jobs_that_make_no_sense_here(adata, mean, tmp_path):
    job = a_job(adata, mean, tmp_path)
    with pytest.raises(RuntimeError, match=r"is version .*that of the caller is 0\.0\. Install one version"):
        _job.write_slice(replace(job, release="0.0"), 0)
    with pytest.raises(FileNotFoundError, match=r"elsewhere is not seen by this worker. Pass an out="):
        _job.write_slice(replace(job, folder=tmp_path / "elsewhere"), 0)
    (tmp_path / _job.STOP).touch()
    with pytest.raises(_job.Stopped):
        _job.write_slice(job, 0)


@slow
def test_an_error_of_a_worker_is_that_of_the_call(adata, mean, client, tmp_path, monkeypatch):
    path = tmp_path / "v.zarr"
    ptrag_sc.tl.perturb(adata, mean, "G3", out=path, n_cells=3, progress=False)
    before, predict_batch, running = content(path), type(mean).predict_batch, []

    def failing(self, batch, sets, *args, **kwargs):
        running.append(1)
        if (sets.query == 2).any():
            raise RuntimeError("no memory on this worker")
        time.sleep(0.05)
        try:
            return predict_batch(self, batch, sets, *args, **kwargs)
        finally:
            running.pop()

    with monkeypatch.context() as patch:
        patch.setattr(type(mean), "predict_batch", failing)
        with pytest.raises(RuntimeError, match="no memory on this worker"):
            ptrag_sc.tl.perturb(adata, mean, REQUEST, out=path, client=client, overwrite=True, progress=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["v.zarr"]
    assert content(path) == before


@slow
def test_a_job_that_all_workers_lost_is_sent_again(adata, mean, client, tmp_path, monkeypatch):
    submit, n_sent = distributed.Client.submit, []

    def losing(self, function, *args, **kwargs):
        future = submit(self, function, *args, **kwargs)
        n_sent.append(1)
        if len(n_sent) in (2, 3):  # as if what they need had gone with the workers
            self.cancel([future], force=True)
        return future

    monkeypatch.setattr(distributed.Client, "submit", losing)
    workers, one = both(adata, mean, client, tmp_path)
    assert_same(workers, one)
    monkeypatch.setattr(distributed.Client, "submit", lambda self, *args, **kwargs: lost(submit(self, *args, **kwargs)))

    def lost(future):
        future.cancel(force=True)
        return future

    with pytest.raises(RuntimeError, match="lost every worker before a part of the cells was done"):
        ptrag_sc.tl.perturb(adata, mean, "G3", out=tmp_path / "v.zarr", client=client, progress=False)
    assert not (tmp_path / "v.zarr").exists()


@slow
def test_too_little_space_for_slices_and_whole(adata, mean, client, tmp_path, monkeypatch):
    monkeypatch.setattr(_cluster, "check_space", lambda path, n_bytes: _disk_space.check_space(path, 10**18))
    with pytest.raises(OSError, match=r"v\.zarr could not be written: .*bytes are needed"):
        ptrag_sc.tl.perturb(adata, mean, REQUEST, out=tmp_path / "v.zarr", client=client, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        ("v.h5ad", ValueError, r"v.h5ad'? in tl.perturb cannot be written by several processes at once. Pass a name"),
        (None, ValueError, r"client= in tl.perturb is given without out=. Pass out='....zarr'"),
    ],
)
def test_targets_of_one_process(adata, mean, client, tmp_path, out, error, message):
    with pytest.raises(error, match=message):
        ptrag_sc.tl.perturb(adata, mean, "G0", out=out and tmp_path / out, client=client)
    assert not list(tmp_path.iterdir())


def test_clients_that_are_none(adata, mean, client, tmp_path, monkeypatch):
    for wrong in (client.cluster, "tcp://localhost:8786", 2):
        with pytest.raises(TypeError, match=rf"client= in tl.perturb is a {type(wrong).__name__}. Pass client=dask"):
            ptrag_sc.tl.perturb(adata, mean, "G0", out=tmp_path / "v.zarr", client=wrong)
    monkeypatch.setattr(_cluster, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"not installed. Install it with pip install 'ptrag_sc\[dask\]'"):
        ptrag_sc.tl.perturb(adata, mean, "G0", out=tmp_path / "v.zarr", client=client)


@slow
def test_a_killed_worker_loses_nothing(trained, adata, tmp_path, monkeypatch):
    """One of two processes is killed when the first slice is done, and one when half of them are."""
    for name, value in CHUNKS.items():  # other processes know nothing of smaller ones
        monkeypatch.setattr(_stream, name, value)
    monkeypatch.setattr(_run, "CHUNK", 16)
    monkeypatch.setattr(_job, "SLICES_PER_THREAD", 4)
    killed = []

    def kill(client):
        for n_done in (1, 6):
            while sum(path.stem.isdigit() for path in tmp_path.glob(".workers.zarr*/slices/*.zarr")) < n_done:
                time.sleep(0.01)
            found = list(client.run(os.getpid).values())
            killed.append(found[0])
            os.kill(found[0], signal.SIGKILL)

    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        thread = threading.Thread(target=kill, args=(client,), daemon=True)
        thread.start()
        workers, one = both(adata, trained, client, tmp_path)
        thread.join(timeout=5)
    assert len(set(killed)) == 2
    assert_same(workers, one)
