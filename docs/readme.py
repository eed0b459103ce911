"""Draw the figure of the README, from the README's own model: python docs/readme.py.

The code of the README runs first, as it stands there.
"""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import ptrag_sc

HERE = Path(__file__).parent
GREY, BLUE, ORANGE = "#8C8C8C", "#0072B2", "#D55E00"


def result_of_the_readme():
    """Run the code of the README and return its names."""
    text = (HERE.parent / "README.md").read_text(encoding="utf-8")
    names = {}
    exec(re.search(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1], names)
    return names


def neighbours(ax, retrieved):
    """Draw the weights of what answered."""
    top = retrieved.nlargest(8, "weight").iloc[::-1]
    ax.barh(top["candidate"], top["weight"], color=GREY)
    ax.set(xlabel="weight in the prediction", title="1  Knock-outs that answer")


def shifts(ax, effects, observed):
    """Draw the genes that change."""
    top = effects[~effects["own"]].head(10).iloc[::-1]
    place = np.arange(len(top))
    ax.hlines(place, top["lower"], top["upper"], color=BLUE, alpha=0.35, lw=4)
    ax.plot(top["shift"], place, "o", color=BLUE, label="predicted, 90 % interval")
    ax.plot([observed[gene] for gene in top["gene"]], place, "D", color=ORANGE, ms=5, label="observed later")
    ax.axvline(0, color="0.7", lw=0.8)
    ax.set_yticks(place, top["gene"])
    ax.set(xlabel="change of mean log expression", title="3  Genes that change")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.98, 1), handletextpad=0.2)


names = result_of_the_readme()
adata, model, effects = names["adata"], names["model"], names["effects"]
virtual = ptrag_sc.tl.perturb(adata, model, "JAK2", n_cells=300)
labels = adata.obs["perturbation"]
mean = {name: np.asarray(adata[labels == name].X.mean(0)).ravel() for name in ("JAK2", "non-targeting")}
observed = dict(zip(adata.var_names, mean["JAK2"] - mean["non-targeting"], strict=True))
r = np.corrcoef([observed[gene] for gene in effects["gene"]], effects["shift"])[0, 1]

plt.rcParams.update({"font.size": 9, "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left"})
figure, axes = plt.subplots(1, 3, figsize=(13, 3.7), layout="constrained")
neighbours(axes[0], virtual.uns["ptrag"]["retrieval"])
ptrag_sc.pl.embedding(adata, predicted=virtual, perturbation="JAK2", cell_type="THP-1", n_max_cells=300, ax=axes[1])
axes[1].set_title("2  Cells: control, predicted, observed")
shifts(axes[2], effects, observed)
for ax in axes:
    ax.spines[["top", "right"]].set_visible(False)
figure.suptitle(f"The JAK2 knock-out in THP-1 cells, hidden from the model (r = {r:.2f} over 299 genes)", fontsize=11)
figure.savefig(HERE / "_static" / "readme.png", dpi=110)
