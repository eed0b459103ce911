"""What are the mean shifts of observed and of predicted cells, and how noisy are they?"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from ptrag_sc._constants import SOURCE_SUFFIX
from ptrag_sc._validation import listed, unusable
from ptrag_sc.data import CellReader, Screen, ScreenKeys, canonical_labels, read_labels
from ptrag_sc.data._gene_names import gene_names, why_unknown
from ptrag_sc.data._partners import without_partner
from ptrag_sc.data._reader import as_row_matrix

MAX_RATIO = 3  # of the largest predicted to the largest observed value, on one scale


class CellMean(NamedTuple):
    """Mean of some cells."""

    mean: np.ndarray  # (G,)
    square: np.ndarray  # (G,) its squared standard error; NaN where it cannot be known
    covariance: np.ndarray  # (G,) of the mean with that of the scores of the same cells; 0 without scores


class PredictedCells(NamedTuple):
    """Predicted cells, whose genes are those of a screen."""

    reader: CellReader
    labels: pd.DataFrame  # perturbation (canonical) and cell_type
    batch: np.ndarray  # (N,) code of the batch in the screen, -1 if unknown
    sources: np.ndarray | None  # (N,) rows of the control cells in the screen that they were generated from

    def conditions(self) -> dict[tuple[str, str], np.ndarray]:
        """Return the rows of every (perturbation, cell type)."""
        return self.labels.groupby(["perturbation", "cell_type"]).indices

    def shift(self, rows: np.ndarray, screen: Screen) -> CellMean:
        """Return the mean shift of some cells from their source cells; without these, their mean."""
        cells = self.reader.rows(rows).astype(np.float64)  # (n, G)
        if self.sources is not None:
            cells -= screen.reader.rows(self.sources[rows])
        found = mean_of_cells(cells, np.zeros(len(rows), dtype=np.int64))
        return found._replace(square=np.nan_to_num(found.square))  # of a single cell nothing is known


def mean_of_cells(cells: np.ndarray, batch: np.ndarray, scores: np.ndarray | None = None) -> CellMean:
    """Return the mean of cells (n, G) and its squared standard error, from the variance within batches (n,).

    Differences between batches are no noise of the mean: controls of the same batches are subtracted from it. Nothing
    is known if no batch has two cells. ``scores`` (n, G) are numbers whose mean may vary together with that of the
    cells.
    """
    codes, batch = np.unique(batch, return_inverse=True)
    n = np.bincount(batch)
    freedom = len(cells) - len(codes)
    mean = cells.mean(0)
    if not freedom:
        unknown = np.full(cells.shape[1], np.nan)
        return CellMean(mean, unknown, np.zeros_like(unknown))

    of_batch = sp.csr_matrix((np.ones(len(cells)), (batch, np.arange(len(cells)))))  # (batches, n)

    def centred(values: np.ndarray) -> np.ndarray:
        return values - (of_batch @ values / n[:, None])[batch]

    deviation = centred(cells)
    size = freedom * len(cells)
    square = np.einsum("ng,ng->g", deviation, deviation) / size
    covariance = np.zeros_like(square)
    if scores is not None:
        covariance = np.einsum("ng,ng->g", deviation, centred(scores)) / size
    return CellMean(mean, square, covariance)


def shared_genes(adata: AnnData, predicted: AnnData, genes: np.ndarray, column: str | None) -> np.ndarray:
    """Return the genes of a reference (G,) that both objects have; ``column`` of ``var`` names them.

    Raises
    ------
    ValueError
        If there is none, or gene names of the predicted cells are not unique.
    """
    own, others = (pd.Index(gene_names(one, column)) for one in (predicted, adata))
    if not own.is_unique:
        twice = listed(own[own.duplicated()].unique())
        remedy = "Call predicted.var_names_make_unique()."
        raise ValueError(unusable("Gene names", "predicted.var_names", f"are not unique ({twice})", remedy))
    shared = np.array([gene for gene in genes if gene in own and gene in others], dtype=str)
    if not len(shared):
        place, names = "predicted", own
        if not own.intersection(pd.Index(genes)).empty:
            place, names = "adata", others
        problem = f"share no gene with the reference (genes: {listed(names)}; reference: {listed(genes)})"
        why = why_unknown(genes, names)
        remedy = f"Name genes alike in all objects: {why}." if why else "Name genes alike in all objects."
        raise ValueError(unusable(f"The cells of {place}", f"{place}.var_names", problem, remedy))
    return shared


def read_predicted(predicted: AnnData, adata: AnnData, screen: Screen, keys: ScreenKeys, key: str) -> PredictedCells:
    """Read predicted cells, given the observed ones (``adata``, and the same as a screen).

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If there are no cells, or their values are not finite or on another scale than the observed ones.
    """
    if not predicted.n_obs or predicted.X is None:
        raise ValueError(unusable("The object", "predicted", "holds no cells in X", "Pass the predicted cells."))
    columns = pd.Index(gene_names(predicted, keys.gene_symbols)).get_indexer(screen.genes)
    reader = CellReader(as_row_matrix(predicted.X), columns)
    _check_scale(reader, screen)
    perturbation = read_labels(predicted.obs, keys.perturbation_key)
    labels = pd.DataFrame(
        {
            "perturbation": canonical_labels(perturbation, control=keys.controls, sep=keys.sep),
            "cell_type": read_labels(predicted.obs, keys.cell_type_key),
        }
    )
    batch = np.full(len(labels), -1)
    if keys.batch_key is not None and keys.batch_key in predicted.obs:
        types = screen.index.cell_types[screen.index.cell_type]
        known = pd.MultiIndex.from_arrays([types, read_labels(adata.obs, keys.batch_key)])  # (n,) of observed cells
        first = ~known.duplicated()
        wanted = pd.MultiIndex.from_arrays([labels["cell_type"], read_labels(predicted.obs, keys.batch_key)])
        place = known[first].get_indexer(wanted)  # (N,)
        pairs = [[f"{batch} of {t}" for t, batch in index.unique()] for index in (wanted, known)]
        without_partner("Batch", *pairs, place="the observed cells", result="Controls of its cells are not matched.")
        batch = np.where(place < 0, -1, screen.index.batch[first][place])
    sources = None
    if key + SOURCE_SUFFIX in predicted.obs:
        names = predicted.obs[key + SOURCE_SUFFIX].astype(str)
        sources = pd.Index(screen.names.astype(str)).get_indexer(names)
        if (sources < 0).any():
            problem = f"lacks {(sources < 0).sum()} of the control cells that predictions were generated from"
            raise ValueError(unusable("The object", "adata.obs_names", problem, "Pass the object given to tl.perturb."))
    return PredictedCells(reader, labels, batch, sources)


def _check_scale(reader: CellReader, screen: Screen) -> None:
    """Refuse predicted values that are not finite, or far larger than observed ones."""
    largest = 0.0
    for values in reader.values():
        if not np.isfinite(values).all():
            remedy = "Leave out cells that were not predicted."
            raise ValueError(unusable("Expression", "predicted.X", "holds NaN or infinite values", remedy))
        largest = max(largest, float(np.abs(values).max(initial=0.0)))
    observed = max(float(np.abs(values).max(initial=0.0)) for values in screen.reader.values())
    if largest > MAX_RATIO * observed:
        problem = f"reaches {largest:.4g}, observed cells reach {observed:.4g}: is it on another scale, such as counts?"
        remedy = "Put it on the scale of the registered expression, such as log1p of normalised counts."
        raise ValueError(unusable("Expression", "predicted.X", problem, remedy))
