"""Is the same table read from every kind of source?"""

import io
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix

from ptrag_sc.datasets._gene_vectors import GeneVectors, gene_names
from ptrag_sc.retrieval import _sources
from ptrag_sc.retrieval._sources import SOURCES, read_embedding

GENES = ["NA", "AARS", "JAK2", "STAT1"]  # "NA" is a symbol, not a missing value
VECTORS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
UNIT = VECTORS / np.linalg.norm(VECTORS.astype(np.float64), axis=1, keepdims=True)
FRAME = pd.DataFrame(VECTORS, index=GENES, columns=["d0", "d1", "d2"])


def write_npz(path):
    np.savez(path, genes=np.array(GENES), vectors=VECTORS)


def write_npz_emb(path):
    np.savez(path, genes=np.array(GENES), emb=VECTORS)


def write_h5ad(path):
    ad.AnnData(VECTORS, obs=pd.DataFrame(index=GENES)).write_h5ad(path)


def write_sparse_h5ad(path):
    ad.AnnData(csr_matrix(VECTORS), obs=pd.DataFrame(index=GENES)).write_h5ad(path)


def write_pickle(path):
    path.write_bytes(pickle.dumps(dict(zip(GENES, VECTORS.tolist(), strict=True))))


def write_varm_h5ad(path):
    cells = ad.AnnData(np.zeros((2, 4), dtype=np.float32), var=pd.DataFrame(index=GENES))
    cells.varm["scgpt"], cells.varm["PCs"] = VECTORS, VECTORS[:, :2]
    cells.write_h5ad(path)


def write_pt(path):
    torch.save({gene: torch.tensor(vector) for gene, vector in zip(GENES, VECTORS, strict=True)}, path)


def write_pt_arrays(path):
    torch.save({"genes": GENES, "vectors": torch.nn.Parameter(torch.tensor(VECTORS).double())}, path)


WRITERS = [
    ("a.npz", write_npz),
    ("emb.npz", write_npz_emb),
    ("A.NPZ", write_npz),
    ("a.parquet", FRAME.to_parquet),
    ("column.parquet", lambda path: FRAME.rename_axis("gene").reset_index().to_parquet(path)),
    ("a.csv", FRAME.to_csv),
    ("numbered.csv", lambda path: FRAME.set_axis(range(3), axis=1).to_csv(path)),
    ("a.h5ad", write_h5ad),
    ("sparse.h5ad", write_sparse_h5ad),
    ("varm.h5ad", write_varm_h5ad),
    ("a.pt", write_pt),
    ("arrays.pth", write_pt_arrays),
    ("a.pickle", write_pickle),
    ("a.pkl", write_pickle),
]


def test_every_suffix_of_the_table_is_tested():
    assert {Path(name).suffix.lower() for name, _ in WRITERS} | {"genept"} == set(SOURCES)


@pytest.mark.parametrize(("name", "write"), WRITERS, ids=[name for name, _ in WRITERS])
@pytest.mark.parametrize("as_text", [True, False])
def test_files(tmp_path, name, write, as_text):
    path = tmp_path / name
    with path.open("wb") if name == "A.NPZ" else _closed(path) as place:
        write(place)
    table = read_embedding(str(path) if as_text else path)
    assert table.genes.tolist() == GENES
    np.testing.assert_allclose(table.vectors, UNIT, rtol=1e-6)
    assert table.vectors.dtype == np.float32
    assert table.source == name


class _closed:
    """The path itself, where a writer opens the file."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self.path

    def __exit__(self, *_):
        return False


@pytest.mark.parametrize(
    "source", [FRAME, dict(zip(GENES, VECTORS, strict=True)), FRAME.rename_axis("g").reset_index()]
)
def test_tables_in_memory(source):
    table = read_embedding(source)
    assert table.genes.tolist() == GENES
    np.testing.assert_allclose(table.vectors, UNIT, rtol=1e-6)


def test_an_anndata_has_them_in_varm_or_as_observations():
    cells = ad.AnnData(np.zeros((2, 4), dtype=np.float32), var=pd.DataFrame(index=GENES))
    for vectors in (VECTORS, FRAME, csr_matrix(VECTORS)):
        cells.varm["scgpt"] = vectors
        table = read_embedding(cells)
        assert (table.genes.tolist(), table.source) == (GENES, "AnnData")
        np.testing.assert_allclose(table.vectors, UNIT, rtol=1e-6)
    rows = ad.AnnData(VECTORS, obs=pd.DataFrame(index=GENES))
    rows.varm["PCs"] = np.ones((3, 2))  # of sc.pp.pca
    np.testing.assert_allclose(read_embedding(rows).vectors, UNIT, rtol=1e-6)
    cells.varm["genept"] = VECTORS
    with pytest.raises(ValueError, match=r"varm of the AnnData has several tables: 'scgpt', 'genept'.*DataFrame"):
        read_embedding(cells)
    empty = ad.AnnData(obs=pd.DataFrame(index=GENES), var=pd.DataFrame(index=["a"]))
    with pytest.raises(ValueError, match="has neither vectors in varm nor X"):
        read_embedding(empty)


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_a_file_of_tensors_executes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"STAT1": Hostile()}, tmp_path / "hostile.pt")
    torch.save(torch.ones(3), tmp_path / "tensor.pt")
    torch.save({}, tmp_path / "empty.pt")
    for name, problem in (("hostile", "could not be read"), ("tensor", "holds a Tensor"), ("empty", "holds a dict")):
        with pytest.raises(ValueError, match=rf"{problem}.*torch.save"):
            read_embedding(tmp_path / f"{name}.pt")
    assert not (tmp_path / "executed").exists()


def test_genept_comes_from_the_datasets(monkeypatch):
    monkeypatch.setattr(_sources, "genept", lambda: GeneVectors(np.array(GENES), VECTORS))
    table = read_embedding("genept", genes=["STAT1"])
    assert (table.genes.tolist(), table.source) == (["STAT1"], "genept")
    np.testing.assert_allclose(table.vectors, UNIT[3:], rtol=1e-6)


def test_only_the_genes_asked_for_are_checked():
    frame = FRAME.copy()
    frame.loc["NA"] = np.nan
    frame.loc["JAK2"] = 0
    frame = pd.concat([frame, frame.loc[["NA"]]])
    assert read_embedding(frame, genes=["STAT1", "AARS"]).genes.tolist() == ["AARS", "STAT1"]
    with pytest.raises(ValueError, match="zeros for 'JAK2'"):
        read_embedding(frame, genes=["STAT1", "JAK2"])
    with pytest.raises(ValueError, match="more than once 'NA'"):
        read_embedding(frame)


def test_missing_genes_are_named_or_left_out():
    with pytest.raises(
        KeyError, match=r"'STAT11' is not in the gene embedding 'DataFrame' \(closest: 'STAT1'\).*aliases="
    ):
        read_embedding(FRAME, genes=["AARS", "STAT11"])
    assert read_embedding(FRAME, genes=["AARS", "STAT11"], missing="drop").genes.tolist() == ["AARS"]
    with pytest.raises(KeyError, match="STAT11"):
        read_embedding(FRAME, genes=["STAT11"], missing="drop")


@pytest.mark.parametrize(
    ("source", "hint"), [("a.npy", "'.npz'"), ("genep", "'genept'"), ("table.csvs", "'.csv'"), ("a.tsv", "'.parquet'")]
)
def test_an_unknown_kind_names_the_closest(source, hint):
    with pytest.raises(KeyError, match="Gene embedding source") as caught:
        read_embedding(source)
    assert hint in str(caught.value)


def test_other_objects_are_refused():
    with pytest.raises(TypeError, match=r"is a ndarray.*'\.npz'"):
        read_embedding(VECTORS)


@pytest.mark.parametrize("suffix", [kind for kind in SOURCES if kind.startswith(".")])
def test_a_file_that_does_not_exist_is_named(tmp_path, suffix):
    with pytest.raises(FileNotFoundError, match="absent"):
        read_embedding(tmp_path / f"absent{suffix}")


def test_npz_with_other_arrays_names_them(tmp_path):
    np.savez(tmp_path / "a.npz", names=np.array(GENES), vectors=VECTORS)
    with pytest.raises(ValueError, match=r"holds the arrays 'names', 'vectors'.*'genes'"):
        read_embedding(tmp_path / "a.npz")


def test_npz_with_objects_is_not_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", genes=np.array(GENES, dtype=object), vectors=VECTORS)
    with pytest.raises(ValueError, match=r"could not be read.*text, not objects"):
        read_embedding(tmp_path / "a.npz")


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # numpy leaves it to the garbage collector
def test_what_is_no_npz_is_said_to_be_unreadable(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(ValueError, match="could not be read"):
        read_embedding(tmp_path / "a.npz")


def test_csv_without_header_loses_no_gene(tmp_path):
    FRAME.to_csv(tmp_path / "a.csv", header=False)
    with pytest.raises(ValueError, match="begins with a row of numbers"):
        read_embedding(tmp_path / "a.csv")


def test_csv_names_are_text(tmp_path):
    (tmp_path / "a.csv").write_text("gene,x,y\n1,0.5,2\nNA,1,1\nnan,3,4\n")
    assert read_embedding(tmp_path / "a.csv").genes.tolist() == ["1", "NA", "nan"]


def test_csv_with_a_gap_names_the_gene(tmp_path):
    frame = FRAME.copy()
    frame.loc["JAK2", "d1"] = np.nan
    frame.to_csv(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="NaN or infinite values for 'JAK2'"):
        read_embedding(tmp_path / "a.csv")


def test_h5ad_without_x_is_refused(tmp_path):
    ad.AnnData(obs=pd.DataFrame(index=GENES)).write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match="has neither vectors in varm nor X"):
        read_embedding(tmp_path / "a.h5ad")


def test_mapping_of_unequal_widths_names_genes():
    with pytest.raises(ValueError, match="one width"):
        read_embedding({"AARS": [1.0, 2.0], "JAK2": [1.0]})


def test_hostile_pickle_is_refused(tmp_path):
    sentinel = tmp_path / "ran"
    (tmp_path / "a.pickle").write_bytes(f"cos\nsystem\n(Vtouch {sentinel}\ntR.".encode())
    with pytest.raises(ValueError, match=r"os\.system"):
        read_embedding(tmp_path / "a.pickle")
    assert not sentinel.exists()


def test_a_real_table_is_read(test_data, tmp_path):
    path = test_data / "data" / "gene_emb_genept_ada002_adamson86.npz"
    with np.load(path) as arrays:
        genes, raw = arrays["genes"], arrays["emb"]
    table = read_embedding(path)
    assert table.genes.tolist() == genes.tolist()
    np.testing.assert_allclose(table.vectors, raw, atol=1e-6)
    as_pickle = tmp_path / "genept.pickle"
    as_pickle.write_bytes(pickle.dumps(dict(zip(genes.tolist(), raw.astype(float).tolist(), strict=True))))
    np.testing.assert_array_equal(read_embedding(as_pickle).vectors, table.vectors)


def written(folder, name):
    """A complete file of the kind that the suffix of a name says."""
    writers = {Path(known).suffix: write for known, write in WRITERS}
    writers[Path(name).suffix](folder / name)
    return folder / name


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("suffix", [kind for kind in SOURCES if kind.startswith(".")])
def test_a_damaged_file_is_named(tmp_path, suffix):
    """Cut short, empty, text or zeros in its place, or with single bits changed: read, or one error."""
    path = written(tmp_path, f"a{suffix}")
    original, chance = path.read_bytes(), np.random.default_rng(0)
    damaged = [original[: int(n)] for n in chance.integers(0, len(original), 8)]
    damaged += [b"", b"not a table", b"\0" * 2000, original[::-1]]
    for _ in range(8):
        content = bytearray(original)
        content[chance.integers(len(content))] ^= 1 << int(chance.integers(8))
        damaged.append(bytes(content))
    n_refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            read_embedding(path)
        except ValueError as error:
            assert path.name in str(error)
            n_refused += 1
    assert n_refused >= 4


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = written(tmp_path, "a.csv")
    monkeypatch.setattr(
        Path, "open", lambda self, *_, **__: (_ for _ in ()).throw(PermissionError(13, "no", str(self)))
    )
    with pytest.raises(PermissionError, match=r"a\.csv"):
        read_embedding(path)


def test_csv_whose_header_lacks_the_genes_loses_none(tmp_path):
    """As R writes row names: pandas would take the genes for an index and the first number for their names."""
    path = tmp_path / "a.csv"
    path.write_text("x,y\nAARS,0.5,2\nJAK2,1,1\n")
    with pytest.raises(ValueError, match=r"has 2 names in its header and 3 values in its first row. Name every column"):
        read_embedding(path)
    path.write_text("\n" + "gene,x,y\n" + "\nAARS,0.5,2\nJAK2,1,1,7\n")
    with pytest.raises(ValueError, match=r"a\.csv could not be read .*line 5"):
        read_embedding(path)
    path.write_bytes(b'\xef\xbb\xbf"gene, of human",x,y\r\nAARS,0.5,2\r\n')
    assert read_embedding(path).genes.tolist() == ["AARS"]


def test_csv_of_many_columns_is_read_fast_or_refused(tmp_path):
    path = tmp_path / "a.csv"
    pd.DataFrame(np.ones((2, 3000)), index=["AARS", "JAK2"]).to_csv(path)
    assert read_embedding(path).vectors.shape == (2, 3000)
    path.write_text("gene" + ",x" * 20_000 + "\nAARS" + ",1" * 20_000 + "\n")
    with pytest.raises(ValueError, match=r"has 20001 columns. Save a table as wide as this as \.npz"):
        read_embedding(path)


@pytest.mark.parametrize("is_sparse", [True, False])
def test_h5ad_that_says_it_is_far_larger_than_its_file_is_refused(tmp_path, is_sparse):
    path = tmp_path / "a.h5ad"
    (write_sparse_h5ad if is_sparse else write_h5ad)(path)
    with h5py.File(path, "r+") as file:
        if is_sparse:
            file["X"].attrs["shape"] = [10**7, 10**7]
        else:
            attributes = dict(file["X"].attrs)
            del file["X"]
            file.create_dataset("X", (10**7, 10**7), np.float32, chunks=(10, 10)).attrs.update(attributes)
    with pytest.raises(ValueError, match=r"says that it holds 100,000,000,000,\d+ numbers"):
        read_embedding(path)


def zipped(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def as_npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write_bomb_npz(path):
    zipped(path, {"genes.npy": as_npy(np.array(GENES)), "vectors.npy": as_npy(np.zeros((3, 7_000_000), np.int8))})


def write_bomb_parquet(path):
    n = 9_000_000
    pd.DataFrame({"gene": pd.Categorical(["A"]).repeat(n), "x": np.zeros(n, np.float32)}).to_parquet(path)


def write_bomb_h5ad(path):
    write_h5ad(path)
    with h5py.File(path, "r+") as file:
        attributes = dict(file["X"].attrs)
        del file["X"]
        file.create_dataset("X", (3, 10**7), np.float32, chunks=(3, 10**5)).attrs.update(attributes)


def write_bomb_pt(path):
    torch.save({f"G{i}": torch.ones(1).expand(10**7) for i in range(3)}, path)


def write_bomb_pickle(path):
    path.write_bytes(pickle.dumps(dict.fromkeys(map(str, range(2000)), [0.5] * 10_000)))


BOMBS = [write_bomb_npz, write_bomb_parquet, write_bomb_h5ad, write_bomb_pt, write_bomb_pickle]


@pytest.mark.parametrize("write", BOMBS, ids=lambda write: write.__name__)
def test_what_is_far_larger_in_memory_than_in_its_file_is_refused(tmp_path, write):
    path = tmp_path / f"a.{write.__name__.rpartition('_')[2]}"
    write(path)
    assert path.stat().st_size < 1_000_000
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"{path.name} (says that it holds|makes) .* in|of .* bytes"):
        read_embedding(path)
    assert tracemalloc.get_traced_memory()[1] < 2e7
    tracemalloc.stop()


LONG = "A" * 10**5


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz", ".h5ad", ".pt", ".pickle"])
def test_a_name_that_would_make_all_names_long_is_refused(tmp_path, suffix):
    path, frame = tmp_path / f"a{suffix}", FRAME.rename(index={GENES[0]: LONG})
    mapping = {str(gene): vector.tolist() for gene, vector in zip(frame.index, VECTORS, strict=True)}
    {
        ".csv": frame.to_csv,
        ".parquet": frame.to_parquet,
        ".npz": lambda path: np.savez(path, genes=np.array(frame.index, dtype=str), vectors=VECTORS),
        ".h5ad": ad.AnnData(VECTORS, obs=pd.DataFrame(index=frame.index)).write_h5ad,
        ".pt": lambda path: torch.save(mapping, path),
        ".pickle": lambda path: path.write_bytes(pickle.dumps(mapping)),
    }[suffix](path)
    with pytest.raises(ValueError, match=r"has a name of 100000 letters \('AAAA") as caught:
        read_embedding(path)
    assert path.name in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("genes", [np.arange(3) / 7, np.arange(3).astype("M8[D]"), np.array("A"), np.ones((3, 1), int)])
def test_npz_whose_names_are_none_is_refused(tmp_path, genes):
    np.savez(tmp_path / "a.npz", genes=genes, vectors=VECTORS)
    with pytest.raises(ValueError, match=r"a\.npz has names of type .* one name for each row"):
        read_embedding(tmp_path / "a.npz")


@pytest.mark.parametrize("vectors", [VECTORS * 1j, (VECTORS * 9).astype("M8[s]"), (VECTORS * 9).astype("m8[s]")])
def test_vectors_of_no_real_numbers_are_refused(vectors):
    with pytest.raises(ValueError, match="is not a matrix of numbers"):
        read_embedding(dict(zip(GENES, vectors, strict=True)))


@pytest.mark.parametrize("name", ["", "A\0B"])
def test_rows_need_names(name):
    with pytest.raises(ValueError, match=r"has a row without a name|has a name with a zero byte"):
        read_embedding({name: VECTORS[0], "JAK2": VECTORS[1]})


@pytest.mark.parametrize("name", [None, ("A", "B"), 0.5, b"\xff"])
def test_names_are_text(name):
    with pytest.raises(ValueError, match=r"no text|decode"):
        gene_names([name, "JAK2"], "the example")


def test_a_frame_without_names_is_refused():
    names = [None, *GENES[1:]]
    for index in (pd.MultiIndex.from_product([GENES, ["x"]]), pd.Index(names)):
        with pytest.raises(ValueError, match="has rows without a name, or with several"):
            read_embedding(FRAME.set_axis(index))


def test_csv_with_a_zero_byte_cuts_no_name(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"gene,x,y\nAA\0RS,0.5,2\n")
    with pytest.raises(ValueError, match="is no text in UTF-8"):
        read_embedding(tmp_path / "a.csv")


@pytest.mark.parametrize(("part", "value"), [("indices", -1), ("indices", 10**6), ("indptr", 10**6)])
def test_h5ad_whose_sparse_matrix_points_outside_is_refused(tmp_path, part, value):
    write_sparse_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        file[f"X/{part}"][1] = value
    with pytest.raises(ValueError, match=r"a\.h5ad could not be read"):
        read_embedding(tmp_path / "a.h5ad")


def test_h5ad_in_whose_texts_hdf5_would_search_for_ever_is_refused(tmp_path):
    write_h5ad(tmp_path / "a.h5ad")
    content = bytearray((tmp_path / "a.h5ad").read_bytes())
    start = content.index(b"GCOL")
    content[start + 16 : start + 200] = bytes(184)
    (tmp_path / "a.h5ad").write_bytes(content)
    with pytest.raises(ValueError, match="the texts in it are damaged"):
        read_embedding(tmp_path / "a.h5ad")


def test_h5ad_is_read_though_parts_that_are_not_needed_are_damaged(tmp_path):
    write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        file["uns"].create_dataset("far", (10**7, 10**7), np.float32, chunks=(10, 10))
        file["layers"].attrs["encoding-type"] = "unheard of"
    np.testing.assert_allclose(read_embedding(tmp_path / "a.h5ad").vectors, UNIT, rtol=1e-6)


def test_pickle_that_fills_its_stack_is_refused(tmp_path):
    for body in (b"]" * 60_000, b"(" * 1000):
        (tmp_path / "a.pickle").write_bytes(b"\x80\x04" + body + b".")
        with pytest.raises(ValueError, match="more on its stack"):
            read_embedding(tmp_path / "a.pickle")
