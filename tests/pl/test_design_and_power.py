"""Do the plots of design and size show the numbers of their tables?"""

import numpy as np
import pandas as pd
import pytest

import ptrag_sc
from planned_screens import grouped_screen, set_up


@pytest.fixture(scope="module")
def screen():
    """Do not change it."""
    return set_up(grouped_screen())


@pytest.fixture
def sizes():
    """A table in the form of tl.power: accuracy is .1 for each doubling, .05 more with 20 cells; 400 is too far."""
    rows = [(n, c, 0.1 * np.log2(n / 10) + 0.05 * (c == 20), n > 100) for c in (10, 20) for n in (20, 40, 80, 160, 400)]
    table = pd.DataFrame(rows, columns=["n_perturbations", "n_cells", "pearson_delta_pert", "extrapolated"])
    table.loc[table["n_perturbations"] == 400, "pearson_delta_pert"] = np.nan
    table["low"], table["high"] = table["pearson_delta_pert"] - 0.02, table["pearson_delta_pert"] + 0.02
    table.attrs["predictor"] = "kernel ridge"
    return table


def test_design_curve(screen):
    options = {"cell_type": "K562", "n_perturbations": [6, 12, 32], "n_repeats": 4}
    curve = ptrag_sc.tl.design_curve(screen, None, **options)
    ax = ptrag_sc.pl.design(screen, None, **options)
    lines = {line.get_label(): line for line in ax.get_lines()}
    for label, choice in (("chosen by design", "design"), ("chosen at random", "random")):
        rows = curve[curve["choice"] == choice]
        np.testing.assert_array_equal(lines[label].get_xdata(), rows["n_perturbations"])
        np.testing.assert_array_equal(lines[label].get_ydata(), rows["pearson_delta_pert"])
    (saved,) = [text.get_text() for text in ax.texts if "instead of" in text.get_text()]
    needed, half = (float(word) for word in saved.removeprefix("at most ").split(" instead of "))
    assert half == 19
    assert needed < half


def test_lines_are_dashed_where_extrapolated(sizes):
    ax = ptrag_sc.pl.power(sizes)
    of_20 = sizes[(sizes["n_cells"] == 20)].set_index("n_perturbations")["pearson_delta_pert"]
    (solid,) = [line for line in ax.get_lines() if line.get_label() == "20 cells"]
    assert solid.get_linestyle() == "-"
    np.testing.assert_array_equal(solid.get_xdata(), [20, 40, 80])
    np.testing.assert_array_equal(solid.get_ydata(), of_20[[20, 40, 80]])
    dashed = [line for line in ax.get_lines() if line.get_linestyle() == "--"]
    assert sorted(line.get_xdata().tolist() for line in dashed) == [[80, 160], [80, 160]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["20 cells", "10 cells"]


def test_budget_line(sizes):
    ax = ptrag_sc.pl.power(sizes, budget=800)
    (line,) = [line for line in ax.get_lines() if line.get_label() == "800 cells in all"]
    np.testing.assert_allclose(line.get_xdata(), [80, 40])
    np.testing.assert_allclose(line.get_ydata(), [0.3, 0.25])
    assert [text.get_text() for text in ax.texts] == ["best: 80 perturbations × 10 cells"]
    with pytest.raises(ValueError, match=r"budget=100000 in pl.power meets no line"):
        ptrag_sc.pl.power(sizes, budget=100_000)


def test_bad_tables_are_refused(sizes):
    with pytest.raises(KeyError, match="Column 'low' does not occur"):
        ptrag_sc.pl.power(sizes.drop(columns="low"))
    with pytest.raises(ValueError, match="has no row with a value"):
        ptrag_sc.pl.power(sizes.assign(pearson_delta_pert=np.nan))
