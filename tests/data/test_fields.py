"""Is every unusable input refused with value, place and remedy, and every usable one read as it stands?"""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from mudata import MuData

import ptrag_sc
from ptrag_sc.data import ScreenKeys, read_screen
from screens import KEYS, SMALL, TRAIN, make_screen

setup = ptrag_sc.PTRAG.setup_anndata


def corrupt_x(value):
    def change(adata):
        adata.X.data[5] = value

    return change


def set_label(column, value, row=3):
    def change(adata):
        adata.obs[column] = adata.obs[column].astype(object)
        adata.obs.iloc[row, adata.obs.columns.get_loc(column)] = value

    return change


def counts(adata):
    adata.X = np.rint(np.expm1(adata.X.toarray()))


def zero(adata):
    adata.X = sp.csr_matrix(adata.shape, dtype=np.float32)


def no_x(adata):
    adata.raw = adata.copy()
    adata.X = None


def duplicate_genes(adata):
    adata.var_names = ["gene0", "gene0", *adata.var_names[2:]]


def duplicate_cells(adata):
    adata.obs_names = ["cell0", "cell0", *adata.obs_names[2:]]


def bad_split(adata):
    adata.obs["split"] = "train"
    adata.obs.iloc[0, -1] = "holdout"


def cut_split(adata):
    adata.obs["split"] = np.where(np.arange(adata.n_obs) % 2, "train", "test")


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (None, {"control": "nt"}, ValueError, r"Control label 'nt' .* adata.obs\['gene'\] \(found: 'G0', .*"),
        (None, {"cell_type_key": "tissue"}, KeyError, r"Column 'tissue' does not occur in adata.obs \(found: 'gene'"),
        (None, {"layer": "scaled"}, KeyError, "Layer 'scaled' does not occur in adata.layers"),
        (corrupt_x(np.nan), {}, ValueError, "adata.X holds 1 NaN or infinite values"),
        (corrupt_x(np.inf), {}, ValueError, "adata.X holds 1 NaN or infinite values"),
        (corrupt_x(-0.5), {}, ValueError, r"holds negative values \(smallest -0.5\)"),
        (counts, {}, ValueError, r"holds raw counts .* sc.pp.normalize_total\(adata, target_sum=1e4\) and sc.pp.log1p"),
        (no_x, {}, ValueError, r"Expression in adata.X is missing. Put log1p"),
        (zero, {}, ValueError, "is zero everywhere"),
        (duplicate_genes, {}, ValueError, r"Gene names .* are not unique \('gene0'\). Call"),
        (duplicate_cells, {}, ValueError, r"Cell names .* are not unique \('cell0'\)"),
        (set_label("gene", np.nan), {}, ValueError, r"missing \(NaN\) for 1 cells, the first being 'cell3'"),
        (set_label("line", None), {}, ValueError, r"missing \(NaN\) for 1 cells"),
        (set_label("gem", np.nan), {"batch_key": "gem"}, ValueError, r"adata.obs\['gem'\] are missing"),
        (set_label("gene", "G1+G1"), {}, ValueError, r"Label 'G1\+G1' .* names a gene twice"),
        (set_label("gene", "G1+ctl"), {}, ValueError, r"join a gene and the control \('G1\+ctl'\). Label cells of one"),
        (bad_split, {"split_key": "split"}, ValueError, "Split value 'holdout' does not occur"),
        (cut_split, {"split_key": "split"}, ValueError, "is split between 'test', 'train'"),
    ],
)  # fmt: skip
def test_unusable_input_is_refused_and_nothing_is_registered(change, options, error, message):
    adata = make_screen()
    if change is not None:
        change(adata)
    with pytest.raises(error, match=message):
        setup(adata, **{**KEYS, **options})
    assert "_ptrag_sc" not in adata.uns


def test_views_are_refused_at_setup_and_read_at_prediction(trained):
    view = make_screen()[:200]
    with pytest.raises(ValueError, match=r"is a view of another. Pass adata.copy\(\)"):
        setup(view, **KEYS)
    expected = trained.predict(view.copy(), perturbations="G0", counts=False).X
    np.testing.assert_array_equal(trained.predict(view, perturbations="G0", counts=False).X, expected)
    assert view.is_view


def test_objects_that_were_not_set_up_are_named():
    with pytest.raises(ValueError, match=r"PTRAG.setup_anndata"):
        ScreenKeys.of(make_screen())


@pytest.mark.parametrize("missing", ["K562", "RPE1"])
def test_a_cell_type_without_controls(missing, trained):
    adata = make_screen()
    adata = adata[~((adata.obs["gene"] == "ctl") & (adata.obs["line"] == missing)).to_numpy()].copy()
    setup(adata, **KEYS)
    with pytest.raises(
        ValueError, match=f"Cell types '{missing}' in the data have perturbed cells but no control cells"
    ):
        ptrag_sc.PTRAG(adata, **SMALL)
    with pytest.raises(ValueError, match=f"Cell type '{missing}' .* has no control cells"):
        ptrag_sc.tl.predict(adata, trained)
    assert "ptrag" not in adata.obsm
    result = trained.predict(adata, perturbations="G0")
    assert missing not in set(result.obs["line"])
    with pytest.raises(ValueError, match="has no control cells"):
        trained.predict(adata, perturbations="G0", cell_types=missing)


def test_genes_are_put_into_the_order_of_the_model(trained):
    adata = make_screen()
    expected = trained.predict(adata, perturbations="G0", counts=False).to_df()
    shuffled = adata[:, np.random.default_rng(0).permutation(adata.n_vars)].copy()
    extra = anndata.concat(
        [shuffled, anndata.AnnData(np.ones((adata.n_obs, 2)), obs=adata.obs, var=pd.DataFrame(index=["x", "y"]))],
        axis=1,
        merge="first",
    )
    extra.uns["gene_embedding"] = adata.uns["gene_embedding"]
    for other in (shuffled, extra):
        found = trained.predict(other, perturbations="G0", counts=False).to_df()
        assert list(found.columns) == list(expected.columns)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(KeyError, match=r"lacks 2 of the model's 30 genes \('gene0', 'gene7'\)"):
        trained.predict(adata[:, ~adata.var_names.isin(["gene0", "gene7"])], perturbations="G0")
    with pytest.raises(ValueError, match="are not unique"):
        duplicated = adata.copy()
        duplicate_genes(duplicated)
        trained.predict(duplicated, perturbations="G0")


@pytest.fixture(scope="module")
def of_csr():
    """What a model of a CSR matrix predicts."""
    adata = make_screen(n_obs=240)
    setup(adata, **KEYS)
    return _train_and_predict(adata)


@pytest.mark.parametrize("form", ["dense", "csc", "csr_array", "float64", "layer", "backed_csr", "backed_dense"])
def test_every_matrix_gives_the_same_model(form, of_csr, tmp_path):
    other = make_screen(n_obs=240)
    keys = dict(KEYS)
    if form in ("dense", "backed_dense"):
        other.X = other.X.toarray()
    elif form == "csc":
        other.X = other.X.tocsc()
    elif form == "csr_array":
        other.X = sp.csr_array(other.X)
    elif form == "float64":
        other.X = other.X.astype(np.float64)
    elif form == "layer":
        other.layers["log"] = other.X.copy()
        other.X = sp.csr_matrix(other.shape, dtype=np.float32)
        keys["layer"] = "log"
    if form.startswith("backed"):
        other.write_h5ad(tmp_path / "screen.h5ad")
        other = anndata.read_h5ad(tmp_path / "screen.h5ad", backed="r")
    setup(other, **keys)
    np.testing.assert_array_equal(_train_and_predict(other), of_csr)


def _train_and_predict(adata):
    import scvi

    scvi.settings.seed = 0
    model = ptrag_sc.PTRAG(adata, **SMALL)
    model.train(2, **TRAIN)
    return model.predict(adata, perturbations=["G0", "G1"], counts=False).X


def test_rows_in_any_order_with_duplicates(tmp_path):
    adata = make_screen(n_obs=50)
    dense = adata.X.toarray()
    adata.write_h5ad(tmp_path / "screen.h5ad")
    backed = anndata.read_h5ad(tmp_path / "screen.h5ad", backed="r")
    rows = np.array([7, 3, 3, 49, 0, 7])
    for each in (adata, backed):
        reader = read_screen(each, ScreenKeys("gene", "ctl", "line")).reader
        np.testing.assert_array_equal(reader.rows(rows), dense[rows])
        parts = list(reader.chunks(rows, size=4))
        np.testing.assert_array_equal(np.concatenate([cells for _, cells in parts]), dense[rows])


def test_mudata_gives_the_same_model_as_anndata(of_csr):
    rna = make_screen(n_obs=240)
    other = anndata.AnnData(np.ones((240, 3)), obs=pd.DataFrame(index=rna.obs_names))
    mdata = MuData({"rna": rna, "protein": other})
    mdata.obs["line"] = rna.obs["line"].to_numpy()
    mdata.uns["gene_embedding"] = rna.uns["gene_embedding"]
    modalities = {"layer": "rna", "perturbation_key": "rna"}
    with pytest.raises(KeyError, match="Modality 'atac' does not occur"):
        ptrag_sc.PTRAG.setup_mudata(mdata, **KEYS, modalities={"layer": "atac"})
    ptrag_sc.PTRAG.setup_mudata(mdata, **KEYS, modalities=modalities)
    np.testing.assert_array_equal(_train_and_predict(mdata), of_csr)


def test_setup_survives_writing(tmp_path, screen):
    screen.write_h5ad(tmp_path / "screen.h5ad")
    assert ScreenKeys.of(anndata.read_h5ad(tmp_path / "screen.h5ad")) == ScreenKeys.of(screen)


def test_labels_that_are_numbers():
    adata = make_screen()
    adata.obs["gene"] = (
        adata.obs["gene"]
        .astype(str)
        .map({"ctl": 0} | {g: i + 1 for i, g in enumerate(sorted(set(adata.obs["gene"]) - {"ctl"}))})
    )
    adata.obs["line"] = (adata.obs["line"] == "RPE1").astype(int)
    table = {str(i): np.eye(10)[i - 1] for i in range(1, 11)}
    ptrag_sc.pp.gene_embedding(adata, table, perturbation_key="gene", control="0")
    setup(adata, perturbation_key="gene", control=0, cell_type_key="line")
    result = ptrag_sc.tl.perturb(adata, ptrag_sc.baselines.MeanShift(adata).fit(), [3], cell_types=[1])
    assert set(result.obs["gene"]) == {"3"}
    assert set(result.obs["line"]) == {1}
