"""What a file depends on, in hashes: its bytes, the code that writes it, and all of that together."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
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
PACKAGES = ("glip_model", "pipeline")
"""Whose imports are followed; the versions of other packages are in requirements.lock."""
READER_OF_SETTINGS = "pipeline.settings"
"""Not followed: it knows the settings of every stage, and the values of a shard's own are in its provenance."""

Root = str | Callable[..., Any]


def file_sha256(path: Path | UPath) -> str:
    """Return the hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # files of stores have readinto too


def code_sha256(roots: Iterable[Root]) -> str:
    """Return a hash of the code that decides what ``roots`` do; comments, docstrings and layout do not change it.

    Args:
        roots: functions, classes, or names of modules. Their modules count, and all that those import of this project,
            whether at their top or inside of functions.

    Raises:
        MissingInputError: a root has no Python source.
    """
    return fingerprint(modules_behind(roots))


def modules_behind(roots: Iterable[Root]) -> dict[str, str]:
    """Return the modules that ``code_sha256`` follows, with the hash of each.

    A package's ``__init__`` is among them where a name is taken from the package itself.
    """
    waiting = [root if isinstance(root, str) else root.__module__ for root in roots]
    for name in waiting:
        if _source_file(name) is None:
            raise MissingInputError(f"{name}: no such module, or none with Python source")
    found: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        path = _source_file(name)
        if name in found or path is None or name == READER_OF_SETTINGS:
            continue
        found[name], imported = _read_code(path.read_text(encoding="utf-8"))
        waiting += (_module_of(each) for each in imported if each.partition(".")[0] in PACKAGES)
    return found


@cache
def _read_code(text: str) -> tuple[str, frozenset[str]]:
    """Return the hash of a module's code, and what it imports, as ``package.module`` or ``package.module.name``."""
    tree = ast.parse(text)
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [item for item in body if not _is_docstring(item)]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest(), frozenset(imported)


def _module_of(imported: str) -> str:
    """Return the module behind ``package.module`` or ``package.module.name``."""
    return imported if _source_file(imported) else imported.rpartition(".")[0]


def _source_file(module: str) -> Path | None:
    """Return the Python file of a module without importing it; None where there is none."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if spec.submodule_search_locations is None:
        path = Path(spec.origin or "") if not rest else Path()
    else:
        path = Path(next(iter(spec.submodule_search_locations)), *rest)
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return path if path.suffix == ".py" and path.is_file() else None


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


def with_fingerprint(depends_on: Mapping[str, Any]) -> dict[str, Any]:
    """Return a provenance: everything that a shard's content depends on, and the fingerprint over it."""
    return {**depends_on, FINGERPRINT: fingerprint(depends_on)}


def fingerprint(provenance: Mapping[str, Any]) -> str:
    """Hash everything that a shard's content depends on."""
    return hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
