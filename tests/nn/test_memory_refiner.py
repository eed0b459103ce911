"""Does the memory's refiner weigh what was observed as described?"""

import pytest
import torch
from torch.nn import functional as F

from ptrag_sc.nn import MemoryRefiner, energy_distance, masked_mean, mean_distance
from ptrag_sc.retrieval import Evidence, Recall

H, K, L, B, S = 8, 4, 5, 3, 6
OPTIONS = {"gated": True, "temperature": 0.5, "dropout": 0.1, "candidate_dropout": 0.3, "value_dropout": 0.3}


def evidence(n_places, *, neighbours=False):
    """Return random evidence, all of it present."""
    similarity = torch.full((B, n_places, 2), torch.nan)
    if neighbours:
        similarity = torch.rand(B, n_places, 2)
    present = torch.ones(B, n_places, dtype=torch.bool)
    return Evidence(torch.zeros(B, n_places).long(), present, similarity, torch.randn(B, n_places, L))


def absent(kind, where):
    """Return evidence that is absent where told."""
    present = kind.present & ~where
    similarity = torch.where(where[..., None], torch.nan, kind.similarity)
    return kind._replace(present=present, similarity=similarity, response=kind.response * present[..., None])


def make(n_components=0, **options):
    """Return a refiner, cells, queries and keys, and what is recalled for B queries.

    Query 0 knows all; query 1 has no own response; of query 2 nothing is known in response space.
    """
    torch.manual_seed(0)
    refiner = MemoryRefiner(H, L, torch.tensor(1.0), **{**OPTIONS, **options})
    own, components, neighbours = evidence(1), evidence(n_components), evidence(K, neighbours=True)
    own = absent(own, torch.arange(B)[:, None] > 0)
    neighbours = absent(neighbours, (torch.rand(B, K) < 0.3) & (torch.arange(K) > 0))
    neighbours.similarity[0, 1, 1] = torch.nan
    neighbours.similarity[2, :, 1] = torch.nan
    recall = Recall(torch.randn(B, 7), torch.zeros(B, 11), own, components, neighbours)
    cells, query, keys = torch.randn(B, S, H), torch.randn(B, H), torch.randn(B, 1 + n_components + K, H)
    return refiner, (cells, query, keys), recall


def test_untrained_weights_are_those_of_retrieval_alone():
    refiner, inputs, recall = make()
    refiner.eval().set_weights(torch.tensor([3.0, 7.0, 5.0]), 0.3, 1.0)
    found = refiner(*inputs, recall)
    for b in range(B):
        present, similarity = recall.neighbours.present[b], recall.neighbours.similarity[b]
        text = 5.0 if similarity[:, 1].isnan().all() else 3.0
        mass = torch.exp((similarity.nan_to_num() * torch.tensor([text, 7.0])).sum(1)) * present
        expected = torch.cat([0.3 * recall.own.present[b], mass / mass.sum()])
        torch.testing.assert_close(found.weights[b], expected.expand(S, -1))
        assert (found.gates[b] == recall.joined.present[b].float()).all()


def test_components_have_one_weight_and_leave_the_rest_to_the_neighbours():
    refiner, (cells, query, keys), recall = make(n_components=2)
    refiner.eval().set_weights(torch.tensor([3.0, 7.0, 5.0]), 0.3, 0.8)
    is_single = torch.tensor([False, True, False])[:, None].expand(-1, 2)
    recall = recall._replace(components=absent(recall.components, is_single))
    found = refiner(cells, query, keys, recall)
    nothing = recall._replace(components=absent(recall.components, torch.ones(B, 2, dtype=torch.bool)))
    alone = refiner(cells, query, keys, nothing)
    for b, weight in enumerate((0.8, 0.0, 0.8)):
        own, components, neighbours = found.weights[b].split(recall.sizes, dim=-1)
        torch.testing.assert_close(components, torch.full((S, 2), weight))
        torch.testing.assert_close(neighbours, (1 - weight) * alone.weights[b, :, 3:])
        torch.testing.assert_close(own[:, 0], torch.full((S,), (1 - weight) * 0.3 * recall.own.present[b, 0]))


def test_the_own_response_keeps_its_weight_in_training_and_neighbours_share_one():
    refiner, inputs, recall = make()
    found = refiner.train()(*inputs, recall, noise=torch.zeros(B, S, 1 + K))
    has_own = recall.own.present[:, 0]
    torch.testing.assert_close(found.weights[has_own][..., 0], torch.full((int(has_own.sum()), S), 0.2))
    total = found.weights[..., 1:].sum(-1)
    assert (((total - 1).abs() < 1e-5) | (total == 0)).all()


def test_the_context_is_the_weighted_mean_of_responses_and_trains_no_weight():
    refiner, inputs, recall = make(n_components=1)
    found = refiner.eval()(*inputs, recall)
    responses = recall.joined.response
    for b in range(B):
        for s in range(S):
            mean = sum(w * v for w, v in zip(found.weights[b, s], responses[b], strict=True))
            torch.testing.assert_close(found.context[b, s], refiner.value.weight @ mean + inputs[1][b])
    found.context.sum().backward()
    assert refiner.own.grad is refiner.components.grad is refiner.sharpness.grad is None
    assert refiner.value.weight.grad.abs().sum() > 0


def test_responses_are_scaled_before_they_become_context_and_keys():
    refiner, inputs, recall = make()
    bigger = recall._replace(
        **{n: getattr(recall, n)._replace(response=3 * getattr(recall, n).response) for n in ("own", "neighbours")}
    )
    first = refiner.eval()(*inputs, bigger)
    refiner.scale.fill_(3.0)
    second = refiner(*inputs, recall)
    torch.testing.assert_close(first.context, second.context)
    torch.testing.assert_close(first.gates, second.gates)


def test_the_context_lacks_the_own_response_in_part_of_the_training_steps():
    refiner, inputs, recall = make(candidate_dropout=0.5, value_dropout=0.0)
    recall = recall._replace(own=evidence(1), neighbours=absent(recall.neighbours, torch.ones(B, K, dtype=torch.bool)))
    torch.manual_seed(0)
    found = [refiner.train()(*inputs, recall, noise=torch.zeros(B, S, 1 + K)) for _ in range(200)]
    whole = refiner.value(recall.own.response * refiner.own) + inputs[1][:, None]
    is_whole = torch.stack([torch.isclose(f.context, whole, atol=1e-5).all(-1).all(-1) for f in found])
    assert 0.4 < is_whole.float().mean() < 0.6
    assert all((f.weights[..., 0] == refiner.own).all() for f in found)


def test_nothing_present_and_a_zero_query_give_a_zero_context():
    refiner, (cells, query, keys), recall = make()
    kinds = {n: absent(getattr(recall, n), torch.ones_like(getattr(recall, n).present)) for n in ("own", "neighbours")}
    found = refiner.eval()(cells, 0 * query, keys, recall._replace(**kinds))
    assert not found.context.any()
    assert not found.weights.any()


def test_gates_move_slower_than_those_of_the_text_retrieval():
    refiner, inputs, _ = make(dropout=0.0)
    first = refiner.gates.logits(*inputs)
    torch.testing.assert_close(first, torch.full_like(first, 4.0))
    with torch.no_grad():
        refiner.gates.scorer.out.bias += 1.0
    torch.testing.assert_close(refiner.gates.logits(*inputs), first + 0.1)


@pytest.mark.parametrize("shift", [0.5, 1.0])
def test_the_distance_of_means_is_the_energy_distance_of_shifted_populations(shift):
    torch.manual_seed(0)
    x = torch.randn(8, 400, 300)
    y = torch.randn(8, 300, 300) + shift * F.normalize(torch.randn(300), dim=0)
    masks = torch.ones(8, 400, dtype=torch.bool), torch.ones(8, 300, dtype=torch.bool)
    masks[0][:, 350:] = False
    x[:, 350:] = 99.0  # padding
    energy, means = energy_distance(x, y, *masks), mean_distance(x[:, :350].mean(1), y, masks[1])
    sampling = (300 / 350 + 300 / 300) / (2 * 300) ** 0.5  # of the means of two samples
    torch.testing.assert_close(means.mean() - sampling, energy.mean(), atol=0.004, rtol=0.1)


def test_means_keep_their_digits_under_autocast():
    x = 4 + 0.01 * torch.randn(2, 50, 30)
    mask = torch.ones(2, 50, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(masked_mean(x, mask), x.mean(1))
