"""Does the picture of a ranking show its rows, what they are known by, and what is not known?"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from ptrag_sc.pl import ranking
from ptrag_sc.pl._ranking import LOOK


@pytest.fixture
def table() -> pd.DataFrame:
    made = pd.DataFrame(
        {
            "perturbation": ["A", "B", "C", "D", "E"],
            "rank": [1, 2, 3, 4, 5],
            "score": [0.9, 0.5, 0.2, -0.1, -0.4],
            "expected_accuracy": [np.nan, 0.71, 0.32, np.nan, np.nan],
            "lower": [np.nan, 0.41, -0.1, np.nan, np.nan],
            "upper": [np.nan, 1.0, 0.7, np.nan, np.nan],
            "evidence": pd.Categorical(["measured", "other cell type", "embedding", "embedding", "none"]),
            "far": [False, False, False, True, False],
        }
    )
    made.attrs["recovery"] = [{"evidence": "embedding", "n": 21, "auroc": 0.654}]
    return made


def names(ax) -> list[str]:
    return [label.get_text() for label in ax.get_yticklabels()]


def dots(ax) -> dict[int, object]:
    """Row -> its dot."""
    return {int(found.get_offsets()[0, 1]): found for found in ax.collections if len(found.get_offsets())}


def test_dots_are_scores_in_the_order_of_the_ranks(table):
    ax = ranking(table.sample(frac=1, random_state=1))
    assert names(ax) == ["A", "B", "C", "D", "E"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the best on top
    drawn = [dots(ax)[row].get_offsets()[0, 0] for row in range(5)]
    np.testing.assert_allclose(drawn, table["score"])
    few = ranking(table, n_top=2)
    assert names(few) == ["A", "B"]
    assert "2 best of 5 candidates" in few.get_title(loc="left")


def test_colour_text_and_filling_say_what_is_known(table):
    ax = ranking(table)
    for row, name in enumerate(table["evidence"]):
        dot = dots(ax)[row]
        assert tuple(dot.get_edgecolor()[0]) == to_rgba(LOOK[name][1])
        assert len(dot.get_facecolor()) == (not table["far"][row])
    words = [text.get_text() for text in ax.texts]
    assert words[:1] == ["known by"]
    assert words[1:6] == [*(LOOK[name][2] for name in table["evidence"][:3]), "gene embedding alone, far", "nothing"]
    assert words[7:] == ["measured", "0.71  (0.41 to 1.00)", "0.32  (-0.10 to 0.70)", "not known", "not known"]


def test_the_check_is_told_where_it_is_known(table):
    assert "21 left out, found with AUROC 0.65 (gene embedding alone)" in ranking(table).get_title(loc="left")
    table.attrs = {}  # as read from a file
    assert "how well such a ranking works is not known" in ranking(table).get_title(loc="left")


def test_several_signatures_are_drawn_one_at_a_time(table):
    both = pd.concat([table.assign(signature="up"), table.assign(signature="down", score=-table["score"])])
    with pytest.raises(ValueError, match=r"signature= 'None' does not occur .*'up', 'down'.*signature="):
        ranking(both)
    with pytest.raises(ValueError, match="Signature 'left' does not occur"):
        ranking(both, signature="left")
    ax = ranking(both, signature="down")
    assert ax.get_title(loc="left").startswith("down: 5 best of 5")
    assert max(dot.get_offsets()[0, 0] for dot in dots(ax).values()) == 0.4


def test_unusable_tables_are_refused(table):
    with pytest.raises(KeyError, match=r"Column 'rank' does not occur .*tl.rank_perturbations"):
        ranking(table.drop(columns="rank"))
    with pytest.raises(ValueError, match="is empty"):
        ranking(table[:0])
    assert plt.get_fignums() == []


@pytest.mark.parametrize("n", [1, 5])
def test_nothing_is_cut_off_and_no_two_texts_overlap(table, n):
    figure = ranking(table[:n], return_fig=True)
    figure.canvas.draw()
    box, size = figure.get_tightbbox(), figure.get_size_inches()
    assert (box.min > -0.01).all()
    assert (box.max < size + 0.01).all()
    ax = figure.axes[0]
    found = [text.get_window_extent() for text in (*ax.texts, ax._left_title)]
    for i, one in enumerate(found):
        assert one.count_overlaps(found[:i]) == 0
