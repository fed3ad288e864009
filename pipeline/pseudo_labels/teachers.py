"""Teachers: whatever finds the phrases of captions in pictures."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from PIL import Image

from glip_model.checkpoint import CONFIG_FILE
from glip_model.hugging_face.files import MODEL_TYPE
from glip_model.images import ImageError
from glip_model.precision import Precision, allow_tf32, best_device
from glip_model.predictor import GLIPPredictor
from glip_model.pretrained import resolve_folder
from glip_model.prompts import Prompt
from glip_model.resizing import ResizeRule
from glip_model.structures import Detections, join_detections
from pipeline.errors import ConfigError, MissingInputError
from pipeline.pseudo_labels.endpoint import QUESTION, EndpointTeacher
from pipeline.store.endpoint import Endpoint, is_endpoint
from pipeline.store.folders import local_folder
from pipeline.store.provenance import code_sha256, describe_model
from pipeline.store.storage import to_place
from pipeline.store.urls import is_url

Answer = Detections | ImageError
"""A teacher's detections in a picture, or the reason why there are none."""


class Teacher(Protocol):
    """What labels, by the least that it must do: pictures come one batch at a time, as they are."""

    def ground(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> Sequence[Answer]:
        """Find each prompt's phrases in its picture; boxes in pixels of the picture."""
        ...


@runtime_checkable
class PreparedTeacher(Protocol):
    """A teacher that lets others do what needs no device; ``GLIPPredictor`` is one.

    One thread may be in ``prepare`` while another one is in ``answer``.
    """

    resize_rule: ResizeRule | None
    """Pictures are resized so where they are decoded, and come in batches of one padded size; None: as they are."""

    def prepare(self, images: Sequence[Any], prompts: Sequence[Prompt]) -> Any:
        """Return what ``answer`` takes of pictures that were resized, or not, and of a prompt for each."""
        ...

    def answer(self, question: Any) -> Sequence[Answer]:
        """Find each prompt's phrases in its picture; boxes in pixels of the picture before it was resized."""
        ...


class _AsTheyAre:
    """A teacher that prepares pictures itself."""

    resize_rule: ResizeRule | None = None

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        if hasattr(teacher, "divide"):
            self.divide = teacher.divide

    def prepare(self, images: Sequence[Any], prompts: Sequence[Prompt]) -> Any:
        return images, prompts

    def answer(self, question: Any) -> Sequence[Answer]:
        return self._teacher.ground(*question)


def prepared(teacher: Teacher | PreparedTeacher) -> PreparedTeacher:
    """Return a teacher whose work is divided into two steps.

    A ``ground`` that stands before ``answer`` is called, with pictures as they are: whoever derives a class from
    ``GLIPPredictor``, or replaces the method of one, wants that.
    """
    homes = [getattr(teacher, "__dict__", {}), *map(vars, type(teacher).__mro__)]
    first = next((home for home in homes if "answer" in home or "ground" in home), {})
    if isinstance(teacher, PreparedTeacher) and "answer" in first:
        return teacher
    return _AsTheyAre(cast(Teacher, teacher))


def divide_names(teacher: Teacher | PreparedTeacher, names: Sequence[str]) -> list[list[int]]:
    """Return which names a teacher is asked for at once, by their places.

    A teacher with a method ``divide`` says so itself; others are asked for all of them.

    Raises:
        ConfigError: a name is too long for the teacher.
    """
    divide = getattr(teacher, "divide", None)
    try:
        return [list(range(len(names)))] if divide is None else [list(chunk) for chunk in divide(names)]
    except ValueError as error:
        raise ConfigError(str(error)) from error


def prepare_question(
    teacher: PreparedTeacher, images: Sequence[Any], prompts: Sequence[Sequence[Prompt]]
) -> list[tuple[int, Any]]:
    """Return what ``answer_question`` takes, of pictures with as many prompts for each.

    A teacher with a method ``prepare_several`` looks at a picture once, whatever the number of prompts; others are
    asked one prompt after the other.
    """
    several = getattr(teacher, "prepare_several", None)
    if several is not None and len(prompts[0]) > 1:
        return [(0, several(images, prompts))]
    return [(len(turn[0].phrases), teacher.prepare(images, turn)) for turn in zip(*prompts, strict=True)]


def answer_question(teacher: PreparedTeacher, question: Sequence[tuple[int, Any]]) -> list[Answer]:
    """Return per picture what is found for all of its prompts, whose phrases count through."""
    answers = [teacher.answer(part) for _, part in question]
    counts = [count for count, _ in question]
    if len(answers) == 1:
        return list(answers[0])
    return [_joined(found, counts) for found in zip(*answers, strict=True)]


def _joined(answers: Sequence[Answer], counts: Sequence[int]) -> Answer:
    found = [answer for answer in answers if isinstance(answer, Detections)]
    if len(found) < len(answers):
        return next(answer for answer in answers if isinstance(answer, ImageError))
    return join_detections(found, counts)


def open_teacher(name: str, device: str | None = None, precision: Precision = "auto") -> Teacher | PreparedTeacher:
    """Load a teacher, and let this process use TensorFloat-32 where there is a GPU.

    Args:
        name: a YAML file of an ``endpoint``; folder, URL or hub id of a GLIP model or of an open-set detector of
            transformers, Florence-2 or one of ``open_set_teachers.TEACHERS``; or ``module:function`` of your own: the
            function takes the device, decides for itself what it computes in, and returns a ``Teacher`` or a
            ``PreparedTeacher``.
        device: ``cpu`` or ``cuda``; None takes a GPU where there is one.
        precision: see ``GLIPPredictor``.

    Raises:
        MissingInputError: it is not there, or cannot be used.
    """
    allow_tf32()
    device = device or best_device()
    if is_endpoint(name):
        return EndpointTeacher(Endpoint.read(Path(name)))
    own = _own_function(name)
    if own is not None:
        teacher: Teacher | PreparedTeacher = own(device)
        return teacher
    try:
        with _folder(name) as folder:
            kind = _model_type(folder)
            if kind is None:
                return GLIPPredictor.from_pretrained(folder, device, precision)
            # transformers takes a second to load
            from pipeline.pseudo_labels.florence_teacher import Florence2Teacher
            from pipeline.pseudo_labels.open_set_teachers import TEACHERS

            if kind == "florence2":
                return cast(Teacher, Florence2Teacher(folder, device, precision))
            if kind not in TEACHERS:
                raise MissingInputError(
                    f"{name}: no teacher for models of type {kind!r}; there are some for those of this project and of "
                    f"types florence2, {', '.join(sorted(TEACHERS))}; write one as module:function"
                )
            return cast(Teacher, TEACHERS[kind](folder, device, precision))
    except (ValueError, OSError, RuntimeError) as error:
        raise MissingInputError(
            f"{name}: not a usable teacher ({error}); run: dvc repro train_baseline@teacher"
        ) from error


def describe_teacher(name: str) -> dict[str, Any]:
    """Return a teacher's name and the hashes of all files that decide what it finds.

    Raises:
        MissingInputError: there is no such teacher.
    """
    if is_endpoint(name):
        return Endpoint.read(Path(name)).describe(QUESTION)
    own = _own_function(name)
    if own is not None:
        return {"name": name, "sha256": code_sha256([own]), "files": {}}
    with _folder(name) as folder:
        return describe_model(folder) | {"name": Path(name).name}


@contextmanager
def _folder(name: str) -> Iterator[Path]:
    """Give the folder of a model for the length of a ``with`` block."""
    if is_url(name):
        with local_folder(to_place(name)) as folder:
            yield folder
        return
    try:
        found = resolve_folder(name)
    except ValueError as error:
        raise MissingInputError(f"{error}; to make one run: dvc repro train_baseline@teacher") from error
    yield found


def _model_type(folder: Path) -> str | None:
    """Return the ``model_type`` of a model that is transformers' own; None of this project's."""
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8-sig"))
    found = config.get("model_type") if isinstance(config, dict) else None
    return None if found in (None, MODEL_TYPE) else str(found)


def _own_function(name: str) -> Callable[[str], Teacher | PreparedTeacher] | None:
    """Return the function that ``module:function`` names; None where the name is a folder."""
    module, colon, function = name.partition(":")
    if not colon or is_url(name) or Path(name).exists():
        return None
    try:
        found: Callable[[str], Teacher | PreparedTeacher] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise MissingInputError(f"{name}: no such teacher ({error}); expected module:function, or a folder") from error
    return found
