"""Are pertpy's distances metrics, and do predictions go unchanged into its tools?"""

import builtins
import importlib.metadata

import numpy as np
import pertpy
import pytest
from scipy.spatial.distance import cdist, pdist

import ptrag_sc
from ptrag_sc.benchmark import evaluate, pertpy_metric
from ptrag_sc.benchmark._pertpy import NAMES, OF_GENES
from ptrag_sc.metrics import METRICS, Reference, energy_distance
from screens import KEYS, make_screen

VERSION = tuple(int(part) for part in importlib.metadata.version("pertpy").split(".")[:3])
UNBIASED = (1, 0, 4) <= VERSION < (1, 3)


@pytest.fixture
def cells():
    rng = np.random.default_rng(0)
    return rng.normal(size=(40, 6)), rng.normal(size=(25, 6)) + 0.4


@pytest.fixture(scope="module")
def virtual(trained):
    """Predicted cells of two perturbations, and the screen with predictions beside the observed cells."""
    adata = make_screen()
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem")
    ptrag_sc.tl.predict(adata, trained)
    return ptrag_sc.tl.perturb(adata, trained, ["G0", "G1"]), adata


def test_edistance_has_our_factor_and_pertpys_estimator(cells):
    x, y = cells
    ours, theirs = energy_distance(x, y), pertpy_metric("edistance").function(x, y)
    own = [pdist(a).mean() / len(a) for a in (x, y)]  # what counting the distance of a cell to itself takes away
    assert theirs == pytest.approx(ours if UNBIASED else ours + sum(own), rel=1e-6)
    assert own[0] > 0.01


def test_rows_are_pertpys_own_values(cells):
    x, y = cells
    assert pertpy_metric("mean_pairwise").function(x, y) == pytest.approx(cdist(x, y).mean())
    assert pertpy_metric("euclidean").function(x, y) == pytest.approx(np.linalg.norm(x.mean(0) - y.mean(0)))
    medians = np.linalg.norm(np.median(x, 0) - np.median(y, 0))
    assert pertpy_metric("euclidean", agg_fct=np.median).function(x, y) == pytest.approx(medians)
    kernel = [np.exp(-0.1 * cdist(a, b, "sqeuclidean")).mean() for a, b in ((x, x), (y, y), (x, y))]
    rbf = pertpy_metric("mmd", kernel="rbf", gamma=0.1)
    assert rbf.function(x, y) == pytest.approx(kernel[0] + kernel[1] - 2 * kernel[2])
    assert pertpy_metric("mmd").function(x, y) == pytest.approx(np.sum((x.mean(0) - y.mean(0)) ** 2))


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"nb_ll", "wasserstein"}))
def test_identical_cells_are_best(name, cells):
    row = pertpy_metric(name, space="genes" if name in OF_GENES else "pcs")
    same = row.function(np.abs(cells[0]), np.abs(cells[0]))
    other = row.function(np.abs(cells[0]), np.abs(cells[1]))
    assert (row.level, row.direction, row.reference) == ("cells", "lower", ())
    assert other > same
    assert np.isnan(row.best) or same == pytest.approx(row.best, abs=1e-9)


@pytest.mark.slow  # jax compiles it
def test_wasserstein_needs_jax_and_is_not_zero_at_the_truth(cells):
    row = pertpy_metric("wasserstein")
    assert np.isnan(row.best)
    assert row.function(cells[0], cells[0]) > 0.1


def test_a_row_is_evaluated_like_our_own(monkeypatch):
    adata = make_screen()
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    reference = Reference.from_adata(adata, n_components=5)
    first = np.arange(adata.n_obs) % 2 == 0
    monkeypatch.setitem(METRICS, "edistance", pertpy_metric("edistance"))
    monkeypatch.setitem(METRICS, "euclidean of genes", pertpy_metric("euclidean", space="genes"))
    real, predicted = adata[first].copy(), adata[~first].copy()
    names = ["energy_distance", "edistance", "euclidean of genes"]
    scores = evaluate(real, predicted, reference=reference, metrics=names)
    wide = scores.pivot(index=["perturbation", "cell_type"], columns="metric", values="value")
    gene, line = wide.index[0]
    x, y = (a[(a.obs["gene"] == gene) & (a.obs["line"] == line)].X.toarray() for a in (real, predicted))
    found = wide.loc[(gene, line)]
    pcs = [reference.project(a.astype(np.float64)) for a in (x, y)]
    own = 0.0 if UNBIASED else sum(pdist(a).mean() / len(a) for a in pcs)
    assert found["edistance"] == pytest.approx(found["energy_distance"] + own, rel=1e-4)
    assert found["euclidean of genes"] == pytest.approx(np.linalg.norm(x.mean(0) - y.mean(0)), rel=1e-4)


def test_bad_requests_are_refused():
    with pytest.raises(KeyError, match=r"'edistanc' is not in pertpy.tools.Distance .*'edistance'"):
        pertpy_metric("edistanc")
    with pytest.raises(TypeError, match=r"'kernl' is not in pertpy's 'mmd' .*'kernel'"):
        pertpy_metric("mmd", kernl="rbf")
    with pytest.raises(ValueError, match="without a seed"):
        pertpy_metric("classifier_proba")
    with pytest.raises(ValueError, match="space='genes'"):
        pertpy_metric("mean_var_distribution")
    with pytest.raises(ValueError, match="neither 'pcs' nor 'genes'"):
        pertpy_metric("edistance", space="X_pca")


def test_without_pertpy_the_extra_is_named(monkeypatch):
    usual = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith("pertpy"):
            raise ImportError("No module named 'pertpy'")
        return usual(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r"ptrag_sc\[pertpy\]"):
        pertpy_metric("edistance")


def test_virtual_cells_go_into_distance(virtual):
    cells, _ = virtual
    cells = cells[cells.obs["line"] == "K562"].copy()
    cells.obsm["X_pca"] = cells.X
    found = pertpy.tools.Distance(metric="euclidean", obsm_key="X_pca").pairwise(
        cells, groupby="gene", show_progressbar=False
    )
    means = [cells.X[(cells.obs["gene"] == gene).to_numpy()].mean(0) for gene in ("G0", "G1")]
    assert found.loc["G0", "G1"] == pytest.approx(np.linalg.norm(means[0] - means[1]), rel=1e-5)


def test_predictions_beside_observed_cells_go_into_distance(virtual):
    _, adata = virtual
    distance = pertpy.tools.Distance(metric="mean_absolute_error", obsm_key="ptrag")
    chosen = adata[(adata.obs["line"] == "K562") & adata.obs["gene"].isin(["ctl", "G0", "G2+G3"])].copy()
    found = distance.onesided_distances(chosen, groupby="gene", selected_group="ctl", show_progressbar=False)
    mean = {g: chosen.obsm["ptrag"][(chosen.obs["gene"] == g).to_numpy()].mean(0) for g in ("ctl", "G2+G3")}
    assert found["G2+G3"] == pytest.approx(np.abs(mean["ctl"] - mean["G2+G3"]).mean(), rel=1e-5)
    assert found["ctl"] == 0


def test_virtual_cells_go_into_perturbation_comparison(virtual):
    cells, adata = virtual
    real, control = (
        adata[(adata.obs["gene"] == gene) & (adata.obs["line"] == "K562")].X.toarray() for gene in ("G0", "ctl")
    )
    predicted = cells[(cells.obs["gene"] == "G0") & (cells.obs["line"] == "K562")].X
    comparison = pertpy.tools.PerturbationComparison()
    assert comparison.compare_classification(real, real, control) == 1
    assert comparison.compare_classification(real, control, control) < 0.5
    assert 0 <= comparison.compare_classification(real, predicted, control) <= 1


@pytest.mark.slow  # its index is compiled first
def test_virtual_cells_go_into_knn_comparison(virtual):
    cells, adata = virtual
    real, control = (
        adata[(adata.obs["gene"] == gene) & (adata.obs["line"] == "K562")].X.toarray() for gene in ("G0", "ctl")
    )
    predicted = cells[(cells.obs["gene"] == "G0") & (cells.obs["line"] == "K562")].X.toarray()
    shares = pertpy.tools.PerturbationComparison().compare_knn(real, predicted, control=control, n_neighbors=5)
    assert sum(shares.values()) == pytest.approx(1)


def test_virtual_cells_go_into_pseudobulk_space(virtual):
    cells, _ = virtual
    bulks = pertpy.tools.PseudobulkSpace().compute(cells.copy(), target_col="gene", groups_col="line", mode="mean")
    assert bulks.shape == (4, cells.n_vars)
    labels = cells.obs["gene"].astype(str) + "_" + cells.obs["line"].astype(str)
    means = cells.to_df().groupby(labels.to_numpy()).mean()
    own = bulks.obs["gene"].astype(str) + "_" + bulks.obs["line"].astype(str)
    np.testing.assert_allclose(bulks.X, means.loc[own].to_numpy(), rtol=1e-4)
