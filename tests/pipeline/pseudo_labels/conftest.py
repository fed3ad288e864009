"""Web pairs of squares, a teacher that knows where they are, and one with random weights."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from glip_model.config import GLIPConfig
from glip_model.glip import GLIP
from glip_model.images import ImageError
from glip_model.prompts import Prompt
from glip_model.resizing import ResizeRule
from glip_model.structures import Detections
from pipeline.pseudo_labels.decoding import Decoded
from pipeline.pseudo_labels.labeller import Decode
from pipeline.pseudo_labels.settings import PseudoLabelConfig
from pipeline.store.images import load_image
from pipeline.store.records import CaptionRecord, ImageRef, Phrase, PhrasesRecord


class FakeTeacher:
    """Finds the square of a colour by looking for its pixels; remembers how many pictures it was given at once."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def ground(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Detections]:
        """Score what is there 0.9 and what is not there nothing."""
        self.batches.append(len(images))
        return [self._look(image, prompt) for image, prompt in zip(images, prompts, strict=True)]

    def _look(self, image: Image.Image, prompt: Prompt) -> Detections:
        boxes, owners = [], []
        for i, phrase in enumerate(prompt.phrases):
            wanted = Image.new("RGB", (1, 1), phrase.split()[0]).getpixel((0, 0))
            places = [
                (x, y) for x in range(image.width) for y in range(image.height) if image.getpixel((x, y)) == wanted
            ]
            if places:
                xs, ys = zip(*places, strict=True)
                boxes.append([min(xs), min(ys), max(xs) + 1, max(ys) + 1])
                owners.append(i)
        return Detections(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.full((len(boxes),), 0.9),
            torch.tensor(owners, dtype=torch.int64),
            prompt.phrases,
            prompt.char_spans,
        )


@pytest.fixture
def fake_teacher() -> FakeTeacher:
    return FakeTeacher()


@pytest.fixture(scope="session")
def label_config() -> PseudoLabelConfig:
    return PseudoLabelConfig(
        min_score=0.4,
        min_score_by_source={},
        names={},
        other_phrases="keep",
        skip_known=0,
        min_agreement=0.0,
        fusion_threshold=0.55,
        passes=(),
        tile=0,
        flip_agreement=False,
        nms_threshold=0.6,
        compete_threshold=0.7,
        one_box_per_singular=True,
        max_boxes_per_phrase=10,
        min_box_side=4.0,
        max_area_share=0.95,
        batch_size=2,
        decode_timeout_s=20.0,
        num_actors=2,
        max_reject_share=0.5,
        precision="float32",
    )


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """Encode a picture of coloured squares, each given as colour=(x1, y1, x2, y2) with the far edge outside."""

    def make(size: tuple[int, int] = (32, 24), **squares: tuple[int, int, int, int]) -> bytes:
        image = Image.new("RGB", size, "white")
        for colour, (x1, y1, x2, y2) in squares.items():
            ImageDraw.Draw(image).rectangle((x1, y1, x2 - 1, y2 - 1), fill=colour)
        out = io.BytesIO()
        image.save(out, "PNG")
        return out.getvalue()

    return make


def decode_here(refs: Sequence[ImageRef], rule: ResizeRule | None = None) -> list[Decoded]:
    """Decode pictures of at most 10,000 pixels in this process."""
    results: list[Decoded] = []
    for ref in refs:
        try:
            image = load_image(ref, 10_000, ["/no/such"])
            results.append(image if rule is None else rule(image))
        except ImageError as error:
            results.append(error)
    return results


@pytest.fixture(scope="session")
def decode() -> Decode:
    return decode_here


@pytest.fixture(scope="session")
def pair() -> Callable[..., CaptionRecord]:
    def make(key: str, data: bytes | None, caption: str, path: str | None = None) -> CaptionRecord:
        image = ImageRef(bytes=data, path=path)
        return CaptionRecord(key=key, image=image, height=24, width=32, caption=caption, source="squares")

    return make


@pytest.fixture(scope="session")
def parsed() -> Callable[..., PhrasesRecord]:
    """Make the phrases of a pair; each is given as it stands in the caption."""

    def make(row: CaptionRecord, *texts: str, reason: str | None = None) -> PhrasesRecord:
        phrases = []
        for text in texts:
            start = row.caption.index(text)
            phrases.append(Phrase(text=text, char_spans=((start, start + len(text)),), is_plural=False))
        return PhrasesRecord(key=row.key, caption=row.caption, phrases=tuple(phrases), reject_reason=reason)

    return make


@pytest.fixture(scope="session")
def random_teacher(tiny_glip: GLIPConfig, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a detector of a few thousand random weights that finds something everywhere."""
    folder = tmp_path_factory.mktemp("models") / "teacher"
    config = replace(tiny_glip, score_threshold=0.001, max_detections=20)
    torch.manual_seed(0)
    GLIP(config).save_pretrained(folder, tokenizer)
    return folder


@pytest.fixture(scope="session")
def scan_bomb() -> bytes:
    """A small progressive JPEG that makes its decoder go over the whole picture thousands of times."""
    out = io.BytesIO()
    Image.new("L", (4000, 4000), 128).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 3000 + b"\xff\xd9"
