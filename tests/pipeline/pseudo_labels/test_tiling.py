"""A teacher that looks at large pictures in pieces finds small things where they are, once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from glip_model.predictor import GLIPPredictor
from glip_model.prompts import Prompt, category_prompt
from glip_model.structures import Detections
from pipeline.errors import ConfigError
from pipeline.pseudo_labels.labeller import PseudoLabeller
from pipeline.pseudo_labels.settings import PseudoLabelConfig
from pipeline.pseudo_labels.teachers import open_teacher, prepared
from pipeline.pseudo_labels.tiling import TiledTeacher
from pipeline.store.records import DetectionRecord, ImageRef
from pipeline.store.vocabulary import read_names

SMALL, LARGE = (70.0, 10.0, 78.0, 18.0), (20.0, 30.0, 70.0, 60.0)


class Shortsighted:
    """Sees squares whose side is at least an eighth of the longer side of what it is shown."""

    def __init__(self, eyes: Any) -> None:
        self._eyes, self.sizes = eyes, list[tuple[int, int]]()

    def ground(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Detections]:
        found = []
        for image, detections in zip(images, self._eyes.ground(images, prompts), strict=True):
            self.sizes.append(image.size)
            sides = (detections.boxes_xyxy[:, 2:] - detections.boxes_xyxy[:, :2]).amin(1)
            seen = sides >= max(image.size) / 8
            found.append(
                replace(
                    detections,
                    boxes_xyxy=detections.boxes_xyxy[seen],
                    scores=detections.scores[seen],
                    phrase_index=detections.phrase_index[seen],
                )
            )
        return found


def test_small_things_are_found_in_pieces_and_large_ones_whole(
    fake_teacher: Any, label_config: PseudoLabelConfig, decode: Any, picture: Callable[..., bytes]
) -> None:
    data = picture((100, 70), red=(70, 10, 78, 18), blue=(20, 30, 70, 60))
    row = DetectionRecord(key="a", image=ImageRef(bytes=data), height=70, width=100, source="s", objects=())

    def label(tile: int) -> list[tuple[float, ...]]:
        labeller = PseudoLabeller(Shortsighted(fake_teacher), replace(label_config, tile=tile), decode)
        (found,) = labeller.answer(labeller.ask_names([row], read_names("red, blue")))
        return [item.xyxy for item in found.objects]

    assert label(0) == [LARGE]
    assert label(40) == [SMALL, LARGE]
    assert label(200) == [LARGE]


def test_a_model_finds_in_pieces_what_predict_finds_in_them(
    random_teacher: Path, noise: Callable[[int, int], Image.Image]
) -> None:
    teacher = open_teacher(str(random_teacher), "cpu", "float32")
    assert isinstance(teacher, GLIPPredictor)
    image = noise(150, 90)
    names = ["cat", "dog"]
    (expected,) = teacher.predict(image, names, tile=80)
    tiled = TiledTeacher(prepared(teacher), 80, 3, teacher.model.config.nms_threshold)
    (found,) = tiled.answer(tiled.prepare([image], [category_prompt(names)]))
    assert len(found) == len(expected) > 0
    assert torch.allclose(found.scores, expected.scores, atol=1e-4)
    assert torch.allclose(found.boxes_xyxy, expected.boxes_xyxy, atol=1e-2)
    (small,) = teacher.predict(image.crop((0, 0, 70, 70)), names, tile=80)
    (plain,) = teacher.predict(image.crop((0, 0, 70, 70)), names)
    assert len(small) <= len(plain)


def test_pieces_that_show_nothing_are_refused(label_config: PseudoLabelConfig) -> None:
    with pytest.raises(ConfigError, match="tile is 20"):
        replace(label_config, tile=20)
