"""Checkpoints from which a training resumes: on disk or in a store, written whole or not at all, checked when read.

A checkpoint is three files of one name, which carries the step and the beginning of the training's fingerprint:

- ``step-00000400-8c1f03b2a7d94e56.pt``: the state;
- ``….yaml``: all settings of the training, to be read by people, and a params file once it ``extends`` one;
- ``….json``: hashes of the two and the score. It is written last: without it there is no checkpoint.
"""

from __future__ import annotations

import json
import logging
import math
import pickle
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pipeline.errors import StorageError
from pipeline.store.atomic import replacing, sweep
from pipeline.store.provenance import file_sha256
from pipeline.store.read_errors import READ_ERRORS, describe
from pipeline.store.storage import Place, fetched, list_files, remove, remove_empty

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{8,})-([0-9a-f]{16})\.(pt|yaml|json)")
_FINGERPRINT_CHARS = 16
_FAILURES: tuple[type[Exception], ...] = (*READ_ERRORS, StorageError)
"""Errors of writing; among them RuntimeError, by which torch.save reports a full disk."""


@dataclass(frozen=True)
class Manifest:
    """What stands in the last file of a checkpoint."""

    step: int
    sha256: str
    """Hash of the file with the state, so that damage of any kind is seen before it is unpacked."""
    settings_sha256: str
    score: float | None
    """Higher is better; None where the model was not judged."""


class Checkpoints:
    """Writes checkpoints in a thread, one at a time, beside the training; reads the newest that is usable.

    A context: it ends when nothing is being written any more.

    Args:
        folder: created when it is not there; only one process may write to it.
        settings: YAML that is written beside every checkpoint.
        keep_last: how many of the newest are kept, and besides them the one of the best score.
    """

    def __init__(self, folder: Place, settings: str = "", keep_last: int = 2) -> None:
        self.folder, self._settings, self._keep_last = folder, settings, keep_last
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def save(self, step: int, fingerprint: str, state: dict[str, Any], score: float | None = None) -> None:
        """Begin to write a checkpoint, when the one before is written; then older ones and foreign ones are removed.

        A failed write is logged as a warning, and the earlier checkpoints stay.

        Args:
            step: optimiser steps done.
            fingerprint: in hexadecimal, of everything that must be the same for the checkpoint to continue a training.
            state: tensors and plain values; it may change as soon as this returns.
            score: of the model; the best one's checkpoint is kept.
        """
        self.wait()
        copied = tree_map_only(Tensor, _copy, {"step": step, **state})
        self._writing = self._thread.submit(self._write, step, fingerprint, copied, score)

    def wait(self) -> None:
        """Return when nothing is being written any more."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def load(self, fingerprint: str, step: int | None = None) -> dict[str, Any] | None:
        """Return the newest usable checkpoint, or None to start from the beginning.

        A damaged one is passed over with a warning. A checkpoint of other settings, data or starting weights is not
        used either; the next one that is saved replaces it.

        Args:
            fingerprint: as it was saved.
            step: look at this one alone.

        Raises:
            StorageError: the store gives no answer.
        """
        self.wait()
        found = _checkpoints(self.folder)
        own = [name for name in found if _is_of(name, fingerprint)]
        if found and not own:
            logger.warning(
                "%s belongs to a training with other settings, data or starting weights; starting from the beginning",
                self.folder / found[-1],
            )
        for name in reversed(own):
            if step is not None and _step(name) != step:
                continue
            state = _read(self.folder, name)
            if state is not None:
                return state
            logger.warning("%s is damaged; falling back to the checkpoint before it", self.folder / f"{name}.pt")
        return None

    def _write(self, step: int, fingerprint: str, state: dict[str, Any], score: float | None) -> None:
        name = f"step-{step:08d}-{fingerprint[:_FINGERPRINT_CHARS]}"
        try:
            with replacing(self.folder / f"{name}.yaml") as path:
                path.write_text(self._settings, encoding="utf-8")
                settings_digest = file_sha256(path)
            with replacing(self.folder / f"{name}.pt") as path:
                torch.save(state, path)
                digest = file_sha256(path)
            with replacing(self.folder / f"{name}.json") as path:
                manifest = Manifest(step, digest, settings_digest, score)
                path.write_text(json.dumps(asdict(manifest)), encoding="utf-8")
            _keep(self.folder, self._kept(step, fingerprint))
        except _FAILURES as error:
            # No name but `error` may hold what was raised: it would keep the file open, and so the disk full.
            logger.warning(
                "%s: the checkpoint of step %d could not be written (%s); training goes on, and would resume from the "
                "one before; make room or mend the access to it",
                self.folder,
                step,
                describe(error.__cause__ if isinstance(error.__cause__, OSError) else error, str(self.folder)),
            )
            with suppress(*_FAILURES):
                _keep(self.folder, set(_checkpoints(self.folder)))

    def _kept(self, step: int, fingerprint: str) -> set[str]:
        """Return the checkpoints to keep after that of ``step``; any later ones are of a training that was given up."""
        names = [name for name in _checkpoints(self.folder) if _is_of(name, fingerprint) and _step(name) <= step]
        scores = {name: manifest.score for name in names if (manifest := _manifest(self.folder, name)) is not None}
        judged = {name: score for name, score in scores.items() if score is not None and not math.isnan(score)}
        best = [max(judged, key=lambda name: judged[name])] if judged else []
        return {*names[-self._keep_last :], *best}


def has_checkpoints(folder: Place) -> bool:
    """Tell whether there are checkpoints, of this training or of another."""
    return bool(_checkpoints(folder))


def discard_checkpoints(folder: Place) -> None:
    """Remove all checkpoints, and the folder if nothing else is in it."""
    _keep(folder, set())
    remove_empty(folder)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _is_of(name: str, fingerprint: str) -> bool:
    return name.endswith(fingerprint[:_FINGERPRINT_CHARS])


def _step(name: str) -> int:
    return int(name.split("-")[1])


def _files(folder: Place) -> Iterator[tuple[Place, str]]:
    """Yield the files of checkpoints and the checkpoints' names."""
    for path in list_files(folder, "step-*"):
        if _NAME.fullmatch(path.name):
            yield path, path.stem


def _checkpoints(folder: Place) -> list[str]:
    """Return the names of complete checkpoints, oldest step first."""
    return sorted((name for path, name in _files(folder) if path.suffix == ".json"), key=_step)


def _keep(folder: Place, names: set[str]) -> None:
    """Remove all other checkpoints, and what killed writers left."""
    files = [path for path, name in _files(folder) if name not in names]
    for path in sorted(files, key=lambda path: path.suffix != ".json"):
        remove(path)
    sweep(folder, "step-*")


def _manifest(folder: Place, name: str) -> Manifest | None:
    """Return a checkpoint's manifest; None when it is damaged."""
    try:
        with fetched(folder / f"{name}.json") as path:
            values = json.loads(path.read_text(encoding="utf-8"))
        manifest = Manifest(**values)
        return manifest if isinstance(manifest.score, float | int | None) else None
    except (OSError, ValueError, TypeError):
        return None


def _read(folder: Place, name: str) -> dict[str, Any] | None:
    """Return what a checkpoint holds; None when it is damaged."""
    manifest = _manifest(folder, name)
    if manifest is None:
        return None
    try:
        with fetched(folder / f"{name}.pt") as path:
            # torch.load checks no checksums: a flipped bit would go unseen, and rubbish raises whatever it likes.
            if file_sha256(path) != manifest.sha256:
                return None
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError):
        return None
    return state
