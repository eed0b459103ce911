"""Is expression on another scale refused or warned of, wherever it comes in?"""

from dataclasses import replace

import anndata
import dask.array
import numpy as np
import pytest
import scipy.sparse as sp

import ptrag_sc
from ptrag_sc.data import CellReader
from ptrag_sc.data._reader import as_row_matrix
from ptrag_sc.data._scale import check_expression, level, log_base, look_at, warn_of_levels
from screens import KEYS, make_screen

FORMS = {"dense": np.asarray, "csr": sp.csr_matrix}


def in_dask(matrix):
    return as_row_matrix(dask.array.from_array(matrix, chunks=(2, 3), asarray=False))


def to_base_2(adata):
    adata.X = adata.X / np.log(2)
    adata.uns["log1p"] = {"base": 2}


def not_logged(adata):
    adata.X = adata.X.expm1() * 1.5


def counts(adata):
    adata.X = adata.X.expm1().rint()


def scaled(adata):
    adata.X = adata.X.toarray() - 1


KINDS = {
    counts: "holds raw counts",
    not_logged: "holds values up to .* log1p of normalised counts stays below 15",
    scaled: "holds negative values",
    to_base_2: r"is a logarithm to base 2 .*adata.X = adata.X \* np.log\(2\)",
}


@pytest.fixture(scope="module")
def fitted():
    adata = make_screen()
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem")
    return ptrag_sc.baselines.MeanShift(adata).fit()


@pytest.mark.parametrize("change", KINDS, ids=lambda change: change.__name__)
def test_another_scale_is_refused_in_set_up(change):
    adata = make_screen()
    change(adata)
    with pytest.raises(ValueError, match=KINDS[change]):
        ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    adata.layers["own"] = adata.X  # who names a layer declares its scale
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, layer="own")


def test_the_remedy_for_another_base_works():
    adata, expected = make_screen(), make_screen().X
    to_base_2(adata)
    adata.X = adata.X * np.log(2)
    del adata.uns["log1p"]["base"]
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    np.testing.assert_allclose(adata.X.toarray(), expected.toarray(), rtol=1e-5)


@pytest.mark.parametrize("change", [counts, scaled, to_base_2], ids=lambda change: change.__name__)
def test_another_scale_is_refused_in_queries(fitted, change):
    query = make_screen()
    change(query)
    with pytest.raises(ValueError, match=KINDS[change]):
        fitted.predict(query, perturbations="G0")


@pytest.mark.parametrize("factor", [3.0, 1 / np.log(2), 1 / np.log(10)], ids=["three times", "base 2", "base 10"])
def test_a_query_on_another_scale_is_warned_of_with_both_numbers(fitted, factor, caplog):
    query = make_screen()
    fitted.predict(query, perturbations="G0")
    assert not caplog.text
    query.X = query.X * factor
    fitted.predict(query, perturbations="G0")
    controls = (query.obs["gene"] == "ctl").to_numpy() & (query.obs["line"] == "K562").to_numpy()
    found = np.sqrt(np.square(query.X[controls].mean(0)).mean())
    known = found / factor
    assert f"have a level of {found:.3g} " in caplog.text
    assert f"that the model knows have {known:.3g}. Is the expression normalised" in caplog.text


def test_what_depth_and_cell_type_change_is_no_other_scale(fitted, caplog):
    query = make_screen()
    rng = np.random.default_rng(0)
    fewer = rng.binomial(np.rint(np.expm1(query.X.toarray())).astype(int), 0.6) / 0.6
    query.X = sp.csr_matrix(np.log1p(fewer).astype(np.float32))
    query.obs["line"] = "a new one"
    fitted.predict(query, perturbations="G0")
    assert "level" not in caplog.text


def test_models_know_the_scale_after_saving(trained, tmp_path, caplog):
    trained.save(tmp_path / "model")
    loaded = ptrag_sc.PTRAG.load(tmp_path / "model", adata=False)
    assert loaded.control_levels_ == trained.control_levels_
    assert set(loaded.control_levels_) == {"K562", "RPE1"}
    query = make_screen()
    query.X = query.X * 0.4
    loaded.predict(query, perturbations="G0", n_cells=4)
    assert caplog.text.count("have a level of") == 2


@pytest.mark.parametrize("change", [counts, not_logged, to_base_2], ids=lambda change: change.__name__)
@pytest.mark.parametrize("side", ["real", "predicted"])
def test_another_scale_is_refused_in_comparisons(fitted, change, side, tmp_path):
    sides = {"real": make_screen(), "predicted": fitted.predict(perturbations=["G0", "G1"], counts=False)}
    if not sp.issparse(sides[side].X):
        sides[side].X = sp.csr_matrix(sides[side].X)
    change(sides[side])
    message = KINDS[change].replace("adata", side)
    reference = ptrag_sc.metrics.Reference.from_adata(fitted.adata)
    with pytest.raises(ValueError, match=f"Expression in {side} {message}"):
        ptrag_sc.benchmark.evaluate(sides["real"], sides["predicted"], reference=reference)
    with pytest.raises(ValueError, match=f"Expression in {side} {message}"):
        ptrag_sc.benchmark.to_cell_eval(
            sides["real"], sides["predicted"], tmp_path / "files", reference=reference, cell_type="K562"
        )


def test_negative_predictions_are_no_other_scale(fitted, caplog):
    virtual = fitted.predict(perturbations=["G0", "G1"], counts=False)
    virtual.X = virtual.X - 0.2
    assert virtual.X.min() < 0
    reference = ptrag_sc.metrics.Reference.from_adata(fitted.adata)
    ptrag_sc.benchmark.evaluate(make_screen(), virtual, reference=reference)
    assert "level" not in caplog.text
    virtual.X = virtual.X * 2
    ptrag_sc.benchmark.evaluate(make_screen(), virtual, reference=reference)
    assert "The cells of 'K562' in predicted have a level of" in caplog.text


def test_whole_numbers_in_a_layer_are_warned_of(caplog):
    adata = make_screen()
    adata.layers["counts"] = adata.X.expm1().rint()
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, layer="counts")
    assert "adata.layers['counts'] holds whole numbers" in caplog.text


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("values", "are_counts"),
    [([0, 1, 7], True), ([0, 1, 6.5], False), ([0, -1, 7], False), ([0, 0, 0], False), ([0, 1, 1], False)],
)
def test_counts_are_whole_numbers(form, values, are_counts):
    assert look_at(CellReader(FORMS[form](np.array([values], dtype=float)))).are_counts is are_counts


def test_only_the_genes_that_are_read_count():
    matrix = np.array([[0.5, 900.0, 0.0], [1.5, 30.0, 0.2]])
    for form in (*FORMS.values(), lambda m: in_dask(sp.csr_matrix(m))):
        reader = CellReader(form(matrix), np.array([2, -1, 0]))
        assert check_expression(reader, place="adata.X", declared=False).largest == 1.5
        np.testing.assert_allclose(reader.rows(np.array([1, 0])), [[0.2, 0, 1.5], [0, 0, 0.5]], rtol=1e-6)


def test_blocks_of_dask_are_computed():
    matrix = make_screen(n_obs=50).X
    rows = np.array([7, 3, 3, 49])
    for chunk in (matrix, matrix.toarray()):
        reader = CellReader(in_dask(chunk))
        np.testing.assert_array_equal(reader.rows(rows), matrix[rows].toarray())
        assert look_at(reader) == look_at(CellReader(matrix))


def test_real_dask_arrays_give_the_same_model():
    adata, other = make_screen(n_obs=240), make_screen(n_obs=240)
    other.X = dask.array.from_array(other.X, chunks=(100, 30), asarray=False)
    found = []
    for each in (adata, other):
        ptrag_sc.PTRAG.setup_anndata(each, **KEYS)
        found.append(ptrag_sc.baselines.MeanShift(each).fit().predict(perturbations="G0", counts=False).X)
    np.testing.assert_allclose(*found, atol=1e-6)


def test_the_base_that_scanpy_notes():
    assert log_base({"log1p": {"base": np.array(10)}}) == 10
    assert all(
        log_base(uns) is None for uns in ({}, {"log1p": {}}, {"log1p": {"base": None}}, {"log1p": {"base": np.e}})
    )


def test_levels():
    assert level(np.array([3.0, 4.0])) == pytest.approx(np.sqrt(12.5))
    warn_of_levels({"a": np.nan, "b": 5.0}, {"a": 1.0, "c": 4.0, "d": np.nan}, place="x", other="y")  # nothing to say


def test_the_layer_of_a_comparison_may_have_any_scale(fitted):
    adata = make_screen()
    adata.layers["scaled"] = adata.X.toarray() * 9 - 1
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, layer="scaled")
    model = ptrag_sc.baselines.MeanShift(adata).fit()
    reference = ptrag_sc.metrics.Reference.from_adata(adata)
    virtual = model.predict(perturbations=["G0", "G1"])
    ptrag_sc.benchmark.evaluate(adata, virtual, reference=reference)
    whole = anndata.AnnData(np.rint(np.abs(virtual.X)), obs=virtual.obs, var=virtual.var)
    with pytest.raises(ValueError, match="Expression in predicted looks like raw counts"):
        ptrag_sc.benchmark.evaluate(adata, whole, reference=replace(reference, halves=None))
