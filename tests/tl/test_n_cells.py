"""Does each perturbation get the number of cells that was asked for it, and the cells of a call for it alone?"""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import ptrag_sc

LABELS = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "control": "non-targeting"}


@pytest.fixture(scope="module")
def made():
    adata = ptrag_sc.datasets.simulated(n_cells=500, n_genes=40, n_perturbations=8, n_cell_types=2, seed=0)
    ptrag_sc.PTRAG.setup_anndata(adata, batch_key="batch", **LABELS)
    model = ptrag_sc.baselines.NearestPerturbations(adata, n_neighbors=3).fit()
    return adata, model, [str(gene) for gene in adata.uns["gene_embedding"]["genes"]]


def alone(adata, model, name, n, **options):
    return ptrag_sc.tl.perturb(adata, model, name, n_cells=n, **options)


def same(found, expected):
    assert found.obs["ptrag_source"].tolist() == expected.obs["ptrag_source"].tolist()
    np.testing.assert_array_equal(found.to_df().to_numpy(), expected.to_df().to_numpy())


def test_each_gets_its_own_number(made, tmp_path):
    adata, model, (a, b, c, *_) = made
    wanted = {a: 12, f"{c}+{b}": 5, c: 12}
    names = [a, f"{b}+{c}", c]
    virtual = ptrag_sc.tl.perturb(adata, model, names, n_cells=wanted)
    for name, n in zip(names, (12, 5, 12), strict=True):
        same(virtual[virtual.obs["perturbation"] == name], alone(adata, model, name, n))
    for other in (pd.Series(wanted), pd.DataFrame({"perturbation": list(wanted), "n_cells": list(wanted.values())})):
        same(ptrag_sc.tl.perturb(adata, model, names, n_cells=other), virtual)
    path = ptrag_sc.tl.perturb(adata, model, names, n_cells=wanted, out=tmp_path / "v.h5ad", progress=False)
    back = ad.read_h5ad(path)
    same(back, virtual)
    assert back.uns["ptrag"]["params"]["n_cells"]["n_cells"].tolist() == [12, 5, 12]
    same(model.predict(adata, perturbations=names, n_cells=wanted), virtual)


def test_a_table_with_cell_types_names_the_pairs(made):
    adata, model, (a, b, *_) = made
    table = pd.DataFrame([(a, "type_0", 4), (b, "type_0", 6), (b, "type_1", 9)])
    table.columns = ["perturbation", "cell_type", "n_cells"]
    virtual = ptrag_sc.tl.perturb(adata, model, [a, b], n_cells=table)
    counted = virtual.obs.groupby(["perturbation", "cell_type"], observed=True).size()
    assert counted.to_dict() == {(a, "type_0"): 4, (b, "type_0"): 6, (b, "type_1"): 9}
    one = virtual[(virtual.obs["perturbation"] == b) & (virtual.obs["cell_type"] == "type_1")]
    same(one, alone(adata, model, b, 9, cell_types="type_1"))
    effects = ptrag_sc.tl.effect_table(virtual)  # of these pairs, and of no other
    pairs = effects[["perturbation", "cell_type"]].drop_duplicates()
    assert set(map(tuple, pairs.to_numpy())) == set(counted.index)
    expected = ptrag_sc.tl.effect_table(alone(adata, model, b, 9, cell_types="type_1"))
    found = effects[(effects["perturbation"] == b) & (effects["cell_type"] == "type_1")].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, expected)


@pytest.mark.parametrize(
    ("n_cells", "error", "message"),
    [
        ({"A": 3}, ValueError, r"n_cells in the request has no number for .* Add them"),
        ({"A": 3, "B": 3, "ZZZ": 4}, ValueError, r"Perturbation 'ZZZ' is not in .*perturbations="),
        ({"A": 3, "B": 2.5}, TypeError, r"n_cells=2.5 in the request for 'B' is no whole number"),
        ({"A": 3, "B": 0}, ValueError, r"n_cells=0 in the request for 'B' is below 1"),
        ({"A": 3, "B": 10_000}, ValueError, r"n_cells=10000 .* cannot be drawn from the \d+ control cells"),
        ({"A+B": 3, "B+A": 4}, ValueError, r"Perturbation 'B\+A' .*twice"),
        (pd.DataFrame({"gene": ["A"], "n_cells": [3]}), KeyError, r"Column 'perturbation' does not occur"),
        ("many", TypeError, r"n_cells='many' in the request is no whole number"),
    ],
)
def test_what_cannot_be_meant_is_refused(made, n_cells, error, message):
    adata, model, (a, b, *_) = made
    names = [a, b]
    if isinstance(n_cells, dict):
        real = {"A": a, "B": b, "A+B": f"{a}+{b}", "B+A": f"{b}+{a}"}
        if "A+B" in n_cells:
            names = [f"{a}+{b}"]
        n_cells = {real.get(name, name): n for name, n in n_cells.items()}
        for name in ("A", "B"):
            message = message.replace(f"'{name}'", f"'{real[name]}'")
        message = message.replace(r"'B\+A'", rf"'{b}\+{a}'")
    with pytest.raises(error, match=message):
        ptrag_sc.tl.perturb(adata, model, names, n_cells=n_cells)


def test_a_cell_type_that_was_not_asked_for_is_refused(made):
    adata, model, (a, *_) = made
    table = pd.DataFrame({"perturbation": [a], "cell_type": ["type_1"], "n_cells": [3]})
    with pytest.raises(ValueError, match=r"Cell type 'type_1' does not occur in the request"):
        ptrag_sc.tl.perturb(adata, model, a, cell_types="type_0", n_cells=table)


def test_equal_shifts_are_told(made, caplog):
    """Neighbours are all training perturbations, with almost equal weights for genes that resemble none of them."""
    adata, model, genes = made
    every = ptrag_sc.baselines.NearestPerturbations(adata, n_neighbors=len(genes)).fit()
    vectors = adata.uns["gene_embedding"]["vectors"]
    away = -vectors.sum(0)
    new = {f"NEW{i}": away + 1e-5 * i for i in range(3)}
    ptrag_sc.tl.predict_effects(adata, every, list(new), gene_embedding=new)
    assert "shifts of all 3 perturbations are equal" in caplog.text
    caplog.clear()
    ptrag_sc.tl.perturb(adata, model, genes[:3], n_cells=4)
    assert "are equal" not in caplog.text
