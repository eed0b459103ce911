"""Is the lift 1 where selection knows nothing, and the inverse share where it knows all?"""

import numpy as np
import pandas as pd
import pytest

from ptrag_sc.benchmark import selection_lift


def tables(n_queries=200, n_candidates=10, share=0.3, seed=0):
    rng = np.random.default_rng(seed)
    rows = [(f"q{q}", f"t{q % 2}", f"c{k}") for q in range(n_queries) for k in range(n_candidates)]
    table = pd.DataFrame(rows, columns=["perturbation", "cell_type", "candidate"])
    relevant = rng.random(len(table)) < share
    return table, relevant


def test_selection_at_random_has_lift_one_inside_the_interval():
    table, relevant = tables()
    rng = np.random.default_rng(1)
    result = selection_lift(table.assign(selected=rng.random(len(table)) < 0.4), table[relevant])
    assert result["cell_type"].tolist() == ["t0", "t1", "all"]
    assert ((result["low"] < 1) & (result["high"] > 1)).all()
    assert result["share_relevant"].iloc[-1] == pytest.approx(relevant.mean())


def test_perfect_selection_has_the_inverse_share():
    table, relevant = tables()
    result = selection_lift(table.assign(selected=relevant.astype(float)), table[relevant])
    assert result["lift"].iloc[-1] == pytest.approx(1 / relevant.mean())
    assert result["low"].iloc[-1] > 2.5


def test_everything_selected_has_lift_one_exactly_and_weights_can_differ():
    table, relevant = tables()
    table = table.assign(selected=1.0, weight=np.where(relevant, 2.0, 1.0))
    assert selection_lift(table, table[relevant])["lift"].tolist() == [1.0] * 3
    expected = (2 * relevant.sum() / (2 * relevant.sum() + (~relevant).sum())) / relevant.mean()
    assert selection_lift(table, table[relevant], by="weight")["lift"].iloc[-1] == pytest.approx(expected)


def test_nothing_selected_is_nan_and_unfit_tables_are_refused():
    table, relevant = tables(n_queries=4)
    assert selection_lift(table.assign(selected=0.0), table[relevant])["lift"].isna().all()
    with pytest.raises(KeyError, match="Column 'weight' does not occur"):
        selection_lift(table.assign(selected=0.0), table[relevant], by="weight")
    with pytest.raises(ValueError, match="is empty"):
        selection_lift(table.assign(selected=0.0)[:0], table[relevant])
