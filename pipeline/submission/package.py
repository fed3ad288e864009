"""What travels to a cluster: code and settings, never data."""

from __future__ import annotations

import hashlib
import itertools
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pathspec import GitIgnoreSpec

from pipeline.errors import ConfigError
from pipeline.submission.secrets import refuse_secrets_of_dvc, secret_in

ROOMS = ("glip_model", "pipeline", "stages")
SETTINGS = ("pyproject.toml", "params.yaml")
GRAPH = ("dvc.yaml", ".dvcignore", ".dvc/config")
LOCK = "dvc.lock"
"""Hashes of the last run: what a cluster has not made itself it can then get from the remote."""
MAX_BYTES = 64 << 20

logger = logging.getLogger(__name__)


def pack(project: Path, code: Path, with_graph: bool, into: Path) -> str:
    """Copy what travels into an empty folder.

    Hidden files, compiled Python, links but for those to settings, and what .gitignore names stay here.

    Args:
        project: folder of settings and graph.
        code: folder that holds the packages.
        with_graph: whether DVC runs there, which needs its files.
        into: the folder.

    Returns:
        Hash of code, settings and graph.

    Raises:
        ConfigError: it is too large, a file looks like a key, DVC's configuration holds secrets, or .gitignore names
            settings or graph.
    """
    ignored = _GitIgnore(code)
    found = [path for room in ROOMS for path in _files(code / room)]
    files = [(path, path.relative_to(code)) for path in found if path not in ignored]
    if len(files) < len(found):
        logger.info("%d files stay here, because .gitignore names them", len(found) - len(files))
    ignored = _GitIgnore(project)
    for path in (project / name for name in SETTINGS + (GRAPH if with_graph else ())):
        if path.is_file():
            if path in ignored:
                raise ConfigError(f"{path}: the job needs it, and .gitignore names it; what that names does not travel")
            files.append((path, path.relative_to(project)))
    size = sum(path.stat().st_size for path, _ in files)
    if size > MAX_BYTES:
        largest = max(files, key=lambda file: file[0].stat().st_size)[1]
        raise ConfigError(
            f"{code}: code and settings are {size >> 20} MiB, more than the {MAX_BYTES >> 20} that travel; "
            f"the largest file is {largest}; keep data outside of {', '.join(ROOMS)}"
        )
    lock: dict[str, Any] = {}
    if with_graph:
        refuse_secrets_of_dvc(project / ".dvc/config")
        if (project / LOCK).is_file() and project / LOCK not in ignored:
            lock = _lock_that_travels(project, ignored)
    known = [(project / each, Path(each)) for each in itertools.chain(*_known_files(lock, project).values())]
    _refuse_keys([*files, *known])
    digest = hashlib.sha256()
    for path, name in files:
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    if lock:
        for path, name in known:
            _copy(path, into / name)
        (into / LOCK).write_text(yaml.safe_dump(lock, sort_keys=False), encoding="utf-8")
    return digest.hexdigest()


def unpack(package: Path, folder: Path, with_lock: bool = True) -> None:
    """Bring a folder's code, settings and graph to what has travelled; its data and its own lock stay.

    Args:
        package: folder that ``pack`` filled.
        folder: where the work is done.
        with_lock: bring the lock and its files as well, where the folder has none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for room in ROOMS:
        shutil.rmtree(folder / room, ignore_errors=True)
        shutil.copytree(package / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (*SETTINGS, *GRAPH):
        (folder / name).unlink(missing_ok=True)
        if (package / name).is_file():
            _copy(package / name, folder / name)
    if with_lock and (package / LOCK).is_file() and not (folder / LOCK).exists():
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


def _lock_that_travels(project: Path, ignored: _GitIgnore) -> dict[str, Any]:
    """Return what DVC knows of past runs, of stages all of whose files are here: metrics, plots and reports.

    A remote need not have them, and DVC would pass over their stages without a word: what misses one is made anew.
    """
    lock = _read_lock(project)
    for stage, names in _known_files(lock, project).items():
        if not all((project / name).is_file() and project / name not in ignored for name in names):
            del lock["stages"][stage]
    return lock


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
        if not hidden and path.suffix != ".pyc" and not linked and path.is_file():
            yield path


def _refuse_keys(files: Sequence[tuple[Path, Path]]) -> None:
    seen = ((name, secret_in(name.name, path.read_bytes())) for path, name in files)
    keys = [f"{name} ({what})" for name, what in seen if what]
    if keys:
        raise ConfigError(
            f"{', '.join(keys)}: looks like a secret, and would travel to the cluster; move it out of "
            f"{', '.join(ROOMS)} and the settings, or name its file in .gitignore; nodes have rights of their own"
        )


class _GitIgnore:
    """Paths that .gitignore files name: of the folder, of those below it, and of those above it in its repository."""

    def __init__(self, folder: Path) -> None:
        self._rules: dict[Path, GitIgnoreSpec] = {}
        folder = folder.absolute()
        self._top = next((above for above in (folder, *folder.parents) if (above / ".git").exists()), folder)
        if folder in self:  # an installation in an environment that its repository ignores
            self._top = folder

    def __contains__(self, path: Path) -> bool:
        """Tell whether a path is named, or a folder that it lies in; the nearest .gitignore with an opinion decides."""
        parts = path.absolute().relative_to(self._top).parts
        return any(self._is_named(parts[:end], end < len(parts) or path.is_dir()) for end in range(1, len(parts) + 1))

    def _is_named(self, parts: tuple[str, ...], is_folder: bool) -> bool:
        for depth in reversed(range(len(parts))):
            name = "/".join(parts[depth:]) + ("/" if is_folder else "")
            verdict = self._rules_of(self._top.joinpath(*parts[:depth])).check_file(name).include
            if verdict is not None:
                return verdict
        return False

    def _rules_of(self, folder: Path) -> GitIgnoreSpec:
        if folder not in self._rules:
            file = folder / ".gitignore"
            text = file.read_text(encoding="utf-8-sig", errors="replace") if file.is_file() else ""
            self._rules[folder] = GitIgnoreSpec.from_lines(text.splitlines())
        return self._rules[folder]
