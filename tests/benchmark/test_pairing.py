"""Are conditions paired by name, and genes and columns found or refused?"""

from dataclasses import replace

import anndata
import numpy as np
import pytest
import scipy.sparse as sp

import ptrag_sc
from ptrag_sc.benchmark._pairing import check_scales, pair_conditions, read_cells
from ptrag_sc.metrics import Reference
from screens import KEYS, make_screen


@pytest.fixture
def reference(screen):
    return Reference.from_adata(screen)


def dense(cells):
    return cells.reader.rows(np.arange(cells.reader.n_obs))


def test_genes_stand_in_the_order_of_the_reference(screen, reference):
    order = np.random.default_rng(0).permutation(screen.n_vars)
    more = anndata.AnnData(np.full((screen.n_obs, 2), 9.0), obs=screen.obs[[]])
    more.var_names = ["extra1", "extra2"]
    wider = anndata.concat([more, screen[:, order]], axis=1)
    wider.obs = screen.obs
    assert dense(read_cells(wider, reference, place="predicted")).shape == (480, 30)
    np.testing.assert_array_equal(dense(read_cells(wider, reference, place="predicted")), screen.X.toarray())


def test_labels_are_canonical_and_batches_optional(screen, reference):
    labels = screen.obs["gene"].astype(str).replace({"G0+G1": "G1 + G0"})
    screen.obs["gene"] = labels
    cells = read_cells(screen, reference, place="real")
    assert set(cells.labels["perturbation"]) == {"ctl", *(f"G{i}" for i in range(8)), "G0+G1", "G2+G3"}
    assert list(cells.batches(np.array([4, 2]))) == list(screen.obs["gem"].iloc[[4, 2]])
    del screen.obs["gem"]
    assert read_cells(screen, reference, place="real").batches(np.array([4, 2])) is None


def test_the_registered_layer_is_read():
    adata = make_screen()
    adata.layers["scaled"] = adata.X.toarray() * 2 - 1
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, layer="scaled")
    reference = Reference.from_adata(adata)
    expected = adata.layers["scaled"].astype(np.float32)
    np.testing.assert_array_equal(dense(read_cells(adata, reference, place="real")), expected)
    predicted = anndata.AnnData(expected[:50] + 1, obs=adata.obs[:50], var=adata.var)
    np.testing.assert_array_equal(dense(read_cells(predicted, reference, place="predicted")), predicted.X)
    with pytest.raises(KeyError, match=r"Layer 'scaled' does not occur in real.layers"):
        read_cells(predicted, reference, place="real")


def nan_in_x(adata):
    adata.X = adata.X.toarray()
    adata.X[3, 4] = np.nan
    return adata


def repeated_gene(adata):
    adata.var_names = ["gene1", *adata.var_names[1:]]
    return adata


def missing_label(adata):
    adata.obs["line"] = adata.obs["line"].where(np.arange(adata.n_obs) != 7)
    return adata


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a: a[:, 3:].copy(), KeyError, r"predicted.var_names lacks 3 of 30 genes \('gene0', 'gene1', 'gene2'\)"),
        (nan_in_x, ValueError, "predicted holds 1 NaN or infinite values"),
        (repeated_gene, ValueError, r"predicted.var_names are not unique \('gene1'\)"),
        (missing_label, ValueError, r"missing \(NaN\) for 1 cells, the first being 'cell7'"),
        (lambda a: anndata.AnnData(a.X, obs=a.obs[["line"]], var=a.var), KeyError, "Column 'gene' does not occur"),
        (lambda a: a[:0].copy(), ValueError, "The object in predicted holds no cells"),
    ],
)
def test_unusable_objects_are_refused(screen, reference, change, error, message):
    with pytest.raises(error) as caught:
        read_cells(change(screen), reference, place="predicted")
    assert caught.match(message.replace("'", r"\\?'"))


def test_pairs_are_the_shared_conditions_without_control(screen, reference):
    keep = screen.obs["gene"].isin(["ctl", "G0", "G3", "G2+G3"]) & ~(
        (screen.obs["gene"] == "G3") & (screen.obs["line"] == "K562")
    )
    sides = [read_cells(a, reference, place="x") for a in (screen, screen[keep.to_numpy()].copy())]
    pairs = pair_conditions(*sides, control="ctl")
    found = [(pair.perturbation, pair.cell_type) for pair in pairs]
    assert found == [("G0", "K562"), ("G0", "RPE1"), ("G2+G3", "K562"), ("G2+G3", "RPE1"), ("G3", "RPE1")]
    for pair in pairs:
        for side, rows in zip(sides, (pair.real, pair.predicted), strict=True):
            labels = side.labels[["perturbation", "cell_type"]]
            expected = (labels == [pair.perturbation, pair.cell_type]).all(axis=1)
            assert list(rows) == list(np.flatnonzero(expected))


def test_nothing_shared_is_an_error(screen, reference):
    sides = [
        read_cells(screen[(screen.obs["gene"].isin(names)).to_numpy()].copy(), reference, place="x")
        for names in (["ctl", "G0"], ["ctl", "G1"])
    ]
    with pytest.raises(ValueError, match=r"share no perturbed condition \(real: 'G0', 'ctl'; predicted: 'G1', 'ctl'\)"):
        pair_conditions(*sides, control="ctl")


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 1, 7], True), ([0, 1, 6.5], False), ([0, -1, 7], False), ([0, 0, 0], False), ([0, 1, 1], False)],
)
@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix])
def test_raw_counts_are_recognised(screen, reference, values, expected, kind):
    x = np.zeros(screen.shape, dtype=np.float32)
    x[:3, 5] = values
    cells = read_cells(anndata.AnnData(kind(x), obs=screen.obs, var=screen.var), reference, place="real")
    assert cells.values.are_counts is expected


def test_scales_must_agree(screen, reference):
    logs = read_cells(screen, reference, place="real")
    counts = logs._replace(values=logs.values._replace(whole=True))
    layered = replace(reference, keys=replace(reference.keys, layer="counts"))
    check_scales(logs, logs, reference)
    check_scales(counts, counts, layered)
    for sides, known, message in (
        ((counts, logs), reference, r"Expression in real holds raw counts .* sc.pp.normalize_total\(real"),
        ((logs, counts), layered, "Expression in predicted looks like raw counts"),
        ((logs, counts), reference, "Expression in predicted holds raw counts"),
    ):
        with pytest.raises(ValueError, match=message):
            check_scales(*sides, known)
