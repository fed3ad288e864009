"""A teacher behind an HTTP endpoint of OpenAI's style: a model of vision and language that answers with boxes as JSON.

A file says where it is (``--teacher endpoint.yaml``), see ``pipeline.store.endpoint``.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from PIL import Image

from glip_model.boxes import clip_boxes
from glip_model.images import ImageError
from glip_model.prompts import Prompt
from glip_model.structures import Detections
from pipeline.store.endpoint import UNUSABLE, Client, Endpoint, json_entries, picture_part, text_part

logger = logging.getLogger(__name__)

QUESTION = """Find every object that one of these phrases names: {phrases}.
Answer with JSON alone: {{"boxes": [{{"phrase": "one of the phrases, as it is written", "box": [x1, y1, x2, y2], \
"score": 0.0 to 1.0}}]}}. Coordinates are whole numbers from 0 to 1000, thousandths of the picture's width and height \
from its upper left corner. Leave out what is not in the picture."""


class EndpointTeacher:
    """Sends each picture to an endpoint in a request of its own, several at once, no faster than it allows.

    Args:
        endpoint: what is asked.
        sleep: waits so many seconds.
    """

    def __init__(self, endpoint: Endpoint, sleep: Callable[[float], None] = time.sleep) -> None:
        self._endpoint, self._client = endpoint, Client(endpoint, sleep)

    def divide(self, names: Sequence[str]) -> list[list[int]]:
        """Return which names are asked for in one request."""
        places, count = list(range(len(names))), self._endpoint.names_per_request
        return [places[start : start + count] for start in range(0, len(places), count)]

    def ground(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Detections | ImageError]:
        """Find each prompt's phrases in its picture; where no answer can be understood, say so in its place.

        Raises:
            MissingInputError: the endpoint refuses, or gives no answer.
        """
        with ThreadPoolExecutor(self._endpoint.at_once) as pool:
            return list(pool.map(self._look, images, prompts))

    def _look(self, image: Image.Image, prompt: Prompt) -> Detections | ImageError:
        phrases = json.dumps(list(dict.fromkeys(prompt.phrases)), ensure_ascii=False)
        content = [text_part(QUESTION.format(phrases=phrases)), picture_part(image, self._endpoint.max_side)]
        size = image.height, image.width
        try:
            return self._client.ask(content, lambda text: read_answer(text, prompt, size, self._endpoint.coordinates))
        except ValueError as error:
            attempts = self._endpoint.retries + 1
            logger.warning("%s: no usable answer in %d: %s", self._endpoint.model, attempts, error)
            return ImageError(UNUSABLE, str(error))


def read_answer(text: str, prompt: Prompt, size: tuple[int, int], coordinates: str = "thousandths") -> Detections:
    """Return the boxes of an answer; entries that name no phrase, or no box, are left out.

    Args:
        text: JSON, maybe in a fence of Markdown or after other words.
        prompt: what was asked.
        size: (height, width) of the picture.
        coordinates: what the numbers count, see ``Endpoint``.

    Raises:
        ValueError: there is no list of boxes in it.
    """
    entries = json_entries(text)
    place = {phrase.strip().lower(): number for number, phrase in reversed(list(enumerate(prompt.phrases)))}
    sides = {"thousandths": (size[1] / 1000, size[0] / 1000), "pixels": (1.0, 1.0), "shares": (size[1], size[0])}
    x_unit, y_unit = sides[coordinates]
    rows: list[tuple[list[float], float, int]] = []
    for entry in entries:
        if not isinstance(entry, dict):
            continue
        name = next((entry[key] for key in ("phrase", "label", "name") if isinstance(entry.get(key), str)), "")
        corners: Any = next((entry[key] for key in ("box", "bbox_2d", "bbox") if key in entry), None)
        number, score = place.get(name.strip().lower()), entry.get("score", 0.5)
        if number is None or not _is_box(corners) or not _is_number(score) or not 0 <= score <= 1:
            continue
        x1, y1, x2, y2 = corners
        rows.append(([x1 * x_unit, y1 * y_unit, x2 * x_unit, y2 * y_unit], float(score), number))
    if entries and not rows:
        raise ValueError(f"none of {len(entries)} entries is a box of a phrase: {text[:200]!r}")
    rows.sort(key=lambda row: -row[1])
    boxes = clip_boxes(torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4), size)
    scores = torch.tensor([row[1] for row in rows], dtype=torch.float32)
    index = torch.tensor([row[2] for row in rows], dtype=torch.int64)
    return Detections(boxes, scores, index, prompt.phrases, prompt.char_spans)


def _is_box(corners: Any) -> bool:
    if not isinstance(corners, list) or len(corners) != 4 or not all(map(_is_number, corners)):
        return False
    return bool(corners[0] < corners[2] and corners[1] < corners[3])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
