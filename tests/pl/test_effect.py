"""Does the picture of an effect show the shifts and the numbers of its condition?"""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.text import Text

from ptrag_sc.pl import effect
from ptrag_sc.pl._finish import OBSERVED_COLOUR

CONDITION = {"perturbation": "STAT1", "cell_type": "K562"}


@pytest.fixture
def shifts(adata) -> tuple[np.ndarray, np.ndarray]:
    """Observed and predicted shift of the condition, found by its labels."""
    effects = adata.uns["ptrag"]["effect"]
    row = effects["conditions"].query("perturbation == 'STAT1' and cell_type == 'K562'").index.item()
    return effects["observed"][row], effects["predicted"][row]


def labels(ax) -> list[Text]:
    return [text for text in ax.texts if text.get_text().startswith("GENE")]


def boxes(ax) -> list:
    ax.figure.canvas.draw()
    return [Text.get_window_extent(text) for text in ax.texts]


def test_points_are_the_shifts(adata, shifts):
    points = np.asarray(effect(adata, **CONDITION).collections[0].get_offsets())
    expected = np.column_stack(shifts)
    np.testing.assert_allclose(points[np.lexsort(points.T)], expected[np.lexsort(expected.T)], rtol=1e-6)


def test_top_genes_are_labelled_and_coloured_at_their_points(adata, shifts):
    ax = effect(adata, **CONDITION, n_top=4)
    far = sorted(range(len(shifts[0])), key=lambda i: -(shifts[0][i] ** 2 + shifts[1][i] ** 2))[:4]
    assert [text.get_text() for text in labels(ax)] == [f"GENE{i}" for i in far]
    for text, i in zip(labels(ax), far, strict=True):
        assert text.xy == pytest.approx((shifts[0][i], shifts[1][i]))
    points = ax.collections[0]
    blue = [tuple(colour) == to_rgba(OBSERVED_COLOUR) for colour in points.get_facecolors()]
    coloured = np.asarray(points.get_offsets())[blue]
    np.testing.assert_allclose(np.sort(coloured[:, 0]), np.sort(shifts[0][far]), rtol=1e-6)


@pytest.mark.parametrize(("n_top", "n"), [(0, 0), (99, 30)])
def test_number_of_labels(adata, n_top, n):
    assert len(labels(effect(adata, **CONDITION, n_top=n_top))) == n


def test_printed_numbers(adata, shifts):
    x, y = (shift.astype(float) for shift in shifts)
    text = next(t.get_text() for t in effect(adata, **CONDITION).texts if "Pearson" in t.get_text())
    assert f"Pearson r = {np.corrcoef(x, y)[0, 1]:.2f}\n" in text
    assert f"slope = {np.dot(x, y) / np.dot(x, x):.2f}\n" in text
    assert "12 observed cells" in text
    assert "12 predicted cells" in text


def test_lines_and_limits(adata):
    ax = effect(adata, **CONDITION)
    assert ax.get_xlim() == ax.get_ylim()
    horizontal, vertical, identity = ax.lines
    assert set(horizontal.get_ydata()) == {0}
    assert set(vertical.get_xdata()) == {0}
    assert identity.get_slope() == 1
    assert identity.get_xy1() == (0, 0)
    points = np.asarray(ax.collections[0].get_offsets())
    assert points.min() > ax.get_xlim()[0]
    assert points.max() < ax.get_xlim()[1]


def test_virtual_cells_alone_need_no_further_step(adata):
    """A result of tl.perturb: what it holds beside its cells is drawn, as after tl.effect."""
    virtual = adata[adata.obs["perturbation"] == "JAK2"].copy()
    del virtual.obsm, virtual.obs["ptrag_predicted"], virtual.uns["ptrag"]["effect"]
    kept = virtual.uns["ptrag"]["effects"]
    kept["control"] = np.random.default_rng(0).gamma(1.0, 1.0, kept["shift"].shape)
    ax = effect(virtual, perturbation="JAK2", cell_type="K562", n_top=1)
    points = np.asarray(ax.collections[0].get_offsets())
    order = np.lexsort(points.T)
    expected = np.column_stack([kept["control"][0], kept["shift"][0]])
    np.testing.assert_allclose(points[order], expected[np.lexsort(expected.T)], rtol=1e-6)
    assert [text.get_text() for text in labels(ax)] == ["GENE3"]
    assert "no observed cells\n7 predicted cells" in [text.get_text() for text in ax.texts]
    assert ax.get_xlabel() == "mean expression of control cells (log1p)"
    assert "effect" not in virtual.uns["ptrag"]
    adata.obsm["ptrag"] = np.zeros((adata.n_obs, 30), dtype=np.float32)  # cells that were predicted, not virtual ones
    del adata.uns["ptrag"]["effect"]
    with pytest.raises(KeyError, match=r"tl\.effect"):
        effect(adata, **CONDITION)


def test_axes_say_in_which_unit(adata):
    ax = effect(adata, **CONDITION)
    assert ax.get_xlabel() == "observed shift of mean expression (log1p)"
    adata.uns["ptrag"]["params"]["layer"] = "scaled"
    assert effect(adata, **CONDITION).get_ylabel() == "predicted shift of mean expression (layer scaled)"


@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_numbers_stand_where_no_point_is(adata, corner):
    """Points fill all corners but one."""
    effects = adata.uns["ptrag"]["effect"]
    filled = [c for c in [(0, 0), (0, 1), (1, 0), (1, 1)] if c != corner]
    for axis, name in enumerate(("observed", "predicted")):
        effects[name][:] = np.resize([c[axis] for c in filled], effects[name].shape[1]) + np.arange(30) / 1000
    ax = effect(adata, **CONDITION, n_top=0)
    text = next(t for t in ax.texts if "Pearson" in t.get_text())
    assert tuple(np.round(text.get_position())) == corner


def test_all_zero_shift(adata):
    effects = adata.uns["ptrag"]["effect"]
    effects["observed"][:], effects["predicted"][:] = 0, 0
    low, high = effect(adata, **CONDITION, n_top=3).get_xlim()
    assert low < 0 < high


@pytest.mark.parametrize("size", [(5, 5), (3.5, 3.5), (12, 4)])
def test_no_two_texts_overlap_whatever_the_size(adata, size):
    ax = effect(adata, **CONDITION, n_top=10)
    ax.figure.set_size_inches(size)  # after the labels were made
    found = boxes(ax)
    assert len(found) == 11
    for i, box in enumerate(found):
        assert box.count_overlaps(found[:i]) == 0


def test_labels_of_one_place_are_spread(adata):
    """Ten genes with nearly the same shift: the hardest case for labels."""
    effects = adata.uns["ptrag"]["effect"]
    effects["observed"][:, :10] = 20 + np.arange(10) / 100
    effects["predicted"][:, :10] = 20
    ax = effect(adata, **CONDITION)
    found = boxes(ax)
    frame = ax.get_window_extent()
    for i, box in enumerate(found):
        assert box.count_overlaps(found[:i]) == 0
        assert frame.x0 <= box.x0 <= box.x1 <= frame.x1
        assert frame.y0 <= box.y0 <= box.y1 <= frame.y1


def test_no_label_covers_another_labelled_point(adata):
    """Three named points close together, a little apart from the others: a cover would hide which is which."""
    effects = adata.uns["ptrag"]["effect"]
    effects["observed"][:], effects["predicted"][:] = 0, 0
    effects["observed"][:, :3] = [9.0, 9.1, 9.2]
    effects["predicted"][:, :3] = [-4.0, -3.5, -4.6]
    ax = effect(adata, **CONDITION, n_top=3)
    ax.figure.canvas.draw()
    pixels = ax.transData.transform([text.xy for text in labels(ax)])
    named = [Text.get_window_extent(text) for text in labels(ax)]
    assert not [1 for box in named for pixel in pixels if box.contains(*pixel)]


def test_numbers_leave_the_corner_of_a_negative_correlation(adata):
    effects = adata.uns["ptrag"]["effect"]
    effects["conditions"]["pearson_delta"] = -0.8
    effects["predicted"] = -0.8 * effects["observed"]
    ax = effect(adata, **CONDITION)
    text = next(t for t in ax.texts if "Pearson" in t.get_text())
    assert "r = -0.80" in text.get_text()
    assert text.get_position()[1] < 0.5


def test_labels_cover_no_points_where_there_is_room(adata):
    ax = effect(adata, **CONDITION, n_top=5)
    found = boxes(ax)
    pixels = ax.transData.transform(ax.collections[0].get_offsets())
    assert not any(box.contains(*pixel) for box in found for pixel in pixels)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (("STAT11", "K562"), "Perturbation 'STAT11' is not in the effects .*'STAT1'.*tl.effect"),
        (("MYC", "A549"), "Cell type 'A549' does not occur in the effects of 'MYC' .found: 'K562'.*tl.effect"),
        (("MYC", "K562"), "Observed shift .*'MYC' in 'K562' is NaN.*n_observed > 0.*tl.effect"),
    ],
)
def test_errors(adata, condition, message):
    with pytest.raises(ValueError, match=message):
        effect(adata, perturbation=condition[0], cell_type=condition[1])
    assert plt.get_fignums() == []
