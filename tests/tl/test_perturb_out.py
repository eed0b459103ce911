"""Does a file that is written piece by piece hold exactly what the call returns in memory?"""

import re
import subprocess
import sys
from collections import namedtuple
from importlib.metadata import version

import anndata
import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from anndata import AnnData
from packaging.version import Version

import ptrag_sc
from ptrag_sc.data import _predictor, _run, _stream
from screens import KEYS, make_screen, train_small

REQUEST = ["G5", "G0", "G2+G1"]
SUFFIXES = ("h5ad", "zarr")
each_format = pytest.mark.parametrize("suffix", SUFFIXES)
zarr_is_slow = pytest.mark.parametrize("suffix", ["h5ad", pytest.param("zarr", marks=pytest.mark.slow)])


def small_screen():
    return make_screen(n_obs=240)


def read(path):
    return anndata.read_h5ad(path) if path.suffix == ".h5ad" else anndata.read_zarr(path)


def layout(path):
    """``{name: (kind of number, attributes)}`` of everything in a file."""

    def walk(group, prefix=""):
        for name in group:
            item = group[name]
            is_group = isinstance(item, h5py.Group | zarr.Group)
            found[prefix + name] = (None if is_group else item.dtype, {k: str(v) for k, v in item.attrs.items()})
            if is_group:
                walk(item, f"{prefix}{name}/")

    found = {}
    if path.suffix == ".h5ad":
        with h5py.File(path) as root:
            walk(root)
    else:
        walk(zarr.open_group(path, mode="r"))
    return found


def as_text(params):
    """Nested entries in any order: files sort them."""
    return {k: str(sorted(v.items()) if hasattr(v, "items") else v) for k, v in params.items()}


def assert_same_matrix(found, expected):
    """Bitwise equal, and stored in the same way."""
    if not sp.issparse(expected):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype == np.float32
        return
    assert found.format == expected.format == "csr"
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(found, part), getattr(expected, part))
        assert getattr(found, part).dtype == getattr(expected, part).dtype


def assert_same(found, expected, *, frames=True):
    assert_same_matrix(found.X, expected.X)
    assert set(found.layers) == set(expected.layers)
    for name, layer in expected.layers.items():
        assert_same_matrix(found.layers[name], layer)
    assert list(found.obs_names) == list(expected.obs_names)
    if frames:
        pd.testing.assert_frame_equal(found.var, expected.var)
        pd.testing.assert_frame_equal(found.obs, expected.obs)
    assert_same_matrix(found.obsm["ptrag_retrieval"], expected.obsm["ptrag_retrieval"])
    uns, expected_uns = (x.uns["ptrag"] for x in (found, expected))
    assert as_text(uns["params"]) == as_text(expected_uns["params"])
    for name in ("genes", "candidates"):
        assert list(uns[name]) == list(expected_uns[name])
    for column in expected_uns["retrieval"]:
        assert list(uns["retrieval"][column]) == list(expected_uns["retrieval"][column])


@pytest.fixture
def in_small_pieces(monkeypatch):
    """Cut conditions between sets, pieces of unequal length, chunks of arrays that pieces straddle."""
    monkeypatch.setattr(_run, "CHUNK", 5)
    monkeypatch.setattr(_predictor.Predictor, "_prediction_batch_size", 2)
    monkeypatch.setattr(_stream, "X_CHUNK", 600)
    monkeypatch.setattr(_stream, "COLUMN_CHUNK", 25)


@pytest.fixture
def annotated():
    """A screen with obs columns of every kind that a file can hold."""
    adata = small_screen()
    n, rng = adata.n_obs, np.random.default_rng(0)
    adata.obs["line"] = adata.obs["line"].astype("category").cat.add_categories(["HeLa"])
    adata.obs["float"] = rng.normal(size=n).astype(np.float32)
    adata.obs["whole"] = np.arange(n)
    adata.obs["bool"] = rng.random(n) < 0.5
    adata.obs["text"] = [f"Zürich {i}" for i in range(n)]
    adata.obs["gap"] = pd.array(np.arange(n), dtype="Int64")
    adata.obs.loc[adata.obs_names[::3], "gap"] = pd.NA
    adata.obs["maybe"] = pd.array(rng.random(n) < 0.5, dtype="boolean")
    adata.obs.loc[adata.obs_names[::4], "maybe"] = pd.NA
    adata.obs["ordered"] = pd.Categorical(rng.choice(["b", "a"], n), categories=["b", "c", "a"], ordered=True)
    adata.obs["categories"] = pd.Categorical.from_codes(rng.integers(-1, 3, n), [1.5, 2.5, 3.5])
    adata.obs["codes"] = rng.integers(0, 9, n).astype(np.int8)
    adata.obs.index.name = "cell"
    adata.var["chromosome"] = "1"
    return adata


@pytest.mark.parametrize("suffix", ["h5ad", pytest.param("zarr", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "options", [{}, {"seed": 3, "counts": False, "nonnegative": True, "n_cells": 25, "cell_types": "RPE1"}]
)
def test_the_file_holds_what_is_returned_in_memory(
    trained, annotated, in_small_pieces, tmp_path, suffix, options, monkeypatch
):
    path = tmp_path / f"virtual.{suffix}"
    lengths = []
    whole = _stream._write_rows

    def counted(root, columns, piece, start):
        lengths.append(piece.n_obs)
        whole(root, columns, piece, start)

    monkeypatch.setattr(_stream, "_write_rows", counted)
    expected = ptrag_sc.tl.perturb(annotated, trained, REQUEST, **options)
    found = ptrag_sc.tl.perturb(annotated, trained, REQUEST, out=str(path), progress=False, **options)
    assert found == path
    assert max(lengths) < expected.n_obs / (len(REQUEST) * len(set(expected.obs["line"])))  # less than a condition
    assert_same(read(path), expected)
    assert set(expected.layers) == (set() if options else {"counts"})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    beside = tmp_path / f"beside.{suffix}"
    write = expected.write_h5ad if suffix == "h5ad" else expected.write_zarr
    write(beside, convert_strings_to_categoricals=False)
    assert layout(path) == layout(beside)


def test_rows_stand_by_perturbation_cell_type_and_set(trained):
    """Consecutive sets are consecutive rows, and a set is one batch-balanced share of the controls in hash order."""
    adata = small_screen()
    virtual = ptrag_sc.tl.perturb(adata, trained, REQUEST, cell_types=["RPE1", "K562"])
    conditions = virtual.obs[["gene", "line"]].astype(str).agg("/".join, axis=1)
    assert list(dict.fromkeys(conditions)) == [f"{p}/{t}" for p in ("G5", "G0", "G1+G2") for t in ("RPE1", "K562")]
    assert (conditions != conditions.shift()).sum() == 6
    order = virtual.obs["ptrag_source"].to_numpy().reshape(3, -1)
    assert (order == order[0]).all()
    shuffled = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
    again = ptrag_sc.tl.perturb(shuffled, trained, REQUEST, cell_types=["RPE1", "K562"])
    assert list(again.obs_names) == list(virtual.obs_names)


@zarr_is_slow
def test_strings_with_gaps_become_categories_as_in_anndata(trained, in_small_pieces, tmp_path, suffix):
    """A gap may stand in a late piece only: the columns are looked at as a whole."""
    adata, path, beside = small_screen(), tmp_path / f"virtual.{suffix}", tmp_path / f"beside.{suffix}"
    control = adata.obs_names[adata.obs["gene"] == "ctl"]
    last = ptrag_sc.tl.perturb(adata, trained, "G0").obs["ptrag_source"].iloc[-1]
    donor = np.where(np.arange(adata.n_obs) % 2, "d1", "d2").astype(object)
    adata.obs["donor"] = donor
    adata.obs["donor"] = adata.obs["donor"].where(adata.obs_names != last)
    # The first release of anndata 0.12 cannot write these at all.
    nullable = Version(version("anndata")) > Version("0.12.0")
    adata.obs["nullable"] = pd.array(donor, dtype="string") if nullable else donor
    adata.var["note"] = ["x", None, *["y"] * 28]
    assert last in control
    expected = ptrag_sc.tl.perturb(adata, trained, REQUEST)
    ptrag_sc.tl.perturb(adata, trained, REQUEST, out=path, progress=False)
    (expected.write_h5ad if suffix == "h5ad" else expected.write_zarr)(beside)
    found, written = read(path), read(beside)
    assert_same(found, written, frames=False)
    n_gaps = {"donor": len(REQUEST), "nullable": 0, "note": 1}
    for column, n in n_gaps.items():
        values = [
            (each.var if column == "note" else each.obs)[column].astype(object).fillna("gap").tolist()
            for each in (found, written)
        ]
        assert values[0] == values[1]
        assert values[0].count("gap") == n


@pytest.mark.slow
@each_format
def test_baselines_and_mudata_stream_too(in_small_pieces, tmp_path, suffix):
    adata = small_screen()
    mdata = mudata.MuData({"rna": adata})
    mdata.obs["line"] = adata.obs["line"].astype("category").to_numpy()
    mdata.uns["gene_embedding"] = adata.uns["gene_embedding"]
    del mdata.mod["rna"].obs["line"]
    ptrag_sc.PTRAG.setup_mudata(mdata, **KEYS, modalities={"layer": "rna", "perturbation_key": "rna"})
    model = train_small(mdata, max_epochs=1)
    ptrag_sc.PTRAG.setup_anndata(screen := small_screen(), **KEYS)
    baseline = ptrag_sc.baselines.MeanShift(screen).fit()
    baseline.set_size_ = 7
    for name, data, predictor in (("mudata", mdata, model), ("baseline", screen, baseline)):
        path = tmp_path / f"{name}.{suffix}"
        expected = ptrag_sc.tl.perturb(data, predictor, ["G0", "G3"])
        ptrag_sc.tl.perturb(data, predictor, ["G0", "G3"], out=path, progress=False)
        assert_same(read(path), expected)
        assert set(expected.obs["line"]) == {"K562", "RPE1"}
    assert not expected.obsm["ptrag_retrieval"].nnz


@zarr_is_slow
def test_vectors_can_be_given_and_prepared_once(trained, in_small_pieces, tmp_path, suffix, monkeypatch):
    calls, prepare = [], type(trained).prepare
    monkeypatch.setattr(type(trained), "prepare", lambda *args: calls.append(1) or prepare(*args))
    adata, path = small_screen(), tmp_path / f"virtual.{suffix}"
    table = {"G77": np.random.default_rng(0).normal(size=30)}
    ptrag_sc.tl.perturb(adata, trained, "G77", gene_embedding=table, out=path, progress=False)
    assert len(calls) == 1
    assert_same(read(path), ptrag_sc.tl.perturb(adata, trained, "G77", gene_embedding=table))


def test_a_backed_screen_streams(trained, in_small_pieces, tmp_path):
    adata = small_screen()
    expected = ptrag_sc.tl.perturb(adata, trained, REQUEST)
    adata.write_h5ad(tmp_path / "screen.h5ad")
    backed = anndata.read_h5ad(tmp_path / "screen.h5ad", backed="r")
    path = ptrag_sc.tl.perturb(backed, trained, REQUEST, out=tmp_path / "virtual.h5ad", progress=False)
    backed.file.close()
    assert_same(read(path), expected, frames=False)


@zarr_is_slow
@pytest.mark.parametrize("is_there", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_failure_leaves_no_trace(trained, in_small_pieces, tmp_path, suffix, is_there, monkeypatch):
    adata, path, calls = small_screen(), tmp_path / f"virtual.{suffix}", []
    if is_there:
        ptrag_sc.tl.perturb(adata, trained, "G3", out=path, progress=False)
        expected = ptrag_sc.tl.perturb(adata, trained, "G3")
    predict_batch = type(trained).predict_batch

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("no memory")
        return predict_batch(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(type(trained), "predict_batch", failing)
        with pytest.raises(RuntimeError, match="no memory"):
            ptrag_sc.tl.perturb(adata, trained, REQUEST, out=path, overwrite=True, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == [path.name] * is_there
    if is_there:
        assert_same(read(path), expected)
    ptrag_sc.tl.perturb(adata, trained, REQUEST, out=path, overwrite=True, progress=False)
    assert_same(read(path), ptrag_sc.tl.perturb(adata, trained, REQUEST))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.slow
def test_a_folder_that_cannot_be_moved_in_leaves_the_old_one(tmp_path, monkeypatch):
    adata, path = small_screen(), tmp_path / "virtual.zarr"
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    mean, options = ptrag_sc.baselines.MeanShift(adata).fit(), {"n_cells": 3, "counts": False, "progress": False}
    ptrag_sc.tl.perturb(adata, mean, "G3", out=path, **options)
    rename = type(path).rename

    def refusing(self, target):
        if target == path and self.name == path.name:
            raise PermissionError("no")
        return rename(self, target)

    monkeypatch.setattr(type(path), "rename", refusing)
    with pytest.raises(PermissionError):
        ptrag_sc.tl.perturb(adata, mean, "G0", out=path, overwrite=True, **options)
    assert set(read(path).obs["gene"]) == {"G3"}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        ("virtual.csv", ValueError, r"ends in '.csv'. Pass a name that ends in .h5ad or .zarr"),
        ("virtual", ValueError, r"has no suffix. Pass a name"),
        ("nowhere/virtual.h5ad", FileNotFoundError, r"folder '.*nowhere', which does not exist. Make the folder"),
        ("there.h5ad", FileExistsError, r"there.h5ad exists. Pass overwrite=True"),
        ("there.zarr", FileExistsError, r"there.zarr exists. Pass overwrite=True"),
        (5, TypeError, r"out=5 in the request is no path"),
    ],
)
def test_targets_that_cannot_be_written(trained, tmp_path, monkeypatch, out, error, message):
    """They are refused before any work: not even the screen is read."""
    monkeypatch.setattr(type(trained), "read", None)
    (tmp_path / "there.h5ad").write_text("kept")
    (tmp_path / "there.zarr").mkdir()
    with pytest.raises(error, match=message):
        ptrag_sc.tl.perturb(small_screen(), trained, "G0", out=tmp_path / out if isinstance(out, str) else out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["there.h5ad", "there.zarr"]
    assert (tmp_path / "there.h5ad").read_text() == "kept"


def test_a_folder_of_other_things_is_never_replaced(trained, tmp_path):
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "thesis.txt").write_text("kept")
    with pytest.raises(FileExistsError, match=r"is no zarr store"):
        ptrag_sc.tl.perturb(small_screen(), trained, "G0", out=tmp_path / "mine.zarr", overwrite=True)
    assert (tmp_path / "mine.zarr" / "thesis.txt").read_text() == "kept"


@each_format
@pytest.mark.parametrize("problem", ["column", "gene", "n_cells"])
def test_requests_that_cannot_be_met_write_nothing(trained, tmp_path, monkeypatch, suffix, problem):
    monkeypatch.setattr(type(trained), "predict_batch", None)  # called: another error
    adata, options = small_screen(), {"n_cells": 10_000} if problem == "n_cells" else {}
    if problem == "column":
        adata.obs["visited"] = pd.Timestamp("2024-02-29")
    message = {"column": r"Column 'visited' in adata.obs cannot be written", "gene": "G99", "n_cells": "n_cells=10000"}
    with pytest.raises((TypeError, ValueError, KeyError), match=message[problem]):
        ptrag_sc.tl.perturb(
            adata, trained, "G99" if problem == "gene" else "G0", out=tmp_path / f"virtual.{suffix}", **options
        )
    assert not list(tmp_path.iterdir())


def test_progress_is_shown_on_request(trained, in_small_pieces, tmp_path, capsys):
    adata, options = small_screen(), {"n_cells": 13, "counts": False}
    ptrag_sc.tl.perturb(adata, trained, "G0", out=tmp_path / "silent.h5ad", progress=False, **options)
    ptrag_sc.tl.perturb(adata, trained, "G0", **options)
    assert capsys.readouterr().out == ""
    ptrag_sc.tl.perturb(adata, trained, "G0", out=tmp_path / "shown.h5ad", **options)
    assert "100%" in capsys.readouterr().out


@pytest.mark.parametrize(("n_obs", "dtype"), [(2**10, np.int32), (2**11, np.int64)])
def test_row_pointers_have_room(tmp_path, n_obs, dtype):
    """What could need 64 bits gets them from the start: the layout cannot change later."""
    half = AnnData(np.zeros((n_obs // 2, 1), np.float32), obsm={"w": sp.eye_array(n_obs // 2, 2**20, format="csr")})
    other, path = half.copy(), tmp_path / "wide.h5ad"
    other.obs_names = "other " + other.obs_names
    _stream.write_stream(path, iter([half, other]), n_obs=n_obs, uns=dict)
    with h5py.File(path) as root:
        assert root["obsm/w/indptr"].dtype == dtype
    found = read(path).obsm["w"]
    assert (found != sp.vstack([half.obsm["w"], half.obsm["w"]])).nnz == 0


MEASURED = """
import resource, sys
import ptrag_sc
out, n_labels = sys.argv[1], int(sys.argv[2])
adata = ptrag_sc.datasets.simulated(n_cells=4_000, n_genes=200, n_perturbations=40, n_cell_types=2)
ptrag_sc.PTRAG.setup_anndata(adata, perturbation_key="perturbation", control="non-targeting", cell_type_key="cell_type")
genes = list(adata.uns["gene_embedding"]["genes"])
labels = [f"{a}+{b}" for i, a in enumerate(genes) for b in genes[:i]][:n_labels]
model = ptrag_sc.baselines.MeanShift(adata).fit()
ptrag_sc.tl.perturb(adata, model, labels, n_cells=200, out=out, progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@each_format
def test_memory_does_not_grow_with_the_number_of_cells(tmp_path, suffix):
    peaks = []
    for n_labels in (50, 500):
        path = tmp_path / f"{n_labels}.{suffix}"
        command = [sys.executable, "-c", MEASURED, str(path), str(n_labels)]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        assert read(path).n_obs == n_labels * 400
        peaks.append(int(run.stdout.splitlines()[-1]))
    assert peaks[1] < 1.1 * peaks[0]


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of file sizes")
@pytest.mark.parametrize("limit", [9_000, 40_000, 90_000])
def test_a_full_disk_ends_in_an_error(trained, in_small_pieces, tmp_path, limit):
    """Files that may not grow further stand for a disk that is full. HDF5 would crash the interpreter."""
    import resource

    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    path, adata = tmp_path / "virtual.h5ad", small_screen()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, usual[1]))
    try:
        with pytest.raises(OSError, match=r"virtual\.h5ad could not be written: File too large .*bytes"):
            ptrag_sc.tl.perturb(adata, trained, REQUEST, out=path, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert not list(tmp_path.iterdir())


@zarr_is_slow
def test_too_little_space_is_found_after_the_first_piece(trained, in_small_pieces, tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(_stream, "_write_rows", None)  # called: another error
    usage = namedtuple("usage", "total used free")(10**6, 10**6 - 20_000, 20_000)
    monkeypatch.setattr("ptrag_sc.data._files.shutil.disk_usage", lambda _: usage)
    path, adata = tmp_path / f"virtual.{suffix}", small_screen()
    n_values = ptrag_sc.tl.perturb(adata, trained, REQUEST, counts=False).X.size
    with pytest.raises(OSError, match=r"could not be written: .*?[\d,]+ bytes are needed, 20,000 are free") as caught:
        ptrag_sc.tl.perturb(adata, trained, REQUEST, counts=False, out=path, progress=False)
    needed = int(re.search(r"([\d,]+) bytes are needed", str(caught.value))[1].replace(",", ""))
    assert 4 * n_values < needed < 8 * n_values  # of the matrix, and what was retrieved
    assert not list(tmp_path.iterdir())


def test_a_small_population_is_a_small_file(trained, tmp_path):
    path = ptrag_sc.tl.perturb(small_screen(), trained, "G0", n_cells=20, out=tmp_path / "v.h5ad", progress=False)
    assert path.stat().st_size < 250_000
