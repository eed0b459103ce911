"""Which columns and layers of an AnnData does the package use? Validated once, written down and registered."""

import logging
from typing import Any, Protocol

from mudata import MuData
from scvi.data import AnnDataManager

from ptrag_sc._constants import SETUP_KEY
from ptrag_sc._validation import absent, unusable
from ptrag_sc.data._conditions import condition_split
from ptrag_sc.data._counts import REMEDY, find_counts
from ptrag_sc.data._diagnose import design_warnings
from ptrag_sc.data._fields import AnnOrMuData, Screen, ScreenKeys, read_screen, read_split, scvi_fields
from ptrag_sc.data._gene_names import warn_of_targets
from ptrag_sc.data._labels import read_perturbations

logger = logging.getLogger(__name__)


class RegisteredModel(Protocol):
    """A model class of scvi-tools, which keeps the registry of each object that was set up for it."""

    def register_manager(self, manager: AnnDataManager) -> None:
        """Keep the registry of one object."""


def setup(
    model_class: RegisteredModel, adata: AnnOrMuData, keys: ScreenKeys, setup_method_args: dict[str, Any]
) -> None:
    """Validate an object once, write down its keys, and register it with scvi-tools.

    Raises
    ------
    KeyError, ValueError
        As :func:`read_screen` and :func:`read_split` do, for a view or an unknown split value, and for a layer of
        counts that does not exist or does not belong to the expression.
    """
    # Writing into a view would copy it, and the caller's variable would still be the view.
    if adata.is_view:
        raise ValueError(unusable("This object", "memory", "is a view of another", "Pass adata.copy()."))
    # All checks come before the first write, so a call that fails leaves the object unchanged.
    screen = read_screen(adata, keys)
    obs = keys.container(adata, "perturbation_key").obs
    read_perturbations(obs, keys.perturbation_key, control=keys.controls, sep=keys.sep)  # every label must occur
    _check_counts(screen, keys, adata)
    split = read_split(adata, keys)
    if split is not None:
        condition_split(screen.index, split, place=f"adata.obs[{keys.split_key!r}]")
    if bad := design_warnings(screen.index):
        logger.warning("%s. ptrag_sc.tl.diagnose(adata) has the details.", bad)
    labels = [str(label) for label in screen.index.perturbations if label != keys.control]
    warn_of_targets(keys.expression_holder(adata), labels, screen.genes, keys.sep)
    if keys.layer is not None and screen.values.are_counts:
        logger.warning("%s holds whole numbers: shifts will be differences of raw counts.", keys.expression_place)
    adata.uns[SETUP_KEY] = keys.to_uns()
    fields = scvi_fields(keys, mudata=isinstance(adata, MuData))
    manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
    manager.register_fields(adata)
    model_class.register_manager(manager)


def _check_counts(screen: Screen, keys: ScreenKeys, adata: AnnOrMuData) -> None:
    """Refuse a layer of counts that does not exist, or whose counts do not belong to the expression."""
    layer = keys.counts_layer
    if layer is None:
        return
    if screen.counts is None:
        layers = keys.expression_holder(adata).layers
        raise KeyError(absent("Layer", layer, "adata.layers", layers, "Pass counts_layer=<the layer of raw counts>."))
    if problem := find_counts(screen):
        raise ValueError(problem.replace(REMEDY, "Pass the layer of raw counts, or leave counts_layer=None."))
