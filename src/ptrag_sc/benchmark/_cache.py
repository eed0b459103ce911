"""How are the scores of one method on one split kept in a file?"""

import hashlib
import json
from pathlib import Path
from types import CodeType

import numpy as np
import pandas as pd

from ptrag_sc._validation import unusable
from ptrag_sc.data import Screen
from ptrag_sc.data._files import make_folder, write_beside
from ptrag_sc.metrics import Metric
from ptrag_sc.retrieval import GeneEmbedding

SCHEME = 2  # how predictions are made and scored: 2 scores means in the smooth form and cells as counts


def cached_file(folder: str | Path, seed: int, name: str) -> Path:
    """Return where the scores of a method are kept.

    A method's name becomes a file name that every file system accepts; a digest keeps names apart that would become
    equal.
    """
    plain = "".join(c if c.isalnum() else "_" for c in name)
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    return Path(folder) / f"seed{seed}-{plain}-{digest}.csv"


def write_scores(path: Path, fingerprint: str, scores: pd.DataFrame) -> None:
    """Write scores as CSV below a line with the fingerprint of what they belong to."""
    text = f"# {fingerprint}\n{scores.to_csv(index=False, na_rep='nan')}"

    def write(beside: Path) -> None:
        beside.write_text(text, encoding="utf-8")

    make_folder(path.parent)
    write_beside(path, write)


def read_scores(path: Path, fingerprint: str) -> pd.DataFrame:
    """Return the scores of a file.

    Raises
    ------
    ValueError
        If they belong to something else than the fingerprint.
    """
    with path.open(encoding="utf-8") as lines:
        found = lines.readline().strip()
    if found != f"# {fingerprint}":
        problem = "holds scores of other data, another split or other metrics"
        raise ValueError(unusable("The file", str(path), problem, "Remove it, or pass another cache=..."))
    texts = dict.fromkeys(("truth", "perturbation", "cell_type", "metric", "direction", "form"), str)
    missing = {"value": ["nan"], "best": ["nan"]}  # only in these columns: a gene may be called NA
    return pd.read_csv(path, skiprows=1, dtype=texts, keep_default_na=False, na_values=missing)


def make_fingerprint(
    screen: Screen, split: np.ndarray, embedding: object, metrics: dict[str, Metric], n_cells: int
) -> str:
    """Return a digest of everything but the method that scores depend on."""
    rows = {name: (row.level, row.space, list(row.reference), row.best, row.direction) for name, row in metrics.items()}
    digest = hashlib.sha256(json.dumps([SCHEME, n_cells, screen.genes.tolist(), rows], default=str).encode())
    for row in metrics.values():
        code = getattr(row.function, "__code__", None)
        if code is not None:  # a metric written in C has none
            digest.update(_code_text(code).encode())
    # The sum of every cell stands for its expression: a digest of all values would take too long.
    sums = [cells.sum(1, dtype=np.float64) for _, cells in screen.reader.chunks(np.arange(screen.reader.n_obs))]
    index = screen.index
    vectors = np.zeros(0)
    if embedding is not None:
        vectors = GeneEmbedding.from_uns(embedding, "gene_embedding").vectors  # (n, D)
    for array in (*sums, index.perturbation, index.cell_type, index.batch, vectors):
        digest.update(np.ascontiguousarray(array).tobytes())
    for names in (screen.names, split, index.perturbations, index.cell_types):
        digest.update("\n".join(map(str, names)).encode())
    return digest.hexdigest()[:16]


def _code_text(code: CodeType) -> str:
    """Return a function's code as text that is the same in every process: no address, no order of a set."""
    consts = []
    for const in code.co_consts:
        if isinstance(const, CodeType):
            consts.append(_code_text(const))
        elif isinstance(const, frozenset):
            consts.append(repr(sorted(map(repr, const))))
        else:
            consts.append(repr(const))
    return repr((code.co_code, consts, code.co_names))
