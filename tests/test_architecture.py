"""Promises about the size of files and functions.

Kept elsewhere: who imports whom (``test_layers``), docstrings of public names (ruff's D rules), pages that show every
command (``test_docs``).
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
"""From ``def`` to the last line of the body: docstring, comments and nested functions included, decorators not."""
SOURCES = [
    path for folder in ("glip_model", "pipeline", "stages", "cluster", "docs") for path in (ROOT / folder).rglob("*.py")
]


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def num_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def test_no_file_is_long() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert len(lengths) > 200
    long = [f"{path.relative_to(ROOT)}: {lines} lines" for path, lines in lengths.items() if lines > MAX_FILE_LINES]
    assert long == []


def test_no_function_is_long() -> None:
    lengths = {(path, function): num_lines(function) for path in SOURCES for function in functions(path)}
    assert len(lengths) > 1000
    long = [
        f"{path.relative_to(ROOT)}:{function.lineno}: {function.name} has {lines} lines"
        for (path, function), lines in lengths.items()
        if lines > MAX_FUNCTION_LINES
    ]
    assert long == []
