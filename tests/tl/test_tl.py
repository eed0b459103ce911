"""Do results stand in the AnnData as documented, mean what they say, and survive writing?"""

from functools import partial

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import ptrag_sc
from screens import KEYS, make_screen, train_small


@pytest.fixture
def predicted(trained):
    """Predictions in the smooth form, in which each cell is shifted."""
    adata = make_screen()
    ptrag_sc.tl.predict(adata, trained, counts=False)
    return adata


@pytest.mark.parametrize("counts", [False, "auto"])
def test_every_documented_place_is_filled(trained, counts):
    predicted = make_screen()
    ptrag_sc.tl.predict(predicted, trained, counts=counts)
    n_genes, n_candidates = 30, len(trained.candidates_)
    assert predicted.obsm["ptrag"].shape == (predicted.n_obs, n_genes)
    assert predicted.obsm["ptrag"].dtype == np.float32
    assert predicted.uns["ptrag"]["params"]["counts"] is (counts == "auto")
    if counts:  # those of the screen are the values themselves: log1p of whole numbers
        molecules = predicted.obsm["ptrag_counts"]
        assert predicted.obsm["ptrag"].format == molecules.format == "csr"
        assert molecules.dtype == np.float32
        assert (molecules.data == np.rint(molecules.data)).all()
        assert molecules.data.min() > 0
        np.testing.assert_allclose(predicted.obsm["ptrag"].toarray(), np.log1p(molecules.toarray()), atol=1e-6)
        shown = (predicted.X.toarray() > 0).mean()
        assert (molecules.toarray() > 0).mean() == pytest.approx(shown, abs=0.05)
    else:
        assert "ptrag_counts" not in predicted.obsm
        assert np.isfinite(predicted.obsm["ptrag"]).all()
    weights = predicted.obsm["ptrag_retrieval"]
    assert sp.issparse(weights)
    assert weights.format == "csr"
    assert weights.shape == (predicted.n_obs, n_candidates)
    assert set(predicted.uns["ptrag"]) == {
        "params",
        "genes",
        "candidates",
        "effects",
        "retrieval",
        "support",
        "support_calibration",
    }
    assert list(predicted.uns["ptrag"]["genes"]) == list(predicted.var_names)
    assert predicted.uns["ptrag"]["params"]["control"] == "ctl"
    assert predicted.obs["ptrag_predicted"].all()


def test_sources_are_controls_of_the_same_cell_type_and_batch(predicted):
    source = predicted.obs.loc[predicted.obs["ptrag_source"].astype(str)]
    assert (source["gene"] == "ctl").all()
    assert (source["line"].to_numpy() == predicted.obs["line"].to_numpy()).all()
    assert (source["gem"].to_numpy() == predicted.obs["gem"].to_numpy()).all()
    control = (predicted.obs["gene"] == "ctl").to_numpy()
    assert (source.index.to_numpy()[control] == predicted.obs_names.to_numpy()[control]).all()


@pytest.mark.parametrize("counts", [False, True])
def test_controls_alone_are_returned_without_effects(trained, counts):
    adata = make_screen()
    adata = adata[adata.obs["gene"] == "ctl"].copy()
    ptrag_sc.tl.predict(adata, trained, counts=counts)
    found = adata.obsm["ptrag"].toarray() if counts else adata.obsm["ptrag"]
    np.testing.assert_array_equal(found, adata.X.toarray())
    assert "effects" not in adata.uns["ptrag"]


def test_a_batch_without_controls_draws_on_the_cell_type(trained):
    adata = make_screen()
    adata = adata[~((adata.obs["gene"] == "ctl") & (adata.obs["gem"] == "b2")).to_numpy()].copy()
    ptrag_sc.tl.predict(adata, trained, counts=False)
    source = adata.obs.loc[adata.obs["ptrag_source"].astype(str)]
    assert (source["line"].to_numpy() == adata.obs["line"].to_numpy()).all()
    assert np.isfinite(adata.obsm["ptrag"]).all()


def test_the_table_sums_up_the_weights_of_the_cells(trained, predicted):
    table = predicted.uns["ptrag"]["retrieval"]
    weights = pd.DataFrame(predicted.obsm["ptrag_retrieval"].toarray(), columns=trained.candidates_)
    group = [predicted.obs["gene"].astype(str).to_numpy(), predicted.obs["line"].to_numpy()]
    mean = weights.groupby(group).mean()
    for row in table.itertuples():
        assert mean.loc[(row.perturbation, row.cell_type), row.candidate] == pytest.approx(row.weight, abs=1e-5)
    assert (weights[(predicted.obs["gene"] == "ctl").to_numpy()].to_numpy() == 0).all()
    assert table["selected"].between(0, 1).all()
    assert (table["rank"] == table.groupby(["perturbation", "cell_type"]).cumcount()).all()
    assert (table.groupby(["perturbation", "cell_type"])["similarity"].diff().dropna() <= 1e-9).all()


def test_a_name_predicts_the_controls_under_it(trained):
    adata = make_screen()
    control = (adata.obs["gene"] == "ctl").to_numpy()
    named = [f"{name}-G1+G2" for name in adata.obs_names[control]]
    for counts in (False, True):
        ptrag_sc.tl.predict(adata, trained, perturbation="G2+G1", key_added="double", counts=counts)
        assert (adata.obs["double_predicted"] == control).all()
        expected = trained.predict(adata, perturbations="G1+G2", counts=counts)[named].to_df()
        found = adata.obsm["double"]
        if counts:
            assert [adata.obsm[key][~control].nnz for key in ("double", "double_counts")] == [0, 0]
            np.testing.assert_array_equal(found[control].toarray(), expected)  # a control row has its own name
        else:
            assert np.isnan(found[~control]).all()
            np.testing.assert_allclose(found[control], expected, atol=1e-5)
    with pytest.raises(TypeError, match=r"tl.perturb"):
        ptrag_sc.tl.predict(adata, trained, perturbation=["G1", "G2"])


def test_replaces_its_key_and_copies_on_request(trained, predicted):
    before = predicted.obsm["ptrag"].copy()
    copy = ptrag_sc.tl.predict(predicted, trained, seed=3, copy=True)
    np.testing.assert_array_equal(predicted.obsm["ptrag"], before)
    assert copy.uns["ptrag"]["params"]["seed"] == 3
    assert ptrag_sc.tl.predict(predicted, trained, seed=3) is None
    for key in ("ptrag", "ptrag_counts"):
        np.testing.assert_array_equal(predicted.obsm[key].toarray(), copy.obsm[key].toarray())
    ptrag_sc.tl.predict(predicted, trained, counts=False)
    np.testing.assert_array_equal(predicted.obsm["ptrag"], before)
    assert "ptrag_counts" not in predicted.obsm  # those of the replaced prediction


def test_nonnegative_clips_and_says_so(trained):
    adata = make_screen()
    plain = ptrag_sc.tl.perturb(adata, trained, ["G0", "G3"], counts=False)
    clipped = ptrag_sc.tl.perturb(adata, trained, ["G0", "G3"], counts=False, nonnegative=True)
    assert plain.X.min() < 0
    np.testing.assert_array_equal(clipped.X, np.maximum(plain.X, 0))
    assert clipped.uns["ptrag"]["params"]["nonnegative"]
    assert not plain.uns["ptrag"]["params"]["nonnegative"]


def test_virtual_cells_keep_the_users_columns(trained):
    adata = make_screen()
    adata.obs["donor"] = np.arange(adata.n_obs)
    adata.var["chromosome"] = "1"
    virtual = ptrag_sc.tl.perturb(adata, trained, ["G0", "G2+G1"], cell_types="K562")
    controls = adata[(adata.obs["gene"] == "ctl") & (adata.obs["line"] == "K562")]
    assert virtual.n_obs == 2 * controls.n_obs
    assert virtual.obs_names.is_unique
    assert set(virtual.obs["gene"]) == {"G0", "G1+G2"}
    assert list(virtual.var["chromosome"]) == ["1"] * 30
    source = adata.obs.loc[virtual.obs["ptrag_source"]]
    for column in ("donor", "line", "gem"):
        assert (virtual.obs[column].to_numpy() == source[column].to_numpy()).all()
    assert not [c for c in virtual.obs if c.startswith("_scvi")]
    few = ptrag_sc.tl.perturb(adata, trained, "G0", n_cells=5)
    assert few.obs.groupby("line").size().to_dict() == {"K562": 5, "RPE1": 5}
    assert set(few.obs["ptrag_source"]) != set(
        ptrag_sc.tl.perturb(adata, trained, "G0", n_cells=5, seed=1).obs["ptrag_source"]
    )


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (["ctl"], {}, ValueError, "hold the control 'ctl'"),
        (["G0", "G1+ctl"], {}, ValueError, r"hold the control 'ctl' \(in 'G1\+ctl'\)"),
        (["g0"], {}, KeyError, "closest: 'G0'"),
        ([], {}, ValueError, "are empty"),
        (["G1+G1"], {}, ValueError, "names a gene twice"),
        (["G0"], {"cell_types": "HeLa"}, KeyError, r"Cell type 'HeLa' does not occur .* \(found: 'K562', 'RPE1'\)"),
        (["G0"], {"n_cells": 10_000}, ValueError, "n_cells=10000 .* cannot be drawn from the"),
        (["G0"], {"n_cells": 0}, ValueError, "n_cells=0"),
    ],
)
def test_requests_that_cannot_be_met(trained, arguments, options, error, message):
    with pytest.raises(error, match=message):
        ptrag_sc.tl.perturb(make_screen(), trained, arguments, **options)


def test_arguments_in_the_wrong_order_are_named(trained, predicted):
    for call in (ptrag_sc.tl.predict, ptrag_sc.tl.retrieval, partial(ptrag_sc.tl.perturb, perturbations="G0")):
        with pytest.raises(TypeError, match=r"is no P.*Pass the data first, then the fitted model"):
            call(trained, predicted)
    with pytest.raises(TypeError, match=r"'x.h5ad' in the place of the data is no AnnData or MuData"):
        ptrag_sc.tl.perturb("x.h5ad", trained, "G0")


def test_effects_equal_slow_means(trained, predicted):
    ptrag_sc.tl.effect(predicted)
    effect = predicted.uns["ptrag"]["effect"]
    observed, obs = predicted.X.toarray(), predicted.obs
    for i, row in effect["conditions"].iterrows():
        cells = ((obs["gene"] == row["perturbation"]) & (obs["line"] == row["cell_type"])).to_numpy()
        matched = np.zeros(30)
        for batch, n in obs.loc[cells, "gem"].value_counts().items():
            pool = (obs["gene"] == "ctl") & (obs["line"] == row["cell_type"]) & (obs["gem"] == batch)
            matched += n / cells.sum() * observed[pool.to_numpy()].mean(0)
        real = observed[cells].mean(0) - matched
        sources = predicted.obs_names.get_indexer(obs.loc[cells, "ptrag_source"].astype(str))
        guess = (predicted.obsm["ptrag"][cells] - observed[sources]).mean(0)
        np.testing.assert_allclose(effect["observed"][i], real, atol=1e-4)
        np.testing.assert_allclose(effect["predicted"][i], guess, atol=1e-4)
        assert row["n_observed"] == row["n_predicted"] == cells.sum()
        assert row["pearson_delta"] == pytest.approx(np.corrcoef(real, guess)[0, 1], abs=1e-3)
        assert row["effect_slope"] == pytest.approx(real @ guess / (real @ real), abs=1e-3)


def test_effects_of_virtual_cells_and_of_conditions_that_were_not_observed(trained):
    adata = make_screen()
    virtual = ptrag_sc.tl.perturb(adata, trained, ["G4+G6", "G0"])
    before = set(adata.uns)
    ptrag_sc.tl.effect(adata, predicted=virtual)
    assert set(adata.uns) == before  # written beside the prediction, and nowhere else
    effect = virtual.uns["ptrag"]["effect"]
    unseen = (effect["conditions"]["perturbation"] == "G4+G6").to_numpy()
    assert np.isnan(effect["observed"][unseen]).all()
    assert effect["conditions"].loc[unseen, ["pearson_delta", "effect_slope"]].isna().all(axis=None)
    assert np.isfinite(effect["observed"][~unseen]).all()
    assert np.isfinite(effect["predicted"]).all()
    with pytest.raises(KeyError, match=r"lacks .* of the control cells"):
        ptrag_sc.tl.effect(adata[:50].copy(), predicted=virtual)
    adata.uns["ptrag"] = virtual.uns["ptrag"]
    for other in (make_screen(), adata):  # observed cells whose uns has the entry of virtual ones are not these
        with pytest.raises(KeyError, match=r"Run ptrag_sc.tl.predict first"):
            ptrag_sc.tl.effect(other)


def test_effects_of_an_older_file_are_made_anew(trained):
    """They were observed and predicted shifts alone."""
    virtual = ptrag_sc.tl.perturb(make_screen(), trained, "G0")
    expected = ptrag_sc.tl.effect_table(virtual)
    written = virtual.uns["ptrag"]["effect"]
    virtual.uns["ptrag"]["effect"] = {name: written[name] for name in ("conditions", "observed", "predicted")}
    pd.testing.assert_frame_equal(ptrag_sc.tl.effect_table(virtual), expected)


def test_retrieval_alone_agrees_with_prediction(trained, predicted):
    adata = make_screen()
    ptrag_sc.tl.retrieval(adata, trained)
    table = adata.uns["ptrag"]["retrieval"]
    both = table.merge(predicted.uns["ptrag"]["retrieval"], on=["perturbation", "cell_type", "candidate"], how="outer")
    np.testing.assert_allclose(both["similarity_x"], both["similarity_y"])
    assert (both["rank_x"] == both["rank_y"]).all()
    ptrag_sc.tl.effect(predicted)
    ptrag_sc.tl.retrieval(predicted, trained, perturbations="G0", cell_types="K562")
    assert len(predicted.uns["ptrag"]["retrieval"]) == 4
    assert "effect" in predicted.uns["ptrag"]


@pytest.mark.parametrize("suffix", ["h5ad", pytest.param("zarr", marks=pytest.mark.slow)])
def test_everything_survives_writing(trained, predicted, tmp_path, suffix):
    ptrag_sc.tl.effect(predicted)
    ptrag_sc.tl.predict(predicted, trained, perturbation="G0", key_added="other")
    path = tmp_path / f"result.{suffix}"
    if suffix == "h5ad":
        predicted.write_h5ad(path)
        back = anndata.read_h5ad(path)
    else:
        predicted.write_zarr(path)
        back = anndata.read_zarr(path)
    np.testing.assert_array_equal(back.obsm["ptrag"], predicted.obsm["ptrag"])
    for name in ("ptrag_retrieval", "other", "other_counts", "other_retrieval"):
        np.testing.assert_array_equal(back.obsm[name].toarray(), predicted.obsm[name].toarray())
    for key in ("ptrag", "other"):
        sources = [each.obs[f"{key}_source"].astype(object).fillna("none") for each in (back, predicted)]
        assert sources[0].tolist() == sources[1].tolist()
        table, original = (
            x.uns[key]["retrieval"].reset_index(drop=True).astype({"rank": int}) for x in (back, predicted)
        )
        for column in original:
            assert table[column].tolist() == original[column].tolist()
    np.testing.assert_array_equal(back.uns["ptrag"]["effect"]["observed"], predicted.uns["ptrag"]["effect"]["observed"])
    before = back.uns["ptrag"]["effect"]["predicted"].copy()
    ptrag_sc.tl.effect(back)  # what was read back can be worked with
    np.testing.assert_allclose(back.uns["ptrag"]["effect"]["predicted"], before, atol=1e-6)


@pytest.mark.parametrize("suffix", ["h5ad", pytest.param("zarr", marks=pytest.mark.slow)])
def test_slashes_in_names_survive_writing(tmp_path, suffix):
    adata = make_screen()
    adata.obs["gene"] = adata.obs["gene"].astype(str).replace({"G3": "enh:1/2"})
    table = {f"G{i}": np.eye(8)[i] for i in range(8)} | {"enh:1/2": np.ones(8)}
    ptrag_sc.pp.gene_embedding(adata, table, perturbation_key="gene", control="ctl")
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    ptrag_sc.tl.predict(adata, train_small(adata, max_epochs=1))
    ptrag_sc.tl.effect(adata)
    path = tmp_path / f"slash.{suffix}"
    if suffix == "h5ad":
        adata.write_h5ad(path)
        back = anndata.read_h5ad(path)
    else:
        adata.write_zarr(path)
        back = anndata.read_zarr(path)
    assert "enh:1/2" in set(back.uns["ptrag"]["retrieval"]["perturbation"])


def test_effects_follow_the_genes_of_the_predicted_object(trained):
    adata = make_screen()
    virtual = ptrag_sc.tl.perturb(adata, trained, ["G0", "G1"])
    ptrag_sc.tl.effect(adata, predicted=virtual)
    expected = virtual.uns["ptrag"]["effect"]
    turned = virtual[:, ::-1].copy()
    ptrag_sc.tl.effect(adata, predicted=turned)
    found = turned.uns["ptrag"]["effect"]
    np.testing.assert_allclose(found["predicted"][:, ::-1], expected["predicted"], atol=1e-6)
    np.testing.assert_allclose(found["conditions"]["pearson_delta"], expected["conditions"]["pearson_delta"], atol=1e-5)


def test_virtual_cells_carry_nothing_of_earlier_predictions_or_the_split(trained, predicted):
    predicted.obs["split"] = "train"
    ptrag_sc.PTRAG.setup_anndata(predicted, **KEYS, split_key="split")
    model = train_small(predicted, max_epochs=1)
    virtual = ptrag_sc.tl.perturb(predicted, model, "G0", cell_types=["K562", "K562"])
    assert set(virtual.obs.columns) == {"gene", "line", "gem", "ptrag_source"}
    assert virtual.obs_names.is_unique


@pytest.mark.parametrize("key", ["K562/run1", "", None, 5, "gene_embedding", "_ptrag_sc"])
def test_keys_under_which_nothing_may_be_written(trained, key):
    adata = make_screen()
    for function in (ptrag_sc.tl.predict, ptrag_sc.tl.retrieval):
        with pytest.raises(ValueError, match=r"key_added=.* Pass another name"):
            function(adata, trained, key_added=key)
    assert set(adata.uns) == {"gene_embedding"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"perturbations": None}, r"perturbations in the request is None. Pass a name or a list"),
        ({"perturbations": 5.5}, r"perturbations in the request is 5.5"),
        ({"perturbations": "G0", "cell_types": True}, r"cell_types in the request is True"),
        ({"perturbations": "G0", "n_cells": 2.5}, r"n_cells=2.5 in the request is no whole number"),
        ({"perturbations": "G0", "n_cells": True}, r"n_cells=True in the request is no whole number"),
        ({"perturbations": "G0", "seed": "a"}, r"seed='a' in the request is no whole number"),
    ],
)
def test_arguments_of_the_wrong_type(trained, options, message):
    with pytest.raises(TypeError, match=message):
        trained.predict(make_screen(), **options)


def test_effects_of_sparse_virtual_cells(trained):
    adata = make_screen()
    virtual = ptrag_sc.tl.perturb(adata, trained, "G0")
    ptrag_sc.tl.effect(adata, predicted=virtual)
    expected = virtual.uns["ptrag"]["effect"]["predicted"]
    virtual.X = sp.csr_matrix(virtual.X)
    ptrag_sc.tl.effect(adata, predicted=virtual)
    np.testing.assert_allclose(virtual.uns["ptrag"]["effect"]["predicted"], expected, atol=1e-6)
