"""Is the order that of the predicted shifts, and is what is said of its trustworthiness what refits find?"""

import logging

import numpy as np
import pandas as pd
import pytest
import scanpy as sc

import ptrag_sc
from ptrag_sc.baselines import KernelRidge, MeanShift, NearestPerturbations
from ptrag_sc.data import masked_shifts, measured_targets
from ptrag_sc.data._intervals import KNOWN, UNSEEN
from ptrag_sc.tl._accuracy import Accuracy
from ptrag_sc.tl._recovery import _folds, _top, find_recovery

KEYS = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}
LINE = "type_0"
HELD_OUT = 3  # perturbations: the first in all cell types, the others in the one that is asked about


def set_up(adata, held_out):
    """Set up with conditions {(perturbation, cell type)} held out."""
    pairs = zip(adata.obs["perturbation"].astype(str), adata.obs["cell_type"].astype(str), strict=True)
    adata.obs["split"] = ["test" if pair in held_out else "train" for pair in pairs]
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, split_key="split")
    return adata


@pytest.fixture(scope="module")
def adata():
    """18 perturbations, all of them measured genes, in two cell types; do not change it."""
    made = ptrag_sc.datasets.simulated(n_cells=1800, n_genes=50, n_perturbations=18, n_cell_types=2)
    names = sorted(set(made.obs["perturbation"]) - {KEYS["control"]})[:HELD_OUT]
    return set_up(made, {(names[0], "type_1"), *((name, LINE) for name in names)})


@pytest.fixture(scope="module")
def names(adata):
    return sorted(set(adata.obs["perturbation"].astype(str)) - {KEYS["control"]})


@pytest.fixture(scope="module")
def ridge(adata):
    return KernelRidge(adata).fit()


@pytest.fixture(scope="module")
def signature(adata):
    return pd.Series(np.random.default_rng(0).normal(size=adata.n_vars), index=adata.var_names)


def rank(adata, model, signature, **options):
    return ptrag_sc.tl.rank_perturbations(adata, model, signature, **{"cell_type": LINE, **options})


def shifts_of(adata, model, labels):
    """Predicted shifts (Q, G) without what perturbations do to their own targets."""
    screen = model.read(adata)
    state = model.prepare(labels, model.resolve(labels, adata), screen)
    t = screen.index.cell_types.tolist().index(LINE)
    return np.concatenate([part.shift for part in model.expected_shifts(labels, screen, t, state=state)]).astype(float)


def slow_scores(adata, shifts, labels, signature, score="cosine"):
    """Gene by gene: without the candidate's own genes and those that the signature lacks."""
    found = {}
    for label, shift in zip(labels, shifts, strict=True):
        kept = [g for g in adata.var_names if g in signature.index and g not in label.split("+")]
        a, b = pd.Series(shift, index=adata.var_names)[kept], signature[kept]
        found[label] = a @ b / np.sqrt((a @ a) * (b @ b)) if score == "cosine" else -((a - b) ** 2).sum()
    return pd.Series(found).sort_values(ascending=False)


@pytest.mark.parametrize("score", ["cosine", "distance"])
@pytest.mark.parametrize("n_genes", [20, 50])
def test_scores_are_those_of_a_slow_version(adata, ridge, names, signature, score, n_genes):
    labels = (*names, "+".join(names[:2]))
    wanted = signature.iloc[:n_genes] * 0.1
    expected = slow_scores(adata, shifts_of(adata, ridge, labels), labels, wanted, score)
    table = rank(adata, ridge, wanted, candidates=labels, score=score)
    assert table["perturbation"].tolist() == expected.index.tolist()
    assert table["rank"].tolist() == list(range(1, len(labels) + 1))
    np.testing.assert_allclose(table["score"], expected, atol=1e-4)
    against = rank(adata, ridge, wanted, candidates=labels, score=score, reverse=True)
    expected = slow_scores(adata, shifts_of(adata, ridge, labels), labels, -wanted, score)
    np.testing.assert_allclose(against["score"], expected, atol=1e-4)


def test_forms_of_one_signature_are_one(adata, ridge, signature):
    table = rank(adata, ridge, signature)
    pertpy = pd.DataFrame({"variable": signature.index, "log_fc": signature.to_numpy(), "p_value": 0.1})
    scanpy = pd.DataFrame({"names": signature.index, "scores": signature.to_numpy(), "logfoldchanges": 9.0})
    forms = (signature.to_dict(), pertpy, scanpy, scanpy.assign(group="a"), signature.to_frame(), signature.iloc[::-1])
    for form in forms:
        pd.testing.assert_frame_equal(rank(adata, ridge, form), table)
    both = pd.concat([scanpy.assign(group="x"), scanpy.assign(group="y", scores=-scanpy["scores"])])
    for form in (both, {"x": signature, "y": -signature}, pd.DataFrame({"x": signature, "y": -signature})):
        several = rank(adata, ridge, form)
        assert several.columns[0] == "signature"
        for name, reverse in (("x", False), ("y", True)):
            part = several[several["signature"] == name].drop(columns="signature").reset_index(drop=True)
            pd.testing.assert_frame_equal(part, rank(adata, ridge, signature, reverse=reverse))


def test_lists_want_all_other_genes_unchanged(adata, ridge, signature):
    up, down = list(signature.index[:4]), list(signature.index[4:6])
    values = pd.Series(0.0, index=signature.index)
    values[up], values[down] = 1.0, -1.0
    expected = rank(adata, ridge, values)
    for lists in ({"up": up, "down": down}, {"down": pd.Index(down), "up": [*up, up[0]]}):
        pd.testing.assert_frame_equal(rank(adata, ridge, lists), expected)


def test_a_pair_of_groups_is_the_difference_of_their_means(adata, ridge):
    masks = [(adata.obs["cell_type"] == line).to_numpy() for line in ("type_1", LINE)]
    means = [np.asarray(adata.X[mask].mean(0)).ravel() for mask in masks]
    expected = rank(adata, ridge, pd.Series(means[0] - means[1], index=adata.var_names))
    for pair in (tuple(masks), [adata[masks[0]], adata[masks[1]].copy()[:, adata.var_names[::-1]]]):
        found = rank(adata, ridge, pair)
        assert found["perturbation"].tolist() == expected["perturbation"].tolist()
        np.testing.assert_allclose(found["score"], expected["score"], atol=1e-5)
    with pytest.raises(ValueError, match=r"is no boolean mask of the 1800 cells"):
        rank(adata, ridge, (masks[0][:5], masks[1]))
    with pytest.raises(ValueError, match="A group of cells in signature is empty"):
        rank(adata, ridge, (masks[0], np.zeros(adata.n_obs, dtype=bool)))


def test_evidence_and_what_is_nearest(adata, ridge, names, signature):
    table = rank(adata, ridge, signature).set_index("perturbation")
    assert set(table.index) == set(adata.uns["gene_embedding"]["genes"])
    expected = dict.fromkeys(names, "measured") | {names[0]: "embedding"}
    expected |= dict.fromkeys(names[1:HELD_OUT], "other cell type")
    assert table["evidence"].astype(str).to_dict() == expected
    embedding = adata.uns["gene_embedding"]
    vectors = dict(zip(embedding["genes"], embedding["vectors"], strict=True))
    for name in names:
        cosine = {other: vectors[name] @ vectors[other] for other in names[HELD_OUT:] if other != name}
        nearest = max(cosine, key=cosine.get)
        assert table.loc[name, "nearest"] == nearest
        assert table.loc[name, "similarity"] == pytest.approx(cosine[nearest], abs=1e-5)
    known = table["evidence"] == "measured"
    assert table.loc[known, ["expected_accuracy", "lower", "upper"]].isna().all(axis=None)
    rest = table.loc[~known & ~table["far"]]
    assert (rest["lower"] <= rest["expected_accuracy"]).all()
    assert (rest["expected_accuracy"] <= rest["upper"]).all()
    assert rest[["lower", "upper"]].abs().le(1).all(axis=None)


def test_genes_of_another_table_and_what_is_far(adata, ridge, names, signature):
    vectors = np.asarray(adata.uns["gene_embedding"]["vectors"])
    measured = vectors[[list(adata.uns["gene_embedding"]["genes"]).index(name) for name in names[HELD_OUT:]]]
    opposite = -measured.mean(0)  # no measured perturbation is near
    extra = pd.DataFrame([opposite, vectors[0]], index=["FAR", "NEAR"])
    table = rank(adata, ridge, signature, gene_embedding=extra).set_index("perturbation")
    assert len(table) == len(names) + 2
    assert table.loc["FAR", "far"]
    assert np.isnan(table.loc["FAR", "expected_accuracy"])
    assert not table.drop(index="FAR")["far"].any()
    with pytest.raises(KeyError, match="Gene 'FAR' is not in the model's gene embedding"):
        rank(adata, ridge, signature, candidates=["FAR"])


def held_out_of(adata, refits, left_out):
    """The same screen with further conditions held out."""
    test = set(zip(adata.obs["perturbation"][adata.obs["split"] == "test"].astype(str),
                   adata.obs["cell_type"][adata.obs["split"] == "test"].astype(str), strict=True))  # fmt: skip
    rows = refits.conditions.iloc[left_out]
    copy = adata.copy()
    copy.uns.pop("_scvi_uuid", None)  # otherwise scvi-tools takes it for the original
    return set_up(copy, test | set(zip(rows["perturbation"], rows["cell_type"], strict=True)))


def untrained(adata):
    model = ptrag_sc.PTRAG(adata, n_candidates=4, n_hidden=16, n_layers=1, n_heads=2)
    model.is_trained_ = True  # as it is meant to be used: no warning
    return model


@pytest.mark.parametrize("make", [lambda a: KernelRidge(a).fit(), lambda a: NearestPerturbations(a).fit(), untrained])
@pytest.mark.parametrize("kind", [UNSEEN, KNOWN])
def test_refits_are_fits_without_the_cells_that_are_left_out(adata, make, kind):
    model = make(adata)
    refits = model.refits()
    here = (refits.conditions["cell_type"] == LINE).to_numpy()
    left_out, scored = next(iter(_folds(refits, here, "+", kind)))
    assert set(scored) <= set(left_out)
    labels = tuple(refits.conditions["perturbation"].iloc[scored])
    if kind == UNSEEN:  # nowhere else either
        assert not set(labels) & set(refits.conditions["perturbation"].drop(index=left_out))
    other = refits.fit(np.setdiff1d(np.arange(len(here)), left_out))
    vectors = model.resolve(labels, adata)
    found = np.concatenate(list(other.shift_blocks(labels, vectors, refits.screen, 0)))
    again = make(held_out_of(adata, refits, left_out))
    expected = shifts_of(adata, again, labels)
    # The variance between cells, by which the memory shrinks, is that of all conditions in a refit.
    np.testing.assert_allclose(found, expected, atol=2e-2 if make is untrained else 1e-5)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.999


def test_recovery_is_that_of_a_slow_version(adata, names, signature):
    model = NearestPerturbations(adata, n_neighbors=4).fit()
    found = rank(adata, model, signature).attrs["recovery"]
    assert [row["evidence"] for row in found] == ["other cell type", "embedding"]
    refits = model.refits()
    here = (refits.conditions["cell_type"] == LINE).to_numpy()
    types = refits.conditions["cell_type"].to_numpy()
    own = measured_targets(refits.conditions["perturbation"].to_numpy(), model.genes_, "+")
    truth = masked_shifts(refits.shifts, own, types)
    better, correlations = [], []
    for left_out, scored in _folds(refits, here, "+", UNSEEN):
        kept = np.setdiff1d(np.arange(len(here)), left_out)
        labels = tuple(refits.conditions["perturbation"].iloc[scored])
        shifts = shifts_of(adata, refits.fit(kept), labels)
        mean = truth[kept[here[kept]]].mean(0)
        for i, row in enumerate(scored):
            wanted = pd.Series(truth[row], index=adata.var_names)
            scores = slow_scores(adata, shifts, labels, wanted)
            better += [[scores[labels[i]] > scores[label] for label in labels if label != labels[i]]]
            kept_genes = ~own[row]
            correlations += [np.corrcoef((shifts[i] - mean)[kept_genes], (truth[row] - mean)[kept_genes])[0, 1]]
    assert found[1]["n"] == len(names) - HELD_OUT == len(better)
    assert found[1]["auroc"] == pytest.approx(np.mean([np.mean(row) for row in better]))
    assert found[1]["correlation"] == pytest.approx(np.mean(correlations), abs=1e-4)
    assert np.isnan(found[1]["top_1"])  # three candidates have no first percent


def test_shares_at_the_top_of_chance_are_the_percents():
    size = np.full(30, 30.0)
    found = _top(np.arange(30.0), size)  # every rank once
    assert np.isnan(found["top_1"])
    assert (found["top_5"], found["top_10"]) == (pytest.approx(0.05), pytest.approx(0.1))
    assert _top(np.zeros(30), size)["top_5"] == 1


def test_recovery_is_kept_and_forgotten(adata, signature):
    model = NearestPerturbations(adata, n_neighbors=4).fit()
    first = find_recovery(model, LINE, [UNSEEN])
    assert find_recovery(model, LINE, [UNSEEN, KNOWN])[UNSEEN] is first[UNSEEN]
    assert model.fit().recoveries_ is None


def test_expected_accuracy_is_least_squares_with_left_out_residuals():
    rng = np.random.default_rng(0)
    similarity, strength = rng.uniform(0.2, 0.9, 60), rng.gamma(2.0, size=60)
    r = 0.5 * similarity + 0.1 * np.log(strength) + rng.normal(size=60) * 0.05
    fitted = Accuracy.fit(similarity, strength, r)
    x = np.column_stack([np.ones(60), similarity, np.log(strength)])
    np.testing.assert_allclose(fitted.coefficients, np.linalg.lstsq(x, r)[0])
    errors = []
    for i in range(60):
        others = np.arange(60) != i
        errors.append(abs(r[i] - x[i] @ np.linalg.lstsq(x[others], r[others])[0]))
    assert fitted.half_width == pytest.approx(np.sort(errors)[int(np.ceil(61 * 0.9)) - 1])
    value, low, high = fitted.expected(np.array([0.5, 0.1, 0.99]), np.array([1.0, 1.0, 1.0]))
    assert value[0] == pytest.approx(fitted.coefficients @ [1, 0.5, 0])
    assert np.isnan([value[1], low[1], high[1]]).all()  # farther than any
    assert value[2] == pytest.approx(fitted.coefficients @ [1, similarity.max(), 0])  # no extrapolation
    assert Accuracy.fit(similarity, np.zeros(60), r) is None  # predictions that are the mean shift


def test_few_measured_perturbations_are_said_or_refused(adata, ridge, signature, caplog):
    with caplog.at_level(logging.WARNING):
        rank(adata, ridge, signature)
    assert "only 15 perturbations were measured in 'type_0', so expect little: of 15" in caplog.text
    few = set_up(adata.copy(), {(name, line) for name in ridge.trained_on_["perturbation"].unique()[:10]
                                for line in ("type_0", "type_1")})  # fmt: skip
    with pytest.raises(ValueError, match=r"8 perturbations in 'type_0' are too few to rank others by. Measure 10"):
        rank(few, KernelRidge(few).fit(), signature)


def test_predictions_that_do_not_differ_are_no_ranking(adata, signature, caplog):
    with caplog.at_level(logging.WARNING):
        table = rank(adata, MeanShift(adata).fit(), {"a": signature, "b": -signature})
    assert "'a': this is no ranking" in caplog.text
    assert "'b': this is no ranking" in caplog.text
    assert table["expected_accuracy"].isna().all()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        rank(adata, KernelRidge(adata).fit(), signature)
    assert "no ranking" not in caplog.text


def test_an_unknown_cell_type_is_ranked_with_a_warning(adata, ridge, signature, caplog):
    new = adata[adata.obs["perturbation"] == KEYS["control"]].copy()
    new.obs["cell_type"] = "other"
    with caplog.at_level(logging.WARNING):
        table = rank(new, ridge, signature, cell_type="other")
    assert "no perturbation was measured in 'other'" in caplog.text
    assert table.attrs["recovery"] == []
    assert "too little was measured" in table.attrs["recovery_from"]
    assert table[["expected_accuracy", "strength"]].isna().all(axis=None)


def test_what_cannot_be_used_is_said(adata, ridge, signature, caplog):
    with caplog.at_level(logging.WARNING):
        found = rank(adata, ridge, pd.concat([signature.iloc[:6], pd.Series({"AAA": 1.0, "BBB": 2.0})]))
    assert "2 of 8 genes were not measured and do not count ('AAA', 'BBB'); 75% are kept" in caplog.text
    pd.testing.assert_frame_equal(found, rank(adata, ridge, signature.iloc[:6]))
    for empty in (signature.iloc[:0], signature * 0, pd.Series({"AAA": 1.0}), {"up": [], "down": []}):
        with pytest.raises(ValueError, match="has no change of any gene that was measured"):
            rank(adata, ridge, empty)
    with pytest.raises(ValueError, match="signature in the request is empty"):
        rank(adata, ridge, {})
    with pytest.raises(ValueError, match="names genes more than once"):
        rank(adata, ridge, pd.concat([signature, signature.iloc[:1]]))
    with pytest.raises(TypeError, match="is no signature"):
        rank(adata, ridge, "JAK2")
    with pytest.raises(ValueError, match="score= 'best' does not occur"):
        rank(adata, ridge, signature, score="best")
    with pytest.raises(KeyError, match="Cell type 'none' does not occur"):
        rank(adata, ridge, signature, cell_type="none")
    with pytest.raises(ValueError, match="whose distance from a shift means nothing"):
        rank(adata, ridge, {"up": [signature.index[0]]}, score="distance")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        rank(adata, ridge, signature * 100, score="distance")
    assert "on another scale" in caplog.text
    missing = signature.copy()
    missing.iloc[0] = np.nan
    pd.testing.assert_frame_equal(rank(adata, ridge, missing), rank(adata, ridge, missing.iloc[1:]))


@pytest.mark.shapes
def test_blocks_of_shifts_are_those_with_evidence(trained, monkeypatch):
    """The trained model of the text form, and an untrained memory: neighbours are searched in several tables."""
    from ptrag_sc.model import _expected

    monkeypatch.setattr(_expected, "LABELS_OF_TABLE", 3)
    monkeypatch.setattr(_expected, "LABELS_AT_ONCE", 2)
    monkeypatch.setattr(_expected, "N_CELLS", _expected.N_CELLS_OF_MANY)
    from screens import set_up_screen

    memory = ptrag_sc.PTRAG(set_up_screen(), n_candidates=4, n_hidden=16, n_layers=1, n_heads=2)
    for model in (trained, memory):
        labels = tuple(model.candidates_[:7])
        screen = model.read(model.adata)
        vectors = model.resolve(labels, model.adata)
        for t in range(2):
            state = model.prepare(labels, vectors, screen)
            expected = [part.shift for part in model.expected_shifts(labels, screen, t, state=state)]
            found = np.concatenate(list(model.shift_blocks(labels, vectors, screen, t)))
            np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-6)


def test_scanpy_tables_are_read(adata, ridge):
    copy = adata[adata.obs["cell_type"] == LINE].copy()
    sc.tl.rank_genes_groups(copy, "perturbation", reference=KEYS["control"], method="t-test")
    groups = sorted(set(copy.obs["perturbation"].astype(str)) - {KEYS["control"]})[:2]
    tables = {name: sc.get.rank_genes_groups_df(copy, name) for name in groups}
    both = sc.get.rank_genes_groups_df(copy, groups)
    pd.testing.assert_frame_equal(rank(adata, ridge, both), rank(adata, ridge, tables))
