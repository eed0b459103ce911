"""Draw one small picture of every plot, for the API pages and the how-to pages: python docs/plots.py.

Plots of one condition show JAK2, held out of the real screen that comes with the package; plots of many conditions show
a simulated screen.
"""

import sys
from pathlib import Path

import numpy as np
import scvi

import ptrag_sc
from ptrag_sc import baselines, benchmark, pl, pp, tl

FOLDER = Path(__file__).parent / "_static" / "plots"
LABELS = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}


def save(name, figure):
    """Write a picture that is small enough for a page."""
    figure.savefig(FOLDER / f"{name}.png", dpi=80, bbox_inches="tight")


def real():
    """Draw what is predicted for JAK2, and what was retrieved for it."""
    adata = ptrag_sc.datasets.papalexi()
    held_out = "JAK2", "CD86", "CAV1"
    adata.obs["split"] = np.where(adata.obs["perturbation"].isin(held_out), "test", "train")
    ptrag_sc.PTRAG.setup_anndata(adata, batch_key="batch", split_key="split", counts_layer="counts", **LABELS)
    model = ptrag_sc.PTRAG(adata)
    virtual = tl.perturb(adata, model, held_out, n_cells=400)
    one = {"perturbation": "JAK2", "cell_type": "THP-1"}
    tl.effect(adata, predicted=virtual)
    save("effect", pl.effect(virtual, **one, return_fig=True))
    save("embedding", pl.embedding(adata, predicted=virtual, **one, return_fig=True))
    save("predicted_effects", pl.predicted_effects(virtual, **one, return_fig=True))
    save("retrieval", pl.retrieval(virtual, perturbation="JAK2", n_top=8, return_fig=True))
    reference = ptrag_sc.metrics.Reference.from_adata(adata)
    errors = tl.explain_error(adata, virtual, reference=reference, model=model)
    save("explain_error", pl.explain_error(errors, return_fig=True))
    tl.diagnose(adata)
    save("diagnose", pl.diagnose(adata, return_fig=True))


def simulated():
    """Draw a training, scores, support, and what is decided with a screen."""
    adata = ptrag_sc.datasets.simulated(n_cells=6000, n_genes=300, n_perturbations=80, seed=0)
    pp.split(adata, holdout="pair", test_fraction=0.2, val_fraction=0.15, **LABELS)
    ptrag_sc.PTRAG.setup_anndata(adata, batch_key="batch", split_key="split", **LABELS)
    scvi.settings.seed = 0
    model = ptrag_sc.PTRAG(adata)
    model.train(60, enable_progress_bar=False)
    save("training", pl.training(model, return_fig=True))
    tested = adata.obs.loc[adata.obs["split"] == "test", "perturbation"].value_counts().index[:10].tolist()
    virtual = tl.perturb(adata, model, tested, n_cells=100)
    save("support", pl.support(virtual, return_fig=True))
    save("retrieval_matrix", pl.retrieval_matrix(virtual, cell_type="type_0", return_fig=True))
    methods = {
        "PTRAG": lambda adata, seed: model,
        "NearestPerturbations": lambda adata, seed: baselines.NearestPerturbations(adata).fit(),
        "Stacked": lambda adata, seed: baselines.Stacked(adata).fit(),
    }
    scores = benchmark.compare(adata, methods, seeds=(0,), progress=False)
    shown = ["pearson_delta", "pearson_delta_pert", "energy_distance"]
    save("benchmark", pl.benchmark(benchmark.summary(scores), metrics=shown, return_fig=True))
    ridge = baselines.KernelRidge(adata).fit()
    is_type = adata.obs["cell_type"] == "type_0"
    wanted = tuple(is_type & (adata.obs["perturbation"] == name) for name in (tested[0], "non-targeting"))
    ranked = tl.rank_perturbations(adata, ridge, wanted, cell_type="type_0")
    save("ranking", pl.ranking(ranked, return_fig=True))
    save("design", pl.design(adata, ridge, cell_type="type_0", n_repeats=10, return_fig=True))
    power = tl.power(adata, ridge, cell_type="type_0", n_cells=[5, 10, 20], n_repeats=5)
    save("power", pl.power(power, budget=800, return_fig=True))


FOLDER.mkdir(exist_ok=True)
for draw in (real, simulated):
    if len(sys.argv) == 1 or draw.__name__ in sys.argv[1:]:
        draw()
