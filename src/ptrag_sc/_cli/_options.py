"""Which options do several commands share?"""

import argparse
from pathlib import Path

COLUMNS = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}


def names(text: str) -> list[str]:
    """Return names that are separated by commas.

    >>> names("IRF1, JAK2+STAT1")
    ['IRF1', 'JAK2+STAT1']
    """
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError("holds no name")
    return found


def numbers(text: str) -> list[int]:
    """Return whole numbers that are separated by commas.

    >>> numbers("20,50")
    [20, 50]
    """
    return [int(name) for name in names(text)]


def devices(text: str) -> int | list[int] | str:
    """Return how many devices, or which: ``auto``, ``2``, or ``0,1`` for the first and the second one."""
    if not all(part.strip().isdigit() for part in text.split(",")):
        return text
    found = numbers(text)
    return found if "," in text else found[0]


def add_columns(
    parser: argparse.ArgumentParser,
    *,
    of_model: bool = False,
    sep: bool = True,
    split: bool = False,
    batch: bool = True,
) -> None:
    """Add the names of columns and labels; for a query of a model those of the model are the default."""
    group = parser.add_argument_group("columns and labels")
    default: dict[str, str | None] = {**COLUMNS}
    otherwise = "default: %(default)s"
    if of_model:
        default, otherwise = dict.fromkeys(COLUMNS), "default: as the model's"
    group.add_argument(
        "--perturbation-key", metavar="COLUMN", default=default["perturbation_key"], help=f"perturbed gene; {otherwise}"
    )
    group.add_argument(
        "--control", metavar="LABEL", default=default["control"], help=f"label of control cells; {otherwise}"
    )
    group.add_argument(
        "--cell-type-key", metavar="COLUMN", default=default["cell_type_key"], help=f"cell type or line; {otherwise}"
    )
    if batch:
        text = "experimental batch, within which controls are matched"
        group.add_argument("--batch-key", metavar="COLUMN", help=text)
    if sep:
        group.add_argument(
            "--sep",
            default="+",
            type=lambda text: text or None,
            help="separator of the genes of a combination, '' if labels are never split; default: %(default)s",
        )
    if split:
        group.add_argument("--split-key", metavar="COLUMN", help="labels train, val and test; default: drawn")


def add_expression(parser: argparse.ArgumentParser, *, layer: bool = True) -> None:
    """Add where expression and counts are, and whether counts are to be normalised."""
    group = parser.add_argument_group(
        "expression", "X must be log1p of normalised counts. If the file holds counts, let them be normalised."
    )
    if layer:
        group.add_argument("--layer", metavar="NAME", help="layer with the expression, in place of X")
    group.add_argument("--counts-layer", metavar="NAME", help="layer with the raw counts")
    group.add_argument(
        "--normalize",
        action="store_true",
        help="make X log1p of counts per 10,000 of each cell's row sum, from X or --counts-layer",
    )
    group.add_argument(
        "--size-factors",
        metavar="COLUMN",
        help="normalise by this column of obs, for example all transcripts of a cell",
    )
    group.add_argument("--modality", metavar="NAME", help="modality of a MuData that holds the expression")


def add_model_source(parser: argparse.ArgumentParser) -> None:
    """Add the table of gene vectors."""
    parser.add_argument(
        "--gene-embedding", metavar="genept|FILE", help="vectors of genes: .npz, .parquet, .csv, .h5ad or .pickle"
    )


def add_output(parser: argparse.ArgumentParser, out: str, *, required: bool = True) -> None:
    """Add where results go, and what all commands have in common."""
    parser.add_argument("--out", type=Path, required=required, metavar="PATH", help=out)
    parser.add_argument("--overwrite", action="store_true", help="replace existing results")
    add_common(parser)


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add what all commands have in common."""
    parser.add_argument("--seed", type=int, default=0, help="seed of all draws; default: %(default)s")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--traceback", action="store_true", help="show where an error arose")
