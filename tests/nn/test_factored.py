"""Do the factored layers equal the concatenated ones, outputs and gradients, whatever the sizes and blocks?"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from ptrag_sc.nn import FactoredScorer, Refiner, score_pairs
from ptrag_sc.nn import _factored as factored

TOLERANCE = 1e-12
SIZES = {"b": st.integers(1, 3), "s": st.integers(1, 7), "k": st.integers(1, 7), "h": st.integers(4, 11)}
SEEDS = st.integers(0, 10_000)


def concatenated(cells, query, keys):
    """[c; p; k] of every pair (B, S, K, 3H)."""
    b, s, h = cells.shape
    k = keys.shape[1]
    thirds = cells[:, :, None].expand(b, s, k, h), query[:, None, None].expand(b, s, k, h)
    return torch.cat([*thirds, keys[:, None].expand(b, s, k, h)], dim=-1)


def concatenated_scores(scorer, cells, query, keys):
    return scorer.out(F.gelu(scorer.hidden(scorer.norm(concatenated(cells, query, keys)))))


def concatenated_refiner(refiner, cells, query, keys, present, similarity, noise):
    """Select and average candidate by candidate."""
    logits = concatenated_scores(refiner.gates.scorer, cells, query, keys).squeeze(-1) + noise
    soft = torch.sigmoid(logits / refiner.gates.temperature)
    gates = ((logits > 0).to(soft) - soft.detach() + soft) * present[:, None]
    sharpness = F.softplus(refiner.sharpness)
    mass = torch.exp(similarity[..., 0] * sharpness - (similarity[..., 0] * sharpness).detach().amax())
    mass = torch.where(present, mass, 0.0)[:, None]
    total = (gates * mass).sum(-1, keepdim=True)
    total = torch.where(total > 0, total, mass.sum(-1, keepdim=True))
    weights = gates * mass / torch.where(total > 0, total, 1.0)
    return sum(weights[:, :, j, None] * refiner.value(keys[:, j])[:, None] for j in range(keys.shape[1]))


def normal(module, seed):
    torch.manual_seed(seed)
    module = module.double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def random_inputs(b, s, k, h):
    shapes = (b, s, h), (b, h), (b, k, h)
    return [torch.randn(*shape, dtype=torch.float64) * 2 + 1 for shape in shapes]


def assert_equal(fast, slow, inputs, parameters):
    """Outputs and all gradients of two functions of the same leaves agree to TOLERANCE of the largest entry."""
    results = []
    for function in (fast, slow):
        leaves = [x.clone().requires_grad_() for x in inputs]
        value = function(*leaves)
        weight = torch.linspace(-1, 2, value.numel(), dtype=torch.float64).reshape(value.shape)
        gradients = torch.autograd.grad((value * weight).sum(), [*leaves, *parameters], allow_unused=True)
        results.append((value.detach(), *gradients))
    largest = max(float(x.abs().max()) for x in results[1] if x is not None)
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            # A gradient that is 0 but for rounding is measured against the largest one.
            assert float((a - b).abs().max()) <= TOLERANCE * max(float(b.abs().max()), 1e-3 * largest)


@pytest.fixture(params=[1, 50, 2**18], ids=["cell by cell", "small blocks", "one block"])
def block(request, monkeypatch):
    monkeypatch.setattr(factored, "CPU_BLOCK", request.param)
    return request.param


@settings(max_examples=40, deadline=None)
@given(**SIZES, limit=st.sampled_from([1, 30, 200, 2**18]), seed=SEEDS)
def test_scores_equal_the_concatenated_form(b, s, k, h, limit, seed):
    scorer = normal(FactoredScorer(h, dropout=0.0), seed)
    inputs = random_inputs(b, s, k, h)
    before, factored.CPU_BLOCK = factored.CPU_BLOCK, limit
    try:
        assert_equal(scorer, lambda *x: concatenated_scores(scorer, *x), inputs, list(scorer.parameters()))
    finally:
        factored.CPU_BLOCK = before


@settings(max_examples=40, deadline=None)
@given(**SIZES, gates=st.sampled_from(["some", "all", "none"]), seed=SEEDS)
def test_the_refiner_equals_the_concatenated_form_under_masks(b, s, k, h, gates, seed):
    options = {"temperature": 0.5, "dropout": 0.0, "candidate_dropout": 0.0}
    refiner = normal(Refiner(h, gated=True, **options), seed)
    nn.init.constant_(refiner.sharpness, 1.0)
    inputs, similarity = random_inputs(b, s, k, h), torch.rand(b, k, 1, dtype=torch.float64)
    present = torch.rand(b, k) > 0.3
    # Noise far above or below every logit opens or closes all gates; a straight-through gradient stays either way.
    noise = torch.randn(b, s, k, dtype=torch.float64) + {"some": 0.0, "all": 500.0, "none": -500.0}[gates]
    rest = present, similarity, noise
    assert_equal(
        lambda *x: refiner(*x, *rest).context,
        lambda *x: concatenated_refiner(refiner, *x, *rest),
        inputs,
        list(refiner.parameters()),
    )


def test_blocks_change_nothing(block):
    scorer = normal(FactoredScorer(6, dropout=0.0), 0).float()
    cells, query, keys = (x.float() for x in random_inputs(3, 5, 4, 6))
    torch.testing.assert_close(scorer(cells, query, keys), concatenated_scores(scorer, cells, query, keys))


def test_no_tensor_of_all_hidden_pairs_is_kept_or_made(monkeypatch):
    monkeypatch.setattr(factored, "CPU_BLOCK", 5 * 4 * 8)
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            seen.extend(x.numel() for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, torch.Tensor))
            return result

    scorer = FactoredScorer(8, dropout=0.0)
    cells, query, keys = torch.randn(6, 10, 8, requires_grad=True), torch.randn(6, 8), torch.randn(6, 4, 8)
    with Watch():
        scorer(cells, query, keys).sum().backward()
    assert max(seen) <= max(6 * 10 * 8, 6 * 10 * 4)  # cells or scores; pairs would be 6 * 10 * 4 * 8


def test_scores_stay_in_float32_under_autocast():
    scorer = normal(FactoredScorer(16, dropout=0.0), 0).float()
    cells, query, keys = (x.float() for x in random_inputs(2, 5, 3, 16))
    with torch.no_grad():
        full = scorer(cells, query, keys)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = scorer(cells, query, keys)
    assert half.dtype == torch.float32
    assert float((half - full).abs().max()) < 0.05 * float(full.abs().max())


def test_gradients_of_the_score_layer_equal_finite_differences(block):
    torch.manual_seed(0)
    shapes = (2, 3, 4), (2, 2, 4), (4,), (2, 3, 2), (2, 4, 2)
    leaves = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def scores(cell, key, bias, scale, last):
        return score_pairs(factored.PairTerms(cell, key, bias), scale, last)

    assert torch.autograd.gradcheck(scores, leaves)
