"""How do the tables of an object that anndata reads lazily come into memory, while its matrices stay where they are?"""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from anndata import AnnData
from mudata import MuData


def load_tables(adata: AnnData | MuData) -> None:
    """Load ``obs``, ``var`` and ``uns`` of an object from :func:`anndata.experimental.read_lazy`, in place.

    All others stay as they are. Expression and layers are never loaded.
    """
    if isinstance(adata, MuData):
        for part in adata.mod.values():
            if isinstance(part, AnnData):
                load_tables(part)
        return
    if all(isinstance(table, pd.DataFrame) for table in (adata.obs, adata.var)):
        return
    adata.obs, adata.var = _loaded(adata.obs), _loaded(adata.var)
    adata.uns = _loaded(dict(adata.uns))


def _loaded(value: Any) -> Any:
    if isinstance(value, pd.DataFrame):
        return value
    if hasattr(value, "to_memory"):  # a lazy table, which is a mapping too, or a sparse matrix on disk
        return value.to_memory()
    if isinstance(value, Mapping):
        return {name: _loaded(inner) for name, inner in value.items()}
    if hasattr(value, "compute"):  # a dask array
        return value.compute(scheduler="synchronous")
    return value
