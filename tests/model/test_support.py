"""Does a prediction say what it rests on, and do its expected errors hold on conditions that nobody has seen?"""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from anndata import read_h5ad

import ptrag_sc
from ptrag_sc.model._calibration import FEATURES, OUTCOMES, PENALTIES, features_of, half_width
from ptrag_sc.model._support import CONDITION, Calibration, support_table
from screens import KEYS, make_null_screen, make_screen, train_small


def made_up(n, seed=0, noise=0.1):
    """Return conditions whose errors follow from what they rest on, up to noise."""
    rng = np.random.default_rng(seed)
    support = pd.DataFrame(
        {
            "perturbation": [f"G{i}" for i in range(n)],
            "cell_type": "t",
            "n_experiments": 5,
            "effective_number": rng.uniform(1, 30, n),
            "weight_own": rng.uniform(0, 0.5, n),
            "similarity": rng.uniform(0, 1, n),
            "similarity_response": np.where(rng.random(n) < 0.2, np.nan, rng.uniform(0, 1, n)),
            "strength": rng.lognormal(size=n),
        }
    )
    signal = 0.3 * support["similarity"] + 0.1 * np.log(support["strength"]) + 0.2
    outcomes = {"pearson_delta": signal, "energy_distance": 1 - signal}
    observed = support[CONDITION].assign(**{k: v + noise * rng.normal(size=n) for k, v in outcomes.items()})
    return support, observed


def slow_ridge(x, y, penalty, new):
    """Return what a ridge regression with an intercept, without a penalty of its own, predicts for new rows."""
    center, mean = x.mean(0), y.mean()
    products = (x - center).T @ (x - center) + penalty * np.eye(x.shape[1])
    return mean + (new - center) @ np.linalg.solve(products, (x - center).T @ (y - mean))


def slow_regression(x, y):
    """Return how one outcome follows, with the largest penalty within a standard error of the best one."""
    center, scale, rows = x.mean(0), x.std(0), np.arange(len(x))
    z, base = (x - center) / scale, np.linalg.eigvalsh(np.cov(x.T, ddof=0) / np.outer(scale, scale)).mean() * len(x)
    penalties, errors = [p * base for p in PENALTIES[:-1]] + [1e12], []
    for penalty in penalties:
        left = [slow_ridge(z[rows != i], y[rows != i], penalty, z[i]) for i in rows]
        errors.append((left - y) ** 2)
    behind = np.array(errors) - errors[np.mean(errors, axis=1).argmin()]
    best = np.flatnonzero(behind.mean(1) <= behind.std(1, ddof=1) / np.sqrt(len(x)))[-1]
    return lambda new: slow_ridge(z, y, penalties[best], (new - center) / scale)


@pytest.mark.parametrize("n_types", [1, 2])
def test_every_condition_is_expected_from_all_other_perturbations(n_types):
    support, observed = made_up(12)
    names = {"perturbation": [f"G{i // n_types}" for i in range(12)], "cell_type": ["t", "u"] * 6}
    support, observed = support.assign(**names), observed.assign(**names)
    found = Calibration.fit(support, observed)
    x, y = features_of(support), observed[list(OUTCOMES)].to_numpy()
    for o, name in enumerate(OUTCOMES):
        for row in range(12):
            other = np.array(names["perturbation"]) != names["perturbation"][row]
            expected = slow_regression(x[other], y[other, o])(x[[row]])[0]
            assert found.conditions[f"expected_{name}"].iloc[row] == pytest.approx(expected, abs=1e-8)
        expected = slow_regression(x, y[:, o])(x)
        np.testing.assert_allclose(found.expected(support)[f"expected_{name}"], expected, atol=1e-8)


@pytest.mark.slow
def test_intervals_cover_what_they_promise_and_are_narrower_than_withoutfeatures_of():
    covered, widths = {name: [] for name in OUTCOMES}, []
    for seed in range(20):
        support, observed = made_up(260, seed)
        known, new = support.index < 60, support.index >= 60
        expected = Calibration.fit(support[known], observed[known]).expected(support[new])
        for name in OUTCOMES:
            truth = observed.loc[new, name]
            covered[name].append(truth.between(expected[f"{name}_low"], expected[f"{name}_high"]).mean())
        widths.append((expected["energy_distance_high"] - expected["energy_distance_low"]).iloc[0] / 2)
        assert np.corrcoef(expected["expected_pearson_delta"], observed.loc[new, "pearson_delta"])[0, 1] > 0.6
    assert all(0.86 < np.mean(values) < 0.95 for values in covered.values())
    assert np.mean(widths) < 0.8 * 1.645 * np.std(observed["energy_distance"])


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_intervals_from_ten_conditions_cover_what_they_promise_too(noise):
    covered = []
    for seed in range(40):
        support, observed = made_up(110, seed, noise)
        known, new = support.index < 10, support.index >= 10
        expected = Calibration.fit(support[known], observed[known]).expected(support[new])
        low, high = (expected[f"energy_distance_{end}"] for end in ("low", "high"))
        kept = low.notna()  # one in twenty is unlike the ten
        covered.append(observed.loc[new, "energy_distance"].between(low, high)[kept].mean())
    assert 0.86 < np.mean(covered) < 0.95


def test_conditions_of_one_perturbation_are_not_taken_for_independent():
    support, observed = made_up(16)
    alone = Calibration.fit(support, observed)
    pairs = np.repeat([f"G{i}" for i in range(8)], 2)
    types = ["t", "u"] * 8
    both = Calibration.fit(*(x.assign(perturbation=pairs, cell_type=types) for x in (support, observed)))
    assert np.isfinite(half_width(alone.conditions, "pearson_delta"))
    assert np.isinf(half_width(both.conditions, "pearson_delta"))  # eight perturbations


def test_too_few_validation_conditions_promise_nothing():
    support, observed = made_up(9)
    few, enough = (Calibration.fit(support[:n], observed[:n]).expected(support[:n]) for n in (8, 9))
    assert (few["pearson_delta_low"] == -1).all() and few["abstain"].all()
    assert set(few["reason"]) == {"too few validation conditions for an interval"}
    assert np.isinf(few["energy_distance_high"]).all()
    assert (enough["pearson_delta_low"] > -1).all()
    one = Calibration.fit(support[:1], observed[:1]).expected(support)
    assert one["expected_pearson_delta"].iloc[0] == pytest.approx(observed["pearson_delta"].iloc[0])
    assert one["expected_pearson_delta"].iloc[1:].isna().all() and one["abstain"].all()


def test_what_is_unlike_all_validation_conditions_has_no_expected_error():
    support, observed = made_up(30, noise=0.01)
    fitted = Calibration.fit(support, observed)
    assert not fitted.expected(support)["abstain"].all()
    margin = 0.5 * np.ptp(support["similarity"])
    new = support.iloc[[0, 0, 0, 0, 0]].assign(
        perturbation=[f"new{i}" for i in range(5)],
        cell_type=["t", "donor", "t", "t", "t"],
        similarity=support["similarity"].max() + np.array([0.0, 0.0, 0.99 * margin, 1.01 * margin, -3.0]),
        similarity_response=0.5,
    )
    found = fitted.expected(new)
    unknown = np.array([False, True, False, True, True])
    columns = [f"{prefix}{name}{end}" for name in OUTCOMES for prefix, end in (("expected_", ""), ("", "_low"))]
    assert (found[columns].isna().all(axis=1) == unknown).all()
    assert (found[columns].isna().any(axis=1) == unknown).all()
    assert found["abstain"][unknown].all()
    words = [reason.split(" ")[0] for reason in found["reason"]]
    assert [words[i] for i in (1, 3, 4)] == ["no", "evidence", "evidence"]
    assert ((found["reason"] == "") == ~found["abstain"]).all()
    assert found["expected_pearson_delta"].dropna().between(-1, 1).all()
    assert found.sort_values("expected_pearson_delta", ascending=False)["expected_pearson_delta"].notna().iloc[0]


def test_expected_errors_are_values_that_their_metric_can_have():
    support, observed = made_up(30, noise=0.0)
    steep = observed.assign(pearson_delta=2 * support["similarity"] - 1, energy_distance=1 - support["similarity"])
    nearer = support.assign(perturbation=support["perturbation"] + "x", similarity=support["similarity"] + 0.4)
    found = Calibration.fit(support, steep).expected(nearer)
    assert found["expected_pearson_delta"].max() == 1.0 and found["expected_energy_distance"].min() == 0.0
    assert found[["pearson_delta_low", "pearson_delta_high"]].stack().between(-1, 1).all()
    for name in OUTCOMES:
        assert (found[f"{name}_low"] <= found[f"expected_{name}"]).all()
        assert (found[f"{name}_high"] >= found[f"expected_{name}"]).all()


def test_what_a_condition_rests_on():
    nan = np.nan
    table = pd.DataFrame(
        [
            ("A", "t", "A", nan, nan, 0.5),
            ("A", "t", "B", 0.9, 0.2, 0.5),
            ("A", "t", "C", 0.3, 0.7, 0.5),
            ("A", "t", "D", 0.1, nan, 0.0),
        ],
        columns=[*CONDITION, "candidate", "similarity", "similarity_response", "weight"],
    )
    strength = pd.DataFrame({"perturbation": ["A", "Z"], "cell_type": "t", "strength": [2.0, 0.0]})
    found = support_table(table, strength)
    row, bare = found.iloc[0], found.iloc[1]
    assert (row["n_experiments"], row["similarity"], row["similarity_response"], row["strength"]) == (3, 0.9, 0.7, 2.0)
    assert row["effective_number"] == pytest.approx(3)
    assert row["weight_own"] == pytest.approx(1 / 3)
    assert (bare["n_experiments"], bare["effective_number"]) == (0, 0.0) and np.isnan(bare["similarity"])
    assert np.isfinite(features_of(found)).all() and features_of(found).shape == (2, len(FEATURES))


@pytest.fixture(scope="module")
def screen():
    adata = make_screen(n_obs=1200)
    ptrag_sc.pp.split(
        adata, perturbation_key="gene", control="ctl", cell_type_key="line", test_fraction=0.2, val_fraction=0.25
    )
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem", split_key="split")
    return adata


@pytest.mark.parametrize(
    "options",
    [{"memory": "response"}, pytest.param({"memory": "response", "retrieval": "none"}, marks=pytest.mark.slow), {}],
)
def test_predictions_carry_their_support(screen, options, tmp_path):
    model = train_small(screen, max_epochs=2, **options)
    virtual = ptrag_sc.tl.perturb(screen, model, ["G0", "G5"])
    support = virtual.uns["ptrag"]["support"]
    assert support[CONDITION].drop_duplicates().shape[0] == len(support) == 4
    known = support[support["expected_pearson_delta"].notna()]
    assert known["expected_pearson_delta"].between(-1, 1).all()
    assert (known["energy_distance_low"] <= known["expected_energy_distance"]).all()
    assert support["abstain"].all()  # too few validation conditions
    val = {tuple(x) for x in model.split_.loc[model.split_["split"] == "val", CONDITION].to_numpy()}
    assert {tuple(x) for x in virtual.uns["ptrag"]["support_calibration"][CONDITION].to_numpy()} == val
    model.save(tmp_path / "model")
    again = ptrag_sc.PTRAG.load(tmp_path / "model", screen, accelerator="cpu")
    same = ptrag_sc.tl.perturb(screen, again, ["G0", "G5"])
    pd.testing.assert_frame_equal(same.uns["ptrag"]["support"], support)
    virtual.write(tmp_path / "virtual.h5ad")
    assert read_h5ad(tmp_path / "virtual.h5ad").uns["ptrag"]["support"].shape == support.shape


def test_observed_errors_are_those_that_evaluate_gives(screen):
    """Two batches: the controls of both sides are matched to them."""
    model = train_small(screen, max_epochs=2, memory="response")
    conditions = model.support_.conditions
    # Others are singles of combinations, which calibration does not show them.
    conditions = conditions[~conditions["perturbation"].isin(["G0", "G1", "G2", "G3"])]
    predicted = model.predict(screen, perturbations=conditions["perturbation"].unique(), counts=False)
    reference = ptrag_sc.metrics.Reference.from_adata(screen, controls="split")
    scores = ptrag_sc.benchmark.evaluate(screen, predicted, reference=reference, metrics="pearson_delta")
    both = conditions.merge(scores, on=CONDITION)
    assert len(both) == len(conditions) > 1
    np.testing.assert_allclose(both["pearson_delta"], both["value"], atol=1e-5)


def test_a_cell_type_with_one_control_is_left_out_of_the_calibration(screen):
    controls = np.flatnonzero((screen.obs["gene"] == "ctl") & (screen.obs["line"] == "RPE1"))
    adata = screen[np.setdiff1d(np.arange(screen.n_obs), controls[1:])].copy()
    adata.uns = {"gene_embedding": adata.uns["gene_embedding"]}
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, split_key="split")
    model = train_small(adata, max_epochs=1, memory="response")
    assert set(model.support_.conditions["cell_type"]) == {"K562"}


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["response", None])
def test_without_any_effect_the_model_abstains(memory):
    """Few controls, whose noise is in the predicted and in the observed shift."""
    expected, abstained = [], []
    for seed in range(3):
        adata = make_null_screen(seed)
        model = train_small(adata, max_epochs=1, memory=memory)
        names = sorted(adata.obs.loc[adata.obs["split"] == "test", "gene"].unique())
        virtual = ptrag_sc.tl.perturb(adata, model, [name for name in names if name != "ctl"])
        support = virtual.uns["ptrag"]["support"]
        expected.append(support["expected_pearson_delta"].mean())
        abstained.append(support["abstain"].mean())
    assert np.mean(expected) < 0.1 and np.mean(abstained) > 0.9
    # Without a memory one epoch is too few for the noise of the controls to be learned: see control_halves.
    assert memory is None or np.mean(expected) > -0.1


def test_without_validation_conditions_nothing_is_expected(screen):
    adata = screen[(screen.obs["split"] != "val").to_numpy()].copy()
    adata.uns = {"gene_embedding": adata.uns["gene_embedding"]}
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem", split_key="split")
    model = train_small(adata, max_epochs=1, memory="response")
    virtual = ptrag_sc.tl.perturb(adata, model, "G0")
    assert "abstain" not in virtual.uns["ptrag"]["support"]
    with pytest.raises(KeyError, match=r"no validation condition .* ptrag_sc.pp.split\(val_fraction="):
        ptrag_sc.pl.support(virtual)


def test_the_plot_shows_validation_conditions_and_predictions(screen):
    mpl.use("agg")
    model = train_small(screen, max_epochs=2, memory="response")
    virtual = ptrag_sc.tl.perturb(screen, model, ["G0", "G5"])
    for metric in OUTCOMES:
        ax = ptrag_sc.pl.support(virtual, metric=metric)
        points = next(line for line in ax.lines if line.get_label() == "validation condition")
        np.testing.assert_allclose(points.get_ydata(), virtual.uns["ptrag"]["support_calibration"][metric])
        shown = sum(len(line.get_xdata()) for line in ax.lines if line.get_label().startswith("predicted"))
        known = virtual.uns["ptrag"]["support"][f"expected_{metric}"].notna()
        assert shown == known.sum() > 0
        labels = [text.get_text() for text in ax.get_legend().get_texts()]
        assert (f"predicted, no expectation ({(~known).sum()})" in labels) == (not known.all())
        if metric == "pearson_delta":
            assert ax.get_xlim() == ax.get_ylim() == (-1, 1)
        assert "energy distance" in ax.get_xlabel() or "correlation" in ax.get_xlabel()
        ax.figure.canvas.draw()
        legend, figure = ax.get_legend().get_window_extent(), ax.figure.bbox
        assert not legend.overlaps(ax.get_window_extent())  # it hides nothing
        assert figure.x0 <= legend.x0 and legend.x1 <= figure.x1
    assert len(model.support_.conditions) < 9  # too few to promise anything
    assert "9 of 10" not in [text.get_text() for text in ax.get_legend().get_texts()]
    with pytest.raises(ValueError, match="metric= 'mse' does not occur"):
        ptrag_sc.pl.support(virtual, metric="mse")
