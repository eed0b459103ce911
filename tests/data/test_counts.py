"""Are the molecules of every cell found behind its expression, and never made up where there are none?"""

from functools import partial

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import ptrag_sc
from ptrag_sc.data import CellReader, read_screen
from ptrag_sc.data import _counts as counts_module
from ptrag_sc.data._counts import CountsUnknown, find_counts, known_controls, read_counts
from ptrag_sc.data._fields import ScreenKeys

KEYS = {"perturbation_key": "gene", "control": "ctl", "cell_type_key": "line"}


def make(counts, total, *, scale=1e4):
    """Return a screen of controls, perturbed cells every fifth, of log1p(scale * counts / total)."""
    n, n_genes = counts.shape
    obs = pd.DataFrame({"gene": np.where(np.arange(n) % 5 == 4, "A", "ctl"), "line": "t"})
    obs.index = [f"cell{i}" for i in range(n)]
    x = np.log1p(scale * counts / total[:, None]).astype(np.float32)
    return AnnData(sp.csr_matrix(x), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))


def panel(*, n=200, n_genes=40, n_outside=200, seed=0):
    """Counts of a panel (n, G), and totals of whole cells, most of which lie outside of it."""
    rng = np.random.default_rng(seed)
    rate = rng.gamma(0.5, 3.0, n_genes) * rng.lognormal(0, 0.5, (n, 1))
    counts = rng.poisson(rate).astype(float)
    return counts, counts.sum(1) + rng.poisson(30.0, (n, n_outside)).sum(1)


def screen_of(adata, **keys):
    return read_screen(adata, ScreenKeys("gene", "ctl", "line", **keys))


def everything(adata):
    return read_counts(screen_of(adata), np.arange(adata.n_obs))


@pytest.mark.parametrize("scale", [1e4, 1e6, 937.5])
def test_counts_and_factors_are_recovered_exactly(scale):
    """Totals outside of the panel: the factor has nothing to do with the sum of the row."""
    counts, total = panel()
    assert ((counts > 0).sum(1) > 2).all()
    found = everything(make(counts, total, scale=scale))
    np.testing.assert_array_equal(found.counts.toarray(), counts)
    assert found.counts.dtype == np.float32
    np.testing.assert_allclose(found.factor, scale / total, rtol=1e-4)
    np.testing.assert_allclose(found.size, total / scale, rtol=1e-4)
    assert np.corrcoef(found.size, counts.sum(1))[0, 1] < 0.9


def test_genes_that_are_left_out_change_no_factor():
    counts, total = panel(n_genes=60)
    whole = everything(make(counts, total))
    few = everything(make(counts[:, :45], total))
    np.testing.assert_allclose(few.factor, whole.factor, rtol=1e-4)
    np.testing.assert_array_equal(few.counts.toarray(), whole.counts.toarray()[:, :45])


def test_the_least_expressed_gene_may_have_several_molecules():
    """Two molecules or more of every gene that a cell shows; their number follows from the other genes."""
    shown = [[2, 3], [3, 4], [4, 7, 9], [5, 6, 11], [6, 7], [1, 30], [2, 2, 5], [3, 3, 8], [4, 6, 9], [6, 35, 41]]
    counts = np.zeros((len(shown), 6))
    for row, values in zip(counts, shown, strict=True):
        row[: len(values)] = values
    total = np.linspace(3000.0, 9000.0, len(shown))
    found = everything(make(counts, total))
    np.testing.assert_array_equal(found.counts.toarray(), counts)
    np.testing.assert_allclose(found.factor, 1e4 / total, rtol=1e-4)


def test_a_real_screen_is_recovered():
    """Of a panel of 299 genes, normalised by all transcripts of the cell."""
    adata = ptrag_sc.datasets.papalexi()
    found = read_counts(read_screen(adata, ScreenKeys("perturbation", "non-targeting", "cell_type")), np.arange(2000))
    assert (found.counts != adata.layers["counts"][:2000]).nnz == 0
    np.testing.assert_allclose(found.factor, 1e4 / adata.obs["total_umis"][:2000], rtol=1e-3)


def test_many_molecules_are_recovered():
    rng = np.random.default_rng(0)
    counts = np.concatenate([np.ones((50, 2)), rng.integers(0, 20_000, (50, 20))], 1).astype(float)
    np.testing.assert_array_equal(everything(make(counts, counts.sum(1))).counts.toarray(), counts)


def test_cells_without_molecules_have_an_average_size():
    counts, total = panel()
    counts[[3, 7]] = 0
    found = everything(make(counts, total))
    assert np.isnan(found.factor[[3, 7]]).all()
    assert found.counts[[3, 7]].nnz == 0
    others = np.delete(total / 1e4, [3, 7])
    np.testing.assert_allclose(found.size[[3, 7]], others.mean(), rtol=1e-4)
    assert np.isfinite(found.size).all()
    adata = make(counts, total)
    adata.layers["raw"] = counts
    alone = read_counts(screen_of(adata, counts_layer="raw"), np.array([3, 7]))
    assert alone.counts.nnz == 0
    assert alone.size.tolist() == [1, 1]


@pytest.mark.parametrize("form", ["dense", "csc", "csr_array", "float64", "backed_csr", "backed_dense"])
@pytest.mark.parametrize("registered", [False, True])
def test_every_matrix_has_the_same_counts(form, registered, tmp_path):
    counts, total = panel(n=60)
    adata = make(counts, total)
    adata.layers["raw"] = sp.csr_matrix(counts.astype(np.float32))
    change = {
        "dense": lambda m: m.toarray(),
        "backed_dense": lambda m: m.toarray(),
        "csc": lambda m: m.tocsc(),
        "csr_array": sp.csr_array,
        "float64": lambda m: m.astype(np.float64),
        "backed_csr": lambda m: m,
    }[form]
    other = adata.copy()
    other.X, other.layers["raw"] = change(adata.X), change(adata.layers["raw"])
    if form.startswith("backed"):
        other.write_h5ad(tmp_path / "screen.h5ad")
        other = anndata.read_h5ad(tmp_path / "screen.h5ad", backed="r")
    keys = {"counts_layer": "raw"} if registered else {}
    rows = np.array([5, 3, 41])
    first, second = (read_counts(screen_of(each, **keys), rows) for each in (adata, other))
    np.testing.assert_array_equal(first.counts.toarray(), counts[rows])
    np.testing.assert_array_equal(second.counts.toarray(), counts[rows])
    np.testing.assert_array_equal(first.factor, second.factor)


def log2(adata):
    adata.X = adata.X / np.log(2)


def scaled_by_gene(adata):
    x = adata.X.toarray()
    adata.X = x / (0.1 + x.std(0))


def batch_corrected(adata):
    x = adata.X.toarray()
    x[::2] += 0.1 * np.random.default_rng(0).normal(size=x.shape[1])
    adata.X = np.maximum(x, 0)


def imputed(adata):
    x = adata.X.toarray()
    adata.X = 0.5 * x + 0.5 * np.roll(x, 1, axis=0)


@pytest.mark.parametrize("change", [log2, scaled_by_gene, batch_corrected, imputed])
def test_other_expression_has_no_counts(change):
    adata = make(*panel())
    assert find_counts(screen_of(adata)) is None
    change(adata)
    problem = find_counts(screen_of(adata))
    assert "is not log1p of whole numbers times one factor for each cell" in problem
    assert "Register the raw counts with setup_anndata(counts_layer=...), or pass counts=False." in problem
    with pytest.raises(CountsUnknown):
        everything(adata)


def test_one_broken_cell_is_enough_and_is_named():
    adata = make(*panel())
    x = adata.X.toarray()
    x[17, x[17] > 0] += np.linspace(0.02, 0.09, (x[17] > 0).sum())
    x[19, x[19] > 0] += 0.05
    adata.X = x
    assert adata.obs["gene"].iloc[17] == "ctl"
    assert "'cell17'" in find_counts(screen_of(adata))
    with pytest.raises(CountsUnknown, match="'cell17'"):
        everything(adata)
    adata.obs.loc["cell17", "gene"] = "A"  # perturbed cells are not generated from
    assert find_counts(screen_of(adata)) is None


def test_a_broken_control_is_found_before_a_cell_is_generated(monkeypatch):
    """Also one that is not among those that stand for its cell type: auto is smooth then, and no error comes later."""
    monkeypatch.setattr(counts_module, "MAX_CONTROLS", 5)
    adata = make(*panel())
    controls = np.flatnonzero(adata.obs["gene"] == "ctl")
    (row, *_) = np.setdiff1d(controls, known_controls(screen_of(adata), 0))
    x = adata.X.toarray()
    x[row, x[row] > 0] += np.linspace(0.02, 0.09, (x[row] > 0).sum())
    adata.X = x
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    predicted = ptrag_sc.baselines.MeanShift(adata).fit().predict(perturbations="A")
    assert predicted.uns["ptrag"]["params"]["counts"] is False


@pytest.mark.parametrize("n_at_once", [3, 4096])
def test_counts_do_not_depend_on_how_many_cells_are_read_at_once(monkeypatch, n_at_once):
    counts, total = panel()
    adata = make(counts, total)
    adata.layers["raw"] = counts.astype(np.float32)
    chunks = CellReader.chunks
    monkeypatch.setattr(CellReader, "chunks", lambda self, rows, size=n_at_once: chunks(self, rows, size))
    for keys in ({}, {"counts_layer": "raw"}):
        found = read_counts(screen_of(adata, **keys), np.arange(adata.n_obs))
        np.testing.assert_array_equal(found.counts.toarray(), counts)


def test_predictions_ask_for_the_counts():
    """auto: smooth where they are not known; True: an error with the remedy."""
    adata = make(*panel())
    log2(adata)
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    model = ptrag_sc.baselines.MeanShift(adata).fit()
    smooth = model.predict(perturbations="A")
    assert smooth.uns["ptrag"]["params"]["counts"] is False
    assert isinstance(smooth.X, np.ndarray)
    assert not smooth.layers
    np.testing.assert_array_equal(smooth.X, model.predict(perturbations="A", counts=False).X)
    perturb = partial(model.predict, perturbations="A")
    for call in (perturb, partial(ptrag_sc.tl.predict, adata, model)):
        with pytest.raises(ValueError, match=r"is not log1p of whole numbers .* Register the raw counts"):
            call(counts=True)
    assert "ptrag" not in adata.obsm
    with pytest.raises(ValueError, match=r"counts= 'yes' does not occur in the known values"):
        model.predict(perturbations="A", counts="yes")


def test_a_registered_layer_is_taken_as_it_is():
    """Also where nothing could be recovered: every cell shows one gene, or even numbers only."""
    counts, total = panel()
    counts = 2 * counts
    counts[::3, 1:] = 0
    adata = make(counts, total)
    adata.layers["raw"] = counts.astype(np.float32)
    screen = screen_of(adata, counts_layer="raw")
    assert find_counts(screen) is None
    rows = np.arange(adata.n_obs)[::-1]
    found = read_counts(screen, rows)
    np.testing.assert_array_equal(found.counts.toarray(), counts[::-1])
    expected = np.where(counts.sum(1) > 0, 1e4 / total, np.nan)[::-1]
    np.testing.assert_allclose(found.factor, expected, rtol=1e-5)


def negative(layer):
    layer[30, 2] = -1


def fraction(layer):
    layer[30, 2] = 2.5


def of_other_cells(layer):
    layer[30] = np.roll(layer[30], 1)


def one_more(layer):
    layer[30, np.flatnonzero(layer[30] == 0)[0]] = 1


def of_a_cell_without_expression(layer):
    """The other cells' counts are right, and a factor of 0 would fit any counts of this one."""


@pytest.mark.parametrize("change", [negative, fraction, of_other_cells, one_more, of_a_cell_without_expression])
def test_a_layer_that_does_not_belong_to_the_expression_is_refused_at_setup(change):
    counts, total = panel()
    adata = make(counts, total)
    adata.layers["raw"] = counts.astype(np.float32)
    adata.layers["wrong"] = adata.layers["raw"].copy()
    change(adata.layers["wrong"])
    assert adata.obs["gene"].iloc[30] == "ctl"
    ptrag_sc.PTRAG.setup_anndata(adata.copy(), **KEYS, counts_layer="raw")
    if change is of_a_cell_without_expression:
        adata.X = adata.X.toarray() * (np.arange(adata.n_obs) != 30)[:, None]
    with pytest.raises(
        ValueError, match=r"'cell30'.*Pass the layer of raw counts, or leave counts_layer=None"
    ) as error:
        ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, counts_layer="wrong")
    assert "counts=False" not in str(error.value)
    assert "_ptrag_sc" not in adata.uns


def test_a_layer_that_does_not_exist_is_named():
    adata = make(*panel())
    adata.layers["raw"] = adata.X
    with pytest.raises(KeyError, match=r"Layer 'counts' does not occur in adata.layers \(found: 'raw'\)"):
        ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, counts_layer="counts")


def test_the_registered_layer_is_used_and_kept_by_the_model():
    """Even counts cannot be told from half of them; an object without the layer is read as if none was registered."""
    counts, total = panel()
    adata = make(2 * counts, total)
    adata.layers["raw"] = 2 * counts.astype(np.float32)
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, counts_layer="raw")
    model = ptrag_sc.baselines.NoEffect(adata).fit()
    source = adata[adata.obs["gene"] == "ctl"]
    predicted = model.predict(perturbations="A")
    order = predicted.obs["ptrag_source"].to_numpy()
    np.testing.assert_array_equal(predicted.layers["counts"].toarray(), source[order].layers["raw"])
    del adata.layers["raw"]
    halved = model.predict(adata, perturbations="A")
    np.testing.assert_array_equal(halved.layers["counts"].toarray(), predicted.layers["counts"].toarray() / 2)


def test_controls_that_stand_for_a_cell_type_are_chosen_by_name(monkeypatch):
    monkeypatch.setattr(counts_module, "MAX_CONTROLS", 25)
    adata = make(*panel())
    order = np.random.default_rng(0).permutation(adata.n_obs)
    chosen = []
    for each in (adata, adata[order].copy()):
        rows = known_controls(screen_of(each), 0)
        assert len(rows) == 25
        assert (np.diff(rows) > 0).all()
        assert (each.obs["gene"].iloc[rows] == "ctl").all()
        chosen.append(set(each.obs_names[rows]))
    assert chosen[0] == chosen[1]
    monkeypatch.setattr(counts_module, "MAX_CONTROLS", 10_000)
    assert len(known_controls(screen_of(adata), 0)) == (adata.obs["gene"] == "ctl").sum()


@pytest.mark.parametrize("value", [60.0, 200.0, 1e30])
def test_values_that_no_logarithm_of_counts_has_are_no_counts(value):
    counts, total = panel(n=20)
    adata = make(counts, total)
    adata.X.data[3] = value
    adata.layers["other"] = adata.X  # X itself would be refused
    with pytest.raises(CountsUnknown, match=r"holds values above 50"):
        read_counts(screen_of(adata, layer="other"), np.arange(adata.n_obs))
