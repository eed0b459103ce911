"""Draw the predicted effects of JAK2, held out of the screen in the package: python docs/predicted_effects.py.

The model answers with its memory alone: with so few perturbations no trained weights are kept.
"""

from pathlib import Path

import ptrag_sc

adata = ptrag_sc.datasets.papalexi()
adata.obs["split"] = ["test" if name == "JAK2" else "train" for name in adata.obs["perturbation"]]
ptrag_sc.PTRAG.setup_anndata(
    adata,
    perturbation_key="perturbation",
    control="non-targeting",
    cell_type_key="cell_type",
    batch_key="batch",
    split_key="split",
)
model = ptrag_sc.PTRAG(adata)
virtual = ptrag_sc.tl.perturb(adata, model, "JAK2", n_cells=100)
figure = ptrag_sc.pl.predicted_effects(virtual, perturbation="JAK2", return_fig=True)
figure.savefig(Path(__file__).parent / "_static" / "predicted_effects.png", dpi=130)
