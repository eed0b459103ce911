"""How does a screen become one that models can be built on?"""

from pathlib import Path
from typing import Any, cast

import rich.pretty  # noqa: F401 (AnnDataManager uses it without importing it)
from anndata import AnnData
from mudata import MuData
from scvi.data import AnnDataManager
from scvi.model.base import BaseModelClass

from ptrag_sc._constants import MODEL_FILE
from ptrag_sc._validation import unusable
from ptrag_sc.data import ScreenKeys
from ptrag_sc.data._fields import AnnOrMuData
from ptrag_sc.data._files import StrPath
from ptrag_sc.data._labels import control_names, label_text, read_sep
from ptrag_sc.data._setup import setup
from ptrag_sc.model._attach import check_data, register
from ptrag_sc.model._io import read_model, saved_registry

NO_DATAMODULE = unusable(
    "A data module",
    "PTRAG",
    "yields cells, and not the cell sets of one condition with their control cells",
    "Write the screen with ptrag_sc.datasets.write_store(adata, 'screen.zarr', ...), and pass "
    "ptrag_sc.datasets.open_store('screen.zarr') to setup_anndata: training then reads from the disk.",
)


class RegisteredScreens(BaseModelClass):
    """The part of :class:`ptrag_sc.PTRAG` that writes down which columns and layers of an object matter."""

    keys_: ScreenKeys
    kept_epoch_: int | None

    @property
    def adata(self) -> AnnOrMuData | None:
        """Data of the model; None if it was loaded without. Other data can be assigned, as in :meth:`load`."""
        return cast("AnnOrMuData | None", self._adata)

    @adata.setter
    def adata(self, adata: AnnOrMuData) -> None:
        if adata is None or adata is False:
            problem = "is no data"
            raise TypeError(unusable(f"adata={adata!r}", "the model", problem, "Assign an AnnData or MuData."))
        check_data(adata)
        register(type(self), self.keys_, adata)
        self._adata = adata
        self._adata_manager = self._get_most_recent_anndata_manager(adata, required=True)
        self._register_manager_for_instance(self._adata_manager)
        self.registry_ = self._adata_manager.registry
        self.summary_stats = self._adata_manager.summary_stats

    @property
    def summary_string(self) -> str:
        """What the model is, and which weights it has."""
        text = str(super().summary_string)
        if not self.is_trained_:
            return text
        if self.kept_epoch_ is None:
            return f"{text}, weights as before training (no epoch was clearly better)"
        return f"{text}, weights of epoch {self.kept_epoch_}"

    @staticmethod
    def load_registry(dir_path: StrPath, prefix: str | None = None) -> dict[str, Any]:
        """Return what a saved model was set up with: ``model_name``, ``setup_method_name``, ``setup_args``.

        Parameters
        ----------
        dir_path, prefix
            As given to :meth:`save`.

        Returns
        -------
        dict
            The registry in the form of scvi-tools. ``field_registries`` is empty, because a saved model holds no data.

        Raises
        ------
        FileNotFoundError
            If no model was saved there.
        ValueError
            If the file is not a model.
        """
        return saved_registry(read_model(Path(dir_path) / f"{prefix or ''}{MODEL_FILE}").meta)

    @staticmethod
    def view_setup_args(dir_path: StrPath, prefix: str | None = None) -> None:
        """Print the arguments of the set-up of a saved model.

        Parameters
        ----------
        dir_path, prefix
            As given to :meth:`save`.
        """
        AnnDataManager.view_setup_method_args(RegisteredScreens.load_registry(dir_path, prefix))

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

    @classmethod
    def setup_datamodule(cls, datamodule: object) -> None:
        """Refuse a data module of scvi-tools, annbatch's too; :meth:`setup_anndata` trains from the disk.

        Parameters
        ----------
        datamodule
            Anything.

        Raises
        ------
        NotImplementedError
            Always.
        """
        raise NotImplementedError(NO_DATAMODULE)

    setup_annbatch = setup_datamodule


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
