"""Several teachers asked as one: boxes say who found them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from glip_model.images import ImageError
from glip_model.prompts import Prompt
from glip_model.structures import Detections
from pipeline.errors import ConfigError
from pipeline.pseudo_labels.ensemble import (
    EnsembleTeacher,
    describe_teachers,
    extras_for,
    open_teachers,
    short_names,
)
from pipeline.pseudo_labels.labeller import PseudoLabeller
from pipeline.pseudo_labels.settings import PseudoLabelConfig
from pipeline.store.records import DetectionRecord, ImageRef
from pipeline.store.vocabulary import read_names

RED, BLUE = (2.0, 3.0, 12.0, 13.0), (18.0, 4.0, 30.0, 20.0)


class Knows:
    """Finds the things whose colour it knows."""

    def __init__(self, teacher: Any, *colours: str, at_once: int = 100) -> None:
        self._teacher, self._colours, self._at_once = teacher, colours, at_once
        self.asked: list[tuple[str, ...]] = []

    def divide(self, names: Sequence[str]) -> list[list[int]]:
        places = list(range(len(names)))
        return [places[start : start + self._at_once] for start in range(0, len(names), self._at_once)]

    def ground(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Any]:
        self.asked += [prompt.phrases for prompt in prompts]
        found = []
        for each in self._teacher.ground(images, prompts):
            known = torch.tensor([label.split()[0] in self._colours for label in each.labels], dtype=torch.bool)
            found.append(Detections(each.boxes_xyxy[known], each.scores[known], each.phrase_index[known], each.phrases))
        return found


@pytest.fixture
def rows(picture: Callable[..., bytes]) -> list[DetectionRecord]:
    data = picture(red=(2, 3, 12, 13), blue=(18, 4, 30, 20))
    return [DetectionRecord(key="a", image=ImageRef(bytes=data), height=24, width=32, source="s", objects=())]


def ensemble(*teachers: Any) -> EnsembleTeacher:
    return EnsembleTeacher([(f"t{i}", teacher) for i, teacher in enumerate(teachers)], 0.55, 0.6)


def label(teacher: Any, config: PseudoLabelConfig, decode: Any, rows: Any, names: str) -> Any:
    labeller = PseudoLabeller(teacher, config, decode)
    questions = labeller.ask_names(rows, read_names(names))
    return labeller.answer(questions), questions.phrase_rejects


@pytest.mark.parametrize("tile", [0, 32])
def test_boxes_keep_their_teachers_and_agreement(
    fake_teacher: Any, label_config: PseudoLabelConfig, decode: Any, rows: Any, tile: int
) -> None:
    both = ensemble(Knows(fake_teacher, "red", "blue"), Knows(fake_teacher, "red"))
    ((found,), _) = label(both, replace(label_config, tile=tile), decode, rows, "red hat, blue car")
    first, second = found.objects
    assert (first.xyxy, first.teachers, first.agreement) == (RED, ("t0", "t1"), 1.0)
    assert (second.xyxy, second.teachers, second.agreement) == (BLUE, ("t0",), 0.5)
    assert [first.score, second.score] == pytest.approx([0.9, 0.45])


def test_boxes_of_too_few_teachers_are_left_out_with_a_reason(
    fake_teacher: Any, label_config: PseudoLabelConfig, decode: Any, rows: Any
) -> None:
    both = ensemble(Knows(fake_teacher, "red", "blue"), Knows(fake_teacher, "red"))
    config = replace(label_config, min_agreement=0.6)
    ((found,), rejects) = label(both, config, decode, rows, "red hat, blue car")
    assert [item.category_id for item in found.objects] == [1]
    assert rejects == {"teachers_disagree": 1}


def test_names_are_divided_so_that_every_teacher_reads_them(
    fake_teacher: Any, label_config: PseudoLabelConfig, decode: Any, rows: Any
) -> None:
    teachers = [Knows(fake_teacher, "red", "blue", at_once=count) for count in (3, 2)]
    ((found,), _) = label(ensemble(*teachers), label_config, decode, rows, "red, blue, gold, pink")
    assert [len(names) for names in teachers[0].asked] == [len(names) for names in teachers[1].asked] == [2, 1, 1]
    assert [(item.category_id, item.agreement) for item in found.objects] == [(1, 1.0), (2, 1.0)]


def test_a_picture_that_one_teacher_cannot_answer_for_keeps_the_reason(
    fake_teacher: Any, label_config: PseudoLabelConfig, decode: Any, rows: Any
) -> None:
    class Mute:
        def ground(self, images: Sequence[Any], prompts: Sequence[Prompt]) -> list[Any]:
            return [ImageError("answer_unusable", "nothing said")] * len(images)

    ((found,), _) = label(ensemble(fake_teacher, Mute()), label_config, decode, rows, "red, blue")
    assert (found.objects, found.reject_reason) == ((), "answer_unusable")


def test_real_models_are_opened_and_described_together(
    random_teacher: Path, label_config: PseudoLabelConfig, noise: Callable[[int, int], Image.Image]
) -> None:
    import shutil

    other = random_teacher.parent / "other"
    shutil.copytree(random_teacher, other, dirs_exist_ok=True)
    names = (str(random_teacher), str(other))
    teacher = open_teachers(names, label_config)
    assert isinstance(teacher, EnsembleTeacher)
    assert teacher.resize_rule is not None
    image = noise(60, 40)
    prompt = Prompt(("a cat. a dog",), ([(0, 5)], [(7, 12)]))
    (found,) = teacher.answer(teacher.prepare([teacher.resize_rule(image)], [prompt]))
    assert isinstance(found, Detections)
    assert len(found) > 0
    assert all(all(votes) for votes in found.votes)  # type: ignore[attr-defined]  # the same model twice agrees
    described = describe_teachers(names)
    assert described["name"] == "teacher + other"
    assert [each["name"] for each in described["teachers"]] == ["teacher", "other"]
    assert describe_teachers(names[:1]) == describe_teachers(names[0])
    assert extras_for(names, label_config) == {"teachers", "agreement"}
    assert extras_for(names[0], label_config) == extras_for(names[:1], label_config) == set()


def test_teachers_have_short_names_that_differ() -> None:
    assert short_names(["models/a", "IDEA/b"]) == ["a", "b"]
    assert short_names(["x/a", "y/a", "b"]) == ["x/a", "y/a", "b"]
    with pytest.raises(ConfigError, match="named twice"):
        short_names(["a", "a"])
