"""What travels to a cluster: code and settings, never data."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import ConfigError
from pipeline.store.filesystem import has_credentials

ROOMS = ("glip_model", "pipeline", "stages")
SETTINGS = ("pyproject.toml", "params.yaml")
GRAPH = ("dvc.yaml", ".dvcignore", ".dvc/config")
LOCK = "dvc.lock"
"""Hashes of the last run: what a cluster has not made itself it can then get from the remote."""
MAX_BYTES = 64 << 20
_SECRET_OPTIONS = ("secret", "password", "token", "access_key", "account_key", "connection_string")


def pack(project: Path, code: Path, with_graph: bool, into: Path) -> str:
    """Copy what travels into an empty folder.

    Hidden files, compiled Python and links stay here, but for links to settings.

    Args:
        project: folder of settings and graph.
        code: folder that holds the packages.
        with_graph: whether DVC runs there, which needs its files.
        into: the folder.

    Returns:
        Hash of code, settings and graph.

    Raises:
        ConfigError: it is too large, or DVC's configuration holds secrets.
    """
    files = [(path, path.relative_to(code)) for room in ROOMS for path in _files(code / room)]
    files += [(project / name, Path(name)) for name in SETTINGS + (GRAPH if with_graph else ())]
    files = [(path, name) for path, name in files if path.is_file()]
    if with_graph:
        _refuse_secrets(project / ".dvc/config")
    size = sum(path.stat().st_size for path, _ in files)
    if size > MAX_BYTES:
        largest = max(files, key=lambda file: file[0].stat().st_size)[1]
        raise ConfigError(
            f"{code}: code and settings are {size >> 20} MiB, more than the {MAX_BYTES >> 20} that travel; "
            f"the largest file is {largest}; keep data outside of {', '.join(ROOMS)}"
        )
    digest = hashlib.sha256()
    for path, name in files:
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    if with_graph and (project / LOCK).is_file():
        _pack_lock(project, into)
    return digest.hexdigest()


def unpack(package: Path, folder: Path) -> None:
    """Bring a folder's code, settings and graph to what has travelled; its data and its own lock stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for room in ROOMS:
        shutil.rmtree(folder / room, ignore_errors=True)
        shutil.copytree(package / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (*SETTINGS, *GRAPH):
        (folder / name).unlink(missing_ok=True)
        if (package / name).is_file():
            _copy(package / name, folder / name)
    if (package / LOCK).is_file() and not (folder / LOCK).exists():
        known = _known_files(_read_lock(package), package)
        for name in (LOCK, *itertools.chain(*known.values())):
            _copy(package / name, folder / name)


def check_stage(project: Path, code: Path, name: str) -> None:
    """See that a stage's name is in the graph, and the code to run is the project's.

    Raises:
        ConfigError: it is not.
    """
    graph = project / "dvc.yaml"
    if not graph.is_file() or project.resolve() != code.resolve():
        raise ConfigError(f"{project}: not the project's folder, {code}; submit stages of dvc.yaml from there")
    stages = yaml.safe_load(graph.read_text(encoding="utf-8"))["stages"]
    if name.partition("@")[0] not in stages:
        raise ConfigError(f"{graph}: no stage {name!r}; there are all, {', '.join(stages)}; commands stand behind --")


def _pack_lock(project: Path, into: Path) -> None:
    """Copy what DVC knows of past runs with the files it speaks of, which are metrics, plots and reports.

    A remote need not have them, and DVC would pass over their stages without a word: what misses one is made anew.
    """
    lock = _read_lock(project)
    for stage, names in _known_files(lock, project).items():
        if all((project / name).is_file() for name in names):
            for name in names:
                _copy(project / name, into / name)
        else:
            del lock["stages"][stage]
    (into / LOCK).write_text(yaml.safe_dump(lock, sort_keys=False), encoding="utf-8")


def _read_lock(folder: Path) -> dict[str, Any]:
    lock: dict[str, Any] = yaml.safe_load((folder / LOCK).read_text(encoding="utf-8"))
    return lock


def _known_files(lock: dict[str, Any], folder: Path) -> dict[str, list[str]]:
    """Return by stage the outputs in a folder's lock that are files below it; data and models are folders."""
    found: dict[str, list[str]] = {}
    for stage, known in (lock.get("stages") or {}).items():
        outs = [out for out in known.get("outs", []) if not out.get("md5", "").endswith(".dir")]
        found[stage] = [
            out["path"] for out in outs if (folder / out["path"]).resolve().is_relative_to(folder.resolve())
        ]
    return found


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _files(room: Path) -> Iterator[Path]:
    settings = [(room.parent / name).resolve() for name in SETTINGS]
    for path in sorted(room.rglob("*")):
        hidden = any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(room).parts)
        linked = path.is_symlink() and path.resolve() not in settings
        if not hidden and path.suffix != ".pyc" and not linked:
            yield path


def _refuse_secrets(config: Path) -> None:
    if not config.is_file():
        return
    for line in config.read_text(encoding="utf-8").splitlines():
        option, _, value = (part.strip() for part in line.partition("="))
        if value and (has_credentials(value) or any(word in option.lower() for word in _SECRET_OPTIONS)):
            raise ConfigError(
                f"{config}: {option} looks like a secret, and this file travels; move it to .dvc/config.local with: "
                f"dvc remote modify --local; nodes have rights of their own"
            )
