"""What do the functions that decide say of two screens that are too small for them?

Of each screen all perturbations are measured. The ranking asks for the observed effect of each of them in turn; power
asks how well a screen of twice the size would do. What is logged before a table appears is printed before it.
"""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from decisions_ranking import Truth, untrained
from evidence import KEYS, TASKS
from measure import table as markdown

import ptrag_sc
from ptrag_sc import PTRAG, baselines

SCREENS = {"Papalexi": "papalexi", "Norman K562": "norman"}


class Said(logging.Handler):
    """Keeps what the package warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def ranked(adata: AnnData, truth: Truth, model: ptrag_sc.data.Predictor) -> tuple[dict[str, object], list[str]]:
    """Return the recovery that a user is told, and what the function warned of."""
    line = str(truth.screen.index.cell_types[0])
    names = np.unique(truth.named["perturbation"].to_numpy(dtype=str))
    signatures = pd.DataFrame(truth.masked[truth.rows(names, line)].T, index=truth.screen.genes, columns=names)
    said = Said()
    logging.getLogger("ptrag_sc").addHandler(said)
    try:
        table = ptrag_sc.tl.rank_perturbations(adata, model, signatures, cell_type=line)
    finally:
        logging.getLogger("ptrag_sc").removeHandler(said)
    (found,) = table.attrs["recovery"]
    return {name: found[name] for name in ("n", "auroc", "top_5", "top_10", "correlation")}, said.texts


def small_table(out: Path) -> None:
    """Print what is said of each screen, and then the figures."""
    rows = []
    for title, task in SCREENS.items():
        adata = TASKS[task].load()
        truth = Truth(adata)
        PTRAG.setup_anndata(adata, **KEYS, batch_key="batch")
        models = {"KernelRidge": baselines.KernelRidge(adata).fit(), "PTRAG, untrained": untrained(adata, 0)}
        for name, model in models.items():
            found, said = ranked(adata, truth, model)
            print(f"{title}, {name}: {' | '.join(said) or 'no warning'}")
            rows.append({"screen": title, "model": name, **found})
        line = str(truth.screen.index.cell_types[0])
        said = Said()
        logging.getLogger("ptrag_sc").addHandler(said)
        power = ptrag_sc.tl.power(adata, models["KernelRidge"], cell_type=line)
        logging.getLogger("ptrag_sc").removeHandler(said)
        print(f"{title}, power: {' | '.join(said.texts) or 'no warning'}")
        print(power.round(3).to_string(index=False))
    means = pd.DataFrame(rows)
    means.to_csv(out / "small.csv", index=False)
    print(markdown(means.round(3).to_dict("records")))
