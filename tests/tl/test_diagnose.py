"""Does the report see what it is there to see, and stay silent where nothing is wrong?"""

import logging

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.stats.contingency import association, crosstab

import ptrag_sc
from ptrag_sc.data import ConditionIndex
from ptrag_sc.data._diagnose import cramers_v, design_findings
from ptrag_sc.tl._diagnose import permutation_test, responder_share
from screens import make_null_screen

KEYS = {"perturbation_key": "gene", "control": "ctl", "cell_type_key": "line"}


def make(seed=0, *, n=1200, n_genes=40, drift=0.0, confounded=False, knockdown=1.0, responding=1.0, control_share=0.4):
    """Return a screen of four genes in two batches, whose flaws are chosen."""
    rng = np.random.default_rng(seed)
    names = ["ctl", "gene0", "gene1", "gene2", "gene3"]
    share = (1 - control_share) / 4
    label = rng.choice(names, n, p=[control_share, *[share] * 4])
    batch = rng.integers(0, 2, n)
    if confounded:
        batch = np.where(label == "ctl", batch, np.isin(label, names[1:3]).astype(int))
    x = 2 + rng.normal(size=(n, n_genes)) * 0.3 + drift * batch[:, None] * rng.normal(size=n_genes)
    effect = rng.normal(size=(5, n_genes)) * 0.6
    effect[0] = 0
    for i in range(4):
        effect[i + 1, i] = -knockdown
    responds = rng.random(n) < responding
    x += effect[[names.index(name) for name in label]] * responds[:, None]
    obs = pd.DataFrame(
        {
            "gene": label,
            "line": "K562",
            "gem": batch.astype(str),
            "guide": np.where(label == "ctl", "g" + pd.Series(rng.integers(0, 3, n)).astype(str), label),
        },
        index=[f"c{i}" for i in range(n)],
    )
    adata = AnnData(np.abs(x).astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)]))
    ptrag_sc.pp.gene_embedding(
        adata, pd.DataFrame(rng.normal(size=(4, 5)), index=names[1:]), perturbation_key="gene", control="ctl"
    )
    return adata


def report(adata, **options):
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem")
    ptrag_sc.tl.diagnose(adata, **options)
    found = adata.uns["diagnose"]
    return found["findings"].set_index("check"), found["conditions"], found["groups"]


def test_a_good_screen_gives_no_finding():
    findings, conditions, _ = report(make(), guide_key="guide")
    assert set(findings["level"]) == {"ok"}, findings
    assert (conditions["target_z"] < -2).all()
    assert (conditions["responders"] > 0.8).all()


@pytest.mark.parametrize(
    ("flaw", "check", "level"),
    [
        ({"drift": 1.0}, "control drift", "note"),
        ({"drift": 1.0}, "batch shifts", "note"),
        ({"confounded": True}, "batch and perturbation", "warning"),
        ({"knockdown": 0.0}, "target gene", "warning"),
        ({"responding": 0.2}, "responders", "warning"),
        ({"control_share": 0.01}, "control cells", "warning"),
        ({"n": 110}, "cells per condition", "note"),
    ],
)
def test_each_flaw_is_found_where_it_is(flaw, check, level):
    findings, *_ = report(make(**flaw))
    order = ["ok", "note", "warning"]
    assert order.index(findings.at[check, "level"]) >= order.index(level), findings


def test_noise_of_few_controls_is_reported_as_the_score_that_it_gives():
    """Mean shift and truth of perturbations without effect, both against the same 60 controls."""
    adata = make_null_screen()
    ptrag_sc.tl.diagnose(adata)
    row = adata.uns["diagnose"]["findings"].set_index("check").loc["control noise"]
    assert row["level"] == "warning" and "controls='split'" in row["message"]
    x, label = adata.X.toarray(), adata.obs["gene"].to_numpy()
    control = x[label == "ctl"].mean(0)
    names = [f"G{i}" for i in range(30)]
    shifts = np.stack([x[label == name].mean(0) - control for name in names])
    mean_of_others = [shifts[np.arange(30) != i].mean(0) for i in range(30)]
    scores = [np.corrcoef(*pair)[0, 1] for pair in zip(shifts, mean_of_others, strict=True)]
    assert row["value"] == pytest.approx(np.median(scores), abs=0.06)
    alone = adata.uns["diagnose"]["conditions"]["control_noise_alone"]
    np.testing.assert_allclose(alone, np.sqrt((1 / 60) / (1 / 60 + 1 / 40)))
    many = make_null_screen(n_controls=3000)
    ptrag_sc.tl.diagnose(many)
    assert many.uns["diagnose"]["findings"].set_index("check").at["control noise", "level"] == "ok"


def test_an_outlying_control_guide_is_named():
    adata = make(n=2000)
    rows = ((adata.obs["gene"] == "ctl") & (adata.obs["guide"] == "g1")).to_numpy()
    adata.X[rows, :10] += 0.4
    findings, _, groups = report(adata, guide_key="guide")
    guides = groups[groups["kind"] == "guide"].set_index("group")
    assert guides["energy_distance"].idxmax() == "g1"
    assert guides.at["g1", "p_adjusted"] < 0.05
    assert findings.at["control guides", "level"] == "warning"


def test_association_is_corrected_for_chance():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 40, 800), rng.integers(0, 10, 800)
    assert association(crosstab(first, second).count, method="cramer") > 0.18
    values = [cramers_v(rng.permutation(first), second) for _ in range(20)]
    assert np.mean(values) < 0.06
    assert cramers_v(first, first) == pytest.approx(1.0)
    assert cramers_v(first, first // 20) == pytest.approx(1.0, abs=0.05)
    assert cramers_v(np.zeros(9), first[:9]) == 0.0


def test_permutation_p_values_are_uniform_where_nothing_differs():
    rng = np.random.default_rng(0)
    p = []
    for _ in range(60):
        x = rng.normal(size=(60, 3))
        p.append(permutation_test(np.linalg.norm(x[:, None] - x, axis=-1), 20, rng)[1])
    assert 0.35 < np.mean(p) < 0.65
    x = np.concatenate([rng.normal(size=(30, 3)), rng.normal(size=(30, 3)) + 2])
    distance = np.linalg.norm(x[:, None] - x, axis=-1)
    value, low = permutation_test(distance, 30, rng)
    assert low == pytest.approx(1 / 501)
    cross, inner, outer = distance[:30, 30:].mean(), distance[:30, :30].sum() / 870, distance[30:, 30:].sum() / 870
    assert value == pytest.approx(2 * cross - inner - outer)


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_the_share_of_responders_is_found(share):
    rng = np.random.default_rng(0)
    found = []
    for _ in range(10):
        controls, cells = rng.normal(size=(300, 30)), rng.normal(size=(300, 30))
        cells[rng.random(300) < share] += 1.0
        found.append(responder_share(cells, controls))
    assert np.mean(found) == pytest.approx(share, abs=0.06)
    assert np.isnan([responder_share(*rng.normal(size=(2, 300, 30))) for _ in range(10)]).mean() >= 0.7


def test_batches_without_controls_are_counted():
    index = ConditionIndex.from_labels(["ctl"] * 40 + ["A"] * 60, ["t"] * 100, ["a"] * 70 + ["b"] * 30, control="ctl")
    found = {f.check: f for f in design_findings(index, set_size=10)}
    assert found["batches without controls"].value == pytest.approx(0.5)
    assert found["batches without controls"].level == "warning"
    assert found["control cells"].level == "ok"


def test_few_controls_are_named_at_set_up_too():
    index = ConditionIndex.from_labels(["ctl"] * 9 + ["A"] * 60, ["t"] * 69, None, control="ctl")
    for set_size in (1, 64):
        found = next(f for f in design_findings(index, set_size=set_size) if f.check == "control cells")
        assert found.level == "warning"
        assert "'t' have fewer than" in found.message


def test_set_up_warns_in_one_line_of_what_is_badly_off(caplog):
    for flaw, n_lines in (({}, 0), ({"confounded": True}, 1)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="ptrag_sc"):
            ptrag_sc.PTRAG.setup_anndata(make(**flaw), **KEYS, batch_key="gem")
        lines = [record.getMessage() for record in caplog.records if "diagnose" in record.getMessage()]
        assert len(lines) == n_lines
        assert all("Cramér's V" in line and "\n" not in line for line in lines)


def test_the_plot_shows_every_check_and_bad_requests_are_refused():
    mpl.use("agg")
    adata = make(knockdown=0.0)
    with pytest.raises(KeyError, match=r"tl\.diagnose"):
        adata.uns["diagnose"] = {}
        ptrag_sc.pl.diagnose(adata)
    del adata.uns["diagnose"]
    findings, *_ = report(adata)
    ax = ptrag_sc.pl.diagnose(adata)
    shown = [text.get_text() for text in ax.texts]
    assert set(shown) == set(findings["message"])
    assert ax.get_yticklabels()[-1].get_text() == "target gene"  # the worst on top
    with pytest.raises(KeyError, match="sgRNA"):
        ptrag_sc.tl.diagnose(adata, guide_key="sgRNA")
    with pytest.raises(ValueError, match="set_size"):
        ptrag_sc.tl.diagnose(adata, set_size=0)


def test_results_survive_a_file_and_repeat(tmp_path):
    adata = make()
    _, conditions, groups = report(adata)
    adata.write(tmp_path / "screen.h5ad")
    ptrag_sc.tl.diagnose(adata)
    pd.testing.assert_frame_equal(adata.uns["diagnose"]["conditions"], conditions)
    pd.testing.assert_frame_equal(adata.uns["diagnose"]["groups"], groups)
