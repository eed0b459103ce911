"""Is the reference what its definition says, and taken from training cells and controls only?"""

from dataclasses import FrozenInstanceError, astuple

import numpy as np
import pytest
from sklearn.decomposition import PCA

import ptrag_sc
from baselines.oracles import slow_shifts
from own_targets import slow_masked, targeted_screen
from ptrag_sc.metrics import Reference, _reference
from screens import KEYS, make_screen


def split_screen():
    """A screen whose split holds out G1 and G5 in RPE1 (test), G2 in K562 (val)."""
    adata = make_screen()
    split = np.full(adata.n_obs, "train", dtype=object)
    for name, line, label in (("G1", "RPE1", "test"), ("G5", "RPE1", "test"), ("G2", "K562", "val")):
        split[((adata.obs["gene"] == name) & (adata.obs["line"] == line)).to_numpy()] = label
    adata.obs["split"] = split
    return set_up(adata)


def set_up(adata):
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem", split_key="split")
    return adata


def rows(adata, **labels):
    return np.logical_and.reduce([(adata.obs[key] == value).to_numpy() for key, value in labels.items()])


def slow_shift(adata, gene, line):
    x, shift = adata.X.toarray(), 0
    chosen = rows(adata, gene=gene, line=line)
    for i in np.flatnonzero(chosen):
        shift = shift + x[i] - x[rows(adata, gene="ctl", line=line, gem=adata.obs["gem"].iloc[i])].mean(0)
    return shift / chosen.sum()


def assert_equal(first, second):
    for name, a, b in zip(Reference.__dataclass_fields__, astuple(first), astuple(second), strict=True):
        if isinstance(a, dict) and name == "control_of_batch":
            assert a.keys() == b.keys()
            assert all(np.array_equal(a[key], b[key]) for key in a)
        elif name == "keys":
            assert a == b
        else:
            assert np.array_equal(a, b), name


def test_means_equal_slow_means():
    adata = split_screen()
    reference, x = Reference.from_adata(adata), adata.X.toarray()
    assert list(reference.genes) == list(adata.var_names)
    assert list(reference.cell_types) == ["K562", "RPE1"]
    assert len(reference.control_of_batch) == 4
    for t, line in enumerate(reference.cell_types):
        control = x[rows(adata, gene="ctl", line=line)].mean(0)
        np.testing.assert_allclose(reference.control[t], control, atol=1e-6)
        for batch in ("b1", "b2"):
            expected = x[rows(adata, gene="ctl", line=line, gem=batch)].mean(0)
            np.testing.assert_allclose(reference.control_of_batch[line, batch], expected, atol=1e-6)
        held_out = {"RPE1": {"G1", "G5"}, "K562": {"G2"}}[line]
        names = sorted(set(adata.obs["gene"]) - held_out - {"ctl"})
        centre = control + np.mean([slow_shift(adata, name, line) for name in names], axis=0)
        np.testing.assert_allclose(reference.centre[t], centre, atol=1e-5)


def test_components_are_those_of_training_cells_and_controls():
    adata = split_screen()
    reference = Reference.from_adata(adata, n_components=6)
    fitted = PCA(6, svd_solver="full").fit(adata.X.toarray()[(adata.obs["split"] == "train").to_numpy()])
    np.testing.assert_allclose(reference.pca_mean, fitted.mean_, atol=1e-5)
    np.testing.assert_allclose(np.abs(np.diag(reference.pca_axes @ fitted.components_.T)), 1, atol=1e-4)
    cells = adata.X[:20].toarray()
    np.testing.assert_allclose(np.abs(reference.project(cells)), np.abs(fitted.transform(cells)), atol=1e-2)


def test_more_components_than_genes_keep_all_distances():
    adata = split_screen()
    reference, cells = Reference.from_adata(adata), adata.X.toarray()
    assert reference.pca_axes.shape == (30, 30)
    projected = reference.project(cells)
    np.testing.assert_allclose(
        np.linalg.norm(projected[:9] - projected[9:18], axis=1), np.linalg.norm(cells[:9] - cells[9:18], axis=1), 1e-5
    )


@pytest.mark.parametrize(("label", "same"), [("test", True), ("val", True), ("train", False)])
def test_held_out_cells_change_nothing(label, same):
    adata = split_screen()
    before = Reference.from_adata(adata)
    changed = adata.X.toarray()
    changed[rows(adata, split=label) & ~rows(adata, gene="ctl")] += 3
    adata.X = changed
    after = Reference.from_adata(adata)
    if same:
        assert_equal(before, after)
    else:
        assert not np.allclose(before.centre, after.centre)
        assert not np.allclose(before.pca_mean, after.pca_mean)


def test_controls_count_whatever_their_split_says():
    adata = split_screen()
    before = Reference.from_adata(adata)
    adata.obs.loc[(adata.obs["gene"] == "ctl") & (adata.obs["gem"] == "b1"), "split"] = "test"
    assert_equal(before, Reference.from_adata(adata))


def test_order_of_cells_changes_nothing():
    adata = split_screen()
    order = np.random.default_rng(0).permutation(adata.n_obs)
    before, after = Reference.from_adata(adata), Reference.from_adata(set_up(adata[order].copy()))
    np.testing.assert_allclose(after.centre, before.centre, atol=1e-9)
    np.testing.assert_allclose(np.abs(after.pca_axes), np.abs(before.pca_axes), atol=1e-6)


def test_matched_control_follows_the_batch_composition():
    adata = split_screen()
    reference = Reference.from_adata(adata)
    b1, b2 = (reference.control_of_batch["RPE1", batch] for batch in ("b1", "b2"))
    found = reference.matched_control("RPE1", np.array(["b1", "b2", "b2", "b2"], dtype=object))
    np.testing.assert_allclose(found, 0.25 * b1 + 0.75 * b2)
    plain = reference.control[1]
    np.testing.assert_array_equal(reference.matched_control("RPE1", None), plain)
    new = reference.matched_control("RPE1", np.array(["b1", "new"], dtype=object))
    np.testing.assert_allclose(new, 0.5 * b1 + 0.5 * plain)


def test_without_batches_and_without_split():
    adata = make_screen()
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    reference, x = Reference.from_adata(adata), adata.X.toarray()
    assert not reference.control_of_batch
    means = [x[rows(adata, gene=g, line="K562")].mean(0) for g in set(adata.obs["gene"]) - {"ctl"}]
    np.testing.assert_allclose(reference.centre[0], np.mean(means, axis=0), atol=1e-5)
    np.testing.assert_array_equal(reference.matched_control("K562", np.array(["b1"])), reference.control[0])


def test_without_training_perturbations_the_centre_is_the_control():
    adata = split_screen()
    perturbed = (adata.obs["line"] == "RPE1") & (adata.obs["gene"] != "ctl")
    adata.obs.loc[perturbed, "split"] = "test"
    reference = Reference.from_adata(adata)
    np.testing.assert_array_equal(reference.centre[1], reference.control[1])
    assert not np.allclose(reference.centre[0], reference.control[0])


def test_cells_behind_the_components_are_bounded_and_seeded(monkeypatch):
    adata = split_screen()
    monkeypatch.setattr(_reference, "MAX_CELLS", 60)
    first, again, other = (Reference.from_adata(adata, seed=seed) for seed in (0, 0, 1))
    assert_equal(first, again)
    assert not np.allclose(first.pca_mean, other.pca_mean)
    np.testing.assert_array_equal(first.centre, other.centre)


def test_what_it_does_not_know_is_refused():
    adata = split_screen()
    reference = Reference.from_adata(adata)
    with pytest.raises(KeyError, match=r"Cell type 'HeLa' does not occur in the reference \(found: 'K562', 'RPE1'\)"):
        reference.cell_type_row("HeLa")
    with pytest.raises(FrozenInstanceError):
        reference.centre = reference.control
    with pytest.raises(ValueError, match="was not set up for ptrag_sc"):
        Reference.from_adata(make_screen())


def test_a_cell_type_without_controls():
    adata = split_screen()
    adata = adata[~(rows(adata, gene="ctl", line="RPE1"))].copy()
    with pytest.raises(ValueError, match=r"Cell types 'RPE1' in the data have no control cells"):
        Reference.from_adata(set_up(adata))
    adata.obs.loc[adata.obs["line"] == "RPE1", "split"] = "test"
    reference = Reference.from_adata(set_up(adata))
    assert np.isfinite(reference.matched_control("K562", None)).all()
    with pytest.raises(ValueError, match=r"Cell type 'RPE1' in the reference has no control cells"):
        reference.matched_control("RPE1", None)


def test_own_targets_are_not_in_the_centre():
    """Neither what training perturbations did to their own targets, nor how far that was."""
    held_out = {("G1", "RPE1"), ("G0+G1", "K562")}
    adata = targeted_screen(held_out=held_out)
    reference, genes, x = Reference.from_adata(adata), list(adata.var_names), adata.X.toarray()
    shifts = slow_shifts(adata)
    assert held_out.isdisjoint(shifts)
    for t, line in enumerate(reference.cell_types):
        masked = [s for (_, k), s in slow_masked(shifts, genes).items() if k == line]
        expected = x[rows(adata, gene="ctl", line=line)].mean(0) + np.mean(masked, axis=0)
        np.testing.assert_allclose(reference.centre[t], expected, atol=1e-5)
        plain = np.mean([s for (_, k), s in shifts.items() if k == line], axis=0)
        assert np.abs(plain - np.mean(masked, axis=0)).max() > 0.03
    moved = Reference.from_adata(targeted_screen(lambda x, own: np.where(own, x + 3, x), held_out=held_out))
    np.testing.assert_allclose(moved.centre, reference.centre, atol=1e-6)
