"""Does a table of gene embeddings refuse bad values, and does it give combinations the right vector?"""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from ptrag_sc.retrieval._gene_embeddings import GeneEmbedding, frame_arrays

GENES = ["AARS", "JAK2", "STAT1", "TP53"]


@pytest.fixture
def vectors():
    return np.random.default_rng(0).normal(size=(4, 5)) * np.array([[1e-3], [1], [7], [1e4]])


@pytest.fixture
def embedding(vectors):
    return GeneEmbedding.from_table(GENES, vectors, source="test")


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_rows_are_scaled_to_unit_norm(vectors, dtype):
    given = (vectors / 100).astype(dtype)
    table = GeneEmbedding.from_table(GENES, given, source="test")
    for row, raw in zip(table.vectors, given.astype(np.float64), strict=True):
        np.testing.assert_allclose(row, raw / np.sqrt((raw**2).sum()), rtol=3e-7)
    assert table.vectors.dtype == np.float32


def test_unit_rows_are_kept_to_the_bit(embedding):
    again = GeneEmbedding.from_table(embedding.genes, embedding.vectors, source="test")
    np.testing.assert_array_equal(again.vectors, embedding.vectors)


def test_the_table_that_was_given_is_not_changed(vectors):
    given = vectors.astype(np.float32)
    before = given.copy()
    GeneEmbedding.from_table(GENES, given, source="test")
    np.testing.assert_array_equal(given, before)


@pytest.mark.parametrize(
    ("row", "column", "value", "problem"),
    [(1, 2, np.nan, "NaN or infinite values for 'JAK2'"), (3, 0, np.inf, "NaN or infinite values for 'TP53'")],
)
def test_nan_and_inf_are_named(vectors, row, column, value, problem):
    vectors[row, column] = value
    with pytest.raises(ValueError, match=problem):
        GeneEmbedding.from_table(GENES, vectors, source="test")


def test_zero_rows_are_named(vectors):
    vectors[[0, 2]] = 0
    with pytest.raises(ValueError, match="zeros for 'AARS', 'STAT1'"):
        GeneEmbedding.from_table(GENES, vectors, source="test")


def test_duplicates_are_named(vectors):
    with pytest.raises(ValueError, match="more than once 'JAK2'"):
        GeneEmbedding.from_table(["AARS", "JAK2", "JAK2", "TP53"], vectors, source="test")


@pytest.mark.parametrize("shape", [(3, 5), (20,), (4, 0), (4, 5, 1)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"4 names for vectors of shape \("):
        GeneEmbedding.from_table(GENES, np.ones(shape), source="test")


def test_an_empty_table_is_refused():
    with pytest.raises(ValueError, match="0 names"):
        GeneEmbedding.from_table([], np.ones((0, 5)), source="test")


@pytest.mark.parametrize("vectors", [[["a", "b"]], [[1.0, None]], [[1.0], [1.0, 2.0]]])
def test_what_is_no_matrix_of_numbers_is_refused(vectors):
    with pytest.raises(ValueError, match=r"not a matrix of numbers|NaN"):
        GeneEmbedding.from_table(["A"] * len(vectors), vectors, source="test")


def test_a_combination_is_the_scaled_sum_whatever_its_order(embedding):
    labels = ["TP53", "STAT1+AARS", "JAK2", "JAK2+TP53+AARS", "AARS+STAT1"]
    found = embedding.vectors_for(labels, "+")
    for row, label in zip(found, labels, strict=True):
        total = np.zeros(5)
        for gene in label.split("+"):
            total += embedding.vectors[GENES.index(gene)].astype(np.float64)
        np.testing.assert_allclose(row, total / np.sqrt((total**2).sum()), rtol=1e-6)
    np.testing.assert_array_equal(found[1], found[4])
    np.testing.assert_array_equal(found[0], embedding.vectors[3])  # a single gene has its row to the bit
    assert found.dtype == np.float32


def test_no_labels_give_no_rows(embedding):
    assert embedding.vectors_for([], "+").shape == (0, 5)


def test_the_separator_is_the_callers(embedding):
    np.testing.assert_array_equal(embedding.vectors_for(["JAK2_AARS"], "_"), embedding.vectors_for(["AARS+JAK2"], "+"))


def test_a_combination_that_cancels_is_named():
    opposite = GeneEmbedding.from_table(["A", "B", "C"], [[1.0, 2.0], [-3.0, -6.0], [1.0, 0.0]], source="test")
    with pytest.raises(ValueError, match=r"cancel in 'A\+B'\."):
        opposite.vectors_for(["C+A", "B+A", "C"], "+")


def test_a_gene_twice_is_refused(embedding):
    with pytest.raises(ValueError, match="twice"):
        embedding.vectors_for(["JAK2+JAK2"], "+")


def test_missing_genes_are_named_with_the_closest_symbols(embedding):
    assert embedding.missing(["STAT11+AARS", "JAK2", "XIST"], "+") == ["STAT11", "XIST"]
    with pytest.raises(KeyError, match=r"'STAT11' is not in the gene embedding 'test' \(closest: 'STAT1'\)"):
        embedding.vectors_for(["AARS", "STAT11+JAK2"], "+")


def test_a_gene_that_was_left_out_is_said_to_be(vectors):
    table = GeneEmbedding.from_table(GENES, vectors, source="test", excluded=["XIST"])
    with pytest.raises(KeyError, match="Left out by missing='drop': 'XIST'"):
        table.vectors_for(["XIST"], "+")


def test_subset_keeps_rows_and_order(embedding):
    part = embedding.subset(["TP53", "AARS"])
    assert part.genes.tolist() == ["TP53", "AARS"]
    np.testing.assert_array_equal(part.vectors, embedding.vectors[[3, 0]])
    with pytest.raises(KeyError, match="'XIST'"):
        embedding.subset(["XIST"])


@pytest.mark.filterwarnings("ignore")  # zarr and anndata announce format changes
@pytest.mark.parametrize("excluded", [(), ("XIST", "enh:1/2")])
@pytest.mark.parametrize("form", ["h5ad", "zarr", "copy"])
def test_uns_round_trip(vectors, excluded, form, tmp_path):
    table = GeneEmbedding.from_table(GENES, vectors, source="a/b.npz", excluded=excluded)
    adata = ad.AnnData(np.zeros((2, 2), np.float32), uns={"key": table.to_uns()})
    if form == "copy":
        adata = adata.copy()
    elif form == "h5ad":
        adata.write_h5ad(tmp_path / "a.h5ad")
        adata = ad.read_h5ad(tmp_path / "a.h5ad")
    else:
        adata.write_zarr(tmp_path / "a.zarr")
        adata = ad.read_zarr(tmp_path / "a.zarr")
    again = GeneEmbedding.from_uns(adata.uns["key"], "key")
    assert again.genes.tolist() == GENES
    assert again.genes.dtype.kind == "U"
    np.testing.assert_array_equal(again.vectors, table.vectors)
    assert (again.source, again.excluded) == ("a/b.npz", excluded)


def test_uns_may_hold_a_data_frame(vectors, embedding):
    table = GeneEmbedding.from_uns(pd.DataFrame(vectors, index=GENES), "key")
    np.testing.assert_array_equal(table.vectors, embedding.vectors)
    assert table.excluded == ()


@pytest.mark.parametrize("value", [None, np.ones((2, 2)), {"genes": ["A"]}, [1.0]])
def test_anything_else_in_uns_names_the_function_that_writes_it(value):
    with pytest.raises(TypeError, match=r"adata\.uns\['key'\].*pp\.gene_embedding\(adata, .*key_added='key'"):
        GeneEmbedding.from_uns(value, "key")


def test_frame_names_come_from_the_index_or_the_one_column_of_text():
    by_index = pd.DataFrame({"x": [1.0, 2.0], "y": [3, 4]}, index=["A", "B"])
    by_column = pd.DataFrame({"x": [1.0, 2.0], "gene": ["A", "B"], "y": [3, 4]})
    for frame in (by_index, by_column):
        genes, vectors = frame_arrays(frame, "here")
        assert genes.tolist() == ["A", "B"]
        np.testing.assert_array_equal(vectors, [[1, 3], [2, 4]])


@pytest.mark.parametrize(
    ("frame", "problem"),
    [
        (pd.DataFrame({"x": [1.0]}), "has numbers for names"),
        (pd.DataFrame({"x": [1.0], "note": ["text"]}, index=["A"]), "columns that are not numbers: 'note'"),
        (pd.DataFrame({"a": ["text"], "b": ["text"]}), "columns that are not numbers: 'a', 'b'"),
    ],
)
def test_frames_without_names_or_numbers_are_refused(frame, problem):
    with pytest.raises(ValueError, match=problem):
        frame_arrays(frame, "here")


def test_a_frame_with_missing_values_names_the_gene():
    frame = pd.DataFrame({"x": pd.array([1.0, None], dtype="Float64")}, index=["A", "B"])
    with pytest.raises(ValueError, match="NaN or infinite values for 'B'"):
        GeneEmbedding.from_uns(frame, "key")


@pytest.mark.parametrize(
    ("file", "shape", "source"),
    [
        ("gene_emb_minilm_l6_v2_384.npz", (3937, 384), "sentence embedding"),
        ("gene_emb_genept_ada002_adamson86.npz", (86, 1536), "GenePT"),
    ],
)
def test_real_tables_give_cosines_of_the_raw_rows(test_data, file, shape, source):
    with np.load(test_data / "data" / file) as arrays:
        genes, raw = arrays["genes"], arrays["emb"].astype(np.float64)
    table = GeneEmbedding.from_table(genes, raw, source=source)
    assert table.vectors.shape == shape
    pairs = np.random.default_rng(0).integers(len(genes), size=(50, 2))
    for i, j in pairs:
        cosine = raw[i] @ raw[j] / np.sqrt((raw[i] @ raw[i]) * (raw[j] @ raw[j]))
        assert table.vectors[i] @ table.vectors[j] == pytest.approx(cosine, abs=1e-6)
