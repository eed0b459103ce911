"""How is one call of a predictor answered: in memory, or piece by piece into a file?"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi.utils import track

from ptrag_sc._constants import DEFAULT_KEY
from ptrag_sc.data._assembly import PredictedSets, Prediction, assemble, population_anndata
from ptrag_sc.data._dataset import BATCH, CellSetDataset
from ptrag_sc.data._fields import Screen, ScreenKeys
from ptrag_sc.data._files import write_beside
from ptrag_sc.data._requests import Population, Request
from ptrag_sc.data._retrieval_tally import RetrievalTally
from ptrag_sc.data._set_sampler import CellSets, SequentialSets
from ptrag_sc.data._stream import check_columns, storable, write_stream

CHUNK = 4096  # output rows in memory at a time when predictions go to a file


class Answering(Protocol):
    """What a run needs of a predictor; see :class:`ptrag_sc.data.Predictor`."""

    keys_: ScreenKeys
    genes_: np.ndarray  # (G,)
    candidates_: np.ndarray  # (P,)
    _prediction_batch_size: int

    def predict_batch(
        self, batch: BATCH, sets: CellSets, labels: tuple[str, ...], screen: Screen, *, state: Any, seed: int | None
    ) -> PredictedSets:
        """Return the predicted cells of one mini-batch of sets."""

    def describe(self, retrieved: RetrievalTally, params: dict[str, Any]) -> dict[str, Any]:
        """Return what stands in ``.uns[key]`` beside a prediction."""


class Run:
    """One call of a predictor: what was prepared once, and the sums of what was retrieved so far.

    Parameters
    ----------
    predictor, screen, labels
        What answers, the cells that it starts from, and the perturbations.
    state
        What :meth:`Predictor.prepare` returned.
    seed
        None is deterministic.
    """

    def __init__(
        self, predictor: Answering, screen: Screen, labels: tuple[str, ...], *, state: object, seed: int | None
    ):
        self.predictor, self.screen, self.labels, self.state, self.seed = predictor, screen, labels, state, seed
        self.retrieved = RetrievalTally(labels, predictor.candidates_, screen.index.cell_types)

    def answer(self, request: Request) -> Prediction:
        """Generate every set of a request and put the rows in order."""
        shape = (len(request.source), len(self.predictor.genes_), len(self.predictor.candidates_))
        return assemble(self._generate(request), shape=shape)

    def _generate(self, request: Request) -> Iterator[tuple[CellSets, PredictedSets]]:
        dataset, predict_batch = CellSetDataset(self.screen.reader, with_target=False), self.predictor.predict_batch
        for sets in SequentialSets(request.planned, batch_size=self.predictor._prediction_batch_size):
            predicted = predict_batch(dataset[sets], sets, self.labels, self.screen, state=self.state, seed=self.seed)
            self.retrieved.add(sets, predicted)
            yield sets, predicted


@dataclass(frozen=True)
class VirtualCells:
    """Populations that are planned, and generated once: in memory, or piece by piece into a file.

    Parameters
    ----------
    run
        What generates them.
    population
        Their sets.
    obs
        Columns of every cell of the screen.
    var
        Genes (G) of the predictor.
    params
        Arguments of the call.
    """

    run: Run
    population: Population
    obs: pd.DataFrame
    var: pd.DataFrame
    params: dict

    def in_memory(self) -> AnnData:
        """Return all cells."""
        whole = self._piece(self.population.whole())
        whole.uns.update(self._uns())
        return whole

    def write(self, path: Path, *, progress: bool) -> None:
        """Write all cells to a file ``.h5ad`` or ``.zarr``, with about ``CHUNK`` of them in memory, or one mini-batch.

        Raises
        ------
        TypeError
            If a column of ``obs`` or ``var`` cannot be written.
        """
        stored = replace(self, obs=storable(self.obs), var=storable(self.var))
        check_columns(path, obs=stored.obs.iloc[self.population.rows], var=stored.var)
        # Pieces are whole mini-batches: every set is generated beside the same sets as in memory.
        batch_size = self.run.predictor._prediction_batch_size
        largest = max(len(rows) for _, _, rows in self.population.sets)
        n_sets = max(1, CHUNK // (largest * batch_size)) * batch_size
        n_pieces, requests = self.population.n_pieces(n_sets), self.population.pieces(n_sets)
        pieces = map(stored._piece, track(requests, "Predicting", not progress, total=n_pieces))
        write_beside(path, lambda part: write_stream(part, pieces, n_obs=self.population.n_obs, uns=self._uns))

    def _piece(self, request: Request) -> AnnData:
        prediction, keys = self.run.answer(request), self.run.predictor.keys_
        if self.params["nonnegative"]:
            np.maximum(prediction.cells, 0, out=prediction.cells)
        names = {"labels": self.run.labels, "column": keys.perturbation_key, "key": DEFAULT_KEY}
        return population_anndata(prediction, request, self.obs, self.var, **names)

    def _uns(self) -> dict:
        return {DEFAULT_KEY: self.run.predictor.describe(self.run.retrieved, self.params)}
