"""Draw what a design would have saved, and how large a screen must be: python docs/planned_experiments.py.

On a simulated screen, whose perturbations are measured in two cell types.
"""

from pathlib import Path

import ptrag_sc

FOLDER = Path(__file__).parent / "_static"
adata = ptrag_sc.datasets.simulated(n_cells=15_000, n_genes=400, n_perturbations=150, n_cell_types=2)
ptrag_sc.PTRAG.setup_anndata(
    adata, perturbation_key="perturbation", control="non-targeting", cell_type_key="cell_type", batch_key="batch"
)
model = ptrag_sc.baselines.NearestPerturbations(adata).fit()
figure = ptrag_sc.pl.design(adata, model, cell_type="type_0", n_repeats=20, return_fig=True)
figure.savefig(FOLDER / "next_experiment.png", dpi=130)
table = ptrag_sc.tl.power(adata, model, cell_type="type_0", n_cells=[10, 20, 40])
figure = ptrag_sc.pl.power(table, budget=2000, return_fig=True)
figure.savefig(FOLDER / "screen_size.png", dpi=130)
