"""Which commands does ``ptrag-sc`` have, and which arguments does each take?"""

import argparse
from pathlib import Path
from typing import Any

import ptrag_sc
from ptrag_sc._cli._options import (
    add_columns,
    add_common,
    add_expression,
    add_model_source,
    add_output,
    devices,
    names,
    numbers,
)

SCREEN = "screen: .h5ad, .zarr or .h5mu"
REPLOGLE = """The Replogle-Nadig screen, with a part of HepG2 held out as in the PT-RAG paper (so k562, rpe1, jurkat):

  ptrag-sc train replogle.h5ad --out hepg2 --perturbation-key gene --cell-type-key cell_line \\
      --batch-key gem_group --normalize --gene-embedding genept --test-cell-type hepg2 --test-fraction 0.36"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="ptrag-sc", description="Predict how single cells respond to gene perturbations.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=ptrag_sc.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_train, _predict, _evaluate, _diagnose, _rank, _design, _power, _prepare, _demo):
        add(commands)
    return parser


def _command(commands: Any, name: str, module: str, *, inputs: tuple[str, ...], **texts: Any) -> Any:
    """Return the parser of one command; ``inputs`` are its arguments that are files and must exist."""
    parser = commands.add_parser(
        name,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **{"description": texts["help"], **texts},
    )
    screens = tuple(i for i in inputs if i in ("screen", "controls", "real", "predicted", "adata"))
    parser.set_defaults(command=name, module=module, inputs=inputs, screens=screens)
    return parser


def _finish(parser: Any) -> None:
    """Let errors name the options of this command."""
    flags = {action.dest: action.option_strings[-1] for action in parser._actions if action.option_strings}
    parser.set_defaults(flags=flags)


def _train(commands: Any) -> None:
    text = "hold out conditions, train, score beside baselines, save the model"
    parser = _command(commands, "train", "_train", inputs=("screen",), help=text, epilog=REPLOGLE)
    parser.add_argument("screen", type=Path, help=SCREEN)
    add_output(parser, "folder of the model: model.pt, scores.csv, plots, settings.json")
    add_columns(parser, split=True)
    add_expression(parser)
    add_training(parser)
    _finish(parser)


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add what is held out and how a model is trained."""
    group = parser.add_argument_group("held-out conditions, unless --split-key is given")
    group.add_argument(
        "--holdout", choices=("pair", "perturbation", "cell_type"), help="default: pair, or perturbation"
    )
    group.add_argument("--test-cell-type", metavar="LABEL", help="cell type that conditions are held out of")
    group.add_argument("--test-fraction", type=float, default=0.2, help="share of test conditions; default: 0.2")
    group.add_argument("--val-fraction", type=float, default=0.1, help="share of validation conditions; default: 0.1")
    group = parser.add_argument_group("model and training")
    add_model_source(parser)
    group.add_argument(
        "--n-genes", type=int, help="most variable genes of training cells; default: 2,000 of over 5,000"
    )
    group.add_argument("--retrieval", choices=("gumbel", "attention", "none"), default="gumbel", help="default: gumbel")
    group.add_argument("--memory", choices=("response", "none"), default="response", help="default: response")
    group.add_argument("--n-candidates", type=int, help="retrieved perturbations; default: up to 64")
    group.add_argument("--max-epochs", type=int, help="default: about 3,000 steps, or until early stopping")
    group.add_argument("--accelerator", default="auto", help="cpu, gpu, ...; default: auto")
    group.add_argument("--devices", type=devices, default="auto", help="how many, or which: 0,1; default: auto")


def _add_perturbations(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--perturbations", type=names, metavar="A,B+C", help="genes and combinations")
    group.add_argument(
        "--perturbations-file",
        type=Path,
        metavar="FILE",
        help="one per line, or a table with a column 'perturbation' and, if wanted, 'n_cells'",
    )


def _predict(commands: Any) -> None:
    text = "predict perturbed cells and, with intervals, which genes change"
    inputs = ("model", "controls", "perturbations_file")
    parser = _command(commands, "predict", "_predict", inputs=inputs, help=text)
    parser.add_argument("model", type=Path, help="folder of the model, from ptrag-sc train or PTRAG.save")
    parser.add_argument("controls", type=Path, help="control cells: .h5ad, .zarr or .h5mu; others in it are ignored")
    _add_perturbations(parser)
    parser.add_argument("--cell-types", type=names, metavar="A,B", help="default: all with control cells")
    parser.add_argument("--n-cells", type=int, help="control cells per cell type; default: each once")
    add_output(parser, "virtual cells: .h5ad or .zarr")
    parser.add_argument("--effects", type=Path, metavar="CSV", help="table of genes with intervals")
    parser.add_argument("--level", type=float, default=0.9, help="of the intervals; default: 0.9")
    parser.add_argument("--support", type=Path, metavar="CSV", help="what each prediction rests on")
    add_model_source(parser)
    parser.add_argument("--sample", action="store_true", help="draw gates and control cells with --seed")
    parser.add_argument("--accelerator", default="auto", help="cpu, gpu, ...; default: auto")
    add_columns(parser, of_model=True, sep=False)
    add_expression(parser, layer=False)
    _finish(parser)


def _evaluate(commands: Any) -> None:
    text = "score predicted cells against real ones"
    inputs = ("real", "predicted", "reference_from")
    parser = _command(commands, "evaluate", "_evaluate", inputs=inputs, help=text)
    parser.add_argument("real", type=Path, help="observed cells with controls: .h5ad, .zarr or .h5mu")
    parser.add_argument("predicted", type=Path, help="predicted cells, on the scale of log1p: .h5ad, .zarr or .h5mu")
    add_output(parser, "scores: .csv")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--split-key", metavar="COLUMN", help="column of real cells: train conditions give the centre")
    group.add_argument("--reference-from", type=Path, metavar="MODEL", help="its training conditions give the centre")
    parser.add_argument("--metrics", type=names, metavar="A,B", help="names of ptrag_sc.metrics.METRICS")
    parser.add_argument(
        "--cell-eval", type=Path, metavar="FOLDER", help="also write the files that cell-eval2 compares"
    )
    add_columns(parser)
    add_expression(parser)
    _finish(parser)


def _diagnose(commands: Any) -> None:
    text = "report whether a screen meets what models assume"
    parser = _command(commands, "diagnose", "_diagnose", inputs=("screen",), help=text)
    parser.add_argument("screen", type=Path, help=SCREEN)
    parser.add_argument("--guide-key", metavar="COLUMN", help="guide of each cell")
    add_output(parser, "folder for findings.csv, conditions.csv, groups.csv and diagnose.png", required=False)
    add_columns(parser)
    add_expression(parser)
    _finish(parser)


def _add_decision(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="saved model; default: a kernel ridge fitted here")
    parser.add_argument("--cell-type", metavar="LABEL", help="default: the only one")
    add_model_source(parser)
    add_output(parser, out)
    add_columns(parser, of_model=True, split=True)
    add_expression(parser)


def _rank(commands: Any) -> None:
    text = "rank perturbations by how well they would bring about a wanted change"
    inputs = ("screen", "model", "signature", "candidates_file")
    parser = _command(commands, "rank", "_decide", inputs=inputs, help=text)
    parser.add_argument("screen", type=Path, help=SCREEN)
    parser.add_argument(
        "--signature", type=Path, metavar="CSV", help="genes and numbers, or a table of scanpy or pertpy; or instead:"
    )
    parser.add_argument("--up", type=names, metavar="A,B", help="genes that shall rise")
    parser.add_argument("--down", type=names, metavar="A,B", help="genes that shall fall")
    parser.add_argument(
        "--cells", nargs=3, metavar=("COLUMN", "WANTED", "PRESENT"), help="two groups of cells of the screen"
    )
    parser.add_argument("--candidates", type=names, metavar="A,B", help="default: all genes with a vector")
    parser.add_argument("--candidates-file", type=Path, metavar="FILE", help="one per line")
    parser.add_argument("--reverse", action="store_true", help="those that work against it first")
    parser.add_argument("--score", choices=("cosine", "distance"), default="cosine", help="default: cosine")
    _add_decision(parser, "ranking: .csv")
    _finish(parser)


def _design(commands: Any) -> None:
    text = "choose the perturbations whose measurement would tell most"
    inputs = ("screen", "model", "candidates_file", "targets_file", "costs")
    parser = _command(commands, "design", "_decide", inputs=inputs, help=text)
    parser.add_argument("screen", type=Path, help=SCREEN)
    parser.add_argument("--n", type=int, required=True, help="how many to choose")
    parser.add_argument(
        "--candidates", type=names, metavar="A,B", help="what can be measured; default: genes with vector"
    )
    parser.add_argument("--candidates-file", type=Path, metavar="FILE", help="one per line")
    parser.add_argument(
        "--targets", type=names, metavar="A,B", help="what one wants to know about; default: candidates"
    )
    parser.add_argument("--targets-file", type=Path, metavar="FILE", help="one per line")
    parser.add_argument("--space", choices=("auto", "text", "response"), default="auto", help="default: auto")
    parser.add_argument("--measured", type=names, default=[], metavar="A,B", help="further measured perturbations")
    parser.add_argument("--include", type=names, default=[], metavar="A,B", help="perturbations that must be measured")
    parser.add_argument("--exclude", type=names, default=[], metavar="A,B", help="candidates that cannot be measured")
    parser.add_argument("--costs", type=Path, metavar="CSV", help="columns 'perturbation' and 'cost'")
    parser.add_argument("--budget", type=float, help="what all may cost together")
    _add_decision(parser, "choice: .csv")
    _finish(parser)


def _power(commands: Any) -> None:
    text = "estimate how well unseen perturbations are predicted from a screen of another size"
    parser = _command(commands, "power", "_decide", inputs=("screen", "model"), help=text)
    parser.add_argument("screen", type=Path, help=SCREEN)
    parser.add_argument("--n-perturbations", type=numbers, metavar="N,M", help="default: up to twice what was measured")
    parser.add_argument(
        "--n-cells", type=numbers, metavar="N,M", help="cells per perturbation; default: up to the median"
    )
    parser.add_argument("--budget", type=int, help="perturbed cells in all, in place of --n-perturbations")
    parser.add_argument("--n-repeats", type=int, default=10, help="default: 10")
    parser.add_argument("--space", choices=("auto", "text", "response"), default="auto", help="default: auto")
    _add_decision(parser, "estimates: .csv")
    _finish(parser)


def _prepare(commands: Any) -> None:
    text = "write a screen that is larger than memory so that models are trained from the disk"
    parser = _command(commands, "prepare", "_prepare", inputs=("screen",), help=text)
    parser.add_argument("screen", type=Path, help=SCREEN)
    add_output(parser, "store: .zarr")
    add_columns(parser, batch=False)
    add_expression(parser, layer=False)
    _finish(parser)


def _demo(commands: Any) -> None:
    text = "show on a real screen what the package does, in about a minute"
    parser = _command(commands, "demo", "_demo", inputs=("adata",), help=text)
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="folder; default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace existing results")
    parser.add_argument("--adata", type=Path, metavar="FILE", help="your own screen; use ptrag-sc train, which follows")
    parser.add_argument("--no-progress", action="store_true", help=argparse.SUPPRESS)  # of the first release
    add_common(parser)
    add_columns(parser, split=True)
    add_expression(parser)
    add_training(parser)
    _finish(parser)
