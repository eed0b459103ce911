"""Does selection behave as described?"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ptrag_sc.nn import Refiner, logistic_noise, normalised_weights, straight_through_gates


def test_every_gate_is_open_before_training():
    refiner = Refiner(8, gated=True, temperature=0.5, dropout=0.1, candidate_dropout=0.0)
    logits = refiner.gates.scorer(torch.randn(2, 5, 8), torch.randn(2, 8), torch.randn(2, 3, 8))
    assert torch.equal(logits, torch.full((2, 5, 3, 1), 4.0))


def test_gates_are_hard_forward_and_relaxed_backward():
    logits = torch.tensor([[[-0.3, 0.0, 2.0]]], dtype=torch.float64, requires_grad=True)
    gates = straight_through_gates(logits, None, 0.5)
    assert gates.tolist() == [[[0.0, 0.0, 1.0]]]
    (gradient,) = torch.autograd.grad(gates.sum(), logits)
    sigma = torch.sigmoid(logits / 0.5)
    torch.testing.assert_close(gradient, sigma * (1 - sigma) / 0.5)


def test_logistic_noise_opens_gates_at_the_rate_of_the_sigmoid():
    torch.manual_seed(0)
    logits = torch.tensor([-1.0, 0.0, 1.5]).expand(20_000, 1, 3)
    rate = straight_through_gates(logits, logistic_noise(logits.shape, logits), 0.5).mean((0, 1))
    torch.testing.assert_close(rate, torch.sigmoid(logits[0, 0]), atol=0.015, rtol=0)


def slow_weights(gates, score, present):
    result = np.zeros_like(gates)
    for b, s in np.ndindex(gates.shape[:2]):
        mass = gates[b, s] * np.exp(score[b]) * present[b]
        if mass.sum() > 0:
            result[b, s] = mass / mass.sum()
    return result


def test_weights_equal_the_slow_version_and_survive_large_scores():
    rng = np.random.default_rng(0)
    gates = rng.integers(0, 2, size=(3, 5, 4)).astype(float)
    gates[0, 0] = 0
    present = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], dtype=bool)
    score = rng.normal(size=(3, 4)) * 3
    tensors = [torch.as_tensor(x) for x in (gates * present[:, None], score, present)]
    np.testing.assert_allclose(normalised_weights(*tensors), slow_weights(gates, score, present), rtol=1e-12)
    huge = normalised_weights(torch.ones(1, 1, 2), torch.tensor([[1e4, 0.0]]), torch.ones(1, 2, dtype=torch.bool))
    assert huge.tolist() == [[[1.0, 0.0]]]


@pytest.mark.parametrize("case", ["nothing open", "nothing present"])
def test_no_candidate_gives_zero_context_and_finite_gradients(case):
    torch.manual_seed(0)
    refiner = Refiner(8, gated=True, temperature=0.5, dropout=0.0, candidate_dropout=0.0).eval()
    nn.init.constant_(refiner.gates.scorer.out.bias, -4.0)
    present = torch.full((2, 3), case == "nothing open")
    keys = torch.randn(2, 3, 8, requires_grad=True)
    refined = refiner(torch.randn(2, 4, 8), torch.randn(2, 8), keys, present, torch.rand(2, 3, 1))
    assert (refined.weights == 0).all()
    assert (refined.context == 0).all()
    refined.context.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in refiner.parameters() if p.grad is not None)
    # Where candidates are there but closed, the gradient can open them again.
    moved = float(refiner.gates.scorer.out.bias.grad.abs().sum()) > 0
    assert moved == (case == "nothing open")


def test_unobserved_similarity_counts_as_zero_under_every_space():
    torch.manual_seed(0)
    refiner = Refiner(8, gated=False, temperature=0.5, dropout=0.0, candidate_dropout=0.0)
    inputs = torch.randn(1, 2, 8), torch.randn(1, 8), torch.randn(1, 3, 8), torch.ones(1, 3, dtype=torch.bool)
    similarity = torch.tensor([[[0.3], [float("nan")], [0.1]]])
    observed = refiner(*inputs, similarity)
    torch.testing.assert_close(observed.weights, refiner(*inputs, similarity.nan_to_num()).weights)


def test_attention_keeps_all_candidates_with_softmax_weights():
    torch.manual_seed(0)
    refiner = Refiner(8, gated=False, temperature=0.5, dropout=0.0, candidate_dropout=0.0)
    similarity = torch.rand(2, 4, 1)
    present = torch.ones(2, 4, dtype=torch.bool)
    refined = refiner(torch.randn(2, 3, 8), torch.randn(2, 8), torch.randn(2, 4, 8), present, similarity)
    expected = F.softmax(10.0 * similarity[..., 0], dim=-1)[:, None].expand(-1, 3, -1)
    torch.testing.assert_close(refined.weights, expected)
    assert (refined.gates == 1).all()


def test_a_cell_does_not_depend_on_its_batch_mates():
    torch.manual_seed(0)
    refiner = Refiner(8, gated=True, temperature=0.5, dropout=0.0, candidate_dropout=0.0).eval()
    for parameter in refiner.gates.scorer.parameters():
        nn.init.normal_(parameter)
    cells, query, keys = torch.randn(4, 5, 8), torch.randn(4, 8), torch.randn(4, 6, 8)
    present, similarity = torch.ones(4, 6, dtype=torch.bool), torch.rand(4, 6, 1)
    together = refiner(cells, query, keys, present, similarity)
    for b in range(4):
        alone = refiner(*(x[b : b + 1] for x in (cells, query, keys, present, similarity)))
        torch.testing.assert_close(alone.context[0], together.context[b])
        one_cell = refiner(cells[b : b + 1, 2:3], *(x[b : b + 1] for x in (query, keys, present, similarity)))
        torch.testing.assert_close(one_cell.context[0, 0], together.context[b, 2])


def test_deterministic_in_evaluation_and_random_in_training():
    torch.manual_seed(0)
    refiner = Refiner(8, gated=True, temperature=0.5, dropout=0.0, candidate_dropout=0.0)
    nn.init.zeros_(refiner.gates.scorer.out.bias)
    cells, query, keys = torch.randn(2, 16, 8), torch.randn(2, 8), torch.randn(2, 6, 8)
    inputs = cells, query, keys, torch.ones(2, 6, dtype=torch.bool), torch.rand(2, 6, 1)
    assert not torch.equal(refiner(*inputs).gates, refiner(*inputs).gates)
    refiner.eval()
    assert torch.equal(refiner(*inputs).gates, refiner(*inputs).gates)
    noise = logistic_noise(torch.Size([2, 16, 6]), inputs[0])
    assert torch.equal(refiner(*inputs, noise).gates, (noise > 0).float())


def test_candidates_are_withheld_per_set_in_training_only():
    torch.manual_seed(0)
    refiner = Refiner(8, gated=False, temperature=0.5, dropout=0.0, candidate_dropout=0.3)
    cells, query, keys = torch.randn(2000, 2, 8), torch.randn(2000, 8), torch.randn(2000, 6, 8)
    inputs = cells, query, keys, torch.ones(2000, 6, dtype=torch.bool), torch.rand(2000, 6, 1)
    refined = refiner(*inputs)
    used = refined.weights > 0
    assert torch.equal(used[:, 0], used[:, 1])
    assert abs(used.float().mean().item() - 0.7) < 0.02
    total = refined.weights.sum(-1)
    torch.testing.assert_close(total[used.any(-1)], torch.ones_like(total[used.any(-1)]))
    assert (refined.gates == 1).all()  # what was selected does not depend on what was withheld
    assert (refiner.eval()(*inputs).weights > 0).all()
