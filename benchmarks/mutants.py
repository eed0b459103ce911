"""Which small mistakes in the code would no test notice?

``python benchmarks/mutants.py --n 40 --seed 0`` draws places of the syntax tree of the packages, puts a mutant of each
into a copy of the repository, and runs the tests there until one fails: first the tests of the same package, then the
others. It prints a table. Finished mutants are kept in the file that ``--out`` names, so an interrupted run continues;
``--again`` runs the survivors once more.
"""

import argparse
import ast
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGES = ("retrieval", "nn", "data", "metrics", "benchmark")
COPIED = ("src", "tests", "benchmarks", "docs", "pyproject.toml", "README.md", "CHANGELOG.md")
FOLDERS = ("model", "tl", "baselines", "pp", *PACKAGES, "datasets", "pl", "")  # of tests, likeliest first

OPERATORS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
OPERATORS |= {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
OPERATORS |= {ast.And: ast.Or, ast.Or: ast.And}
SUMMARIES = {"max": "min", "min": "max", "mean": "max", "amax": "amin", "amin": "amax", "maximum": "minimum"}
SUMMARIES |= {"minimum": "maximum", "nanmean": "nanmax", "median": "max", "any": "all", "all": "any"}
REMOVED = {"detach", "clamp", "clip", "abs"}  # methods whose object can stand without them
OVER_AXIS = {*SUMMARIES, "sum", "var", "std", "unbind", "argmax", "argmin", "cumsum", "sort", "argsort", "squeeze"}
AXES = {"0": "1", "1": "0", "-1": "0"}
# No places: annotations, the text of errors and warnings, logging. Docstrings hold nothing that could be changed.
UNSEEN_FIELDS = {"annotation", "returns", "decorator_list"}
MESSAGES = {"absent", "unusable", "listed", "warn", "warning", "info", "debug"}

# Mutants that change no result, and why. The key is "file, function: changed line".
EQUIVALENT: dict[str, str] = {}


class Mutant(NamedTuple):
    """One changed piece of one file, as offsets in its bytes."""

    file: str
    function: str
    line: int
    start: int
    end: int
    new: str
    name: str  # file, function and changed line, which stay when other lines move


def nodes(node: ast.AST, function: str = "module") -> Iterator[tuple[ast.AST, str]]:
    """Yield every node that is a place, with the function that it stands in."""
    is_all = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    is_message = isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in MESSAGES
    if is_all or is_message or isinstance(node, ast.Raise | ast.JoinedStr):
        return
    function = node.name if isinstance(node, ast.FunctionDef | ast.ClassDef) else function
    yield node, function
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and field not in UNSEEN_FIELDS:
                yield from nodes(child, function)


def replacements(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Yield (node, what may stand in its place)."""
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            if type(op) in OPERATORS:
                ops = [*node.ops[:i], OPERATORS[type(op)](), *node.ops[i + 1 :]]
                yield node, f"({ast.unparse(ast.Compare(node.left, ops, node.comparators))})"
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield node, f"({ast.unparse(ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right))})"
    elif isinstance(node, ast.AugAssign) and type(node.op) in OPERATORS:
        yield node, ast.unparse(ast.AugAssign(node.target, OPERATORS[type(node.op)](), node.value))
    elif isinstance(node, ast.BoolOp):
        yield node, f"({ast.unparse(ast.BoolOp(OPERATORS[type(node.op)](), node.values))})"
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        yield node, f"({ast.unparse(node.operand)})"  # without `not`, `~`, `-`: sorting in the other direction
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield node, str(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield node, str(node.value + 1 if isinstance(node.value, int) else node.value * 2 or 1.0)
    elif isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        head, dot, name = called.rpartition(".")
        if name in SUMMARIES:
            yield node, f"{head}{dot}{SUMMARIES[name]}{ast.unparse(node).removeprefix(called)}"
        if name in REMOVED and head not in ("", "np", "torch"):
            yield node, f"({head})"
        arguments = [k.value for k in node.keywords if k.arg in ("axis", "dim")]
        for axis in arguments + (node.args[-1:] if name in OVER_AXIS else []):
            if ast.unparse(axis) in AXES:
                yield axis, AXES[ast.unparse(axis)]
    elif isinstance(node, ast.FunctionDef):
        arguments = [a.arg for a in (*node.args.args, *node.args.kwonlyargs) if a.arg not in ("self", "cls", "ctx")]
        for returned in [n.value for n in ast.walk(node) if isinstance(n, ast.Return) and n.value is not None][-1:]:
            if arguments and ast.unparse(returned) != arguments[0]:
                yield returned, arguments[0]


def places(path: Path) -> list[list[Mutant]]:
    """Return the mutants of every place of a file."""
    source, file = path.read_bytes(), str(path.relative_to(ROOT))
    lines, found = source.splitlines(keepends=True), []
    begin = [sum(map(len, lines[:i])) for i in range(len(lines))]  # of every line, in bytes
    for node, function in nodes(ast.parse(source)):
        mutants = []
        for target, new in replacements(node):
            start = begin[target.lineno - 1] + target.col_offset
            end = begin[target.end_lineno - 1] + target.end_col_offset
            rest = source[end : begin[target.end_lineno - 1] + len(lines[target.end_lineno - 1])]
            changed = (source[begin[target.lineno - 1] : start] + new.encode() + rest).decode()
            name = f"{file}, {function}: {' '.join(changed.split())}"
            mutants.append(Mutant(file, function, target.lineno, start, end, new, name))
        found += [mutants] if mutants else []
    return found


def stages(mutant: Mutant) -> list[list[str]]:
    """Return the tests of the same package with the examples of the file, then all others; likeliest first."""
    package, stem = Path(mutant.file).parts[2], Path(mutant.file).stem.strip("_")

    def likelihood(path: Path) -> tuple[bool, int]:
        return stem not in path.stem, -path.read_text(encoding="utf-8").count(mutant.function)

    found = {f: sorted((ROOT / "tests" / f).glob("test_*.py"), key=likelihood) for f in (package, *FOLDERS)}
    paths = {folder: [str(p.relative_to(ROOT)) for p in files] for folder, files in found.items()}
    return [[*paths.pop(package), mutant.file], [p for files in paths.values() for p in files]]


def killer(copy: Path, tests: list[str], timeout: float) -> str | None:
    """Return the first test that fails, or None."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-rfE", "-p", "no:cacheprovider", *tests]
    options = {"cwd": copy, "env": {**os.environ, "PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1"}}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)
    except subprocess.TimeoutExpired:
        return "timeout"
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return failed[1] if failed else (done.stdout[-300:] + done.stderr[-300:] if done.returncode else None)


def judged(mutant: Mutant, copy: Path, timeout: float, sound: set[str]) -> str:
    """Return what becomes of a mutant in the copy; ``sound`` are tests that are known to pass without a mutant."""
    if mutant.name in EQUIVALENT:
        return f"equivalent: {EQUIVALENT[mutant.name]}"
    path = copy / mutant.file
    source = path.read_bytes()
    path.write_bytes(source[: mutant.start] + mutant.new.encode() + source[mutant.end :])
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        compiled.unlink()  # two changes within a second look alike to Python
    found = next((k for tests in stages(mutant) if (k := killer(copy, tests, timeout))), None)
    path.write_bytes(source)
    test = (found or "").partition("[")[0]
    if test.startswith(("tests/", "src/")) and test not in sound:
        if killer(copy, [test], timeout) is not None:
            raise SystemExit(f"{test} fails without any mutant. Correct this first.")
        sound.add(test)
    return "survived" if found is None else f"killed by {found}"


def main() -> None:
    """Judge the mutants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--packages", nargs="+", default=PACKAGES)
    parser.add_argument("--timeout", type=float, default=3600, help="seconds of one call of pytest")
    parser.add_argument("--out", type=Path, default=Path("mutants.json"), help="finished mutants")
    parser.add_argument("--again", action="store_true", help="run survivors once more")
    arguments = parser.parse_args()
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    files = sorted(p for package in arguments.packages for p in (ROOT / "src" / "ptrag_sc" / package).glob("*.py"))
    everywhere, rng = [place for path in files for place in places(path)], random.Random(arguments.seed)
    print(f"{len(everywhere)} places in {len(files)} files", flush=True)
    drawn, sound = [rng.choice(place) for place in rng.sample(everywhere, arguments.n)], set()
    with tempfile.TemporaryDirectory() as folder:
        for name in COPIED:
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, Path(folder) / name)
        for mutant in drawn:
            known = results.get(mutant.name)
            if known is None or (arguments.again and known == "survived"):
                results[mutant.name] = judged(mutant, Path(folder), arguments.timeout, sound)
                arguments.out.write_text(json.dumps(results, indent=1))
                print(f"line {mutant.line} of {mutant.name}: {results[mutant.name]}", flush=True)
    print("| line | file and changed line | what became of it |\n|---|---|---|")
    for mutant in drawn:
        print(f"| {mutant.line} | {mutant.name.removeprefix('src/ptrag_sc/')} | {results[mutant.name]} |")
    killed, same = (sum(results[m.name].startswith(word) for m in drawn) for word in ("killed", "equivalent"))
    print(f"{killed} of {len(drawn) - same} killed, {same} equivalent")


if __name__ == "__main__":
    main()
