"""Which data come with the package, and how are they loaded?"""

from ptrag_sc.datasets._genept import genept

__all__ = ["genept"]
