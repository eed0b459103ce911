"""Which method predicts held-out conditions best, over several splits, compared with floors and ceilings?"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import pandas as pd
from anndata import AnnData, concat
from scvi.utils import track

from ptrag_sc._constants import DEFAULT_KEY
from ptrag_sc._validation import check_whole, listed, unusable
from ptrag_sc.baselines import MeanShift, NoEffect
from ptrag_sc.benchmark._cache import cached_file, make_fingerprint, read_scores, write_scores
from ptrag_sc.benchmark._ceilings import interpolated_duplicate, split_half
from ptrag_sc.benchmark._evaluate import MetricChoice, chosen_metrics, evaluate
from ptrag_sc.benchmark._forms import AS_GIVEN, COUNTS, SMOOTH, by_form
from ptrag_sc.data import Predictor, ScreenKeys, condition_split, read_screen, read_split
from ptrag_sc.data._mudata import as_anndata
from ptrag_sc.data._user_keys import note_written
from ptrag_sc.metrics import Metric, Reference
from ptrag_sc.model import PTRAG

N_CELLS = 1000
N_REALISED = 500  # cells with counts: metrics of cells need no more, and means are smooth
FLOORS = {
    "no effect": lambda adata, seed: NoEffect(adata).fit(),
    "mean shift": lambda adata, seed: MeanShift(adata).fit(),
}
CEILINGS = {"split half": split_half, "interpolated duplicate": interpolated_duplicate}
Method = Callable[[AnnData, int], Predictor | AnnData]  # f(object, seed)


class _Fitted(Protocol):
    """What is asked of a fitted predictor."""

    @property
    def trained_on_(self) -> pd.DataFrame: ...

    def predict(
        self,
        adata: AnnData,
        *,
        perturbations: Iterable[str],
        cell_types: Iterable[str] | None = None,
        n_cells: int | None = None,
        counts: Literal["auto"] | bool = ...,
    ) -> AnnData: ...


class Task(NamedTuple):
    """One method on one split."""

    seed: int
    name: str
    kind: str  # "method", "floor" or "ceiling"
    call: Callable[[AnnData, int], Any]  # a Method; for a ceiling, a function that returns Halves


def compare(
    adata: AnnData,
    methods: Mapping[str, Method],
    *,
    split: Callable[[AnnData, int], None] | None = None,
    seeds: Iterable[int] = (0, 1, 2),
    metrics: MetricChoice = None,
    n_cells: int = N_CELLS,
    cache: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Score methods on the test conditions of several splits, with floors and ceilings in the same table.

    Every method gets the same object and the same split. Floors (no effect, mean shift) and ceilings (one half of the
    real cells predicts the other, :func:`split_half` and :func:`interpolated_duplicate`) are always included, because
    a score can be interpreted only between them. A ceiling can be scored only against the half that it does not use.
    Therefore methods and floors are scored twice: against that half (``truth`` is ``"half"``), so that all rows can be
    compared, and against all real cells (``"all"``), which are a less noisy truth. A duplicate is itself noisy: if
    conditions have few cells, a prediction without noise can score better than the duplicate.

    Parameters
    ----------
    adata
        Object registered with :meth:`ptrag_sc.PTRAG.setup_anndata`, with ``split_key``.
    methods
        For each name a function of (object, seed) that returns a fitted predictor, or an AnnData of predicted cells of
        the test conditions. It must learn only from the conditions labelled ``train`` (and ``val``).
    split
        Function of (object, seed) that writes the split column before each seed, such as a call of
        :func:`ptrag_sc.pp.split`. None: the split in the object is used for all seeds, which then differ only in what
        the methods draw.
    seeds
        One split and one initialisation each.
    metrics
        As in :func:`evaluate`. None: the default ones.
    n_cells
        Largest number of control cells per cell type from which populations are predicted; at most 500 of them become
        cells with counts.
    cache
        Folder in which the results of finished (seed, method) pairs are kept, so that a second call continues where
        the first one ended. Results of other data, splits, embeddings, metrics or ``n_cells`` are refused. A *method*
        is identified only by its name: if it has changed, use another name or another folder.
    progress
        Whether to show a progress bar.

    Returns
    -------
    DataFrame
        Columns ``method``, ``kind`` (``"method"``, ``"floor"``, ``"ceiling"``), ``seed``, ``truth``, ``perturbation``,
        ``cell_type``, ``metric``, ``value``, ``n_real``, ``n_predicted``, ``form``, ``direction`` and ``best`` (of the
        metric). ``form`` is that of the predicted cells: means are scored in the ``"smooth"`` form, without the noise
        of counts, cells and tests of genes as ``"counts"`` where these are known. An AnnData of yours is scored
        ``"as given"``.

    Raises
    ------
    KeyError
        If a metric is unknown.
    ValueError
        If there is no method, no split or no test condition, a name is that of a floor or ceiling, a predictor was
        trained on a test condition, or the cache has results of something else.

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
    keys = ScreenKeys.of(adata)
    adata = as_anndata(adata, keys)
    rows = chosen_metrics(metrics)
    seeds = list(seeds)
    _check(keys, methods, seeds)
    check_whole("n_cells", n_cells, "compare", minimum=2)
    calls = [("method", methods), ("floor", FLOORS), ("ceiling", CEILINGS)]
    # Seed by seed, so that the split is drawn and read once for all methods.
    tasks = [Task(s, name, kind, call) for s in seeds for kind, group in calls for name, call in group.items()]
    adata = adata.copy()  # split writes into it
    note_written(adata, obs=[str(keys.split_key)])  # and may replace the split of the user there
    parts = []
    ready = None
    for task in track(tasks, description="comparing", disable=not progress):
        if ready is None or ready.seed != task.seed:
            if split is not None:
                split(adata, task.seed)
            ready = _Ready(adata, keys, task.seed, rows, n_cells)
        parts.append(_cached(cache, ready, task))
    return pd.concat(parts, ignore_index=True)


class _Ready:
    """A split, its test conditions, and what predictions are compared with: fixed before any method is called."""

    def __init__(self, adata: AnnData, keys: ScreenKeys, seed: int, metrics: dict[str, Metric], n_cells: int):
        self.keys = keys
        self.seed = seed
        self.metrics = metrics
        self.n_cells = n_cells
        self._adata = adata.copy()
        screen = read_screen(adata, keys)
        split = read_split(adata, keys)  # (N,)
        assert split is not None  # compare refuses an object without split_key
        table = condition_split(screen.index, split, place=f"adata.obs[{keys.split_key!r}]")
        self.test = screen.index.named(table[table["split"] == "test"])[["perturbation", "cell_type"]]
        if self.test.empty:
            raise ValueError(unusable("The split", f"seed {seed}", "holds no test condition", "Label some 'test'."))
        control = screen.index.is_control  # (N,)
        sources = screen.index.cell_type[screen.index.is_source]
        self.n_controls = pd.Series(screen.index.cell_types[sources]).value_counts()
        self.fingerprint = make_fingerprint(screen, split, adata.uns.get(keys.embedding_key), metrics, n_cells)
        self._real_rows = (split == "test") | control  # (N,)

    @cached_property
    def reference(self) -> Reference:
        """What predictions are compared with."""
        return Reference.from_adata(self._adata)

    @cached_property
    def truths(self) -> dict[str, AnnData]:
        """Real cells: one half of each test condition, and all of them; each with all control cells."""
        return {"half": split_half(self._adata, self.seed).real, "all": self._adata[self._real_rows].copy()}

    def screen(self) -> AnnData:
        """Return a registered copy of the object for one method, so that its changes do not reach other methods."""
        copy = self._adata.copy()
        copy.uns.pop("_scvi_uuid", None)  # else this set-up would replace that of the user's object
        PTRAG.setup_anndata(copy, **replace(self.keys, modalities={}).arguments())
        return copy


def _scored(ready: _Ready, task: Task) -> pd.DataFrame:
    """Return the scores of one method on one split."""
    truths = ready.truths
    answer = task.call(ready.screen(), task.seed)
    if task.kind == "ceiling":
        forms = {AS_GIVEN: answer.predicted}
        truths = {"half": truths["half"]}  # the other cells are those that it predicts from
    elif isinstance(answer, AnnData):
        forms = {AS_GIVEN: answer}
    else:
        forms = _predicted(answer, ready, task)
    parts = []
    for truth, real in truths.items():
        for form, metrics in by_form(ready.metrics, forms).items():
            scores = evaluate(real, forms[form], reference=ready.reference, metrics=metrics)
            scores.insert(0, "truth", truth)
            scores["form"] = form
            parts.append(scores)
    scores = pd.concat(parts)
    # A method's AnnData may contain conditions that are not held out.
    scores = scores[_as_index(scores).isin(_as_index(ready.test))]
    for name in ("direction", "best"):
        scores[name] = [getattr(ready.metrics[metric], name) for metric in scores["metric"]]
    return scores


def _as_index(table: pd.DataFrame) -> pd.MultiIndex:
    return pd.MultiIndex.from_frame(table[["perturbation", "cell_type"]].astype(str))


def _predicted(fitted: _Fitted, ready: _Ready, task: Task) -> dict[str, AnnData]:
    """Return populations of the test conditions, after a check that the predictor was not trained on any.

    They are smooth and, where counts are known and a metric needs cells, also realised as counts.
    """
    leaked = _as_index(ready.test).intersection(_as_index(fitted.trained_on_))
    if len(leaked):
        shown = listed([f"{p} in {t}" for p, t in leaked])
        problem = f"was trained on test conditions: {shown}"
        remedy = "Fit it on the object and the split that it is given."
        raise ValueError(unusable(f"Method {task.name!r}", f"seed {task.seed}", problem, remedy))
    if not isinstance(fitted, Predictor):
        return {AS_GIVEN: _populations(fitted, ready, n_cells=ready.n_cells)}
    forms = {SMOOTH: _populations(fitted, ready, n_cells=ready.n_cells, counts=False)}
    if any(row.level in ("cells", "tests") for row in ready.metrics.values()):
        realised = _populations(fitted, ready, n_cells=N_REALISED)
        if realised.uns[DEFAULT_KEY]["params"]["counts"]:
            forms[COUNTS] = realised
    return forms


def _populations(fitted: _Fitted, ready: _Ready, *, n_cells: int, **form: Any) -> AnnData:
    screen = ready.screen()
    parts = []
    for cell_type, rows in ready.test.groupby("cell_type", observed=True):
        # None if there are no control cells: predict() then names the cell type in its error.
        n = min(n_cells, ready.n_cells, int(ready.n_controls.get(cell_type, 0))) or None
        wanted = rows["perturbation"].tolist()
        parts.append(fitted.predict(screen, perturbations=wanted, cell_types=[cell_type], n_cells=n, **form))
    if len(parts) == 1:
        return parts[0]
    return concat(parts, uns_merge="first")


def _cached(cache: str | Path | None, ready: _Ready, task: Task) -> pd.DataFrame:
    """Return the scores of one method on one split, from the cache if they are in it."""
    path = None
    if cache is not None:
        path = cached_file(cache, task.seed, task.name)
    if path is not None and path.exists():
        scores = read_scores(path, ready.fingerprint)
    else:
        scores = _scored(ready, task)
        if path is not None:
            write_scores(path, ready.fingerprint, scores)
    scores = scores.astype({"value": float})
    scores.insert(0, "method", task.name)
    scores.insert(1, "kind", task.kind)
    scores.insert(2, "seed", task.seed)
    return scores


def _check(keys: ScreenKeys, methods: Mapping[str, Method], seeds: list[int]) -> None:
    if keys.split_key is None:
        remedy = "Run ptrag_sc.pp.split, and setup_anndata with split_key=..."
        raise ValueError(unusable("The object", "compare", "was set up without split_key", remedy))
    if not methods or not seeds:
        raise ValueError(unusable("methods or seeds", "compare", "are empty", "Name at least one of each."))
    if taken := sorted(set(methods) & (set(FLOORS) | set(CEILINGS))):
        what = f"Method names {listed(taken)}"
        raise ValueError(unusable(what, "compare", "are names of floors or ceilings", "Choose other names."))
