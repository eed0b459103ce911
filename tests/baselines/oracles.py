"""What do tests of several baselines share? Screens with a split, and slow versions of what is learned from them."""

import numpy as np

import ptrag_sc
from screens import KEYS, make_screen

HELD_OUT = {("G1", "RPE1"): "test", ("G0+G1", "RPE1"): "test", ("G5", "RPE1"): "val", ("G2", "K562"): "test"}
# Seen nowhere: the gene G7 and the combination G2+G3, whose genes are seen.
HELD_OUT_OF_THREE = (
    HELD_OUT
    | {("G6", "HepG2"): "val", ("G0", "K562"): "val", ("G0+G1", "HepG2"): "test", ("G5", "K562"): "test"}
    | {(gene, line): "test" for gene in ("G7", "G2+G3") for line in ("HepG2", "K562", "RPE1")}
)


def set_up(adata):
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem", split_key="split")
    return adata


def with_split(adata, held_out):
    labels = zip(adata.obs["gene"], adata.obs["line"], strict=True)
    adata.obs["split"] = [held_out.get(condition, "train") for condition in labels]
    return adata


def split_screen(change=None):
    """Two cell types."""
    adata = with_split(make_screen(), HELD_OUT)
    return set_up(adata if change is None else change(adata))


def three_lines(change=None):
    """Three cell types that differ in what perturbations do."""
    adata = make_screen(n_obs=900)
    rng = np.random.default_rng(1)
    line = rng.choice(["HepG2", "K562", "RPE1"], adata.n_obs)
    adata.obs["line"] = line
    x, genes = adata.X.toarray(), adata.obs["gene"].astype(str).to_numpy()
    for condition in sorted(set(zip(genes, line, strict=True))):
        if condition[0] != "ctl":
            x[(genes == condition[0]) & (line == condition[1])] += rng.gamma(1.0, 0.3, adata.n_vars)
    adata.X = x.astype(np.float32)
    adata = with_split(adata, HELD_OUT_OF_THREE)
    return set_up(adata if change is None else change(adata))


def rows(adata, **labels):
    return np.logical_and.reduce([(adata.obs[key] == value).to_numpy() for key, value in labels.items()])


def slow_shifts(adata, label="train"):
    """Batch-matched mean shift of every condition of one split, {(perturbation, cell type): (G,)}."""
    x = adata.X if isinstance(adata.X, np.ndarray) else adata.X.toarray()
    x, found = x.astype(float), {}
    lines, batches = sorted(set(adata.obs["line"])), sorted(set(adata.obs["gem"]))
    chosen = {(t, b): rows(adata, gene="ctl", line=t, gem=b) for t in lines for b in batches}
    control = {key: x[cells].mean(0) for key, cells in chosen.items() if cells.any()}
    for gene, line, split in sorted(set(zip(adata.obs["gene"], adata.obs["line"], adata.obs["split"], strict=True))):
        if gene == "ctl" or split != label:
            continue
        own = np.flatnonzero(rows(adata, gene=gene, line=line))
        found[gene, line] = np.mean([x[i] - control[line, adata.obs["gem"].iloc[i]] for i in own], axis=0)
    return found


def mean_of(shifts, line=None):
    """Mean shift of one cell type, or of all conditions."""
    return np.mean([s for (_, t), s in shifts.items() if line in (None, t)], axis=0)


def slow_responses(shifts, line):
    """Mean deviation of every perturbation in cell types other than ``line``, in 30 directions: {name: (R,)}."""
    deviation = {(p, t): s - mean_of(shifts, t) for (p, t), s in shifts.items()}
    axes = np.linalg.svd(np.stack(list(deviation.values())), full_matrices=False)[2][:30]
    names = sorted({p for p, t in deviation if t != line})
    return {p: axes @ np.mean([d for (q, t), d in deviation.items() if q == p and t != line], 0) for p in names}, axes


def slow_response(shifts, label, line):
    """Response of a perturbation, or of a combination that was not measured: the sum of its genes'."""
    found, _ = slow_responses(shifts, line)
    parts = [label] if label in found else label.split("+")
    return sum(found[part] for part in parts) if set(parts) <= set(found) else None


def unseen_line(adata, name="Jurkat"):
    """Controls of a cell type that was not in training."""
    new = adata[rows(adata, gene="ctl")].copy()
    new.obs["line"] = name
    return new


def predicted_shift(baseline, perturbation, cell_type, adata=None):
    """The shift that every control cell was given; it is the same one."""
    adata = baseline.adata if adata is None else adata
    predicted = baseline.predict(adata, perturbations=perturbation, cell_types=cell_type, counts=False)
    source = adata[predicted.obs["ptrag_source"]].X
    shift = predicted.X - (source if isinstance(source, np.ndarray) else source.toarray())
    np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=1e-5)
    return shift.mean(0)


def vector(adata, label):
    """Unit vector of a gene or combination."""
    table = adata.uns["gene_embedding"]
    row = dict(zip(table["genes"], table["vectors"].astype(float), strict=True))
    total = sum(row[gene] / np.linalg.norm(row[gene]) for gene in label.split("+"))
    return total / np.linalg.norm(total)
