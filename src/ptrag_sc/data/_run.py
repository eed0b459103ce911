"""How is one call of a predictor answered: in memory, or piece by piece into a file?"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi.utils import track

from ptrag_sc._constants import DEFAULT_KEY, RETRIEVAL_SUFFIX, SOURCE_SUFFIX, WRITTEN_KEY
from ptrag_sc._validation import absent
from ptrag_sc.data._assembly import PredictedSets, Prediction, assemble, not_finite, population_anndata
from ptrag_sc.data._counts import CountsUnknown
from ptrag_sc.data._dataset import BATCH, CellSetDataset
from ptrag_sc.data._drift import Drift, controls_at_end
from ptrag_sc.data._fields import Screen, ScreenKeys
from ptrag_sc.data._files import write_beside
from ptrag_sc.data._realised import Realisation
from ptrag_sc.data._requests import Population, Request
from ptrag_sc.data._retrieval_tally import RetrievalTally
from ptrag_sc.data._set_sampler import CellSets, SequentialSets
from ptrag_sc.data._stream import check_columns, storable, write_stream
from ptrag_sc.data._targets import OwnEffects, target_columns
from ptrag_sc.data._user_keys import as_uns

logger = logging.getLogger(__name__)

Counts: TypeAlias = Literal["auto"] | bool
CHUNK = 4096  # output rows in memory at a time when predictions go to a file


class Answering(Protocol):
    """The parts of a predictor that a run uses; see :class:`ptrag_sc.data.Predictor`."""

    keys_: ScreenKeys
    genes_: np.ndarray  # (G,)
    candidates_: np.ndarray  # (P,)
    own_effects_: OwnEffects | None
    drift_: Drift | None
    _prediction_batch_size: int

    def predict_batch(
        self, batch: BATCH, sets: CellSets, labels: tuple[str, ...], screen: Screen, *, state: Any, seed: int | None
    ) -> PredictedSets:
        """Return the predicted cells of one mini-batch of sets."""

    def describe(self, retrieved: RetrievalTally, params: dict[str, Any]) -> dict[str, Any]:
        """Return the content of ``.uns[key]`` that goes with a prediction."""


class Run:
    """One call of a predictor: the state that was prepared once, and a tally of what was retrieved so far.

    Parameters
    ----------
    predictor
        The predictor.
    screen
        Cells that predictions start from.
    labels
        Perturbations of the call.
    state
        The value that :meth:`Predictor.prepare` returned.
    seed
        Seed of sampled predictions; None is deterministic.
    counts
        Whether predictions become cells with counts; ``"auto"``: where the counts of the control cells are known.
    nonnegative
        Whether predictions that are not realised as counts are clipped at 0.

    Raises
    ------
    ValueError
        If ``counts`` is True and they are not known.
    """

    def __init__(
        self,
        predictor: Answering,
        screen: Screen,
        labels: tuple[str, ...],
        *,
        state: object,
        seed: int | None,
        counts: Counts = False,
        nonnegative: bool = False,
    ):
        self.predictor = predictor
        self.screen = screen
        self.labels = labels
        self.state = state
        self.seed = seed
        self.retrieved = RetrievalTally(labels, predictor.candidates_, screen.index.cell_types)
        self.nonnegative = nonnegative
        self.realisation = _realisation(screen, labels, seed, counts)

    @property
    def form(self) -> dict[str, bool]:
        """In which form predictions leave: the arguments as they were used."""
        return {"counts": self.realisation is not None, "nonnegative": self.nonnegative}

    def compute_once(self) -> None:
        """Compute all that requests share."""
        _ = self.drift, self._targets
        if self.predictor.own_effects_ is not None:
            _ = self._controls

    def answer(self, request: Request) -> Prediction:
        """Generate every set of a request and put the rows in order.

        Raises
        ------
        FloatingPointError
            If a predicted value is not finite.
        """
        shape = (len(request.source), len(self.predictor.genes_), len(self.predictor.candidates_))
        prediction = assemble(self._generate(request), shape=shape)
        self._add_drift(prediction.cells, request)
        self._change_targets(prediction.cells, request)
        self._check_finite(prediction.cells, request)
        if self.realisation is not None:
            cells, counts = self.realisation.realise(prediction.cells, request)
            return prediction._replace(cells=cells, counts=counts)
        if self.nonnegative:
            np.maximum(prediction.cells, 0, out=prediction.cells)  # in place: a second copy may not fit
        return prediction

    def _check_finite(self, cells: np.ndarray, request: Request) -> None:
        """Refuse predicted cells (N, G) of which some value is not finite."""
        for one in request.planned:
            if not np.isfinite(cells[one.output]).all():
                query = self.labels[one.query - 1] if one.query > 0 else self.predictor.keys_.control
                raise not_finite(query, str(self.screen.index.cell_types[one.cell_type]))

    def _add_drift(self, cells: np.ndarray, request: Request) -> None:
        """Move predicted cells (N, G) from the start to the end; control cells at the start stay as they are."""
        if self.drift is None:
            return
        stays = request.stays  # (N,)
        for one in request.planned:
            if stays[one.output].all():
                cells[one.output] = self.screen.reader.rows(one.source)
            else:
                cells[one.output] += self.drift[one.cell_type].astype(cells.dtype)

    @cached_property
    def drift(self) -> np.ndarray | None:
        """Mean change of control cells from start to end (T, G); None if no time is registered."""
        learned = self.predictor.drift_
        return None if learned is None else learned.of(self.screen.index.cell_types)

    def _change_targets(self, cells: np.ndarray, request: Request) -> None:
        """Add to predicted cells (N, G) what their perturbations do to their own targets."""
        if self.predictor.own_effects_ is None:
            return
        for one in request.planned:
            if one.query > 0:
                columns, effects = self.own_effects(one.query, one.cell_type)
                cells[np.ix_(one.output, columns)] += effects.astype(cells.dtype)

    def own_effects(self, query: int, cell_type: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the genes (columns) that a query targets, and what is added to its prediction there."""
        learned = self.predictor.own_effects_
        label, genes = self.labels[query - 1], self.predictor.genes_
        columns = self._targets[query - 1]
        if learned is None or not len(columns):
            return columns, np.zeros(len(columns))
        name = str(self.screen.index.cell_types[cell_type])
        return columns, learned.effects(label, name, self._controls[cell_type], columns, genes)

    @cached_property
    def _targets(self) -> list[np.ndarray]:
        return target_columns(self.labels, self.predictor.genes_, self.predictor.keys_.sep)

    @cached_property
    def _controls(self) -> np.ndarray:
        return controls_at_end(self.screen, self.predictor.drift_)  # (T, G)

    def _generate(self, request: Request) -> Iterator[tuple[CellSets, PredictedSets]]:
        dataset = CellSetDataset(self.screen.reader, with_target=False)
        for sets in SequentialSets(request.planned, batch_size=self.predictor._prediction_batch_size):
            predicted = self.predictor.predict_batch(
                dataset[sets], sets, self.labels, self.screen, state=self.state, seed=self.seed
            )
            self.retrieved.add(sets, predicted)
            yield sets, predicted


def sets_at_once(largest: int, batch_size: int) -> int:
    """Return how many sets, the largest of ``largest`` cells, are one piece of about ``CHUNK`` output rows.

    Pieces are whole mini-batches, so every set is generated together with the same sets as in memory.
    """
    return max(1, CHUNK // (largest * batch_size)) * batch_size


def _realisation(screen: Screen, labels: tuple[str, ...], seed: int | None, counts: Counts) -> Realisation | None:
    if counts not in ("auto", True, False):
        known = ("auto", True, False)
        raise ValueError(absent("counts=", counts, "the known values", known, "Pass one of them."))
    if not counts:  # False, of numpy too
        return None
    try:
        return Realisation(screen, labels, seed=seed)
    except CountsUnknown as error:
        if counts != "auto":
            raise
        # A registered layer says that counts were wanted.
        level = logging.INFO if screen.counts is None else logging.WARNING
        logger.log(level, "Predictions are smooth expression without counts. %s", error)
    return None


@dataclass(frozen=True)
class VirtualCells:
    """Planned populations, to be generated once: in memory, or piece by piece into a file.

    Parameters
    ----------
    run
        The call that generates them.
    population
        Their sets.
    obs
        Columns of every cell of the screen.
    var
        Genes (G) of the predictor.
    params
        Arguments of the call.
    further
        What else goes into ``.uns[key]``.
    """

    run: Run
    population: Population
    obs: pd.DataFrame
    var: pd.DataFrame
    params: dict[str, Any]
    further: dict[str, Any] = field(default_factory=dict)

    def in_memory(self) -> AnnData:
        """Return all cells."""
        whole = self.piece(self.population.whole())
        whole.uns.update(self.uns())
        return whole

    def write(self, path: Path, *, progress: bool, overwrite: bool) -> None:
        """Write all cells to a file ``.h5ad`` or ``.zarr``.

        About ``CHUNK`` cells are in memory at a time, or one mini-batch if that is more.
        """
        stored = self.storable(path)
        n_sets = sets_at_once(self.population.largest, self.run.predictor._prediction_batch_size)
        n_pieces = self.population.n_pieces(n_sets)
        requests = track(self.population.pieces(n_sets), "Predicting", not progress, total=n_pieces)
        pieces = map(stored.piece, requests)
        write_beside(
            path,
            lambda part: write_stream(part, pieces, n_obs=self.population.n_obs, uns=self.uns),
            overwrite=overwrite,
        )

    def storable(self, path: Path) -> "VirtualCells":
        """Return the same with columns that a file can hold, before the first cell is generated.

        Raises
        ------
        TypeError
            If a column of ``obs`` or ``var`` cannot be written.
        """
        stored = replace(self, obs=storable(self.obs), var=storable(self.var))
        check_columns(path, obs=stored.obs.iloc[self.population.rows], var=stored.var)
        return stored

    def piece(self, request: Request) -> AnnData:
        """Return the cells of a request."""
        prediction = self.run.answer(request)
        return population_anndata(
            prediction,
            request,
            self.obs,
            self.var,
            labels=self.run.labels,
            column=self.run.predictor.keys_.perturbation_key,
            key=DEFAULT_KEY,
        )

    def uns(self) -> dict[str, dict[str, Any]]:
        """Return what stands in ``.uns`` beside the cells that were generated so far."""
        names = {"obs": [DEFAULT_KEY + SOURCE_SUFFIX], "obsm": [DEFAULT_KEY + RETRIEVAL_SUFFIX]}
        found = {**self.run.predictor.describe(self.run.retrieved, self.params), **self.further}
        return {DEFAULT_KEY: found, WRITTEN_KEY: as_uns(names)}
