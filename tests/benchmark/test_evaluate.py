"""Do scores equal a slow evaluation, and depend on nothing that should not matter?"""

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.stats import pearsonr

import ptrag_sc
from ptrag_sc.benchmark import evaluate
from ptrag_sc.metrics import METRICS, Reference
from screens import KEYS, make_screen


@pytest.fixture
def halves():
    """Real and predicted: two halves of a screen, no batch composition alike."""
    adata = make_screen(n_obs=960)
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem")
    reference = Reference.from_adata(adata, n_components=10)
    odd = np.random.default_rng(99).random(adata.n_obs) < np.where(adata.obs["gem"] == "b1", 0.7, 0.3)
    return adata[odd].copy(), adata[~odd].copy(), reference, adata


def wide(scores):
    return scores.pivot(index=["perturbation", "cell_type"], columns="metric", values="value")


def slow_scores(real, predicted, adata, gene, line, centre, components):
    """The definitions, cell by cell; controls of the whole screen."""
    obs, x = adata.obs, adata.X.toarray().astype(float)

    def control(**labels):
        chosen = np.logical_and.reduce([obs[key] == value for key, value in labels.items()])
        return x[chosen & (obs["gene"] == "ctl")].mean(0)

    def side(cells):
        chosen = cells[((cells.obs["gene"] == gene) & (cells.obs["line"] == line)).to_numpy()]
        dense = chosen.X.toarray().astype(float)
        return dense, np.mean([c - control(line=line, gem=b) for c, b in zip(dense, chosen.obs["gem"], strict=True)], 0)

    (cells, shift), (guess, guessed) = side(real), side(predicted)
    own = centre[line] - control(line=line)

    def distance(a, b):
        norms = [np.linalg.norm(components @ (u - v)) for u in a for v in b]
        return np.sum(norms) / (len(a) * (len(b) - (a is b)))

    return {
        "pearson_delta": pearsonr(guessed, shift).statistic,
        "pearson_delta_pert": pearsonr(guessed - own, shift - own).statistic,
        "effect_slope": guessed @ shift / (shift @ shift),
        "energy_distance": 2 * distance(cells, guess) - distance(cells, cells) - distance(guess, guess),
    }


def test_equals_the_slow_evaluation(halves):
    real, predicted, reference, adata = halves
    scores = evaluate(real, predicted, reference=reference)
    table = wide(scores)
    assert set(table.columns) == set(METRICS)
    assert len(table) == 20
    centre = dict(zip(reference.cell_types, reference.centre, strict=True))
    for (gene, line), row in table.iterrows():
        expected = slow_scores(real, predicted, adata, gene, line, centre, reference.pca_axes)
        assert row.to_dict() == pytest.approx(expected, abs=1e-4)
    for row in scores.itertuples():
        counts = [
            ((a.obs["gene"] == row.perturbation) & (a.obs["line"] == row.cell_type)).sum() for a in (real, predicted)
        ]
        assert [row.n_real, row.n_predicted] == counts


def test_identical_cells_have_the_best_values(halves):
    real, _, reference, _ = halves
    scores = evaluate(real, real, reference=reference)
    for name, group in scores[scores["metric"] != "energy_distance"].groupby("metric"):
        np.testing.assert_allclose(group["value"], METRICS[name].best, atol=1e-6)
    for row in scores[scores["metric"] == "energy_distance"].itertuples():
        cells = real[((real.obs["gene"] == row.perturbation) & (real.obs["line"] == row.cell_type)).to_numpy()]
        projected = cells.X.toarray() @ reference.pca_axes.T
        within = np.linalg.norm(projected[:, None] - projected[None], axis=-1).sum() / (row.n_real * (row.n_real - 1))
        assert row.value == pytest.approx(-2 * within / row.n_real, abs=1e-4)


def test_order_of_cells_and_genes_and_further_genes_change_nothing(halves):
    real, predicted, reference, _ = halves
    expected = wide(evaluate(real, predicted, reference=reference))
    rng = np.random.default_rng(1)
    shuffled = predicted[rng.permutation(predicted.n_obs), rng.permutation(predicted.n_vars)].copy()
    extra = AnnData(np.full((shuffled.n_obs, 3), 50.0), obs=shuffled.obs[[]], var=pd.DataFrame(index=["x", "y", "z"]))
    wider = anndata.concat([extra, shuffled], axis=1)
    wider.obs = shuffled.obs
    moved = real[rng.permutation(real.n_obs)].copy()
    for sides in ((moved, shuffled), (real, wider), (moved, wider)):
        pd.testing.assert_frame_equal(wide(evaluate(*sides, reference=reference)), expected, atol=1e-5)


def test_each_side_is_measured_from_controls_of_its_own_batches():
    """Real cells of batch b2, predictions of batch b1: the batch effect is no error of the prediction."""
    rng = np.random.default_rng(0)
    base, batch_effect, shift = rng.gamma(2, size=(3, 12))
    obs = pd.DataFrame({"gene": ["ctl"] * 8 + ["A"] * 8 + ["B"] * 8, "line": "x", "gem": ["b1", "b2"] * 12})
    obs = obs[(obs["gene"] != "A") | (obs["gem"] == "b2")].set_index(np.arange(20).astype(str))
    x = (
        base
        + (obs["gem"] == "b2").to_numpy()[:, None] * batch_effect
        + (obs["gene"] == "A").to_numpy()[:, None] * shift
    )
    adata = AnnData(x.astype(np.float32), obs=obs)
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem")
    reference = Reference.from_adata(adata)
    predicted = AnnData(np.tile(base + shift, (4, 1)).astype(np.float32), obs=obs[obs["gene"] == "A"].assign(gem="b1"))
    names = ["pearson_delta", "pearson_delta_pert", "effect_slope"]
    np.testing.assert_allclose(evaluate(adata, predicted, reference=reference, metrics=names)["value"], 1, atol=1e-5)
    predicted.obs["gem"] = "b2"
    assert evaluate(adata, predicted, reference=reference, metrics="effect_slope")["value"].item() != pytest.approx(1)


def test_predictions_of_any_model_need_no_batch(halves):
    """Without the column a side is measured from the mean control of its cell type."""
    real, predicted, reference, adata = halves
    bare = AnnData(predicted.X.toarray(), obs=predicted.obs[["gene", "line"]], var=predicted.var[[]])
    found = wide(evaluate(real, bare, reference=reference))
    with_batch = wide(evaluate(real, predicted, reference=reference))
    pd.testing.assert_series_equal(found["energy_distance"], with_batch["energy_distance"])
    for (gene, line), value in found["effect_slope"].items():
        guess, control = (
            a.X[((a.obs["gene"] == name) & (a.obs["line"] == line)).to_numpy()].mean(0)
            for a, name in ((bare, gene), (adata, "ctl"))
        )
        guess, control = np.ravel(guess), np.ravel(control)
        own = real[((real.obs["gene"] == gene) & (real.obs["line"] == line)).to_numpy()]
        shift = own.X.toarray().mean(0) - reference.matched_control(line, own.obs["gem"].to_numpy(dtype=object))
        assert value == pytest.approx((guess - control) @ shift / (shift @ shift), abs=1e-4)


def test_baselines_score_what_theory_says(screen):
    reference = Reference.from_adata(screen)
    names = [f"G{i}" for i in range(8)]
    nothing = ptrag_sc.baselines.NoEffect(screen).fit().predict(perturbations=names)
    mean = ptrag_sc.baselines.MeanShift(screen).fit().predict(perturbations=names)
    nothing, mean = (wide(evaluate(screen, p, reference=reference)) for p in (nothing, mean))
    np.testing.assert_array_equal(nothing[["pearson_delta"]], 0)
    np.testing.assert_allclose(nothing["effect_slope"], 0, atol=1e-6)
    np.testing.assert_array_equal(mean["pearson_delta_pert"], 0)
    assert (mean["pearson_delta"] != 0).all()


def test_choice_of_metrics(halves):
    real, predicted, reference, _ = halves
    some = evaluate(real, predicted, reference=reference, metrics=["effect_slope", "energy_distance"])
    assert list(some["metric"].unique()) == ["effect_slope", "energy_distance"]
    one = evaluate(real, predicted, reference=reference, metrics="effect_slope")
    pd.testing.assert_frame_equal(one, some[some["metric"] == "effect_slope"].reset_index(drop=True))
    assert list(one.columns) == ["perturbation", "cell_type", "metric", "value", "n_real", "n_predicted"]
    with pytest.raises(KeyError, match=r"pearson_detla.* is not in METRICS \(closest: .*pearson_delta"):
        evaluate(real, predicted, reference=reference, metrics=["pearson_detla"])


def test_one_cell_has_means_but_no_distribution(halves):
    real, predicted, reference, _ = halves
    chosen = np.flatnonzero((predicted.obs["gene"] == "G4") & (predicted.obs["line"] == "K562"))
    table = wide(evaluate(real, predicted[chosen[:1]].copy(), reference=reference)).loc[("G4", "K562")]
    assert np.isnan(table["energy_distance"])
    assert np.isfinite(table.drop("energy_distance")).all()


def test_combinations_pair_in_any_order(halves):
    real, predicted, reference, _ = halves
    expected = evaluate(real, predicted, reference=reference)
    predicted.obs["gene"] = predicted.obs["gene"].astype(str).replace({"G0+G1": "G1+G0", "G2+G3": "G3+G2"})
    pd.testing.assert_frame_equal(evaluate(real, predicted, reference=reference), expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a: a[:, :-1].copy(), KeyError, "predicted.var_names lacks 1 of 30 genes .*gene29"),
        (lambda a: AnnData(a.X.toarray() * np.nan, obs=a.obs, var=a.var), ValueError, "predicted holds .* NaN"),
        (lambda a: a[(a.obs["gene"] == "ctl").to_numpy()].copy(), ValueError, "share no perturbed condition"),
    ],
)
def test_unusable_predictions_are_refused(halves, change, error, message):
    real, predicted, reference, _ = halves
    with pytest.raises(error, match=message):
        evaluate(real, change(predicted), reference=reference)


def test_a_cell_type_that_the_reference_does_not_know(halves):
    real, predicted, reference, _ = halves
    for side in (real, predicted):
        side.obs["line"] = side.obs["line"].replace({"RPE1": "HeLa"})
    with pytest.raises(KeyError, match=r"HeLa.* does not occur in the reference"):
        evaluate(real, predicted, reference=reference)
