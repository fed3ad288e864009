"""Further passes: what was not found is looked for again, and boxes say when they came."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from glip_model.prompts import Prompt
from glip_model.structures import Detections
from pipeline.pseudo_labels.labeller import PseudoLabeller
from pipeline.pseudo_labels.settings import PassConfig, PseudoLabelConfig
from pipeline.store.records import DetectionRecord, ImageRef
from pipeline.store.vocabulary import Vocabulary, read_names

RED, BLUE = (2.0, 3.0, 12.0, 13.0), (18.0, 4.0, 30.0, 20.0)
LOWER, ALONE = PassConfig(min_score=0.2, alone=False), PassConfig(min_score=0.3, alone=True)


class Shy:
    """Says 0.9 of red things; 0.25 of others, and 0.35 when they are asked for by themselves."""

    def __init__(self, teacher: Any) -> None:
        self._teacher = teacher
        self.asked: list[tuple[str, ...]] = []

    def ground(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Detections]:
        self.asked += [prompt.phrases for prompt in prompts]
        found = []
        for each, prompt in zip(self._teacher.ground(images, prompts), prompts, strict=True):
            low = 0.35 if len(prompt.phrases) == 1 else 0.25
            scores = torch.tensor([0.9 if label.startswith("red") else low for label in each.labels])
            found.append(replace(each, scores=scores))
        return found


@pytest.fixture
def shy(fake_teacher: Any) -> Shy:
    return Shy(fake_teacher)


@pytest.fixture
def data(picture: Callable[..., bytes]) -> bytes:
    return picture(red=(2, 3, 12, 13), blue=(18, 4, 30, 20))


def by_phrase(record: Any) -> dict[str, list[tuple[Any, int | None]]]:
    return {phrase.text: [(box.xyxy, box.in_pass) for box in phrase.boxes] for phrase in record.phrases}


def test_a_lower_threshold_asks_nobody_again(
    shy: Shy, label_config: PseudoLabelConfig, decode: Any, pair: Any, parsed: Any, data: bytes
) -> None:
    row = pair("a", data, "red hat and blue car")
    labeller = PseudoLabeller(shy, replace(label_config, passes=(LOWER,)), decode)
    (found,) = labeller.label([row], [parsed(row, "red hat", "blue car")])
    assert by_phrase(found) == {"red hat": [(RED, 1)], "blue car": [(BLUE, 2)]}
    assert len(shy.asked) == 1


def test_phrases_are_asked_for_by_themselves_once(
    shy: Shy, label_config: PseudoLabelConfig, decode: Any, pair: Any, parsed: Any, data: bytes
) -> None:
    row = pair("a", data, "red hat and blue car, pink sun")
    config = replace(label_config, passes=(ALONE, PassConfig(min_score=0.1, alone=True)), flip_agreement=False)
    (found,) = PseudoLabeller(shy, config, decode).label([row], [parsed(row, "red hat", "blue car", "pink sun")])
    assert by_phrase(found) == {"red hat": [(RED, 1)], "blue car": [(BLUE, 2)], "pink sun": []}
    assert [phrase.reject_reason for phrase in found.phrases] == [None, None, "not_detected"]
    assert shy.asked == [("red hat", "blue car", "pink sun"), ("blue car",), ("pink sun",)]


def test_what_was_found_before_is_not_free(
    shy: Shy, label_config: PseudoLabelConfig, decode: Any, pair: Any, parsed: Any, data: bytes
) -> None:
    row = pair("a", data, "red hat, blue car, blue van")
    config = replace(label_config, passes=(LOWER, ALONE))
    (found,) = PseudoLabeller(shy, config, decode).label([row], [parsed(row, "red hat", "blue car", "blue van")])
    assert by_phrase(found) == {"red hat": [(RED, 1)], "blue car": [(BLUE, 2)], "blue van": []}
    assert found.phrases[2].reject_reason == "lost_to_other_phrase"


@pytest.mark.parametrize("flip", [False, True])
def test_classes_are_asked_again_by_all_of_their_prompts(
    shy: Shy, label_config: PseudoLabelConfig, decode: Any, data: bytes, flip: bool
) -> None:
    rows = [DetectionRecord(key="a", image=ImageRef(bytes=data), height=24, width=32, source="s", objects=())]
    labeller = PseudoLabeller(shy, replace(label_config, passes=(ALONE,), flip_agreement=flip), decode)
    (found,) = labeller.answer(labeller.ask_names(rows, Vocabulary.of({"blue": "car", "red": "hat"})))
    assert [(item.category_id, item.xyxy, item.in_pass) for item in found.objects] == [(1, BLUE, 2), (2, RED, 1)]
    assert shy.asked == [("blue", "red")] * (1 + flip) + [("blue",)] * (1 + flip)


def test_thresholds_of_names_are_lowered_and_never_raised(
    shy: Shy, label_config: PseudoLabelConfig, decode: Any, data: bytes
) -> None:
    rows = [DetectionRecord(key="a", image=ImageRef(bytes=data), height=24, width=32, source="s", objects=())]
    names = read_names("blue, red").with_min_scores({"blue": 0.24, "red": 0.95}, 0.4)
    labeller = PseudoLabeller(shy, replace(label_config, passes=(PassConfig(min_score=0.5, alone=False),)), decode)
    (found,) = labeller.answer(labeller.ask_names(rows, names))
    assert [(item.category_id, item.in_pass) for item in found.objects] == [(1, 1), (2, 2)]


def test_without_further_passes_boxes_say_nothing_of_them(
    shy: Shy, label_config: PseudoLabelConfig, decode: Any, pair: Any, parsed: Any, data: bytes
) -> None:
    row = pair("a", data, "red hat")
    (found,) = PseudoLabeller(shy, label_config, decode).label([row], [parsed(row, "red hat")])
    assert by_phrase(found) == {"red hat": [(RED, None)]}
