"""Which parameter texts do several docstrings share?"""

import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

SHARED = {
    "plot_parameters": """ax
    Axes to draw into. ``None``: a new figure.
show
    Whether to show the figure. ``None``: ``scanpy.settings.autoshow``, unless ``ax`` or ``return_fig`` is given.
return_fig
    Whether to return the figure instead of the axes.""",
    "perturb_parameters": """perturbations
    Genes, or combinations such as ``"A+B"``; they need not have been measured.
cell_types
    None takes all that have control cells in ``adata``, also types that the model never saw.
n_cells
    Control cells per cell type; None uses each of them once. A mapping such as ``{"A": 100, "B": 50}`` has a number for
    each perturbation, and so has a table with the columns ``perturbation`` and ``n_cells``; if it also has
    ``cell_type``, only the pairs in it are predicted.
gene_embedding
    Table (any source of :func:`ptrag_sc.pp.gene_embedding`) for genes that neither the model nor ``adata`` knows.
seed
    None: deterministic gates and a fixed choice of control cells. An integer samples both.
counts
    Whether predicted cells have counts, and so the zeros of real cells. ``"auto"``: where the counts of the control
    cells are known, from ``counts_layer`` or because expression is log1p of counts times one factor for each cell;
    ``uns[key]["params"]["counts"]`` is what was done. False: smooth expression, control cell plus predicted shift, as
    in training and for means.
nonnegative
    Whether negative predicted expression is set to 0; cells with counts have none.
missing_genes
    For genes of the model that ``adata`` lacks: ``"error"``, or ``"zero"`` to let their expression start at 0.""",
}


def documented(function: Callable[P, R]) -> Callable[P, R]:
    """Replace the ``{name}`` lines of a function's docstring by the shared texts."""
    # Without the indentation of the source, so that the texts above line up with it.
    text = inspect.cleandoc(function.__doc__ or "")
    # str.replace, because format would stumble over braces in examples.
    for name, shared in SHARED.items():
        text = text.replace(f"{{{name}}}", shared)
    function.__doc__ = text
    return function
