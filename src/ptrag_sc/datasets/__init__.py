"""Which data come with the package, and how are they loaded?"""

from ptrag_sc.datasets._genept import genept
from ptrag_sc.datasets._papalexi import papalexi
from ptrag_sc.datasets._replogle_nadig import replogle_nadig, select_training_genes
from ptrag_sc.datasets._simulated import simulated
from ptrag_sc.datasets._store import open_store, write_store

__all__ = ["genept", "open_store", "papalexi", "replogle_nadig", "select_training_genes", "simulated", "write_store"]
