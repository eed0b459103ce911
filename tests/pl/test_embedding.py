"""Is the plane of an embedding that of the observed cells, and does every group stand in it?"""

import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from scipy.sparse import csr_matrix

from ptrag_sc.pl import embedding
from ptrag_sc.pl._embedding import COLOURS

CONDITION = {"perturbation": "STAT1", "cell_type": "K562"}


def rows(adata, perturbation: str) -> np.ndarray:
    return np.flatnonzero((adata.obs["perturbation"] == perturbation) & (adata.obs["cell_type"] == "K562"))


def groups(ax) -> dict[str, np.ndarray]:
    """Name -> (n, 2) positions of its cells, read from the picture."""
    return {
        dots.get_label().split(" (")[0]: np.asarray(dots.get_offsets())
        for dots in ax.collections
        if " (" in dots.get_label()
    }


def slow_pca(observed: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Two principal components by the eigenvectors of the covariance, signs as they come."""
    observed = observed.astype(float)
    _, vectors = np.linalg.eigh(np.cov(observed.T))
    return (others - observed.mean(axis=0)) @ vectors[:, [-1, -2]]


def up_to_sign(found: np.ndarray, expected: np.ndarray) -> None:
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found, expected * signs, atol=1e-4)


def test_pca_is_fitted_on_observed_cells_and_predictions_are_projected(adata):
    genes = adata.uns["ptrag"]["genes"]
    control, perturbed = rows(adata, "non-targeting"), rows(adata, "STAT1")
    observed = adata[np.concatenate([control, perturbed]), genes].X
    seen = groups(embedding(adata, **CONDITION))
    assert {name: len(points) for name, points in seen.items()} == {"control": 20, "observed": 12, "predicted": 12}
    everything = np.concatenate([observed, adata.obsm["ptrag"][perturbed]])
    up_to_sign(np.concatenate(list(seen.values())), slow_pca(observed, everything))


def test_axis_labels_carry_the_share_of_variance(adata):
    cells = adata[np.concatenate([rows(adata, "non-targeting"), rows(adata, "STAT1")]), adata.uns["ptrag"]["genes"]].X
    values = np.linalg.eigvalsh(np.cov(cells.T))[::-1]
    ax = embedding(adata, **CONDITION)
    assert ax.get_xlabel() == f"PC1 ({values[0] / values.sum():.0%} of variance)"
    assert ax.get_ylabel() == f"PC2 ({values[1] / values.sum():.0%} of variance)"


def test_predictions_do_not_bend_the_plane(adata):
    before = groups(embedding(adata, **CONDITION))
    adata.obsm["ptrag"] = adata.obsm["ptrag"] + 100
    after = groups(embedding(adata, **CONDITION))
    for name in ("control", "observed"):
        np.testing.assert_array_equal(before[name], after[name])
    assert not np.allclose(before["predicted"], after["predicted"])


def test_exact_prediction_lies_on_the_observed_cells(adata):
    adata.obsm["ptrag"] = np.asarray(adata[:, adata.uns["ptrag"]["genes"]].X)
    seen = groups(embedding(adata, **CONDITION))
    np.testing.assert_allclose(seen["predicted"], seen["observed"], atol=1e-5)


def test_sparse_dense_and_row_order_agree(adata):
    dense = groups(embedding(adata, **CONDITION))
    adata.X = csr_matrix(adata.X)
    order = np.random.default_rng(0).permutation(adata.n_obs)
    shuffled = groups(embedding(adata[order].copy(), **CONDITION))
    for name, points in dense.items():
        other = shuffled[name]
        np.testing.assert_allclose(other[np.lexsort(other.T)], points[np.lexsort(points.T)], atol=1e-4)


def test_layer(adata):
    whole, given = groups(embedding(adata, **CONDITION)), groups(embedding(adata, **CONDITION, layer="half"))
    np.testing.assert_allclose(given["control"], whole["control"] / 2, atol=1e-4)
    adata.uns["ptrag"]["params"]["layer"] = "half"  # what the model was trained on
    np.testing.assert_array_equal(groups(embedding(adata, **CONDITION))["control"], given["control"])


def test_colours_order_and_means(adata):
    ax = embedding(adata, **CONDITION)
    cells = {dots.get_label().split(" (")[0]: dots for dots in ax.collections if " (" in dots.get_label()}
    for name, dots in cells.items():
        assert tuple(dots.get_facecolor()[0][:3]) == to_rgba(COLOURS[name])[:3]
    depth = [cells[name].get_zorder() for name in ("control", "observed", "predicted")]
    assert depth == sorted(depth)
    assert len(set(depth)) == 3
    means = {to_rgba(d.get_facecolor()[0]): d.get_offsets()[0] for d in ax.collections if len(d.get_offsets()) == 1}
    for name, points in groups(ax).items():
        np.testing.assert_allclose(means[to_rgba(COLOURS[name])], points.mean(axis=0), atol=1e-5)


def test_legend_counts_cells_and_says_when_some_are_left_out(adata):
    def texts(ax):
        return [text.get_text() for text in ax.get_legend().get_texts()]

    assert texts(embedding(adata, **CONDITION))[:3] == ["control (20)", "observed (12)", "predicted (12)"]
    few = texts(embedding(adata, **CONDITION, n_max_cells=15))
    assert few[:3] == ["control (15 of 20)", "observed (12)", "predicted (12)"]


def test_sampling_follows_the_seed(adata):
    def control(seed):
        return groups(embedding(adata, **CONDITION, n_max_cells=10, seed=seed))["control"]

    np.testing.assert_array_equal(control(1), control(1))
    assert not np.array_equal(control(1), control(2))


def test_one_perturbation_predicted_on_control_cells(adata):
    """tl.predict(perturbation=name): control rows carry the prediction, the condition has no observed cells."""
    is_control = adata.obs["perturbation"] == "non-targeting"
    adata.obs["ptrag_predicted"] = is_control
    adata.obsm["ptrag"][~is_control] = np.nan
    adata.uns["ptrag"]["params"]["perturbation"] = "NEW1"
    seen = groups(embedding(adata, perturbation="NEW1", cell_type="K562"))
    assert {name: len(points) for name, points in seen.items()} == {"control": 20, "predicted": 20}
    assert np.isfinite(seen["predicted"]).all()


@pytest.fixture
def virtual(adata):
    """Cells of tl.perturb without the cells that they come from: two perturbations in one cell type."""
    genes = list(adata.uns["ptrag"]["genes"])
    made = adata[rows(adata, "JAK2").tolist() + rows(adata, "STAT1").tolist(), genes].copy()
    del made.obsm, made.obs["ptrag_predicted"]
    effects = made.uns["ptrag"]["effects"]
    effects["conditions"] = pd.DataFrame({"perturbation": ["JAK2", "STAT1"], "cell_type": ["K562", "K562"]})
    effects["control"] = np.random.default_rng(0).gamma(1.0, 1.0, (2, len(genes)))
    return made


def test_virtual_cells_alone_show_themselves_and_the_control_mean(virtual):
    ax = embedding(virtual, **CONDITION)
    seen = groups(ax)
    assert {name: len(points) for name, points in seen.items()} == {
        "control": 1,
        "other predictions": 7,
        "predicted": 12,
    }
    control = virtual.uns["ptrag"]["effects"]["control"][1:]
    cells = np.asarray(virtual.X)  # the plane is fitted to all of them; JAK2 comes first
    up_to_sign(np.concatenate(list(seen.values())), slow_pca(cells, np.concatenate([control, cells])))
    assert "control (mean only)" in [text.get_text() for text in ax.get_legend().get_texts()]
    del virtual.uns["ptrag"]["effects"]  # a large request keeps none
    assert set(groups(embedding(virtual, **CONDITION))) == {"other predictions", "predicted"}


def test_controls_at_the_start_and_at_the_end_are_two_groups(adata):
    adata.uns["ptrag"]["params"] |= {"time_key": "day", "start": "0"}
    adata.obs["day"] = 7
    start = rows(adata, "non-targeting")[:5]
    adata.obs.loc[adata.obs_names[start], "day"] = 0
    ax = embedding(adata, **CONDITION)
    seen = groups(ax)
    assert {name: len(points) for name, points in seen.items()} == {
        "control at the start": 5,
        "control at the end": 15,
        "observed": 12,
        "predicted": 12,
    }
    everything = groups(embedding(adata, **CONDITION))
    np.testing.assert_array_equal(seen["predicted"], everything["predicted"])
    colours = {dots.get_label().split(" (")[0]: tuple(dots.get_facecolor()[0]) for dots in ax.collections}
    assert colours["control at the start"] != colours["control at the end"]


class FakeUMAP:
    """Records what it is fitted on and shown; the coordinates are the first two inputs."""

    def __init__(self, **options):
        self.options = options
        FakeUMAP.last = self

    def fit(self, values):
        self.fitted_on, self.embedding_ = values, values[:, :2]
        return self

    def transform(self, values):
        return values[:, :2] + 1000


def test_umap_is_fitted_on_components_of_observed_cells(adata, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=FakeUMAP))
    ax = embedding(adata, **CONDITION, basis="umap", seed=5)
    seen, fake = groups(ax), FakeUMAP.last
    assert fake.options["random_state"] == 5
    assert fake.fitted_on.shape == (32, 29)  # control and observed; one component less than genes
    np.testing.assert_allclose(seen["observed"], fake.fitted_on[20:, :2], atol=1e-5)
    assert (seen["predicted"] > 900).all()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("UMAP1", "UMAP2")
    pca = np.concatenate([groups(embedding(adata, **CONDITION))[name] for name in ("control", "observed")])
    np.testing.assert_allclose(fake.fitted_on[:, :2], pca, atol=1e-4)


@pytest.mark.slow
def test_real_umap_puts_copies_of_observed_cells_beside_them(adata):
    """UMAP compiles for 20 s. Two far groups: exact predictions must land in the group of the observed cells."""
    genes = adata.uns["ptrag"]["genes"]
    adata.X[rows(adata, "STAT1")] += 20
    adata.obsm["ptrag"] = np.asarray(adata[:, genes].X)
    seen = groups(embedding(adata, **CONDITION, basis="umap"))
    centre = {name: points.mean(axis=0) for name, points in seen.items()}
    to_observed = np.linalg.norm(seen["predicted"] - centre["observed"], axis=1)
    to_control = np.linalg.norm(seen["predicted"] - centre["control"], axis=1)
    assert (to_observed < to_control).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"perturbation": "STAT11"}, "Perturbation 'STAT11' is not in the predictions of key 'ptrag' .*'STAT1'"),
        ({"perturbation": "non-targeting"}, "Perturbation 'non-targeting' is not in .*tl.predict"),
        ({"cell_type": "RPE1"}, "Cell type 'RPE1' does not occur in the predictions of 'STAT1' .*'A549', 'K562'"),
        ({"basis": "tsne"}, "Basis 'tsne' .*'pca', 'umap'"),
        ({"n_max_cells": 1}, "has 2 observed cells x 30 genes; a plane needs three"),
    ],
)
def test_errors(adata, options, message):
    with pytest.raises(ValueError, match=message):
        embedding(adata, **{**CONDITION, **options})


def test_missing_layer(adata):
    with pytest.raises(KeyError, match=r"Layer 'counts' does not occur in adata.layers .*'half'"):
        embedding(adata, **CONDITION, layer="counts")


def test_missing_genes(adata):
    with pytest.raises(ValueError, match=r"Gene 'GENE3' is not in adata\.var_names"):
        embedding(adata[:, [name != "GENE3" for name in adata.var_names]].copy(), **CONDITION)
