"""What would the perturbed cells of this AnnData look like, according to a model?"""

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

from ptrag_sc._constants import DEFAULT_KEY, PREDICTED_SUFFIX, RETRIEVAL_SUFFIX, SETUP_KEY, SOURCE_SUFFIX
from ptrag_sc._validation import check_key, check_whole, unusable
from ptrag_sc.data import Predictor, Screen, components
from ptrag_sc.data._requests import request_cells
from ptrag_sc.tl._model import check_predictor


def predict(
    adata: AnnData,
    model: Predictor,
    *,
    perturbation: str | None = None,
    key_added: str = DEFAULT_KEY,
    seed: int | None = None,
    nonnegative: bool = False,
    copy: bool = False,
) -> AnnData | None:
    """Predict one cell for every cell and write it beside the observed ones.

    Row i of a perturbed cell is a draw from its condition's predicted population, generated from a control cell of
    the same cell type and batch (a batch without controls: of the same cell type). It is *not* the counterfactual of
    cell i. Control rows pass through the same model with nothing retrieved.

    Parameters
    ----------
    adata
        Cells with the columns that the model was set up with, controls of every cell type among them.
    model
        Trained :class:`ptrag_sc.PTRAG` or fitted baseline.
    perturbation
        None predicts every cell under its own label. A name predicts the *control* cells under that perturbation;
        other rows stay NaN.
    key_added
        Where results are written; an existing key is replaced.
    seed
        None: deterministic gates and a fixed draw of control cells. An integer samples both.
    nonnegative
        Whether negative predicted expression is set to 0.
    copy
        Whether to write to a copy and return it.

    Returns
    -------
    None, or the copy. Written are ``.obsm[key_added]`` (cells x model genes, float32, on the scale of the registered
    expression), ``.obsm[key_added + "_retrieval"]`` (cells x candidates, CSR retrieval weights),
    ``.obs[key_added + "_source"]`` (name of the control cell), ``.obs[key_added + "_predicted"]`` and
    ``.uns[key_added]`` with ``params``, ``genes``, ``candidates``, ``retrieval`` (long DataFrame, see
    :meth:`ptrag_sc.PTRAG.get_retrieval`) and of :class:`ptrag_sc.PTRAG` ``support``: what each condition rests on, and
    after a training with validation conditions its expected errors (from those in ``support_calibration``).
    Which cells share a set follows from cell names: a subset of the cells can
    give other predictions, another row order cannot.

    Raises
    ------
    KeyError
        If genes are missing, or a perturbation has no gene embedding.
    TypeError
        If several perturbations are named, or ``model`` is none.
    ValueError
        If a cell type has no controls, or labels or expression cannot be used.

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
    if perturbation is not None and not isinstance(perturbation, str):
        problem = f"is a {type(perturbation).__name__}"
        remedy = "Pass one name, or use ptrag_sc.tl.perturb for several."
        raise TypeError(unusable("perturbation", "tl.predict", problem, remedy))
    check_predictor(model)
    check_key(key_added, "tl.predict", taken=(model.keys_.embedding_key, SETUP_KEY))
    if seed is not None:
        check_whole("seed", seed, "tl.predict")
    adata = adata.copy() if copy else adata
    screen = model.read(adata)
    labels, assigned = _assign(screen, model, perturbation)
    request = request_cells(screen, assigned, set_size=model.set_size_, seed=seed)
    run = model.run(adata, screen, labels, seed=seed)
    prediction = run.answer(request)
    if nonnegative:
        np.maximum(prediction.cells, 0, out=prediction.cells)
    done = request.source >= 0
    sources = pd.Series(screen.names[request.source], index=adata.obs_names).where(done)
    adata.obsm[key_added] = prediction.cells
    adata.obsm[key_added + RETRIEVAL_SUFFIX] = prediction.weights
    adata.obs[key_added + SOURCE_SUFFIX] = pd.Categorical(sources)
    adata.obs[key_added + PREDICTED_SUFFIX] = done
    params = {"perturbation": perturbation, "seed": seed, "nonnegative": nonnegative}
    adata.uns[key_added] = model.describe(run.retrieved, params)
    sc.logging.info(
        f"predicted {done.sum()} of {adata.n_obs} cells\n    added .obsm[{key_added!r}], .uns[{key_added!r}]"
    )
    return adata if copy else None


def _assign(screen: Screen, model: Predictor, perturbation: str | None) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the perturbations and the query of every cell: 0 control, q > 0 the q-th, -1 not predicted."""
    index = screen.index
    if perturbation is not None:
        return model.canonical_labels(perturbation), np.where(index.is_control, 1, -1)
    excluded = set(model.excluded_)
    known = [
        p
        for p in index.perturbations
        if p != model.keys_.control and excluded.isdisjoint(components(p, model.keys_.sep))
    ]
    query = {name: q for q, name in enumerate(known, start=1)} | {model.keys_.control: 0}
    of_code = np.array([query.get(name, -1) for name in index.perturbations])
    n_left_out = int((of_code < 0).sum())
    if n_left_out:
        sc.logging.warning(
            f"{n_left_out} perturbations were excluded for want of a gene embedding: their rows stay NaN"
        )
    return tuple(str(name) for name in known), of_code[index.perturbation]
