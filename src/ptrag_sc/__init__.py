"""Retrieve, refine, generate: single-cell perturbation prediction on AnnData."""

from importlib.metadata import version

from . import baselines, benchmark, datasets, metrics, pl, pp, tl
from ._log import attach_handler
from .model import PTRAG

__all__ = ["PTRAG", "baselines", "benchmark", "datasets", "metrics", "pl", "pp", "tl"]
__version__ = version("ptrag_sc")

attach_handler()
