"""Do the bars show the parts of the error, and the black mark their sum?"""

import numpy as np
import pandas as pd
import pytest

from ptrag_sc.pl import explain_error

PARTS = {  # by condition: parts of the error, one of them below 0
    "MYC": {"observed cells": 0.5, "common shift": -0.1, "neighbours wrong": 0.2, "generator": -0.1},
    "JAK2": {"observed cells": 0.1, "common shift": 0.4, "neighbours wrong": 2.0, "generator": 0.5},
}


@pytest.fixture
def errors():
    rows = [
        (condition, "K562", cause, part, part / sum(parts.values()), sum(parts.values()))
        for condition, parts in PARTS.items()
        for cause, part in parts.items()
    ]
    return pd.DataFrame(rows, columns=["perturbation", "cell_type", "cause", "squared_error", "share", "total"])


def marks(ax):
    (lines,) = ax.collections
    return [segment[0, 0] for segment in lines.get_segments()]


def test_bars_are_the_parts(errors):
    ax = explain_error(errors)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["JAK2", "MYC"]  # the largest on top
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    np.testing.assert_allclose(marks(ax), [3.0, 0.5])
    # Start and width of the bars of MYC: parts above 0 go to the right, parts below 0 to the left.
    bars = sorted((bar.get_x(), bar.get_width()) for bar in ax.patches if bar.get_y() > 0.5 and bar.get_width())
    np.testing.assert_allclose(bars, [(-0.1, -0.1), (0.0, -0.1), (0.0, 0.5), (0.5, 0.2)], atol=1e-12)
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == [
        "total",
        "too few observed cells",
        "common shift of the cell type",
        "neighbours wrong on average",
        "generator (the model itself)",
    ]


def test_shares_add_up_to_one(errors):
    ax = explain_error(errors, value="share")
    np.testing.assert_allclose(marks(ax), 1)
    assert ax.get_xlabel() == "share of the squared error"


def test_fewer_bars_and_one_condition(errors):
    ax = explain_error(errors, n_rows=1)
    assert len(ax.get_yticklabels()) == 1
    assert ax.get_title(loc="left").endswith("(1 smaller ones not shown)")
    assert [label.get_text() for label in explain_error(errors, perturbation="MYC").get_yticklabels()] == ["MYC"]


def test_groups_are_means_over_conditions(errors):
    errors.insert(2, "group", np.where(errors["cause"] == "neighbours wrong", "cycle", "other"))
    ax = explain_error(errors)
    found = dict(zip([label.get_text() for label in ax.get_yticklabels()], marks(ax), strict=True))
    assert found == pytest.approx({"cycle": 2.2 / 2, "other": 1.3 / 2})
    assert ax.get_title(loc="left").endswith("mean of 2 conditions")


def test_unknown_noise_is_written_beside_the_bar(errors):
    errors.loc[0, "squared_error"] = np.nan
    labels = [label.get_text() for label in explain_error(errors).get_yticklabels()]
    assert labels == ["JAK2", "MYC (some noise unknown)"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"value": "total"}, ValueError, "'total' does not occur in pl.explain_error"),
        ({"perturbation": "STAT1"}, KeyError, "'STAT1' does not occur in the table"),
        ({"cell_type": "RPE1"}, KeyError, "'RPE1' does not occur in the table"),
    ],
)
def test_names_that_do_not_occur(errors, options, error, message):
    with pytest.raises(error, match=message):
        explain_error(errors, **options)


def test_other_tables(errors):
    with pytest.raises(KeyError, match="lacks the columns"):
        explain_error(errors.drop(columns="cause"))
    with pytest.raises(KeyError, match="has no rows"):
        explain_error(errors.iloc[:0])
