"""Does a screen meet what models assume, in the shell?"""

import argparse
import logging
from functools import partial

import scanpy as sc

from ptrag_sc import pl, tl
from ptrag_sc._cli._preparation import registered
from ptrag_sc._cli._results import SETTINGS, check_folder, write_figure, write_settings, write_table
from ptrag_sc._cli._shell import say
from ptrag_sc.tl._diagnose import DIAGNOSE_KEY

logger = logging.getLogger(__name__)

TABLES = ("findings", "conditions", "groups")
PICTURE = "diagnose.png"


def diagnose(options: argparse.Namespace) -> None:
    """Print what a screen lacks, and write the tables if a folder is named."""
    if options.out is not None:
        check_folder(options.out, [*(f"{name}.csv" for name in TABLES), PICTURE], overwrite=options.overwrite)
    adata = registered(options, options.screen, split_key=None)
    verbosity = sc.settings.verbosity
    sc.settings.verbosity = "error"  # the findings are printed below
    try:
        tl.diagnose(adata, guide_key=options.guide_key, seed=options.seed)
    finally:
        sc.settings.verbosity = verbosity
    report = adata.uns[DIAGNOSE_KEY]
    lines = [f"{row.level:8}{row.check}: {row.message}" for row in report["findings"].itertuples()]
    say(options, "\n".join(lines))
    if options.out is None:
        return
    for name in TABLES:
        write_table(options.out / f"{name}.csv", report[name])
    write_figure(options.out / PICTURE, partial(pl.diagnose, adata))
    write_settings(options.out / SETTINGS, options, n_cells=adata.n_obs)
    logger.info("Written to %s: %s, %s.", options.out, ", ".join(f"{name}.csv" for name in TABLES), PICTURE)
