"""Draw one small picture of every plot, for the API pages and the how-to pages: python docs/plots.py.

With names of functions below as arguments only these are called.
Plots of one condition show JAK2, held out of the real screen that comes with the package; plots of many conditions show
a simulated screen.
"""

import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import scvi
import torch
from PIL import Image

import ptrag_sc
from ptrag_sc import baselines, benchmark, pl, pp, tl

FOLDER = Path(__file__).parent / "_static" / "plots"
LABELS = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}


def save(name, figure):
    """Write a picture that is small enough for a page."""
    path = FOLDER / f"{name}.png"
    figure.savefig(path, dpi=80, bbox_inches="tight")
    with Image.open(path) as picture:
        few_colours = picture.convert("RGB").quantize(128)
    few_colours.save(path, optimize=True)


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
    save("embedding", pl.embedding(adata, predicted=virtual, n_max_cells=500, **one, return_fig=True))
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


def new_cell_type():
    """Draw how well a new cell type is predicted from its controls and from few perturbations measured in it."""
    adata = ptrag_sc.datasets.simulated(n_cells=8000, n_genes=300, n_perturbations=80, n_cell_types=4, seed=0)
    is_new = adata.obs["cell_type"] == "type_3"
    labels = adata.obs["perturbation"].astype(str)
    names = sorted(set(labels) - {LABELS["control"]})
    controls = adata[is_new & (labels == LABELS["control"])].copy()
    middle = controls.to_df().mean()
    observed = {name: adata[is_new & (labels == name)].to_df().mean() - middle for name in names}
    asked = names[40:]
    found = {}
    for n in (0, 5, 10, 20, 40):
        known = adata[~is_new].copy()
        ptrag_sc.PTRAG.setup_anndata(known, batch_key="batch", **LABELS)
        model = ptrag_sc.PTRAG(known)
        if n:
            model.extend_memory(adata[is_new & labels.isin([LABELS["control"], *names[:n]])].copy())
        effects = tl.predict_effects(controls, model, asked)
        shifts = effects.pivot(index="perturbation", columns="gene", values="shift")[adata.var_names]
        found[n] = [np.corrcoef(shifts.loc[name], observed[name])[0, 1] for name in asked]
    print({n: round(float(np.mean(r)), 3) for n, r in found.items()})
    figure, ax = plt.subplots(figsize=(5, 3.2), layout="constrained")
    middle = [np.mean(r) for r in found.values()]
    spread = [1.96 * np.std(r) / len(r) ** 0.5 for r in found.values()]
    ax.errorbar(list(found), middle, spread, marker="o", color="#0072B2", capsize=3)
    ax.set(
        xlabel="perturbations measured in the new cell type", ylabel="r of predicted and observed shift", ylim=(0, 1)
    )
    ax.set_title("40 perturbations not measured in it", loc="left", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    save("new_cell_type", figure)


PARTS = {  # of a model file, by the beginning of the tensors' names
    "weights of the network": "module.",
    "mean shift of each perturbation": "module.memory",
    "directions of the output": "module.generator.basis",
    "gene vectors": ("module.embeddings", "gene_embedding"),
}


def model_file():
    """Draw what a saved model of the real screen is made of."""
    adata = ptrag_sc.datasets.papalexi()
    ptrag_sc.PTRAG.setup_anndata(adata, batch_key="batch", **LABELS)
    with tempfile.TemporaryDirectory() as folder:
        ptrag_sc.PTRAG(adata).save(folder, overwrite=True)
        content = torch.load(Path(folder) / "model.pt", weights_only=True)
    sizes = dict.fromkeys(PARTS, 0)
    for name, tensor in content["tensors"].items():
        part = [title for title, start in PARTS.items() if name.startswith(start)][-1]
        sizes[part] += tensor.nbytes / 1024
    sizes["names, split, history (text)"] = len(content["json"]) / 1024
    print({name: round(size) for name, size in sizes.items()})
    figure, ax = plt.subplots(figsize=(6, 2.2), layout="constrained")
    ax.barh(list(sizes)[::-1], list(sizes.values())[::-1], color="#0072B2")
    ax.set(xlabel="kB in model.pt", xscale="log", xlim=(1, None))
    ax.spines[["top", "right"]].set_visible(False)
    save("model_file", figure)


FOLDER.mkdir(exist_ok=True)
for draw in (real, simulated, new_cell_type, model_file):
    if len(sys.argv) == 1 or draw.__name__ in sys.argv[1:]:
        draw()
