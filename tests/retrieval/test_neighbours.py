"""Are the nearest neighbours the nearest, and never the query itself?"""

import numpy as np
import torch

from ptrag_sc.retrieval import _neighbours as module
from ptrag_sc.retrieval import make_query_table, nearest_neighbours


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return torch.as_tensor(x / np.linalg.norm(x, axis=-1, keepdims=True))


def test_equals_a_sort_and_excludes_the_query_by_index(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 7)  # several chunks
    rng = np.random.default_rng(0)
    table = unit(rng, 12, 5)
    table[3] = table[2]  # a twin under another name is a candidate
    own = torch.as_tensor([*range(12), -1, -1])
    queries = torch.cat([table, unit(rng, 2, 5)])
    found = nearest_neighbours(queries, table, own, 4)
    for q, (row, o) in enumerate(zip(queries.numpy(), own.tolist(), strict=True)):
        cosine = table.numpy() @ row
        allowed = [i for i in np.argsort(-cosine, kind="stable") if i != o][:4]
        np.testing.assert_allclose(found.similarity[q, :, 0], cosine[allowed])
        assert o not in found.rows[q].tolist()
    assert found.present.all()
    assert 3 in found.rows[2].tolist()


def test_ties_do_not_depend_on_what_else_is_asked():
    rng = np.random.default_rng(3)
    table = unit(rng, 40, 64).float()
    pairs = torch.nn.functional.normalize(table[0::2] + table[1::2], dim=1)  # each as near to one part as to the other
    none = torch.full((20,), -1)
    together = nearest_neighbours(pairs, table, none, 5)
    for q in range(20):
        alone = nearest_neighbours(pairs[q : q + 1], table, none[:1], 5)
        assert alone.rows[0].tolist() == together.rows[q].tolist()
        assert {2 * q, 2 * q + 1} <= set(together.rows[q].tolist())


def test_rows_that_are_hidden_are_not_retrieved():
    rng = np.random.default_rng(5)
    table = unit(rng, 30, 6)
    own = torch.arange(30)
    others = torch.stack([(own + 1) % 30, torch.where(own % 2 == 0, (own + 2) % 30, -1)], dim=1)  # -1: padding
    found = nearest_neighbours(table, table, torch.cat([own[:, None], others], dim=1), 5)
    hidden = make_query_table(table, table, own, 5, hidden=others)
    assert torch.equal(hidden.neighbours.rows[1:], found.rows)
    for q in range(30):
        cosine = table[q].numpy() @ table.numpy().T
        refused = {q, *others[q].tolist()}
        assert found.rows[q].tolist() == [i for i in np.argsort(-cosine, kind="stable") if i not in refused][:5]


def test_places_that_cannot_be_filled_are_absent():
    rng = np.random.default_rng(1)
    table = unit(rng, 3, 4)
    found = nearest_neighbours(table, table, torch.arange(3), 3)
    assert found.present.tolist() == [[True, True, False]] * 3
    assert (found.similarity[:, 2] == 0).all()


def test_a_vector_with_zeros_is_no_control():
    table = torch.nn.functional.normalize(torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1]]), dim=1)
    found = nearest_neighbours(table, table, torch.arange(4), 2)
    assert found.present.all()
    assert found.rows[:3].tolist() == [[1, 2], [0, 2], [1, 0]]


def test_the_control_is_a_zero_vector_that_retrieves_nothing():
    rng = np.random.default_rng(2)
    table = unit(rng, 6, 4)
    queries = make_query_table(table[:2], table, torch.tensor([0, 1]), 3)
    assert (queries.vectors[0] == 0).all()
    assert not queries.neighbours.present[0].any()
    assert queries.neighbours.present[1:].all()
    only_control = make_query_table(table[:0], table, torch.zeros(0, dtype=torch.long), 3)
    assert only_control.vectors.shape == (1, 4)


def test_of_exact_equals_the_first_in_the_table_comes_first():
    rng = np.random.default_rng(4)
    table = unit(rng, 1, 6).expand(24, 6).clone().float()  # no more than K + MARGIN
    found = nearest_neighbours(table[:2], table, torch.tensor([0, 7]), 20)
    assert found.rows[0].tolist() == list(range(1, 21))
    assert found.rows[1].tolist() == [i for i in range(21) if i != 7]
