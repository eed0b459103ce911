"""How are the scores of one method on one split kept in a file?"""

import hashlib
from pathlib import Path

import pandas as pd

from ptrag_sc._validation import unusable
from ptrag_sc.data._files import make_folder, write_beside


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
    texts = dict.fromkeys(("truth", "perturbation", "cell_type", "metric", "direction"), str)
    missing = {"value": ["nan"], "best": ["nan"]}  # only in these columns: a gene may be called NA
    return pd.read_csv(path, skiprows=1, dtype=texts, keep_default_na=False, na_values=missing)
