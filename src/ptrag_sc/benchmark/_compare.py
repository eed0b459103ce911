"""Which method predicts held-out conditions best, over several splits, next to a floor and a ceiling?"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from types import CodeType
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData, concat
from scvi.utils import track

from ptrag_sc._validation import check_whole, listed, unusable
from ptrag_sc.baselines import MeanShift, NoEffect
from ptrag_sc.benchmark._ceilings import interpolated_duplicate, split_half
from ptrag_sc.benchmark._evaluate import chosen_metrics, evaluate
from ptrag_sc.data import Predictor, Screen, ScreenKeys, condition_split, read_screen, read_split
from ptrag_sc.data._files import make_folder, write_beside
from ptrag_sc.metrics import Metric, Reference
from ptrag_sc.model import PTRAG
from ptrag_sc.retrieval import GeneEmbedding

N_CELLS = 1000
FLOORS = {
    "no effect": lambda adata, seed: NoEffect(adata).fit(),
    "mean shift": lambda adata, seed: MeanShift(adata).fit(),
}
CEILINGS = {"split half": split_half, "interpolated duplicate": interpolated_duplicate}
Method = Callable[[AnnData, int], Predictor | AnnData]


class Task(NamedTuple):
    """One method on one split."""

    seed: int
    name: str
    kind: str  # "method", "floor" or "ceiling"
    call: Callable


def compare(
    adata: AnnData,
    methods: Mapping[str, Method],
    *,
    split: Callable[[AnnData, int], None] | None = None,
    seeds: Iterable[int] = (0, 1, 2),
    metrics: str | Iterable[str] | Mapping[str, Metric] | None = None,
    n_cells: int = N_CELLS,
    cache: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Score methods on the test conditions of several splits, with floors and ceilings in the same table.

    Every method sees the same object and the same split. Floors (no effect, mean shift) and ceilings (one half of the
    real cells predicts the other, :func:`split_half` and :func:`interpolated_duplicate`) are always there: a score
    says something only between them. A ceiling can be scored against the other half only. So methods and floors are
    scored twice: against that half (``truth`` is ``"half"``), where all rows can be compared, and against all real
    cells (``"all"``), where the truth is less noisy. A duplicate is noisy itself: a prediction without noise can pass
    it where conditions have few cells.

    Parameters
    ----------
    adata
        Object registered with :meth:`ptrag_sc.PTRAG.setup_anndata`, with ``split_key``.
    methods
        For each name a function of (object, seed) that returns a fitted predictor, or an AnnData of predicted cells of
        the test conditions. It must learn from the conditions labelled ``train`` (and ``val``) only.
    split
        Function of (object, seed) that writes the split column before each seed, such as a call of
        :func:`ptrag_sc.pp.split`; None keeps the split that is there and lets seeds change the methods only.
    seeds
        One split and one initialisation each.
    metrics
        As in :func:`evaluate`; None takes the default ones.
    n_cells
        Control cells per cell type from which populations are predicted, where there are that many.
    cache
        Folder in which finished (seed, method) pairs are kept: a second call goes on where the first one ended. It
        refuses results of other data, splits, embeddings, metrics or ``n_cells``. A *method* is known by its name only:
        give a changed one another name, or another folder.
    progress
        Whether to show a progress bar.

    Returns
    -------
    Columns ``method``, ``kind`` (``"method"``, ``"floor"``, ``"ceiling"``), ``seed``, ``truth``, ``perturbation``,
    ``cell_type``, ``metric``, ``value``, ``n_real``, ``n_predicted``, ``direction`` and ``best`` (of the metric).

    Raises
    ------
    KeyError
        If a metric is unknown.
    ValueError
        If there is no method, no split or no test condition, a name is taken by a floor or ceiling, a predictor saw a
        test condition in training, or the cache is of something else.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=900, n_genes=60, n_perturbations=10, n_cell_types=2)
    >>> keys = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "control": "non-targeting"}
    >>> draw = lambda adata, seed: ptrag_sc.pp.split(adata, **keys, test_fraction=0.3, val_fraction=0.1, seed=seed)
    >>> draw(adata, 0)
    >>> ptrag_sc.PTRAG.setup_anndata(adata, **keys, split_key="split")
    >>> neighbours = lambda adata, seed: ptrag_sc.baselines.NearestPerturbations(adata, n_neighbors=3).fit()
    >>> scores = compare(
    ...     adata, {"neighbours": neighbours}, split=draw, seeds=[0], metrics=["pearson_delta"], progress=False
    ... )
    >>> sorted(scores["method"].unique())
    ['interpolated duplicate', 'mean shift', 'neighbours', 'no effect', 'split half']
    """
    keys, seeds, rows = ScreenKeys.of(adata), list(seeds), chosen_metrics(metrics)
    _check(keys, methods, seeds)
    check_whole("n_cells", n_cells, "compare", minimum=2)
    calls = [("method", methods), ("floor", FLOORS), ("ceiling", CEILINGS)]
    tasks = [Task(s, name, kind, call) for s in seeds for kind, group in calls for name, call in group.items()]
    adata, parts, ready = adata.copy(), [], None
    for task in track(tasks, description="comparing", disable=not progress):
        if ready is None or ready.seed != task.seed:
            if split is not None:
                split(adata, task.seed)
            ready = _Ready(adata, keys, task.seed, rows, n_cells)
        parts.append(_cached(cache, ready, task))
    return pd.concat(parts, ignore_index=True)


class _Ready:
    """A split, what it holds out, and what predictions are compared with: fixed before any method is called."""

    def __init__(self, adata: AnnData, keys: ScreenKeys, seed: int, metrics: dict[str, Metric], n_cells: int):
        self.keys, self.seed, self.metrics, self.n_cells = keys, seed, metrics, n_cells
        self._adata = adata.copy()
        screen, split = read_screen(adata, keys), read_split(adata, keys)
        table = condition_split(screen.index, split, place=f"adata.obs[{keys.split_key!r}]")
        self.test = screen.index.named(table[table["split"] == "test"])[["perturbation", "cell_type"]]
        if self.test.empty:
            raise ValueError(unusable("The split", f"seed {seed}", "holds no test condition", "Label some 'test'."))
        control = screen.index.is_control
        self.n_controls = pd.Series(screen.index.cell_types[screen.index.cell_type[control]]).value_counts()
        self.fingerprint = _fingerprint(screen, split, adata.uns.get(keys.embedding_key), metrics, n_cells)
        self._real_rows = (split == "test") & ~control | control

    @cached_property
    def reference(self) -> Reference:
        """What predictions are compared with."""
        return Reference.from_adata(self._adata)

    @cached_property
    def truths(self) -> dict[str, AnnData]:
        """Real cells: one half of each test condition, and all of them; each with all control cells."""
        return {"half": split_half(self._adata, self.seed).real, "all": self._adata[self._real_rows].copy()}

    def screen(self) -> AnnData:
        """Return a copy of the object for one method, registered: whatever a method does to it, others never see it."""
        copy = self._adata.copy()
        PTRAG.setup_anndata(copy, **{name: value for name, value in self.keys.to_uns().items() if name != "modalities"})
        return copy


def _fingerprint(screen: Screen, split: np.ndarray, embedding: object, metrics: dict[str, Metric], n_cells: int) -> str:
    """Return a number of all that scores depend on beside the method."""
    rows = {name: (row.level, row.space, list(row.reference), row.best, row.direction) for name, row in metrics.items()}
    digest = hashlib.sha256(json.dumps([n_cells, screen.genes.tolist(), rows], default=str).encode())
    for row in metrics.values():
        code = getattr(row.function, "__code__", None)
        digest.update(b"" if code is None else _code_text(code).encode())
    sums = [cells.sum(1, dtype=np.float64) for _, cells in screen.reader.chunks(np.arange(screen.reader.n_obs))]
    index = screen.index
    vectors = np.zeros(0) if embedding is None else GeneEmbedding.from_uns(embedding, "gene_embedding").vectors
    for array in (*sums, index.perturbation, index.cell_type, index.batch, vectors):
        digest.update(np.ascontiguousarray(array).tobytes())
    for names in (screen.names, split, index.perturbations, index.cell_types):
        digest.update("\n".join(map(str, names)).encode())
    return digest.hexdigest()[:16]


def _code_text(code: CodeType) -> str:
    """Return what a function does, in words that are the same in every process: no address, no order of a set."""
    consts = []
    for const in code.co_consts:
        if isinstance(const, CodeType):
            consts.append(_code_text(const))
        else:
            consts.append(repr(sorted(map(repr, const)) if isinstance(const, frozenset) else const))
    return repr((code.co_code, consts, code.co_names))


def _scored(ready: _Ready, task: Task) -> pd.DataFrame:
    """Return the scores of one method on one split."""
    reference, real = ready.reference, ready.truths
    if task.kind == "ceiling":
        predicted, truths = task.call(ready.screen(), task.seed).predicted, ("half",)
    else:
        fitted, truths = task.call(ready.screen(), task.seed), tuple(real)
        predicted = fitted if isinstance(fitted, AnnData) else _predicted(fitted, ready, task)
    parts = []
    for truth in truths:
        scores = evaluate(real[truth], predicted, reference=reference, metrics=ready.metrics)
        scores.insert(0, "truth", truth)
        parts.append(scores)
    scores, held_out = pd.concat(parts), pd.MultiIndex.from_frame(ready.test.astype(str))
    scores = scores[pd.MultiIndex.from_frame(scores[["perturbation", "cell_type"]].astype(str)).isin(held_out)]
    for name in ("direction", "best"):
        scores[name] = [getattr(ready.metrics[metric], name) for metric in scores["metric"]]
    return scores


def _predicted(fitted: Predictor, ready: _Ready, task: Task) -> AnnData:
    seen = pd.MultiIndex.from_frame(fitted.trained_on_[["perturbation", "cell_type"]].astype(str))
    leaked = pd.MultiIndex.from_frame(ready.test.astype(str)).intersection(seen)
    if len(leaked):
        what, shown = f"Method {task.name!r}", listed([f"{p} in {t}" for p, t in leaked])
        remedy = "Fit it on the object and the split that it is given."
        raise ValueError(unusable(what, f"seed {task.seed}", f"was trained on test conditions: {shown}", remedy))
    parts, screen = [], ready.screen()
    for cell_type, rows in ready.test.groupby("cell_type", observed=True):
        n = min(ready.n_cells, int(ready.n_controls.get(cell_type, 0))) or None
        wanted = {"perturbations": rows["perturbation"].tolist(), "cell_types": [cell_type]}
        parts.append(fitted.predict(screen, **wanted, n_cells=n))
    return parts[0] if len(parts) == 1 else concat(parts)


def _cached(cache: str | Path | None, ready: _Ready, task: Task) -> pd.DataFrame:
    path = None if cache is None else Path(cache) / f"seed{task.seed}-{_file_name(task.name)}.csv"
    head = f"# {ready.fingerprint}"
    if path is not None and path.exists():
        with path.open(encoding="utf-8") as lines:
            found = lines.readline().strip()
        if found != head:
            problem = "holds scores of other data, another split or other metrics"
            raise ValueError(unusable("The file", str(path), problem, "Remove it, or pass another cache=..."))
        texts = dict.fromkeys(("truth", "perturbation", "cell_type", "metric", "direction"), str)
        missing = {"value": ["nan"], "best": ["nan"]}
        scores = pd.read_csv(path, skiprows=1, dtype=texts, keep_default_na=False, na_values=missing)
    else:
        scores = _scored(ready, task)
        if path is not None:
            make_folder(path.parent)
            text = f"{head}\n{scores.to_csv(index=False, na_rep='nan')}"
            write_beside(path, lambda beside: beside.write_text(text, encoding="utf-8"))
    scores = scores.astype({"value": float})
    scores.insert(0, "method", task.name)
    scores.insert(1, "kind", task.kind)
    scores.insert(2, "seed", task.seed)
    return scores


def _file_name(name: str) -> str:
    """Return a name that any file system takes; a digest keeps those apart that become equal."""
    plain = "".join(c if c.isalnum() else "_" for c in name)
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _check(keys: ScreenKeys, methods: Mapping[str, Method], seeds: list[int]) -> None:
    if keys.split_key is None:
        remedy = "Run ptrag_sc.pp.split, and setup_anndata with split_key=..."
        raise ValueError(unusable("The object", "compare", "was set up without split_key", remedy))
    if not methods or not seeds:
        raise ValueError(unusable("methods or seeds", "compare", "are empty", "Name at least one of each."))
    if taken := sorted(set(methods) & (set(FLOORS) | set(CEILINGS))):
        what = f"Method names {listed(taken)}"
        raise ValueError(unusable(what, "compare", "are names of floors or ceilings", "Choose other names."))
