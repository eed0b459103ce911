"""Do scores equal a slow evaluation, and depend on nothing that should not matter?"""

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy.spatial.distance import cosine
from scipy.stats import pearsonr, rankdata, ttest_ind

import ptrag_sc
from ptrag_sc.benchmark import evaluate
from ptrag_sc.metrics import DEFAULT_METRICS, METRICS, DifferentialExpression, Reference
from screens import KEYS, make_screen


@pytest.fixture
def halves():
    """Real and predicted: two halves of a screen, no batch composition alike; some perturbed genes are measured."""
    adata = make_screen(n_obs=960)
    adata.var_names = [f"G{i}" if i < 5 else f"gene{i}" for i in range(adata.n_vars)]
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem")
    reference = Reference.from_adata(adata, n_components=10)
    odd = np.random.default_rng(99).random(adata.n_obs) < np.where(adata.obs["gem"] == "b1", 0.7, 0.3)
    return adata[odd].copy(), adata[~odd].copy(), reference, adata


def wide(scores):
    return scores.pivot(index=["perturbation", "cell_type"], columns="metric", values="value")


def slow_scores(real, predicted, adata, line, reference):
    """The definitions of the default metrics for one cell type, cell by cell."""
    obs, x = adata.obs, adata.X.toarray().astype(float)
    t = list(reference.cell_types).index(line)
    plain, centre = x[((obs["line"] == line) & (obs["gene"] == "ctl")).to_numpy()].mean(0), reference.centre[t]

    def control(batch):
        return x[((obs["line"] == line) & (obs["gem"] == batch) & (obs["gene"] == "ctl")).to_numpy()].mean(0)

    def side(cells, gene):
        chosen = cells[((cells.obs["gene"] == gene) & (cells.obs["line"] == line)).to_numpy()]
        dense = chosen.X.toarray().astype(float)
        return dense, np.mean([c - control(b) for c, b in zip(dense, chosen.obs["gem"], strict=True)], 0)

    def distance(a, b):
        norms = [np.linalg.norm(reference.pca_axes @ (u - v)) for u in a for v in b]
        return np.sum(norms) / (len(a) * (len(b) - (a is b)))

    names = sorted(set(obs["gene"]) - {"ctl"})
    sides = {name: (*side(real, name), *side(predicted, name)) for name in names}
    kept = ~adata.var_names.isin([f"G{i}" for i in range(8)])
    found = {}
    for name, (cells, shift, guess, guessed) in sides.items():
        rest = np.concatenate([sides[other][0] for other in names if other != name])
        welch = np.abs(ttest_ind(cells, rest, equal_var=False).statistic)
        weights = ((welch - welch.min()) / (welch.max() - welch.min())) ** 2
        ranks = rankdata([cosine(guessed[kept], sides[other][1][kept]) for other in names])
        own = centre - plain
        found[name, line] = {
            "pearson_delta": pearsonr(guessed, shift).statistic,
            "pearson_delta_pert": pearsonr(guessed - own, shift - own).statistic,
            "pds_cosine": 1 - (ranks[names.index(name)] - 1) / (len(names) - 1),
            "wmse": weights @ (guessed - shift) ** 2 / weights.sum(),
            "effect_slope": guessed @ shift / (shift @ shift),
            "energy_distance": 2 * distance(cells, guess) - distance(cells, cells) - distance(guess, guess),
            "variance_ratio": np.trace(np.cov(guess.T)) / np.trace(np.cov(cells.T)),
        }
    return found


def test_equals_the_slow_evaluation(halves):
    real, predicted, reference, adata = halves
    scores = evaluate(real, predicted, reference=reference)
    table = wide(scores)
    assert tuple(scores["metric"].unique()) == DEFAULT_METRICS
    assert len(table) == 20
    expected = {}
    for line in reference.cell_types:
        expected |= slow_scores(real, predicted, adata, line, reference)
    for condition, row in table.iterrows():
        assert row.to_dict() == pytest.approx(expected[condition], abs=1e-4)
    for row in scores.itertuples():
        counts = [
            ((a.obs["gene"] == row.perturbation) & (a.obs["line"] == row.cell_type)).sum() for a in (real, predicted)
        ]
        assert [row.n_real, row.n_predicted] == counts


def test_tests_of_genes_equal_those_of_one_call_for_all_perturbations(halves):
    """Both sides against the real controls; a perturbed gene does not count for its own perturbation."""
    real, predicted, reference, _ = halves
    names = [name for name, row in METRICS.items() if row.level == "tests"]
    table = wide(evaluate(real, predicted, reference=reference, metrics=names))
    for line in reference.cell_types:
        own = real[(real.obs["line"] == line).to_numpy()]
        guess = predicted[((predicted.obs["line"] == line) & (predicted.obs["gene"] != "ctl")).to_numpy()]
        joint = [own.copy(), anndata.concat([own[(own.obs["gene"] == "ctl").to_numpy()], guess])]
        for side in joint:
            side.obs["gene"] = pd.Categorical(side.obs["gene"])
            options = {"reference": "ctl", "method": "wilcoxon", "tie_correct": True}
            sc.tl.rank_genes_groups(side, "gene", **options)
        for gene in sorted(set(own.obs["gene"]) - {"ctl"}):
            tests = []
            for side in joint:
                found = sc.get.rank_genes_groups_df(side, gene).set_index("names").loc[list(reference.genes)]
                dense = [np.expm1(side[(side.obs["gene"] == g).to_numpy()].X.toarray()).mean(0) for g in (gene, "ctl")]
                lfc = np.log2((dense[0] + 1e-9) / (dense[1] + 1e-9))
                kept = ~np.isin(reference.genes, gene.split("+"))
                tests.append(DifferentialExpression(found["pvals_adj"].to_numpy()[kept], lfc[kept]))
            expected = {name: METRICS[name].function(*tests) for name in names}
            assert table.loc[gene, line].to_dict() == pytest.approx(expected, abs=1e-4, nan_ok=True)
    assert table["de_jaccard"].between(0.05, 0.95).any()


def test_every_metric_gets_what_its_row_says(halves):
    """Metrics without an evaluation of their own above, from slow inputs."""
    real, predicted, reference, _ = halves
    table = wide(evaluate(real, predicted, reference=reference, metrics=METRICS))
    means = {}
    for i, side in enumerate((real, predicted)):
        for gene, line in table.index:
            chosen = side[((side.obs["gene"] == gene) & (side.obs["line"] == line)).to_numpy()]
            own = reference.matched_control(line, chosen.obs["gem"].to_numpy(dtype=object))
            t = list(reference.cell_types).index(line)
            means[i, gene, line] = chosen.X.toarray().mean(0, dtype=float) - own + reference.control[t]
            cells = means.setdefault(("cells", gene, line), [])
            cells.append(chosen.X.toarray().astype(float) @ reference.pca_axes.T)
    for (gene, line), row in table.iterrows():
        x, y = means[0, gene, line], means[1, gene, line]
        others = [np.linalg.norm(means[0, g, k] - y) for g, k in table.index if k == line]
        expected = {
            "mse": np.mean((x - y) ** 2),
            "mae": np.mean(np.abs(x - y)),
            "centroid_accuracy": np.sum(np.array(others) > np.linalg.norm(x - y) + 1e-9) / (len(others) - 1),
            "wasserstein_1": METRICS["wasserstein_1"].function(*means["cells", gene, line]),
            "wasserstein_2": METRICS["wasserstein_2"].function(*means["cells", gene, line]),
            "mmd2": METRICS["mmd2"].function(*means["cells", gene, line]),
        }
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert (table["r2w_delta_pert"] < 1).all()
    assert set(table.columns) == set(METRICS)


def test_identical_cells_have_the_best_values(halves):
    real, _, reference, _ = halves
    scores = evaluate(real, real, reference=reference, metrics=METRICS)
    for name, group in scores.groupby("metric"):
        found = group["value"]
        if METRICS[name].u_statistic:
            assert (found < 0).all()
        else:
            defined = found[np.isfinite(found)]
            np.testing.assert_allclose(defined, METRICS[name].best, atol=1e-6)
            assert len(defined) == len(found) or METRICS[name].level == "tests"
            assert len(defined)
    for row in scores[scores["metric"] == "energy_distance"].itertuples():
        cells = real[((real.obs["gene"] == row.perturbation) & (real.obs["line"] == row.cell_type)).to_numpy()]
        projected = cells.X.toarray() @ reference.pca_axes.T
        within = np.linalg.norm(projected[:, None] - projected[None], axis=-1).sum() / (row.n_real * (row.n_real - 1))
        assert row.value == pytest.approx(-2 * within / row.n_real, abs=1e-4)


def test_order_of_cells_and_genes_and_further_genes_change_nothing(halves):
    real, predicted, reference, _ = halves
    expected = wide(evaluate(real, predicted, reference=reference, metrics=METRICS))
    rng = np.random.default_rng(1)
    shuffled = predicted[rng.permutation(predicted.n_obs), rng.permutation(predicted.n_vars)].copy()
    extra = AnnData(np.full((shuffled.n_obs, 3), 50.0), obs=shuffled.obs[[]], var=pd.DataFrame(index=["x", "y", "z"]))
    wider = anndata.concat([extra, shuffled], axis=1)
    wider.obs = shuffled.obs
    moved = real[rng.permutation(real.n_obs)].copy()
    for sides in ((moved, shuffled), (real, wider), (moved, wider)):
        found = wide(evaluate(*sides, reference=reference, metrics=METRICS))
        pd.testing.assert_frame_equal(found, expected, atol=1e-5)


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
    nothing = ptrag_sc.baselines.NoEffect(screen).fit().predict(perturbations=names, counts=False)
    mean = ptrag_sc.baselines.MeanShift(screen).fit().predict(perturbations=names, counts=False)
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
    one = evaluate(real, predicted[chosen[:1]].copy(), reference=reference, metrics=METRICS)
    assert set(one["n_predicted"]) == {1}
    for row in one.itertuples():
        level = METRICS[row.metric].level
        assert np.isnan(row.value) == (level in ("cells", "tests", "panel"))  # one perturbation has no rank
    few = real[~(real.obs["gene"] == "G4").to_numpy() | (np.arange(real.n_obs) == np.argmax(real.obs["gene"] == "G4"))]
    line = few.obs["line"][few.obs["gene"] == "G4"].item()
    table = wide(evaluate(few.copy(), predicted, reference=reference)).loc["G4", line]
    assert set(table.index[table.isna()]) == {"wmse", "energy_distance", "variance_ratio"}


def test_combinations_pair_in_any_order(halves):
    real, predicted, reference, _ = halves
    expected = evaluate(real, predicted, reference=reference)
    predicted.obs["gene"] = predicted.obs["gene"].astype(str).replace({"G0+G1": "G1+G0", "G2+G3": "G3+G2"})
    pd.testing.assert_frame_equal(evaluate(real, predicted, reference=reference), expected)


def test_rows_that_were_not_predicted_are_left_out(halves):
    """They store nothing, which would be read as cells without expression."""
    real, _, reference, adata = halves
    model = ptrag_sc.baselines.MeanShift(adata).fit()
    ptrag_sc.tl.predict(adata, model)
    whole = AnnData(adata.obsm["ptrag"], obs=adata.obs, var=adata.var)
    some = np.random.default_rng(7).random(adata.n_obs) < 0.5
    other = whole.copy()
    other.X = whole.X.multiply(some[:, None]).tocsr()
    other.X.eliminate_zeros()
    other.obs["ptrag_predicted"] = some
    found = evaluate(real, other, reference=reference)
    pd.testing.assert_frame_equal(found, evaluate(real, whole[some].copy(), reference=reference))
    ptrag_sc.tl.predict(adata, model, perturbation="G0")  # controls alone
    with pytest.raises(ValueError, match="share no perturbed condition"):
        evaluate(real, AnnData(adata.obsm["ptrag"], obs=adata.obs, var=adata.var), reference=reference)


def counted(adata):
    """The same cells as raw counts."""
    return AnnData(np.rint(np.expm1(adata.X.toarray())), obs=adata.obs, var=adata.var)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a: a[:, :-1].copy(), KeyError, "predicted.var_names lacks 1 of 30 genes .*gene29"),
        (lambda a: AnnData(a.X.toarray() * np.nan, obs=a.obs, var=a.var), ValueError, "predicted holds .* NaN"),
        (lambda a: a[(a.obs["gene"] == "ctl").to_numpy()].copy(), ValueError, "share no perturbed condition"),
        (lambda a: a[:0].copy(), ValueError, "The object in predicted holds no cells"),
        (counted, ValueError, r"Expression in predicted holds raw counts .*sc.pp.log1p\(predicted\) first"),
        (lambda a: AnnData(a.X, obs=a.obs[["gene"]], var=a.var), KeyError, "Column 'line' does not occur"),
    ],
)
def test_unusable_predictions_are_refused(halves, change, error, message):
    real, predicted, reference, _ = halves
    with pytest.raises(error) as caught:
        evaluate(real, change(predicted), reference=reference)
    assert caught.match(message.replace("'", r"\\?'"))


def test_counts_are_refused_on_either_side_unless_registered(halves):
    real, predicted, reference, adata = halves
    with pytest.raises(ValueError, match="Expression in real holds raw counts"):
        evaluate(counted(real), predicted, reference=reference)
    with pytest.raises(ValueError, match="Expression in real holds raw counts"):
        evaluate(counted(real), counted(predicted), reference=reference)
    for side in (adata, real, predicted):
        side.layers["counts"] = counted(side).X
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem", layer="counts")
    reference = Reference.from_adata(adata)
    # What is predicted stands in X, whatever layers a copy of real cells still has.
    with pytest.raises(ValueError, match=r"Expression in real looks like raw counts .* registered layer 'counts'"):
        evaluate(real, predicted, reference=reference)
    assert np.isfinite(evaluate(real, counted(predicted), reference=reference)["value"]).all()


def test_predictions_that_are_zero_everywhere_are_a_bad_prediction_but_no_counts(halves):
    real, predicted, reference, _ = halves
    nothing = AnnData(np.zeros(predicted.shape, dtype=np.float32), obs=predicted.obs, var=predicted.var)
    table = wide(evaluate(real, nothing, reference=reference))
    assert np.isfinite(table).all(axis=None)
    np.testing.assert_allclose(table["variance_ratio"], 0)


def test_identical_cells_on_a_side_have_no_variance(halves):
    """Defined: NaN where the ratio to no variance is asked for, finite elsewhere."""
    real, predicted, reference, _ = halves
    still = AnnData(np.tile(real.X[0].toarray(), (real.n_obs, 1)), obs=real.obs, var=real.var)
    table = wide(evaluate(still, predicted, reference=reference))
    assert table["variance_ratio"].isna().all()
    assert np.isfinite(table.drop(columns="variance_ratio")).all(axis=None)
    np.testing.assert_array_equal(wide(evaluate(still, still, reference=reference))["variance_ratio"], 1)


def test_tests_of_genes_need_real_controls(halves):
    """The predictions need none: both sides are tested against the same cells."""
    real, predicted, reference, _ = halves
    bare = [side[(side.obs["gene"] != "ctl").to_numpy()].copy() for side in (real, predicted)]
    assert np.isfinite(evaluate(bare[0], bare[1], reference=reference)["value"]).all()
    assert len(evaluate(real, bare[1], reference=reference, metrics="de_jaccard")) == 20
    message = r"'ctl' does not occur in the 0 control cells of cell type 'K562' in real.obs\['gene'\]"
    with pytest.raises(ValueError, match=message):
        evaluate(bare[0], predicted, reference=reference, metrics=["mse", "de_jaccard"])


def test_other_perturbations_of_the_real_cells_count_for_the_weights(halves):
    real, predicted, reference, _ = halves
    some = predicted[predicted.obs["gene"].isin(["G1", "G2"]).to_numpy()].copy()
    expected = wide(evaluate(real, predicted, reference=reference))["wmse"]
    found = wide(evaluate(real, some, reference=reference))["wmse"]
    assert len(found) == 4
    np.testing.assert_allclose(found, expected.loc[found.index])
    alone = real[real.obs["gene"].isin(["G1", "ctl"]).to_numpy()].copy()
    assert evaluate(alone, some, reference=reference, metrics=["wmse"])["value"].isna().all()


def test_only_what_is_asked_for_is_read_and_computed(halves, monkeypatch):
    real, predicted, reference, _ = halves
    read = []
    rows = ptrag_sc.data.CellReader.rows
    monkeypatch.setattr(ptrag_sc.data.CellReader, "rows", lambda self, i: read.append(len(i)) or rows(self, i))
    n_perturbed = sum(int((side.obs["gene"] != "ctl").sum()) for side in (real, predicted))
    evaluate(real, predicted, reference=reference)
    assert sum(read) == n_perturbed  # each perturbed cell once
    monkeypatch.setattr(Reference, "project", None)
    evaluate(real, predicted, reference=reference, metrics=["mse", "variance_ratio", "pds_cosine"])


def test_a_cell_type_that_the_reference_does_not_know(halves):
    real, predicted, reference, _ = halves
    for side in (real, predicted):
        side.obs["line"] = side.obs["line"].replace({"RPE1": "HeLa"})
    with pytest.raises(KeyError, match=r"HeLa.* does not occur in the reference"):
        evaluate(real, predicted, reference=reference)
