"""Is the same perturbation's mean shift in other cell types predicted?"""

import numpy as np
import pytest

from baselines.oracles import mean_of, predicted_shift, slow_shifts, three_lines, unseen_line
from ptrag_sc.baselines import PerturbationMean


@pytest.mark.parametrize(
    ("name", "line", "others"),
    [
        ("G1", "RPE1", ["HepG2", "K562"]),
        ("G4", "K562", ["HepG2", "RPE1"]),  # measured here too: its own shift does not count
        ("G2", "HepG2", ["RPE1"]),
        ("G0+G1", "RPE1", ["K562"]),
    ],
)
def test_mean_over_other_cell_types(name, line, others):
    adata = three_lines()
    shifts = slow_shifts(adata)
    expected = np.mean([shifts[name, t] for t in others], axis=0)
    np.testing.assert_allclose(predicted_shift(PerturbationMean(adata).fit(), name, line), expected, atol=1e-5)


def test_an_unseen_combination_is_the_sum_of_its_genes():
    adata = three_lines()
    shifts = slow_shifts(adata)
    expected = shifts["G2", "RPE1"] + (shifts["G3", "RPE1"] + shifts["G3", "K562"]) / 2
    np.testing.assert_allclose(predicted_shift(PerturbationMean(adata).fit(), "G3+G2", "HepG2"), expected, atol=1e-5)
    # Measured in K562 only: there, no other cell type has it, but its genes are elsewhere.
    genes = [np.mean([shifts[gene, t] for t in ("HepG2", "RPE1") if (gene, t) in shifts], 0) for gene in ("G0", "G1")]
    found = predicted_shift(PerturbationMean(adata).fit(), "G0+G1", "K562")
    np.testing.assert_allclose(found, genes[0] + genes[1], atol=1e-5)


@pytest.mark.parametrize("name", ["G7", "G4+G7", "unknown gene"])
def test_what_no_other_cell_type_has_is_the_mean_shift(name):
    adata = three_lines()
    fitted, shifts = PerturbationMean(adata).fit(), slow_shifts(adata)
    np.testing.assert_allclose(predicted_shift(fitted, name, "K562"), mean_of(shifts, "K562"), atol=1e-5)
    found = predicted_shift(fitted, name, "Jurkat", unseen_line(adata))
    np.testing.assert_allclose(found, mean_of(shifts), atol=1e-5)


def test_an_unseen_cell_type_takes_all_others():
    adata = three_lines()
    shifts = slow_shifts(adata)
    expected = np.mean([s for (p, _), s in shifts.items() if p == "G4"], axis=0)
    found = predicted_shift(PerturbationMean(adata).fit(), "G4", "Jurkat", unseen_line(adata))
    np.testing.assert_allclose(found, expected, atol=1e-5)
