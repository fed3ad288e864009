"""Teachers: whatever finds the phrases of captions in pictures."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from PIL import Image

from glip_model.checkpoint import CONFIG_FILE
from glip_model.precision import Precision, allow_tf32, best_device
from glip_model.predictor import GLIPPredictor
from glip_model.pretrained import resolve_folder
from glip_model.prompts import Prompt
from glip_model.structures import Detections
from pipeline.errors import MissingInputError
from pipeline.store.provenance import code_sha256, describe_model


class Teacher(Protocol):
    """What labels; ``GLIPPredictor`` is one."""

    def ground(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Detections]:
        """Find each prompt's phrases in its picture; boxes in pixels of the picture."""
        ...


def open_teacher(name: str, device: str | None = None, precision: Precision = "auto") -> Teacher:
    """Load a teacher, and let this process use TensorFloat-32 where there is a GPU.

    Args:
        name: folder or hub id of a GLIP model, of Grounding DINO or of OWLv2; or ``module:function`` of a teacher of
            one's own: the function takes the device, and decides for itself what it computes in.
        device: ``cpu`` or ``cuda``; None takes a GPU where there is one.
        precision: see ``GLIPPredictor``.

    Raises:
        MissingInputError: it is not there, or cannot be used.
    """
    allow_tf32()
    device = device or best_device()
    own = _own_function(name)
    if own is not None:
        teacher: Teacher = own(device)
        return teacher
    folder = _folder(name)
    try:
        kind = _model_type(folder)
        if kind is None:
            return GLIPPredictor.from_pretrained(folder, device, precision)
        from pipeline.pseudo_labels.open_set_teachers import TEACHERS  # transformers' detectors take a second to load

        return cast(Teacher, TEACHERS[kind](folder, device, precision))
    except KeyError as error:
        raise MissingInputError(
            f"{name}: no teacher for models of type {error}; write one as module:function"
        ) from None
    except (ValueError, OSError, RuntimeError) as error:
        raise MissingInputError(f"{name}: not a usable teacher ({error}); run: dvc repro train@teacher") from error


def describe_teacher(name: str) -> dict[str, Any]:
    """Return a teacher's name and the hashes of all files that decide what it finds.

    Raises:
        MissingInputError: there is no such teacher.
    """
    own = _own_function(name)
    if own is not None:
        return {"name": name, "sha256": code_sha256([own]), "files": {}}
    return describe_model(_folder(name)) | {"name": Path(name).name}


def _folder(name: str) -> Path:
    try:
        return resolve_folder(name)
    except ValueError as error:
        raise MissingInputError(f"{error}; to make one run: dvc repro train@teacher") from error


def _model_type(folder: Path) -> str | None:
    """Return the ``model_type`` of a model of transformers; None of this project's own."""
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8-sig"))
    found = config.get("model_type") if isinstance(config, dict) else None
    return None if found is None else str(found)


def _own_function(name: str) -> Callable[[str], Teacher] | None:
    """Return the function that ``module:function`` names; None where the name is a folder."""
    module, colon, function = name.partition(":")
    if not colon or Path(name).exists():
        return None
    try:
        found: Callable[[str], Teacher] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise MissingInputError(f"{name}: no such teacher ({error}); expected module:function, or a folder") from error
    return found
