"""Which columns and keys of an object did the package write, and which are the user's, never to be replaced?

What stands in ``uns`` is known by its form. The names in ``obs`` and ``obsm`` are written down in ``uns``.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from anndata import AnnData
from mudata import MuData

from ptrag_sc._constants import WRITTEN_KEY
from ptrag_sc._validation import unusable

EMBEDDING = {"genes", "vectors", "source"}  # what a table of pp.gene_embedding holds
DIAGNOSIS = {"findings", "conditions", "groups"}  # what tl.diagnose writes


def written(adata: AnnData | MuData, slot: str) -> set[str]:
    """Return the names in ``obs`` or ``obsm`` that the package wrote."""
    return {str(name) for name in adata.uns.get(WRITTEN_KEY, {}).get(slot, ())}


def check_free(adata: AnnData | MuData, **names: Iterable[str]) -> None:
    """Refuse names under which something stands that the package did not write.

    Parameters
    ----------
    adata
        The object.
    **names
        Names for each slot: ``obs``, ``obsm``, ``uns``.

    Raises
    ------
    ValueError
        With the first name that is taken.
    """
    for slot, wanted in names.items():
        ours = written(adata, slot)
        for name in wanted:
            stored = getattr(adata, slot)
            if name not in stored or name in ours or (slot == "uns" and _is_result(stored[name])):
                continue
            place = f"adata.{slot}[{name!r}]"
            remedy = f"Pass another key_added=..., or remove yours: del {place}."
            raise ValueError(unusable("Something that ptrag_sc did not write", place, "is not replaced", remedy))


def note_written(adata: AnnData | MuData, **names: Iterable[str]) -> None:
    """Write down the names in ``obs`` and ``obsm`` under which the package wrote."""
    noted = {slot: sorted(written(adata, slot) | set(wanted)) for slot, wanted in names.items()}
    adata.uns[WRITTEN_KEY] = {**adata.uns.get(WRITTEN_KEY, {}), **as_uns(noted)}


def as_uns(noted: Mapping[str, Iterable[str]]) -> dict[str, np.ndarray]:
    """Return names for each slot as arrays, which h5ad and zarr keep."""
    return {slot: np.array(list(names), dtype=object) for slot, names in noted.items()}


def _is_result(entry: object) -> bool:
    """Return whether an entry of ``uns`` has the form of a prediction, a diagnosis or a gene embedding."""
    if not isinstance(entry, Mapping):
        return False
    names = set(entry)
    is_prediction = isinstance(entry.get("params"), Mapping) and "model" in entry["params"]
    return is_prediction or names == DIAGNOSIS or EMBEDDING <= names <= {*EMBEDDING, "excluded"}
