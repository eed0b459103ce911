"""Do the functions that turn predictions into decisions do what they promise, on the semi-real screen?

``python benchmarks/decisions.py --out FOLDER --table ranking`` prints one table and writes it into FOLDER. It can be
interrupted: what is finished is kept there, one file per split. The screen is read from the folder that the environment
variable ``PTRAG_SC_TEST_DATA`` names.
"""

import argparse
import logging
import warnings
from pathlib import Path

import torch
from decisions_ranking import NAMES, ranking_table
from decisions_small import small_table

TABLES = {"ranking": ranking_table, "small": small_table}


def main() -> None:
    """Make the table that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of results; what is there is not run again")
    parser.add_argument("--table", choices=list(TABLES), required=True)
    parser.add_argument("--methods", nargs="+", choices=NAMES, help="ranking: only these; a trained model takes hours")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    options = {"methods": arguments.methods} if arguments.table == "ranking" else {}
    TABLES[arguments.table](arguments.out, **options)


if __name__ == "__main__":
    main()
