"""Do realised cells show the predicted mean shift, nothing where there is none, and the same draws in every call?"""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from scipy.stats import binom, false_discovery_control, mannwhitneyu, poisson

import ptrag_sc
from ptrag_sc.baselines._base import Answer, Baseline
from ptrag_sc.data import _predictor, _realised, _run
from ptrag_sc.data._counts import CellCounts
from ptrag_sc.data._realised import fold_curves

KEYS = {"perturbation_key": "gene", "control": "ctl", "cell_type_key": "line"}
each_format = pytest.mark.parametrize("suffix", ["h5ad", pytest.param("zarr", marks=pytest.mark.slow)])


class Fixed(Baseline):
    """Shifts every cell by ``shift_`` (G,), or by that of its perturbation in ``shifts_``."""

    _changes_targets = False
    shift_: np.ndarray
    shifts_: dict

    def _learn(self, conditions, shifts):
        self.shifts_ = {}

    def _shift(self, label, vector, cell_type):
        return Answer(self.shifts_.get(label, self.shift_).astype(np.float32))


def make(*, n=300, n_genes=30, seed=0):
    """Counts of two cell types; genes from silent to abundant; totals that lie outside of the panel."""
    rng = np.random.default_rng(seed)
    line = np.where(rng.random(n) < 0.5, "x", "y")
    level = np.geomspace(0.02, 60, n_genes) * np.where(line[:, None] == "x", 1, np.linspace(0.5, 2, n_genes))
    level[:, 0] = 0
    depth = rng.lognormal(0, 0.4, n)
    counts = rng.poisson(level * depth[:, None] * rng.gamma(3, 1 / 3, (n, 1))).astype(np.float32)
    factor = 3 / depth
    obs = pd.DataFrame({"gene": np.where(np.arange(n) % 10 == 0, "A", "ctl"), "line": line, "gem": "b"})
    obs.index = [f"cell{i}" for i in range(n)]
    x = np.log1p(counts * factor[:, None]).astype(np.float32)
    adata = AnnData(sp.csr_matrix(x), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))
    adata.layers["raw"] = sp.csr_matrix(counts)
    adata.obs["factor"] = factor
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, counts_layer="raw")
    return adata


@pytest.fixture
def fitted():
    """A predictor of a shift that falls in some genes, rises in others and is zero in others."""
    model = Fixed(make()).fit()
    shift = np.resize([-0.3, 0.25, 0.0, -0.02, 0.6, -2.0], 30)
    shift[0] = 0.2  # of a gene that no cell shows
    model.shift_ = shift
    return model


def cells_of(n, n_genes, level, seed=0):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(level, (n, n_genes)).astype(np.float32)
    return counts, rng.lognormal(1, 0.3, n)  # (n, G), (n,) factors


def slow_fall(counts, factor, share):
    """Mean fall of log1p(factor * count) when every molecule is lost with a probability, term by term."""
    total = np.zeros(counts.shape[1])
    for (i, g), c in np.ndenumerate(counts.astype(int)):
        kept = np.arange(c + 1)
        total[g] += np.log1p(factor[i] * c) - binom.pmf(kept, c, 1 - share) @ np.log1p(factor[i] * kept)
    return total / len(counts)


def slow_rise(counts, factor, gain, rate):
    """Mean rise when half of the new molecules come in proportion to the cell's own and half to the mean's."""
    total = np.zeros(counts.shape[1])
    for (i, g), c in np.ndenumerate(counts):
        mean = gain[g] * (c + rate[g] / factor[i]) / 2
        added = np.arange(int(mean + 12 * np.sqrt(mean) + 30))
        total[g] += poisson.pmf(added, mean) @ np.log1p(factor[i] * (c + added)) - np.log1p(factor[i] * c)
    return total / len(counts)


LEVELS = {"few": 0.3, "some": 5.0, "many": 300.0}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("n", "tolerance"), [(1, 2e-3), (8, 2e-3), (60, 0.02)])
def test_curves_equal_sums_over_all_outcomes(n, tolerance, level):
    """Up to eight cells have each their own size; more share that of a group of cells of similar size."""
    counts, factor = cells_of(n, 4, LEVELS[level])
    counts[:, 3] = 0  # a silent gene
    curves = fold_curves(CellCounts(sp.csr_matrix(counts), factor))
    mean = np.maximum(counts.sum(0), 0.5) / n
    np.testing.assert_allclose(curves.rate, mean / np.mean(1 / factor), rtol=1e-6)
    for k in (0, 9, 14, 20, 24):
        expected = slow_fall(counts, factor, curves.loss[k])
        np.testing.assert_allclose(curves.fall[:, k], expected, rtol=1e-3 if level == "many" else 1e-6, atol=1e-9)
    for k in (0, 8, 16, 24) if level != "many" else (0, 8, 16):
        expected = slow_rise(counts, factor, curves.gain[:, k], curves.rate)
        np.testing.assert_allclose(curves.rise[:, k], expected, rtol=tolerance)
    assert curves.loss[-1] == 1
    np.testing.assert_allclose(curves.fall[:, -1], np.log1p(counts * factor[:, None]).mean(0), rtol=1e-5)


def test_folds_are_monotone_and_undo_the_curves():
    counts, factor = cells_of(50, 6, [0.0, 0.05, 0.5, 3.0, 20.0, 200.0])
    curves = fold_curves(CellCounts(sp.csr_matrix(counts), factor))
    folds = curves.inverted()
    size = np.geomspace(1e-6, 12, 400)
    shift = np.concatenate([-size[::-1], [0.0], size])
    found = folds.fold(np.tile(shift[:, None], 6).astype(np.float32))
    assert (np.diff(found, axis=0) >= -1e-6).all()
    assert (found[400] == 1).all()
    assert (found >= 0).all()
    assert (found[:401, 0] == 1).all()  # a gene without molecules cannot lose any
    assert (found[0, 1:] == 0).all()  # more than all
    assert (found[401:] > 1).mean() > 0.9
    assert (found[-1] == found[-2]).all()  # beyond the largest rise


@pytest.mark.parametrize("seed", range(3))
def test_folds_bring_the_shift(seed):
    """Looked up and put back into the sums over all outcomes: from small shifts to nearly all that can be lost."""
    rng = np.random.default_rng(seed)
    counts, factor = cells_of(8, 60, rng.choice([0.1, 1.0, 8.0, 50.0], 60), seed=seed)
    curves = fold_curves(CellCounts(sp.csr_matrix(counts), factor))
    full = np.log1p(counts * factor[:, None]).mean(0)
    fall = full * rng.choice([1e-3, 0.02, 0.2, 0.5, 0.7, 0.9, 0.98], 60)
    fold = curves.inverted().fold(-fall[None].astype(np.float32))[0]
    for g in range(60):
        assert slow_fall(counts[:, [g]], factor, 1 - fold[g])[0] == pytest.approx(fall[g], rel=0.02)
    rise = rng.choice([1e-3, 0.02, 0.2, 0.5, 1.0, 2.0], 60)
    fold = curves.inverted().fold(rise[None].astype(np.float32))[0]
    np.testing.assert_allclose(slow_rise(counts, factor, fold - 1, curves.rate), rise, rtol=0.02)


def test_realised_cells_have_the_predicted_mean_shift(fitted):
    """Many labels of the same shift are independent draws; a fall of more than all ends at zero."""
    labels = [f"L{i}" for i in range(20)]
    fitted.shift_[29] = 0.4
    for line in ("x", "y"):
        predicted = fitted.predict(perturbations=labels, cell_types=line)
        source = fitted.adata[predicted.obs["ptrag_source"]].X.toarray()
        change = (predicted.X.toarray() - source).reshape(len(labels), -1, 30).mean(1)  # (labels, G)
        mean, error = change.mean(0), change.std(0, ddof=1) / np.sqrt(len(labels))
        reached = np.maximum(fitted.shift_, -source.mean(0))
        np.testing.assert_array_less(np.abs(mean - reached), 4.5 * error + 0.01 * np.abs(reached) + 1e-6)
        assert (error[fitted.shift_ == 0] == 0).all()
        assert reached[0] > 0 and mean[0] > 0.15


def test_molecules_are_lost_or_added_and_expression_follows(fitted):
    predicted = fitted.predict(perturbations=["A", "B"])
    source = fitted.adata[predicted.obs["ptrag_source"]]
    before, after = source.layers["raw"].toarray(), predicted.layers["counts"].toarray()
    shift = fitted.shift_
    assert (after >= 0).all()
    assert (after == np.rint(after)).all()
    assert (after[:, shift < 0] <= before[:, shift < 0]).all()
    assert (after[:, shift > 0] >= before[:, shift > 0]).all()
    np.testing.assert_array_equal(after[:, shift == 0], before[:, shift == 0])
    x = predicted.X.toarray()
    np.testing.assert_allclose(x, np.log1p(after * source.obs["factor"].to_numpy()[:, None]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(x[after == before], source.X.toarray()[after == before])
    assert predicted.X.format == predicted.layers["counts"].format == "csr"
    assert predicted.X.dtype == predicted.layers["counts"].dtype == np.float32
    assert (predicted.X.data > 0).all()  # a zero is not stored
    assert predicted.X.has_sorted_indices
    assert predicted.uns["ptrag"]["params"]["counts"] is True


def test_no_shift_gives_the_control_cells_bitwise(fitted):
    fitted.shift_ = np.zeros(30)
    predicted = fitted.predict(perturbations="A", seed=5)
    source = fitted.adata[predicted.obs["ptrag_source"]]
    np.testing.assert_array_equal(predicted.X.toarray(), source.X.toarray())
    np.testing.assert_array_equal(predicted.layers["counts"].toarray(), source.layers["raw"].toarray())


def test_rows_that_are_not_predicted_store_nothing(fitted):
    adata = fitted.adata
    ptrag_sc.tl.predict(adata, fitted, perturbation="B", key_added="as_b")
    control = (adata.obs["gene"] == "ctl").to_numpy()
    for key in ("as_b", "as_b_counts"):
        assert adata.obsm[key].shape == adata.shape
        assert adata.obsm[key][~control].nnz == 0
        assert adata.obsm[key][control].nnz > 0
    virtual = fitted.predict(perturbations="B")
    own = virtual[[f"{name}-B" for name in adata.obs_names[control]]]
    np.testing.assert_array_equal(adata.obsm["as_b"][control].toarray(), own.X.toarray())


def test_cells_with_one_source_are_drawn_apart():
    """Twenty perturbed cells of five controls: row i is drawn by its own name."""
    adata = make(n=400)
    control = np.flatnonzero((adata.obs["gene"] == "ctl") & (adata.obs["line"] == "x"))
    other = np.flatnonzero((adata.obs["gene"] == "A") & (adata.obs["line"] == "x"))
    adata = adata[np.concatenate([control[:5], other])].copy()
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, counts_layer="raw")
    model = Fixed(adata).fit()
    model.shift_ = np.full(30, 0.5)
    ptrag_sc.tl.predict(adata, model)
    perturbed = (adata.obs["gene"] == "A").to_numpy()
    assert adata.obs.loc[perturbed, "ptrag_source"].nunique() < perturbed.sum() / 2
    drawn = adata.obsm["ptrag_counts"][perturbed].toarray()
    assert len(np.unique(drawn, axis=0)) == len(drawn)


def whole(predicted):
    """Expression and counts in the order of their names."""
    order = np.argsort(predicted.obs_names)
    return (
        predicted.obs_names[order].tolist(),
        predicted.X[order].toarray(),
        predicted.layers["counts"][order].toarray(),
    )


def assert_same(found, expected):
    assert found[0] == expected[0]
    np.testing.assert_array_equal(found[2], expected[2])
    np.testing.assert_array_equal(found[1], expected[1])


def test_order_batch_mates_and_other_perturbations_change_no_draw(fitted, monkeypatch):
    adata = fitted.adata
    fitted.shifts_ = {"B": -fitted.shift_, "C": 2 * fitted.shift_}
    expected = whole(fitted.predict(perturbations=["A", "B"]))
    order = np.random.default_rng(0).permutation(adata.n_obs)
    assert_same(whole(fitted.predict(adata[order].copy(), perturbations=["A", "B"])), expected)
    more = fitted.predict(perturbations=["C", "B", "D", "A"])
    assert_same(whole(more[more.obs["gene"].isin(["A", "B"])]), expected)
    monkeypatch.setattr(_predictor.Predictor, "_prediction_batch_size", 1)
    monkeypatch.setattr(_realised, "ROWS_AT_ONCE", 7)
    fitted.set_size_ = 9
    assert_same(whole(fitted.predict(perturbations=["A", "B"])), expected)
    parts = [fitted.predict(perturbations=["A", "B"], cell_types=line) for line in ("y", "x")]
    assert_same(whole(anndata.concat(parts)), expected)
    controls = adata[adata.obs["gene"] == "ctl"].copy()
    assert_same(whole(fitted.predict(controls, perturbations=["A", "B"])), expected)
    few = fitted.predict(perturbations="B", n_cells=20)
    rows = pd.Index(expected[0]).get_indexer(whole(few)[0])
    np.testing.assert_array_equal(whole(few)[2], expected[2][rows])


@each_format
def test_pieces_of_a_file_hold_the_same_draws(fitted, tmp_path, suffix, monkeypatch):
    fitted.shifts_ = {"B": -fitted.shift_}
    expected = whole(ptrag_sc.tl.perturb(fitted.adata, fitted, ["A", "B"]))
    monkeypatch.setattr(_run, "CHUNK", 50)
    monkeypatch.setattr(_predictor.Predictor, "_prediction_batch_size", 2)
    fitted.set_size_ = 13
    path = ptrag_sc.tl.perturb(fitted.adata, fitted, ["A", "B"], out=tmp_path / f"cells.{suffix}", progress=False)
    found = anndata.read_h5ad(path) if suffix == "h5ad" else anndata.read_zarr(path)
    assert_same(whole(found), expected)
    assert found.X.format == found.layers["counts"].format == "csr"


def test_annotated_cells_are_drawn_by_their_names(fitted):
    adata = fitted.adata
    order = np.random.default_rng(1).permutation(adata.n_obs)
    permuted = adata[order].copy()
    for each in (adata, permuted):
        ptrag_sc.tl.predict(each, fitted)
    for key in ("ptrag", "ptrag_counts"):
        np.testing.assert_array_equal(permuted.obsm[key].toarray(), adata.obsm[key][order].toarray())


def test_seeds_draw_anew(fitted):
    found = [whole(fitted.predict(perturbations="A", seed=seed)) for seed in (None, 3, 3, 4)]
    assert_same(found[1], found[2])
    for first, second in ((0, 1), (1, 3), (0, 3)):
        assert found[first][0] == found[second][0]
        assert (found[first][2] != found[second][2]).mean() > 0.1


def test_nonnegative_changes_no_counts(fitted):
    plain, clipped = (fitted.predict(perturbations="A", nonnegative=value) for value in (False, True))
    assert_same(whole(clipped), whole(plain))
    assert fitted.predict(perturbations="A", counts=False).X.min() < 0


@pytest.mark.parametrize("value", [True, False])
def test_booleans_of_numpy_and_numbers_choose_the_form_as_those_of_python_do(fitted, value):
    """0 and numpy's False equal False, and are not it."""
    for same in (value, np.bool_(value), int(value)):
        assert fitted.predict(perturbations="A", counts=same).uns["ptrag"]["params"]["counts"] is value
    adata = fitted.adata.copy()
    adata.X = adata.X / np.float32(np.log(2))
    del adata.layers["raw"]
    if value:
        with pytest.raises(ValueError, match=r"Register the raw counts"):
            fitted.predict(adata, perturbations="A", counts=np.True_)


def test_a_cell_without_molecules_can_show_some():
    adata = make()
    name = adata.obs_names[(adata.obs["gene"] == "ctl") & (adata.obs["line"] == "x")][0]
    row = adata.obs_names.get_loc(name)
    for holder in ("X", "raw"):
        matrix = (adata.X if holder == "X" else adata.layers[holder]).tolil()
        matrix[row] = 0
        if holder == "X":
            adata.X = matrix.tocsr()
        else:
            adata.layers[holder] = matrix.tocsr()
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, counts_layer="raw")
    model = Fixed(adata).fit()
    model.shift_ = np.full(30, 1.0)
    predicted = model.predict(perturbations="A", cell_types="x")
    counts = predicted[f"{name}-A"].layers["counts"].toarray().ravel()
    assert counts.sum() > 0
    size = adata.obs.loc[
        (adata.obs["line"] == "x") & (adata.obs["gene"] == "ctl") & (adata.obs_names != name), "factor"
    ]
    expected = np.log1p(counts / (1 / size).mean())
    np.testing.assert_allclose(predicted[f"{name}-A"].X.toarray().ravel(), expected, rtol=1e-4)


def test_a_registered_layer_that_does_not_fit_is_named(caplog):
    adata = make(n=200)
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, counts_layer="raw")
    model = Fixed(adata).fit()
    model.shift_ = np.full(30, 0.5)
    other = adata.copy()
    other.layers["raw"] = other.layers["raw"][::-1].copy()  # of other cells
    with caplog.at_level("WARNING"):
        predicted = model.predict(other, perturbations="A", cell_types="x")
    assert "counts" not in predicted.layers
    assert "Predictions are smooth expression without counts." in caplog.text


def n_significant(first, second):
    """Genes with another distribution, by Wilcoxon's test at a false discovery rate of 5 %."""
    shown = np.ptp(np.concatenate([first, second]), axis=0) > 0
    p = mannwhitneyu(first[:, shown], second[:, shown], axis=0, method="asymptotic").pvalue
    return int((false_discovery_control(p) < 0.05).sum())


def test_shifts_that_nobody_can_see_are_not_seen():
    """Real control cells, 500 of them under a shift of +-.003 in every gene, against 500 others."""
    screen = ptrag_sc.datasets.papalexi()
    labels = screen.obs["perturbation"]
    adata = screen[labels.isin(["non-targeting", "CAV1"])].copy()
    ptrag_sc.PTRAG.setup_anndata(
        adata, perturbation_key="perturbation", control="non-targeting", cell_type_key="cell_type"
    )
    model = Fixed(adata).fit()
    controls = adata[adata.obs["perturbation"] == "non-targeting"].copy()
    beyond, smooth = [], []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        model.shift_ = 0.003 * rng.choice([-1.0, 1.0], adata.n_vars)
        found = {c: model.predict(perturbations="X", n_cells=500, seed=seed, counts=c) for c in (True, False)}
        sources = controls[found[True].obs["ptrag_source"]].X.toarray()
        rest = controls[~controls.obs_names.isin(found[True].obs["ptrag_source"])]
        others = rest[rng.permutation(rest.n_obs)[:500]].X.toarray()
        beyond.append(n_significant(found[True].X.toarray(), others) - n_significant(sources, others))
        smooth.append(n_significant(found[False].X, others))
    assert np.median(beyond) <= 0.01 * adata.n_vars
    assert np.median(smooth) > 0.5 * adata.n_vars  # the test would see it
