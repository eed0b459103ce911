"""Are ceilings made from one half of a condition's cells, and scored against the other?"""

import numpy as np
import pytest
from scipy.stats import ttest_ind

import ptrag_sc
from ptrag_sc.benchmark import evaluate
from ptrag_sc.benchmark._ceilings import interpolated_duplicate, split_half
from screens import KEYS, make_screen

both = pytest.mark.parametrize("ceiling", [split_half, interpolated_duplicate])
TEST = ("G0", "G4", "G0+G1")


def screen(change=None, **keys):
    adata = make_screen(n_obs=700)
    held_out = adata.obs["gene"].isin(TEST) & (adata.obs["line"] == "RPE1")
    adata.obs["split"] = np.where(held_out, "test", "train")
    adata = adata if change is None else change(adata)
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem", split_key="split", **keys)
    return adata


def of(adata, gene, line="RPE1"):
    return ((adata.obs["gene"] == gene) & (adata.obs["line"] == line)).to_numpy()


@both
def test_halves_are_disjoint_and_complete(ceiling):
    adata = screen()
    real, predicted = ceiling(adata, 3)
    held_out = adata.obs_names[adata.obs["split"] == "test"]
    controls = adata.obs_names[adata.obs["gene"] == "ctl"]
    assert set(real.obs_names) | set(predicted.obs_names) == set(held_out) | set(controls)
    assert not set(real.obs_names) & set(predicted.obs_names)
    assert set(controls) <= set(real.obs_names)
    for gene in TEST:
        assert of(real, gene).sum() - of(predicted, gene).sum() == of(adata, gene).sum() % 2
    np.testing.assert_array_equal(real.X.toarray(), adata[real.obs_names].X.toarray())
    assert list(predicted.var_names) == list(adata.var_names)


def test_a_duplicate_is_the_other_half_as_it_is():
    adata = screen()
    predicted = split_half(adata, 0).predicted
    np.testing.assert_array_equal(predicted.X.toarray(), adata[predicted.obs_names].X.toarray())


@both
def test_halves_depend_on_names_and_seed_only(ceiling):
    adata = screen()
    order = np.random.default_rng(0).permutation(adata.n_obs)
    first, shuffled, again, other = (
        ceiling(a, s) for a, s in ((adata, 1), (adata[order].copy(), 1), (adata, 1), (adata, 2))
    )
    assert set(first.predicted.obs_names) == set(shuffled.predicted.obs_names) == set(again.predicted.obs_names)
    assert set(first.predicted.obs_names) != set(other.predicted.obs_names)
    dense = [np.asarray(h.predicted[first.predicted.obs_names].to_df()) for h in (first, shuffled)]
    np.testing.assert_allclose(*dense, atol=1e-5)


def slow_interpolation(adata, names, real_mean_shift):
    """Mean of interpolated cells, gene by gene."""
    x, obs = adata.to_df().astype(float), adata.obs
    control = x[obs["gene"] == "ctl"].groupby([obs["line"], obs["gem"]], observed=True).mean()
    matched = np.stack([control.loc[(line, gem)] for line, gem in zip(obs["line"], obs["gem"], strict=True)])
    residual = x - matched
    rest = residual[(obs["gene"] != "ctl") & (obs["split"] == "train") & (obs["line"] == "RPE1")]
    p = np.array([ttest_ind(residual.loc[names, g], rest[g], equal_var=False).pvalue for g in x])
    order = np.argsort(p)
    adjusted, smallest = np.empty_like(p), 1.0
    for rank in range(len(p), 0, -1):
        smallest = min(smallest, p[order[rank - 1]] * len(p) / rank)
        adjusted[order[rank - 1]] = smallest
    own = x.loc[names].mean(0).to_numpy()
    mean = matched[adata.obs_names.get_indexer(names)].mean(0) + real_mean_shift
    return (1 - adjusted) * own + adjusted * mean, adjusted


@pytest.mark.parametrize("gene", TEST)
def test_interpolation_equals_a_slow_one(gene):
    adata = screen()
    predicted = interpolated_duplicate(adata, 0).predicted
    chosen = of(predicted, gene)
    fitted = ptrag_sc.baselines.MeanShift(adata).fit()
    expected, adjusted = slow_interpolation(adata, predicted.obs_names[chosen], fitted.of_type_["RPE1"])
    np.testing.assert_allclose(predicted.X[chosen].mean(0), expected, atol=1e-5)
    assert adjusted.min() < 0.05 < 0.5 < adjusted.max()
    duplicate = adata[predicted.obs_names[chosen]].X.toarray()
    np.testing.assert_allclose(predicted.X[chosen].std(0), duplicate.std(0), atol=1e-5)


@pytest.mark.filterwarnings(
    "ignore:Precision loss occurred:RuntimeWarning"
)  # of scipy, as two cells can be equal in a gene
def test_two_cells_on_each_side_are_tested():
    def few(adata):
        rows = np.flatnonzero(of(adata, "G4"))
        return adata[np.delete(np.arange(adata.n_obs), rows[4:])].copy()

    adata = screen(few)
    predicted = interpolated_duplicate(adata, 0).predicted
    chosen = of(predicted, "G4")
    assert chosen.sum() == 2
    fitted = ptrag_sc.baselines.MeanShift(adata).fit()
    expected, adjusted = slow_interpolation(adata, predicted.obs_names[chosen], fitted.of_type_["RPE1"])
    np.testing.assert_allclose(predicted.X[chosen].mean(0), expected, atol=1e-5)
    assert adjusted.min() < 0.9


def test_two_cells_leave_the_mean():
    """One cell on each side: no variance, no test, hence the mean training shift."""

    def few(adata):
        rows = np.flatnonzero(of(adata, "G4"))
        return adata[np.delete(np.arange(adata.n_obs), rows[2:])].copy()

    adata = screen(few)
    predicted = interpolated_duplicate(adata, 0).predicted
    (row,) = np.flatnonzero(of(predicted, "G4"))
    gem = predicted.obs["gem"].iloc[row]
    control = adata[of(adata, "ctl") & (adata.obs["gem"] == gem).to_numpy()].X.toarray().mean(0)
    expected = control + ptrag_sc.baselines.MeanShift(adata).fit().of_type_["RPE1"]
    np.testing.assert_allclose(predicted.X[row], expected, atol=1e-5)


def test_a_held_out_cell_type_takes_the_mean_of_the_others():
    def hold_out(adata):
        adata.obs["split"] = np.where(adata.obs["line"] == "RPE1", "test", "train")
        rows = np.flatnonzero(of(adata, "G4"))
        return adata[np.delete(np.arange(adata.n_obs), rows[2:])].copy()

    adata = screen(hold_out)
    predicted = interpolated_duplicate(adata, 0).predicted
    (row,) = np.flatnonzero(of(predicted, "G4"))
    gem = predicted.obs["gem"].iloc[row]
    control = adata[of(adata, "ctl") & (adata.obs["gem"] == gem).to_numpy()].X.toarray().mean(0)
    expected = control + ptrag_sc.baselines.MeanShift(adata).fit().overall_
    np.testing.assert_allclose(predicted.X[row], expected, atol=1e-5)


@both
def test_conditions_of_one_cell_are_left_out(ceiling, caplog):
    def one(adata):
        rows = np.flatnonzero(of(adata, "G4"))
        return adata[np.delete(np.arange(adata.n_obs), rows[1:])].copy()

    real, predicted = ceiling(screen(one), 0)
    assert "Left out 1 conditions of a single cell, which has no halves: 'G4 in RPE1'" in caplog.text
    assert not of(real, "G4").any()
    assert not of(predicted, "G4").any()


@both
def test_a_registered_layer_is_predicted(ceiling):
    def in_layer(adata):
        adata.layers["log"] = adata.X.copy()
        adata.X = adata.X * 2
        return adata

    expected = ceiling(screen(), 0).predicted.to_df()
    found = ceiling(screen(in_layer, layer="log"), 0).predicted
    assert not found.layers
    np.testing.assert_allclose(found.to_df(), expected, atol=1e-6)


@both
def test_scores_of_a_ceiling_are_high(ceiling):
    adata = screen()
    real, predicted = ceiling(adata, 0)
    reference = ptrag_sc.metrics.Reference.from_adata(adata)
    scores = evaluate(real, predicted, reference=reference, metrics=["pearson_delta"])
    assert set(scores["perturbation"]) == set(TEST)
    assert (scores["value"] > 0.7).all()


@both
def test_no_split_means_all_conditions(ceiling):
    adata = make_screen(n_obs=700)
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem")
    real, predicted = ceiling(adata, 0)
    assert real.n_obs + predicted.n_obs == adata.n_obs
    assert predicted.obs[["gene", "line"]].drop_duplicates().shape[0] == 20


@both
def test_nothing_to_halve_is_an_error(ceiling):
    with pytest.raises(ValueError, match=r"holds no condition 'val' of two cells or more"):
        ceiling(screen(), 0, split="val")
    with pytest.raises(ValueError, match="was not set up"):
        ceiling(make_screen(), 0)


def test_interpolation_needs_training_conditions():
    def all_test(adata):
        adata.obs["split"] = "test"
        return adata

    with pytest.raises(ValueError, match="has no training condition"):
        interpolated_duplicate(screen(all_test), 0)
