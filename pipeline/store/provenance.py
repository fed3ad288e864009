"""What a file depends on, in hashes: its bytes, the code that writes it, and all of that together."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from upath import UPath

from pipeline.errors import MissingInputError

CONFIG_FILE, WEIGHTS_FILES = "config.json", "*.safetensors"
TEXT_AND_IMAGE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
)
"""Files beside a model's weights that decide how texts and pictures are read, where the model has them."""
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


def describe_model(folder: Path) -> dict[str, Any]:
    """Return a model's name and the hashes of all files that decide what it finds.

    Raises:
        MissingInputError: there is no model in the folder.
    """
    weights = sorted(folder.glob(WEIGHTS_FILES))
    if not weights or not (folder / CONFIG_FILE).is_file():
        lacking = CONFIG_FILE if weights else "model.safetensors"
        raise MissingInputError(f"{folder / lacking}: no such model; run: dvc repro train")
    files = [folder / file for file in (CONFIG_FILE, *TEXT_AND_IMAGE_FILES) if (folder / file).is_file()]
    digest = file_sha256(weights[0]) if len(weights) == 1 else fingerprint({p.name: file_sha256(p) for p in weights})
    return {"name": folder.name, "sha256": digest, "files": {path.name: file_sha256(path) for path in files}}


def fingerprint(provenance: Mapping[str, Any]) -> str:
    """Hash everything that a shard's content depends on."""
    return hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
