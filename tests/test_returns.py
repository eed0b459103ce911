"""Does what a function returns appear as one item in the documentation: its type, then what it holds?"""

import inspect
import re

import pytest

from test_package_structure import public, sections


def returned():
    texts = {name: inspect.getdoc(thing) or "" for name, thing in public().items()}
    return {name: text for name, text in texts.items() if "Returns" in sections(text)}


def flaw(section: str) -> str | None:
    """What keeps a section from being one item: a line with the type, and an indented text below."""
    lines = [line for line in section.strip("\n").split("\n") if line.strip()]
    heads = [line for line in lines if not line.startswith(" ")]
    if len(heads) != 1 or lines[0] != heads[0]:
        return f"{len(heads)} lines without indentation, so as many items"
    if len(lines) < 2:
        return "no text below the type"
    if re.search(r"[:;]|\. |\.$|^\d|``", heads[0]):
        return f"a sentence in place of the type: {heads[0]!r}"
    return None


def test_flaws_are_found():
    assert flaw("\nDataFrame\n    One row per gene.\n") is None
    assert flaw("\nAnnData or Path\n    Cells.\n\n    More of them.\n") is None
    assert "2 lines" in flaw("\nThe error, in units\nof expression.\n")
    assert "no text" in flaw("\nfloat\n")
    assert "sentence" in flaw("\nNone. Writes ``x``\n    something.\n")
    assert "sentence" in flaw("\nWritten: ``x``\n    something.\n")


def test_every_returns_section_is_one_item():
    found = returned()
    assert len(found) > 50
    assert not {
        name: flaw(sections(text)["Returns"]) for name, text in found.items() if flaw(sections(text)["Returns"])
    }


def test_every_returns_section_is_rendered_as_one_item():
    """By the extension that builds the documentation, with its settings."""
    napoleon = pytest.importorskip("sphinx.ext.napoleon")
    config = napoleon.Config(napoleon_google_docstring=False, napoleon_use_rtype=False)
    assert ":returns: * " in str(napoleon.NumpyDocstring("S.\n\nReturns\n-------\nThe error,\nin units.\n", config))
    odd = {}
    for name, text in returned().items():
        lines = str(napoleon.NumpyDocstring(text, config)).split("\n")
        (shown,) = [line for line in lines if line.startswith(":returns:")]
        if not re.match(r":returns: \*[^*]+\* -- \S", shown):
            odd[name] = shown
    assert not odd
