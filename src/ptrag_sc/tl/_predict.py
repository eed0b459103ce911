"""What would the perturbed cells of this AnnData look like, according to a model?"""

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

from ptrag_sc._constants import COUNTS_SUFFIX, DEFAULT_KEY, PREDICTED_SUFFIX, RETRIEVAL_SUFFIX, SETUP_KEY, SOURCE_SUFFIX
from ptrag_sc._validation import check_key, check_whole, unusable
from ptrag_sc.data import Predictor, Screen, components
from ptrag_sc.data._assembly import Prediction
from ptrag_sc.data._gene_names import MissingGenes
from ptrag_sc.data._pieces import answer, restricted
from ptrag_sc.data._predicted_labels import LEFT_OUT
from ptrag_sc.data._requests import Request, request_cells
from ptrag_sc.data._run import Counts, Run
from ptrag_sc.data._user_keys import check_free, note_written
from ptrag_sc.tl._chosen import chosen_rows
from ptrag_sc.tl._effects import effects_of
from ptrag_sc.tl._model import check_predictor


def predict(
    adata: AnnData,
    model: Predictor,
    *,
    perturbation: str | None = None,
    cells: object = None,
    key_added: str = DEFAULT_KEY,
    seed: int | None = None,
    counts: Counts = "auto",
    nonnegative: bool = False,
    missing_genes: MissingGenes = "error",
    copy: bool = False,
) -> AnnData | None:
    """Predict one cell for every cell and write the predictions into the AnnData.

    The prediction in row i is a draw from the predicted population of cell i's condition, generated from a control
    cell of the same cell type and batch (if the batch has no controls, of the same cell type). It is *not* the
    counterfactual of cell i. Control cells pass through the same model, but nothing is retrieved for them.

    Parameters
    ----------
    adata
        Cells with the columns that the model was set up with, controls of every cell type among them.
    model
        Trained :class:`ptrag_sc.PTRAG` or fitted baseline.
    perturbation
        None: every cell is predicted under its own label. A name: the *control* cells are predicted under that
        perturbation, and other rows are NaN.
    cells
        Which rows are written: None, all; else a mask, names of cells, or row numbers. The other rows are as those
        that were not predicted.
    key_added
        Where results are written. An earlier prediction under this name is replaced, anything else is refused.
    seed
        None: deterministic gates and a fixed draw of control cells. An integer samples both.
    counts
        As in :func:`perturb`.
    nonnegative
        Whether negative predicted expression is set to 0; cells with counts have none.
    missing_genes
        As in :func:`perturb`.
    copy
        Whether to write to a copy and return it.

    Returns
    -------
    AnnData or None
        The copy if ``copy`` is True. Written are ``.obsm[key_added]`` (cells x model genes, float32, on the scale of
        the registered expression; CSR beside ``.obsm[key_added + "_counts"]`` where counts are known, else dense),
        ``.obsm[key_added + "_retrieval"]`` (cells x candidates, CSR retrieval weights), ``.obs[key_added + "_source"]``
        (name of the control cell), ``.obs[key_added + "_predicted"]`` (False for a row that was not predicted: it
        stores nothing in a CSR matrix and is NaN in a dense one) and ``.uns[key_added]`` with ``params``, ``genes``,
        ``candidates``, ``effects`` (as :func:`perturb` writes them) and ``retrieval`` (long DataFrame, see
        :meth:`ptrag_sc.PTRAG.get_retrieval`). ``.uns["_ptrag_sc_written"]`` lists these names. :class:`ptrag_sc.PTRAG`
        also writes ``support``: what the prediction of each condition rests on and, if the training had validation
        conditions, its expected errors (estimated from the errors in ``support_calibration``).

    Raises
    ------
    KeyError
        If genes are missing, a perturbation has no gene embedding, or a name in ``cells`` does not occur.
    TypeError
        If several perturbations are named, ``cells`` holds anything else, or ``model`` is not a fitted model.
    ValueError
        If a cell type has no controls, labels or expression cannot be used, none of ``cells`` can be predicted, or
        something that is not an earlier prediction stands where results are written.

    Warnings
    --------
    Do not test virtual cells against control cells: any difference becomes significant with enough of them. Rank genes
    by their shift and read the interval (:doc:`/which_genes`).

    Notes
    -----
    Cell names decide which cells share a set: a subset of the cells can have other predictions, but another order of
    the same cells cannot. With ``cells`` the sets are those of all cells, so the rows that are written are bitwise
    those of a call without it. For this, all cells of the mini-batches that hold a chosen cell are generated: a few
    conditions take little time, cells of all conditions nearly as much as all cells. ``retrieval`` and ``support``
    then describe the conditions of the chosen cells, as means over the cells that were generated for them.

    Cells with counts are generated piece by piece and never stand in a dense matrix all at once.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=600, n_genes=60, n_perturbations=10, n_cell_types=2)
    >>> ptrag_sc.PTRAG.setup_anndata(
    ...     adata, perturbation_key="perturbation", control="non-targeting", cell_type_key="cell_type"
    ... )
    >>> ptrag_sc.tl.predict(adata, ptrag_sc.baselines.MeanShift(adata).fit(), key_added="mean_shift")
    >>> adata.obsm["mean_shift"].shape
    (600, 60)
    """
    _check_single(perturbation)
    check_predictor(model)
    check_key(key_added, "tl.predict", taken=(model.keys_.embedding_key, SETUP_KEY))
    if seed is not None:
        check_whole("seed", seed, "tl.predict")
    if copy:
        adata = adata.copy()
    beside = {
        "obs": [key_added + SOURCE_SUFFIX, key_added + PREDICTED_SUFFIX],
        "obsm": [key_added, key_added + COUNTS_SUFFIX, key_added + RETRIEVAL_SUFFIX],
        "uns": [key_added],
    }
    check_free(adata, **beside)
    chosen = chosen_rows(adata.obs_names, cells, "tl.predict")
    screen = model.read(adata, missing_genes=missing_genes)
    labels, assigned = _assign(screen, model, perturbation)
    request = request_cells(screen, assigned, set_size=model.set_size_, seed=seed)
    done = (request.source >= 0) & chosen  # (N,)
    run = model.run(adata, screen, labels, seed=seed, counts=counts, nonnegative=nonnegative)
    if cells is None:
        prediction = answer(run, request)
    else:
        prediction = _answer_some(run, request, done)
    # Rows without prediction have source -1, which reads the last name: where() makes them missing again.
    sources = pd.Series(screen.names[request.source], index=adata.obs_names).where(done)
    adata.obsm[key_added] = prediction.cells
    if prediction.counts is not None:
        adata.obsm[key_added + COUNTS_SUFFIX] = prediction.counts
    elif key_added + COUNTS_SUFFIX in adata.obsm:
        del adata.obsm[key_added + COUNTS_SUFFIX]  # of an earlier prediction
    adata.obsm[key_added + RETRIEVAL_SUFFIX] = prediction.weights
    adata.obs[key_added + SOURCE_SUFFIX] = pd.Categorical(sources)
    adata.obs[key_added + PREDICTED_SUFFIX] = done
    note_written(adata, obs=beside["obs"], obsm=beside["obsm"])
    params = {"perturbation": perturbation, "seed": seed, **run.form, "missing_genes": missing_genes}
    adata.uns[key_added] = model.describe(run.retrieved, params)
    perturbed = (request.query > 0) & done  # (N,)
    predicted = set(
        zip((request.query[perturbed] - 1).tolist(), screen.index.cell_type[perturbed].tolist(), strict=True)
    )
    effects = effects_of(
        model,
        run,
        sorted({t for _, t in predicted}),
        asked=lambda q, t: cells is None or (q, t) in predicted,
    )
    if effects is not None:
        adata.uns[key_added]["effects"] = effects
    sc.logging.info(
        f"predicted {done.sum()} of {adata.n_obs} cells\n    added .obsm[{key_added!r}], .uns[{key_added!r}]"
    )
    if copy:
        return adata
    return None


def _check_single(perturbation: object) -> None:
    if perturbation is not None and not isinstance(perturbation, str):
        problem = f"is a {type(perturbation).__name__}"
        remedy = "Pass one name, or use ptrag_sc.tl.perturb for several."
        raise TypeError(unusable("perturbation", "tl.predict", problem, remedy))


def _answer_some(run: Run, request: Request, done: np.ndarray) -> Prediction:
    """Answer a request for chosen cells (n,) only; refuse those of which none can be predicted."""
    if not done.any():
        problem = "are none that can be predicted"
        remedy = "Pass control cells if perturbation=... is given, else cells whose perturbation the model can predict."
        raise ValueError(unusable("The cells", "cells", problem, remedy))
    few = restricted(request, done, batch_size=run.predictor._prediction_batch_size)
    prediction = answer(run, few, done)
    run.retrieved.keep(request.query[done], run.screen.index.cell_type[done])
    return prediction


def _assign(screen: Screen, model: Predictor, perturbation: str | None) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the perturbations and the query (N,) of every cell: 0 control, q > 0 the q-th, -1 not predicted."""
    index = screen.index
    if perturbation is not None:
        return model.canonical_labels(perturbation), np.where(index.is_source, 1, -1)
    control = model.keys_.control
    excluded = set(model.excluded_)
    known = []
    for name in index.perturbations:
        # A combination is excluded together with any of its genes.
        if name != control and excluded.isdisjoint(components(name, model.keys_.sep)):
            known.append(str(name))
    query = {name: q for q, name in enumerate(known, start=1)}
    query[control] = 0
    of_code = np.array([query.get(name, -1) for name in index.perturbations])  # (n_perturbations,)
    n_left_out = int((of_code < 0).sum())
    if n_left_out:
        sc.logging.warning(f"{n_left_out} perturbations have no prediction, because a gene {LEFT_OUT}")
    return tuple(known), of_code[index.perturbation]
