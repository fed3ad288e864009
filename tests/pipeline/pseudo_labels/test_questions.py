"""Pictures asked about names: by one way of labelling with captions, in as many prompts as a teacher needs."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from glip_model.predictor import GLIPPredictor
from glip_model.structures import Detections, join_detections
from pipeline.errors import ConfigError
from pipeline.pseudo_labels.labeller import PseudoLabeller
from pipeline.pseudo_labels.settings import PseudoLabelConfig
from pipeline.pseudo_labels.teachers import answer_question, open_teacher, prepare_question, prepared
from pipeline.store.records import DetectionRecord, ImageRef
from pipeline.store.vocabulary import Vocabulary, read_names

RED, BLUE = (2.0, 3.0, 12.0, 13.0), (18.0, 4.0, 30.0, 20.0)
Picture = Callable[..., bytes]


def row(key: str, data: bytes) -> DetectionRecord:
    return DetectionRecord(key=key, image=ImageRef(bytes=data), height=24, width=32, source="squares", objects=())


def label(labeller: PseudoLabeller, rows: Sequence[DetectionRecord], names: Vocabulary) -> list[DetectionRecord]:
    return labeller.answer(labeller.ask_names(rows, names))


def test_names_get_boxes_and_rows_keep_place_and_reason(
    fake_teacher: Any, label_config: PseudoLabelConfig, decode: Any, picture: Picture
) -> None:
    rows = [
        row("both", picture(red=(2, 3, 12, 13), blue=(18, 4, 30, 20))),
        row("broken", b"no picture"),
        row("none", picture(green=(2, 3, 12, 13))),
    ]
    labeller = PseudoLabeller(fake_teacher, label_config, decode)
    questions = labeller.ask_names(rows, read_names("blue car, red hat, yellow sun"))
    both, broken, none = labeller.answer(questions)
    assert [(item.category_id, item.xyxy) for item in both.objects] == [(1, BLUE), (2, RED)]
    assert [item.score for item in both.objects] == pytest.approx([0.9, 0.9])
    assert (both.key, both.reject_reason) == ("both", None)
    assert (broken.key, broken.objects, broken.reject_reason) == ("broken", (), "image_unreadable")
    assert (none.key, none.objects, none.reject_reason) == ("none", (), "no_boxes")
    assert questions.phrase_rejects == {"not_detected": 4}


def test_boxes_of_several_prompts_of_a_class_suppress_one_another(
    fake_teacher: Any, label_config: PseudoLabelConfig, decode: Any, picture: Picture
) -> None:
    names = Vocabulary.of({"red ball": "ball", "red disc": "ball", "blue thing": "thing"})
    labeller = PseudoLabeller(fake_teacher, label_config, decode)
    (found,) = label(labeller, [row("a", picture(red=(2, 3, 12, 13), blue=(18, 4, 30, 20)))], names)
    assert [(item.category_id, item.xyxy) for item in found.objects] == [(1, RED), (2, BLUE)]


def test_classes_have_thresholds_of_their_own(
    fake_teacher: Any, label_config: PseudoLabelConfig, decode: Any, picture: Picture
) -> None:
    names = read_names("red, blue").with_min_scores({"red": 0.95}, 0.4)
    labeller = PseudoLabeller(fake_teacher, label_config, decode)
    questions = labeller.ask_names([row("a", picture(red=(2, 3, 12, 13), blue=(18, 4, 30, 20)))], names)
    (found,) = labeller.answer(questions)
    assert [item.category_id for item in found.objects] == [2]
    assert questions.phrase_rejects == {"below_min_score": 1}


def test_names_beyond_one_prompt_are_asked_in_several_and_found_as_detect_finds_them(
    random_teacher: Path,
    label_config: PseudoLabelConfig,
    decode: Any,
    noise: Callable[[int, int], Image.Image],
) -> None:
    """The predictor looks at a picture once; a teacher that cannot is asked prompt by prompt: both find the same."""
    teacher = open_teacher(str(random_teacher), "cpu", "float32")
    assert isinstance(teacher, GLIPPredictor)
    names = [f"{colour} {thing}" for colour in ("red", "grey", "old", "tiny") for thing in ("cat", "dog", "car", "van")]
    names += [f"very {name}" for name in names]
    chunks = teacher.divide(names)
    assert len(chunks) > 1
    assert [i for chunk in chunks for i in chunk] == list(range(len(names)))
    image = noise(60, 40)
    out = io.BytesIO()
    image.save(out, "PNG")
    config = replace(
        label_config, min_score=0.0, min_box_side=0.0, max_area_share=1.0, nms_threshold=1.0, compete_threshold=1.0
    )
    labeller = PseudoLabeller(teacher, replace(config, max_boxes_per_phrase=10_000), decode)
    record = replace(row("a", out.getvalue()), height=40, width=60)
    (found,) = label(labeller, [record], Vocabulary.of(dict(zip(names, names, strict=True))))
    (expected,) = teacher.detect([image], names, limit_total=False)
    mine = sorted((item.category_id - 1, item.score, *item.xyxy) for item in found.objects)
    theirs = sorted(
        zip(expected.phrase_index.tolist(), expected.scores.tolist(), *expected.boxes_xyxy.T.tolist(), strict=True)
    )
    assert len(mine) == len(theirs) > 0
    assert torch.allclose(torch.tensor(mine), torch.tensor(theirs), atol=1e-4)

    class OneByOne:
        resize_rule, prepare, answer = teacher.resize_rule, teacher.prepare, teacher.answer

    prompts = labeller.ask_names([record], Vocabulary.of(dict(zip(names, names, strict=True)))).prompts(0)
    resized = [teacher.resize_rule(image)] * 2
    for one, other in zip(
        answer_question(prepared(OneByOne()), prepare_question(prepared(OneByOne()), resized, [prompts] * 2)),
        answer_question(teacher, prepare_question(teacher, resized, [prompts] * 2)),
        strict=True,
    ):
        assert torch.equal(one.phrase_index, other.phrase_index)
        assert torch.allclose(one.scores, other.scores, atol=1e-5)
        assert torch.allclose(one.boxes_xyxy, other.boxes_xyxy, atol=1e-3)


def test_a_name_that_no_prompt_holds_is_told(
    random_teacher: Path, label_config: PseudoLabelConfig, decode: Any
) -> None:
    labeller = PseudoLabeller(open_teacher(str(random_teacher), "cpu"), label_config, decode)
    with pytest.raises(ConfigError, match="tokens"):
        labeller.ask_names([], read_names("x y z " * 30))


def test_answers_to_several_prompts_count_their_phrases_through() -> None:
    first = Detections(torch.ones(1, 4), torch.tensor([0.3]), torch.tensor([1]))
    second = Detections(2 * torch.ones(2, 4), torch.tensor([0.9, 0.1]), torch.tensor([0, 2]))
    joined = join_detections([first, second], [2, 3])
    assert joined.phrase_index.tolist() == [2, 1, 4]
    assert joined.scores.tolist() == pytest.approx([0.9, 0.3, 0.1])
    assert joined.boxes_xyxy[:, 0].tolist() == [2, 1, 2]


CAPTION = "red hat, old blue car and a red tie"
PHRASES = ("red hat", "old blue car", "red tie")


@pytest.mark.parametrize(
    ("names", "others", "expected"),
    [
        ({}, "keep", [("red hat", None, True), ("old blue car", None, True), ("red tie", None, False)]),
        (
            {"vehicle": ["car"]},
            "keep",
            [(PHRASES[0], None, True), (PHRASES[1], "vehicle", True), (PHRASES[2], None, False)],
        ),
        (
            {"vehicle": ["car"]},
            "drop",
            [(PHRASES[0], None, False), (PHRASES[1], "vehicle", True), (PHRASES[2], None, False)],
        ),
    ],
)
def test_phrases_of_captions_mean_classes_of_ones_own(
    label_config: PseudoLabelConfig,
    decode: Any,
    picture: Picture,
    pair: Any,
    parsed: Any,
    names: Any,
    others: Any,
    expected: Any,
) -> None:
    row = pair("a", picture(red=(2, 3, 12, 13)), CAPTION)

    class Colours:
        def ground(self, images: Any, prompts: Any) -> Any:
            boxes = torch.tensor([RED, BLUE])
            spans = prompts[0].char_spans
            return [Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), prompts[0].phrases, spans)]

    config = replace(label_config, names=names, other_phrases=others)
    (found,) = PseudoLabeller(Colours(), config, decode).label([row], [parsed(row, *PHRASES)])
    assert [(phrase.text, phrase.category, bool(phrase.boxes)) for phrase in found.phrases] == expected
    reasons = {phrase.reject_reason for phrase in found.phrases if not phrase.boxes and phrase.category is None}
    assert reasons == ({"not_in_names"} if others == "drop" else {"not_detected"})


def test_a_row_without_a_phrase_of_ones_own_is_not_looked_at(
    fake_teacher: Any, label_config: PseudoLabelConfig, decode: Any, picture: Picture, pair: Any, parsed: Any
) -> None:
    row = pair("a", picture(red=(2, 3, 12, 13)), CAPTION)
    config = replace(label_config, names={"dog": []}, other_phrases="drop")
    (found,) = PseudoLabeller(fake_teacher, config, decode).label([row], [parsed(row, *PHRASES)])
    assert found.reject_reason == "not_in_names"
    assert {phrase.reject_reason for phrase in found.phrases} == {"not_in_names"}
    assert fake_teacher.batches == []


@pytest.mark.parametrize(
    ("known", "reason", "boxes", "looks"),
    [
        ({"big", "green"}, None, 2, 1),  # nothing known is found beside what is new
        ({"red"}, None, 2, 1),
        ({"red", "blue", "car", "hat"}, "nothing_new_found", 0, 1),
        ({"red", "blue", "car", "hat", "yellow", "sun"}, "nothing_new", 0, 0),
    ],
)
def test_pairs_that_say_or_show_nothing_new_are_left_out(
    fake_teacher: Any,
    label_config: PseudoLabelConfig,
    decode: Any,
    picture: Picture,
    pair: Any,
    parsed: Any,
    known: set[str],
    reason: str | None,
    boxes: int,
    looks: int,
) -> None:
    row = pair("a", picture(red=(2, 3, 12, 13), blue=(18, 4, 30, 20)), "red hats, a blue car, a yellow sun")
    phrases = parsed(row, "red hats", "blue car", "yellow sun")
    (found,) = PseudoLabeller(fake_teacher, label_config, decode).label([row], [phrases], known=frozenset(known))
    assert found.reject_reason == reason
    assert sum(len(phrase.boxes) for phrase in found.phrases) == boxes
    assert all(phrase.boxes or phrase.reject_reason for phrase in found.phrases)
    assert len(fake_teacher.batches) == looks


@pytest.mark.parametrize("names", [{"dog": 3}, {"dog": ["puppy"], "wolf": ["puppy"]}, {"hot dog": None}, {"!": []}])
def test_names_that_are_none_are_told(label_config: PseudoLabelConfig, names: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^names: "):
        replace(label_config, names=names)
