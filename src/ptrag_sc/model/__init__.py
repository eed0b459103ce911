"""Which model does the package train?"""

from ._ptrag import PTRAG

__all__ = ["PTRAG"]
