"""Does a store hold the same screen, sorted, and is everything else refused?"""

import anndata
import dask.array
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from anndata import AnnData

import ptrag_sc
from ptrag_sc.data import CellReader
from ptrag_sc.data._reader import as_row_matrix
from ptrag_sc.data._shards import Shards
from ptrag_sc.datasets import _store, open_store, write_store
from screens import KEYS, SMALL, make_screen


@pytest.fixture
def screen(monkeypatch):
    for name, value in {"CHUNK": 400, "SHARD": 1600, "PIECE_BYTES": 9000}.items():
        monkeypatch.setattr(_store, name, value)
    adata = make_screen(n_obs=150)
    adata.layers["counts"] = sp.csc_matrix(np.rint(np.expm1(adata.X.toarray())))
    adata.layers["dense"] = adata.X.toarray() * 2
    adata.obsm["umap"] = np.arange(300.0).reshape(150, 2)
    adata.varm["loading"] = np.ones((30, 2))
    adata.obs["note"] = [None, *["x"] * 149]
    return adata


@pytest.mark.parametrize(
    "form", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("csr", "csc")), "dense", "dask"]
)
def test_a_store_is_the_screen_in_another_order(form, screen, tmp_path):
    dense = screen.X.toarray()
    forms = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}
    screen.X = forms.get(form, lambda x: dask.array.from_array(x, (40, 30)))(dense)
    path = write_store(screen, tmp_path / "screen.zarr", **KEYS)
    found = anndata.read_zarr(path)
    labels = list(zip(found.obs["line"].astype(str), found.obs["gene"].astype(str), strict=True))
    assert labels == sorted(labels)
    place = screen.obs_names.get_indexer(found.obs_names)
    assert sorted(place) == list(range(150))
    np.testing.assert_array_equal(found.X.toarray(), dense[place])
    np.testing.assert_array_equal(found.layers["counts"].toarray(), screen.layers["counts"].toarray()[place])
    np.testing.assert_array_equal(found.layers["dense"].toarray(), screen.layers["dense"][place])
    np.testing.assert_array_equal(found.obsm["umap"], screen.obsm["umap"][place])
    np.testing.assert_array_equal(found.varm["loading"], screen.varm["loading"])
    assert found.obs["note"].isna().sum() == 1
    assert list(found.var_names) == list(screen.var_names)
    np.testing.assert_array_equal(found.uns["gene_embedding"]["vectors"], screen.uns["gene_embedding"]["vectors"])
    lazy = open_store(path)
    np.testing.assert_array_equal(lazy.to_memory().X.toarray(), found.X.toarray())
    assert zarr.open_group(path, mode="r")["X/data"].shards == (1600,)


def test_cells_keep_their_order_within_a_condition_and_combinations_are_one(tmp_path):
    adata = AnnData(np.ones((6, 1), dtype=np.float32) * np.arange(6)[:, None])
    adata.obs = adata.obs.assign(gene=["B+A", "A", "ctl", "A+B", "A", "ctl2"], line="a")
    write_store(adata, tmp_path / "s.zarr", **{**KEYS, "control": ["ctl", "ctl2"]})
    assert anndata.read_zarr(tmp_path / "s.zarr").X.toarray().ravel().tolist() == [1, 4, 0, 3, 2, 5]


def test_counts_become_logarithms(screen, tmp_path):
    counts = screen.layers["counts"].toarray()
    bare = AnnData(sp.csr_matrix(counts), obs=screen.obs, uns=screen.uns)
    found = anndata.read_zarr(write_store(bare, tmp_path / "s.zarr", **KEYS, counts=True))
    place = bare.obs_names.get_indexer(found.obs_names)
    expected = np.log1p(counts * 1e4 / counts.sum(1, keepdims=True))[place]
    np.testing.assert_allclose(found.X.toarray(), expected, rtol=1e-5)
    np.testing.assert_array_equal(found.layers["counts"].toarray(), counts[place])
    ptrag_sc.PTRAG.setup_anndata(open_store(tmp_path / "s.zarr"), **KEYS, counts_layer="counts")


def test_refusals(screen, tmp_path):
    bare = AnnData(screen.X, obs=screen.obs)
    with pytest.raises(ValueError, match=r"in adata.X does not hold counts. Pass counts=False"):
        write_store(bare, tmp_path / "s.zarr", **KEYS, counts=True)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"Layer 'counts' in adata\.layers exists"):
        write_store(screen, tmp_path / "s.zarr", **KEYS, counts=True)
    with pytest.raises(ValueError, match=r"ends in '.h5ad'"):
        write_store(screen, tmp_path / "s.h5ad", **KEYS)
    with pytest.raises(KeyError, match="Column 'nothing'"):
        write_store(screen, tmp_path / "s.zarr", **{**KEYS, "cell_type_key": "nothing"})
    with pytest.raises(ValueError, match=r"Expression in adata.X is missing"):
        write_store(AnnData(obs=screen.obs), tmp_path / "s.zarr", **KEYS)
    write_store(bare, tmp_path / "s.zarr", **KEYS)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_store(bare, tmp_path / "s.zarr", **KEYS)
    write_store(bare, tmp_path / "s.zarr", **KEYS, overwrite=True)
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "thesis.txt").write_text("...")
    with pytest.raises(FileExistsError, match=r"thesis\.txt"):
        write_store(bare, tmp_path / "mine.zarr", **KEYS, overwrite=True)
    for path, error in (("none.zarr", "does not exist"), ("mine.zarr", "is no zarr store")):
        with pytest.raises((FileNotFoundError, ValueError), match=error):
            open_store(tmp_path / path)
    zarr.open_group(tmp_path / "other.zarr", mode="w")
    with pytest.raises(ValueError, match="holds no AnnData"):
        open_store(tmp_path / "other.zarr")


def test_a_damaged_shard_is_an_error(screen, tmp_path):
    path = write_store(screen, tmp_path / "s.zarr", **KEYS)
    shard = path / "X" / "data" / "c" / "0"
    content = shard.read_bytes()
    for damaged in (
        b"\0" * 8 + content[8:],
        content[:60] + content[-150:],
        content[:16] + b"\xff" * 40 + content[56:],
        None,
    ):
        shard.write_bytes(damaged) if damaged else shard.unlink()
        with pytest.raises(OSError, match=r"is damaged\. Write the store again"):
            ptrag_sc.PTRAG.setup_anndata(open_store(path), **KEYS)


def test_chunks_of_zeros_are_no_damage(screen, tmp_path):
    screen.X = sp.csr_matrix((np.zeros(150, np.float32), np.zeros(150, int), np.arange(151)), shape=screen.shape)
    screen.X.data[-1] = 0.5
    bare = AnnData(screen.X, obs=screen.obs)
    reader = CellReader(as_row_matrix(open_store(write_store(bare, tmp_path / "s.zarr", **KEYS)).X))
    assert isinstance(reader.matrix.values, Shards)
    assert reader.rows(np.arange(150)).sum() == 0.5


def test_data_modules_are_refused_with_what_to_do_instead(screen):
    ptrag_sc.PTRAG.setup_anndata(screen, **KEYS)
    model = ptrag_sc.PTRAG(screen, **SMALL)
    for call in (ptrag_sc.PTRAG.setup_annbatch, ptrag_sc.PTRAG.setup_datamodule):
        with pytest.raises(NotImplementedError, match="write_store"):
            call(object())
    with pytest.raises(TypeError, match=r"'datamodule' is not in .*write_store"):
        model.train(1, datamodule=object())
