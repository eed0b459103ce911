"""Does the picture of predicted effects show the table that stands beside the cells?"""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection

from ptrag_sc.pl import predicted_effects

GENES = np.array([f"GENE{i}" for i in range(30)], dtype=object)


def names_of(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def points(ax, label):
    (found,) = [c for c in ax.collections if c.get_label() == label]
    return np.asarray(found.get_offsets())


def test_genes_are_sorted_by_size_and_targets_marked(adata):
    ax = predicted_effects(adata, perturbation="JAK2", n_genes=6)
    shift = adata.uns["ptrag"]["effects"]["shift"][0]
    expected = GENES[np.argsort(-np.abs(shift))[:6]].tolist()
    assert expected[0] == "GENE3"
    assert names_of(ax) == ["GENE3 (target)", *expected[1:]]
    assert [label.get_fontweight() for label in ax.get_yticklabels()] == ["bold"] + ["normal"] * 5
    np.testing.assert_allclose(points(ax, "predicted")[:, 0], sorted(shift, key=abs)[::-1][:6], rtol=1e-6)


def test_neighbours_have_marks_of_their_own(adata):
    ax = predicted_effects(adata, perturbation="JAK2", n_genes=6)
    effects = adata.uns["ptrag"]["effects"]
    top = np.argsort(-np.abs(effects["shift"][0]))[:6]
    for k, name in enumerate(["STAT1", "IRF1"]):
        np.testing.assert_allclose(points(ax, name)[:, 0], effects["neighbour_shifts"][0, k, top], rtol=1e-6)
    shown = [text.get_text() for text in ax.get_legend().get_texts()]
    assert shown == ["STAT1", "IRF1", "predicted"]


def test_intervals_end_where_the_table_says(adata):
    ax = predicted_effects(adata, perturbation="JAK2", n_genes=6)
    effects = adata.uns["ptrag"]["effects"]
    (lines,) = [c for c in ax.collections if isinstance(c, LineCollection)]
    top = np.argsort(-np.abs(effects["shift"][0]))[:6]
    for segment, gene in list(zip(lines.get_segments(), top, strict=True))[1:]:
        np.testing.assert_allclose(segment[:, 0], [effects["lower"][0, gene], effects["upper"][0, gene]], rtol=1e-5)
    # An open interval reaches both ends of the axis, where arrows say that it goes on.
    np.testing.assert_allclose(lines.get_segments()[0][:, 0], ax.get_xlim())
    arrows = {line.get_marker(): line.get_xdata() for line in ax.lines if line.get_marker() in "<>"}
    assert (len(arrows["<"]), len(arrows[">"])) == (1, 1)


def test_the_unit_is_that_of_the_layer(adata):
    adata.uns["ptrag"]["params"]["layer"] = "scaled"
    assert (
        predicted_effects(adata, perturbation="MYC", cell_type="K562").get_xlabel()
        == "shift of mean expression (layer scaled)"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"perturbation": "JAK3"}, "closest: 'JAK2'"),
        ({"perturbation": "JAK2", "cell_type": "RPE1"}, "found: 'K562'"),
        ({"perturbation": "JAK2", "n_genes": 0}, "n_genes=0"),
    ],
)
def test_bad_input_is_named(adata, options, message):
    with pytest.raises(ValueError, match=message):
        predicted_effects(adata, **options)


def test_without_effects_the_function_that_writes_them_is_named(adata):
    del adata.uns["ptrag"]["effects"]
    with pytest.raises(KeyError, match=r"ptrag_sc\.tl\.predict first"):
        predicted_effects(adata, perturbation="JAK2")


def test_the_table_of_predicted_effects_is_drawn_too(adata):
    effects = adata.uns["ptrag"]["effects"]
    names = ["shift", "lower", "upper", "own"]
    table = pd.DataFrame({"perturbation": "JAK2", "cell_type": "K562", "gene": GENES})
    table = table.assign(**{name: effects[name][0] for name in names})
    which = np.where(np.arange(30) % 3 == 0, 0, 1)
    table["neighbour"] = pd.Categorical.from_codes(which, ["STAT1", "IRF1", "MYC"])
    table["neighbour_shift"] = effects["neighbour_shifts"][0, which, np.arange(30)]
    other = table.assign(perturbation="MYC", shift=9.0)
    table = pd.concat([other, table], ignore_index=True)
    table.attrs["level"] = 0.8
    ax = predicted_effects(table, perturbation="JAK2", n_genes=6)
    expected = predicted_effects(adata, perturbation="JAK2", n_genes=6)
    assert names_of(ax) == names_of(expected)
    np.testing.assert_array_equal(points(ax, "predicted"), points(expected, "predicted"))
    assert "80% interval" in ax.get_title(loc="left")
    top = np.argsort(-np.abs(effects["shift"][0]))[:6]
    for code, name in enumerate(["STAT1", "IRF1"]):
        drawn = points(ax, name)[:, 0]
        np.testing.assert_allclose(
            drawn, np.where(which[top] == code, effects["neighbour_shifts"][0, code, top], np.nan)
        )
    with pytest.raises(ValueError, match="closest: 'JAK2'"):
        predicted_effects(table, perturbation="JAK3")


def test_names_may_be_those_that_zarr_reads(adata):
    expected = names_of(predicted_effects(adata, perturbation="JAK2"))
    effects = adata.uns["ptrag"]["effects"]
    for name in ("genes", "neighbours"):
        effects[name] = effects[name].astype(np.dtypes.StringDType())
    assert names_of(predicted_effects(adata, perturbation="JAK2")) == expected
