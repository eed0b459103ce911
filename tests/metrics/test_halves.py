"""Do two shifts from halves of the controls share no control cell, and does noise then no longer look like skill?"""

import numpy as np
import pytest

import ptrag_sc
from ptrag_sc.benchmark import evaluate
from ptrag_sc.data import ScreenKeys, read_screen
from ptrag_sc.metrics import METRICS, Reference, pearson_delta
from ptrag_sc.metrics._halves import control_halves
from screens import KEYS, make_null_screen, make_screen


def marked():
    """A screen in which each control cell has a gene of its own, so that a mean shows which cells are in it."""
    adata = make_screen(n_obs=300, n_genes=300)
    adata.X = np.eye(300, dtype=np.float32) / 2  # whole numbers would be refused as counts
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem")
    return adata, read_screen(adata, ScreenKeys.of(adata))


def test_each_control_is_in_one_half_of_its_batch():
    adata, screen = marked()
    halves = control_halves(screen)
    for t, line in enumerate(screen.index.cell_types):
        members = [np.flatnonzero(half.cell_type[t]) for half in halves]
        assert not np.intersect1d(*members).size
        np.testing.assert_array_equal(np.sort(np.concatenate(members)), screen.index.controls(t))
        assert abs(len(members[0]) - len(members[1])) <= 1
        for batch in ("b1", "b2"):
            of_batch = (adata.obs["gem"] == batch).to_numpy() & (adata.obs["line"] == line).to_numpy()
            code = screen.index.batch[of_batch][0]
            sizes = [np.isin(rows, np.flatnonzero(of_batch)).sum() for rows in members]
            assert abs(sizes[0] - sizes[1]) <= 1
            for half, rows in zip(halves, members, strict=True):
                own = rows[np.isin(rows, np.flatnonzero(of_batch))]
                np.testing.assert_allclose(half.batch[code], np.isin(np.arange(300), own) / len(own) / 2, atol=1e-6)


def test_the_order_of_cells_does_not_change_the_halves():
    adata = make_screen()
    order = np.random.default_rng(0).permutation(adata.n_obs)
    found = []
    for cells in (adata, adata[order].copy()):
        ptrag_sc.PTRAG.setup_anndata(cells, **KEYS, batch_key="gem")
        found.append(Reference.from_adata(cells, controls="split").halves)
    for before, after in zip(*found, strict=True):
        np.testing.assert_allclose(after.control, before.control, atol=1e-6)
        for key, mean in before.of_batch.items():
            np.testing.assert_allclose(after.of_batch[key], mean, atol=1e-6)


def no_effect_scores(n_cells):
    """Return mean scores of the mean shift, with shifts from all controls and from halves of them."""
    found = {"all": [], "split": []}
    for seed in range(4):
        adata = make_null_screen(seed)
        names = adata.obs.loc[adata.obs["split"] == "test", "gene"].unique()
        test = adata[adata.obs["gene"].isin(set(names) - {"ctl"}).to_numpy()].copy()
        model = ptrag_sc.baselines.MeanShift(adata).fit()
        predicted = model.predict(adata, perturbations=sorted(test.obs["gene"].unique()), n_cells=n_cells)
        for controls, scores in found.items():
            reference = Reference.from_adata(adata, controls=controls)
            scores.append(evaluate(test, predicted, reference=reference).groupby("metric")["value"].mean())
    return [sum(scores) / len(scores) for scores in found.values()]


# All controls are a source, or some.
@pytest.mark.slow
@pytest.mark.parametrize("n_cells", [None, 20])
def test_noise_of_few_controls_is_no_skill_if_they_are_split(n_cells):
    """30 perturbations without effect and 60 controls: the mean shift agrees with the truth by their noise alone."""
    together, apart = no_effect_scores(n_cells)
    assert together["pearson_delta"] > 0.25 and together["effect_slope"] > 0.25
    assert abs(apart["pearson_delta"]) < 0.1 and abs(apart["effect_slope"]) < 0.1
    same = [name for name in together.index if "control" not in METRICS[name].reference]
    assert together[same].to_dict() == apart[same].to_dict()  # the others do not know of halves


def test_scores_are_means_over_both_ways_round():
    adata = make_screen()
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    reference = Reference.from_adata(adata, controls="split")
    scores = evaluate(adata, adata, reference=reference, metrics="pearson_delta").set_index("perturbation")
    row = scores[scores["cell_type"] == "RPE1"].loc["G3"]
    mean = adata.X[((adata.obs["gene"] == "G3") & (adata.obs["line"] == "RPE1")).to_numpy()].toarray().mean(0)
    first, second = (half.control[1] for half in reference.halves)
    # One cell set on both sides: what is left is that the shifts are measured from different controls.
    expected = pearson_delta(mean - first, mean - second, np.zeros_like(mean))
    assert row["value"] == pytest.approx(expected, abs=1e-6) and row["value"] < 0.999


def test_a_single_control_cannot_be_split():
    adata = make_screen()
    controls = np.flatnonzero((adata.obs["gene"] == "ctl") & (adata.obs["line"] == "RPE1"))
    adata = adata[np.setdiff1d(np.arange(adata.n_obs), controls[1:])].copy()
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    reference = Reference.from_adata(adata, controls="split")
    assert np.isfinite(reference.matched_control("K562", None, half=1)).all()
    assert np.isfinite(reference.matched_control("RPE1", None)).all()
    for half in (0, 1):
        with pytest.raises(ValueError, match="Cell type 'RPE1' in the reference has a single control cell"):
            reference.matched_control("RPE1", None, half=half)
    with pytest.raises(ValueError, match=r"controls= 'halves' does not occur in the known values"):
        Reference.from_adata(adata, controls="halves")
