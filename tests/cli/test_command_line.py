"""Are arguments understood before anything heavy is imported, and do errors end with one line and the right status?"""

import ast
import resource
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

import ptrag_sc
from command_line import count_screen, run
from ptrag_sc import _cli
from ptrag_sc._cli._shell import in_shell_words

HEAVY = ("numpy", "pandas", "torch", "scanpy", "scvi", "anndata", "matplotlib", "scipy")
COMMANDS = ("train", "predict", "evaluate", "diagnose", "rank", "design", "power", "demo")
# Runs the command line and prints which heavy modules it imported.
PROBE = f"""
import sys
from ptrag_sc._cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print("imported:", *[name for name in {HEAVY!r} if name in sys.modules])
"""


def probed(*arguments):
    """Return what a fresh process printed, and the processor time that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_needs_a_third_of_a_second_and_nothing_heavy():
    out, seconds = probed("--help")
    assert all(command in out for command in COMMANDS)
    assert out.endswith("imported:\n")
    assert seconds < 0.3


@pytest.mark.parametrize("arguments", [["train"], ["train", "nowhere.h5ad", "--out", "model"]])
def test_mistakes_are_found_before_anything_heavy_is_imported(arguments):
    assert probed(*arguments)[0].endswith("imported:\n")


def test_the_package_alone_imports_nothing_heavy():
    code = f"import sys, ptrag_sc; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_type_checkers_see_what_is_imported_lazily():
    tree = ast.parse(Path(ptrag_sc.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name for line in block.body for alias in line.names}
    assert seen == set(ptrag_sc.__all__) <= set(dir(ptrag_sc))
    for name in ptrag_sc.__all__:
        assert getattr(ptrag_sc, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'tools'"):
        _ = ptrag_sc.tools


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["demo", "--holdout", "gene"],
        ["train", "a.h5ad"],
        ["predict", "model", "a.h5ad", "--out", "v.h5ad"],
        ["predict", "m", "a.h5ad", "--out", "v.h5ad", "--perturbations", ","],
        ["evaluate", "a.h5ad", "b.h5ad", "--out", "s.csv", "--split-key", "split", "--reference-from", "model"],
        ["power", "a.h5ad", "--out", "p.csv", "--n-cells", "many"],
        ["design", "a.h5ad", "--out", "p.csv"],
    ],
)
def test_wrong_arguments_are_refused_by_the_parser(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        _cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: ptrag-sc" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_options_of_all(command, capsys):
    with pytest.raises(SystemExit) as caught:
        _cli.main([command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for option in ("--seed", "--quiet", "--perturbation-key", "--control", "--counts-layer", "--normalize"):
        assert option in text
    assert "--size-factors" in text and "--overwrite" in text


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        _cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.strip() == ptrag_sc.__version__


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Pass control=...", "Pass --control."),
        ("Pass control=<the label of control cells>.", "Pass --control."),
        ("Leave n_cells=None to use every cell.", "Leave --n-cells out to use every cell."),
        ("Pass overwrite=True or another name.", "Pass --overwrite or another name."),
        ("n_cells=900 in the request", "--n-cells 900 in the request"),
        ("Raise ptrag_sc.pp.split(val_fraction=...).", "Raise --val-fraction."),
        ("Call f(control=1).", "Call f(control=1)."),
        ("score=3, mycontrol=4", "score=3, mycontrol=4"),
    ],
)
def test_errors_name_options_in_place_of_arguments(message, expected):
    names = ("control", "n_cells", "overwrite", "val_fraction")
    assert in_shell_words(message, {name: f"--{name.replace('_', '-')}" for name in names}) == expected


def test_an_error_that_nobody_expected_is_one_line_too(monkeypatch, screen_file):
    from ptrag_sc._cli import _diagnose

    def fail(*arguments, **options):
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(_diagnose, "registered", fail)
    status, _, err = run("diagnose", screen_file)
    assert (status, err) == (
        1,
        "ptrag-sc: unexpected RuntimeError: first second. Pass --traceback to see where it arose.\n",
    )
    with pytest.raises(RuntimeError):
        run("diagnose", screen_file, "--traceback")


def without_embedding(adata):
    del adata.uns["gene_embedding"]


def without_controls(adata):
    bare = (adata.obs["perturbation"] == "non-targeting") & (adata.obs["cell_type"] == "type_1")
    adata._inplace_subset_obs(~bare.to_numpy())


def zero_depth(adata):
    adata.obs.iloc[3, adata.obs.columns.get_loc("depth")] = 0


def no_x(adata):
    adata.X = None


def fractions(adata):
    adata.X = adata.X * 0.5


NORMAL = ("--normalize",)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (None, [], "holds raw counts"),
        (None, [], "In the shell: Pass --normalize, or --size-factors COLUMN."),
        (None, [*NORMAL, "--control", "ctrl"], "Control label 'ctrl' does not occur in adata.obs['perturbation']"),
        (None, [*NORMAL, "--perturbation-key", "gene"], "Column 'gene' does not occur in adata.obs (found: "),
        (None, [*NORMAL, "--cell-type-key", "tissue"], "Column 'tissue' does not occur"),
        (None, [*NORMAL, "--batch-key", "gem"], "Column 'gem' does not occur"),
        (None, ["--size-factors", "umis"], "Column 'umis' does not occur in obs of "),
        (None, [*NORMAL, "--counts-layer", "raw"], "Layer 'raw' does not occur"),
        (None, [*NORMAL, "--layer", "X"], "Name the counts with --counts-layer"),
        (zero_depth, ["--size-factors", "depth"], "are not all positive numbers. Correct --size-factors."),
        (fractions, NORMAL, "does not hold counts. Name the counts with --counts-layer, or leave --normalize"),
        (None, [*NORMAL, "--split-key", "part"], "Column 'part' does not occur"),
        (None, [*NORMAL, "--test-fraction", "0"], "holds out no test condition"),
        (None, [*NORMAL, "--test-fraction", "1.5"], "leave no training conditions"),
        (None, [*NORMAL, "--test-cell-type", "type_9"], "Cell type 'type_9' does not occur"),
        (None, [*NORMAL, "--n-candidates", "0"], "--n-candidates 0 in the constructor"),
        (None, [*NORMAL, "--gene-embedding", "nowhere.npz"], "nowhere.npz"),
        (without_embedding, NORMAL, "Pass --gene-embedding FILE (or genept)."),
        (without_controls, NORMAL, "Cell type 'type_1' in this object has no control cells."),
        (no_x, NORMAL, "is missing. Put the counts there, or pass --counts-layer."),
    ],
)
def test_unusable_input_ends_with_one_line_and_no_results(tmp_path, change, arguments, message):
    adata = count_screen(n_cells=200)
    if change is not None:
        change(adata)
    adata.write_h5ad(tmp_path / "screen.h5ad")
    status, _, err = run("train", tmp_path / "screen.h5ad", "--out", tmp_path / "made", *arguments)
    assert status == 1
    assert err.startswith("ptrag-sc: ")
    assert err.count("\n") == 1
    assert message in err
    assert not list((tmp_path / "made").iterdir())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere.h5ad", None, "nowhere.h5ad was not found. Pass an existing file."),
        ("screen.h5ad", "not a screen", "is no readable h5ad ("),
        ("screen.h5mu", "not a screen", "is no readable h5mu ("),
        ("screen.loom", "", "has the suffix '.loom'. Pass a file that ends in .h5ad, .zarr or .h5mu."),
    ],
)
def test_files_that_are_no_screen(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    status, _, err = run("diagnose", tmp_path / name)
    assert status == 1
    assert str(tmp_path / name) in err
    assert message in err
    assert err.count("\n") == 1


def test_the_log_of_the_caller_is_as_before(screen_file):
    import logging

    logger = logging.getLogger("ptrag_sc")
    before = logger.handlers, logger.level
    run("diagnose", screen_file)
    assert (logger.handlers, logger.level) == before


def test_quiet_prints_nothing_but_errors(screen_file):
    assert run("diagnose", screen_file, "--normalize", "--quiet") == (0, "", "")


def test_a_message_of_an_empty_command_is_left_as_it_is():
    from ptrag_sc._cli._shell import shell_message

    assert shell_message(KeyError("a 'b'"), Namespace(flags={})) == "a 'b'"
