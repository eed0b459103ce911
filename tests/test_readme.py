"""Does the README show what its code prints, and is what it says about the result true?"""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from ptrag_sc._cli._parser import make_parser
from ptrag_sc.data import _intervals

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def block(language):
    """Code or output of the README in that language, the first one."""
    return re.search(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)[1]


def test_ten_lines_print_what_is_shown(capsys, monkeypatch):
    monkeypatch.setattr(_intervals, "MAX_FOLDS", 30)  # as for users; other tests take fewer
    code, names = block("python"), {}
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 10
    exec(code, names)
    (printed, numbers), (shown, expected) = _rows(capsys.readouterr().out), _rows(block("text"))
    assert printed == shown
    np.testing.assert_allclose(numbers, expected, atol=0.011)  # the last digit may differ between machines
    adata, top = names["adata"], names["effects"].head(8)
    knocked_out, control = (adata[adata.obs["perturbation"] == p].to_df() for p in ("JAK2", "non-targeting"))
    observed = (knocked_out.mean() - control.mean())[top["gene"]].to_numpy()
    ratio = observed / top["shift"].to_numpy()
    outside = (observed < top["lower"]) | (observed > top["upper"])
    # "all eight genes moved this way, two to ten times as far", "five of the eight lie outside their interval"
    assert (ratio > 0).all()
    assert 1.5 < ratio.min() < 2.5 and 9 < ratio.max() < 11
    assert outside.sum() == 5


def test_the_hidden_knock_out_is_not_learned_from():
    names = {}
    exec(block("python").rpartition("print(")[0], names)
    adata, model = names["adata"], names["model"]
    assert "JAK2" not in model.candidates_
    assert set(model.split_.loc[model.split_["split"] == "test", "perturbation"]) == {"JAK2"}
    assert np.isin(model.candidates_, adata.obs["perturbation"].unique()).all()


@pytest.mark.parametrize("line", re.findall(r"^ptrag-sc [^#\n]*", README.replace("\\\n", " "), re.MULTILINE))
def test_shell_lines_are_understood(line):
    assert make_parser().parse_args(shlex.split(line)[1:]).command == line.split()[1]


def _rows(text):
    """Words and numbers of a printed table."""
    rows = [line.split() for line in text.strip().splitlines()]
    numbers = [[float(word) for word in row[1:4] + row[5:]] for row in rows[1:]]
    return [rows[0], *([row[0], row[4]] for row in rows[1:])], np.array(numbers)
