"""Has every plot its picture, small enough for a page, and do all pages stand in the table of contents?"""

import re
from pathlib import Path

import pytest

from ptrag_sc import pl

DOCS = Path(__file__).parents[1] / "docs"
PICTURES = DOCS / "_static" / "plots"


@pytest.mark.parametrize("name", pl.__all__)
def test_every_plot_has_a_small_picture(name):
    assert 0 < (PICTURES / f"{name}.png").stat().st_size < 60_000
    assert f"plots/{name}.png" in (DOCS / "api" / "pl.md").read_text(encoding="utf-8")


def test_every_page_is_in_the_table_of_contents():
    listed = set()
    for block in re.findall(r"^:::\{toctree\}\n(.*?)^:::", (DOCS / "index.md").read_text("utf-8"), re.M | re.S):
        listed |= {line for line in block.splitlines() if line and not line.startswith(":")}
    pages = {page.stem for page in DOCS.glob("*.md")} - {"index"}
    notebooks = {f"tutorials/{page.stem}" for page in (DOCS.parent / "tutorials").glob("*.ipynb")}
    assert listed == pages | notebooks | {"tutorials/00_about", "api/index"}


def test_every_how_to_has_a_picture():
    how_to = re.search(r"^:caption: How do I\n\n(.*?)^:::", (DOCS / "index.md").read_text("utf-8"), re.M | re.S)[1]
    without = [name for name in how_to.split() if "{image}" not in (DOCS / f"{name}.md").read_text("utf-8")]
    # Pages of tables: what to set in one situation, or how another package is called.
    assert without == [
        "beyond_one_machine",
        "long_trainings",
        "reliability",
        "differentiating",
        "animals_as_batches",
        "pertpy",
    ]
