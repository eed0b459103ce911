"""Draw where errors of ten held-out perturbations come from, in the screen in the package: python docs/why_wrong.py.

It also prints what becomes of one of them if its cells stand in a replicate without control cells.
"""

from pathlib import Path

import ptrag_sc

LABELS = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}


def explained(adata):
    """Return the errors of all held-out perturbations."""
    ptrag_sc.PTRAG.setup_anndata(adata, **LABELS, batch_key="batch", split_key="split")
    model = ptrag_sc.PTRAG(adata)
    held_out = adata.obs.loc[adata.obs["split"] == "test", "perturbation"].unique()
    virtual = ptrag_sc.tl.perturb(adata, model, held_out)
    reference = ptrag_sc.metrics.Reference.from_adata(adata)
    return ptrag_sc.tl.explain_error(adata, virtual, reference=reference, model=model)


adata = ptrag_sc.datasets.papalexi()
ptrag_sc.pp.split(adata, **LABELS, holdout="perturbation", test_fraction=0.4, val_fraction=0.0, seed=0)
errors = explained(adata)
figure = ptrag_sc.pl.explain_error(errors, return_fig=True)
figure.savefig(Path(__file__).parent / "_static" / "why_wrong.png", dpi=130)

# CUL3 in one replicate only, from which the control cells are missing.
batch, perturbation = adata.obs["batch"], adata.obs["perturbation"]
print(batch.value_counts().to_dict())
last = batch.cat.categories[-1]
confounded = adata[~((perturbation == "CUL3") & (batch != last) | (perturbation == "non-targeting") & (batch == last))]
for name, table in (("as measured", errors), ("confounded", explained(confounded.copy()))):
    print(
        name,
        table[table["perturbation"] == "CUL3"][["cause", "squared_error", "total"]].round(3).to_string(index=False),
    )
