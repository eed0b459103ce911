"""Which predicted condition does a name mean that a plot or a table is asked for?"""

from collections.abc import Iterable, Mapping
from typing import Any

from ptrag_sc._validation import unusable
from ptrag_sc.data._fields import ScreenKeys
from ptrag_sc.data._labels import canonical_labels, components, label_text

LEFT_OUT = "was left out of the gene embedding by missing='drop'"


def left_out(label: str, excluded: Iterable[object], sep: str | None) -> list[str]:
    """Return the genes of a perturbation that were left out of the gene embedding."""
    names = {str(gene) for gene in excluded}
    return [gene for gene in components(label, sep) if gene in names]


def predicted_label(entry: Mapping[str, Any], perturbation: object) -> str:
    """Return the canonical label of a perturbation, as predictions name it.

    Parameters
    ----------
    entry
        What stands in ``.uns[key]`` beside the predictions.
    perturbation
        Label in any form.

    Raises
    ------
    ValueError
        If one of its genes was left out of the gene embedding, so that it was not predicted.
    """
    params = entry.get("params", {})
    if "perturbation_key" not in params:
        return label_text(perturbation)
    keys = ScreenKeys.from_uns(params)
    label = str(canonical_labels([perturbation], control=keys.controls, sep=keys.sep)[0])
    if label != keys.control and (genes := left_out(label, entry.get("excluded", ()), keys.sep)):
        remedy = "Give it a vector with ptrag_sc.pp.gene_embedding(adata, aliases=...), and fit the model anew."
        raise ValueError(unusable(f"Gene {genes[0]!r}", "the predictions", LEFT_OUT, remedy))
    return label
