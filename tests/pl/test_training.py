"""Do the training curves show the history, and the mark its best epoch?"""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from ptrag_sc.pl import training

LOSSES = ("train_loss", "validation_loss")


def lines(ax) -> dict:
    return {line.get_label().split(" (")[0]: line for line in ax.lines}


def mark(ax):
    return next(line for label, line in lines(ax).items() if "lowest" in label)


def test_curves_are_the_history(trained, curves):
    ax = training(trained({name: curves[name] for name in LOSSES}))
    seen = lines(ax)
    for label, name in zip(("training", "validation"), LOSSES, strict=True):
        np.testing.assert_array_equal(seen[label].get_xdata(), np.arange(30))
        np.testing.assert_allclose(seen[label].get_ydata(), curves[name])
    assert ax.figure.axes == [ax]  # no gates in the history: no panel for them
    assert ax.get_xlabel() == "epoch"


def test_jumps_of_the_training_loss_are_explained_and_smoothed(trained, curves):
    rng = np.random.default_rng(0)
    curves["train_loss"] = curves["train_loss"] + np.where(np.arange(30) % 7 == 3, 2.0, 0.0) + rng.uniform(0, 0.01, 30)
    model = trained(curves)
    ax = training(model)
    median = lines(ax)["training, running median"].get_ydata()
    assert median[5] == np.median(curves["train_loss"][1:10])  # nine epochs
    assert median[0] == np.median(curves["train_loss"][:5])
    assert max(median[2:]) < 0.6 < 2 < max(lines(ax)["training"].get_ydata())
    assert any("new cells in each epoch" in line.get_label() for line in ax.lines)
    model.tables_ = SimpleNamespace(memory=object())
    assert "training, two losses" in lines(training(model))
    short = training(trained({"train_loss": np.ones(5)}))
    assert list(lines(short)) == ["training", "_child1", "lowest training loss: 1, epoch 0"]


def test_best_epoch_is_that_of_the_validation_loss(trained, curves):
    best = mark(training(trained(curves)))
    assert (list(best.get_xdata()), list(best.get_ydata())) == ([17], [0.5])
    assert "lowest validation loss: 0.5, epoch 17" in best.get_label()


def test_the_epoch_that_the_model_kept_is_marked_where_it_is_known(trained, curves):
    model = trained(curves)
    model.kept_epoch_ = 11
    marked = next(line for label, line in lines(training(model)).items() if "kept" in label)
    assert (list(marked.get_xdata()), list(marked.get_ydata())) == ([11], [curves["validation_loss"][11]])
    assert "kept validation loss: 0.86, epoch 11" in marked.get_label()
    model.kept_epoch_ = None
    ax = training(model)
    assert not any("lowest" in label or "epoch 1" in label for label in lines(ax))
    assert "kept: as before training" in " ".join(text.get_text() for text in ax.get_legend().get_texts())


def test_a_kept_epoch_without_a_loss_on_record(trained, curves):
    """Other data, or another logger, in a further training."""
    model = trained(curves)
    model.kept_epoch_ = 40
    ax = training(model)
    assert "kept: epoch 40" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_without_validation_the_training_loss_counts(trained, curves):
    ax = training(trained({"train_loss": curves["train_loss"]}))
    assert list(mark(ax).get_xdata()) == [29]
    assert "lowest training loss" in mark(ax).get_label()
    assert "validation" not in lines(ax)


def test_epochs_without_validation_are_left_out(trained, curves):
    curves["validation_loss"][np.arange(30) % 3 > 0] = np.nan
    ax = training(trained(curves))
    np.testing.assert_array_equal(lines(ax)["validation"].get_xdata(), np.arange(0, 30, 3))
    assert list(mark(ax).get_xdata()) == [18]


def test_gates_stand_in_a_panel_below(trained, curves):
    upper, lower = training(trained(curves), return_fig=True).axes
    lower.figure.canvas.draw()
    for label, name in (("training", "gate_open_train"), ("validation", "gate_open_validation")):
        np.testing.assert_allclose(lines(lower)[label].get_ydata(), curves[name])
    assert lower.get_window_extent().y1 < upper.get_window_extent().y0
    assert upper.get_xlim() == lower.get_xlim()
    assert (upper.get_xlabel(), lower.get_xlabel()) == ("", "epoch")


def test_gates_stay_in_the_place_of_the_given_axes(trained, curves):
    figure, (left, right) = plt.subplots(1, 2, layout="constrained")
    figure.canvas.draw()
    place = right.get_window_extent().frozen()
    training(trained(curves), ax=right)
    figure.canvas.draw()
    panel = figure.axes[-1]
    assert panel.get_window_extent().x0 > left.get_window_extent().x1
    assert panel.get_window_extent().y0 >= place.y0  # the label of the epochs needs room


def test_axes_outside_a_grid_show_the_losses_only(trained, curves):
    figure = plt.figure()
    ax = figure.add_axes((0.1, 0.1, 0.8, 0.8))
    assert training(trained(curves), ax=ax) is ax
    assert figure.axes == [ax]
    assert ax.get_xlabel() == "epoch"


def test_one_epoch_is_visible(trained):
    ax = training(trained({"train_loss": np.array([0.7])}))
    assert lines(ax)["training"].get_marker() == "."  # a line through one point is invisible


@pytest.mark.parametrize("history", [None, {}, {"train_loss": np.array([])}])
def test_untrained_model(trained, history):
    with pytest.raises(ValueError, match=r"not trained.*model\.train\(\)"):
        training(trained(history))
    assert plt.get_fignums() == []
