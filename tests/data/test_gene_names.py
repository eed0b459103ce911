"""Are genes found under their names, are lacking ones named, and is one gene under two names noticed?"""

import numpy as np
import pandas as pd
import pytest

import ptrag_sc
from ptrag_sc.data._gene_names import column_with, gene_names, kind, unmeasured_targets, var_of, why_unknown
from screens import KEYS, make_screen

METRICS = ["de_overlap", "pds_cosine"]


def measured(ensembl):
    """The small screen with its perturbed genes among the measured ones, under symbols or Ensembl identifiers."""
    adata = make_screen()
    symbols = [*(f"G{i}" for i in range(8)), *adata.var_names[8:]]
    adata.var_names = [f"ENSG{i:011d}" for i in range(30)] if ensembl else symbols
    adata.var["length"] = range(30)
    adata.var["symbol"] = symbols
    return adata


def evaluated(keys, ensembl, **options):
    adata = measured(ensembl)
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, **keys)
    virtual = (
        ptrag_sc.baselines.NearestPerturbations(adata, n_neighbors=2)
        .fit()
        .predict(perturbations=["G0", "G1", "G0+G1"], counts=False)
    )
    reference = ptrag_sc.metrics.Reference.from_adata(adata)
    scores = ptrag_sc.benchmark.evaluate(adata, virtual, reference=reference, metrics=METRICS, **options)
    return scores["value"].to_numpy(), virtual, adata


def test_identifiers_with_symbols_beside_them_give_the_same_scores(caplog):
    expected, _, _ = evaluated({}, False)
    assert "perturbed gene" not in caplog.text
    found, virtual, adata = evaluated({"gene_symbols": "symbol"}, True)
    np.testing.assert_allclose(found, expected)
    assert virtual.var_names.equals(adata.var_names)
    assert "perturbed gene" not in caplog.text
    values, _, _ = evaluated({}, True)
    remedy = "Pass gene_symbols='symbol'"
    assert "so what a perturbation does to its own gene is not told from its other effects. " + remedy in caplog.text
    assert "no perturbed gene is left out. " + remedy in caplog.text
    assert "'G0', 'G1' are symbols, 'ENSG00000000000', 'ENSG00000000001' are Ensembl identifiers" in caplog.text
    assert not np.allclose(values, expected)
    # The scores of evaluate alone can be mended; the predictions keep the effect on the targets.
    assert not np.allclose(evaluated({}, True, gene_symbols="symbol")[0], values)
    with pytest.raises(KeyError, match=r"Column 'name' does not occur in adata.var"):
        evaluated({"gene_symbols": "name"}, True)


def test_results_name_genes_by_symbol():
    _, virtual, adata = evaluated({"gene_symbols": "symbol"}, True)
    table = ptrag_sc.tl.effect_table(ptrag_sc.tl.perturb(adata, ptrag_sc.baselines.MeanShift(adata).fit(), "G0"))
    assert set(table["gene"]) == set(adata.var["symbol"])
    assert table.loc[table["own"], "gene"].unique().tolist() == ["G0"]
    ptrag_sc.tl.effect(adata, predicted=virtual)
    assert virtual.uns["ptrag"]["effect"]["genes"].tolist() == adata.var["symbol"].tolist()
    ptrag_sc.pl.embedding(adata, predicted=virtual, perturbation="G1+G0", cell_type="K562", show=False)


def test_genes_that_a_query_lacks(caplog):
    adata = measured(False)
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    fitted = ptrag_sc.baselines.MeanShift(adata).fit()
    names = adata.var_names
    query = adata[:, [5, *range(10, 30), 2]].copy()  # another order too
    with pytest.raises(KeyError, match=r"lacks 8 of the model's 30 genes \(.*missing_genes='zero'"):
        fitted.predict(query, perturbations="G0")
    with pytest.raises(KeyError) as caught:
        ptrag_sc.tl.rank_perturbations(query, fitted, pd.Series({"G5": 1.0}), cell_type="K562")
    assert "missing_genes" not in str(caught.value)  # a remedy that this function does not have
    with pytest.raises(ValueError, match="missing_genes= 'mean' does not occur"):
        fitted.predict(query, perturbations="G0", missing_genes="mean")
    found = fitted.predict(query, perturbations="G0", missing_genes="zero", counts=False)
    assert "lacks 8 of the model's 30 genes" in caplog.text
    assert found.var_names.equals(names)
    zeros = adata.copy()
    lacking = ~names.isin(query.var_names)
    zeros.X = zeros.X.toarray()
    zeros.X[:, lacking] = 0
    expected = fitted.predict(zeros, perturbations="G0", counts=False)
    np.testing.assert_allclose(found.X, expected.X, atol=1e-6)
    ptrag_sc.tl.predict(query, fitted, missing_genes="zero")
    ptrag_sc.tl.effect(query)
    assert query.obsm["ptrag"].shape == (480, 30)
    assert len(ptrag_sc.tl.predict_effects(query, fitted, "G0", missing_genes="zero")) == 60
    with pytest.raises(KeyError, match="lacks 30 of the model's 30 genes"):
        query.var_names = [f"x{i}" for i in range(query.n_vars)]
        fitted.predict(query, perturbations="G0", missing_genes="zero")


def test_a_query_with_identifiers_is_told_what_to_do():
    adata = measured(False)
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    fitted = ptrag_sc.baselines.MeanShift(adata).fit()
    with pytest.raises(KeyError) as caught:
        fitted.predict(measured(True), perturbations="G0")
    assert "are symbols, " in str(caught.value)
    assert "adata.var_names = adata.var['symbol'] does so" in str(caught.value).replace("\\'", "'")
    virtual = fitted.predict(perturbations="G0")
    with pytest.raises(KeyError, match=r"real.var_names = real.var"):
        ptrag_sc.benchmark.evaluate(
            measured(True), virtual, reference=ptrag_sc.metrics.Reference.from_adata(adata), metrics=METRICS
        )


def test_names_that_are_unclear_stay_those_of_the_object():
    adata = measured(True)[:, :5].copy()
    adata.var["symbol"] = pd.Categorical(["A", "B", "B", None, " "])
    own = list(adata.var_names)
    assert gene_names(adata, "symbol").tolist() == ["A", *own[1:]]
    assert gene_names(adata, "none").tolist() == own
    var = var_of(adata, "symbol", np.array([own[1], "new", "A"]))
    assert var.index.tolist() == [own[1], "new", own[0]]
    assert var["symbol"].tolist()[1:] == ["new", "A"]


def test_reasons():
    assert kind([]) == "symbols"
    assert kind(["ENSMUSG00000026104", "ENSG00000115415.18", "x"]) == "Ensembl identifiers"
    assert why_unknown(["Stat1"], ["JAK2", "STAT1"]) == "'Stat1' and 'STAT1' differ in upper and lower case only"
    ids = ["ENSG00000115415.18"], ["ENSG00000115415.20"]
    assert "differ in the version of the identifier only" in why_unknown(*ids)
    assert why_unknown(["A"], ["B"]) == why_unknown([], ["B"]) == ""
    assert column_with(pd.DataFrame({"n": [1, 2], "s": ["A", "B"]}), ["A", "B", "C"]) == "s"
    assert column_with(pd.DataFrame({"n": [1, 2]}), ["A"]) is None
    assert unmeasured_targets(["A+B"], np.array(["B", "C"]), "+") == ""
    assert "None of the 2 perturbed genes" in unmeasured_targets(["A+B"], np.array(["C"]), "+")


def test_one_gene_under_two_names_is_warned_of(caplog):
    adata = make_screen()
    table = {f"G{i}": np.eye(8)[i] for i in range(8)} | {"G5": 3 * np.eye(8)[2]}
    ptrag_sc.pp.gene_embedding(adata, table, perturbation_key="gene", control="ctl")
    assert "1 pairs of genes have the same vector" in caplog.text
    assert "'G2 = G5'" in caplog.text
    caplog.clear()
    adata.uns["gene_embedding"] = pd.DataFrame(table).T  # written by the user
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    ptrag_sc.PTRAG(adata, n_candidates=2, n_hidden=8, n_layers=1, n_heads=1)
    assert "'G2 = G5'" in caplog.text


def test_genes_that_were_left_out_are_left_out_everywhere_and_named_as_such(caplog):
    adata = make_screen()
    table = {f"G{i}": np.eye(8)[i] for i in range(1, 8)}
    ptrag_sc.pp.gene_embedding(adata, table, perturbation_key="gene", control="ctl", missing="drop")
    for seed in range(5):
        ptrag_sc.pp.split(adata, **KEYS, holdout="perturbation", test_fraction=0.5, val_fraction=0.2, seed=seed)
        assert set(adata.obs.loc[adata.obs["gene"].isin(["G0", "G0+G1"]), "split"]) == {"train"}
    assert "a gene was left out of the gene embedding by missing='drop': 'G0', 'G0+G1'" in caplog.text
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, split_key="split")
    model = ptrag_sc.baselines.NearestPerturbations(adata, n_neighbors=2).fit()
    ptrag_sc.tl.predict(adata, model)
    ptrag_sc.tl.effect(adata)
    named = r"Gene 'G0' .* was left out of the gene embedding by missing=.?'drop"
    plots = ptrag_sc.pl.embedding, ptrag_sc.pl.effect, ptrag_sc.pl.predicted_effects
    for asked in ("G0", "G1+G0"):
        for plot in plots:
            with pytest.raises(ValueError, match=named):
                plot(adata, perturbation=asked, cell_type="K562", show=False)
        with pytest.raises(ValueError, match=named):
            ptrag_sc.pl.retrieval(adata, perturbation=asked, show=False)
        with pytest.raises(KeyError, match=named):
            ptrag_sc.tl.perturb(adata, model, asked)
    assert model.predict(perturbations="G0", gene_embedding={"G0": np.eye(8)[0]}).n_obs
