"""Does the memory's refiner weigh what was observed as described?"""

import pytest
import torch
from torch.nn import functional as F

from ptrag_sc.nn import MemoryRefiner, energy_distance, masked_mean, mean_distance

H, K, V, B, S = 8, 4, 5, 3, 6
OPTIONS = {"gated": True, "temperature": 0.5, "dropout": 0.1, "candidate_dropout": 0.3, "value_dropout": 0.3}


def make(**options):
    torch.manual_seed(0)
    refiner = MemoryRefiner(H, V, **{**OPTIONS, **options})
    present = torch.rand(B, K + 1) < 0.7
    present[0], present[1], present[:, 1] = True, False, True
    similarity = torch.rand(B, K + 1, 2)
    similarity[:, 0] = torch.nan
    similarity[0, 2, 1] = torch.nan
    similarity[2, :, 1] = torch.nan
    inputs = torch.randn(B, S, H), torch.randn(B, H), torch.randn(B, K + 1, H), present, similarity
    return refiner, inputs, torch.randn(B, K + 1, V)


def test_untrained_weights_are_those_of_retrieval_alone():
    refiner, inputs, values = make()
    refiner.eval().start(torch.tensor([3.0, 7.0, 5.0]), 0.3, 1.0)
    found = refiner(*inputs, values=values)
    present, similarity = inputs[3:]
    for b in range(B):
        alone = bool(similarity[b, :, 1].isnan().all())
        score = (similarity[b].nan_to_num() * torch.tensor([5.0 if alone else 3.0, 7.0])).sum(1)
        mass = torch.exp(score[1:]) * present[b, 1:]
        expected = torch.cat([0.3 * present[b, :1], mass / mass.sum()])
        torch.testing.assert_close(found.weights[b], expected.expand(S, -1))
        assert (found.gates[b] == present[b].float()).all()


def test_components_have_one_weight_and_leave_the_rest_to_the_candidates():
    refiner, (*inputs, present, similarity), values = make()
    refiner.eval().start(torch.tensor([3.0, 7.0, 5.0]), 0.3, 0.8)
    present = present.clone()
    present[0, 1:3], present[1, 1:3], present[2, 1:3] = True, False, True
    found = refiner(*inputs, present, similarity, values=values, n_parts=2)
    alone = refiner(*inputs, present & (torch.arange(K + 1) > 2), similarity, values=values, n_parts=2)
    for b, weight in enumerate((0.8, 0.0, 0.8)):
        torch.testing.assert_close(found.weights[b, :, 1:3], torch.full((S, 2), weight))
        torch.testing.assert_close(found.weights[b, :, 3:], (1 - weight) * alone.weights[b, :, 3:])
        torch.testing.assert_close(found.weights[b, :, 0], torch.full((S,), (1 - weight) * 0.3 * present[b, 0]))


def test_slot_0_keeps_its_weight_in_training_and_candidates_share_one():
    refiner, inputs, values = make(temperature=0.5)
    found = refiner.train()(*inputs, noise=torch.zeros(B, S, K + 1), values=values)
    own = inputs[3][:, 0]
    torch.testing.assert_close(found.weights[own][..., 0], torch.full((int(own.sum()), S), 0.2))
    total = found.weights[..., 1:].sum(-1)
    assert (((total - 1).abs() < 1e-5) | (total == 0)).all()


def test_the_context_hears_every_slot_by_its_weight_and_teaches_none():
    refiner, inputs, values = make()
    found = refiner.eval()(*inputs, values=values, n_parts=1)
    for b in range(B):
        for s in range(S):
            heard = sum(w * v for w, v in zip(found.weights[b, s], values[b], strict=True))
            torch.testing.assert_close(found.context[b, s], refiner.value.weight @ heard + inputs[1][b])
    found.context.sum().backward()
    assert refiner.own.grad is refiner.parts.grad is refiner.sharpness.grad is None
    assert refiner.value.weight.grad.abs().sum() > 0


def test_the_context_seldom_hears_slot_0_in_training():
    refiner, (*inputs, _, similarity), values = make(candidate_dropout=0.5, value_dropout=0.0)
    own = torch.arange(K + 1).expand(B, -1) == 0
    torch.manual_seed(0)
    asked = {"values": values, "noise": torch.zeros(B, S, K + 1)}
    found = [refiner.train()(*inputs, own, similarity, **asked) for _ in range(200)]
    said = refiner.value(values[:, :1] * refiner.own) + inputs[1][:, None]
    heard = torch.stack([torch.isclose(f.context, said, atol=1e-5).all(-1).all(-1) for f in found])
    assert 0.4 < heard.float().mean() < 0.6
    assert all((f.weights[..., 0] == refiner.own).all() for f in found)


def test_nothing_present_and_a_zero_query_give_a_zero_context():
    refiner, (cells, query, keys, present, similarity), values = make()
    empty = torch.zeros_like(present)
    found = refiner.eval()(cells, 0 * query, keys, empty, similarity, values=values * 0)
    assert not found.context.any()
    assert not found.weights.any()


def test_gates_move_slower_than_those_of_the_text_retrieval():
    refiner, (cells, query, keys, *_), _ = make(dropout=0.0)
    start = refiner.score(cells, query, keys)
    torch.testing.assert_close(start, torch.full_like(start, 4.0))
    with torch.no_grad():
        refiner.scorer.out.bias += 1.0
    torch.testing.assert_close(refiner.score(cells, query, keys), start + 0.1)


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
