"""Which parameter texts do several docstrings share?"""

import inspect
from collections.abc import Callable

SHARED = {
    "plot_parameters": """ax
    Axes to draw into. ``None``: a new figure.
show
    Whether to show the figure. ``None``: ``scanpy.settings.autoshow``, unless ``ax`` or ``return_fig`` is given.
return_fig
    Whether to return the figure instead of the axes.""",
}


def documented(function: Callable) -> Callable:
    """Put the shared texts in place of the ``{name}`` lines of a function's docstring."""
    text = inspect.cleandoc(function.__doc__)
    for name, shared in SHARED.items():
        text = text.replace(f"{{{name}}}", shared)
    function.__doc__ = text
    return function
