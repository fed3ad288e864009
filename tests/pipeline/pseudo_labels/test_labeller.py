"""PseudoLabeller: every row comes back in its place, labelled or with its reason."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glip_model.predictor import GLIPPredictor
from pipeline.config import PseudoLabelConfig
from pipeline.data.records import ROW_REJECT_REASONS, CaptionRecord, PhrasesRecord
from pipeline.errors import ShardError
from pipeline.pseudo_labels.labeller import PseudoLabeller

Pair = Callable[..., CaptionRecord]
Parsed = Callable[..., PhrasesRecord]
Picture = Callable[..., bytes]
RED, BLUE = (2, 3, 12, 13), (18, 4, 30, 20)


@pytest.fixture
def labeller(fake_teacher: Any, label_config: PseudoLabelConfig) -> PseudoLabeller:
    return PseudoLabeller(fake_teacher, label_config, max_image_pixels=10_000)


def test_phrases_get_their_boxes_in_pixels(
    labeller: PseudoLabeller, pair: Pair, parsed: Parsed, picture: Picture
) -> None:
    row = pair("a", picture(red=RED, blue=BLUE), "a blue car, a red hat and a green tree")
    (record,) = labeller.label([row], [parsed(row, "blue car", "red hat", "green tree")])
    car, hat, tree = record.phrases
    assert [box.xyxy for box in car.boxes] == [BLUE]
    assert [box.xyxy for box in hat.boxes] == [RED]
    assert car.boxes[0].score == pytest.approx(0.9)
    assert (tree.boxes, tree.reject_reason) == ((), "not_detected")
    assert record.caption[slice(*hat.char_spans[0])] == "red hat"
    assert record.reject_reason is None
    kept = ("key", "image", "height", "width", "caption", "source")
    assert all(getattr(record, name) == getattr(row, name) for name in kept)


def test_rows_that_cannot_be_labelled_keep_place_key_and_reason(
    labeller: PseudoLabeller, pair: Pair, parsed: Parsed, picture: Picture
) -> None:
    good = picture(red=RED)
    rows = [
        (pair("ok", good, "red hat"), ["red hat"], None),
        (pair("broken", good[:40], "red hat"), ["red hat"], None),
        (pair("text", b"<html>not found</html>", "red hat"), ["red hat"], None),
        (pair("empty caption", good, " "), [], "caption_empty"),
        (pair("no phrases", good, "it rains"), [], "no_phrases"),
        (pair("bomb", picture((200, 100)), "red hat"), ["red hat"], None),
        (pair("gone", None, "red hat", path="/no/such/picture.jpg"), ["red hat"], None),
        (pair("nothing there", good, "blue car"), ["blue car"], None),
        (pair("ok too", good, "red hat"), ["red hat"], None),
    ]
    records = labeller.label([row for row, *_ in rows], [parsed(row, *texts, reason=why) for row, texts, why in rows])
    assert [record.key for record in records] == [row.key for row, *_ in rows]
    assert [record.reject_reason for record in records] == [
        None,
        "image_unreadable",
        "image_unreadable",
        "caption_empty",
        "no_phrases",
        "image_too_large",
        "image_missing",
        "no_boxes",
        None,
    ]
    assert {record.reject_reason for record in records} - {None} <= set(ROW_REJECT_REASONS)
    for record in records:
        assert any(phrase.boxes for phrase in record.phrases) == (record.reject_reason is None)


def test_the_teacher_is_asked_in_batches_of_the_configured_size(
    labeller: PseudoLabeller, fake_teacher: Any, pair: Pair, parsed: Parsed, picture: Picture
) -> None:
    rows = [pair(str(i), picture(red=RED) if i != 2 else b"broken", "red hat") for i in range(5)]
    done: list[int] = []
    labeller.label(rows, [parsed(row, "red hat") for row in rows], done.append)
    assert fake_teacher.batches == [2, 1, 1]  # of two, two less the broken one, and the last
    assert done == [2, 2, 1]


def test_a_batch_without_a_usable_row_does_not_ask_the_teacher(
    labeller: PseudoLabeller, fake_teacher: Any, pair: Pair, parsed: Parsed
) -> None:
    row = pair("broken", b"", "red hat")
    assert labeller.label([row], [parsed(row, "red hat")])[0].reject_reason == "image_unreadable"
    assert labeller.label([], []) == []
    assert fake_teacher.batches == []


def test_phrases_of_other_rows_are_refused(
    labeller: PseudoLabeller, pair: Pair, parsed: Parsed, picture: Picture
) -> None:
    row = pair("a", picture(red=RED), "a red hat")
    phrases = parsed(row, "red hat")
    for other in ([], [dataclasses.replace(phrases, key="b")], [dataclasses.replace(phrases, caption="red hat")]):
        with pytest.raises(ShardError, match="belong to other rows than the web pairs; run: dvc repro phrases"):
            labeller.label([row], other)


@pytest.mark.filterwarnings("ignore")
def test_slivers_and_greyscale_pictures_pass_through_a_real_model(
    random_teacher: Path, label_config: PseudoLabelConfig, pair: Pair, parsed: Parsed, picture: Picture
) -> None:
    config = dataclasses.replace(label_config, min_score=0.0, min_box_side=0.0, max_area_share=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        labeller = PseudoLabeller(GLIPPredictor.from_pretrained(random_teacher), config, max_image_pixels=10_000)
    sizes = [(1, 1), (1, 900), (900, 1), (3, 2), (40, 30)]
    rows = [pair(str(size), picture(size), "a red hat on a dog") for size in sizes]
    records = labeller.label(rows, [parsed(row, "red hat", "dog") for row in rows])
    for (width, height), record in zip(sizes, records, strict=True):
        for phrase in record.phrases:
            for box in phrase.boxes:
                x1, y1, x2, y2 = box.xyxy
                assert 0 <= x1 <= x2 <= width
                assert 0 <= y1 <= y2 <= height
    assert any(phrase.boxes for phrase in records[-1].phrases)
