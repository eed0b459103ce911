"""Does the package keep the house rules: size, forbidden calls, documentation of all that is public?"""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "ptrag_sc"
FILES = sorted(PACKAGE.rglob("*.py"))
SUBPACKAGES = ("baselines", "benchmark", "datasets", "metrics", "pl", "pp", "tl")
DOCUMENTED_METHODS = ("setup_anndata", "train", "predict", "get_retrieval", "save", "load")
MAX_LINES, MAX_STATEMENTS, MAX_NESTING, MAX_PARAMETERS = 300, 40, 3, 8
BLOCKS = (ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.Try, ast.Match)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
FORBIDDEN = {"print", "kwargs.get", "np.random.seed", "torch.manual_seed", "seed_everything", "pickle.load"}
TEXT_FOLDERS = ("src", "tests", "docs", "tutorials", "benchmarks")
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".ipynb", ".bib", ".yaml"}
# In pieces, so that this file does not hold what it looks for.
MACHINE_PATHS = re.compile("|".join(("/" + "work/", "/" + "tmp/", "/" + "home/", "/" + "root/", r"\.\./" + "shared")))

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
every_subpackage = pytest.mark.parametrize("subpackage", SUBPACKAGES)


@cache
def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def functions(path):
    return [node for node in ast.walk(parsed(path)) if isinstance(node, FUNCTIONS)]


def n_statements(function):
    """Statements in a function, without its docstring."""
    return sum(isinstance(node, ast.stmt) for node in ast.walk(function)) - 1 - bool(ast.get_docstring(function))


def nesting(node):
    """Depth of blocks in blocks; ``elif`` continues its ``if``; a function in a function is counted by itself."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, FUNCTIONS):
            is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
            deepest = max(deepest, nesting(child) + (isinstance(child, BLOCKS) and not is_elif))
    return deepest


def n_parameters(function):
    arguments = function.args
    named = (a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs))
    return sum(name not in ("self", "cls") for name in named)


def calls(tree):
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def public():
    """``{qualified name: object}`` of all that a user can call: functions, classes, methods."""
    found = {"PTRAG": importlib.import_module("ptrag_sc").PTRAG}
    for subpackage in SUBPACKAGES:
        module = importlib.import_module(f"ptrag_sc.{subpackage}")
        found |= {f"{subpackage}.{name}": getattr(module, name) for name in module.__all__}
    found = {name: thing for name, thing in found.items() if callable(thing)}
    for owner, cls in [(name, thing) for name, thing in found.items() if inspect.isclass(thing)]:
        parts = [part for part in cls.__mro__ if part.__module__.startswith("ptrag_sc.")]
        names = {name for part in parts for name in vars(part) if not name.startswith("_")}
        names = [name for name in names if inspect.isroutine(getattr(cls, name))]
        found |= {f"{owner}.{name}": getattr(cls, name) for name in names}
    return found


def is_method(name):
    return name.count(".") > (name.partition(".")[0] in SUBPACKAGES)


def is_record(thing):
    """A frozen dataclass or a NamedTuple explains its fields beside them."""
    return inspect.isclass(thing) and (is_dataclass(thing) or issubclass(thing, tuple))


def place(thing):
    """File and first line, decorators included, of a function or of the constructor of a class."""
    function = thing.__init__ if inspect.isclass(thing) else getattr(thing, "__func__", thing)
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code and (Path(code.co_filename), code.co_firstlineno)


def sections(text):
    """``{title: body}`` of a numpydoc text."""
    parts = re.split(r"^(\w[\w ]*)\n-+\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def documented(body):
    """Names that a Parameters section explains."""
    heads = re.findall(r"^\S.*$", body, flags=re.MULTILINE)
    return {name.strip(" *`") for head in heads for name in head.partition(":")[0].split(",")}


def unexplained(thing):
    """Which parameters does the docstring of a function or class not explain?"""
    explained = documented(sections(inspect.getdoc(thing) or "").get("Parameters", ""))
    return {name for name in inspect.signature(thing).parameters if name not in ("self", "cls")} - explained


def test_the_measures_measure():
    code = """
def f(self, a, *, b, **c):
    "Summary."
    for i in a:
        if i:
            while b:
                x = 1
        elif b:
            with i:
                y = 2
    def g():
        try:
            pass
        finally:
            print(kwargs.get("a"))
"""
    outer, inner = (node for node in ast.walk(ast.parse(code)) if isinstance(node, FUNCTIONS))
    assert (n_parameters(outer), nesting(outer), nesting(inner)) == (2, 3, 1)
    assert (n_statements(outer), n_statements(inner)) == (11, 3)
    assert {"print", "kwargs.get"} <= calls(ast.parse(code))
    text = sections("S.\n\nParameters\n----------\na, b\n    Text.\n**c : int\n    Text.\n\nReturns\n-------\nd\n")
    assert list(text) == ["Parameters", "Returns"]
    assert documented(text["Parameters"]) == {"a", "b", "c"}


@every_file
def test_size(path):
    long = {f.name: n_statements(f) for f in functions(path) if n_statements(f) > MAX_STATEMENTS}
    deep = {f.name: nesting(f) for f in functions(path) if nesting(f) > MAX_NESTING}
    n_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert n_lines <= MAX_LINES
    assert not long
    assert not deep


def test_only_entry_points_take_many_parameters():
    exempt = {place(thing) for thing in public().values()}
    many = {
        (path, min([f.lineno, *(d.lineno for d in f.decorator_list)])): f"{path.name}: {f.name}"
        for path in FILES
        for f in functions(path)
        if n_parameters(f) > MAX_PARAMETERS
    }
    assert exempt & set(many), "the exemption applies to nothing: is it read rightly?"
    assert not [name for where, name in many.items() if where not in exempt]


@every_file
def test_a_file_answers_one_question(path):
    question = (ast.get_docstring(parsed(path)) or "").partition("\n")[0]
    assert "?" in question or (question and path == PACKAGE / "__init__.py")


@every_file
def test_forbidden_calls(path):
    tree = parsed(path)
    assert not calls(tree) & FORBIDDEN
    weights_only = [node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "weights_only"]
    assert all(ast.unparse(keyword.value) == "True" for keyword in weights_only)


def test_no_machine_paths():
    below = [path for folder in TEXT_FOLDERS for path in (ROOT / folder).rglob("*") if "_build" not in path.parts]
    texts = [ROOT / "Makefile", *(path for path in (*ROOT.glob("*.*"), *below) if path.suffix in TEXT_SUFFIXES)]
    assert len(texts) > len(FILES)
    assert not [path for path in texts if MACHINE_PATHS.search(path.read_text(encoding="utf-8"))]


@every_subpackage
def test_all_can_be_imported(subpackage):
    module = importlib.import_module(f"ptrag_sc.{subpackage}")
    assert module.__all__
    assert not [name for name in module.__all__ if not hasattr(module, name)]


def test_public_functions_are_documented():
    """Parameters, what comes back or is written where, and an example that the doctests run."""
    gaps = {}
    for name, thing in public().items():
        text = sections(inspect.getdoc(thing) or "")
        wanted = {"Examples"} if inspect.isclass(thing) else {"Examples", "Returns"}
        if not (is_method(name) or is_record(thing)):
            gaps[name] = (wanted - set(text)) | unexplained(thing)
            gaps[name] |= set() if ">>>" in text.get("Examples", "") else {">>>"}
    assert not {name: gap for name, gap in gaps.items() if gap}


def test_public_methods_are_documented():
    methods = {name: thing for name, thing in public().items() if is_method(name)}
    assert not [name for name, thing in methods.items() if not inspect.getdoc(thing)]
    gaps = {name: unexplained(getattr(importlib.import_module("ptrag_sc").PTRAG, name)) for name in DOCUMENTED_METHODS}
    assert not {name: gap for name, gap in gaps.items() if gap}


def test_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert importlib.import_module("ptrag_sc").__version__ == project["version"]


@pytest.mark.slow  # a process of its own
def test_import_leaves_pertpy_alone():
    code = "import sys, ptrag_sc; sys.exit('pertpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_api_pages_list_what_is_public():
    listed = set()
    for page in (ROOT / "docs" / "api").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        module = "".join(re.findall(r"^\.\. currentmodule:: (\S+)$", text, flags=re.MULTILINE))
        listed |= {
            f"{module}.{name}" for name in re.findall(r"^(?:   |\.\. (?:autoclass|py:data):: )([\w.]*\w)$", text, re.M)
        }
    exported = {
        f"ptrag_sc.{s}.{name}" for s in SUBPACKAGES for name in importlib.import_module(f"ptrag_sc.{s}").__all__
    }
    assert listed == exported | {"ptrag_sc.PTRAG"}
