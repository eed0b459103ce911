"""Do intervals cover what they promise, made of residuals of perturbations that were not seen?"""

import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

import ptrag_sc
from baselines.oracles import slow_shifts
from own_targets import slow_controls, slow_masked, slow_own_change, targeted_screen, targets
from ptrag_sc.data import _intervals
from ptrag_sc.data._intervals import KNOWN, UNSEEN, EffectErrors, Residuals, residual_folds
from ptrag_sc.model._expected import _Residuals
from screens import SMALL


@pytest.fixture(autouse=True)
def all_folds(monkeypatch):
    monkeypatch.setattr(_intervals, "MAX_FOLDS", 30)


def residuals(error, *, own=None, level=None, sampling=None, kind=UNSEEN, line="x"):
    """Residuals (C, G) of one cell type."""
    n = len(error)
    table = pd.DataFrame({"perturbation": [f"P{c}" for c in range(n)], "cell_type": line, "kind": kind})
    own = np.zeros(error.shape, dtype=bool) if own is None else own
    level = np.ones(error.shape) if level is None else level
    sampling = np.full(error.shape, 0.01) if sampling is None else sampling
    return Residuals(table, error, own, level, sampling, np.full(n, 0.02))


def learned(found, variance=None):
    variance = np.ones(found.error.shape[1]) if variance is None else variance
    return EffectErrors.learn(found, dict.fromkeys(found.conditions["cell_type"].unique(), variance))


@pytest.mark.parametrize("level", [0.5, 0.9])
@pytest.mark.parametrize("n", [3, 8, 60])
def test_intervals_cover_what_they_promise(n, level):
    """Also from three conditions: the distribution of normal residuals over their root mean square is Student's."""
    rng, n_genes = np.random.default_rng(n), 20_000
    scale = rng.gamma(1.0, 1.0, n_genes)
    errors = learned(residuals(rng.normal(size=(n, n_genes)) * scale)).find("x", UNSEEN)
    new = rng.normal(size=(4, n_genes)) * scale
    # The mean is known to be 0, so n squares are averaged, while n - 1 is the number of degrees of freedom.
    promised = 2 * student.cdf(student.ppf((1 + level) / 2, n - 1), n) - 1
    assert (np.abs(new) <= errors.half_width(level)).mean() == pytest.approx(promised, abs=0.01)
    assert promised >= level


def test_the_width_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    error, own = rng.normal(size=(12, 5)), rng.random((12, 5)) < 0.2
    errors = learned(residuals(error, own=own)).find("x", UNSEEN)
    assert errors.n == 12
    for g in range(5):
        square = np.mean([e**2 for e, is_own in zip(error[:, g], own[:, g], strict=True) if not is_own])
        assert errors.half_width(0.8)[g] == pytest.approx(student.ppf(0.9, 11) * np.sqrt(square))
        assert errors.half_width(0.8, 0.3)[g] == pytest.approx(student.ppf(0.9, 11) * np.sqrt(square + 0.3))
    wild = np.where(own, 1000.0, error)
    again = learned(residuals(wild, own=own)).find("x", UNSEEN)
    np.testing.assert_array_equal(again.half_width(0.8), errors.half_width(0.8))


def test_too_few_conditions_promise_nothing():
    errors = learned(residuals(np.ones((2, 4)))).find("x", UNSEEN)
    assert np.isinf(errors.half_width(0.9)).all()
    own = np.eye(4, 6, dtype=bool)  # four targets
    few = learned(residuals(np.ones((4, 6)), own=own)).find("x", UNSEEN)
    assert np.isfinite(few.half_width(0.9)).all()
    assert np.isinf(few.own_half_width(0.9, np.ones(2), np.ones(2))).all()


def targets_of(rng, n, n_genes, share=0.4):
    """Residuals at one own target each: normal, wider where more is expressed, beside the noise of sampling."""
    own = np.zeros((n, n_genes), dtype=bool)
    own[np.arange(n), rng.integers(0, n_genes, n)] = True
    level, sampling = rng.gamma(1.0, 1.0, (n, n_genes)), np.full((n, n_genes), 0.02)
    error = rng.normal(size=(n, n_genes)) * np.where(own, np.sqrt((share * level) ** 2 + sampling), 0.1)
    return error, own, level, sampling


@pytest.mark.parametrize("n", [9, pytest.param(40, marks=pytest.mark.slow)])
def test_intervals_at_own_targets_cover(n):
    rng, covered = np.random.default_rng(1), []
    for _ in range(600):
        error, own, level, sampling = targets_of(rng, n + 1, 8)
        kept = slice(0, n)
        found = residuals(error[kept], own=own[kept], level=level[kept], sampling=sampling[kept])
        errors = learned(found, variance=np.full(8, 2.0)).find("x", UNSEEN)
        assert errors.sampling == pytest.approx(0.01)  # the squared error, over the variance between cells
        width = errors.own_half_width(0.9, level[n][own[n]], np.full(1, 2.0))
        covered.append(np.abs(error[n][own[n]]) <= width)
    k = min(n, int(np.ceil((n + 1) * 0.9)))
    assert np.mean(covered) == pytest.approx(k / (n + 1), abs=0.04)


def test_own_intervals_are_those_of_the_formula():
    rng = np.random.default_rng(3)
    error, own, level, sampling = targets_of(rng, 20, 8)
    errors = learned(residuals(error, own=own, level=level, sampling=sampling), variance=np.full(8, 2.0)).of[
        "x", UNSEEN
    ]
    e, m, v = error[own], level[own], sampling[own]
    variance = max(0, ((e**2).sum() - v.sum()) / (m**2).sum())
    scores = sorted(np.abs(e) / np.sqrt(variance * m**2 + v))
    assert errors.own_variance == pytest.approx(variance)
    np.testing.assert_allclose(errors.own_scores, scores)
    for share, k in ((0.9, 19), (0.5, 11), (0.99, 20)):  # ceil(21 * share), at most all
        expected = scores[k - 1] * np.sqrt(variance * 0.7**2 + 2.0 * 0.01 + 0.05)
        assert errors.own_half_width(share, np.array([0.7]), np.array([2.0]), 0.05)[0] == pytest.approx(expected)


def test_the_wider_kind_stands_in_for_the_other():
    rng = np.random.default_rng(0)
    unseen = residuals(rng.normal(size=(9, 4)))
    both = EffectErrors.learn(
        Residuals(
            *(
                pd.concat([a, b], ignore_index=True) if isinstance(a, pd.DataFrame) else np.concatenate([a, b])
                for a, b in zip(unseen, residuals(0.1 * rng.normal(size=(5, 4)), kind=KNOWN, line="y"), strict=True)
            )
        ),
        {"x": np.ones(4), "y": np.ones(4)},
    )
    assert both.find("x", KNOWN) is both.of["x", UNSEEN]
    assert both.find("y", KNOWN).n == 5
    assert both.find("y", UNSEEN) is None  # the narrower one would promise too much
    assert both.find("z", UNSEEN) is None
    assert both.find("z", KNOWN) is None


def test_too_few_of_the_narrower_kind_are_not_used():
    """Two conditions give no interval, and four targets none of their own; the wider kind has enough of both."""
    rng = np.random.default_rng(0)
    wide = targets_of(rng, 9, 4)
    few, some = (learned(residuals(0.1 * rng.normal(size=(n, 4)), kind=KNOWN)).of["x", KNOWN] for n in (2, 5))
    unseen = learned(residuals(wide[0], own=wide[1], level=wide[2], sampling=wide[3])).of["x", UNSEEN]
    assert len(unseen.own_scores) >= 5
    assert EffectErrors({("x", KNOWN): few, ("x", UNSEEN): unseen}).find("x", KNOWN) is unseen
    found = EffectErrors({("x", KNOWN): some, ("x", UNSEEN): unseen}).find("x", KNOWN)
    np.testing.assert_array_equal(found.half_width(0.9), some.half_width(0.9))
    at = np.array([0.7]), np.array([2.0])
    assert np.isfinite(found.own_half_width(0.9, *at)).all()
    np.testing.assert_array_equal(found.own_scores, unseen.own_scores)
    assert EffectErrors({("x", KNOWN): few}).find("x", KNOWN) is few


def test_errors_survive_json():
    rng = np.random.default_rng(2)
    error, own, level, sampling = targets_of(rng, 15, 6)
    errors = learned(residuals(error, own=own, level=level, sampling=sampling))
    again = EffectErrors.from_json(json.loads(json.dumps(errors.to_json())))
    assert again.of.keys() == errors.of.keys()
    for found, expected in zip(again.of["x", UNSEEN], errors.of["x", UNSEEN], strict=True):
        np.testing.assert_array_equal(found, expected)
    empty = EffectErrors.from_json(json.loads(json.dumps(EffectErrors({}).to_json())))
    assert empty.of == {}


def conditions(n_singles=6):
    names = [f"G{i}" for i in range(n_singles)] + ["G0+G1", "G1+G2", "G2+G3+G4"]
    pairs = [(name, t) for name in names for t in ("x", "y") if (name, t) not in {("G5", "y"), ("G1+G2", "x")}]
    return pd.DataFrame(pairs, columns=["perturbation", "cell_type"])


@pytest.mark.parametrize(("n_singles", "n_folds"), [(6, 9), (60, 30)])
def test_folds_hold_nothing_of_what_they_score(n_singles, n_folds):
    table = conditions(n_singles)
    parts = {name: set(name.split("+")) for name in table["perturbation"]}
    scored = {KNOWN: Counter(), UNSEEN: Counter()}
    folds = residual_folds(table, "+")
    assert sum(fold.kind == UNSEEN for fold in folds) == n_folds
    for fold in folds:
        kept = table.drop(index=fold.left_out)
        of_fold = table.iloc[fold.scored]
        assert set(fold.scored) <= set(fold.left_out)
        scored[fold.kind].update(map(tuple, of_fold.to_numpy()))
        for name, t in of_fold.to_numpy():
            if fold.kind == KNOWN:
                assert (name, t) not in set(map(tuple, kept.to_numpy()))
                assert name in set(kept["perturbation"])  # elsewhere it stays
            else:
                assert name not in set(kept["perturbation"])
                if len(parts[name]) == 1:  # nor does any combination hold it
                    assert not any(name in parts[other] for other in kept["perturbation"])
        if fold.kind == UNSEEN:  # a combination leaves its genes where they are
            for name in set(table["perturbation"].iloc[fold.left_out]) - set(of_fold["perturbation"]):
                assert any(other in parts[name] for other in of_fold["perturbation"])
    assert scored[UNSEEN] == Counter(map(tuple, table.to_numpy()))
    twice = table[table["perturbation"].map(table["perturbation"].value_counts()) > 1]
    assert scored[KNOWN] == Counter(map(tuple, twice.to_numpy()))


def test_a_single_perturbation_cannot_be_left_out():
    table = pd.DataFrame({"perturbation": ["G0", "G0"], "cell_type": ["x", "y"]})
    assert {fold.kind for fold in residual_folds(table, "+")} == {KNOWN}
    assert residual_folds(table.iloc[:1], "+") == []


def left_out(shifts, label, line):
    """What remains in the two kinds of folds: (unseen, known elsewhere)."""
    genes = set(label.split("+"))
    unseen = {
        key: s
        for key, s in shifts.items()
        if key[0] != label and not (len(genes) == 1 and genes & set(key[0].split("+")))
    }
    return unseen, {key: s for key, s in shifts.items() if key != (label, line)}


def test_residuals_of_a_baseline_equal_a_slow_loop():
    """Every perturbation predicted by a mean shift that is learned anew without it, own targets apart."""
    adata = targeted_screen(n_obs=800)
    shifts, controls, genes = slow_shifts(adata), slow_controls(adata), list(adata.var_names)
    squares = {}
    for label, line in shifts:
        for kind, kept in zip((UNSEEN, KNOWN), left_out(shifts, label, line), strict=True):
            if kind == KNOWN and sum(p == label for p, _ in shifts) == 1:
                continue
            masked = slow_masked(kept, genes)
            predicted = np.mean([s for (_, t), s in masked.items() if t == line], axis=0)
            predicted = predicted + slow_own_change(label, line, kept, controls, genes)
            square = (shifts[label, line] - predicted) ** 2
            square[targets(label, genes)] = np.nan
            squares.setdefault((line, kind), []).append(square)
    fitted = ptrag_sc.baselines.MeanShift(adata).fit()
    assert fitted.effect_errors_ is None
    fitted.learn_effect_errors()
    assert set(fitted.effect_errors_.of) == set(squares)
    for key, found in fitted.effect_errors_.of.items():
        assert found.n == len(squares[key])
        np.testing.assert_allclose(found.square, np.nanmean(squares[key], axis=0), rtol=1e-4)
        n_targets = sum(np.isnan(square).sum() for square in squares[key])
        assert len(found.own_scores) == n_targets


def test_a_memory_that_predicts_a_condition_lacks_it(monkeypatch):
    adata = targeted_screen(n_obs=800)
    model = ptrag_sc.PTRAG(adata, **{**SMALL, "memory": "response"})
    names, types, collect, seen = list(model.candidates_), list(model.tables_.cell_types), _Residuals._collect, []

    def spy(self, rows, kinds, memory, own_effects):
        for row, kind in zip(rows, kinds, strict=True):
            label, line = self.named.loc[row, ["perturbation", "cell_type"]]
            n_cells = memory.n_cells[names.index(label)]
            assert n_cells[types.index(line)] == 0
            assert bool((n_cells > 0).any()) == (kind == KNOWN)
            if kind == UNSEEN and "+" not in label:
                held = [name for name, n in zip(names, memory.n_cells, strict=True) if (n > 0).any()]
                assert not any(label in name.split("+") for name in held)
            seen.append((label, line, kind))
        return collect(self, rows, kinds, memory, own_effects)

    monkeypatch.setattr(_Residuals, "_collect", spy)
    model.learn_effect_errors()
    train = model.split_[model.split_["split"] == "train"][["perturbation", "cell_type"]]
    for kind in (UNSEEN, KNOWN):
        assert {key[:2] for key in seen if key[2] == kind} == set(map(tuple, train.to_numpy()))
    assert len(seen) == len(set(seen))
    assert {kind for _, kind in model.effect_errors_.of} == {KNOWN, UNSEEN}
    assert all(np.isfinite(errors.square).all() and errors.n > 2 for errors in model.effect_errors_.of.values())
