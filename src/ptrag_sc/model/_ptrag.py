"""What does a user call? ``PTRAG``: register, train, predict, save."""

import math
from os import PathLike
from typing import Any, Literal

import torch
from anndata import AnnData
from mudata import MuData
from scvi import settings
from scvi.train import TrainRunner

from ptrag_sc._validation import absent, check_whole, unusable
from ptrag_sc.data import MATCHINGS, RandomSets, Screen, ScreenKeys, matching_weights
from ptrag_sc.data._datamodule import CellSetDataModule
from ptrag_sc.data._null_sets import WithNullSets
from ptrag_sc.model._epochs import run_training
from ptrag_sc.model._extension import GrowingMemory
from ptrag_sc.model._finite import StopNonFinite
from ptrag_sc.model._guided import guided_training
from ptrag_sc.model._module import PTRAGModule
from ptrag_sc.model._module_params import ModuleParams
from ptrag_sc.model._registration import RegisteredScreens
from ptrag_sc.model._resume import Resumable, SavedTraining, facts_of
from ptrag_sc.model._saving import SavedModel
from ptrag_sc.model._sets import training_sets
from ptrag_sc.model._signals import StopSignals
from ptrag_sc.model._support import calibrate_support
from ptrag_sc.model._tables import TrainingTables, training_tables
from ptrag_sc.model._trainer import (
    add_early_stopping,
    check_interval,
    check_precision,
    kept_settings,
    trainer_arguments,
)
from ptrag_sc.model._trainer_arguments import check_trainer_arguments
from ptrag_sc.model._training_plan import PTRAGTrainingPlan

TRAINING_STEPS = 3000  # with max_epochs=None
SET_SIZE = 64
NULL_WEIGHT = 1.0  # with residual="hidden"
NOT_OF_MODULE = ("n_candidates", "control_matching")


class PTRAG(RegisteredScreens, SavedModel, GrowingMemory):
    """Perturbation prediction from retrieved perturbations (PT-RAG, arXiv:2603.07233).

    For a query perturbation the nearest training perturbations are retrieved by gene embedding, refined per cell by
    hard gates, and a set transformer generates perturbed cells from control cells and what was kept. If nothing is
    retrieved, as for the control, every cell is returned unchanged.

    Parameters
    ----------
    adata
        Object registered with :meth:`setup_anndata` or :meth:`setup_mudata`.
    retrieval
        ``"gumbel"``: candidates are selected per cell; ``"attention"``: all are kept, weighted by similarity;
        ``"none"``: the query's own embedding takes their place.
    memory
        ``"response"``: a candidate contributes the response that the experiment measured, and is retrieved by it too;
        None: it contributes its gene embedding, as in PT-RAG.
    n_candidates
        Retrieved perturbations, K; None: 64 with a memory, else 32, or all but one where there are fewer.
    n_hidden, n_layers, n_heads
        Size of the generator.
    dropout_rate
        Dropout of scorer and generator.
    candidate_dropout, memory_dropout
        Share of the retrieved candidates, and of the entries of their responses, withheld from each set in training.
    temperature
        Of the Gumbel-Softmax gates in the backward pass.
    sparsity_weight
        Penalty on the share of open gates (gumbel only), in units of the loss.
    loss
        Name of the set loss.
    control_matching
        Which control cells a condition is compared with, in the memory and in training: ``"batch"``, those of its
        batches; ``"auto"``, as many others of the cell type as lower the error (see :doc:`/method`), for screens with
        few control cells per batch.
    residual
        ``"anchored"``: control cells stay exactly as they are, whatever is learned; ``"hidden"``: what happens to them
        is learned too, see :doc:`/differentiating`.
    null_weight
        With ``residual="hidden"``, weight of the loss of control cells that are predicted without a perturbation, over
        all cell types with control cells, held-out ones included. None: 1.

    Raises
    ------
    KeyError
        If no gene embedding is registered or genes are missing from it.
    ValueError
        If an argument or the data cannot be used.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=600, n_genes=60, n_perturbations=10, n_cell_types=2)
    >>> ptrag_sc.PTRAG.setup_anndata(
    ...     adata, perturbation_key="perturbation", control="non-targeting", cell_type_key="cell_type"
    ... )
    >>> model = ptrag_sc.PTRAG(adata, n_candidates=4, n_hidden=16, n_layers=1)
    >>> model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    >>> model.predict(perturbations=[str(model.candidates_[0])]).n_vars
    60
    """

    _module_cls = PTRAGModule

    def __init__(
        self,
        adata: AnnData | MuData,
        *,
        retrieval: Literal["gumbel", "attention", "none"] = "gumbel",
        memory: Literal["response"] | None = "response",
        n_candidates: int | None = None,
        n_hidden: int = 128,
        n_layers: int = 4,
        n_heads: int = 4,
        dropout_rate: float = 0.1,
        candidate_dropout: float = 0.3,
        memory_dropout: float = 0.3,
        temperature: float = 0.5,
        sparsity_weight: float = 0.01,
        loss: str = "energy_distance",
        control_matching: Literal["batch", "auto"] = "batch",
        residual: Literal["anchored", "hidden"] = "anchored",
        null_weight: float | None = None,
    ):
        params = {name: value for name, value in locals().items() if name not in {"self", "adata", "__class__"}}
        if control_matching not in MATCHINGS:
            what = "control_matching=", control_matching, "the known values", MATCHINGS
            raise ValueError(absent(*what, f"Pass one of {MATCHINGS}."))
        if null_weight is None:
            params["null_weight"] = NULL_WEIGHT if residual == "hidden" else 0.0
        super().__init__(adata)
        keys = ScreenKeys.of(adata)
        tables, screen = training_tables(
            adata, keys, with_memory=bool(memory), control_matching=control_matching, seed=settings.seed or 0
        )
        if n_candidates is None:
            params["n_candidates"] = min(64 if memory else 32, max(1, len(tables.candidates) - 1))
        self._build(tables, keys, params)
        self.set_initial_weights(screen)

    def _build(self, tables: TrainingTables, keys: ScreenKeys, params: dict[str, Any]) -> None:
        """Set the state that both the constructor and :meth:`load` need."""
        n_available = len(tables.candidates)
        if not 1 <= params["n_candidates"] <= n_available:
            problem = f"is not between 1 and the {n_available} training perturbations"
            remedy = f"Pass n_candidates={max(1, n_available - 1)} or fewer."
            raise ValueError(unusable(f"n_candidates={params['n_candidates']}", "the constructor", problem, remedy))
        self.keys_, self.tables_, self.init_params_ = keys, tables, params
        self.genes_, self.candidates_, self.split_ = tables.genes, tables.candidates, tables.split
        self.own_effects_, self.effect_errors_, self.recoveries_ = tables.own_effects, None, None
        self.drift_, self.control_levels_ = tables.drift, tables.control_levels
        self.set_size_, self.excluded_, self.support_ = SET_SIZE, tables.embedding.excluded, None
        self.n_epochs_, self.kept_epoch_, self.epochs_ = 0, None, None
        vectors = tables.embedding.vectors_for(tables.candidates, keys.sep)
        own = ModuleParams(**{name: value for name, value in params.items() if name not in NOT_OF_MODULE})
        arrays = torch.as_tensor(vectors), torch.as_tensor(tables.basis)
        self.module = self._module_cls(*arrays, own, tables.memory)
        self._model_summary_string = (
            f"PTRAG model: {len(tables.genes)} genes, {len(tables.candidates)} candidate perturbations, "
            f"retrieval={params['retrieval']!r}, {params['n_candidates']} retrieved per query"
        )

    def train(
        self,
        max_epochs: int | None = None,
        *,
        set_size: int = SET_SIZE,
        batch_size: int = 16,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        strategy: str = "auto",
        early_stopping: bool = True,
        data_device: Literal["auto", "host", "accelerator"] = "auto",
        condition_sampling: Literal["uniform", "error"] = "uniform",
        plan_kwargs: dict[str, Any] | None = None,
        resume: str | PathLike[str] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train on the conditions of the training split and keep the weights that do best on ``val``.

        Parameters
        ----------
        max_epochs
            Passes over the training conditions; None means about 3,000 steps.
        set_size
            Cells in a set, S; predictions use the same.
        batch_size
            Sets in a step, B.
        accelerator, devices, strategy
            As in :class:`lightning.pytorch.Trainer`.
        early_stopping
            Stop when ``validation_loss`` no longer falls.
        data_device
            Where the expression matrix lives during training: ``"host"``, ``"accelerator"``, or ``"auto"``: on a CUDA
            device if it takes less than half of the free memory there.
        condition_sampling
            ``"uniform"``: an epoch visits each training condition once. ``"error"``: after a tenth of the epochs it
            visits those more often whose held-out cells are predicted worse, see :doc:`/method`; for this, a fifth of
            the cells of each training condition of ten or more is not trained on.
        plan_kwargs
            Of the training plan, for example ``{"lr": 1e-3}`` or ``{"compile": True}``.
        resume
            File that keeps the state of the training between epochs. If it exists, the training goes on from it, as if
            it had never ended; else it begins, and writes it. See :doc:`/long_trainings`.
        **trainer_kwargs
            Of :class:`scvi.train.Trainer`, for example ``precision="bf16-mixed"``.

        Raises
        ------
        FloatingPointError
            If a loss or a gradient is not finite.
        KeyboardInterrupt
            After Ctrl-C.
        RuntimeError
            If a training of this model is running.
        SystemExit
            After SIGTERM, with status 143.
        TypeError
            If the trainer does not know an argument; those of the training plan go into ``plan_kwargs``.
        ValueError
            If the registered object holds none of the training conditions, if ``data_device``,
            ``condition_sampling`` or an argument of the trainer cannot be used, or if the file of ``resume`` is of
            another training.

        Notes
        -----
        Whatever ends a training after its first step, an exception of a callback too, the model has its best weights
        so far, their epoch, the history and the expected errors before the exception is raised. Dropout and gates draw
        from torch's global random numbers; nothing else outside the model is changed.
        """
        check_trainer_arguments(trainer_kwargs)
        self.check_idle("train")
        sizes = {"max_epochs": max_epochs, "set_size": set_size, "batch_size": batch_size}
        for name in [n for n, value in sizes.items() if value is not None]:
            check_whole(name, sizes[name], "train", minimum=1)
        saved = SavedTraining.of(resume, trainer_kwargs)
        # A further training draws other sets; one that goes on from a file draws those of then.
        seed = (settings.seed or 0) + self.n_epochs_ if saved is None else saved.seed
        screen = self.read(self.training_data())
        labels, train, val = training_sets(
            screen.index,
            self.split_,
            matching=matching_weights(screen.reader, screen.index, self.init_params_["control_matching"]),
            set_size=set_size,
            batch_size=batch_size,
            seed=seed,
        )
        if max_epochs is None:
            max_epochs = math.ceil(TRAINING_STEPS / len(train))
        train, measuring = guided_training(train, condition_sampling, max_epochs=max_epochs)
        sets: RandomSets | WithNullSets = train
        if self.init_params_["null_weight"] > 0:
            sets = WithNullSets(train)
        every = check_interval(len(train), max_epochs)
        guard = StopNonFinite(labels, [str(name) for name in screen.index.cell_types], every=every)
        arguments = trainer_arguments(
            max_epochs,
            n_steps=len(train),
            n_val=0 if val is None else len(val.query),
            share=float(self.module.recalled_share) if self.tables_.memory is not None else None,
            check_first=self.tables_.memory is not None or self.n_epochs_ > 0,
            early_stopping=early_stopping,
            given=trainer_kwargs,
            further=[guard, StopSignals(), *measuring],
        )
        sampling = {**sizes, "condition_sampling": condition_sampling}
        resumable = Resumable(saved, seed=seed, facts=facts_of(self.tables_, self.init_params_, sampling), path=resume)
        arguments = resumable.added_to(arguments)
        table = self.query_table(labels, None, view=self.view(screen), as_new=True)
        table = table._replace(targets=self.query_targets(labels))
        plan = PTRAGTrainingPlan(self.module, table=table, **(plan_kwargs or {}))
        drift = None if self.drift_ is None else self.drift_.of(screen.index.cell_types)  # (T, G)
        data = CellSetDataModule(screen.reader, sets, val, data_device=data_device, prepare=table.numbered, drift=drift)
        with kept_settings():
            runner = TrainRunner(
                self,
                plan,
                data,
                max_epochs=max_epochs,
                accelerator=accelerator,
                devices=devices,
                strategy=strategy,
                **arguments,
            )
            add_early_stopping(runner.trainer, arguments)
            check_precision(runner.trainer)
            run_training(self, runner, plan, set_size=int(set_size), finish=lambda: self._learn_errors(screen))

    def _learn_errors(self, screen: Screen) -> None:
        """Learn from the training data how wrong predictions may be."""
        self.support_ = calibrate_support(self, screen)
        self.learn_effect_errors()
