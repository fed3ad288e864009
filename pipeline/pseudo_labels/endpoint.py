"""A teacher behind an HTTP endpoint of OpenAI's style: a model of vision and language that answers with boxes as JSON.

A file says where it is (``--teacher endpoint.yaml``):

    endpoint: https://host/v1       # chat/completions is added
    model: some-vision-model
    key_variable: VISION_API_KEY    # of the environment; no key stands in the file

What it answers was written by a machine that may say anything: it is checked, asked for again, and left out.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import logging
import math
import os
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from PIL import Image

from glip_model.boxes import clip_boxes
from glip_model.images import ImageError
from glip_model.prompts import Prompt
from glip_model.structures import Detections
from pipeline.errors import ConfigError, MissingInputError
from pipeline.settings import parse_options
from pipeline.store.provenance import fingerprint

logger = logging.getLogger(__name__)

UNUSABLE = "answer_unusable"
"""Reject reason of a row about which an endpoint says nothing that can be understood."""
SUFFIXES = (".yaml", ".yml")
MAX_ANSWER_BYTES = 4 << 20
MAX_PAUSE_S = 60.0
_ASK_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_PRIVATE = ("key_variable", "requests_per_minute", "at_once", "retries", "timeout_s", "price_per_request")
"""Settings that change no answer."""
_STARTS = 32
"""Brackets in an answer at which its JSON may begin."""
_QUESTION = """Find every object that one of these phrases names: {phrases}.
Answer with JSON alone: {{"boxes": [{{"phrase": "one of the phrases, as it is written", "box": [x1, y1, x2, y2], \
"score": 0.0 to 1.0}}]}}. Coordinates are whole numbers from 0 to 1000, thousandths of the picture's width and height \
from its upper left corner. Leave out what is not in the picture."""


@dataclass(frozen=True)
class Endpoint:
    """What a file says of an endpoint."""

    endpoint: str
    model: str
    key_variable: str = ""
    """Variable of the environment with the key; empty sends none."""
    requests_per_minute: float = 60.0
    """Of each labelling process."""
    at_once: int = 4
    """Requests under way at a time."""
    retries: int = 5
    timeout_s: float = 120.0
    names_per_request: int = 20
    max_side: int = 1024
    """Pixels; longer pictures are shrunk before they are sent."""
    price_per_request: float = 0.0
    """For ``glip plan``."""
    coordinates: Literal["thousandths", "pixels", "shares"] = "thousandths"
    """Of boxes in answers; the question asks for thousandths, models that were trained otherwise may not obey."""

    def __post_init__(self) -> None:
        """Check what types do not say."""
        if not re.match(r"https?://[^@\s]+$", self.endpoint):
            raise ConfigError(f"endpoint is {self.endpoint!r}; expected http(s)://… without user or password")
        for name in ("requests_per_minute", "at_once", "timeout_s", "names_per_request", "max_side"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected more than 0")

    @classmethod
    def read(cls, path: Path) -> Endpoint:
        """Read a file.

        Raises:
            MissingInputError: it is not there, or no YAML.
            ConfigError: a setting is unknown, missing or wrong.
        """
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
            raise MissingInputError(
                f"{path}: not a usable teacher ({error}); expected a YAML of an endpoint"
            ) from error
        if not isinstance(found, dict):
            raise ConfigError(f"{path}: expected settings of an endpoint, such as endpoint: https://host/v1")
        hints: dict[str, Any] = {field.name: _TYPES[field.name] for field in dataclasses.fields(cls)}
        defaults = {
            field.name: field.default for field in dataclasses.fields(cls) if field.default is not dataclasses.MISSING
        }
        return cls(**parse_options(hints, defaults, found, str(path)))

    def describe(self) -> dict[str, Any]:
        """Return what answers depend on, with a hash over it."""
        decides = {name: value for name, value in dataclasses.asdict(self).items() if name not in _PRIVATE}
        return {"name": self.model, "sha256": fingerprint({**decides, "question": _QUESTION}), "files": {}}


_TYPES: Mapping[str, Any] = {
    "endpoint": str,
    "model": str,
    "key_variable": str,
    "requests_per_minute": float,
    "at_once": int,
    "retries": int,
    "timeout_s": float,
    "names_per_request": int,
    "max_side": int,
    "price_per_request": float,
    "coordinates": Literal["thousandths", "pixels", "shares"],
}


def is_endpoint(name: str) -> bool:
    """Tell whether the name of a teacher is a file that describes an endpoint."""
    return name.lower().endswith(SUFFIXES) and Path(name).is_file()


class EndpointTeacher:
    """Asks an endpoint about each picture by itself, several at once, no faster than it allows.

    Args:
        endpoint: what is asked.
        sleep: waits so many seconds.
    """

    def __init__(self, endpoint: Endpoint, sleep: Callable[[float], None] = time.sleep) -> None:
        self._endpoint, self._sleep = endpoint, sleep
        self._key = os.environ.get(endpoint.key_variable, "") if endpoint.key_variable else ""
        if endpoint.key_variable and not self._key:
            raise MissingInputError(f"{endpoint.endpoint}: no key; set {endpoint.key_variable} in the environment")
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._lock, self._next = threading.Lock(), 0.0

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
        question = json.dumps(self._question(image, prompt)).encode()
        why = ""
        for _ in range(self._endpoint.retries + 1):
            answer = self._ask(question)
            try:
                return read_answer(_content(answer), prompt, (image.height, image.width), self._endpoint.coordinates)
            except ValueError as error:
                why = str(error)
        logger.warning("%s: no usable answer in %d: %s", self._endpoint.model, self._endpoint.retries + 1, why)
        return ImageError(UNUSABLE, why)

    def _question(self, image: Image.Image, prompt: Prompt) -> dict[str, Any]:
        shown = image.convert("RGB")
        shown.thumbnail((self._endpoint.max_side, self._endpoint.max_side))
        data = io.BytesIO()
        shown.save(data, "JPEG", quality=90)
        url = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
        phrases = json.dumps(list(dict.fromkeys(prompt.phrases)), ensure_ascii=False)
        text = {"type": "text", "text": _QUESTION.format(phrases=phrases)}
        content = [text, {"type": "image_url", "image_url": {"url": url}}]
        return {
            "model": self._endpoint.model,
            "temperature": 0,
            "response_format": {"type": "json_object"},
            "messages": [{"role": "user", "content": content}],
        }

    def _ask(self, question: bytes) -> bytes:
        """Return an answer, asked again after growing pauses while the endpoint fails for reasons that may pass."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        url, pause, why = f"{self._endpoint.endpoint.rstrip('/')}/chat/completions", 1.0, ""
        for attempt in range(self._endpoint.retries + 1):
            if attempt:
                self._sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, MAX_PAUSE_S)
            self._wait_for_turn()
            request = urllib.request.Request(url, question, headers)
            try:
                with self._opener.open(request, timeout=self._endpoint.timeout_s) as response:
                    data: bytes = response.read(MAX_ANSWER_BYTES + 1)
                if len(data) <= MAX_ANSWER_BYTES:
                    return data
                why = f"an answer of more than {MAX_ANSWER_BYTES} bytes"
            except urllib.error.HTTPError as error:
                why = f"status {error.code}"
                if error.code not in _ASK_AGAIN:
                    raise MissingInputError(f"{url}: {why}; mend the endpoint's settings or its key") from error
                pause = max(pause, _retry_after(error.headers.get("Retry-After")))
            except (OSError, ValueError) as error:  # timeouts, broken connections, headers that are none
                why = str(error) or type(error).__name__
            except Exception as error:  # http.client raises its own, which are no OSErrors
                why = f"{type(error).__name__}: {error}"
        raise MissingInputError(
            f"{url}: no answer in {self._endpoint.retries + 1} attempts ({why}); run it again later"
        )

    def _wait_for_turn(self) -> None:
        """Wait until another request may be sent."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + 60.0 / self._endpoint.requests_per_minute
        if turn > now:
            self._sleep(turn - now)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key is for the endpoint alone."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


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
    entries = _entries(text)
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


def _content(answer: bytes) -> str:
    """Return what the model said; ValueError where the answer is of another form."""
    try:
        found = json.loads(answer)["choices"][0]["message"]["content"]
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise ValueError(f"no answer of OpenAI's form ({error}): {answer[:200]!r}") from error
    if not isinstance(found, str):
        raise ValueError(f"no text in the answer: {answer[:200]!r}")
    return found


def _entries(text: str) -> list[Any]:
    """Return the list of boxes in a text: the first JSON in it that is one, or holds one."""
    decoder = json.JSONDecoder()
    for start in (match.start() for match in islice(re.finditer(r"[\[{]", text), _STARTS)):
        try:
            found, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            found = next((value for value in found.values() if isinstance(value, list)), None)
        if isinstance(found, list) and all(isinstance(entry, dict) for entry in found):
            return found
    raise ValueError(f"no JSON with boxes: {text[:200]!r}")


def _is_box(corners: Any) -> bool:
    if not isinstance(corners, list) or len(corners) != 4 or not all(map(_is_number, corners)):
        return False
    return bool(corners[0] < corners[2] and corners[1] < corners[3])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _retry_after(text: str | None) -> float:
    try:
        return min(max(float(text or 0), 0.0), MAX_PAUSE_S)
    except ValueError:
        return 0.0
