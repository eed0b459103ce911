"""Do the labels of a screen alone show what is wrong with its design?"""

from ptrag_sc.data import ConditionIndex
from ptrag_sc.data._diagnose import design_findings, design_warnings


def index(batch_of_controls):
    perturbation = ["A"] * 30 + ["B"] * 30 + ["ctl"] * 30
    batch = ["b1"] * 15 + ["b2"] * 15 + ["b1"] * 15 + ["b2"] * 15 + batch_of_controls
    return ConditionIndex.from_labels(perturbation, ["t"] * 90, batch, control="ctl")


def test_batches_without_controls_are_the_warning_and_a_sound_design_has_none():
    assert design_warnings(index(["b1"] * 15 + ["b2"] * 15)) == ""
    bad = design_warnings(index(["b3"] * 30))
    messages = {f.level: f.message for f in design_findings(index(["b3"] * 30), set_size=1)}
    assert bad == messages["warning"]
    assert "control" in bad
