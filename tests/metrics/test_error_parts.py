"""Do the parts of an error add up to it, and does each cause get what is its own?"""

import numpy as np
import pytest

from ptrag_sc.metrics._error_parts import CAUSES, ErrorNoise, ErrorTerms, Kernel, error_parts

C, G = 5, 12


def drawn(seed=0, *, n_conditions=C, n_kernels=2):
    """Errors and covariances without any structure."""
    rng = np.random.default_rng(seed)

    def array():
        return rng.normal(size=(n_conditions, G))

    def kernel():
        factor = rng.normal(size=(n_conditions, 3))
        return Kernel(factor @ factor.T, rng.gamma(1.0, size=G))

    own = rng.random((n_conditions, G)) < 0.2
    has = rng.random(n_conditions) < 0.6
    terms = ErrorTerms(array(), own, array(), array(), np.square(array()), has)
    kernels = tuple(kernel() for _ in range(n_kernels))
    return terms, ErrorNoise(np.square(array()), np.square(array()), kernel(), kernel(), array(), kernels)


def no_noise(n_conditions):
    zero, none = np.zeros((n_conditions, G)), Kernel(np.zeros((n_conditions, n_conditions)), np.zeros(G))
    return ErrorNoise(zero, zero, none, none, zero, ())


@pytest.mark.parametrize("n_conditions", [1, 2, C])
def test_parts_add_up_gene_by_gene(n_conditions):
    terms, noise = drawn(n_conditions=n_conditions)
    parts = error_parts(terms, noise)
    assert tuple(parts) == CAUSES
    np.testing.assert_allclose(sum(parts.values()), np.square(terms.error), atol=1e-12)


def test_the_slow_and_obvious_way_gives_the_same():
    """One condition and one gene at a time, as the equations are written."""
    terms, noise = drawn(seed=3)
    parts = error_parts(terms, noise)

    def cov(kernel, c, d, g):
        return kernel.weight[c, d] * kernel.variance[g]

    def remainder(error, c, g):
        known = noise.cells[c, g] + cov(noise.controls, c, c, g) + cov(noise.batches, c, c, g)
        composition = -error[c, g] * terms.composition[c, g] - noise.cells_composition[c, g]
        composition += sum(cov(k, c, c, g) for k in noise.controls_composition)
        products = []
        for d in range(C):
            if d != c and not terms.own[d, g]:
                product = error[c, g] * (error[d, g] + terms.composition[d, g])
                kernels = noise.controls, noise.batches, *noise.controls_composition
                products.append(product - sum(cov(k, c, d, g) for k in kernels))
        common = np.mean(products) if products else 0.0
        return composition, common, error[c, g] ** 2 - known - composition - common

    said = np.where(terms.has_evidence[:, None], terms.evidence, terms.error)
    for c in range(C):
        for g in range(G):
            found = {cause: parts[cause][c, g] for cause in CAUSES}
            if terms.own[c, g]:
                assert not any(found[cause] for cause in ("common shift", "neighbours wrong", "generator"))
                continue
            composition, common, rest = remainder(terms.error, c, g)
            neighbours = remainder(said, c, g)[2] if terms.has_evidence[c] else 0.0
            np.testing.assert_allclose([found["composition"], found["common shift"]], [composition, common], atol=1e-12)
            np.testing.assert_allclose(found["neighbours wrong"] + found["neighbours disagree"], neighbours, atol=1e-12)
            np.testing.assert_allclose(found["generator"], rest - noise.predicted[c, g] - neighbours, atol=1e-12)


def test_a_common_error_is_common_and_a_perfect_prediction_has_no_parts():
    shared = np.tile(np.random.default_rng(0).normal(size=G), (C, 1))
    zero, none = np.zeros((C, G)), np.zeros(C, dtype=bool)
    parts = error_parts(ErrorTerms(shared, zero.astype(bool), zero, zero, zero, none), no_noise(C))
    np.testing.assert_allclose(parts["common shift"], np.square(shared))
    assert not any(parts[cause].any() for cause in CAUSES if cause not in ("common shift", "generator"))
    np.testing.assert_allclose(parts["generator"], 0, atol=1e-12)
    parts = error_parts(ErrorTerms(zero, zero.astype(bool), zero, zero, zero, none), no_noise(C))
    assert not any(part.any() for part in parts.values())


def test_a_generator_that_corrects_its_neighbours_is_below_zero():
    evidence = np.random.default_rng(0).normal(size=(1, G))
    zero = np.zeros((1, G))
    terms = ErrorTerms(zero, zero.astype(bool), zero, evidence, zero, np.array([True]))
    parts = error_parts(terms, no_noise(1))
    np.testing.assert_allclose(parts["neighbours wrong"], np.square(evidence))
    np.testing.assert_allclose(parts["generator"], -np.square(evidence))


def test_unknown_noise_stays_in_the_prediction():
    terms, noise = drawn(n_kernels=0)
    cells = noise.cells.copy()
    cells[1] = np.nan
    unknown = noise._replace(cells=cells, batches=Kernel(noise.batches.weight, np.full(G, np.nan)))
    parts = error_parts(terms, unknown)
    assert np.isnan(parts["observed cells"][1]).all()
    assert np.isnan(parts["batches"]).all()
    np.testing.assert_allclose(np.nansum(list(parts.values()), axis=0), np.square(terms.error), atol=1e-12)
    matched = unknown._replace(batches=Kernel(np.zeros((C, C)), np.full(G, np.nan)))
    assert not error_parts(terms, matched)["batches"].any()  # matched batches add nothing, whatever their variance
