"""Does a model start with the weights that the screen suggests?"""

from functools import cache

import numpy as np
import pytest
import torch

from ptrag_sc.data import Shifts, Spread
from ptrag_sc.retrieval import (
    _initial_weights,
    alike,
    build_memory,
    initial_weights,
    make_query_table,
    view_memory,
)


@pytest.fixture(scope="module", autouse=True)
def coarse():
    """A quarter of the grid: what is tested does not hang on its steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_initial_weights, "SHARPNESS", _initial_weights.SHARPNESS[::2])
        yield


P, T, G, R = 200, 2, 40, 12


@cache
def started(*, text: bool, own: float, seed: int = 0):
    """Return the start for responses that follow the embedding, or not, and are alike in two cell types, or not."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(P, 3))
    latent /= np.linalg.norm(latent, axis=1, keepdims=True)
    maps = rng.normal(size=(3, G))
    shared = latent @ maps
    private = rng.normal(size=(T, P, G)) * 2
    shifts = np.concatenate([shared * bool(text) + own * private[0] + (1 - own) * private[t] * 0.5 for t in range(T)])
    p, t = np.tile(np.arange(P), T), np.repeat(np.arange(T), P)
    table = torch.tensor(latent if text else rng.normal(size=(P, 3)), dtype=torch.float32)
    table = torch.nn.functional.normalize(table, dim=1)
    memory = build_memory(
        p,
        t,
        (P, T),
        shifts=Shifts(shifts, np.full(P * T, 50)),
        spread=Spread(np.full((T, G), 0.01), np.ones(P * T), np.ones(P * T)),
        controls=np.zeros((T, G)),
        directions=np.linalg.svd(shifts, full_matrices=False)[2][:R],
    )
    view = view_memory(memory, torch.arange(T), memory.controls, 1.0)
    components = torch.zeros(P, 0, dtype=torch.long)
    queries = make_query_table(table, table, torch.arange(P), 20, view=view, components=components)
    return initial_weights(queries, view, torch.as_tensor(p), torch.as_tensor(t))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_an_embedding_that_tells_the_response_is_trusted(seed):
    informed, blind = (started(text=text, own=0.0, seed=seed) for text in (True, False))
    assert informed.sharpness[0] > 1
    assert informed.score > blind.score + 0.2
    assert blind.score == pytest.approx(0.25, abs=0.1)  # no cosine, and half of a rank in the middle


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_response_that_repeats_elsewhere_gets_weight(seed):
    assert started(text=True, own=1.0, seed=seed).own >= 0.5
    assert started(text=False, own=0.0, seed=seed).own <= 0.3


def test_without_neighbours_nothing_is_claimed():
    """Two perturbations: the mean of the others is minus the deviation itself, and no weight can know more."""
    memory = build_memory(
        np.array([0, 1]),
        np.array([0, 0]),
        (2, 1),
        shifts=Shifts(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([9, 9])),
        spread=Spread(np.zeros((1, 2)), np.ones(2), np.ones(2)),
        controls=np.zeros((1, 2)),
        directions=np.eye(2),
    )
    view = view_memory(memory, torch.tensor([0]), memory.controls, 1.0)
    nothing = torch.zeros(2, 0, dtype=torch.long)
    queries = make_query_table(torch.eye(2), torch.eye(2), torch.arange(2), 1, view=view, components=nothing)
    start = initial_weights(queries, view, torch.tensor([0, 1]), torch.tensor([0, 0]))
    assert start.score == pytest.approx(0.0, abs=1e-6)
    assert start.sharpness.tolist()[0] == 0.0


def test_additive_answers_do_not_know_the_combination_by_the_mean_shift():
    """Built anew without the combination in the mean: components known here, one here and one elsewhere, none here."""
    rng = np.random.default_rng(0)
    known = [(p, 0) for p in (0, 1, 2, 4, 5, 6)] + [(p, 1) for p in (0, 1, 3, 4)]  # 3 is G1+G0, 5 G0+G4, 6 G3+G3
    p, t = np.array(known).T
    memory = build_memory(
        p,
        t,
        (7, 2),
        shifts=Shifts(rng.normal(size=(len(p), 12)), np.full(len(p), 50)),
        spread=Spread(np.full((2, 12), 1e-4), np.ones(len(p)), np.ones(len(p))),
        controls=np.zeros((2, 12)),
        directions=np.eye(12),
    )
    view = view_memory(memory, torch.arange(2), memory.controls, 1.0)
    pairs = torch.tensor([[-1, -1]] * 4 + [[0, 1], [0, 3], [3, 3]])
    vectors = torch.nn.functional.normalize(torch.randn(7, 8), dim=1)
    queries = make_query_table(vectors, vectors, torch.arange(7), 4, view=view, components=pairs)
    rows, here = torch.arange(4, 7), torch.zeros(3).long()
    asked = _initial_weights._LeftOut(view, queries.recall(rows + 1, here), rows, here)
    n = int(view.observed[0].sum())
    for i, row in enumerate(rows):
        moved = view.entries[0, row] / (n - 1)
        entries, mean = view.entries.clone(), view.mean_low.clone()
        entries[0, view.observed[0]] += moved
        mean[0] -= moved
        without = queries._replace(view=view._replace(entries=entries, mean_low=mean))
        recall = without.recall(rows[i : i + 1] + 1, here[:1])
        expected = mean[0] + recall.components.response[0].sum(0)
        torch.testing.assert_close(asked.mean_of_others[i] + asked.components[i], expected)


@pytest.mark.parametrize("factor", [0.4, 1.0])
def test_combinations_tell_how_far_their_components_add_up(factor):
    rng = np.random.default_rng(0)
    singles, pairs = rng.normal(size=(40, G)), np.array([(i, i + 1) for i in range(0, 40, 2)])
    shifts = np.concatenate([singles, factor * singles[pairs].sum(1)])
    n = len(shifts)
    memory = build_memory(
        np.arange(n),
        np.zeros(n, dtype=int),
        (n, 1),
        shifts=Shifts(shifts, np.full(n, 50)),
        spread=Spread(np.full((1, G), 1e-4), np.ones(n), np.ones(n)),
        controls=np.zeros((1, G)),
        directions=np.linalg.svd(shifts, full_matrices=False)[2],
    )
    view = view_memory(memory, torch.zeros(1).long(), memory.controls, 1.0)
    components = torch.cat([torch.full((40, 2), -1), torch.from_numpy(pairs)])
    table = torch.nn.functional.normalize(torch.randn(n, 8), dim=1)
    queries = make_query_table(table, table, torch.arange(n), 20, view=view, components=components)
    start = initial_weights(queries, view, torch.arange(n), torch.zeros(n).long())
    assert start.components >= 0.9  # the direction is theirs, whatever the size


def test_alike_is_one_standard_error_of_the_paired_difference_to_the_best():
    """The bound is one error, of n - 1, and neither the spread of the scores nor two errors."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=(1, 30)) * 100
    noise = rng.normal(size=30)
    noise = (noise - noise.mean()) / noise.std(ddof=1)  # mean 0, variance 1
    behind = np.array([0.0, 0.99, 1.01, 1.9])[:, None] / np.sqrt(30)  # in standard errors
    scores = torch.from_numpy(common - behind - noise * np.array([0.0, 1.0, 1.0, 1.0])[:, None])
    assert alike(scores).tolist() == [True, True, False, False]
    among = torch.tensor([False, True, True, True])
    assert alike(scores, among).tolist() == [False, True, False, False]
    assert alike(scores[:, :1]).all()  # one condition has no error
