"""Checkpoints from which an interrupted training resumes: written whole or not at all, checked when read."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

KEPT = 2
"""Checkpoints kept: the newest, and one to fall back to."""
_PATTERN = "step-*.pt"


def save_checkpoint(folder: Path, step: int, fingerprint: str, state: dict[str, Any]) -> None:
    """Write a checkpoint and remove the oldest ones.

    Args:
        folder: created when it is not there.
        step: optimiser steps done.
        fingerprint: of everything that must be the same for the checkpoint to continue this training.
        state: tensors and plain values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    aside = folder / f".{path.name}.{os.getpid()}"
    torch.save({"step": step, "fingerprint": fingerprint, **state}, aside)
    os.replace(aside, path)
    for old in sorted(folder.glob(_PATTERN))[:-KEPT]:
        old.unlink()


def load_checkpoint(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return the newest usable checkpoint, or None to start from the beginning.

    A broken file is passed over with a warning. A checkpoint of other settings, data or code is not used either.
    """
    for path in sorted(folder.glob(_PATTERN), reverse=True):
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
            logger.warning("%s is broken (%s); falling back to the checkpoint before it", path, error)
            continue
        if state.get("fingerprint") != fingerprint:
            logger.warning("%s belongs to other settings or data; training starts from the beginning", path)
            return None
        return state
    return None


def discard_checkpoints(folder: Path) -> None:
    """Remove all checkpoints."""
    shutil.rmtree(folder, ignore_errors=True)
