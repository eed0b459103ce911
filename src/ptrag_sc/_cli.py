"""What does ``ptrag-sc`` do on the command line? The main job, end to end, on the simulated or the user's screen."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
import scvi
from anndata import AnnData

import ptrag_sc
from ptrag_sc import PTRAG, baselines, pl
from ptrag_sc._constants import EMBEDDING_KEY
from ptrag_sc._validation import absent, unusable
from ptrag_sc.benchmark._evaluate import chosen_metrics, evaluate
from ptrag_sc.benchmark._forms import COUNTS, SMOOTH, by_form
from ptrag_sc.data import Predictor, ScreenKeys, read_screen, read_split
from ptrag_sc.data._files import make_folder, write_beside
from ptrag_sc.data._requests import require_controls
from ptrag_sc.model._tables import read_embedding_table, usable_conditions
from ptrag_sc.retrieval import GeneEmbedding

logger = logging.getLogger("ptrag_sc")

RESULT = "predicted.h5ad"
SCORES = "scores.csv"
PICTURES = ("training", "effect", "embedding", "retrieval", "retrieval_matrix")
MAX_GENES = 5000
N_VARIABLE_GENES = 2000
CELLS_PER_POPULATION = 2000  # control cells behind each held-out population: fewer add sampling noise to its shift
DEFAULT_CANDIDATES = 32


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    for noisy in ("lightning.pytorch", "fontTools", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        demo(options)
    except (ValueError, KeyError, TypeError, OSError) as error:
        message = str(error)
        if isinstance(error, KeyError):
            message = error.args[0]  # str() of a KeyError adds quotes
        sys.stderr.write(f"ptrag-sc: {message}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ptrag-sc", description="Single-cell perturbation prediction.")
    parser.add_argument("--version", action="version", version=ptrag_sc.__version__)
    commands = parser.add_subparsers(required=True)
    demo = commands.add_parser(
        "demo",
        help="hold out conditions, train, predict, compare with baselines, draw",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--out", type=Path, default=Path("demo_output"), help="folder for results")
    demo.add_argument("--overwrite", action="store_true", help="replace existing results")
    demo.add_argument(
        "--adata", type=Path, help="h5ad with counts (or log1p of normalised counts) in X; none: simulated"
    )
    demo.add_argument("--perturbation-key", default="perturbation", help="obs column")
    demo.add_argument("--control", default="non-targeting", help="label of control cells")
    demo.add_argument("--cell-type-key", default="cell_type", help="obs column")
    demo.add_argument("--batch-key", help="obs column")
    demo.add_argument("--sep", default="+", help="separator of combinations")
    demo.add_argument("--gene-embedding", help="table file or 'genept'; none: uns['gene_embedding'] of the file")
    demo.add_argument("--size-factors", help="obs column to normalise by; none: row sums")
    demo.add_argument("--holdout", choices=("pair", "perturbation", "cell_type"), help="none: pair, or perturbation")
    demo.add_argument("--test-cell-type", help="cell type that conditions are held out of")
    demo.add_argument("--test-fraction", type=float, default=0.3, help="share of held-out test conditions")
    demo.add_argument("--val-fraction", type=float, default=0.1, help="share of validation conditions")
    demo.add_argument("--retrieval", choices=("gumbel", "attention", "none"), default="gumbel", help="stage 2")
    demo.add_argument("--n-candidates", type=int, default=DEFAULT_CANDIDATES, help="retrieved perturbations")
    demo.add_argument("--max-epochs", type=int, help="none: about 3,000 steps")
    demo.add_argument("--seed", type=int, default=0, help="seed of the split, the initialisation and the draws")
    demo.add_argument("--no-progress", action="store_true", help="no progress bar")
    return parser


def demo(options: argparse.Namespace) -> None:
    """Run the main job and write its results into ``options.out``."""
    _check_output(options)
    if options.adata is None:
        adata = ptrag_sc.datasets.simulated(seed=options.seed)
        batch_key = "batch"
    else:
        adata = read_counts(options)
        batch_key = options.batch_key
    keys = {"perturbation_key": options.perturbation_key, "control": options.control, "sep": options.sep}
    embed(adata, options, keys)
    hold_out(adata, options, keys)
    adata = select_genes(adata, options)  # after the split, because test cells must not choose the genes
    PTRAG.setup_anndata(adata, **keys, cell_type_key=options.cell_type_key, batch_key=batch_key, split_key="split")
    conditions = known_conditions(adata)
    model = fit(adata, options, conditions)
    tested = conditions[conditions["split"] == "test"]
    table = score(adata, tested, {"PTRAG": model, **fitted_baselines(adata)})
    sys.stdout.write(f"\nHeld-out test conditions, mean per cell type:\n{_summary(table)}\n\n")
    write_results(adata, model, tested, table, options.out)


def _check_output(options: argparse.Namespace) -> None:
    make_folder(options.out)
    names = [RESULT, SCORES, *(f"{picture}.png" for picture in PICTURES)]
    existing = [name for name in names if (options.out / name).exists()]
    if existing and not options.overwrite:
        where = str(options.out)
        raise FileExistsError(unusable(repr(existing[0]), where, "exists", "Pass --overwrite or another --out."))


def read_counts(options: argparse.Namespace) -> AnnData:
    """Return the user's screen as log1p of normalised counts, with the counts in a layer; the file is not changed."""
    if not options.adata.is_file():
        raise FileNotFoundError(unusable("--adata", str(options.adata), "was not found", "Pass an existing h5ad file."))
    adata = anndata.read_h5ad(options.adata)
    if adata.X is None:
        raise ValueError(unusable("Expression", f"X of {options.adata}", "is missing", "Put the counts into X."))
    values = adata.X.data if sp.issparse(adata.X) else np.asarray(adata.X, dtype=float)
    if not (values == np.rint(values)).all():
        if options.size_factors is not None:
            remedy = "Pass a file with counts in X, or leave --size-factors out."
            raise ValueError(unusable("Expression", f"X of {options.adata}", "does not hold counts", remedy))
        logger.info("X does not hold counts: taken as log1p of normalised counts.")
        return adata
    adata.layers["counts"] = adata.X.copy()
    if options.size_factors is None:
        sc.pp.normalize_total(adata, target_sum=1e4)
        logger.info("Counts are in layers['counts']; X is log1p of counts per 10,000 of each cell's row sum.")
    else:
        if options.size_factors not in adata.obs:
            raise KeyError(absent("Column", options.size_factors, "adata.obs", adata.obs, "Correct --size-factors."))
        factor = adata.obs[options.size_factors].to_numpy(dtype=float)
        if not (np.isfinite(factor) & (factor > 0)).all():
            what = f"Size factors obs[{options.size_factors!r}]"
            raise ValueError(unusable(what, str(options.adata), "are not all positive", "Correct --size-factors."))
        adata.X = sp.csr_matrix(sp.diags(1e4 / factor) @ sp.csr_matrix(adata.X), dtype=np.float32)
        logger.info("Counts are in layers['counts']; X is log1p of 1e4 * counts / obs['%s'].", options.size_factors)
    sc.pp.log1p(adata)
    return adata


def embed(adata: AnnData, options: argparse.Namespace, keys: dict[str, Any]) -> None:
    """Write the gene embedding of the perturbed genes; genes without one are left out, with a count."""
    source = options.gene_embedding
    origin = None
    if source is None:
        if EMBEDDING_KEY not in adata.uns:
            remedy = "Pass --gene-embedding FILE (or genept)."
            raise KeyError(absent("Gene embedding", EMBEDDING_KEY, "adata.uns", adata.uns, remedy))
        table = GeneEmbedding.from_uns(adata.uns[EMBEDDING_KEY], EMBEDDING_KEY)
        source = pd.DataFrame(table.vectors, index=table.genes)
        origin = table.source
    ptrag_sc.pp.gene_embedding(adata, source, **keys, missing="drop")
    if origin is not None:  # vectors that came with the file keep the name of their source
        adata.uns[EMBEDDING_KEY]["source"] = origin


def hold_out(adata: AnnData, options: argparse.Namespace, keys: dict[str, Any]) -> None:
    """Split by condition and log how many conditions each part has."""
    holdout: Literal["pair", "perturbation", "cell_type"] = "pair"
    if options.holdout is not None:
        holdout = options.holdout
    elif options.cell_type_key in adata.obs and adata.obs[options.cell_type_key].nunique() == 1:
        holdout = "perturbation"  # with one cell type, a held-out pair is a held-out perturbation
    ptrag_sc.pp.split(
        adata,
        **keys,
        cell_type_key=options.cell_type_key,
        holdout=holdout,
        test_cell_type=options.test_cell_type,
        test_fraction=options.test_fraction,
        val_fraction=options.val_fraction,
        seed=options.seed,
    )
    perturbed = adata.obs[adata.obs[options.perturbation_key].astype(str) != options.control]
    conditions = perturbed.drop_duplicates([options.perturbation_key, options.cell_type_key])["split"].value_counts()
    counts = ", ".join(f"{conditions[name]} {name}" for name in ("train", "val", "test"))
    logger.info("Held out by %s: %s conditions of %d cells.", holdout, counts, adata.n_obs)


def select_genes(adata: AnnData, options: argparse.Namespace) -> AnnData:
    """Keep the 2,000 most variable genes of training cells and controls, if there are more than 5,000 genes."""
    if adata.n_vars <= MAX_GENES:
        return adata
    is_control = adata.obs[options.perturbation_key].astype(str) == options.control
    seen = adata[(is_control | (adata.obs["split"] == "train")).to_numpy()]
    variable = sc.pp.highly_variable_genes(seen, n_top_genes=N_VARIABLE_GENES, inplace=False)
    logger.info("%d of %d genes kept: highly variable in training cells and controls.", N_VARIABLE_GENES, adata.n_vars)
    return adata[:, variable["highly_variable"].to_numpy()].copy()


def known_conditions(adata: AnnData) -> pd.DataFrame:
    """Return the conditions that can be used for training and testing: names, ``n_cells`` and ``split``.

    Raises
    ------
    ValueError
        If a cell type has no controls, or nothing is left to test.
    """
    keys = ScreenKeys.of(adata)
    screen = read_screen(adata, keys)
    for cell_type in range(len(screen.index.cell_types)):
        require_controls(screen, cell_type)
    embedding = read_embedding_table(adata, keys)
    split = read_split(adata, keys)
    table = screen.index.named(usable_conditions(screen.index, embedding, split, keys=keys, seed=0))
    if not (table["split"] == "test").any():
        problem = "holds out no test condition with a gene embedding"
        raise ValueError(unusable("The split", "adata.obs['split']", problem, "Raise --test-fraction."))
    return table


def fit(adata: AnnData, options: argparse.Namespace, conditions: pd.DataFrame) -> PTRAG:
    """Train a model, with at most as many candidates as there are other training perturbations."""
    scvi.settings.seed = options.seed
    n_available = conditions.loc[conditions["split"] == "train", "perturbation"].nunique()
    n_candidates = min(options.n_candidates, max(1, n_available - 1))
    if n_candidates < options.n_candidates:
        logger.info("%d candidates in place of %d: there are no more.", n_candidates, options.n_candidates)
    model = PTRAG(adata, retrieval=options.retrieval, n_candidates=n_candidates)
    model.train(options.max_epochs, enable_progress_bar=not options.no_progress)
    logger.info("Trained for %d epochs.", len(model.history["train_loss"]))
    return model


def fitted_baselines(adata: AnnData) -> dict[str, Predictor]:
    """Return the baselines that are compared with the model."""
    return {name: getattr(baselines, name)(adata).fit() for name in ("NoEffect", "MeanShift", "NearestPerturbations")}


def score(adata: AnnData, tested: pd.DataFrame, predictors: dict[str, Predictor]) -> pd.DataFrame:
    """Return the scores of every predictor on the held-out test conditions, with a column ``method``."""
    reference = ptrag_sc.metrics.Reference.from_adata(adata)
    keys = ScreenKeys.of(adata)
    is_control = adata.obs[keys.perturbation_key].astype(str) == keys.control  # (N,)
    metrics = by_form(chosen_metrics(None), (SMOOTH, COUNTS))
    parts = []
    for (name, predictor), form in product(predictors.items(), metrics):
        for cell_type, rows in tested.groupby("cell_type"):
            of_type = adata.obs[keys.cell_type_key].astype(str) == cell_type
            predicted = predictor.predict(
                adata,
                perturbations=rows["perturbation"],
                cell_types=cell_type,
                n_cells=min(CELLS_PER_POPULATION, int((of_type & is_control).sum())),
                counts="auto" if form == COUNTS else False,
            )
            real = adata[(of_type & (adata.obs["split"] == "test")).to_numpy()]
            parts.append(evaluate(real, predicted, reference=reference, metrics=metrics[form]).assign(method=name))
    return pd.concat(parts, ignore_index=True)


def _summary(table: pd.DataFrame) -> str:
    wide = table.pivot_table(index=["cell_type", "method"], columns="metric", values="value", sort=False)
    return wide.round(3).to_string()


def write_results(adata: AnnData, model: PTRAG, tested: pd.DataFrame, table: pd.DataFrame, out: Path) -> None:
    """Predict every cell, and write the annotated AnnData, the scores and the pictures."""
    ptrag_sc.tl.predict(adata, model)
    ptrag_sc.tl.effect(adata)
    write_beside(out / SCORES, partial(table.to_csv, index=False))
    write_beside(out / RESULT, adata.write_h5ad)
    pictures = _pictures(adata, model, tested)
    for name, draw in pictures.items():
        figure = draw(show=False, return_fig=True)
        write_beside(out / f"{name}.png", partial(figure.savefig, dpi=150, bbox_inches="tight"))
    for name in set(PICTURES) - set(pictures):  # an earlier run may have written it
        (out / f"{name}.png").unlink(missing_ok=True)
    logger.info("Written to %s: %s, %s and %s.", out, RESULT, SCORES, ", ".join(f"{name}.png" for name in pictures))


def _pictures(adata: AnnData, model: PTRAG, tested: pd.DataFrame) -> dict[str, Callable[..., Any]]:
    """Return the plot function of each picture, for the held-out condition with the largest observed shift."""
    effect = adata.uns["ptrag"]["effect"]
    size = effect["conditions"].assign(size=np.linalg.norm(effect["observed"], axis=1))
    largest = tested[["perturbation", "cell_type"]].merge(size).nlargest(1, "size")
    perturbation, cell_type = largest[["perturbation", "cell_type"]].iloc[0]
    pictures: dict[str, Callable[..., Any]] = {
        "training": partial(pl.training, model),
        "effect": partial(pl.effect, adata, perturbation=perturbation, cell_type=cell_type),
        "embedding": partial(pl.embedding, adata, perturbation=perturbation, cell_type=cell_type),
    }
    if not adata.uns["ptrag"]["retrieval"].empty:
        pictures["retrieval"] = partial(pl.retrieval, adata, perturbation=perturbation)
        pictures["retrieval_matrix"] = partial(pl.retrieval_matrix, adata, cell_type=cell_type)
    return pictures
