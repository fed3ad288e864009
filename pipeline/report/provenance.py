"""Where the numbers of a report come from: code, settings, data, machine and versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from pipeline.report.labels import read_json
from pipeline.store.storage import Place, list_files, read_text

PACKAGES = ("torch", "torchvision", "transformers", "timm", "ray", "numpy", "pyarrow", "dvc")
DATA = ("data/", "models/")
"""Outputs whose hashes are told: what is learned from, and what was learned."""
STAGES = (("", "prepare"), ("train", "*"), ("labels", "*"))
"""Folders and names of the metrics of stages that measure their speed."""
_FILES_NAMED = 8


@dataclass(frozen=True)
class Provenance:
    """What a reader needs to find the run again; what is not known is left out."""

    code: dict[str, str]
    params: str
    """All of params.yaml."""
    data: list[tuple[str, str, str, str]]
    """Path, hash, size and files of outputs."""
    speeds: list[tuple[str, dict[str, str]]]
    """Stage to what it has measured of itself."""
    machine: dict[str, str]
    versions: dict[str, str]


def collect(params: Path, lock: Place, metrics: Place) -> Provenance:
    """Ask git, DVC's lock file, the metrics of stages and this machine.

    Args:
        params: params.yaml.
        lock: dvc.lock, which need not be there.
        metrics: folder of the stages' JSON files.
    """
    outs = _outs(lock)
    stages = [(folder, path) for folder, name in STAGES for path in list_files(metrics / folder, f"{name}.json")]
    return Provenance(
        code=_code([*outs, lock.name]),
        params=params.read_text(encoding="utf-8") if params.is_file() else "",
        data=_data(outs),
        speeds=[
            (f"{folder} {path.stem}".strip(), found) for folder, path in stages if (found := _scalars(read_json(path)))
        ],
        machine=_machine(),
        versions={"python": platform.python_version(), **_versions()},
    )


def _code(written: Sequence[str]) -> dict[str, str]:
    """Return the commit, and which files differ from it beside those that the run writes itself."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return {"code": "not a git checkout"}
    # Paths of git's begin at the root of the checkout, where dvc.lock is too.
    changed = [line[3:] for line in _git("status", "--porcelain", "--untracked-files=no").splitlines()]
    changed = [path for path in changed if not any(path == each or path.startswith(f"{each}/") for each in written)]
    if not changed:
        return {"commit": commit, "tree": "clean, but for what the run writes"}
    more = f" and {len(changed) - _FILES_NAMED} more" if len(changed) > _FILES_NAMED else ""
    return {"commit": commit, "tree": f"dirty: {', '.join(changed[:_FILES_NAMED])}{more}"}


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return ""
    return done.stdout.rstrip() if done.returncode == 0 else ""


def _outs(lock: Place) -> dict[str, dict[str, Any]]:
    """Return what the stages have written, by path."""
    text = read_text(lock)
    if text is None:
        return {}
    stages = (yaml.safe_load(text) or {}).get("stages", {})
    return {out["path"]: out for stage in stages.values() for out in stage.get("outs", [])}


def _data(outs: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    return [
        (path, str(out.get("md5", "")), _bytes(out.get("size")), str(out.get("nfiles", 1)))
        for path, out in sorted(outs.items())
        if path.startswith(DATA)
    ]


def _scalars(values: dict[str, Any]) -> dict[str, str]:
    """Return speeds, durations and counts that stand at the top of a stage's metrics."""
    names = ("steps", "rows", "skipped_steps", "unreadable_pictures", "data_wait_share")
    return {
        name.replace("_", " "): f"{value:,.0f}" if isinstance(value, int) or value >= 1000 else f"{value:.4g}"
        for name, value in values.items()
        if isinstance(value, int | float) and (name in names or name.endswith(("_s", "seconds")))
    }


def _machine() -> dict[str, str]:
    found = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(os.cpu_count() or ""),
        "memory": _bytes(_memory()),
        "GPU": ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())),
    }
    return {name: value for name, value in found.items() if value}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor()
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on every system
        return None


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _bytes(count: Any) -> str:
    if not isinstance(count, int):
        return ""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.3g} {unit}"
