"""Does the memory hold what was observed, as far as it can be trusted, and never a condition's own cells?"""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from ptrag_sc.data import ROLES, CellReader, ConditionIndex, Shifts, Spread, control_means, mean_shifts_and_spread
from ptrag_sc.retrieval import (
    Neighbours,
    between_perturbations,
    build_memory,
    make_query_table,
    memory_neighbours,
    response_scale,
    shrink,
    view_memory,
)
from ptrag_sc.retrieval._ridge import PENALTIES
from ptrag_sc.retrieval._spaces import alternate
from ptrag_sc.retrieval._view import _mapped

P, T, G, R, D = 7, 3, 11, 4, 5


def make(seed=0, missing=0.25):
    """Return conditions with a gap here and there, their numbers, and the memory."""
    rng = np.random.default_rng(seed)
    observed = rng.random((P, T)) >= missing
    observed[:, 0] = observed[0] = True
    p, t = np.nonzero(observed)
    numbers = {
        "shifts": Shifts(rng.normal(size=(len(p), G)), rng.integers(2, 50, len(p))),
        "spread": Spread(rng.random((T, G)) * 0.2, np.full(len(p), np.nan), rng.random(len(p))),
        "controls": rng.normal(size=(T, G)),
        "directions": np.linalg.qr(rng.normal(size=(G, R)))[0].T,
    }
    return p, t, numbers, build_memory(p, t, (P, T), **numbers)


def test_noise_is_shrunk_to_nothing_and_signal_is_kept():
    rng = np.random.default_rng(0)
    error = np.full((4000, 1), 0.5)
    group = np.repeat([0, 1], 2000)
    noise = rng.normal(size=(4000, 1)) * np.sqrt(0.5)
    signal = np.where(group == 1, rng.normal(size=4000) * 2, 0)[:, None]
    between = between_perturbations(noise + signal, error, group, 2)
    found = shrink(noise + signal, error, between[group])
    assert np.abs(found[group == 0]).mean() < 0.1 * np.abs(noise).mean()
    factor = found[group == 1] / (noise + signal)[group == 1]
    np.testing.assert_allclose(factor, 4 / 4.5, atol=0.02)
    assert np.square(found - signal).mean() < np.square(noise).mean()  # closer to the truth than what was observed


def test_what_is_uncertain_is_shrunk_more():
    values, error = np.ones((3, 1)), np.array([[0.1], [0.5], [5.0]])
    assert (np.diff(shrink(values * 3, error, values).ravel()) < 0).all()
    assert shrink(np.zeros((2, 1)), np.zeros((2, 1)), np.zeros((2, 1))).tolist() == [[0.0], [0.0]]


def test_entries_are_shrunk_deviations_from_the_mean_of_their_cell_type():
    p, t, numbers, memory = make()
    shifts, directions = numbers["shifts"], numbers["directions"]
    for k in range(T):
        rows = t == k
        mean = shifts.shift[rows].mean(0)
        np.testing.assert_allclose(memory.mean[k], mean, atol=1e-6)
        for r, direction in enumerate(directions):
            deviation = (shifts.shift[rows] - mean) @ direction
            error = (numbers["spread"].variance[k] @ direction**2) * numbers["spread"].contrast[rows]
            between = max(np.mean(deviation**2 - error), 0)
            assert float(memory.between[k, r]) == pytest.approx(between, abs=1e-6)
            np.testing.assert_allclose(
                memory.entries[p[rows], k, r], deviation * between / (between + error), atol=1e-6
            )
    assert (memory.n_cells[p, t].numpy() == shifts.n_cells).all()
    assert (memory.n_cells > 0).sum() == len(p)
    assert not memory.entries[memory.n_cells == 0].any()


def test_a_cell_type_sees_its_own_entries_and_elsewhere_all_others():
    _, _, _, memory = make()
    view = view_memory(memory, torch.arange(T), memory.controls, 0.0)
    for k in range(T):
        for q in range(P):
            assert bool(view.observed[k, q]) == bool(memory.n_cells[q, k] > 0)
            others = [memory.entries[q, j] for j in range(T) if j != k and memory.n_cells[q, j] > 0]
            expected = torch.stack(others).mean(0) if others else torch.zeros(R)
            torch.testing.assert_close(view.elsewhere[k, q], expected)
            assert bool(view.known[k, q]) == bool(expected.norm() > 1e-6)
    torch.testing.assert_close(view.entries.permute(1, 0, 2), memory.entries)


def test_what_responses_elsewhere_mean_here_is_learned_from_all_other_perturbations():
    """Ridge regression, fitted anew without each perturbation that both sides observed."""
    rng = np.random.default_rng(0)
    elsewhere = torch.from_numpy(rng.normal(size=(40, R)))
    here = elsewhere @ torch.from_numpy(rng.normal(size=(R, R))) + 0.5 * torch.from_numpy(rng.normal(size=(40, R)))
    in_both = torch.arange(40) < 30
    found = _mapped(elsewhere, here, in_both)
    options = []
    for penalty in PENALTIES:
        ridge = penalty * float(torch.linalg.eigvalsh(elsewhere[:30].T @ elsewhere[:30]).mean())
        slow = torch.zeros(40, R, dtype=torch.float64)
        for p in range(40):
            rows = [q for q in range(30) if q != p]
            slow[p] = torch.from_numpy(
                Ridge(ridge, fit_intercept=False).fit(elsewhere[rows], here[rows]).predict(elsewhere[p : p + 1])[0]
            )
        options.append((float(((slow - here)[:30] ** 2).sum()), slow))
    torch.testing.assert_close(found, min(options, key=lambda option: option[0])[1])
    assert ((found - here)[:30] ** 2).mean() < 0.6 * (here**2).mean()


@pytest.mark.parametrize("n_both", [0, 2])
def test_with_next_to_nothing_in_both_a_response_means_what_it_is_elsewhere(n_both):
    elsewhere = torch.randn(5, R)
    torch.testing.assert_close(_mapped(elsewhere, torch.randn(5, R), torch.arange(5) < n_both), elsewhere)


def test_an_unknown_cell_type_sees_all_and_most_the_one_it_resembles():
    _, _, _, memory = make(missing=0.0)
    near = memory.controls[1] + 1e-4
    view = view_memory(memory, torch.tensor([-1]), near[None], 0.0)
    torch.testing.assert_close(view.entries[0], memory.entries[:, 1], atol=1e-3, rtol=0)
    torch.testing.assert_close(view.mean[0], memory.mean[1], atol=1e-3, rtol=0)
    assert bool(view.observed.all())


def unit_table(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(P, D, generator=generator), dim=1)


def no_components(n_queries):
    return torch.zeros(n_queries, 0, dtype=torch.long)


def test_own_response_is_that_elsewhere_and_neighbours_give_what_they_did_here():
    _, _, _, memory = make()
    view = view_memory(memory, torch.arange(T), memory.controls, 0.25)
    mapped = view_memory(memory, torch.arange(T), memory.controls, 1.0).own
    table = make_query_table(unit_table(), unit_table(), torch.arange(P), 4, view=view, components=no_components(P))
    for query in range(1, P + 1):
        for t in range(T):
            recall = table.recall(torch.tensor([query, 0]), torch.tensor([t, t]))
            own = 0.75 * view.elsewhere[t, query - 1] + 0.25 * mapped[t, query - 1]
            is_known = bool(view.known[t, query - 1])
            assert bool(recall.own.present[0, 0]) == is_known
            torch.testing.assert_close(recall.own.response[0, 0], own * is_known)
            found = recall.neighbours
            for k in found.present[0].nonzero().ravel().tolist():
                torch.testing.assert_close(found.response[0, k], memory.entries[found.rows[0, k], t])
            assert not found.response[0][~found.present[0]].any()
            torch.testing.assert_close(recall.mean[0], memory.mean[t])
            for kind in recall.kinds:  # the control recalls nothing
                assert not kind.present[1].any()
                assert not kind.response[1].any()
            assert not recall.mean[1].any() and not recall.vectors[1].any()


def test_weighted_responses_are_those_of_components_and_the_rest():
    _, _, _, memory = make(missing=0.0)
    view = view_memory(memory, torch.arange(T), memory.controls, 0.0)
    pairs = torch.tensor([[-1, -1]] * 5 + [[1, 2], [3, 4]])
    table = make_query_table(unit_table(), unit_table(), torch.arange(P), 3, view=view, components=pairs)
    recall = table.recall(torch.tensor([1, 6]), torch.tensor([0, 2]))
    assert recall.sizes == [1, 2, 3]
    assert [ROLES[i] for i in recall.role] == ["own", "component", "component", *["neighbour"] * 3]
    weights = torch.rand(2, 6, 6)
    of_components, rest = recall.weighted(weights)
    joined = recall.joined
    for b in range(2):
        for s in range(6):
            each = [w * response for w, response in zip(weights[b, s], joined.response[b], strict=True)]
            torch.testing.assert_close(of_components[b, s], each[1] + each[2])
            torch.testing.assert_close(rest[b, s], each[0] + each[3] + each[4] + each[5])


def test_a_mini_batch_is_numbered_by_the_distinct_rows_of_its_sets():
    _, _, _, memory = make()
    view = view_memory(memory, torch.arange(T), memory.controls, 0.0)
    pairs = torch.tensor([[-1, -1]] * 6 + [[1, 2]])
    for options in ({}, {"view": view, "components": pairs}):
        table = make_query_table(unit_table(), unit_table(), torch.arange(P), 3, **options)
        batch = {"query": torch.tensor([0, 7, 2, 7]), "cell_type": torch.tensor([1, 0, 2, 2])}
        numbered = table.numbered(batch)
        recall = table.recall(batch["query"], batch["cell_type"])
        assert numbered["rows"].tolist() == sorted(set(recall.joined.rows.ravel().tolist()))
        assert torch.equal(numbered["rows"][numbered["slots"]], recall.joined.rows)


def test_the_shifts_of_components_add_up():
    """With weight 1: mean shift + what both say = shift of A + shift of B, where either was observed."""
    *_, memory = make(missing=0.4)
    view = view_memory(memory, torch.arange(T), memory.controls, 0.0)
    vectors = unit_table()
    pairs = torch.tensor([[1, 2], [3, 6], [2, -1], [-1, -1]])
    table = make_query_table(vectors[:4], vectors, torch.full((4,), -1), 3, view=view, components=pairs)
    kinds = set()
    for q in range(4):
        for v in range(T):
            recall = table.recall(torch.tensor([q + 1]), torch.tensor([v]))
            real = [k for k in pairs[q].tolist() if k >= 0]
            assert recall.components.present[0].tolist() == [k >= 0 for k in pairs[q].tolist()]
            assert recall.components.similarity.isnan().all()
            assert recall.own.similarity.isnan().all()
            assert not set(real) & set(recall.neighbours.rows[0][recall.neighbours.present[0]].tolist())
            expected = torch.zeros(R)
            for k in real:
                here = memory.n_cells[k, v] > 0
                kinds.add(bool(here))
                expected = expected + view.mean_low[v] + (memory.entries[k, v] if here else view.elsewhere[v, k])
            if real:
                torch.testing.assert_close(view.mean_low[v] + recall.components.response[0].sum(0), expected)
            else:
                assert not recall.components.response.any()
    assert kinds == {True, False}


def test_components_that_no_cell_type_observed_are_not_added():
    _, _, _, memory = make()
    memory.n_cells[4] = 0
    memory.entries[4] = 0.0
    view = view_memory(memory, torch.arange(T), memory.controls, 0.0)
    table = make_query_table(
        torch.eye(P)[:1], torch.eye(P), torch.tensor([-1]), 3, view=view, components=torch.tensor([[1, 4]])
    )
    for t in range(T):
        components = table.recall(torch.tensor([1]), torch.tensor([t])).components
        assert not components.present.any()
        assert not components.rows.any() and not components.response.any()


def test_rankings_are_taken_in_turns_until_enough_are_distinct():
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = int(rng.integers(1, 6))
        lists = [rng.permutation(9)[:n] for _ in range(2)]
        filled = [rng.random(n) < 0.8 for _ in range(2)]
        wanted = []
        for k in range(n):
            for names, there in zip(lists, filled, strict=True):
                if there[k] and names[k] not in wanted and len(wanted) < n:
                    wanted.append(int(names[k]))
        both = [
            Neighbours(torch.from_numpy(names)[None], torch.from_numpy(there)[None], torch.zeros(1, n, 1))
            for names, there in zip(lists, filled, strict=True)
        ]
        rows, present = alternate(*both, n)
        assert rows[0][present[0]].tolist() == wanted
        assert present[0].tolist() == [True] * len(wanted) + [False] * (n - len(wanted))


@pytest.mark.parametrize("random", [False, True])
def test_neighbours_are_others_that_were_observed_here(random):
    _, _, _, memory = make(3)
    view = view_memory(memory, torch.arange(T), memory.controls, 0.0)
    table = unit_table()
    own = torch.tensor([*range(P), -1])
    vectors = torch.cat([table, table[:1] * 0.5 + table[1:2]])
    keys = np.arange(P + 1) if random else None
    found = memory_neighbours(
        vectors, table, own, 4, view, components=no_components(P + 1), hidden=no_components(P + 1), random_keys=keys
    )
    for q in range(P + 1):
        for v in range(T):
            rows, present, similarity = (x[q * T + v] for x in found)
            has_own = q < P and bool(view.known[v, q])
            allowed = {k for k in range(P) if memory.n_cells[k, v] > 0 and k != q}
            chosen = rows[present].tolist()
            assert len(set(chosen)) == len(chosen) == min(4, len(allowed))
            assert set(chosen) <= allowed
            for k, (text, response) in zip(chosen, similarity[present], strict=True):
                assert float(text) == pytest.approx(float(table[k] @ vectors[q]), abs=1e-6)
                if not has_own or not view.known[v, k]:
                    assert response.isnan()
                    continue
                cosine = torch.cosine_similarity(view.elsewhere[v, q], view.elsewhere[v, k], dim=0)
                assert float(response) == pytest.approx(float(cosine), abs=1e-5)
            if not random and chosen:
                assert chosen[0] == max(allowed, key=lambda k: float(table[k] @ vectors[q]))


def test_an_empty_place_is_not_taken_for_a_known_response():
    """MemoryRefiner asks whether any place knows the query's response: an empty one must not seem to."""
    _, _, _, memory = make(missing=0.0)
    view = view_memory(memory, torch.arange(T), memory.controls, 0.0)
    table = torch.randn(P, 4)
    found = memory_neighbours(
        table[:2], table, torch.full((2,), -1), P + 3, view, components=no_components(2), hidden=no_components(2)
    )
    assert (~found.present).any(1).all()
    assert found.similarity[..., 1].isnan().all()
    assert not found.similarity[..., 0][~found.present].any()


def test_observed_shifts_times_the_scale_have_a_root_mean_square_of_one():
    p, t, _, memory = make(5)
    shifts = memory.entries[p, t] + (memory.mean @ memory.directions.T)[t]  # (C, R) of what was observed only
    assert float((shifts * response_scale(memory)).square().mean().sqrt()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("n_controls", [100, 30])
def test_shrinkage_is_that_of_a_deviation_from_perturbations_with_the_same_controls(n_controls):
    """100 perturbations of 50 cells: the error of the shared controls cancels, so that it must not shrink entries."""
    n, n_cells, between = 100, 50, 0.03
    rng = np.random.default_rng(0)
    labels = np.repeat([*(f"P{i:03d}" for i in range(n)), "control"], [n_cells] * n + [n_controls])
    index = ConditionIndex.from_labels(labels, np.full(len(labels), "T"), None, control="control")
    errors = []
    for _ in range(10):
        truth = rng.normal(0, between**0.5, (n, 5))
        cells = rng.normal(size=(len(labels), 5))
        cells[: n * n_cells] += np.repeat(truth, n_cells, axis=0)
        controls = control_means(CellReader(cells), index)
        shifts, spread = mean_shifts_and_spread(CellReader(cells), index, index.conditions, controls)
        memory = build_memory(
            np.arange(n),
            np.zeros(n, dtype=int),
            (n, 1),
            shifts=shifts,
            spread=spread,
            controls=controls.cell_type,
            directions=np.eye(5),
        )
        errors.append(np.mean((memory.entries[:, 0].numpy() - (truth - truth.mean(0))) ** 2))
    best = between * (1 / n_cells) / (between + 1 / n_cells)  # .012: of the shrinkage that knows both variances
    assert np.mean(errors) < 1.05 * best
