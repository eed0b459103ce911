"""Is every part of an error, made from noisy cells, on average what it would be with endless cells?"""

import numpy as np
import pandas as pd

from ptrag_sc.data import CellReader, ConditionIndex, Screen
from ptrag_sc.metrics._error_parts import error_parts
from ptrag_sc.tl._error_cells import PredictedCells
from ptrag_sc.tl._error_controls import ControlNoise
from ptrag_sc.tl._error_evidence import Evidence, Neighbours
from ptrag_sc.tl._error_panel import Panel

G, REPEATS = 16, 200
NAMES = ["P0", "P1", "P2", "gene3"]  # the last targets a measured gene
TRAIN = ["T0", "T1"]
GENES = np.array([f"gene{g}" for g in range(G)])
NO_TRAINING = pd.DataFrame({"perturbation": [], "cell_type": []}, dtype=int)
SIGMA, TAU, N_PREDICTED, PREDICTED_SD = 0.7, 0.4, 9, 0.3
N_CONTROLS = np.array([14, 10, 0])  # of three batches, the last without controls
N_CELLS = np.array([[6, 4, 0], [3, 3, 3], [0, 2, 4], [5, 0, 5]])  # of the conditions
RHO, PI = 0.3, np.array([0.3, 0.8, 0.1, 0.6])  # share of the second category in controls and conditions


def make_screen(rng, labels, batches, shift, category_mean, share, *, sigma=SIGMA, tau=TAU):
    """Cells of conditions: base + batch + category + shift + noise; their categories are drawn."""
    category = (rng.random(len(labels)) < share).astype(int)
    of_batch = rng.normal(0, tau, (3, G))
    cells = 5 + of_batch[batches] + category[:, None] * category_mean + shift
    cells += rng.normal(0, sigma, cells.shape)
    index = ConditionIndex.from_labels(labels, np.full(len(labels), "t"), batches.astype(str), control="ctl")
    names = np.array([f"c{i}" for i in range(len(labels))], dtype=object)
    return Screen(CellReader(cells.astype(np.float32)), index, GENES, names), category


def make_predicted(rng, screen, means):
    """Predicted cells: a control cell, plus a shift, plus noise."""
    sources = rng.choice(screen.index.controls(0), N_PREDICTED * len(NAMES))
    label = np.repeat(NAMES, N_PREDICTED)
    cells = screen.reader.rows(sources) + np.repeat(means, N_PREDICTED, axis=0)
    cells = (cells + rng.normal(0, PREDICTED_SD, cells.shape)).astype(np.float32)
    labels = pd.DataFrame({"perturbation": label, "cell_type": "t"})
    return PredictedCells(CellReader(cells), labels, np.full(len(label), -1), sources)


def assert_unbiased(found, expected):
    """Mean over repeats within 4.5 standard errors; ``found`` is a list of {cause: (C,)}."""
    for cause, values in expected.items():
        drawn = np.stack([parts[cause] for parts in found])  # (repeats, C)
        error = drawn.std(0, ddof=1) / np.sqrt(len(drawn))
        assert (np.abs(drawn.mean(0) - values) < 4.5 * error + 1e-6).all(), (cause, drawn.mean(0), values, error)


def unmatched():
    """Weights of batches in cells, and in the controls subtracted from them."""
    cells = N_CELLS / N_CELLS.sum(1, keepdims=True)
    bare = N_CONTROLS == 0
    return cells, cells * ~bare + (cells * bare).sum(1, keepdims=True) * N_CONTROLS / N_CONTROLS.sum()


def test_all_causes_at_once():
    rng = np.random.default_rng(1)
    category_mean = rng.normal(0, 1.5, G)
    truth = rng.normal(0, 0.4, (4, G))
    weights = np.array([0.5, 0.3, 0.1])
    centre = truth + rng.normal(0, 0.3, (4, G)) + 0.2  # what neighbours say, on average
    scatter, extra = 0.5, rng.normal(0, 0.2, (4, G))  # between neighbours; of the generator
    composed = (PI - RHO)[:, None] * category_mean  # s
    delta = truth + composed
    labels = np.repeat(["ctl", *NAMES], [N_CONTROLS.sum(), *N_CELLS.sum(1)])
    batches = np.concatenate([np.repeat(np.arange(3), n) for n in (N_CONTROLS, *N_CELLS)])
    share = np.concatenate([np.full(N_CONTROLS.sum(), RHO), np.repeat(PI, N_CELLS.sum(1))])
    shift = np.concatenate([np.zeros((N_CONTROLS.sum(), G)), np.repeat(truth, N_CELLS.sum(1), axis=0)])
    found = []
    for _ in range(REPEATS):
        screen, category = make_screen(rng, labels, batches, shift, category_mean, share)
        deviations = centre[:, None] / weights.sum() + rng.normal(0, scatter, (4, 3, G))  # (C, J, G), mean shift 0
        said = np.einsum("j,cjg->cg", weights, deviations)
        neighbours = {(n, "t"): Neighbours(np.arange(3), weights, d) for n, d in zip(NAMES, deviations, strict=True)}
        predicted = make_predicted(rng, screen, said + extra)
        panel = Panel(screen, predicted, ControlNoise.of(screen, 0, category), 0, category)
        evidence = Evidence(neighbours, {"t": np.zeros(G)})
        terms, noise = panel.inputs(NAMES, evidence, NO_TRAINING, shared=False, sep="+")
        parts = error_parts(terms, noise)
        np.testing.assert_allclose(sum(p.sum() for p in parts.values()), np.square(terms.error).sum(), rtol=1e-9)
        found.append({cause: part.sum(1) for cause, part in parts.items()})
    cells, controls = unmatched()
    own = np.zeros((4, G), dtype=bool)
    own[3, 3] = True
    of_category = (np.append(RHO, PI) * (1 - np.append(RHO, PI)))[:, None] * np.square(category_mean) + SIGMA**2
    used = N_CONTROLS > 0
    e, q = centre + extra - delta, centre - delta
    scattered = scatter**2 * np.square(weights).sum()

    def common(error):
        moved = np.where(own, 0, error + composed)
        n = (~own).sum(0) - ~own
        return error * (moved.sum(0) - moved) / n

    def of_others(values):
        return np.where(own, 0, values).sum(1)

    own_error = np.square(e) + scattered
    rest = np.square(e) + e * composed - common(e)
    agree = np.square(q) + q * composed - common(q)
    expected = {
        "observed cells": of_category[1:].sum(1) / N_CELLS.sum(1),
        "control cells": (np.square(controls)[:, used] / N_CONTROLS[used]).sum(1) * of_category[0].sum(),
        "predicted cells": np.full(4, G * PREDICTED_SD**2 / N_PREDICTED),
        "batches": G * TAU**2 * np.square(cells - controls).sum(1),
        "own gene": np.where(own, own_error, 0).sum(1),
        "composition": of_others(-e * composed),
        "common shift": of_others(common(e)),
        "neighbours wrong": of_others(agree),
        "neighbours disagree": of_others(np.full((4, G), scattered)),
        "generator": of_others(rest - agree),
    }
    assert_unbiased(found, expected)


def test_noise_of_shared_controls_cancels():
    """A mean shift that was learned from the same few controls holds their noise as the observed shift does."""
    rng = np.random.default_rng(2)
    truth = rng.normal(0, 0.4, (4, G))
    n_train = np.array([[8, 4], [2, 6]])  # cells of two training conditions in two batches
    n_controls, n_cells = np.array([4, 6]), np.array([[5, 3], [2, 4], [3, 3], [6, 0]])
    sizes = np.vstack([n_controls, n_cells, n_train])
    labels = np.repeat(["ctl", *NAMES, *TRAIN], sizes.sum(1))
    batches = np.concatenate([np.repeat(np.arange(2), n) for n in sizes])
    learned = rng.normal(0, 0.4, (2, G))
    shift = np.repeat(np.vstack([np.zeros((1, G)), truth, learned]), sizes.sum(1), axis=0)
    share = sizes / sizes.sum(1, keepdims=True)
    found, independent = [], []
    for _ in range(REPEATS // 2):
        screen, _ = make_screen(rng, labels, batches, shift, np.zeros(G), 0.0)
        controls = ControlNoise.of(screen, 0, None)
        means = np.stack([screen.reader.rows(np.flatnonzero(labels == name)).mean(0) for name in TRAIN])
        mean_shift = (means - share[5:] @ controls.mean).mean(0)  # (G,)
        predicted = make_predicted(rng, screen, np.tile(mean_shift, (4, 1)))
        panel = Panel(screen, predicted, controls, 0, None)
        train = screen.index.conditions.iloc[-3:-1]  # names are sorted: P0 to P2, T0, T1, gene3
        for shared, results in ((True, found), (False, independent))[: 1 + (len(found) < 25)]:
            terms, noise = panel.inputs(NAMES, Evidence({}, {"t": np.zeros(G)}), train, shared=shared, sep="+")
            results.append({cause: part.sum(1) for cause, part in error_parts(terms, noise).items()})
    assert screen.index.named(train)["perturbation"].tolist() == TRAIN
    own = np.zeros((4, G), dtype=bool)
    own[3, 3] = True
    weight = share[1:5] - share[5:].mean(0)
    e = learned.mean(0) - truth
    moved = np.where(own, 0, e)
    common = e * (moved.sum(0) - moved) / ((~own).sum(0) - ~own)
    of_training = SIGMA**2 * (1 / sizes[5:].sum(1)).sum() / 4  # noise of the learned mean is an error of all conditions
    of_controls = G * SIGMA**2 * (np.square(weight) / n_controls).sum(1)
    of_common = np.where(own, 0, common + of_training).sum(1)
    assert_unbiased(
        found,
        {
            "control cells": of_controls,
            "batches": np.zeros(4),
            "common shift": of_common,
            "generator": np.where(own, 0, np.square(e) - common).sum(1),
            "own gene": np.where(own, np.square(e) + of_training, 0).sum(1),
        },
    )
    # Taken for independent, noise is subtracted that is not there.
    assert (np.stack([parts["common shift"] for parts in independent]).mean(0) < of_common - 0.5).all()


def test_composition_of_few_control_cells():
    """A perfect prediction of a change of composition has no error, however few controls measure the composition."""
    rng = np.random.default_rng(3)
    category_mean = rng.normal(0, 1.5, G)
    composed = (PI - RHO)[:, None] * category_mean
    sizes = np.array([[12, 18], [60, 60], [60, 60], [60, 60], [60, 60]])
    labels = np.repeat(["ctl", *NAMES], sizes.sum(1))
    batches = np.concatenate([np.repeat(np.arange(2), n) for n in sizes])
    share = np.repeat([RHO, *PI], sizes.sum(1))
    found = []
    for _ in range(REPEATS // 2):
        screen, category = make_screen(rng, labels, batches, 0.0, category_mean, share, sigma=0.2, tau=0.0)
        predicted = make_predicted(rng, screen, composed)
        panel = Panel(screen, predicted, ControlNoise.of(screen, 0, category), 0, category)
        terms, noise = panel.inputs(NAMES, Evidence({}, {"t": np.zeros(G)}), NO_TRAINING, shared=False, sep="+")
        found.append({cause: part.sum(1) for cause, part in error_parts(terms, noise).items()})
    causes = "composition", "common shift", "own gene", "generator"
    assert_unbiased(found, {cause: np.zeros(4) for cause in causes})
