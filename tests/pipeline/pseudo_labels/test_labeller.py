"""PseudoLabeller: every row comes back in its place, labelled or with its reason."""

from __future__ import annotations

import dataclasses
import io
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps

from glip_model.predictor import GLIPPredictor
from glip_model.prompts import Prompt
from glip_model.resizing import ResizedImage, ResizeRule
from glip_model.structures import Detections
from pipeline.errors import ShardError
from pipeline.pseudo_labels import batching
from pipeline.pseudo_labels import labeller as labeller_module
from pipeline.pseudo_labels.decoding import PictureDecoder
from pipeline.pseudo_labels.labeller import PseudoLabeller
from pipeline.pseudo_labels.progress import Figures
from pipeline.pseudo_labels.selection import select_boxes
from pipeline.pseudo_labels.settings import PseudoLabelConfig
from pipeline.store.records import ROW_REJECT_REASONS, CaptionRecord, ImageRef, PhrasesRecord

Pair = Callable[..., CaptionRecord]
Parsed = Callable[..., PhrasesRecord]
Picture = Callable[..., bytes]
RED, BLUE = (2, 3, 12, 13), (18, 4, 30, 20)


@pytest.fixture
def labeller(fake_teacher: Any, label_config: PseudoLabelConfig, decode: Any) -> PseudoLabeller:
    return PseudoLabeller(fake_teacher, label_config, decode)


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
    done: list[Figures] = []
    start = time.monotonic()
    labeller.label(rows, [parsed(row, "red hat") for row in rows], done.append)
    assert 0 < sum(figures.busy_s for figures in done) <= time.monotonic() - start
    assert fake_teacher.batches == [2, 2]  # what is broken leaves no gap
    assert [(figures.rows, figures.boxes, figures.rejects) for figures in done] == [
        (2, 2, {}),
        (3, 2, {"image_unreadable": 1}),
    ]


def test_the_share_of_a_box_is_that_of_the_whole_picture(
    labeller: PseudoLabeller, pair: Pair, parsed: Parsed, picture: Picture
) -> None:
    row = pair("a", picture((32, 24), red=(0, 0, 32, 24)), "red hat")  # of a square picture it would be three quarters
    (record,) = labeller.label([row], [parsed(row, "red hat")])
    assert record.phrases[0].reject_reason == "box_too_large"


def test_a_batch_without_a_usable_row_does_not_ask_the_teacher(
    labeller: PseudoLabeller, fake_teacher: Any, pair: Pair, parsed: Parsed
) -> None:
    row = pair("broken", b"", "red hat")
    assert labeller.label([row], [parsed(row, "red hat")])[0].reject_reason == "image_unreadable"
    assert labeller.label([], []) == []
    assert fake_teacher.batches == []


def test_sources_may_have_thresholds_of_their_own(
    fake_teacher: Any, label_config: PseudoLabelConfig, decode: Any, pair: Pair, parsed: Parsed, picture: Picture
) -> None:
    rows = [dataclasses.replace(pair(source, picture(red=RED), "red hat"), source=source) for source in ("cc", "sbu")]
    config = dataclasses.replace(label_config, min_score_by_source={"sbu": 0.95})
    records = PseudoLabeller(fake_teacher, config, decode).label(rows, [parsed(row, "red hat") for row in rows])
    assert [record.phrases[0].reject_reason for record in records] == [None, "below_min_score"]


def test_agreement_under_flip_asks_about_both_pictures(
    fake_teacher: Any, label_config: PseudoLabelConfig, decode: Any, pair: Pair, parsed: Parsed, picture: Picture
) -> None:
    row = pair("a", picture(red=RED), "red hat")
    config = dataclasses.replace(label_config, flip_agreement=True)
    (record,) = PseudoLabeller(fake_teacher, config, decode).label([row], [parsed(row, "red hat")])
    assert fake_teacher.batches == [1, 1]
    assert [box.xyxy for box in record.phrases[0].boxes] == [RED]
    assert record.phrases[0].boxes[0].score == pytest.approx(0.9)


class Small:
    """A teacher on a device that has room for a few pictures."""

    def __init__(self, teacher: Any, room: int) -> None:
        self._teacher, self._room = teacher, room

    def ground(self, images: Sequence[Any], prompts: Sequence[Any]) -> Any:
        if len(images) > self._room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._teacher.ground(images, prompts)


@pytest.mark.parametrize("room", [1, 2])
def test_a_batch_too_large_for_the_device_is_asked_in_halves(
    room: int,
    fake_teacher: Any,
    label_config: PseudoLabelConfig,
    decode: Any,
    pair: Pair,
    parsed: Parsed,
    picture: Picture,
) -> None:
    rows = [pair(str(i), picture(red=RED), "red hat") for i in range(5)]
    config = dataclasses.replace(label_config, batch_size=5)
    teacher = Small(fake_teacher, room)
    records = PseudoLabeller(teacher, config, decode).label(rows, [parsed(row, "red hat") for row in rows])
    assert [record.key for record in records if record.phrases[0].boxes] == ["0", "1", "2", "3", "4"]
    assert sum(fake_teacher.batches) == 5
    assert max(fake_teacher.batches) == room


def test_a_picture_too_large_for_the_device_is_said(
    fake_teacher: Any, label_config: PseudoLabelConfig, decode: Any, pair: Pair, parsed: Parsed, picture: Picture
) -> None:
    row = pair("a", picture(red=RED), "red hat")
    with pytest.raises(torch.OutOfMemoryError):
        PseudoLabeller(Small(fake_teacher, 0), label_config, decode).label([row], [parsed(row, "red hat")])


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
    random_teacher: Path, label_config: PseudoLabelConfig, pair: Pair, parsed: Parsed, picture: Picture, decode: Any
) -> None:
    config = dataclasses.replace(label_config, min_score=0.0, min_box_side=0.0, max_area_share=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        labeller = PseudoLabeller(GLIPPredictor.from_pretrained(random_teacher), config, decode)
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


@pytest.fixture
def predictor(random_teacher: Path) -> GLIPPredictor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return GLIPPredictor.from_pretrained(random_teacher)


CAPTION, SPANS = "a red hat on a dog", [[(2, 9)], [(15, 18)]]


@pytest.mark.parametrize("flip", [False, True])
def test_labels_are_what_predict_finds_in_each_picture_by_itself(
    flip: bool,
    predictor: GLIPPredictor,
    label_config: PseudoLabelConfig,
    pair: Pair,
    parsed: Parsed,
    picture: Picture,
) -> None:
    """Of decoder processes, several shapes in turn: the slow path, and no more than batches of other lengths may do."""
    config = dataclasses.replace(
        label_config, min_score=0.0, min_box_side=0.0, max_area_share=1.0, batch_size=3, flip_agreement=flip
    )
    sizes = [(32, 24), (24, 60), (40, 30), (90, 20), (64, 48), (20, 50), (32, 24), (1, 40), (8, 6)]
    rows = [pair(str(i), picture(size, red=(0, 0, i + 1, 9)), CAPTION) for i, size in enumerate(sizes)]
    phrases = [parsed(row, "red hat", "dog") for row in rows]
    batches: list[int] = []
    answer = predictor.answer
    predictor.answer = lambda question: batches.append(len(question.asked)) or answer(question)  # type: ignore
    with PictureDecoder(10_000, 60.0, 2, []) as decoder:
        records = PseudoLabeller(predictor, config, decoder.decode).label(rows, phrases)
    predictor.answer = answer  # type: ignore[method-assign]
    assert max(batches) == 3
    assert [record.key for record in records] == [row.key for row in rows]
    for row, words, record in zip(rows, phrases, records, strict=True):
        assert row.image.bytes is not None
        image = Image.open(io.BytesIO(row.image.bytes)).convert("RGB")
        (found,) = predictor.predict(image, CAPTION, spans=SPANS)
        mirrored = predictor.predict(ImageOps.mirror(image), CAPTION, spans=SPANS)[0] if flip else None
        expected = select_boxes(words.phrases, found, (image.height, image.width), config, mirrored=mirrored)
        for mine, theirs in zip(record.phrases, expected, strict=True):
            assert len(mine.boxes) == len(theirs.boxes)
            for box, other in zip(mine.boxes, theirs.boxes, strict=True):
                assert box.score == pytest.approx(other.score, abs=1e-4)
                assert box.xyxy == pytest.approx(other.xyxy, abs=1e-2)
    assert any(phrase.boxes for record in records for phrase in record.phrases)


def test_a_predictor_whose_own_method_grounds_is_asked_by_it(
    predictor: GLIPPredictor, label_config: PseudoLabelConfig, decode: Any, pair: Pair, parsed: Parsed, picture: Picture
) -> None:
    class Own(GLIPPredictor):
        def ground(self, images: Sequence[Any], prompts: Sequence[Prompt], limit: int | None = None) -> Any:
            assert [image.size for image in images] == [(32, 24)]
            return [Detections.none()]

    row = pair("a", picture(red=RED), CAPTION)
    own = Own(predictor.model, predictor.tokenizer, "cpu")
    (record,) = PseudoLabeller(own, label_config, decode).label([row], [parsed(row, "red hat")])
    assert record.reject_reason == "no_boxes"


class Shapes:
    """Is told shapes by prepare, and boxes that cover the picture by answer."""

    resize_rule = ResizeRule(32, 64, 32)

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, int]]] = []

    def prepare(self, images: Sequence[ResizedImage], prompts: Sequence[Prompt]) -> Any:
        return images, prompts

    def answer(self, question: Any) -> list[Detections]:
        images, prompts = question
        self.batches.append([image.size for image in images])
        return [
            Detections(
                torch.tensor([[0.0, 0.0, image.original_size[1], image.original_size[0]]]),
                torch.tensor([0.9]),
                torch.tensor([0]),
                prompt.phrases,
            )
            for image, prompt in zip(images, prompts, strict=True)
        ]


@pytest.fixture
def pictures_of_two_shapes(pair: Pair, parsed: Parsed, picture: Picture) -> tuple[list[CaptionRecord], Any]:
    rows = [pair(str(i), picture((20 + i, 16) if i % 2 else (16, 20 + i)), "red hat") for i in range(12)]
    return rows, [parsed(row, "red hat") for row in rows]


def test_pictures_of_mixed_shapes_fill_their_batches(
    label_config: PseudoLabelConfig, decode: Any, pictures_of_two_shapes: Any
) -> None:
    config = dataclasses.replace(label_config, batch_size=4, max_area_share=1.0)
    rows, phrases = pictures_of_two_shapes
    teacher, done = Shapes(), list[Figures]()
    records = PseudoLabeller(teacher, config, decode).label(rows, phrases, done.append)
    assert [len(batch) for batch in teacher.batches] == [4, 4, 2, 2]
    assert all(len({height > width for height, width in batch}) == 1 for batch in teacher.batches)
    assert [figures.rows for figures in done] == [4, 4, 2, 2]
    for i, record in enumerate(records):
        assert record.phrases[0].boxes[0].xyxy == ((0, 0, 20 + i, 16) if i % 2 else (0, 0, 16, 20 + i))


@pytest.mark.parametrize("room", [1, 3])
def test_prepared_batches_too_large_for_the_device_are_asked_in_halves_too(
    room: int, label_config: PseudoLabelConfig, decode: Any, pictures_of_two_shapes: Any
) -> None:
    class Full(Shapes):
        def answer(self, question: Any) -> list[Detections]:
            if len(question[0]) > room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().answer(question)

    config = dataclasses.replace(label_config, batch_size=4, max_area_share=1.0)
    records = PseudoLabeller(Full(), config, decode).label(*pictures_of_two_shapes)
    assert [record.reject_reason for record in records] == [None] * 12


def test_the_next_pictures_are_decoded_while_the_teacher_works_but_not_all_of_them(
    label_config: PseudoLabelConfig, decode: Any, pictures_of_two_shapes: Any
) -> None:
    rows, phrases = pictures_of_two_shapes
    rows, phrases = rows * 10, phrases * 10
    ahead = threading.Semaphore(0)
    seen: list[int] = []

    def watch(refs: Sequence[ImageRef], rule: ResizeRule | None) -> Any:
        seen.append(len(refs))
        ahead.release()
        return decode(refs, rule)

    class Waits(Shapes):
        def answer(self, question: Any) -> list[Detections]:
            if not self.batches:  # the first batch is under way
                for _ in range(2):
                    assert ahead.acquire(timeout=60)
                # The first batch, those that wait behind it, what the window holds, and what is decoded ahead.
                batches = 1 + labeller_module.BATCHES_AHEAD + batching.WINDOW_BATCHES + 1 + labeller_module.CHUNKS_AHEAD
                assert sum(seen) <= 2 * batches < len(rows)
            return super().answer(question)

    PseudoLabeller(Waits(), label_config, watch).label(rows, phrases)
    assert sum(seen) == len(rows)


def test_large_pictures_are_decoded_a_few_at_a_time(
    fake_teacher: Any,
    label_config: PseudoLabelConfig,
    decode: Any,
    pair: Pair,
    parsed: Parsed,
    picture: Picture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(labeller_module, "CHUNK_PIXELS", 2 * 24 * 32)
    rows = [pair(str(i), picture(red=RED), "red hat") for i in range(5)]
    asked: list[int] = []

    def count(refs: Sequence[ImageRef], rule: ResizeRule | None) -> Any:
        asked.append(len(refs))
        return decode(refs, rule)

    config = dataclasses.replace(label_config, batch_size=4)
    PseudoLabeller(fake_teacher, config, count).label(rows, [parsed(row, "red hat") for row in rows])
    assert sorted(asked) == [1, 2, 2]
    assert fake_teacher.batches == [4, 1]
