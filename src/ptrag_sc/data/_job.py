"""What is sent to another process, so that it can generate and write a part of a population?"""

from collections.abc import Callable, Iterable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from ptrag_sc._validation import unusable
from ptrag_sc.data._fields import Screen
from ptrag_sc.data._predictor import Predictor
from ptrag_sc.data._reader import CellReader
from ptrag_sc.data._requests import Population
from ptrag_sc.data._retrieval_tally import RetrievalTally, SetSums
from ptrag_sc.data._run import VirtualCells, sets_at_once
from ptrag_sc.data._stream import write_stream

STOP = "stop"  # file in the folder of a job that is given up
MODEL = "model"  # folder in it
MOST_PIECES = 16  # in a slice, about 65,000 cells: what is done again if a process is killed
SLICES_PER_THREAD = 6  # at least, so that all threads are busy until the end

_loaded: dict[Path, Predictor] = {}  # by the folder of the job; one at most


class Stopped(RuntimeError):
    """The job was given up."""


class Slice(NamedTuple):
    """A part of the population that was written to a store of its own."""

    n_obs: int
    n_bytes: int
    retrieved: list[SetSums]  # of every set, in order


class SetsApart(RetrievalTally):
    """A tally that keeps the sums of every set by itself: numbers are added up in one order, by one process."""

    def __init__(self, tally: RetrievalTally):
        super().__init__(tally.labels, tally.candidates, tally.cell_types)
        self.found: list[SetSums] = []

    def merge(self, sums: SetSums) -> None:
        """Keep the sums of one set."""
        self.found.append(sums)


@dataclass(frozen=True)
class Job:
    """One population that several processes generate.

    Parameters
    ----------
    virtual
        The plan, without predictor, with the control cells that it uses and what is computed once from all of them.
    predictor
        Gives the predictor.
    folder
        Folder that all processes see; slices are written into it.
    n_sets
        Sets in a piece.
    n_pieces
        Pieces in a slice.
    release
        Version of the package.
    """

    virtual: VirtualCells
    predictor: Callable[[], Predictor]
    folder: Path
    n_sets: int
    n_pieces: int
    release: str

    @classmethod
    def of(cls, virtual: VirtualCells, folder: Path, n_threads: int) -> "Job":
        """Return the job of a population for ``n_threads`` threads of other processes."""
        predictor: Any = virtual.run.predictor
        n_sets = sets_at_once(virtual.population.largest, predictor._prediction_batch_size)
        n_pieces = virtual.population.n_pieces(n_sets) // (SLICES_PER_THREAD * max(1, n_threads))
        n_pieces = int(np.clip(n_pieces, 1, MOST_PIECES))
        (folder / MODEL).mkdir()
        portable = predictor.portable(folder / MODEL)
        return cls(_without_predictor(virtual), portable, folder, n_sets, n_pieces, version("ptrag_sc"))

    @property
    def n_slices(self) -> int:
        """Number of slices."""
        return -(-self.virtual.population.n_pieces(self.n_sets) // self.n_pieces)

    def store(self, number: int) -> Path:
        """Return the store of a slice."""
        return self.folder / f"{number}.zarr"

    def check(self) -> None:
        """Refuse to go on where that makes no sense.

        Raises
        ------
        FileNotFoundError
            If this process does not see the folder.
        RuntimeError
            If it has another version of the package, or the job was given up.
        """
        if self.release != version("ptrag_sc"):
            problem = f"is version {version('ptrag_sc')}, that of the caller is {self.release}"
            raise RuntimeError(unusable("ptrag_sc", "this worker", problem, "Install one version everywhere."))
        if not self.folder.is_dir():
            remedy = "Pass an out=... on a disk that all workers see under the same path."
            raise FileNotFoundError(unusable("The folder", str(self.folder), "is not seen by this worker", remedy))
        if (self.folder / STOP).exists():
            raise Stopped("The job was given up.")


def write_slice(job: Job, number: int) -> Slice:
    """Generate a slice and write it to a store of its own; a store that is there already is the same one."""
    job.check()
    virtual = job.virtual
    predictor = _predictor_of(job)
    run = copy(virtual.run)
    run.predictor, run.state = predictor, predictor.placed(run.state)
    retrieved = SetsApart(run.retrieved)
    run.retrieved = retrieved
    here = replace(virtual, run=run)
    n_most = virtual.population.n_pieces(job.n_sets)
    numbers = range(number * job.n_pieces, min((number + 1) * job.n_pieces, n_most))
    planned = list(virtual.population.pieces(job.n_sets, numbers))
    n_obs = sum(len(request.source) for request in planned)

    def pieces() -> Iterator[AnnData]:
        for request in planned:
            job.check()
            yield here.piece(request)

    part = job.folder / f"{number}.{uuid4().hex}.zarr"  # another process may do the same at the same time
    write_stream(part, pieces(), n_obs=n_obs, uns=dict, n_whole=virtual.population.n_obs)
    n_bytes = sum(file.stat().st_size for file in part.rglob("*") if file.is_file())
    try:
        part.rename(job.store(number))
    except OSError:
        if not job.store(number).is_dir():
            raise
    return Slice(n_obs, n_bytes, retrieved.found)


def _predictor_of(job: Job) -> Predictor:
    """Return the predictor of a job, which a process loads once."""
    found = _loaded.get(job.folder)
    if found is None:
        found = job.predictor()
        _loaded.clear()  # of an earlier job
        _loaded[job.folder] = found
    return found


def _without_predictor(virtual: VirtualCells) -> VirtualCells:
    """Return the plan with the control cells that perturbations are given, and nothing of the other cells."""
    run = copy(virtual.run)
    rows = virtual.population.rows  # (m,)
    run.compute_once()
    run.screen = _screen_of(run.screen, rows)
    if run.realisation is not None:
        run.realisation = run.realisation.of_rows(run.screen, rows, virtual.population.cell_types)
    predictor: Any = run.predictor
    run.state = predictor.placed(run.state, on_host=True)
    vars(run)["predictor"] = None
    run.retrieved = RetrievalTally(run.labels, predictor.candidates_, run.screen.index.cell_types)
    population = _population_of(virtual.population, rows)
    return replace(virtual, run=run, population=population, obs=virtual.obs.iloc[rows], further={})


def _screen_of(screen: Screen, rows: np.ndarray) -> Screen:
    """Return a screen in memory that holds some rows (m,), ascending, and no layer of counts."""
    index = screen.index
    start = None if index.start is None else index.start[rows]
    few = replace(
        index,
        perturbation=index.perturbation[rows],
        cell_type=index.cell_type[rows],
        batch=index.batch[rows],
        start=start,
    )
    return Screen(CellReader(_in_memory(screen.reader.chunks(rows))), few, screen.genes, screen.names[rows])


def _in_memory(chunks: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray | sp.csr_matrix:
    """Return rows as one matrix, CSR if that is smaller."""
    matrix = sp.vstack([sp.csr_matrix(cells) for _, cells in chunks], format="csr")
    if 2 * matrix.nnz > matrix.shape[0] * matrix.shape[1]:
        return matrix.toarray()
    return matrix


def _population_of(population: Population, rows: np.ndarray) -> Population:
    """Return a population that names control cells by their places among some rows (m,), ascending."""
    moved = {}  # perturbations with the same cells go on to share one list
    for sets in population.distinct:
        moved[id(sets)] = [(t, ordinal, np.searchsorted(rows, cells)) for t, ordinal, cells in sets]
    return Population([moved[id(sets)] for sets in population.sets])
