"""Where pretrained weights come from: a local path, a model hub, or a file that an installed package carries."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGE_PREFIX = "package:"


def resolve_source(name: str) -> str:
    """Turn ``package:NAME/path/inside`` into a path on disk; return any other name (path or hub id) unchanged.

    Raises:
        ValueError: the package is not installed or holds no such file or folder.
    """
    if not name.startswith(PACKAGE_PREFIX):
        return name
    package, _, inside = name.removeprefix(PACKAGE_PREFIX).partition("/")
    # A dotted name would import its parent; files of a sub-package are named by their path.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{name}: the package {package!r} is not installed; install it or name a local path")
    root = Path(next(iter(spec.submodule_search_locations)))
    path = root / inside
    if not path.resolve().is_relative_to(root.resolve()) or not path.exists():
        raise ValueError(f"{name}: the package {package!r} holds no {inside!r} (looked in {root})")
    return str(path)
