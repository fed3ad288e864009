"""Captioners: image-to-text models of transformers, and models of vision and language behind endpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from glip_model.checkpoint import check_finite
from glip_model.images import ImageError
from glip_model.precision import allow_tf32, autocast, best_device, dtype_of
from glip_model.pretrained import resolve_folder
from pipeline.errors import MissingInputError
from pipeline.recaption.settings import RecaptionConfig
from pipeline.store.endpoint import UNUSABLE, Client, Endpoint, is_endpoint, picture_part, text_part
from pipeline.store.provenance import describe_model

MAX_CHARS = 2000
"""Of a caption; what a model says beyond is no caption."""


class Captioner(Protocol):
    """Says what is in pictures."""

    def caption(self, images: Sequence[Image.Image]) -> list[str | ImageError]:
        """Return a caption of each picture, or why there is none."""
        ...


class HubCaptioner:
    """An image-to-text model of transformers that captions without being asked, such as BLIP or GIT.

    Args:
        folder: of the model.
        config: length and precision.
        device: ``cpu`` or ``cuda``.

    Raises:
        ValueError, OSError, KeyError: it is no such model.
    """

    def __init__(self, folder: Path, config: RecaptionConfig, device: str) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor  # takes a second to load

        self._processor = AutoProcessor.from_pretrained(folder)
        if getattr(self._processor, "chat_template", None):
            raise ValueError("a model that is asked by chat; serve it behind an endpoint and name the endpoint's file")
        model: Any = AutoModelForImageTextToText.from_pretrained(folder, use_safetensors=True)
        check_finite(model.state_dict(), str(folder))
        self._model, self._device, self._max_tokens = model.to(device).eval(), device, config.max_tokens
        self._dtype = dtype_of(config.precision, device)

    @torch.inference_mode()
    def caption(self, images: Sequence[Image.Image]) -> list[str | ImageError]:
        """Return a caption of each picture: the likeliest word after the other, the same every time."""
        inputs = self._processor(images=list(images), return_tensors="pt").to(self._device)
        with autocast(self._dtype, self._device):
            tokens = self._model.generate(**inputs, max_new_tokens=self._max_tokens, do_sample=False, num_beams=1)
        return [_checked(text) for text in self._processor.batch_decode(tokens, skip_special_tokens=True)]


class EndpointCaptioner:
    """Asks an endpoint about each picture, several at once, no faster than it allows.

    Args:
        endpoint: what is asked.
        question: for a caption.
        sleep: waits so many seconds.
    """

    def __init__(self, endpoint: Endpoint, question: str, sleep: Callable[[float], None] = time.sleep) -> None:
        self._client, self._question = Client(endpoint, sleep), question

    def caption(self, images: Sequence[Image.Image]) -> list[str | ImageError]:
        """Return a caption of each picture, or why there is none; MissingInputError where nobody answers."""
        with ThreadPoolExecutor(self._client.settings.at_once) as pool:
            return list(pool.map(self._ask, images))

    def _ask(self, image: Image.Image) -> str | ImageError:
        content = [text_part(self._question), picture_part(image, self._client.settings.max_side)]
        try:
            return self._client.ask(content, _sentence, is_json=False)
        except ValueError as error:
            return ImageError(UNUSABLE, str(error))


def open_captioner(name: str, config: RecaptionConfig) -> Captioner:
    """Load a captioner.

    Args:
        name: a YAML file of an endpoint; a folder or hub id of a model of transformers.
        config: question, length and precision.

    Raises:
        MissingInputError: it is not there, or cannot be used.
    """
    if is_endpoint(name):
        return EndpointCaptioner(Endpoint.read(Path(name)), config.question)
    allow_tf32()
    try:
        return HubCaptioner(resolve_folder(name), config, best_device())
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        raise MissingInputError(
            f"{name}: not a usable captioner ({error}); expected a model of transformers that captions pictures, such "
            "as Salesforce/blip-image-captioning-base, or the YAML file of an endpoint"
        ) from error


def describe_captioner(name: str, config: RecaptionConfig) -> dict[str, Any]:
    """Return a captioner's name and the hash of what decides its captions; MissingInputError where there is none."""
    if is_endpoint(name):
        return Endpoint.read(Path(name)).describe(config.question)
    try:
        return describe_model(resolve_folder(name)) | {"name": Path(name).name}
    except ValueError as error:
        raise MissingInputError(f"{error}; name a model of transformers, or the YAML file of an endpoint") from error


def _sentence(text: str) -> str:
    """Return a caption on one line; ValueError where it is empty or far too long."""
    caption = " ".join(text.split())
    if not caption or len(caption) > MAX_CHARS or not caption.isprintable():
        raise ValueError(f"expected a caption of 1 to {MAX_CHARS} characters, got {len(caption)}: {caption[:80]!r}")
    return caption


def _checked(text: str) -> str | ImageError:
    try:
        return _sentence(text)
    except ValueError as error:
        return ImageError(UNUSABLE, str(error))
