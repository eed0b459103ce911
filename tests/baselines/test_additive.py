"""Are the two effects those of least squares?"""

import numpy as np
import pytest

from baselines.oracles import mean_of, predicted_shift, slow_shifts, three_lines, unseen_line
from ptrag_sc.baselines import Additive


def slow_effects(shifts):
    """Least squares with one column for each effect; a last row says that the effects of cell types sum to zero."""
    types, names = (sorted({condition[i] for condition in shifts}) for i in (1, 0))
    design = np.zeros((len(shifts) + 1, len(types) + len(names)))
    for i, (p, t) in enumerate(shifts):
        design[i, types.index(t)] = design[i, len(types) + names.index(p)] = 1
    design[-1, : len(types)] = 1
    y = np.vstack([*shifts.values(), np.zeros_like(mean_of(shifts))])
    effects = np.linalg.lstsq(design, y, rcond=None)[0]
    return dict(zip([*types, *names], effects, strict=True))


@pytest.mark.parametrize("name", ["G0", "G1", "G2", "G4", "G0+G1"])
@pytest.mark.parametrize("line", ["K562", "RPE1", "HepG2"])
def test_equals_least_squares(name, line):
    adata = three_lines()
    effects = slow_effects(slow_shifts(adata))
    found = predicted_shift(Additive(adata).fit(), name, line)
    np.testing.assert_allclose(found, effects[name] + effects[line], atol=1e-5)


def test_an_unseen_cell_type_has_no_effect_of_its_own():
    adata = three_lines()
    effects = slow_effects(slow_shifts(adata))
    found = predicted_shift(Additive(adata).fit(), "G1", "Jurkat", unseen_line(adata))
    np.testing.assert_allclose(found, effects["G1"], atol=1e-5)


def test_an_unseen_combination_is_the_sum_of_its_genes():
    adata = three_lines()
    effects = slow_effects(slow_shifts(adata))
    expected = effects["G2"] + effects["G3"] + 2 * effects["K562"]
    np.testing.assert_allclose(predicted_shift(Additive(adata).fit(), "G3+G2", "K562"), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["G7", "G4+G7"])
def test_an_unseen_perturbation_is_the_mean_shift(name):
    adata = three_lines()
    shifts, fitted = slow_shifts(adata), Additive(adata).fit()
    np.testing.assert_allclose(predicted_shift(fitted, name, "K562"), mean_of(shifts, "K562"), atol=1e-5)
    found = predicted_shift(fitted, name, "Jurkat", unseen_line(adata))
    np.testing.assert_allclose(found, mean_of(shifts), atol=1e-5)


def test_cell_types_without_a_common_perturbation_keep_their_own_shifts():
    """Nothing can be said of the difference of their effects: it is taken as none."""
    kept = {"K562": ("G0", "G1"), "RPE1": ("G3", "G4"), "HepG2": ()}

    def apart(adata):
        names = [(p, t) for t, genes in kept.items() for p in genes]
        pairs = zip(adata.obs["gene"], adata.obs["line"], strict=True)
        adata.obs["split"] = ["train" if pair in names or pair[0] == "ctl" else "test" for pair in pairs]
        return adata

    adata = three_lines(apart)
    shifts, fitted = slow_shifts(adata), Additive(adata).fit()
    for line in ("K562", "RPE1", "HepG2"):
        np.testing.assert_allclose(predicted_shift(fitted, "G0", line), shifts["G0", "K562"], atol=1e-5)
        np.testing.assert_allclose(predicted_shift(fitted, "G3", line), shifts["G3", "RPE1"], atol=1e-5)
