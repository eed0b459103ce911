"""Which data come with the package, and how are they loaded?"""

from ptrag_sc.datasets._genept import genept
from ptrag_sc.datasets._simulated import simulated

__all__ = ["genept", "simulated"]
