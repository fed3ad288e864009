"""Checkpoints from which an interrupted training resumes: written whole or not at all, checked when read.

A file's name carries the step and the beginning of its own SHA-256, so that damage of any kind is seen before the file
is unpacked: ``step-00000400-8c1f03b2a7d94e56.pt``.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

KEPT = 2
"""Checkpoints kept: the newest, and one to fall back to."""
_NAME = re.compile(r"step-(\d{8,})-([0-9a-f]{16})\.pt")


def save_checkpoint(folder: Path, step: int, fingerprint: str, state: dict[str, Any]) -> None:
    """Write a checkpoint and remove older ones, and those of an abandoned training that had come further.

    Args:
        folder: created when it is not there; only one process may write to it.
        step: optimiser steps done.
        fingerprint: of everything that must be the same for the checkpoint to continue this training.
        state: tensors and plain values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".step-{step:08d}.{os.getpid()}"
    try:
        torch.save({"step": step, "fingerprint": fingerprint, **state}, aside)
        os.replace(aside, folder / f"step-{step:08d}-{_digest(aside)}.pt")
    finally:
        aside.unlink(missing_ok=True)
    found = _checkpoints(folder)
    past = [path for number, path in found if number <= step]
    for path in [*past[:-KEPT], *(path for number, path in found if number > step), *folder.glob(".step-*")]:
        path.unlink()


def load_checkpoint(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return the newest usable checkpoint, or None to start from the beginning.

    A damaged file is passed over with a warning. A checkpoint of other settings, data or starting weights is not used
    either; the next one that is saved replaces it.
    """
    for _, path in reversed(_checkpoints(folder)):
        state = _read(path)
        if state is None:
            logger.warning("%s is damaged; falling back to the checkpoint before it", path)
            continue
        if state["fingerprint"] != fingerprint:
            logger.warning(
                "%s belongs to a training with other settings, data or starting weights; starting from the beginning",
                path,
            )
            return None
        return state
    return None


def discard_checkpoints(folder: Path) -> None:
    """Remove all checkpoints."""
    shutil.rmtree(folder, ignore_errors=True)


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return steps and files, oldest step first."""
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.glob("step-*.pt"))
    return sorted((int(match[1]), path) for match, path in matches if match)


def _read(path: Path) -> dict[str, Any] | None:
    """Return what a file holds; None when it is damaged."""
    try:
        # torch.load checks no checksums: a flipped bit would go unseen, and rubbish raises whatever it likes.
        if not path.stem.endswith(_digest(path)):
            return None
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError):
        return None
    return state


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
