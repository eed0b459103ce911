"""Does the picture of a benchmark show what the table says?"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import ptrag_sc

ROWS = [
    ("pearson_delta", "a", "method", 0.5, 0.4, 0.6),
    ("pearson_delta", "b", "method", 0.7, 0.6, 0.8),
    ("pearson_delta", "mean shift", "floor", 0.3, 0.2, 0.4),
    ("pearson_delta", "split half", "ceiling", 0.9, 0.8, 1.0),
    ("energy_distance", "a", "method", 1.0, 0.9, 1.1),
    ("energy_distance", "b", "method", 2.0, 1.9, 2.1),
    ("energy_distance", "mean shift", "floor", np.nan, np.nan, np.nan),
]
SUMMARY = pd.DataFrame(ROWS, columns=["metric", "method", "kind", "mean", "low", "high"])
SUMMARY["direction"] = SUMMARY["metric"].map({"pearson_delta": "higher", "energy_distance": "lower"})
SUMMARY["best"], SUMMARY["confidence"] = SUMMARY["metric"].map({"pearson_delta": 1.0, "energy_distance": 0.0}), 0.8


def dots(ax):
    return next(line for line in ax.lines if line.get_marker() == "o").get_xdata().tolist()


def test_methods_are_sorted_by_the_first_metric_and_dots_are_means():
    axes = ptrag_sc.pl.benchmark(SUMMARY, show=False)
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["b", "a"]
    assert dots(axes[0]) == [0.7, 0.5]
    assert dots(axes[1]) == [2.0, 1.0]
    segments = [s[:, 0].tolist() for s in axes[0].collections[0].get_segments()]
    assert segments == [[0.6, 0.8], [0.4, 0.6]]
    plt.close("all")
    axes = ptrag_sc.pl.benchmark(SUMMARY, metrics=["energy_distance"], show=False)
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["a", "b"]  # lower is better
    assert len(axes) == 1
    plt.close("all")


def test_floors_and_ceilings_are_lines_with_a_legend():
    figure = ptrag_sc.pl.benchmark(SUMMARY, return_fig=True)
    lines = {
        line.get_xdata()[0] for line in figure.axes[0].lines if len(line.get_xdata()) == 2 and line.get_ls() != "-"
    }
    assert {0.3, 0.9} <= lines
    text = " ".join(t.get_text() for t in figure.legends[0].get_texts())
    assert "method, 80% interval" in text
    assert "floor: mean shift" in text
    assert "ceiling: split half" in text
    plt.close(figure)


def test_each_floor_and_ceiling_can_be_told_apart():
    """By colour and line style together, in every panel and in the legend."""
    names = {"mean shift": "floor", "no effect": "floor", "split half": "ceiling", "duplicate": "ceiling"}
    rows = [("pearson_delta", name, kind, i / 10, i / 10, i / 10) for i, (name, kind) in enumerate(names.items())]
    table = pd.concat([SUMMARY[:2], pd.DataFrame(rows, columns=SUMMARY.columns[:6])], ignore_index=True)
    figure = ptrag_sc.pl.benchmark(table.ffill(), return_fig=True)
    looks = {}
    for line in figure.axes[0].lines:
        if line.get_marker() != "o":
            looks[line.get_xdata()[0]] = (line.get_color(), line.get_linestyle(), line._dash_pattern)
    assert len({str(look) for look in looks.values()}) == len(names)
    legend = figure.legends[0]
    texts = [text.get_text() for text in legend.get_texts()][1:]
    assert texts == [f"{kind}: {name}" for name, kind in names.items()]
    shown = [(line.get_color(), line.get_linestyle()) for line in legend.get_lines()][1:]
    assert shown == [looks[i / 10][:2] for i in range(len(names))]
    plt.close(figure)


def test_unusable_tables_are_refused():
    with pytest.raises(KeyError, match="Column 'low' does not occur in the summary"):
        ptrag_sc.pl.benchmark(SUMMARY.drop(columns="low"))
    with pytest.raises(KeyError, match="Metric 'mse' does not occur"):
        ptrag_sc.pl.benchmark(SUMMARY, metrics=["mse"])
    with pytest.raises(ValueError, match="holds no method"):
        ptrag_sc.pl.benchmark(SUMMARY[SUMMARY["kind"] == "floor"])
    with pytest.raises(ValueError, match="holds several rows for a method and metric"):
        ptrag_sc.pl.benchmark(pd.concat([SUMMARY, SUMMARY]))


def test_the_best_of_a_closer_metric_is_nearest_to_its_best_value():
    near = SUMMARY.assign(direction="closer", best=0.6)
    near.loc[near["method"] == "b", "mean"] = 0.65
    axes = ptrag_sc.pl.benchmark(near, metrics=["pearson_delta"], show=False)
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["b", "a"]
    assert axes[0].get_xlabel() == "best: 0.6"
    plt.close("all")


def test_nothing_is_shown_or_cut_off_unasked(monkeypatch):
    calls = []
    monkeypatch.setattr(plt, "show", lambda: calls.append("shown"))
    monkeypatch.setattr("matplotlib.get_backend", lambda: "QtAgg")
    figure = ptrag_sc.pl.benchmark(SUMMARY, return_fig=True)
    assert calls == []
    ptrag_sc.pl.benchmark(SUMMARY, show=True)
    assert calls == ["shown"]
    figure.canvas.draw()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(box.x0, box.y0) >= -0.01
    assert box.x1 <= width + 0.01
    assert box.y1 <= height + 0.01
    plt.close("all")
