"""Do metrics equal those of other evaluation tools, where these compute the same?"""

import cell_eval2
import numpy as np
import pytest
from anndata import AnnData
from cell_eval2.config import DEParams
from gge.metrics.correlation import compute_perturbation_effect_correlation
from gge.metrics.distances import Wasserstein1Distance

from ptrag_sc.metrics import (
    de_direction,
    de_jaccard,
    de_overlap,
    differential_expression,
    lfc_nmae,
    mae,
    mse,
    pds_cosine,
    pearson_delta,
    wasserstein_1,
)

NAMES = ["A", "B", "C", "D"]
N_CELLS, N_GENES = 40, 60


@pytest.fixture
def cells():
    """log1p of normalised counts: {name: cells} of both sides; the first four genes carry the names."""
    rng = np.random.default_rng(0)
    base, effect = rng.gamma(2, size=N_GENES), {name: rng.normal(size=N_GENES) for name in NAMES}
    weights = {"real": 0.6, "predicted": 0.4}
    return {
        side: {
            name: np.log1p(rng.poisson(base * np.exp(w * effect.get(name, 0 * base)), size=(N_CELLS, N_GENES)) * 1.0)
            for name in ["ctl", *NAMES]
        }
        for side, w in weights.items()
    }


def genes():
    return np.array([*NAMES, *(f"g{i}" for i in range(N_GENES - len(NAMES)))])


def both_tests(cells, name, *, own_gene):
    """Both tests against the real controls, with or without the perturbed gene."""
    kept = (genes() != name) | own_gene
    found = [differential_expression(cells[side][name], cells["real"]["ctl"]) for side in ("real", "predicted")]
    return [
        test._replace(p_adjusted=test.p_adjusted[kept], log2_fold_change=test.log2_fold_change[kept]) for test in found
    ]


def as_adata(populations):
    labels = np.repeat(list(populations), [len(x) for x in populations.values()])
    adata = AnnData(np.concatenate(list(populations.values())).astype(np.float32))
    adata.var_names, adata.obs["target"] = genes(), labels
    return adata


@pytest.fixture
def cell_eval(cells):
    """Values of cell-eval2 by (metric, perturbation), both sides against the real controls."""
    names = ["expr_mae", "expr_mse", "pds_cosine", "delta_pearson"]
    tests = ["de_wilcoxon_sig_jaccard", "de_wilcoxon_lfc_nmae", "de_wilcoxon_direction_match", "de_wilcoxon_overlap"]
    sides = [as_adata(cells["predicted"] | {"ctl": cells["real"]["ctl"]}), as_adata(cells["real"])]
    options = {"control": "ctl", "input_type": "lognorm", "validate_input": False, "target_sum": None}
    found = cell_eval2.compute_metrics(
        *sides,
        config=cell_eval2.EvalConfig(metrics=names + tests, de=DEParams(backend="scanpy"), **options),
    )
    return {(metric, name): value for name, metric, value in found.iter_rows()}


def test_cell_eval_agrees(cells, cell_eval):
    means = [np.stack([cells[side][name].mean(0) for name in NAMES]) for side in ("real", "predicted")]
    control, perturbed = cells["real"]["ctl"].mean(0), np.isin(genes(), NAMES)
    for name, pds in zip(NAMES, pds_cosine(*means, control, perturbed), strict=True):
        x, y = (m[NAMES.index(name)] for m in means)
        tests, whole = (both_tests(cells, name, own_gene=own_gene) for own_gene in (False, True))
        expected = {
            "expr_mse": mse(x, y),
            "expr_mae": mae(x, y),
            "pds_cosine": pds,
            "delta_pearson": pearson_delta(x, y, control),
            "de_wilcoxon_sig_jaccard": de_jaccard(*tests),
            "de_wilcoxon_lfc_nmae": lfc_nmae(*tests),
            "de_wilcoxon_overlap": de_overlap(*whole),
            "de_wilcoxon_direction_match": de_direction(*whole),
        }
        for metric, value in expected.items():
            assert cell_eval[metric, name] == pytest.approx(value, rel=1e-4), metric


def test_gge_agrees(cells):
    control = cells["real"]["ctl"].mean(0)
    for name in NAMES:
        real, predicted = (cells[side][name] for side in ("real", "predicted"))
        found = compute_perturbation_effect_correlation(real, predicted, control)
        expected = pearson_delta(real.mean(0), predicted.mean(0), control)
        assert found == pytest.approx(expected)
        by_gene = Wasserstein1Distance().compute_per_gene(real, predicted)
        own = [wasserstein_1(real[:, [g]], predicted[:, [g]]) for g in range(N_GENES)]
        np.testing.assert_allclose(by_gene, own, atol=1e-9)
