"""Do all plots keep one contract: axes, show, return_fig, and which function to run first?"""

import warnings
from collections.abc import Iterator

import matplotlib.pyplot as plt
import pytest
import scanpy

from ptrag_sc import pl

CONDITION = {"perturbation": "STAT1", "cell_type": "K562"}
PLOTS = {
    "retrieval": {"perturbation": "STAT1"},
    "retrieval_matrix": {},
    "effect": CONDITION,
    "embedding": CONDITION,
    "training": {},
    "predicted_effects": {"perturbation": "JAK2"},
}


@pytest.fixture(params=PLOTS)
def draw(request, adata, trained, curves):
    """Each plot, with its data and the arguments that it needs."""
    first = trained(curves) if request.param == "training" else adata
    return lambda **options: getattr(pl, request.param)(first, **PLOTS[request.param], **options)


@pytest.fixture
def shown(monkeypatch) -> Iterator[list]:
    """Calls of plt.show under a backend that has a window, with scanpy's autoshow on."""
    calls = []
    monkeypatch.setattr(plt, "show", lambda: calls.append("shown"))
    monkeypatch.setattr("matplotlib.get_backend", lambda: "QtAgg")
    before = scanpy.settings.autoshow
    scanpy.settings.autoshow = True
    yield calls
    scanpy.settings.autoshow = before


def test_every_export_is_covered():
    own_tests = {"benchmark", "design", "diagnose", "explain_error", "power", "ranking", "support"}
    assert set(pl.__all__) == {*PLOTS, *own_tests}


def test_new_figure_holds_the_returned_axes(draw):
    ax = draw(show=False)
    assert [ax.figure.number] == plt.get_fignums()
    assert ax.has_data()


def test_given_axes_are_used_and_no_figure_is_added(draw):
    figure, (left, right) = plt.subplots(1, 2, layout="constrained")
    assert draw(ax=right) is right
    assert right.has_data()
    assert not left.has_data()
    assert plt.get_fignums() == [figure.number]


def test_return_fig(draw):
    figure = draw(return_fig=True)
    assert isinstance(figure, plt.Figure)
    assert figure.axes[0].has_data()


@pytest.mark.parametrize(
    ("options", "n"), [({}, 1), ({"show": False}, 0), ({"show": True}, 1), ({"return_fig": True}, 0)]
)
def test_show_follows_autoshow(draw, shown, options, n):
    draw(**options)
    assert len(shown) == n


def test_autoshow_off(draw, shown):
    scanpy.settings.autoshow = False
    draw()
    assert shown == []


@pytest.mark.parametrize(("show", "n"), [(None, 0), (True, 1)])
def test_given_axes_are_shown_only_on_request(draw, shown, show, n):
    draw(ax=plt.subplots()[1], show=show)
    assert len(shown) == n


@pytest.mark.parametrize("show", [None, True])
def test_no_warning_without_a_window(draw, monkeypatch, show):
    monkeypatch.setenv("DISPLAY", ":0")  # with it, plt.show() warns under Agg
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # of anndata and pandas among themselves
        draw(show=show)


def test_nothing_is_cut_off(draw):
    figure = draw(return_fig=True)
    figure.canvas.draw()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 >= -0.01
    assert box.y0 >= -0.01
    assert box.x1 <= width + 0.01
    assert box.y1 <= height + 0.01


@pytest.mark.parametrize("name", ["retrieval", "retrieval_matrix", "effect", "embedding"])
def test_missing_key_names_predict(adata, name):
    with pytest.raises(KeyError, match=r"'other' does not occur in adata.uns .*ptrag_sc\.tl\.predict"):
        getattr(pl, name)(adata, **PLOTS[name], key="other")
    assert plt.get_fignums() == []


def test_missing_effect_names_effect(adata):
    del adata.uns["ptrag"]["effect"]
    with pytest.raises(KeyError, match=r"ptrag_sc\.tl\.effect"):
        pl.effect(adata, **CONDITION)


def test_missing_retrieval_names_predict(adata):
    del adata.uns["ptrag"]["retrieval"]
    with pytest.raises(KeyError, match=r"ptrag_sc\.tl\.predict"):
        pl.retrieval(adata, perturbation="STAT1")


@pytest.mark.parametrize("name", ["retrieval", "retrieval_matrix", "effect", "embedding"])
def test_another_key_is_read(adata, name):
    adata.uns["second"] = adata.uns.pop("ptrag")
    adata.obsm["second"] = adata.obsm.pop("ptrag")
    adata.obs = adata.obs.rename(columns={"ptrag_predicted": "second_predicted"})
    assert getattr(pl, name)(adata, **PLOTS[name], key="second").has_data()


@pytest.mark.parametrize("name", ["retrieval", "retrieval_matrix", "effect", "embedding"])
def test_after_a_file(adata, name, tmp_path):
    """Files bring strings back as categories: the same picture must come of it."""
    before = getattr(pl, name)(adata, **PLOTS[name], return_fig=True)
    adata.write_h5ad(tmp_path / "a.h5ad")
    after = getattr(pl, name)(scanpy.read_h5ad(tmp_path / "a.h5ad"), **PLOTS[name], return_fig=True)
    for figure in (before, after):
        figure.canvas.draw()
    assert bytes(before.canvas.buffer_rgba()) == bytes(after.canvas.buffer_rgba())
