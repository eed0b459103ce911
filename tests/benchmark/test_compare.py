"""Is a comparison fair, resumable, and deaf to test conditions?"""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import ptrag_sc
from ptrag_sc.baselines import MeanShift, NearestPerturbations
from ptrag_sc.benchmark import compare, evaluate, split_half, summary
from ptrag_sc.benchmark._cache import _code_text
from ptrag_sc.metrics import METRICS as METRICS_TABLE
from screens import KEYS, make_screen

METRICS, MSE = ["pearson_delta", "energy_distance"], METRICS_TABLE["mse"]
OPTIONS = {"metrics": METRICS, "seeds": [0, 1], "n_cells": 20, "progress": False}


def draw(adata, seed):
    ptrag_sc.pp.split(
        adata,
        perturbation_key="gene",
        cell_type_key="line",
        control="ctl",
        test_fraction=0.3,
        val_fraction=0.1,
        seed=seed,
    )


def nearest(adata, seed):
    return NearestPerturbations(adata, n_neighbors=3).fit()


@pytest.fixture
def screen():
    adata = make_screen()
    draw(adata, 0)
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem", split_key="split")
    return adata


def test_every_row_is_a_test_condition_and_floors_and_ceilings_are_there(screen):
    before = screen.obs["split"].copy()
    scores = compare(screen, {"nearest": nearest}, split=draw, **OPTIONS)
    assert screen.obs["split"].equals(before)  # the user's object is not touched
    kinds = scores.drop_duplicates(["method", "kind", "truth"]).groupby("kind")["truth"].agg(sorted).to_dict()
    assert kinds == {"method": ["all", "half"], "floor": ["all", "all", "half", "half"], "ceiling": ["half", "half"]}
    for seed, part in scores.groupby("seed"):
        draw(screen, seed)
        obs = screen.obs[(screen.obs["split"] == "test") & (screen.obs["gene"] != "ctl")]
        held_out = set(zip(obs["gene"].astype(str), obs["line"].astype(str), strict=True))
        found = set(zip(part["perturbation"].astype(str), part["cell_type"].astype(str), strict=True))
        assert found == held_out
        assert (part.groupby(["method", "truth", "metric"]).size() == len(held_out)).all()


def test_scores_are_those_of_evaluate(screen):
    scores = compare(screen, {"nearest": nearest}, **{**OPTIONS, "seeds": [0]})
    reference = ptrag_sc.metrics.Reference.from_adata(screen)
    test = screen.obs[(screen.obs["split"] == "test") & (screen.obs["gene"] != "ctl")]
    fitted, half = nearest(screen, 0), split_half(screen, 0).real
    for cell_type, rows in test.groupby("line", observed=True):
        asked = {"perturbations": sorted(rows["gene"].unique()), "cell_types": cell_type, "n_cells": 20}
        # Means are scored in the smooth form, cells as counts.
        for metric, form in (("pearson_delta", "smooth"), ("energy_distance", "counts")):
            predicted = fitted.predict(**asked, counts=form == "counts")
            for truth, real in (("half", half), ("all", screen)):
                expected = evaluate(real, predicted, reference=reference, metrics=metric)
                found = scores[(scores["method"] == "nearest") & (scores["truth"] == truth)]
                found = found[(found["cell_type"] == cell_type) & (found["metric"] == metric)]
                assert set(found["form"]) == {form}
                np.testing.assert_allclose(sorted(found["value"]), sorted(expected["value"]), rtol=1e-5)


def test_the_form_of_every_score_is_named(screen):
    """Predictors: smooth means and counts where they are known; what is predicted elsewhere as it is given."""
    metrics = {name: METRICS_TABLE[name] for name in ("pearson_delta", "mse", "energy_distance", "de_jaccard")}
    levels = {name: row.level for name, row in metrics.items()}
    assert set(levels.values()) == {"means", "cells", "tests"}

    def cells(adata, seed):
        names = adata.obs.loc[(adata.obs["split"] == "test") & (adata.obs["gene"] != "ctl"), "gene"].unique()
        return MeanShift(adata).fit().predict(perturbations=list(names), n_cells=20)

    def forms(adata, metrics=metrics):
        options = {"metrics": metrics, "seeds": [0], "n_cells": 20, "progress": False}
        scores = compare(adata, {"nearest": nearest, "cells": cells}, **options)
        assert list(scores.columns) == [
            *("method", "kind", "seed", "truth", "perturbation", "cell_type", "metric", "value", "n_real"),
            *("n_predicted", "form", "direction", "best"),
        ]
        found = scores.groupby(["method", "metric"])["form"].agg(set)
        assert (found.str.len() == 1).all()
        return {(method, levels[metric]): form for (method, metric), (form,) in found.items()}

    expected = {"means": "smooth", "cells": "counts", "tests": "counts"}
    found = forms(screen)
    for method in ("nearest", "no effect", "mean shift"):
        assert {level: found[method, level] for level in expected} == expected
    for method in ("cells", "split half", "interpolated duplicate"):
        assert {found[method, level] for level in expected} == {"as given"}
    halved = screen.copy()
    halved.X = np.sqrt(screen.X.toarray())  # no counts can be found behind it
    found = forms(halved, {name: METRICS_TABLE[name] for name in ("mse", "energy_distance")})
    assert {
        found[method, level] for method in ("nearest", "no effect", "mean shift") for level in ("means", "cells")
    } == {"smooth"}


def test_a_predicted_object_is_as_good_as_a_predictor(screen):
    def predicted(adata, seed):
        fitted = MeanShift(adata).fit()
        labels = adata.obs.loc[(adata.obs["split"] == "test") & (adata.obs["gene"] != "ctl"), "gene"].unique()
        return fitted.predict(perturbations=list(labels), counts=False)

    scores = compare(screen, {"cells": predicted}, **{**OPTIONS, "seeds": [0], "n_cells": 10_000})
    wide = scores[scores["metric"] == "pearson_delta"].pivot_table(
        index=["seed", "truth", "perturbation", "cell_type"], columns="method", values="value", observed=True
    )
    np.testing.assert_allclose(wide["cells"], wide["mean shift"], atol=1e-6)  # sums of float32


def test_a_method_may_build_a_model_on_what_it_is_given_and_metrics_may_be_own_rows(screen):
    def model(adata, seed):
        return ptrag_sc.PTRAG(adata, memory=None, n_candidates=3, n_hidden=8, n_layers=1, n_heads=2)

    own = {"error": ptrag_sc.metrics.METRICS["mse"]}
    scores = compare(screen, {"untrained": model}, seeds=[0], metrics=own, progress=False)
    assert set(scores["metric"]) == {"error"}
    # Untrained, every cell stays as it is.
    wide = scores[scores["truth"] == "all"].pivot_table(
        index=["perturbation", "cell_type"], columns="method", values="value", observed=True
    )
    np.testing.assert_allclose(wide["untrained"], wide["no effect"], rtol=1e-5)


def test_a_finished_part_is_not_computed_again(screen, tmp_path):
    calls = []

    def counted(adata, seed):
        calls.append(seed)
        if seed == 1 and len(calls) == 2:
            raise RuntimeError("interrupted")
        return nearest(adata, seed)

    options = {**OPTIONS, "metrics": ["pearson_delta"], "split": draw}
    fresh = compare(screen, {"nearest": nearest}, **options)
    options["cache"] = tmp_path / "cache"
    with pytest.raises(RuntimeError, match="interrupted"):
        compare(screen, {"nearest": counted}, **options)
    resumed = compare(screen, {"nearest": counted}, **options)
    assert calls == [0, 1, 1]
    again = compare(screen, {"nearest": counted}, **options)
    assert calls == [0, 1, 1]
    pd.testing.assert_frame_equal(resumed, again)
    pd.testing.assert_frame_equal(resumed, fresh, check_exact=False, check_dtype=False)


def other_expression(adata):
    adata.X = adata.X * 1.1


def other_training(adata):
    adata.obs["split"] = adata.obs["split"].astype(str).replace({"val": "train"})


def other_embedding(adata):
    table = pd.DataFrame(adata.uns["gene_embedding"]["vectors"][::-1], index=adata.uns["gene_embedding"]["genes"])
    ptrag_sc.pp.gene_embedding(adata, table, perturbation_key="gene", control="ctl")


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """Options with the scores of an own metric in a cache, and the scores; what is refused changes no cache."""
    adata, options = make_screen(), {**OPTIONS, "seeds": [0], "cache": tmp_path_factory.mktemp("cache")}
    draw(adata, 0)
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem", split_key="split")
    options["metrics"] = {"mine": MSE}
    return options, compare(adata, {"nearest": nearest}, **options)


@pytest.mark.parametrize("change", [other_expression, other_training, other_embedding, lambda a: draw(a, 7)])
def test_a_cache_of_other_data_is_refused(screen, cached, change):
    options, first = cached
    pd.testing.assert_frame_equal(compare(screen, {"nearest": nearest}, **options), first)
    change(screen)
    with pytest.raises(ValueError, match="holds scores of other data, another split or other metrics"):
        compare(screen, {"nearest": nearest}, **options)


@pytest.mark.parametrize(
    "other",
    [
        {"metrics": ["mse"]},
        {"n_cells": 5},
        {"metrics": {"mine": METRICS_TABLE["mse"]._replace(function=lambda *a: 7.0)}},
    ],
)
def test_a_cache_of_other_metrics_is_refused(screen, cached, other):
    options, _ = cached
    with pytest.raises(ValueError, match="holds scores of other data"):
        compare(screen, {"nearest": nearest}, **{**options, **other})


def test_labels_survive_the_cache(tmp_path):
    adata = make_screen()
    adata.obs["line"] = adata.obs["line"].astype(str).replace({"K562": "K562 #1, nan", "RPE1": "2"})
    draw(adata, 0)
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, split_key="split")
    options = {**OPTIONS, "seeds": [0], "cache": tmp_path}
    first, second = (compare(adata, {"nearest": nearest}, **options) for _ in range(2))
    assert set(second["cell_type"]) == {"K562 #1, nan", "2"}
    pd.testing.assert_frame_equal(first, second, check_dtype=False)


def test_a_rude_method_changes_nothing_for_others(screen):
    def rude(adata, seed):
        fitted = nearest(adata, seed)
        adata.X = adata.X * 0
        adata.obs["split"] = "train"
        adata.uns.clear()
        return fitted

    options = {**OPTIONS, "seeds": [0], "metrics": ["pearson_delta", "energy_distance"]}
    polite = compare(screen, {"nearest": nearest}, **options)
    beside = compare(screen, {"rude": rude, "nearest": nearest}, **options)
    found = beside[beside["method"] != "rude"].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, polite)


def test_the_object_stays_registered(screen):
    compare(screen, {"nearest": nearest}, **{**OPTIONS, "seeds": [0], "metrics": ["mse"]})
    ptrag_sc.PTRAG(screen, n_candidates=3, n_hidden=8, n_layers=1, n_heads=2)


def test_a_predictor_that_saw_a_test_condition_is_refused(screen):
    everything = screen.copy()
    everything.obs["split"] = "train"
    leaky = MeanShift(everything).fit()
    with pytest.raises(ValueError, match="'leaky' in seed 0 was trained on test conditions: 'G"):
        compare(screen, {"leaky": lambda adata, seed: leaky}, **OPTIONS)


def test_ptrag_says_what_it_was_trained_on(screen):
    model = ptrag_sc.PTRAG(screen, n_candidates=3, n_hidden=8, n_layers=1, n_heads=2)
    seen = set(map(tuple, model.trained_on_.to_numpy().tolist()))
    test = screen.obs[screen.obs["split"] == "test"]
    assert seen.isdisjoint(zip(test["gene"], test["line"], strict=True))
    assert len(seen) == len(model.split_[model.split_["split"] != "test"])


def test_unusable_requests_are_refused(screen):
    with pytest.raises(ValueError, match="are empty"):
        compare(screen, {}, **OPTIONS)
    with pytest.raises(ValueError, match="Method names 'mean shift'"):
        compare(screen, {"mean shift": nearest}, **OPTIONS)
    with pytest.raises(KeyError, match="pearson_delt"):
        compare(screen, {"nearest": nearest}, seeds=[0], metrics=["pearson_delt"], progress=False)
    with pytest.raises(ValueError, match="n_cells=1"):
        compare(screen, {"nearest": nearest}, **{**OPTIONS, "n_cells": 1})
    screen.obs["split"] = "train"
    with pytest.raises(ValueError, match="holds no test condition"):
        compare(screen, {"nearest": nearest}, **OPTIONS)
    bare = make_screen()
    ptrag_sc.PTRAG.setup_anndata(bare, **KEYS)
    with pytest.raises(ValueError, match="without split_key"):
        compare(bare, {"nearest": nearest}, **OPTIONS)


def table(n=60, gain=0.1, noise=0.05, seeds=3):
    rng, rows = np.random.default_rng(0), []
    for seed in range(seeds):
        level = rng.normal(size=n) * 0.3  # what both methods share is no noise of their difference
        for name, shift in (("new", gain), ("mean shift", 0.0)):
            values = level + shift + rng.normal(size=n) * noise
            rows += [(name, "method", seed, "half", f"P{p}", "t", "pearson_delta", v) for p, v in enumerate(values)]
    columns = ["method", "kind", "seed", "truth", "perturbation", "cell_type", "metric", "value"]
    return pd.DataFrame(rows, columns=columns).assign(direction="higher", best=1.0)


def test_differences_are_paired_and_their_interval_covers():
    result = summary(table()).set_index("method")
    assert result.loc["new", "difference"] == pytest.approx(0.1, abs=0.02)
    width = result.loc["new", "difference_high"] - result.loc["new", "difference_low"]
    assert width < 0.3 * (result.loc["new", "high"] - result.loc["new", "low"])
    assert result.loc["new", "positive_seeds"] == 1
    assert result.loc["mean shift", ["difference", "difference_low", "difference_high"]].tolist() == [0, 0, 0]
    # The standard error of a mean of 60 differences of sd .05 * sqrt(2 / 3 seeds).
    assert width == pytest.approx(2 * 1.96 * 0.05 * (2 / 3) ** 0.5 / 60**0.5, rel=0.35)


def test_missing_values_are_left_out_of_pairs():
    scores = table(n=10, noise=0.0, seeds=1)
    scores.loc[(scores["method"] == "new") & (scores["perturbation"] == "P3"), "value"] = np.nan
    assert summary(scores).set_index("method").loc["new", "difference"] == pytest.approx(0.1)
    scores.loc[scores["method"] == "new", "value"] = np.nan
    assert np.isnan(summary(scores).set_index("method").loc["new", "difference"])


def test_a_method_that_lacks_a_seed_is_compared_on_the_other_one():
    scores = table(n=20, noise=0.0, seeds=2)
    scores.loc[scores["seed"] == 0, "value"] += 5  # an easy split
    scores.loc[(scores["method"] == "new") & (scores["seed"] == 0), "value"] = np.nan
    result = summary(scores).set_index("method").loc["new"]
    assert result["difference"] == pytest.approx(0.1)
    assert result["positive_seeds"] == 1


def test_every_perturbation_counts_once_whatever_its_cell_types_and_seeds():
    """Mean over seeds, then over cell types, then over perturbations: (((1 + 3) / 2 + 5) / 2 + 0.5) / 2 = 2."""
    cells = [("P", "a", 0, 1.0), ("P", "a", 1, 3.0), ("P", "b", 0, 5.0), ("Q", "a", 0, 0.5)]
    rows = [(method, *cell, shift) for method, shift in (("new", 1.0), ("mean shift", 0.0)) for cell in cells]
    scores = pd.DataFrame(rows, columns=["method", "perturbation", "cell_type", "seed", "score", "shift"])
    scores["value"] = scores["score"] * scores["shift"]
    scores = scores.assign(kind="method", truth="half", metric="mse", direction="lower", best=0.0)
    result = summary(scores).set_index("method").loc["new"]
    assert result["mean"] == pytest.approx(2)
    assert result["difference"] == pytest.approx(2)


def test_a_summary_of_nothing_is_refused():
    with pytest.raises(ValueError, match="is empty"):
        summary(table()[:0])
    with pytest.raises(KeyError, match="Method 'x' does not occur"):
        summary(table(), against="x")
    with pytest.raises(KeyError, match="Truth 'all' does not occur"):
        summary(table(), truth="all")
    ceiling = table().assign(truth="all", method="other")
    with pytest.raises(KeyError, match="'new' does not occur in the table with truth='all'"):
        summary(pd.concat([table(), ceiling]), against="new", truth="all")


FINGERPRINTS = """
from ptrag_sc.benchmark._cache import _code_text
from ptrag_sc.metrics import METRICS
import hashlib

def nested(x):
    return [y for y in x if (lambda z: z in {"a", "b", "c", "d"})(y)]

codes = [getattr(row.function, "__code__", None) for row in METRICS.values()] + [nested.__code__]
text = "".join(_code_text(code) for code in codes if code is not None)
print(hashlib.sha256(text.encode()).hexdigest(), " at 0x" in text)
"""


@pytest.mark.slow  # two processes that import the package
def test_a_cache_is_known_again_in_another_process():
    found = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", FINGERPRINTS], env=environment, capture_output=True, check=True
        )
        found.add(run.stdout)
    assert len(found) == 1
    assert found.pop().endswith(b"False\n")


def test_a_metric_that_changed_makes_another_cache():
    def first(x):
        return [y + 1 for y in x]

    def second(x):
        return [y + 2 for y in x]

    assert _code_text(first.__code__) != _code_text(second.__code__)
