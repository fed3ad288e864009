"""What a file depends on, in hashes: its bytes, the code that writes it, and all of that together."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from upath import UPath

FINGERPRINT = "fingerprint"
"""Name in a shard's provenance of the hash over everything that its rows depend on."""


def file_sha256(path: Path | UPath) -> str:
    """Return the hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # files of stores have readinto too


def code_sha256(paths: Iterable[Path]) -> str:
    """Return a hash of Python files that comments, docstrings and layout do not change."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                node.body = [item for item in body if not _is_docstring(item)]  # type: ignore[attr-defined]
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()


def fingerprint(provenance: Mapping[str, Any]) -> str:
    """Hash everything that a shard's content depends on."""
    return hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
