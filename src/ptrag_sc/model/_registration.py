"""How does a screen become one that models can be built on?"""

from typing import Any

from anndata import AnnData
from mudata import MuData
from scvi.model.base import BaseModelClass

from ptrag_sc.data import ScreenKeys
from ptrag_sc.data._labels import control_names, label_text, read_sep
from ptrag_sc.data._setup import setup


class RegisteredScreens(BaseModelClass):
    """The part of :class:`ptrag_sc.PTRAG` that writes down which columns and layers of an object matter."""

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        *,
        perturbation_key: str,
        control: object,
        cell_type_key: str,
        batch_key: str | None = None,
        split_key: str | None = None,
        embedding_key: str = "gene_embedding",
        layer: str | None = None,
        sep: str | None = "+",
        counts_layer: str | None = None,
        time_key: str | None = None,
        start: str | None = None,
        gene_symbols: str | None = None,
    ) -> None:
        """Register the columns of a screen.

        Parameters
        ----------
        adata
            Cells x genes; ``X`` is log1p of normalised counts unless ``layer`` names another matrix.
        perturbation_key
            ``obs`` column of the perturbed gene or combination of genes.
        control
            Its label of unperturbed cells, or a list of labels that count as one control: the first is its name.
        cell_type_key
            ``obs`` column of the cell type or cell line.
        batch_key
            ``obs`` column of the experimental batch: control cells are matched within it. No model input.
        split_key
            ``obs`` column of ``train``, ``val``, ``test``; None holds out a tenth of the conditions for validation.
        embedding_key
            Key of ``uns`` written by :func:`ptrag_sc.pp.gene_embedding`.
        layer
            Layer to use in place of ``X``; outputs are on its scale.
        sep
            Separator of combinations; None: labels are never split.
        counts_layer
            Layer of the raw counts of ``X``, from which predicted cells get theirs. None: they are recovered from the
            expression where it is log1p of counts times one factor for each cell.
        time_key
            ``obs`` column of the time, where cells differentiate: predictions then start from control cells at the
            start, and perturbed cells are compared with control cells at the end (:doc:`/differentiating`). One end
            time; ``cell_type_key`` must be the same label at both times.
        start
            Its label of the start.
        gene_symbols
            Column of ``var`` with the names of the genes by which perturbations are labelled, where ``var_names`` are
            others such as Ensembl identifiers. Results name genes by it. None: ``var_names``.

        Raises
        ------
        KeyError
            If a column or layer does not exist.
        ValueError
            If the control label does not occur or is joined to a gene, labels are missing, the split cuts a condition,
            the expression is no log1p of normalised counts, or perturbed cells are at the start.
        """
        arguments = cls._get_setup_method_args(**locals())
        setup(cls, adata, _keys(arguments["setup_args"]), arguments)

    @classmethod
    def setup_mudata(
        cls,
        mdata: MuData,
        *,
        perturbation_key: str,
        control: object,
        cell_type_key: str,
        batch_key: str | None = None,
        split_key: str | None = None,
        embedding_key: str = "gene_embedding",
        layer: str | None = None,
        sep: str | None = "+",
        counts_layer: str | None = None,
        time_key: str | None = None,
        start: str | None = None,
        gene_symbols: str | None = None,
        modalities: dict[str, str],
    ) -> None:
        """Register the columns of a screen in a MuData.

        Parameters
        ----------
        mdata
            The object.
        modalities
            Modality of each argument, at least ``{"layer": <modality of the RNA>}``; columns that are not named are
            looked up in ``mdata.obs``.

        Notes
        -----
        The other parameters, and the errors, are those of :meth:`setup_anndata`.
        """
        arguments = cls._get_setup_method_args(**locals())
        setup(cls, mdata, _keys(arguments["setup_args"]), arguments)


def _keys(arguments: dict[str, Any]) -> ScreenKeys:
    """Return the keys; labels that are numbers become the text that they have in ``obs``."""
    control, *further = control_names(arguments["control"])
    start = arguments["start"]
    labels = {
        "control": control,
        "further_controls": tuple(further),
        "sep": read_sep(arguments["sep"]),
        "start": None if start is None else label_text(start),
    }
    return ScreenKeys(**{**arguments, **labels})
