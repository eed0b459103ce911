"""Does the memory hold what was observed, as far as it can be trusted, and never a condition's own cells?"""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from ptrag_sc.data import Shifts, Spread
from ptrag_sc.retrieval import (
    Candidates,
    between_perturbations,
    build_memory,
    memory_candidates,
    shrink,
    tell,
    view_memory,
)
from ptrag_sc.retrieval._response_memory import _mapped
from ptrag_sc.retrieval._ridge import PENALTIES
from ptrag_sc.retrieval._two_spaces import alternate

P, T, G, R, D = 7, 3, 11, 4, 5


def make(seed=0, missing=0.25):
    """Return conditions with a gap here and there, their numbers, and the memory."""
    rng = np.random.default_rng(seed)
    observed = rng.random((P, T)) >= missing
    observed[:, 0] = observed[0] = True
    p, t = np.nonzero(observed)
    numbers = {
        "shifts": Shifts(rng.normal(size=(len(p), G)), rng.integers(2, 50, len(p))),
        "spread": Spread(rng.random((T, G)) * 0.2, rng.random(len(p))),
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
            error = (numbers["spread"].variance[k] @ direction**2) * numbers["spread"].scale[rows]
            between = max(np.mean(deviation**2 - error), 0)
            assert float(memory.between[k, r]) == pytest.approx(between, abs=1e-6)
            np.testing.assert_allclose(memory.low[p[rows], k, r], deviation * between / (between + error), atol=1e-6)
    assert (memory.n_cells[p, t].numpy() == shifts.n_cells).all()
    assert (memory.n_cells > 0).sum() == len(p)
    assert not memory.low[memory.n_cells == 0].any()


def test_a_cell_type_sees_its_own_entries_and_elsewhere_all_others():
    _, _, _, memory = make()
    view = view_memory(memory, torch.arange(T), memory.controls)
    for k in range(T):
        for q in range(P):
            assert bool(view.observed[k, q]) == bool(memory.n_cells[q, k] > 0)
            others = [memory.low[q, j] for j in range(T) if j != k and memory.n_cells[q, j] > 0]
            expected = torch.stack(others).mean(0) if others else torch.zeros(R)
            torch.testing.assert_close(view.elsewhere[k, q], expected)
            assert bool(view.known[k, q]) == bool(expected.norm() > 1e-6)
    torch.testing.assert_close(view.low.permute(1, 0, 2), memory.low)


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
    view = view_memory(memory, torch.tensor([-1]), near[None])
    torch.testing.assert_close(view.low[0], memory.low[:, 1], atol=1e-3, rtol=0)
    torch.testing.assert_close(view.mean[0], memory.mean[1], atol=1e-3, rtol=0)
    assert bool(view.observed.all())


def test_what_is_told_is_own_response_elsewhere_and_what_candidates_did_here():
    _, _, _, memory = make()
    view = view_memory(memory, torch.arange(T), memory.controls)
    indices, present = torch.tensor([[2, 0, 5], [1, 3, 0]]), torch.tensor([[True, True, True], [False, True, False]])
    told = tell(view, indices, present, torch.tensor([0, 2]), torch.tensor([True, False]), mapped=0.25, n_parts=0)
    own = 0.75 * view.elsewhere[0, 2] + 0.25 * view.mapped[0, 2]
    torch.testing.assert_close(told.low[0], torch.stack([own, memory.low[0, 0], memory.low[5, 0]]))
    torch.testing.assert_close(told.low[1], torch.stack([torch.zeros(R), memory.low[3, 2], torch.zeros(R)]))
    assert not told.mean[1].any() and not told.mean_low[1].any()
    weights = torch.rand(2, 6, 3)
    slow = torch.stack(
        [
            told.mean[b] + sum(weights[b, s, k] * told.low[b, k] @ memory.directions for k in range(3))
            for b in range(2)
            for s in range(6)
        ]
    ).view(2, 6, G)
    for n_parts in (0, 2):
        spoken, mask = told._replace(n_parts=n_parts).of(weights), torch.rand(2, 6) < 0.7
        mask[:, 0] = True
        start = spoken.start(memory.directions)
        torch.testing.assert_close(start + spoken.others @ memory.directions, slow)
        parts = weights[..., 1 : 1 + n_parts] @ told.low[:, 1 : 1 + n_parts] @ memory.directions
        torch.testing.assert_close(start.expand_as(slow), told.mean[:, None] + parts)
        mean = torch.stack([x[m].mean(0) for x, m in zip(slow, mask, strict=True)])
        torch.testing.assert_close(spoken.average(mask, memory.directions), mean)


def test_the_shifts_of_components_add_up():
    """With weight 1: mean shift + what both say = shift of A + shift of B, where either was observed."""
    *_, memory = make(missing=0.4)
    view = view_memory(memory, torch.arange(T), memory.controls)
    table = torch.nn.functional.normalize(torch.randn(P, D, generator=torch.Generator().manual_seed(0)), dim=1)
    pairs = torch.tensor([[1, 2], [3, 6], [2, -1], [-1, -1]])
    found = memory_candidates(table[:4], table, torch.full((4,), -1), 3, view, parts=pairs)
    kinds = set()
    for q in range(4):
        for v in range(T):
            row = found.take(torch.tensor([q * T + v]))
            real = [k for k in pairs[q].tolist() if k >= 0]
            assert row.present[0, 1:3].tolist() == [k >= 0 for k in pairs[q].tolist()]
            assert row.similarity[0, :3].isnan().all()
            assert not set(real) & set(row.indices[0, 3:][row.present[0, 3:]].tolist())
            told = tell(view, row.indices, row.present, torch.tensor([v]), torch.tensor([True]), mapped=0.0, n_parts=2)
            expected = torch.zeros(R)
            for k in real:
                here = memory.n_cells[k, v] > 0
                kinds.add(bool(here))
                expected = expected + view.mean_low[v] + (memory.low[k, v] if here else view.elsewhere[v, k])
            if real:
                torch.testing.assert_close(view.mean_low[v] + told.low[0, 1:3].sum(0), expected)
            else:
                assert not told.low[0, :3].any()
    assert kinds == {True, False}


def test_components_that_no_cell_type_observed_are_not_added():
    _, _, _, memory = make()
    memory.n_cells[4], memory.low[4] = 0, 0.0
    view = view_memory(memory, torch.arange(T), memory.controls)
    parts = torch.tensor([[1, 4]])
    found = memory_candidates(torch.eye(P)[:1], torch.eye(P), torch.tensor([-1]), 3, view, parts=parts)
    assert not found.present[:, 1:3].any() and (found.indices[:, 1:3] == 0).all()


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
            Candidates(torch.from_numpy(names)[None], torch.from_numpy(there)[None], torch.zeros(1, n, 1))
            for names, there in zip(lists, filled, strict=True)
        ]
        indices, present = alternate(*both, n)
        assert indices[0][present[0]].tolist() == wanted
        assert present[0].tolist() == [True] * len(wanted) + [False] * (n - len(wanted))


@pytest.mark.parametrize("random", [False, True])
def test_slots_hold_the_query_elsewhere_and_others_that_were_observed_here(random):
    _, _, _, memory = make(3)
    view = view_memory(memory, torch.arange(T), memory.controls)
    table = torch.nn.functional.normalize(torch.randn(P, D, generator=torch.Generator().manual_seed(0)), dim=1)
    own = torch.tensor([*range(P), -1])
    vectors = torch.cat([table, table[:1] * 0.5 + table[1:2]])
    keys = np.arange(P + 1) if random else None
    found = memory_candidates(vectors, table, own, 4, view, parts=own.new_zeros(P + 1, 0), random_keys=keys)
    for q in range(P + 1):
        for v in range(T):
            indices, present, similarity = (x[q * T + v] for x in found)
            has_own = q < P and bool(view.known[v, q])
            assert bool(present[0]) == has_own
            assert not has_own or int(indices[0]) == q
            assert similarity[0].isnan().all()
            allowed = {k for k in range(P) if memory.n_cells[k, v] > 0 and k != q}
            chosen = indices[1:][present[1:]].tolist()
            assert len(set(chosen)) == len(chosen) == min(4, len(allowed))
            assert set(chosen) <= allowed
            for k, (text, response) in zip(chosen, similarity[1:][present[1:]], strict=True):
                assert float(text) == pytest.approx(float(table[k] @ vectors[q]), abs=1e-6)
                if not has_own or not view.known[v, k]:
                    assert response.isnan()
                    continue
                cosine = torch.cosine_similarity(view.elsewhere[v, q], view.elsewhere[v, k], dim=0)
                assert float(response) == pytest.approx(float(cosine), abs=1e-5)
            if not random and chosen:
                assert chosen[0] == max(allowed, key=lambda k: float(table[k] @ vectors[q]))


def test_an_empty_slot_says_nothing_of_what_is_known_of_the_query():
    """As MemoryRefiner asks whether any slot knows the query's response: an empty one must not seem to."""
    _, _, _, memory = make(missing=0.0)
    view, table = view_memory(memory, torch.arange(T), memory.controls), torch.randn(P, 4)
    parts = torch.full((2, 0), -1)
    found = memory_candidates(table[:2], table, torch.full((2,), -1), P + 3, view, parts=parts)
    assert (~found.present).any(1).all()
    assert found.similarity[..., 1].isnan().all()
    assert not found.similarity[:, 1:, 0][~found.present[:, 1:]].any()
