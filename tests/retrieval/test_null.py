"""Is chance what it should be: random candidates, shuffled names, expected overlap?"""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch

from ptrag_sc.retrieval import cell_type_specificity, expected_jaccard, random_neighbours, shuffled_names


def unit(n, d, seed=0):
    return torch.nn.functional.normalize(torch.as_tensor(np.random.default_rng(seed).normal(size=(n, d))), dim=1)


def test_random_neighbours_are_distinct_never_the_query_and_uniform():
    table = unit(9, 4)
    own = torch.tensor([3] * 4000)
    drawn = random_neighbours(table[own], table, own, 4, np.arange(4000))
    assert all(len(set(row)) == 4 and 3 not in row for row in drawn.rows.tolist())
    share = np.bincount(drawn.rows.numpy().ravel(), minlength=9)[[0, 1, 2, 4, 5, 6, 7, 8]] / 4000
    np.testing.assert_allclose(share, 0.5, atol=0.03)
    cosine = (table[drawn.rows] @ table[3]).numpy()
    np.testing.assert_allclose(drawn.similarity[..., 0], cosine)
    assert (np.diff(cosine, axis=1) <= 0).all()


def test_a_draw_depends_on_the_query_only():
    table, own = unit(9, 4), torch.tensor([3, -1, 0])
    together = random_neighbours(table[[3, 1, 0]], table, own, 8, np.array([5, 6, 7]))
    alone = random_neighbours(table[[0]], table, own[2:], 8, np.array([7]))
    assert torch.equal(together.rows[2], alone.rows[0])
    assert together.present.all()
    more = random_neighbours(table[[0]], table, own[2:], 9, np.array([7]))
    assert more.present.sum() == 8  # nine slots, eight others
    assert more.similarity[0, 8, 0] == 0


@pytest.mark.parametrize(("a", "b", "k"), [(1, 1, 1), (2, 3, 5), (0, 2, 4), (4, 4, 4), (3, 3, 6)])
def test_expected_jaccard_equals_the_mean_over_all_draws(a, b, k):
    first = set(range(a))
    values = [len(first & set(s)) / len(first | set(s)) for s in combinations(range(k), b)]
    assert expected_jaccard(a, b, k) == pytest.approx(np.mean(values))


def test_two_empty_selections_have_no_overlap_to_speak_of():
    assert np.isnan(expected_jaccard(0, 0, 4))


def retrieval_table(kept):
    rows = [("A", t, c, float(c in chosen)) for t, chosen in kept.items() for c in "BCDE"]
    return pd.DataFrame(rows, columns=["perturbation", "cell_type", "candidate", "selected"])


def test_specificity_counts_what_two_cell_types_share():
    table = cell_type_specificity(retrieval_table({"t1": "BC", "t2": "CD", "t3": ""}))
    assert table["jaccard"].round(3).tolist() == [0.333, 0.0, 0.0]
    assert table["chance"].round(3).tolist() == [round(expected_jaccard(2, 2, 4), 3), 0.0, 0.0]
    assert table[["n_1", "n_2", "n_candidates"]].iloc[0].tolist() == [2, 2, 4]


def test_what_is_known_of_the_query_itself_is_no_neighbour():
    table = retrieval_table({"t1": "BC", "t2": "CD"}).assign(similarity=0.5)
    own = pd.DataFrame([("A", t, "A", 1.0, np.nan) for t in ("t1", "t2")], columns=table.columns)
    pd.testing.assert_frame_equal(cell_type_specificity(pd.concat([own, table])), cell_type_specificity(table))


def test_shuffled_names_keep_the_numbers_and_are_one_to_one():
    table = retrieval_table({"t1": "BC", "t2": "CD"}).assign(similarity=0.5)
    names = np.array(list("ABCDEF"))
    for seed in range(20):
        dealt = shuffled_names(table, names, seed)
        assert (dealt["selected"] == table["selected"]).all()
        for _, part in dealt.groupby("cell_type"):
            assert part["candidate"].is_unique
            assert "A" not in set(part["candidate"])  # the query
    assert any((shuffled_names(table, names, s)["candidate"] != table["candidate"]).any() for s in range(3))
