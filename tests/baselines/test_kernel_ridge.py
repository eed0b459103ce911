"""Does the kernel ridge predict what its formula says, with the penalty that its own refits choose?"""

import numpy as np
import pytest

from baselines.oracles import mean_of, predicted_shift, slow_response, slow_shifts, three_lines, vector
from ptrag_sc.baselines import KernelRidge
from ptrag_sc.baselines._kernel_ridge import Fit
from ptrag_sc.retrieval import KernelRidge as Ridge
from ptrag_sc.retrieval import similarity_kernel
from ptrag_sc.retrieval._kernel import PENALTIES, _sketch


def cosines(a, b):
    unit = [np.array([x / np.linalg.norm(x) for x in rows]) for rows in (a, b)]
    return unit[0] @ unit[1].T


def kernel(vectors, others, responses=None, other_responses=None):
    if responses is None:
        return np.exp((cosines(vectors, others) - 1) / 0.2)
    return np.exp((cosines(responses, other_responses) - 1) / 0.5 + cosines(vectors, others) - 1)


def slow_ridge(known, outcomes, row, penalty):
    """Return the prediction of a kernel row, written as weights of features that are centred, never of a kernel."""
    values, axes = np.linalg.eigh(known)
    features = axes * np.sqrt(values.clip(0))  # their products are the kernel
    query = np.linalg.lstsq(features, row, rcond=1e-10)[0]  # its features, as far as the others tell
    mean = features.mean(0)
    centred = features - mean
    alpha = penalty
    weights = np.linalg.solve(
        centred.T @ centred + alpha * np.eye(len(mean)), centred.T @ (outcomes - outcomes.mean(0))
    )
    return outcomes.mean(0) + (query - mean) @ weights


def best_penalty(known, outcomes):
    """Refit without each row in turn; also the error of each row."""
    n = len(known)
    middle = np.eye(n) - 1 / n
    scale = np.trace(middle @ known @ middle) / n
    errors = []
    for penalty in PENALTIES:
        rows = []
        for i in range(n):
            others = np.arange(n) != i
            found = slow_ridge(known[np.ix_(others, others)], outcomes[others], known[i, others], penalty * scale)
            rows.append(np.square(found - outcomes[i]).sum())
        errors.append(rows)
    best = int(np.sum(errors, axis=1).argmin())
    return PENALTIES[best] * scale, np.array(errors[best])


def expected(adata, query, line, *, by_response):
    shifts = {p: s for (p, t), s in slow_shifts(adata).items() if t == line}
    names = sorted(shifts)
    parts = [np.array([vector(adata, query)]), np.array([vector(adata, p) for p in names])]
    if by_response:
        every = slow_shifts(adata)
        names = [p for p in names if slow_response(every, p, line) is not None]
        of_query = slow_response(every, query, line)
        assert of_query is not None
        parts[1] = np.array([vector(adata, p) for p in names])
        parts += [of_query[None], np.array([slow_response(every, p, line) for p in names])]
    outcomes = np.array([shifts[p] for p in names])
    known = kernel(parts[1], parts[1], *(parts[3:] * 2))
    penalty, errors = best_penalty(known, outcomes)
    row = kernel(*parts[:2], *parts[2:])[0]
    return slow_ridge(known, outcomes, row, penalty), dict(zip(names, errors, strict=True))


@pytest.fixture(scope="module")
def adata():
    return three_lines()


def test_unseen_queries_are_predicted_from_their_embedding(adata):
    fitted = KernelRidge(adata).fit()
    for space in ("gene_embedding", "response"):
        fitted = KernelRidge(adata, space=space).fit()
        shift, _ = expected(adata, "G7", "RPE1", by_response=False)  # seen nowhere
        np.testing.assert_allclose(predicted_shift(fitted, "G7", "RPE1"), shift, atol=1e-4)


def test_known_queries_are_predicted_in_the_space_that_leaves_out_better(adata):
    fitted = KernelRidge(adata).fit()
    used = set()
    for line in ("HepG2", "K562", "RPE1"):
        query = {"HepG2": "G6", "K562": "G0", "RPE1": "G1"}[line]  # held out here, seen elsewhere
        by_vector, of_vector = expected(adata, query, line, by_response=False)
        by_response, of_response = expected(adata, query, line, by_response=True)
        better = sum(of_response.values()) <= sum(of_vector[name] for name in of_response)
        used.add(better)
        shift = by_response if better else by_vector
        np.testing.assert_allclose(predicted_shift(fitted, query, line), shift, atol=1e-4)
        assert np.abs(by_response - by_vector).max() > 1e-3
    assert True in used  # the second kernel is tested too


def test_a_cell_type_without_training_data_has_the_mean_over_the_others(adata):
    def one_line(changed):
        changed.obs.loc[changed.obs["line"] == "RPE1", "split"] = "test"
        return changed

    changed = three_lines(one_line)
    every = slow_shifts(changed)
    names = sorted({p for p, _ in every})
    outcomes = np.array([np.mean([s for (q, _), s in every.items() if q == p], axis=0) for p in names])
    vectors = np.array([vector(changed, p) for p in names])
    known = kernel(vectors, vectors)
    penalty, _ = best_penalty(known, outcomes)
    shift = slow_ridge(known, outcomes, kernel(np.array([vector(changed, "G7")]), vectors)[0], penalty)
    np.testing.assert_allclose(predicted_shift(KernelRidge(changed).fit(), "G7", "RPE1"), shift, atol=1e-4)
    assert np.abs(shift - mean_of(every)).max() > 1e-3


def test_the_sketch_of_many_outcomes_chooses_the_penalty_of_all_of_them():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 6))
    known = similarity_kernel(vectors, vectors, 1.0)
    for noise in (0.3, 3.0, 30.0):
        outcomes = np.tanh(vectors @ rng.normal(size=(6, 1500))) + noise * rng.normal(size=(40, 1500))
        fits = [Ridge.fit(known, outcomes, penalties=(penalty,)) for penalty in PENALTIES]
        errors = [np.square(fit.left_out() - outcomes).sum() for fit in fits]
        assert Ridge.fit(known, outcomes).penalty == PENALTIES[int(np.argmin(errors))]
    np.testing.assert_array_equal(_sketch(outcomes[:, :200]), outcomes[:, :200])
    np.testing.assert_allclose(np.square(_sketch(outcomes)).sum(), np.square(outcomes).sum(), rtol=0.02)


def test_few_and_many_queries_have_the_same_answer() -> None:
    """Few are answered without the coefficients, which cost as much as the answers to P queries."""
    rng = np.random.default_rng(0)
    fit = Fit.of(rng.normal(size=(20, 7)), rng.normal(size=(20, 4)), None, None)
    queries = rng.normal(size=(5, 4))
    few, many = (fit.predict(queries, None, n_asked=n) for n in (5, 21))
    np.testing.assert_allclose(few, many, atol=1e-5)
    assert np.ptp(many, axis=0).min() > 1e-4  # not the mean alone
