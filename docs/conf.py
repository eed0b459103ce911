"""How is the documentation built, offline and without a warning?"""

import os
import shutil
from importlib.metadata import version as installed_version
from pathlib import Path
from xml.etree import ElementTree

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging

logger = logging.getLogger(__name__)
here = Path(__file__).parent

project = "ptrag_sc"
author = "ptrag_sc contributors"
copyright = f"2026, {author}"
version = release = installed_version("ptrag_sc")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
suppress_warnings = ["mystnb.unknown_mime_type"]  # progress bars in executed notebooks

# Intersphinx downloads inventories: only where the site is built for publication.
if os.environ.get("READTHEDOCS"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/pandas-docs/stable/", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "scvi-tools": ("https://docs.scvi-tools.org/en/stable/", None),
    }

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are executed by their authors and stored with their outputs
nb_ipywidgets_js = {}  # no script from another host
nb_merge_streams = True

templates_path = ["_templates"]
autosummary_generate = True
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_rtype = False
add_module_names = False
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

html_theme = "sphinx_book_theme"
html_title = f"{project} {version}"
html_sidebars = {"**": ["navbar-logo.html", "icon-links.html", "sbt-sidebar-nav.html"]}  # the header has the search
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["mathml.css", "pages.css"]
html_theme_options = {"show_navbar_depth": 1, "use_download_button": False, "use_fullscreen_button": False}

# Notebooks live in tutorials/, beside the package; Sphinx reads only what stands below docs/.
for stale in (here / "tutorials").glob("*.ipynb"):
    stale.unlink()
for notebook in sorted((here.parent / "tutorials").glob("*.ipynb")):
    shutil.copy(notebook, here / "tutorials")


def mathml(latex: str, *, display: str) -> str:
    """``latex`` as MathML, which browsers draw themselves: no script and no font from another host."""
    markup = convert(latex.strip(), display=display)
    try:
        ElementTree.fromstring(markup)
    except ElementTree.ParseError as error:
        logger.warning("Formula %r cannot be written as MathML: %s", latex, error)
    if "\\" in markup:
        logger.warning("Formula %r holds a command that latex2mathml does not know: %s", latex, markup)
    return markup


def visit_math(translator, node):
    """Write an inline formula."""
    translator.body.append(mathml(node.astext(), display="inline"))
    raise nodes.SkipNode


def visit_math_block(translator, node):
    """Write a formula of its own line, with its number where it has one."""
    number = f'<span class="eqno">({node["number"]})</span>' if node.get("number") else ""
    anchor = f' id="{node["ids"][0]}"' if node["ids"] else ""
    translator.body.append(f'<div class="math"{anchor}>{number}{mathml(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app):
    """Register the formula writer."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
