"""Is the bilinear ridge the published closed form?"""

import numpy as np
import pytest

from baselines.oracles import (
    mean_of,
    predicted_shift,
    slow_response,
    slow_shifts,
    three_lines,
    unseen_line,
    vector,
)
from ptrag_sc.baselines import LinearShift
from ptrag_sc.baselines._linear import Bilinear


def published(features, deviation, query, *, n_components, penalty):
    """G W P' of Ahlmann-Eltze et al., matrix by matrix: genes in rows, the penalty times C on the right."""
    y, p = deviation.T, features / np.sqrt((features**2).sum(1).mean())
    u, s, _ = np.linalg.svd(y, full_matrices=False)
    g = (u * s)[:, :n_components]
    left = np.linalg.inv(g.T @ g + penalty * np.eye(g.shape[1]))
    right = np.linalg.inv(p.T @ p + penalty * len(p) * np.eye(p.shape[1]))
    return g @ left @ g.T @ y @ p @ right @ query / np.sqrt((features**2).sum(1).mean())


def rows_of(shifts, line):
    return [condition for condition in shifts if line in (None, condition[1])]


@pytest.mark.parametrize(("n_components", "penalty"), [(30, 0.1), (2, 0.1), (30, 3.0), (4, 1e-3)])
@pytest.mark.parametrize(
    ("name", "line"), [("G1", "RPE1"), ("G4", "K562"), ("G7", "K562"), ("G0+G1", "RPE1"), ("G2+G3", "HepG2")]
)
def test_embedding_ridge_equals_the_published_form(name, line, n_components, penalty):
    adata = three_lines()
    shifts = slow_shifts(adata)
    conditions = rows_of(shifts, line)
    features = np.stack([vector(adata, p) for p, _ in conditions])
    deviation = np.stack([shifts[c] - mean_of(shifts, line) for c in conditions])
    options = {"n_components": n_components, "penalty": penalty}
    expected = mean_of(shifts, line) + published(features, deviation, vector(adata, name), **options)
    found = predicted_shift(LinearShift(adata, **options).fit(), name, line)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(("name", "line"), [("G1", "RPE1"), ("G4", "K562"), ("G0+G1", "RPE1"), ("G2+G3", "HepG2")])
def test_response_ridge_equals_the_published_form(name, line):
    adata = three_lines()
    shifts = slow_shifts(adata)
    conditions = [c for c in rows_of(shifts, line) if slow_response(shifts, c[0], line) is not None]
    features = np.stack([slow_response(shifts, p, line) for p, _ in conditions])
    deviation = np.stack([shifts[c] - mean_of(shifts, line) for c in conditions])
    query = slow_response(shifts, name, line)
    expected = mean_of(shifts, line) + published(features, deviation, query, n_components=30, penalty=0.1)
    found = predicted_shift(LinearShift(adata, space="response").fit(), name, line)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("space", ["gene_embedding", "response"])
def test_an_unseen_cell_type_takes_one_fit_to_all_conditions(space):
    adata = three_lines()
    shifts = slow_shifts(adata)

    def feature(name, line):
        return vector(adata, name) if space == "gene_embedding" else slow_response(shifts, name, line)

    conditions = [c for c in shifts if feature(*c) is not None]
    features = np.stack([feature(*c) for c in conditions])
    deviation = np.stack([shifts[p, t] - mean_of(shifts, t) for p, t in conditions])
    change = published(features, deviation, feature("G1", "Jurkat"), n_components=30, penalty=0.1)
    found = predicted_shift(LinearShift(adata, space=space).fit(), "G1", "Jurkat", unseen_line(adata))
    np.testing.assert_allclose(found, mean_of(shifts) + change, atol=2e-5)


def test_a_query_without_response_is_answered_from_its_embedding():
    adata = three_lines()
    fits = [LinearShift(adata, space=space).fit() for space in ("response", "gene_embedding")]
    np.testing.assert_array_equal(*[predicted_shift(fitted, "G7", "K562") for fitted in fits])
    assert np.abs(np.subtract(*[predicted_shift(fitted, "G1", "RPE1") for fitted in fits])).max() > 0.01
    new = unseen_line(adata)
    np.testing.assert_array_equal(*[predicted_shift(fitted, "G7", "Jurkat", new) for fitted in fits])


def test_limits_of_the_penalty():
    """Nothing is left of the perturbation under a large penalty; under none, training shifts are met exactly."""
    adata = three_lines()
    shifts = slow_shifts(adata)
    strong = LinearShift(adata, penalty=1e9).fit()
    np.testing.assert_allclose(predicted_shift(strong, "G1", "K562"), mean_of(shifts, "K562"), atol=1e-5)
    weak = LinearShift(adata, penalty=1e-9).fit()  # 7 conditions in 30 dimensions
    np.testing.assert_allclose(predicted_shift(weak, "G1", "K562"), shifts["G1", "K562"], atol=1e-4)


def test_scale_of_the_features_and_number_of_copies_change_nothing():
    rng = np.random.default_rng(0)
    features, deviation, query = rng.normal(size=(12, 5)), rng.normal(size=(12, 9)), rng.normal(size=5)
    options = {"n_components": 9, "penalty": 0.1}
    expected = Bilinear.fit(features, deviation, np.zeros(9), **options).predict(query)
    scaled = Bilinear.fit(100 * features, deviation, np.zeros(9), **options).predict(100 * query)
    np.testing.assert_allclose(scaled, expected, rtol=1e-9)
    right_only = {"n_components": 9, "penalty": 1e-12}
    once, thrice = (
        Bilinear.fit(np.tile(features, (n, 1)), np.tile(deviation, (n, 1)), np.zeros(9), **right_only).predict(query)
        for n in (1, 3)
    )
    np.testing.assert_allclose(thrice, once, rtol=1e-6)


def test_a_line_with_one_training_condition_has_its_shift():
    def only_one(adata):
        other = (adata.obs["line"] == "K562") & ~adata.obs["gene"].isin(["ctl", "G4"])
        adata.obs.loc[other, "split"] = "test"
        return adata

    adata = three_lines(only_one)
    for space in ("gene_embedding", "response"):
        found = predicted_shift(LinearShift(adata, space=space).fit(), "G1", "K562")
        np.testing.assert_allclose(found, slow_shifts(adata)["G4", "K562"], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_components": 0}, "n_components=0 in the constructor is below 1"),
        ({"penalty": 0.0}, "penalty=0.0 in the constructor is not positive"),
        ({"penalty": np.nan}, "penalty=nan"),
        ({"space": "text"}, "space= 'text' does not occur"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        LinearShift(three_lines(), **options)
