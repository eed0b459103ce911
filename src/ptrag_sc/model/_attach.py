"""How is data attached to a model that exists already?"""

from dataclasses import replace
from typing import Any, Literal, TypeAlias

from anndata import AnnData
from mudata import MuData
from scvi.model.base import BaseModelClass

from ptrag_sc._validation import unusable
from ptrag_sc.data import ScreenKeys
from ptrag_sc.data._fields import AnnOrMuData
from ptrag_sc.data._setup import setup

Data: TypeAlias = AnnOrMuData | Literal[False]  # False: a model without data


def check_data(adata: object) -> None:
    """Refuse anything but an object with cells, None (those saved with the model) and False (none).

    Raises
    ------
    TypeError
        If it is something else.
    """
    if adata is None or adata is False or isinstance(adata, AnnData | MuData):
        return
    remedy = "Pass an AnnData or MuData, None for the data saved with the model, or False for none."
    if isinstance(adata, str):
        remedy = f"Pass the object: anndata.read_h5ad({adata!r})."
    raise TypeError(unusable(f"adata={adata!r:.60}", "the request", "is no AnnData or MuData", remedy))


def attach(model: BaseModelClass, keys: ScreenKeys, adata: Data) -> None:
    """Register data with a rebuilt model, or give it an empty registry."""
    if adata is False:
        arguments = _setup_arguments(type(model), keys)
        BaseModelClass.__init__(model, registry={"field_registries": {}, **arguments})
        return
    register(type(model), keys, adata)
    BaseModelClass.__init__(model, adata)


def register(model_class: Any, keys: ScreenKeys, adata: AnnOrMuData) -> None:
    """Register data under the keys of a model, given its class."""
    if keys.split_key is not None and keys.split_key not in keys.container(adata, "split_key").obs:
        # The model knows the split of its conditions, so new data needs no column for it.
        keys = replace(keys, split_key=None)
    if keys.batch_key is not None and keys.batch_key not in keys.container(adata, "batch_key").obs:
        keys = replace(keys, batch_key=None)  # the model has no input for it
    setup(model_class, adata, keys, _setup_arguments(model_class, keys))


def _setup_arguments(model_class: Any, keys: ScreenKeys) -> dict[str, Any]:
    method = "setup_mudata" if keys.modalities else "setup_anndata"
    return {"model_name": model_class.__name__, "setup_method_name": method, "setup_args": keys.to_uns()}
