"""Do the workers of a dask cluster write exactly what one process writes, whatever happens to them?"""

import os
import signal
import time

import anndata
import numpy as np
import pytest
import zarr

import ptrag_sc
from ptrag_sc.data import _cluster, _job, _joined_stores, _predictor, _run, _stream
from screens import KEYS, make_screen

distributed = pytest.importorskip("distributed")
# Of distributed itself, when a cluster ends.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
REQUEST = ["G5", "G0", "G2+G1"]


@pytest.fixture(scope="module")
def client():
    """Two workers in threads of this process."""
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        yield client


@pytest.fixture
def in_small_pieces(monkeypatch):
    """Many slices of unequal length, chunks that slices straddle, regions of a few chunks."""
    monkeypatch.setattr(_run, "CHUNK", 5)
    monkeypatch.setattr(_predictor.Predictor, "_prediction_batch_size", 2)
    monkeypatch.setattr(_stream, "X_CHUNK", 600)
    monkeypatch.setattr(_stream, "COLUMN_CHUNK", 25)
    monkeypatch.setattr(_joined_stores, "REGION", 1500)


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


@pytest.mark.parametrize("options", [{}, {"seed": 3, "counts": False, "n_cells": {"G5": 20, "G0": 31, "G2+G1": 5}}])
def test_workers_write_what_one_process_writes(trained, adata, client, in_small_pieces, tmp_path, options):
    workers, one = both(adata, trained, client, tmp_path, **options)
    assert_same(workers, one)
    assert anndata.read_zarr(workers).n_obs == anndata.read_zarr(one).n_obs > 100
