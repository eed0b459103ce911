"""Do the two files hold what cell-eval2 compares, and does it find identical cells perfect?"""

import anndata
import cell_eval2
import numpy as np
import pytest
import scipy.sparse as sp

import ptrag_sc
from ptrag_sc.benchmark import to_cell_eval
from ptrag_sc.metrics import Reference
from screens import KEYS, make_screen

PERFECT = {"expr_mae": 0, "expr_mse": 0, "delta_mae": 0, "delta_pearson": 1, "pds_cosine": 1, "pds_l1": 1}
OF_TESTS = {"de_wilcoxon_sig_jaccard": 1, "de_wilcoxon_overlap": 1, "de_wilcoxon_lfc_nmae": 0}
SCORED = {"de_wilcoxon_direction_fidelity_yield_raw", "de_wilcoxon_lfc_nmae", "de_wilcoxon_sig_jaccard", "pds_cosine"}


@pytest.fixture(scope="module")
def screen():
    """A screen with counts, of which five perturbed genes are measured; its reference."""
    adata = make_screen(n_obs=960)
    adata.var_names = [f"G{i}" if i < 5 else f"gene{i}" for i in range(adata.n_vars)]
    adata.layers["counts"] = sp.csr_matrix(np.rint(np.expm1(adata.X.toarray())))
    adata.X = np.log1p(adata.layers["counts"].multiply(1e3 / adata.layers["counts"].sum(1))).tocsr().astype(np.float32)
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem")
    return adata, Reference.from_adata(adata, n_components=10)


def dense(adata):
    return adata.X.toarray() if sp.issparse(adata.X) else np.asarray(adata.X)


def scores(files, metrics):
    table = cell_eval2.compute_metrics(files.predicted, files.real, metrics=metrics, **files.settings)
    return {name: rows["value"].to_numpy() for (name,), rows in table.group_by("metric")}


def test_both_files_hold_the_shared_conditions_and_the_real_controls(screen, tmp_path):
    adata, reference = screen
    predicted = adata[~adata.obs["gene"].isin(["G3", "ctl"]), adata.var_names[::-1]].copy()
    predicted.X = dense(predicted) + 0.25  # dense, in another gene order, without controls
    files = to_cell_eval(adata, predicted, tmp_path / "new", reference=reference, cell_type="K562")
    real, guess = (anndata.read_h5ad(path) for path in files[:2])
    assert (files.real.name, files.predicted.name) == ("real.h5ad", "predicted.h5ad")
    assert real.var_names.tolist() == guess.var_names.tolist() == reference.genes.tolist()
    labels = set(adata.obs["gene"]) - {"G3"}
    assert set(real.obs["target_gene"]) == set(guess.obs["target_gene"]) == labels
    k562 = adata[(adata.obs["line"] == "K562") & (adata.obs["gene"] != "G3")]
    assert set(real.obs_names) == set(guess.obs_names) == set(k562.obs_names)
    np.testing.assert_array_equal(dense(real), dense(k562[real.obs_names]))
    is_control = (guess.obs["target_gene"] == "ctl").to_numpy()
    expected = dense(k562[guess.obs_names]) + np.where(is_control, 0, 0.25)[:, None]
    np.testing.assert_allclose(dense(guess), expected, rtol=1e-6)
    assert files.settings["input_type"] == "lognorm"
    assert files.settings["target_gene_map"] == {"G0+G1": "G0", "G2+G3": "G2", "G5": None, "G6": None, "G7": None}


@pytest.mark.slow  # cell-eval2 compiles its tests first
def test_cell_eval_finds_identical_cells_perfect(screen, tmp_path):
    adata, reference = screen
    files = to_cell_eval(adata, adata, tmp_path, reference=reference, cell_type="K562")
    found = scores(files, [*PERFECT, *OF_TESTS])
    for name, best in (PERFECT | OF_TESTS).items():
        assert len(found[name]) == 10
        np.testing.assert_allclose(found[name], best, atol=1e-6, err_msg=name)


def test_cell_eval_finds_other_cells_imperfect(screen, tmp_path):
    adata, reference = screen
    predicted = adata.copy()
    predicted.X = dense(adata)[np.random.default_rng(0).permutation(adata.n_obs)]
    files = to_cell_eval(adata, predicted, tmp_path, reference=reference, cell_type="K562")
    found = scores(files, ["expr_mae", "delta_pearson"])
    assert found["expr_mae"].min() > 0.01
    assert found["delta_pearson"].mean() < 0.9


def test_decoded_counts_are_those_that_the_scale_came_from(screen, tmp_path):
    """One control cell alone has one size factor: expected counts are known in closed form."""
    adata, reference = screen
    kept = np.array(adata.obs["gene"] != "ctl")
    kept[np.flatnonzero((adata.obs["gene"] == "ctl") & (adata.obs["line"] == "K562"))[0]] = True
    real = adata[kept].copy()
    options = {"reference": reference, "cell_type": "K562", "counts": "decode", "counts_layer": "counts"}
    files = to_cell_eval(real, adata, tmp_path, **options)
    truth, guess = (anndata.read_h5ad(path) for path in files[:2])
    control = real[(real.obs["gene"] == "ctl")]
    factor = control.layers["counts"].sum() / np.expm1(dense(control)).sum()
    perturbed = guess.obs_names[(guess.obs["target_gene"] != "ctl").to_numpy()]
    expected = np.expm1(dense(adata[perturbed])) * factor
    np.testing.assert_allclose(dense(guess[perturbed]), expected, rtol=1e-5)
    np.testing.assert_array_equal(dense(truth), real[truth.obs_names].layers["counts"].toarray())
    assert (files.settings["input_type"], files.settings["allow_fractional_counts"]) == ("counts", True)


def test_sampled_counts_are_whole_with_the_decoded_mean(screen, tmp_path):
    adata, reference = screen
    options = {"reference": reference, "cell_type": "K562", "counts_layer": "counts"}
    negative = adata.copy()
    negative.X = np.where(dense(adata) == 0, -0.3, dense(adata))
    expected = anndata.read_h5ad(to_cell_eval(adata, adata, tmp_path / "e", counts="decode", **options).predicted)
    files = [
        to_cell_eval(adata, negative, tmp_path / str(i), counts="sample", seed=seed, **options)
        for i, seed in enumerate((0, 0, 1))
    ]
    draws = [dense(anndata.read_h5ad(pair.predicted)) for pair in files]
    assert (draws[0] == np.rint(draws[0])).all()
    assert (draws[0] == draws[1]).all()
    assert (draws[0] != draws[2]).any()
    rows = (expected.obs["target_gene"] != "ctl").to_numpy()
    mean = dense(expected)[rows]
    z = (draws[0][rows].sum() - mean.sum()) / np.sqrt(mean.sum())
    assert abs(z) < 4
    assert "allow_fractional_counts" not in files[0].settings


@pytest.mark.slow  # cell-eval2 compiles its tests first
@pytest.mark.parametrize("metrics", ["vcc2026"])
def test_the_competition_set_takes_sampled_counts(screen, tmp_path, metrics):
    adata, reference = screen
    options = {"reference": reference, "cell_type": "K562", "counts": "sample", "counts_layer": "counts"}
    files = to_cell_eval(adata, adata, tmp_path, **options)
    config = cell_eval2.EvalConfig.from_preset(metrics)
    for name, value in files.settings.items():
        setattr(config, name, value)
    table = cell_eval2.compute_metrics(files.predicted, files.real, config=config)
    found = {name: rows["value"].to_numpy() for (name,), rows in table.group_by("metric")}
    assert set(found) >= SCORED
    assert found["pds_cosine"].mean() > 0.9
    assert found["de_wilcoxon_sig_jaccard"].mean() > 0.6


def test_files_are_not_overwritten_unasked_and_replaced_whole(screen, tmp_path, monkeypatch):
    adata, reference = screen
    options = {"reference": reference, "cell_type": "K562"}
    files = to_cell_eval(adata, adata, tmp_path, **options)
    before = files.predicted.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        to_cell_eval(adata, adata, tmp_path, **options)

    def broken(self, path):
        path.write_bytes(b"half a file")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(anndata.AnnData, "write_h5ad", broken)
        with pytest.raises(OSError, match="no space left"):
            to_cell_eval(adata, adata, tmp_path, overwrite=True, **options)
    assert files.predicted.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predicted.h5ad", "real.h5ad"]
    to_cell_eval(adata[::2], adata, tmp_path, overwrite=True, **options)
    assert anndata.read_h5ad(files.real).n_obs < adata.n_obs / 2


def test_one_cell_type_needs_no_name(screen, tmp_path):
    adata, reference = screen
    rpe1 = adata[adata.obs["line"] == "RPE1"].copy()
    files = to_cell_eval(adata, rpe1, tmp_path, reference=reference)
    assert set(anndata.read_h5ad(files.real).obs["cell_type"]) == {"RPE1"}


def test_bad_input_is_refused(screen, tmp_path):
    adata, reference = screen
    options = {"reference": reference, "cell_type": "K562"}
    with pytest.raises(ValueError, match="several cell types"):
        to_cell_eval(adata, adata, tmp_path, reference=reference)
    with pytest.raises(KeyError, match="'HepG2'"):
        to_cell_eval(adata, adata, tmp_path, reference=reference, cell_type="HepG2")
    with pytest.raises(ValueError, match="'raw'"):
        to_cell_eval(adata, adata, tmp_path, counts="raw", **options)
    with pytest.raises(ValueError, match="do not go together"):
        to_cell_eval(adata, adata, tmp_path, counts="sample", **options)
    with pytest.raises(KeyError, match="'raw'"):
        to_cell_eval(adata, adata, tmp_path, counts="sample", counts_layer="raw", **options)
    with pytest.raises(ValueError, match="Control label 'ctl'"):
        to_cell_eval(adata[adata.obs["gene"] != "ctl"].copy(), adata, tmp_path, **options)
    fractions = adata.copy()
    fractions.layers["counts"] = fractions.X
    with pytest.raises(ValueError, match="no counts"):
        to_cell_eval(fractions, adata, tmp_path, counts="sample", counts_layer="counts", **options)
    empty = adata.copy()
    empty.X = empty.X.multiply((empty.obs["gene"] != "ctl").to_numpy()[:, None]).tocsr()
    with pytest.raises(ValueError, match="no expression"):
        to_cell_eval(empty, adata, tmp_path, counts="decode", counts_layer="counts", **options)
    raw = adata.copy()
    raw.X = raw.layers["counts"]
    with pytest.raises(ValueError, match="raw counts"):
        to_cell_eval(adata, raw, tmp_path, **options)
    assert not list(tmp_path.iterdir())
