"""Do size, colour and place of every dot and tile say what the retrieval table says?"""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgba

from ptrag_sc.pl import retrieval, retrieval_matrix
from ptrag_sc.pl._retrieval import COLOURS, DOT_AREAS, UNKNOWN_COLOUR
from ptrag_sc.pl._retrieval_matrix import ABSENT_COLOUR

QUERY = "AAAAAA+BBBBBBB"


def ticks(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def dots(ax) -> dict[tuple[str, str], tuple[float, float]]:
    """(candidate, cell type) -> (area, colour value), read from the picture."""
    points = ax.collections[0]
    rows, columns = ticks(ax.yaxis), ticks(ax.xaxis)
    values = zip(points.get_offsets(), points.get_sizes(), np.ma.filled(points.get_array(), np.nan), strict=True)
    return {(rows[round(float(y))], columns[round(float(x))]): (float(s), float(c)) for (x, y), s, c in values}


@pytest.mark.parametrize("size", ["weight", "selected"])
@pytest.mark.parametrize("color", ["similarity", "similarity_response"])
def test_every_dot_says_what_the_table_says(adata, table, size, color):
    table["similarity_response"] = np.random.default_rng(0).uniform(-1, 1, len(table))
    seen = dots(retrieval(adata, perturbation=QUERY, size=size, color=color))
    mine = table[table["perturbation"] == QUERY]
    assert len(seen) == len(mine) == 14  # one candidate is not retrieved in RPE1
    small, large = DOT_AREAS
    top = 1.0 if size == "selected" else mine["weight"].max()
    for row in mine.itertuples():
        area, colour = seen[row.candidate, row.cell_type]
        assert area == pytest.approx(small + (large - small) * getattr(row, size) / top)
        assert colour == pytest.approx(getattr(row, color))


@pytest.mark.parametrize("size", ["weight", "selected"])
def test_area_grows_with_use(adata, table, size):
    seen = dots(retrieval(adata, perturbation=QUERY, size=size))
    mine = table[table["perturbation"] == QUERY].sort_values(size)
    areas = [seen[row.candidate, row.cell_type][0] for row in mine.itertuples()]
    assert areas == sorted(areas)
    assert areas[0] < areas[-1]


@pytest.mark.parametrize("size", ["weight", "selected"])
def test_rows_are_sorted_by_use_then_similarity(adata, table, size):
    mine = table["perturbation"] == QUERY
    table.loc[mine & table["candidate"].isin(["CDK1", "MYC"]), size] = 0.05  # a tie, broken by similarity
    means = {}
    for candidate in set(table[mine]["candidate"]):
        rows = table[mine & (table["candidate"] == candidate)]
        means[candidate] = (rows[size].sum() / 3, rows["similarity"].mean())  # absent counts as not used
    order = sorted(means, key=lambda name: means[name], reverse=True)
    ax = retrieval(adata, perturbation=QUERY, size=size)
    assert ticks(ax.yaxis) == order
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first row is on top
    assert ticks(retrieval(adata, perturbation=QUERY, size=size, n_top=2).yaxis) == order[:2]


def test_the_query_itself_is_named_as_what_it_did_elsewhere(adata, table):
    own = table[table["perturbation"] == QUERY].groupby("cell_type").head(1)
    own = own.assign(candidate=QUERY, weight=9.0, similarity=np.nan)
    adata.uns["ptrag"]["retrieval"] = pd.concat([table, own], ignore_index=True)
    ax = retrieval(adata, perturbation=QUERY)
    assert ticks(ax.yaxis)[0] == f"{QUERY}, other cell types"
    assert all(np.isnan(c) for (name, _), (_, c) in dots(ax).items() if name.startswith(QUERY))


def test_a_similarity_that_the_model_does_not_have_is_refused(adata):
    with pytest.raises(ValueError, match=r"Value 'similarity_response' .* color="):
        retrieval(adata, perturbation=QUERY, color="similarity_response")
    with pytest.raises(ValueError, match=r"Value 'rank' .* size="):
        retrieval(adata, perturbation=QUERY, size="rank")


def test_cell_types_in_the_given_order(adata):
    assert ticks(retrieval(adata, perturbation=QUERY).xaxis) == ["A549", "K562", "RPE1"]
    assert ticks(retrieval(adata, perturbation=QUERY, cell_types=["RPE1", "A549"]).xaxis) == ["RPE1", "A549"]


@pytest.mark.parametrize("size", ["weight", "selected"])
def test_size_legend_and_colour_bar_use_the_scale_of_the_dots(adata, table, size):
    ax = retrieval(adata, perturbation=QUERY, size=size)
    rates = np.array([float(text.get_text().strip("%")) / 100 for text in ax.get_legend().get_texts()])
    top = 1.0 if size == "selected" else table.loc[table["perturbation"] == QUERY, "weight"].max()
    assert rates[-1] == pytest.approx(top, abs=0.01)
    rates = rates / rates[-1]
    sizes = [handle.get_sizes()[0] for handle in ax.get_legend().legend_handles]
    np.testing.assert_allclose(sizes, DOT_AREAS[0] + (DOT_AREAS[1] - DOT_AREAS[0]) * rates, atol=4)
    (bar,) = ax.child_axes
    assert bar.get_title(loc="left").replace("\n", " ") == "similarity of gene embeddings"
    assert bar.get_ylim() == pytest.approx(ax.collections[0].get_clim())
    assert QUERY in ax.get_title(loc="left")


def test_unmeasured_similarity_is_grey(adata, table):
    first = table.index[table["perturbation"] == QUERY][0]
    table.loc[first, "similarity"] = np.nan
    ax = retrieval(adata, perturbation=QUERY)
    ax.figure.canvas.draw()
    colours = [tuple(colour) for colour in ax.collections[0].get_facecolors()]
    assert colours.count(to_rgba(UNKNOWN_COLOUR)) == 1


def test_no_similarity_at_all_leaves_the_colour_bar_out(adata, table):
    table["similarity"] = np.nan
    ax = retrieval(adata, perturbation=QUERY)
    ax.figure.canvas.draw()
    assert {tuple(colour) for colour in ax.collections[0].get_facecolors()} == {to_rgba(UNKNOWN_COLOUR)}
    assert ax.child_axes == []


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_constant_selection(adata, table, rate):
    table["selected"] = rate
    table["weight"] = rate
    for size in ("weight", "selected"):
        seen = dots(retrieval(adata, perturbation=QUERY, size=size))
        assert {area for area, _ in seen.values()} == {DOT_AREAS[int(rate)]}


@pytest.mark.parametrize("n_cell_types", [1, 8])
@pytest.mark.parametrize("n_top", [1, 15])
def test_nothing_is_cut_off_or_overlaps(adata, table, n_cell_types, n_top):
    one = table[table["cell_type"] == "K562"].assign(candidate=lambda t: t["candidate"] + "+BBBBBBBBBB")
    wide = [one.assign(cell_type=f"a very long cell type {i}") for i in range(n_cell_types)]
    adata.uns["ptrag"]["retrieval"] = pd.concat(wide, ignore_index=True)
    figure = retrieval(adata, perturbation=QUERY, n_top=n_top, return_fig=True)
    figure.canvas.draw()
    box, size = figure.get_tightbbox(), figure.get_size_inches()
    assert (box.min > -0.01).all()
    assert (box.max < size + 0.01).all()
    (bar,), legend = figure.axes[0].child_axes, figure.axes[0].get_legend()
    assert not bar.get_tightbbox().overlaps(legend.get_window_extent())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"perturbation": "STAT11"}, "Perturbation 'STAT11' is not in the predicted conditions .*closest: 'STAT1'"),
        ({"perturbation": QUERY, "cell_types": ["K563"]}, "Cell type 'K563' is not in .*closest: 'K562'"),
    ],
)
def test_unknown_names(adata, options, message):
    with pytest.raises(ValueError, match=message):
        retrieval(adata, **options)


def test_model_without_retrieval(adata, table):
    adata.uns["ptrag"]["retrieval"] = table[:0]
    for plot, options in ((retrieval, {"perturbation": QUERY}), (retrieval_matrix, {})):
        with pytest.raises(ValueError, match="is empty: the model predicted without retrieval"):
            plot(adata, **options)


@pytest.mark.parametrize("value", ["weight", "selected", "similarity", "similarity_response"])
def test_every_tile_says_what_the_table_says(adata, table, value):
    table["similarity_response"] = np.random.default_rng(0).uniform(-1, 1, len(table))
    ax = retrieval_matrix(adata, cell_type="RPE1", value=value)
    tiles = np.ma.filled(ax.images[0].get_array().astype(float), np.nan)
    rows, columns = ticks(ax.yaxis), ticks(ax.xaxis)
    mine = table[table["cell_type"] == "RPE1"].set_index(["perturbation", "candidate"])[value]
    assert np.isfinite(tiles).sum() == len(mine)
    for (row, column), expected in mine.items():
        assert tiles[rows.index(row), columns.index(column)] == pytest.approx(expected)


def test_not_retrieved_is_grey_and_weight_0_is_white(adata, table):
    table.loc[0, "weight"] = 0.0
    mine = table.loc[0]
    ax = retrieval_matrix(adata, cell_type=mine["cell_type"])
    image = ax.images[0]
    colours = image.cmap(image.norm(image.get_array()))
    rows, columns = ticks(ax.yaxis), ticks(ax.xaxis)
    assert (colours[rows.index(mine["perturbation"]), columns.index(mine["candidate"]), :3] > 0.95).all()
    for name in rows:  # none is a candidate of its own
        assert tuple(colours[rows.index(name), columns.index(name)]) == to_rgba(ABSENT_COLOUR)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["not retrieved"]
    assert ax.get_legend().get_patches()[0].get_facecolor() == to_rgba(ABSENT_COLOUR)


def test_a_similarity_leaves_out_candidates_without_any(adata, table):
    table.loc[table["candidate"] == "MYC", "similarity"] = np.nan
    assert "MYC" not in ticks(retrieval_matrix(adata, value="similarity").xaxis)
    assert "MYC" in ticks(retrieval_matrix(adata).xaxis)


def test_mean_over_cell_types_counts_where_it_was_retrieved(adata, table):
    ax = retrieval_matrix(adata, value="selected")
    tiles = ax.images[0].get_array()
    rows, columns = ticks(ax.yaxis), ticks(ax.xaxis)
    candidate = table.query("perturbation == 'STAT1'")["candidate"].iloc[-1]  # retrieved in all but RPE1, see fixture
    values = table.query("perturbation == 'STAT1' and candidate == @candidate")["selected"]
    assert tiles[rows.index("STAT1"), columns.index(candidate)] == pytest.approx(values.mean())
    assert "Mean over cell types" in ax.get_title(loc="left")


def blocks(n_blocks: int, size: int) -> tuple[pd.DataFrame, dict[str, int]]:
    """A screen whose perturbations retrieve only their own block; names are shuffled, so that order must be found."""
    rng = np.random.default_rng(3)
    names = rng.permutation([f"P{i}" for i in range(n_blocks * size)])
    block = dict(zip(names, np.arange(len(names)) // size, strict=True))
    pairs = [(a, b) for a in block for b in block if a != b and block[a] == block[b]]
    frame = pd.DataFrame(pairs, columns=["perturbation", "candidate"])
    weight = rng.uniform(0.5, 1, len(pairs))
    return frame.assign(cell_type="K562", rank=0, similarity=0.5, weight=weight, selected=1.0), block


def test_order_shows_blocks_on_the_diagonal(adata):
    frame, block = blocks(4, 6)
    adata.uns["ptrag"]["retrieval"] = frame.sample(frac=1, random_state=0)
    ax = retrieval_matrix(adata)
    rows, columns = ([block[name] for name in ticks(axis)] for axis in (ax.yaxis, ax.xaxis))
    assert sum(a != b for a, b in pairwise(rows)) == 3  # each block stands together
    assert rows == columns


def test_labels_are_thinned_and_stay_on_their_tiles(adata):
    frame, _ = blocks(6, 50)
    adata.uns["ptrag"]["retrieval"] = frame
    full, thin = (retrieval_matrix(adata, n_labels=n) for n in (300, 40))
    for axis in ("xaxis", "yaxis"):
        everything = dict(zip(getattr(full, axis).get_ticklocs(), ticks(getattr(full, axis)), strict=True))
        labels = dict(zip(getattr(thin, axis).get_ticklocs(), ticks(getattr(thin, axis)), strict=True))
        assert len(everything) == 300
        assert 30 <= len(labels) <= 40
        assert labels == {place: everything[place] for place in labels}
    assert thin.images[0].get_array().shape == (300, 300)  # labels are thinned, tiles are not


def test_matrix_of_some_perturbations(adata):
    ax = retrieval_matrix(adata, perturbations=["MYC", "STAT1"], cell_type="K562")
    assert sorted(ticks(ax.yaxis)) == ["MYC", "STAT1"]
    assert ax.get_title(loc="left") == "K562"


def test_no_weight_is_white_and_similarity_has_no_white(adata, table):
    table["weight"] = 0.0
    image = retrieval_matrix(adata).images[0]
    drawn = image.cmap(image.norm(image.get_array()))[~np.ma.getmaskarray(image.get_array())]
    assert (drawn[:, :3] > 0.95).all()
    lightest = colormaps[COLOURS](np.linspace(0, 1, 256))[:, :3].min(axis=1)
    assert (lightest < 0.5).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value": "rank"}, "Value 'rank' does not occur .*'weight', 'selected', 'similarity'"),
        ({"cell_type": "K563"}, "Cell type 'K563' .*'K562'"),
        ({"perturbations": ["STAT1", "XYZ", "JAK3"]}, "2 perturbations are not in .*'XYZ', 'JAK3'.*'JAK2'"),
    ],
)
def test_matrix_errors(adata, options, message):
    with pytest.raises(ValueError, match=message):
        retrieval_matrix(adata, **options)
