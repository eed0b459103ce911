"""Are the numbers of controls those that make the error least, and are confounded perturbations named?"""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import ptrag_sc
from screens import KEYS

N_GENES = 30


def make(layout, *, drift=0.5, noise=0.4, seed=0, batch_key="gem"):
    """Return a screen with the cells of a layout: (line, batch, label, number of cells)."""
    rng = np.random.default_rng(seed)
    line, batch, label = (np.repeat([row[i] for row in layout], [row[3] for row in layout]) for i in range(3))
    x = 4 + rng.normal(size=(len(label), N_GENES)) * noise
    for name in np.unique(batch):
        x[batch == name] += rng.normal(size=N_GENES) * drift
    obs = pd.DataFrame({"gene": label, "line": line, "gem": batch}, index=[f"c{i}" for i in range(len(label))])
    adata = AnnData(x.astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]))
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key=batch_key)
    return adata


LAYOUT = [
    *[("K562", f"b{k}", "ctl", 30) for k in range(8)],
    *[("K562", f"b{k}", gene, 9) for k in range(8) for gene in ("A", "B", "C", "D")],
    ("K562", "b0", "E", 12),
    ("K562", "b8", "F", 20),
    ("RPE1", "b0", "ctl", 25),
    ("RPE1", "b0", "A", 10),
]


@pytest.fixture(scope="module")
def layout():
    return ptrag_sc.tl.batch_layout(make(LAYOUT)).set_index(["cell_type", "batch"])


def test_what_batches_hold(layout):
    held = layout.loc[("K562", "b1"), ["n_controls", "n_perturbed", "n_perturbations"]]
    assert held.tolist() == [30, 36, 4]
    assert layout.loc[("K562", "b8"), "n_controls"] == 0
    assert len(layout) == 10


def test_needed_controls_make_the_error_least(layout):
    needed = layout.loc[("K562", "b1"), "n_needed"]  # four perturbations of nine cells
    total = needed + 4 * 9
    # Of the same number of cells every other share of controls gives a larger error, summed over the effects.
    error = {n: 4 * (1 / ((total - n) / 4) + 1 / n) for n in range(1, total)}
    assert min(error, key=error.get) == needed == 18


def test_variances_are_those_that_were_planted(layout):
    tau, sigma = N_GENES * 0.5**2, N_GENES * 0.4**2
    weight = layout.loc[("K562", "b1"), "matching_weight"]
    assert weight == pytest.approx(tau / (tau + sigma / 30), abs=0.02)
    assert layout.loc[("K562", "b1"), "n_break_even"] == np.ceil(sigma / tau)
    assert layout.loc[("K562", "b1"), "error_from_controls"] == pytest.approx((1 / 30) / (1 / 30 + 1 / 9))
    # A batch without controls is compared with those of other batches, whose shifts it does not share.
    of_controls = tau + sigma / 240
    expected = of_controls / (of_controls + sigma / 20)
    assert layout.loc[("K562", "b8"), "error_from_controls"] == pytest.approx(expected, abs=0.05)
    assert layout.loc[("K562", "b8"), "matching_weight"] == 0


def test_confounded_perturbations_are_named(layout):
    named = layout["confounded"]
    assert named["K562", "b0"] == "E"
    assert named["K562", "b8"] == "F"
    assert (named.drop([("K562", "b0"), ("K562", "b8")]) == "").all()  # A of RPE1 has no other batch to be in


def test_batches_that_do_not_differ():
    even = [("K562", f"b{k}", label, 30) for k in range(3) for label in ("ctl", "A", "B")]
    for seed in range(20):  # the variance between batches is estimated as 0 in about half of such screens
        found = ptrag_sc.tl.batch_layout(make(even, drift=0.0, seed=seed))
        if (found["matching_weight"] == 0).all():
            assert np.isinf(found["n_break_even"]).all()
            return
    pytest.fail("no screen without variance between batches")


def test_without_batches():
    found = ptrag_sc.tl.batch_layout(make(LAYOUT, batch_key=None))
    assert found["batch"].tolist() == ["all", "all"]
    assert found["n_break_even"].isna().all()
    assert (found["confounded"] == "").all()
