"""Does the package keep the house rules: size, names, documentation, layers?"""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "ptrag_sc"
FILES = sorted(PACKAGE.rglob("*.py"))
SUBPACKAGES = ("baselines", "benchmark", "datasets", "metrics", "pl", "pp", "tl")
MAX_LINES, MAX_STATEMENTS, MAX_NESTING, MAX_PARAMETERS = 300, 40, 3, 8
BLOCKS = (ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.Try, ast.Match)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]


def n_statements(function: ast.FunctionDef) -> int:
    return sum(isinstance(node, ast.stmt) for node in ast.walk(function)) - 1


def nesting(node: ast.AST) -> int:
    """Blocks inside blocks; ``elif`` continues its ``if``, a function starts anew."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FUNCTIONS | (ast.Lambda,) if False else FUNCTIONS):
            continue
        continues = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, nesting(child) + (isinstance(child, BLOCKS) and not continues))
    return deepest
