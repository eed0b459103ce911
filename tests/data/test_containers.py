"""Does a screen give the same model whatever holds it, and is it read as seldom as possible?"""

import logging

import anndata
import dask.array
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scvi
import zarr
from anndata import AnnData
from anndata.experimental import read_lazy
from anndata.io import sparse_dataset

import ptrag_sc
from ptrag_sc.data import (
    CellReader,
    CellSetDataset,
    RandomSets,
    ScreenKeys,
    _ahead,
    _on_disk,
    _progress,
    _reader,
    control_means,
    matching_weights,
    mean_shifts_and_spread,
    read_screen,
)
from ptrag_sc.data._ahead import Ahead, Arrived
from ptrag_sc.data._on_disk import ComputedRows, DenseOnDisk, SparseOnDisk, as_row_matrix
from ptrag_sc.data._shards import Shards
from ptrag_sc.datasets import _store, open_store, write_store
from screens import KEYS, SMALL, TRAIN, make_screen

pytestmark = pytest.mark.filterwarnings("ignore:zarr v3 autosharding", "ignore:Consolidated metadata")

STORED = {"perturbation_key": "gene", "control": "ctl", "cell_type_key": "line"}
FORMS = ("csr", "csc", "dense")
CONTAINERS = [
    *(f"memory {form}" for form in FORMS),
    *(f"{kind} {form}" for kind in ("h5ad", "zarr2", "zarr3", "lazy_h5ad", "lazy_zarr") for form in FORMS),
    *("dask csr", "dask csc", "dask dense", "dask columns", "store csr", "lazy_store csr"),
]


def in_form(matrix, form):
    return {"csr": matrix.tocsr, "csc": matrix.tocsc, "dense": matrix.toarray}[form]()


def contained(container, folder):
    """Return the small screen in a container; all have the same order of cells."""
    kind, form = container.split()
    adata = ordered_screen()
    if kind == "dask":
        whole = (60, adata.n_vars)
        made = {
            "csr": lambda x: dask.array.from_array(x, chunks=whole, asarray=False),
            "csc": lambda x: dask.array.from_array(x.tocsc(), chunks=(x.shape[0], 7), asarray=False),
            "dense": lambda x: dask.array.from_array(x.toarray(), chunks=whole),
            "columns": lambda x: dask.array.from_array(x.toarray(), chunks=(100, 11)),
        }
        adata.X = made[form](adata.X)
        return adata
    adata.X = in_form(adata.X, form)
    if kind == "memory":
        return adata
    if kind.endswith("store"):
        path = write_store(adata, folder / "screen.zarr", **STORED)
        return read_lazy(path) if kind == "lazy_store" else open_store(path)
    if kind.endswith("h5ad"):
        adata.write_h5ad(folder / "screen.h5ad")
        return read_lazy(folder / "screen.h5ad") if "lazy" in kind else anndata.read_h5ad(folder / "screen.h5ad", "r")
    with anndata.settings.override(zarr_write_format=2 if kind == "zarr2" else 3):
        adata.write_zarr(folder / "screen.zarr")
    return read_lazy(folder / "screen.zarr") if "lazy" in kind else open_store(folder / "screen.zarr")


def ordered_screen():
    """Return the small screen, in the order of a store."""
    adata = make_screen(n_obs=240)
    order = np.lexsort((adata.obs["gene"].astype(str), adata.obs["line"].astype(str)))
    adata = adata[order].copy()
    adata.obs["gem"] = adata.obs["gem"].astype("category")
    return adata


def facts(adata):
    """Return all numbers that a model takes from a screen, and a mini-batch."""
    screen = read_screen(adata, ScreenKeys("gene", "ctl", "line", batch_key="gem"))
    reader, index = screen.reader, screen.index
    controls = control_means(reader, index)
    shifts, spread = mean_shifts_and_spread(reader, index, index.conditions, controls)
    sets = RandomSets(index, index.conditions, np.arange(len(index.conditions)), set_size=8, batch_size=30, seed=0)
    batch = CellSetDataset(reader, with_target=True)[next(iter(sets))]
    names = {
        "values": np.array(screen.values),
        "controls": controls.batch,
        "weights": matching_weights(reader, index, "auto"),
    }
    return {**names, **shifts._asdict(), **spread._asdict(), **{name: x.numpy() for name, x in batch.items()}}


@pytest.fixture(scope="module")
def of_memory():
    return facts(contained("memory csr", None))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_gives_the_same_model(container, of_memory, tmp_path, monkeypatch):
    monkeypatch.setattr(_store, "CHUNK", 500)
    monkeypatch.setattr(_store, "SHARD", 2000)
    assert_same(facts(contained(container, tmp_path)), of_memory)


@pytest.mark.parametrize("n_bytes", [1, 30 * 4 * 7, 2**40])
@pytest.mark.parametrize("container", ["h5ad dense", "zarr3 dense", "dask csr"])
def test_the_size_of_blocks_changes_nothing(container, n_bytes, of_memory, tmp_path, monkeypatch):
    monkeypatch.setattr(_reader, "BLOCK_BYTES", n_bytes)
    found = facts(contained(container, tmp_path))
    for name, value in of_memory.items():  # sums of float32 numbers in float64 are nearly always exact
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("container", ["h5ad csr", "h5ad dense", "dask csr"])
def test_set_up_and_construction_read_the_matrix_once_each(container, tmp_path, monkeypatch):
    adata = contained(container, tmp_path)
    n_read = []
    for kind in (SparseOnDisk, DenseOnDisk, ComputedRows):
        take = kind.take
        monkeypatch.setattr(kind, "take", lambda self, rows, take=take: (n_read.append(len(rows)), take(self, rows))[1])
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem")
    assert sum(n_read) == adata.n_obs
    n_read.clear()
    ptrag_sc.PTRAG(adata, **SMALL)
    assert sum(n_read) == adata.n_obs


def arrays(folder, dense, **options):
    """Return the same rows in every kind of file."""
    matrix = sp.csr_matrix(dense)
    AnnData(dense).write_h5ad(folder / "d.h5ad", **options)
    AnnData(matrix).write_h5ad(folder / "s.h5ad")
    whole = zarr.create_array(folder / "d.zarr", data=dense, chunks=(4, 10), shards=(8, 10))
    AnnData(matrix).write_zarr(folder / "s.zarr")
    obs = {"gene": "ctl", "line": "a"}
    labelled = AnnData(matrix)
    labelled.obs = labelled.obs.assign(**obs)
    write_store(labelled, folder / "store.zarr", **STORED)
    return {
        "h5ad dense": anndata.read_h5ad(folder / "d.h5ad", "r").X,
        "h5ad sparse": anndata.read_h5ad(folder / "s.h5ad", "r").X,
        "zarr dense": whole,
        "zarr sparse": sparse_dataset(zarr.open_group(folder / "s.zarr", mode="r")["X"]),
        "store": open_store(folder / "store.zarr").X,
        "dask": dask.array.from_array(dense, chunks=(7, 4)),
    }


@pytest.mark.parametrize(("span", "gap"), [(1, 0), (13, 5), (2**20, 2**20)])
def test_rows_are_those_asked_for_however_they_are_read(span, gap, tmp_path, monkeypatch):
    for module, name, value in (
        *((_on_disk, "SPAN", span), (_on_disk, "GAP", gap), (_store, "CHUNK", 16), (_store, "SHARD", 64)),
        *((_store, "PIECE_BYTES", 600), (_reader, "BLOCK_BYTES", 160)),
    ):
        monkeypatch.setattr(module, name, value)
    rng = np.random.default_rng(0)
    dense = (rng.random((40, 10)) * (rng.random((40, 10)) < 0.4)).astype(np.float32)
    dense[[3, 4, 39]] = 0  # rows without values
    found = arrays(tmp_path, dense, compression="gzip")
    assert isinstance(as_row_matrix(found["store"]).values, Shards)
    columns = np.array([7, -1, 0, 7])
    for matrix in map(as_row_matrix, found.values()):
        for _ in range(3):
            rows = np.sort(rng.choice(40, rng.integers(0, 30), replace=False))
            taken = matrix.take(rows)
            np.testing.assert_array_equal(taken.toarray() if sp.issparse(taken) else taken, dense[rows])
            again = rng.integers(0, 40, 12)
            np.testing.assert_array_equal(CellReader(matrix).rows(again), dense[again])
        reader = CellReader(matrix, columns)
        expected = np.where(columns < 0, 0, dense[:, columns])
        for wanted, rows in ((None, np.arange(40)), (np.array([0, 5, 6, 39]), np.array([0, 5, 6, 39]))):
            pieces = list(reader.blocks(wanted))
            np.testing.assert_array_equal(np.concatenate([part for part, _ in pieces]), rows)
            joined = np.concatenate([x.toarray() if sp.issparse(x) else x for _, x in pieces])
            np.testing.assert_array_equal(joined, expected[rows])


def test_row_pointers_of_another_type_cost_no_copy():
    matrix = ordered_screen().X
    mixed = sp.csr_matrix(matrix.shape, dtype=np.float32)
    mixed.data, mixed.indices, mixed.indptr = matrix.data, matrix.indices, matrix.indptr.astype(np.int64)
    found = as_row_matrix(mixed)
    assert found.indptr.dtype == found.indices.dtype == np.int32
    assert np.shares_memory(found.data, matrix.data)
    assert np.shares_memory(found.indices, matrix.indices)
    np.testing.assert_array_equal(found.toarray(), matrix.toarray())


@pytest.mark.parametrize("limit", [0, 5000, 2**29])
@pytest.mark.parametrize("form", ["csr", "dense"])
def test_rows_that_are_held_are_the_same_as_those_on_disk(form, limit, tmp_path, monkeypatch):
    monkeypatch.setattr(_reader, "HELD_BYTES", limit)
    monkeypatch.setattr(_reader, "BLOCK_BYTES", 30 * 4 * 20)
    adata = contained(f"h5ad {form}", tmp_path)
    reader = read_screen(adata, ScreenKeys("gene", "ctl", "line")).reader
    held = 0 if reader.held is None else len(reader.held.rows)
    n_controls = int((adata.obs["gene"] == "ctl").sum())
    assert held == {0: 0, 2**29: n_controls}.get(limit, held)
    if limit == 5000:
        assert 0 < held < n_controls
    rows = np.random.default_rng(0).integers(0, adata.n_obs, 100)
    np.testing.assert_array_equal(reader.rows(rows), ordered_screen().X[rows].toarray())


def test_training_from_a_store_is_training_in_memory(tmp_path):
    found = []
    for container in ("memory csr", "store csr", "lazy_h5ad dense"):
        adata = contained(container, tmp_path)
        scvi.settings.seed = 0
        ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
        model = ptrag_sc.PTRAG(adata, **SMALL)
        model.train(2, **TRAIN)
        found.append(model.predict(perturbations=["G0", "G1"], counts=False))
    for other in found[1:]:
        np.testing.assert_array_equal(other.X, found[0].X)
        assert list(other.obs_names) == list(found[0].obs_names)


def test_tables_of_a_lazy_object_are_loaded_and_nothing_else(tmp_path):
    adata, expected = contained("lazy_h5ad csr", tmp_path), ordered_screen()
    ptrag_sc.pp.split(adata, **KEYS)
    ptrag_sc.pp.split(expected, **KEYS)
    pd.testing.assert_frame_equal(adata.obs.astype(str), expected.obs.astype(str))
    np.testing.assert_array_equal(adata.uns["gene_embedding"]["vectors"], expected.uns["gene_embedding"]["vectors"])
    assert isinstance(adata.X, dask.array.Array)
    query = contained("lazy_zarr csr", tmp_path)
    ptrag_sc.PTRAG.setup_anndata(expected, **KEYS)
    fitted = ptrag_sc.baselines.MeanShift(expected).fit()
    for each in (query, expected):
        ptrag_sc.tl.predict(each, fitted, counts=False)
    np.testing.assert_array_equal(query.obsm["ptrag"], expected.obsm["ptrag"])


class Numbered:
    """Mini-batches that are numbers; the third one cannot be read."""

    def __init__(self, n):
        self.n, self.read = n, []

    def __len__(self):
        return self.n

    def __iter__(self):
        return iter(range(self.n))

    def __getitem__(self, i):
        self.read.append(i)
        if i == 3:
            raise OSError("the disk is gone")
        return i


def test_what_is_read_ahead_arrives_in_order_and_errors_do_too():
    fine, bad = Numbered(3), Numbered(9)
    assert [Arrived()[coming] for coming in Ahead(fine, fine)] == [0, 1, 2]
    arrived = []
    with pytest.raises(OSError, match="the disk is gone"):
        arrived.extend(Arrived()[coming] for coming in Ahead(bad, bad))
    coming = iter(Ahead(bad, bad))
    next(coming)
    coming.close()
    assert max(bad.read) <= 3 + _ahead.DEPTH


@pytest.mark.parametrize(("delay", "verbosity", "shown"), [(9.0, 20, 0), (-1.0, 20, 1), (-1.0, logging.ERROR, 0)])
def test_a_bar_is_shown_if_it_takes_long(delay, verbosity, shown, monkeypatch):
    bars = []
    monkeypatch.setattr(_progress, "track", lambda items, text, total: (bars.append((text, total)), items)[1])
    monkeypatch.setattr(_progress, "DELAY", delay)
    before = scvi.settings.verbosity
    scvi.settings.verbosity = verbosity
    try:
        assert list(_progress.shown_if_slow(iter("abc"), "Reading", 3)) == list("abc")
    finally:
        scvi.settings.verbosity = before
    assert bars == [("Reading", 2)] * shown
