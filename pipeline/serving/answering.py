"""The work itself, without HTTP and without Ray: encoded pictures and names in, boxes out, several requests at once."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glip_model.images import ImageError, decode_image
from glip_model.precision import Precision
from pipeline.errors import ConfigError
from pipeline.serving.limits import Refusal

if TYPE_CHECKING:
    from PIL import Image

    from glip_model.structures import Detections

_NAME = re.compile(r"[\w.-]{1,60}")
_STATUS = {"image_too_large": (413, "too_many_pixels"), "image_unreadable": (415, "not_a_picture")}


@dataclass(frozen=True)
class Asked:
    """A request."""

    data: bytes
    """Of the encoded picture, untrusted."""
    names: tuple[str, ...]
    """None of them means all that a model of fixed names finds."""
    min_score: float
    max_pixels: int


@dataclass(frozen=True)
class Found:
    """What was found in a picture."""

    height: int
    width: int
    boxes: tuple[tuple[tuple[float, ...], float, str], ...]
    """Corners x1 y1 x2 y2 in pixels, score and name, best first."""
    seconds: float
    """That the batch took."""
    batch: int
    """Requests that were answered together."""


@dataclass(frozen=True)
class ModelPlace:
    """A model to serve, as it crosses to other processes."""

    source: str
    """Folder, hub id or ONNX file."""
    device: str | None = None
    precision: Precision = "auto"
    threads: int = 0
    """Of the CPU that a copy of the model computes with; 0 leaves that to the libraries."""


class Answerer:
    """A model that answers requests, as many at once as come together.

    Args:
        place: of the model.

    Raises:
        ConfigError: it cannot be loaded.
    """

    def __init__(self, place: ModelPlace) -> None:
        import torch

        from glip_model.onnx_predictor import OnnxPredictor, onnx_file
        from glip_model.predictor import GLIPPredictor

        if place.threads:
            torch.set_num_threads(place.threads)
        file = onnx_file(place.source)
        self._predictor: Any
        try:
            if file is None:
                self._predictor = GLIPPredictor.from_pretrained(place.source, place.device, place.precision)
            else:
                self._predictor = OnnxPredictor(file, place.device, place.threads)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.names: tuple[str, ...] = () if file is None else self._predictor.card.names
        """What it finds, of a model of fixed names; empty where one asks for names."""

    def __call__(self, requests: Sequence[Asked]) -> list[Found | Refusal]:
        """Answer requests in order; those of the same names look at their pictures together."""
        start = time.perf_counter()
        answers: list[Any] = [None] * len(requests)
        pictures: list[Image.Image | None] = []
        groups: dict[tuple[str, ...], list[int]] = {}
        for i, asked in enumerate(requests):
            try:
                pictures.append(decode_image(asked.data, asked.max_pixels))
                groups.setdefault(asked.names, []).append(i)
            except ImageError as error:
                pictures.append(None)
                answers[i] = Refusal(*_STATUS[error.reason], str(error))
        for names, rows in groups.items():
            try:
                # None of the names stands twice: see app.names_of.
                found = self._predictor.predict([pictures[i] for i in rows], names or None, batch_size=len(rows))
            except ValueError as error:
                for i in rows:
                    answers[i] = Refusal(422, "names", str(error))
                continue
            for i, each in zip(rows, found, strict=True):
                answers[i] = each.above(requests[i].min_score)
        seconds = time.perf_counter() - start
        return [
            answer if picture is None or isinstance(answer, Refusal) else _told(answer, picture, seconds, len(requests))
            for answer, picture in zip(answers, pictures, strict=True)
        ]


def _told(found: Detections, picture: Image.Image, seconds: float, batch: int) -> Found:
    boxes = zip(found.boxes_xyxy.tolist(), found.scores.tolist(), found.labels, strict=True)
    return Found(
        picture.height, picture.width, tuple((tuple(box), score, name) for box, score, name in boxes), seconds, batch
    )


def named(sources: Sequence[str]) -> dict[str, str]:
    """Return models, each ``NAME=SOURCE`` or a source whose last part is its name, by name; ConfigError without one."""
    models: dict[str, str] = {}
    for text in sources:
        before, mark, after = text.partition("=")
        source = after if mark else text
        name = before if mark else re.sub(r"\.onnx$", "", source.rstrip("/").rpartition("/")[2])
        if not _NAME.fullmatch(name) or not source:
            raise ConfigError(
                f"{text}: {name!r} is no name for a model; write NAME=MODEL with letters, digits, - and _"
            )
        if name in models:
            raise ConfigError(f"{models[name]} and {source} are both called {name}; write NAME=MODEL")
        models[name] = source
    return models
