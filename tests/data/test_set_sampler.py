"""Are sets made of distinct cells, fresh, matched, seeded and independent of everything else?"""

import numpy as np
import pytest

from ptrag_sc.data import ConditionIndex, RandomSets, SequentialSets
from ptrag_sc.data._deal import deal_sets
from ptrag_sc.data._set_sampler import PlannedSet, match_composition, name_hash


def make_index(seed=0, n=900, share=(0.5, 0.3, 0.2)):
    rng = np.random.default_rng(seed)
    perturbation = rng.choice(["ctl", "A", "B", "C"], n, p=[0.4, 0.3, 0.2, 0.1])
    cell_type = rng.choice(["x", "y"], n)
    batch = np.where(perturbation == "A", rng.choice(3, n, p=[0.8, 0.2, 0.0]), rng.choice(3, n, p=share))
    return ConditionIndex.from_labels(perturbation, cell_type, batch.astype(str), control="ctl")


def make_sets(index, **options):
    conditions = index.conditions
    arguments = {"set_size": 16, "batch_size": 4, "seed": 0, **options}
    return RandomSets(index, conditions, 1 + np.arange(len(conditions)), **arguments)


def collect(sampler):
    return [
        (q, t[tm], c[cm])
        for s in sampler
        for q, t, tm, c, cm in zip(s.query, s.target, s.target_mask, s.control, s.control_mask, strict=True)
    ]


def test_every_condition_once_with_distinct_cells_of_its_own():
    index = make_index()
    sampler = make_sets(index)
    found = collect(sampler)
    assert sorted(q for q, _, _ in found) == list(1 + np.arange(len(index.conditions)))
    assert len(list(sampler)) == len(sampler)
    for q, target, control in found:
        p, t, n = index.conditions.iloc[q - 1]
        assert len(set(target)) == len(target) == min(16, n)
        assert set(target) <= set(index.rows(p, t))
        assert len(set(control)) == len(control) == 16
        assert set(control) <= set(index.controls(t))


def test_small_conditions_and_few_controls_are_masked_never_repeated():
    index = ConditionIndex.from_labels(["ctl"] * 3 + ["A"] * 2, ["x"] * 5, None, control="ctl")
    ((_, target, control),) = collect(make_sets(index))
    assert sorted(target) == [3, 4]
    assert sorted(control) == [0, 1, 2]


def test_seeded_fresh_and_repeatable():
    index = make_index()
    first, second = make_sets(index), make_sets(index)
    same = [np.array_equal(a[1], b[1]) for a, b in zip(collect(first), collect(second), strict=True)]
    assert all(same)
    second.set_epoch(1)
    later = {q: t for q, t, _ in collect(second)}
    assert any(set(t) != set(later[q]) for q, t, _ in collect(first))
    assert [q for q, _, _ in collect(first)] != list(later)
    other = {q: t for q, t, _ in collect(make_sets(index, seed=1))}
    assert any(set(t) != set(other[q]) for q, t, _ in collect(first))
    fixed = make_sets(index, fresh=False)
    before = collect(fixed)
    fixed.set_epoch(7)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(before, collect(fixed), strict=True))


def test_ranks_take_disjoint_equal_shares_of_one_draw():
    index = make_index()
    whole = {q: t for q, t, _ in collect(make_sets(index))}
    shares = [collect(make_sets(index).for_rank(r, 4)) for r in range(4)]
    assert {len(s) for s in shares} == {2}  # six conditions over four ranks: two are visited twice
    assert {q for s in shares for q, _, _ in s} == set(whole)
    assert all(np.array_equal(t, whole[q]) for s in shares for q, t, _ in s)


def test_controls_follow_the_batches_of_the_target():
    index = make_index()
    sampler = make_sets(index, set_size=40)
    a = int(np.flatnonzero(index.perturbations == "A")[0])
    counts = np.zeros(6)
    for epoch in range(60):
        sampler.set_epoch(epoch)
        for q, _, control in collect(sampler):
            if index.conditions.iloc[q - 1]["perturbation"] == a:
                counts += np.bincount(index.batch[control], minlength=6)
    expected = np.bincount(index.batch[index.perturbation == a], minlength=6)
    for t in (0, 1):
        batches = np.unique(index.batch[index.cell_type == t])
        share, wanted = counts[batches] / counts[batches].sum(), expected[batches] / expected[batches].sum()
        np.testing.assert_allclose(share, wanted, atol=0.01)


def test_quotas_are_exact_in_expectation_and_within_one_of_the_share():
    rng = np.random.default_rng(0)
    pools = [np.arange(100), np.arange(100, 200), np.arange(200, 300)]
    share = np.array([0.5, 0.37, 0.13])
    drawn = np.array([np.bincount(match_composition(pools, share, 10, rng) // 100, minlength=3) for _ in range(3000)])
    assert (drawn.sum(1) == 10).all()
    assert (np.abs(drawn - 10 * share) < 1).all()
    np.testing.assert_allclose(drawn.mean(0), 10 * share, atol=0.04)


def test_a_batch_that_runs_out_is_filled_from_the_cell_type():
    rng = np.random.default_rng(0)
    drawn = match_composition([np.array([0, 1]), np.arange(10, 30)], np.array([1.0, 0.0]), 8, rng)
    assert {0, 1} <= set(drawn)
    assert len(set(drawn)) == 8


@pytest.mark.parametrize(
    ("n", "m", "size"), [(200, 500, 64), (64, 64, 64), (130, 20, 64), (7, 3, 64), (1, 1, 4), (100, 90, 8)]
)
def test_dealt_sets_are_balanced_distinct_and_matched(n, m, size):
    rng = np.random.default_rng(n)
    batch, control_batch = rng.integers(0, 3, n), np.arange(m) % min(3, m)
    order, control_order = (rng.integers(0, 2**63, k).astype(np.uint64) for k in (n, m))
    sets = deal_sets(batch, order, control_batch, control_order, size)
    cells = np.concatenate([c for c, _ in sets])
    assert sorted(cells) == list(range(n))
    for c, s in sets:
        assert len(c) <= size
        assert len(set(s)) == len(s)
        known = np.isin(batch[c], control_batch)
        assert (control_batch[s][known] == batch[c][known]).all()
    matched = [len(c) for c, _ in sets if np.isin(batch[c], control_batch).all()]
    assert np.ptp(matched or [0]) <= 1


def test_dealt_sets_do_not_depend_on_row_order_and_split_each_batch_evenly():
    rng = np.random.default_rng(0)
    names, controls = np.array([f"c{i}" for i in range(150)]), np.array([f"k{i}" for i in range(90)])
    batch, control_batch = rng.integers(0, 2, 150), rng.integers(0, 2, 90)

    def deal(rows, control_rows):
        sets = deal_sets(
            batch[rows],
            name_hash(names[rows], 0),
            control_batch[control_rows],
            name_hash(controls[control_rows], 0),
            40,
        )
        return {frozenset(zip(names[rows][c], controls[control_rows][s], strict=True)) for c, s in sets}, sets

    plain, sets = deal(np.arange(150), np.arange(90))
    assert plain == deal(rng.permutation(150), rng.permutation(90))[0]
    per_batch = [np.bincount(batch[c], minlength=2) for c, _ in sets]
    assert np.ptp(per_batch, axis=0).max() <= 1


def test_name_hash_is_seeded_and_by_name():
    names = np.array(["a", "b", "c"], dtype=object)
    np.testing.assert_array_equal(name_hash(names[::-1], 3), name_hash(names, 3)[::-1])
    assert (name_hash(names, 0) != name_hash(names, 1)).all()


def test_sequential_sets_only_pack():
    planned = [PlannedSet(i, 0, 0, np.arange(i), np.arange(i) + 10) for i in (1, 3, 2)]
    batches = list(SequentialSets(planned, batch_size=2))
    assert [b.query.tolist() for b in batches] == [[1, 3], [2]]
    assert batches[0].target.shape == (2, 3)
    assert batches[0].control[1].tolist() == [10, 11, 12]
    np.testing.assert_array_equal(batches[0].target_mask, batches[0].control_mask)
