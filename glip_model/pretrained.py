"""Where pretrained weights come from: a local path, a model hub, or a file that an installed package carries."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

PACKAGE_PREFIX = "package:"
PUBLISHED_REPOSITORY = "GLIPModel/GLIP"
"""Where the authors' checkpoints are on the hub."""
DATA_FILES = ["*.json", "*.safetensors", "vocab.txt", "merges.txt"]
"""What is fetched of a model on the hub."""
_HUB_ID = re.compile(r"(?!models/|\.+/)[\w.-]+/[\w.-]+")
"""``owner/model``; but ``models/NAME`` is where the project's own models are."""


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


def resolve_folder(name: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a saved model: a local one, one inside a package, or one fetched from the hub.

    Args:
        name: path, ``package:`` path, or hub id such as ``owner/model``.
        revision: branch, tag or commit of a hub id.

    Raises:
        ValueError: there is no such folder, and the hub does not deliver it either.
    """
    path = Path(resolve_source(str(name)))
    if path.is_dir():
        return path
    if isinstance(name, Path) or not _HUB_ID.fullmatch(name) or path.parent.is_dir():
        raise ValueError(f"{name}: no such folder; expected one written by save_pretrained, or a hub id owner/model")
    if name == PUBLISHED_REPOSITORY:
        raise ValueError(
            f"{name}: holds the published checkpoints, and no folder of a model; convert one: glip convert hub:{name} "
            f"models/glip_t --variant glip_t, or GLIPPredictor.from_pretrained({name!r}, variant='glip_t')"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # Data alone: nothing that is unpickled or run.
        return Path(snapshot_download(name, revision=revision, allow_patterns=DATA_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(f"{name}: neither a folder here nor a model that the hub delivers: {error}") from error
