"""A model behind an HTTP endpoint of OpenAI's style: its settings, and how it is asked.

A file says where it is:

    endpoint: https://host/v1       # chat/completions is added
    model: some-vision-model
    key_variable: VISION_API_KEY    # of the environment; no key stands in the file

What it answers was written by a machine that may say anything: whoever asks checks it, and asks again.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import os
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from PIL import Image

from pipeline.errors import ConfigError, MissingInputError
from pipeline.settings import parse_options
from pipeline.store.provenance import fingerprint

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
T = TypeVar("T")


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

    def describe(self, question: str) -> dict[str, Any]:
        """Return what answers to a question depend on, with a hash over it."""
        decides = {name: value for name, value in dataclasses.asdict(self).items() if name not in _PRIVATE}
        return {"name": self.model, "sha256": fingerprint({**decides, "question": question}), "files": {}}


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


class Client:
    """Asks an endpoint, no faster than it allows; several threads may.

    Args:
        settings: of the endpoint.
        sleep: waits so many seconds.

    Raises:
        MissingInputError: there is no key where the settings name one.
    """

    def __init__(self, settings: Endpoint, sleep: Callable[[float], None] = time.sleep) -> None:
        self.settings, self._sleep = settings, sleep
        self._key = os.environ.get(settings.key_variable, "") if settings.key_variable else ""
        if settings.key_variable and not self._key:
            raise MissingInputError(f"{settings.endpoint}: no key; set {settings.key_variable} in the environment")
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._lock, self._next = threading.Lock(), 0.0

    def ask(self, content: Sequence[Mapping[str, Any]], read: Callable[[str], T], is_json: bool = True) -> T:
        """Return what is read of an answer; one that cannot be read is asked for again.

        Args:
            content: of the message, see ``text_part`` and ``picture_part``.
            read: what becomes of the text of an answer; ValueError where it cannot be understood.
            is_json: ask for JSON.

        Raises:
            ValueError: no answer could be understood.
            MissingInputError: the endpoint refuses, or gives no answer.
        """
        body = {
            "model": self.settings.model,
            "temperature": 0,
            "response_format": {"type": "json_object"},
            "messages": [{"role": "user", "content": list(content)}],
        }
        if not is_json:
            del body["response_format"]
        question = json.dumps(body).encode()
        why = ValueError("nothing was asked")
        for _ in range(self.settings.retries + 1):
            answer = self._ask(question)
            try:
                return read(_content(answer))
            except ValueError as error:
                why = error
        raise why

    def _ask(self, question: bytes) -> bytes:
        """Return an answer, asked again after growing pauses while the endpoint fails for reasons that may pass."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        url, pause, why = f"{self.settings.endpoint.rstrip('/')}/chat/completions", 1.0, ""
        for attempt in range(self.settings.retries + 1):
            if attempt:
                self._sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, MAX_PAUSE_S)
            self._wait_for_turn()
            request = urllib.request.Request(url, question, headers)
            try:
                with self._opener.open(request, timeout=self.settings.timeout_s) as response:
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
        raise MissingInputError(f"{url}: no answer in {self.settings.retries + 1} attempts ({why}); run it again later")

    def _wait_for_turn(self) -> None:
        """Wait until another request may be sent."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + 60.0 / self.settings.requests_per_minute
        if turn > now:
            self._sleep(turn - now)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key is for the endpoint alone."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def text_part(text: str) -> dict[str, Any]:
    """Return text as a part of a message."""
    return {"type": "text", "text": text}


def picture_part(image: Image.Image, max_side: int) -> dict[str, Any]:
    """Return a picture, shrunk to a longest side in pixels, as a part of a message."""
    shown = image.convert("RGB")
    shown.thumbnail((max_side, max_side))
    data = io.BytesIO()
    shown.save(data, "JPEG", quality=90)
    url = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _content(answer: bytes) -> str:
    """Return what the model said; ValueError where the answer is of another form."""
    try:
        found = json.loads(answer)["choices"][0]["message"]["content"]
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise ValueError(f"no answer of OpenAI's form ({error}): {answer[:200]!r}") from error
    if not isinstance(found, str):
        raise ValueError(f"no text in the answer: {answer[:200]!r}")
    return found


def json_entries(text: str) -> list[Any]:
    """Return the list of objects in a text: the first JSON in it that is one, or holds one; ValueError without one."""
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
    raise ValueError(f"no JSON with a list: {text[:200]!r}")


def _retry_after(text: str | None) -> float:
    try:
        return min(max(float(text or 0), 0.0), MAX_PAUSE_S)
    except ValueError:
        return 0.0
