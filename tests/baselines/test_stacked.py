"""Do validation conditions, and nothing else of theirs, set the weights of a stack?"""

import numpy as np
import pytest
from scipy.optimize import lsq_linear

import ptrag_sc
from baselines.oracles import (
    mean_of,
    predicted_shift,
    rows,
    slow_response,
    slow_responses,
    slow_shifts,
    three_lines,
    unseen_line,
)
from ptrag_sc.baselines import LinearShift, NearestPerturbations, Stacked
from screens import KEYS


def slow_parts(adata, name, line, parts):
    """Deviations of ridge, neighbours and own responses from the mean shift (3, G)."""
    shifts = slow_shifts(adata)
    mean, response = mean_of(shifts, line), slow_response(shifts, name, line)
    own = 0 * mean if response is None else response @ slow_responses(shifts, line)[1]
    return np.stack([*(predicted_shift(part, name, line) - mean for part in parts), own])


def test_weights_are_non_negative_least_squares_on_validation_shifts():
    adata = three_lines()
    train, val = slow_shifts(adata), slow_shifts(adata, "val")
    parts = [kind(adata, space="response").fit() for kind in (LinearShift, NearestPerturbations)]
    design = np.concatenate([slow_parts(adata, *condition, parts).T for condition in val])
    target = np.concatenate([shift - mean_of(train, line) for (_, line), shift in val.items()])
    expected = lsq_linear(design, target, bounds=(0, np.inf), method="bvls").x
    fitted = Stacked(adata).fit()
    np.testing.assert_allclose(fitted.weights_, expected, atol=1e-4)
    assert (fitted.weights_ > 0).any()
    shift = mean_of(train, "RPE1") + fitted.weights_ @ slow_parts(adata, "G1", "RPE1", parts)
    np.testing.assert_allclose(predicted_shift(fitted, "G1", "RPE1"), shift, atol=1e-4)


def test_validation_cells_set_the_weights_and_nothing_else():
    def stronger(adata):
        x = adata.X
        x[rows(adata, split="val") & ~rows(adata, gene="ctl")] *= 3
        return adata

    plain, changed = Stacked(three_lines()).fit(), Stacked(three_lines(stronger)).fit()
    assert np.abs(plain.weights_ - changed.weights_).max() > 0.05
    changed.weights_ = plain.weights_
    queries = three_lines()
    found = [
        fitted.predict(queries, perturbations=["G1", "G7", "G0+G1"], counts=False).X for fitted in (plain, changed)
    ]
    np.testing.assert_array_equal(*found)


def test_useless_parts_get_no_weight():
    """Validation conditions that do the opposite of what is predicted leave the mean shift."""
    adata = three_lines()
    train, fitted = slow_shifts(adata), Stacked(adata).fit()
    conditions = slow_shifts(adata, "val")
    parts = [kind(adata, space="response").fit() for kind in (LinearShift, NearestPerturbations)]

    def opposite(changed):
        x = changed.X
        for (name, line), shift in conditions.items():
            wanted = mean_of(train, line) - slow_parts(adata, name, line, parts).sum(0)
            x[rows(changed, gene=name, line=line)] += (wanted - shift).astype(np.float32)
        changed.layers["log"] = x
        return changed

    changed = opposite(three_lines())
    ptrag_sc.PTRAG.setup_anndata(changed, **KEYS, batch_key="gem", split_key="split", layer="log")
    fitted = Stacked(changed).fit()
    assert (fitted.weights_ == 0).all()
    found = predicted_shift(fitted, "G1", "RPE1")
    np.testing.assert_allclose(found, mean_of(train, "RPE1"), atol=1e-4)
    found = predicted_shift(fitted, "G1", "Jurkat", unseen_line(changed))
    np.testing.assert_allclose(found, mean_of(train), atol=1e-4)


def test_retrieval_is_that_of_the_neighbours():
    adata = three_lines()
    tables = [
        fitted.predict(perturbations="G1", cell_types="RPE1").uns["ptrag"]["retrieval"]
        for fitted in (Stacked(adata).fit(), NearestPerturbations(adata, space="response").fit())
    ]
    assert tables[0].equals(tables[1])


def test_needs_validation_conditions():
    def none(adata):
        adata.obs["split"] = adata.obs["split"].replace("val", "train")
        return adata

    with pytest.raises(ValueError, match=r"Stacked in adata.obs\['split'\] finds no validation conditions. Hold some"):
        Stacked(three_lines(none)).fit()
    adata = three_lines()
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    with pytest.raises(ValueError, match=r"no split_key was registered\) finds no validation conditions"):
        Stacked(adata).fit()
