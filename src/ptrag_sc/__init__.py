"""Retrieve, refine, generate: single-cell perturbation prediction on AnnData."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from ._log import attach_handler

if TYPE_CHECKING:
    from . import baselines, benchmark, datasets, metrics, pl, pp, tl
    from .model import PTRAG

__all__ = ["PTRAG", "baselines", "benchmark", "datasets", "metrics", "pl", "pp", "tl"]
__version__ = version("ptrag_sc")

WITHIN = ("data", "model", "nn", "retrieval")  # subpackages that are not part of the interface


def __getattr__(name: str) -> object:
    """Import a subpackage, or the model, when it is first asked for (PEP 562): torch and scvi-tools take seconds."""
    if name == "PTRAG":
        return import_module("ptrag_sc.model").PTRAG
    if name in __all__ or name in WITHIN:
        return import_module(f"ptrag_sc.{name}")
    raise AttributeError(f"module 'ptrag_sc' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return what a user can ask for."""
    return [*__all__, "__version__"]


attach_handler()
