"""Is the lazily updated variance that of the whole matrix, and is every kernel a covariance?"""

import numpy as np
import pytest

from ptrag_sc.retrieval import PerturbationKernel, RemainingVariance

N = 60
TARGETS, CANDIDATES, MEASURED = np.arange(30), np.setdiff1d(np.arange(20, 55), [40]), np.array([3, 40, 57])
WITH_RESPONSE = np.arange(10, 35)


def vectors(seed=0, n=N, width=5):
    made = np.random.default_rng(seed).normal(size=(n, width))
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def kernels():
    return {
        "text": PerturbationKernel.of_text(vectors()),
        "responses": PerturbationKernel.of_responses(vectors()),
        "both": PerturbationKernel.of_both(vectors(), WITH_RESPONSE, vectors(1, len(WITH_RESPONSE), 4)),
    }


def slow_covariance(kernel, targets, measured):
    """The covariance of all perturbations, the mean of the targets being the origin, given what was measured."""
    whole = kernel.block(np.arange(N), np.arange(N)).astype(float)
    centre = np.eye(N) - np.isin(np.arange(N), targets)[None] / len(targets)
    covariance = centre @ whole @ centre.T
    for j in measured:
        covariance = after(covariance, j)
    return covariance


def after(covariance, j):
    return covariance - np.outer(covariance[:, j], covariance[j]) / (covariance[j, j] + 1)


@pytest.mark.parametrize("kernel", kernels().values(), ids=kernels())
@pytest.mark.parametrize("measured", [MEASURED, MEASURED[:0]], ids=["some measured", "none measured"])
def test_every_step_is_that_of_the_whole_covariance(kernel, measured):
    state = RemainingVariance(kernel, TARGETS, CANDIDATES, measured)
    whole = slow_covariance(kernel, TARGETS, measured)
    assert np.isclose(state.total, np.trace(whole[np.ix_(TARGETS, TARGETS)]))
    for _ in range(8):
        gain = np.array([(whole[TARGETS, j] ** 2).sum() / (whole[j, j] + 1) for j in CANDIDATES])
        np.testing.assert_allclose(state.reduction, gain, atol=1e-9)
        best = int(gain.argmax())
        next_ = after(whole, CANDIDATES[best])
        removed = np.trace((whole - next_)[np.ix_(TARGETS, TARGETS)])
        assert np.isclose(state.measure(best), removed)
        whole = next_


def test_single_precision_chooses_the_same():
    single = PerturbationKernel.of_text(vectors().astype(np.float32))
    chosen = [RemainingVariance(k, TARGETS, CANDIDATES, MEASURED).choose(20) for k in (single, kernels()["text"])]
    assert chosen[0].chosen.tolist() == chosen[1].chosen.tolist()
    np.testing.assert_allclose(chosen[0].reduction, chosen[1].reduction, rtol=1e-3)


def test_kernels_are_covariances():
    for kernel in kernels().values():
        whole = kernel.block(np.arange(N), np.arange(N))
        np.testing.assert_allclose(np.diag(whole), kernel.diagonal(np.arange(N)))
        assert np.linalg.eigvalsh(whole).min() > 0
    # A patch of one kernel into the other is none, so the test above can fail.
    text, responses = (kernels()[name].block(np.arange(N), np.arange(N)) for name in ("text", "responses"))
    patched = text.copy()
    patched[np.ix_(WITH_RESPONSE, WITH_RESPONSE)] = responses[np.ix_(WITH_RESPONSE, WITH_RESPONSE)]
    assert np.linalg.eigvalsh(patched).min() < 0


def test_between_known_responses_the_kernel_of_both_is_that_of_responses():
    found = kernels()["both"].block(WITH_RESPONSE, WITH_RESPONSE)
    own = PerturbationKernel.of_responses(vectors(1, len(WITH_RESPONSE), 4))
    rows = np.arange(len(WITH_RESPONSE))
    expected = own.block(rows, rows)
    centre = np.eye(len(rows)) - 1 / len(rows)
    found, expected = centre @ found @ centre, centre @ expected @ centre
    np.testing.assert_allclose(found / np.trace(found), expected / np.trace(expected), atol=1e-9)


def test_part_of_a_kernel():
    part = np.array([50, 12, 3, 30])
    for kernel in kernels().values():
        np.testing.assert_array_equal(kernel.among(part).block(np.arange(4), np.arange(4)), kernel.block(part, part))


def test_costs_and_budget():
    costs = np.random.default_rng(2).uniform(1, 9, len(CANDIDATES))
    state = RemainingVariance(kernels()["text"], TARGETS, CANDIDATES, MEASURED)
    choice = state.choose(30, first=np.array([4]), costs=costs, budget=20.0)
    assert choice.chosen[0] == 4
    assert len(set(choice.chosen)) == len(choice.chosen)
    assert costs[choice.chosen].sum() <= 20 < costs[choice.chosen].sum() + np.delete(costs, choice.chosen).min()
    # Every choice after the first has the largest gain per cost among those that can still be paid.
    whole, left = slow_covariance(kernels()["text"], TARGETS, [*MEASURED, CANDIDATES[4]]), 20.0 - costs[4]
    taken = [4]
    for j in choice.chosen[1:]:
        gain = np.array([(whole[TARGETS, c] ** 2).sum() / (whole[c, c] + 1) for c in CANDIDATES]) / costs
        gain[taken] = -1
        gain[costs > left] = -1
        assert j == gain.argmax()
        whole, left = after(whole, CANDIDATES[j]), left - costs[j]
        taken.append(j)
