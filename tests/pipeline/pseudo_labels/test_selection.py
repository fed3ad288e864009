"""What is kept of a teacher's boxes: every rule alone, and all of them together against a slow re-computation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glip_model.structures import Detections
from pipeline.pseudo_labels.selection import PHRASE_REJECT_REASONS, agree, select_boxes
from pipeline.pseudo_labels.settings import PseudoLabelConfig
from pipeline.store.records import Phrase

CONFIG = PseudoLabelConfig(
    min_score=0.4,
    min_score_by_source={},
    names={},
    other_phrases="keep",
    skip_known=0,
    min_agreement=0.0,
    fusion_threshold=0.55,
    passes=(),
    flip_agreement=False,
    nms_threshold=0.5,
    compete_threshold=0.5,
    one_box_per_singular=True,
    max_boxes_per_phrase=3,
    min_box_side=4.0,
    max_area_share=0.9,
    batch_size=4,
    decode_timeout_s=20.0,
    num_actors=1,
    max_reject_share=0.5,
    precision="float32",
    tile=0,
)
SIZE = (100, 200)  # height, width
LEFT, MIDDLE, RIGHT = (0, 0, 40, 40), (60, 0, 100, 40), (150, 50, 190, 90)
Found = tuple[int, tuple[float, float, float, float], float]


def phrases(*plurals: bool | None) -> list[Phrase]:
    return [
        Phrase(text=f"p{i}", char_spans=((3 * i, 3 * i + 2),), is_plural=plural) for i, plural in enumerate(plurals)
    ]


def detections(found: Sequence[Found]) -> Detections:
    return Detections(
        boxes_xyxy=torch.tensor([box for _, box, _ in found], dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor([score for *_, score in found], dtype=torch.float32),
        phrase_index=torch.tensor([phrase for phrase, *_ in found], dtype=torch.int64),
    )


def select(asked: Sequence[Phrase], found: Sequence[Found], **changes: object) -> tuple[Phrase, ...]:
    return select_boxes(asked, detections(found), SIZE, dataclasses.replace(CONFIG, **changes))


def boxes_of(phrase: Phrase) -> list[tuple[float, float, float, float]]:
    return [box.xyxy for box in phrase.boxes]


def test_phrases_come_back_whole_with_their_boxes_best_first() -> None:
    asked = phrases(True)
    (phrase,) = select(asked, [(0, LEFT, 0.5), (0, RIGHT, 0.75)])
    assert dataclasses.replace(phrase, boxes=()) == asked[0]
    assert boxes_of(phrase) == [RIGHT, LEFT]
    assert [box.score for box in phrase.boxes] == [0.75, 0.5]


def test_no_phrases_and_no_detections() -> None:
    assert select([], []) == ()
    (phrase,) = select(phrases(True), [])
    assert phrase.boxes == ()
    assert phrase.reject_reason == "not_detected"


def test_score_at_the_threshold_is_kept() -> None:
    (phrase,) = select(phrases(True), [(0, LEFT, 0.5), (0, RIGHT, 0.49)], min_score=0.5)
    assert boxes_of(phrase) == [LEFT]


def test_the_filter_that_takes_the_last_box_names_the_reason() -> None:
    asked = phrases(False, False, False, False, False)
    found = [
        (0, LEFT, 0.3),
        (1, (0, 0, 3, 90), 0.9),
        (2, (0, 0, 200, 100), 0.9),
        (2, LEFT, 0.1),  # below the score first, too large last
        (3, MIDDLE, 0.8),
        (4, MIDDLE, 0.7),
    ]
    reasons = [phrase.reject_reason for phrase in select(asked, found)]
    assert reasons == ["below_min_score", "box_too_small", "box_too_large", None, "lost_to_other_phrase"]


def mirror(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    return (SIZE[1] - box[2], box[1], SIZE[1] - box[0], box[3])


def test_agreement_with_the_mirrored_picture_is_the_mean_of_both_scores() -> None:
    asked = phrases(True, True, True)
    found = detections([(0, LEFT, 0.8), (0, RIGHT, 0.7), (1, MIDDLE, 0.9), (2, RIGHT, 0.3)])
    # LEFT is seen again, and a worse one over it; RIGHT only by another phrase; MIDDLE not at all.
    near = (2.0, 0.0, 42.0, 40.0)
    mirrored = detections([(0, mirror(near), 0.5), (0, mirror(LEFT), 0.2), (1, mirror(RIGHT), 0.9)])
    config = dataclasses.replace(CONFIG, compete_threshold=1.0)
    first, second, third = select_boxes(asked, found, SIZE, config, min_score=0.5, mirrored=mirrored)
    assert boxes_of(first) == [LEFT]
    assert first.boxes[0].score == pytest.approx(0.65)
    assert (second.boxes, second.reject_reason) == ((), "flip_disagrees")
    assert third.reject_reason == "below_min_score"


def test_boxes_are_given_out_by_agreement_and_not_by_score() -> None:
    # The wolf's box is surer in the picture alone; only the dog's is seen in the mirrored one as well.
    found = detections([(0, LEFT, 0.9), (1, LEFT, 0.8)])
    mirrored = detections([(1, mirror(LEFT), 0.8)])
    wolf, dog = select_boxes(phrases(False, False), found, SIZE, CONFIG, min_score=0.4, mirrored=mirrored)
    assert (wolf.boxes, wolf.reject_reason) == ((), "lost_to_other_phrase")
    assert boxes_of(dog) == [LEFT]


@pytest.mark.parametrize(("height", "is_same"), [(20, True), (19, False)])
def test_half_of_a_box_is_enough_to_be_the_same(height: int, is_same: bool) -> None:
    found, mirrored = detections([(0, LEFT, 0.8)]), detections([(0, mirror((0, 0, 40, height)), 0.6)])
    assert agree(found, mirrored, SIZE[1]).tolist() == pytest.approx([0.7 if is_same else 0.4])


@given(st.lists(st.tuples(st.just(0), st.sampled_from([LEFT, MIDDLE, RIGHT]), st.floats(0, 1, width=32)), max_size=5))
def test_what_is_seen_in_both_pictures_keeps_its_score(found: list[Found]) -> None:
    best = {box: max(score for _, other, score in found if other == box) for _, box, _ in found}
    distinct = detections([(0, box, score) for box, score in best.items()])
    mirrored = detections([(0, mirror(box), score) for box, score in best.items()])
    assert torch.allclose(agree(distinct, mirrored, SIZE[1]), distinct.scores)
    assert torch.allclose(agree(distinct, detections([]), SIZE[1]), distinct.scores / 2)


def test_overlapping_boxes_of_one_phrase_suppress_one_another() -> None:
    near = (4, 0, 44, 40)
    (phrase,) = select(phrases(True), [(0, near, 0.6), (0, LEFT, 0.9), (0, RIGHT, 0.5)])
    assert boxes_of(phrase) == [LEFT, RIGHT]


def test_singular_phrase_keeps_its_best_box_alone() -> None:
    found = [(i, box, score) for i in range(3) for box, score in ((LEFT, 0.6), (RIGHT, 0.8))]
    kept = select(phrases(False, True, None), found, compete_threshold=1.0)
    assert [boxes_of(phrase) for phrase in kept] == [[RIGHT], [RIGHT, LEFT], [RIGHT, LEFT]]
    kept = select(phrases(False), found[:2], one_box_per_singular=False)
    assert boxes_of(kept[0]) == [RIGHT, LEFT]


def test_plural_phrase_keeps_at_most_the_configured_number() -> None:
    found = [(0, (20 * i, 0, 20 * i + 10, 10), 0.9 - i / 100) for i in range(6)]
    (phrase,) = select(phrases(True), found)
    assert boxes_of(phrase) == [box for _, box, _ in found[:3]]


def test_a_box_belongs_to_the_phrase_that_fits_it_best() -> None:
    found = [(0, LEFT, 0.9), (1, LEFT, 0.8), (1, RIGHT, 0.5)]
    dog, cat = select(phrases(False, False), found)
    assert boxes_of(dog) == [LEFT]
    assert boxes_of(cat) == [RIGHT]
    dog, cat = select(phrases(False, False), found, compete_threshold=1.0)
    assert boxes_of(cat) == [LEFT]


def test_what_a_phrase_may_not_keep_it_takes_from_nobody() -> None:
    # The teacher knows dogs and calls the wolf a dog as well; the caption has one dog.
    dog, wolf = select(phrases(False, False), [(0, LEFT, 0.9), (0, RIGHT, 0.7), (1, RIGHT, 0.5)])
    assert boxes_of(dog) == [LEFT]
    assert boxes_of(wolf) == [RIGHT]


def test_a_phrase_said_twice_gets_two_different_boxes() -> None:
    found = [(0, LEFT, 0.9), (1, LEFT, 0.89), (0, RIGHT, 0.8), (1, RIGHT, 0.79)]
    first, second = select(phrases(False, False), found)
    assert boxes_of(first) == [LEFT]
    assert boxes_of(second) == [RIGHT]


def test_a_broken_teacher_gives_no_boxes() -> None:
    nan = float("nan")
    (phrase,) = select(phrases(True), [(0, LEFT, nan), (0, (nan, nan, nan, nan), 0.9)])
    assert phrase.boxes == ()


def slow_iou(a: Sequence[float], b: Sequence[float]) -> float:
    cells = [
        (x, y)
        for x in range(int(min(a[0], b[0])), int(max(a[2], b[2])))
        for y in range(int(min(a[1], b[1])), int(max(a[3], b[3])))
    ]

    def inside(cell: tuple[int, int], box: Sequence[float]) -> bool:
        return box[0] <= cell[0] < box[2] and box[1] <= cell[1] < box[3]

    union = sum(inside(cell, a) or inside(cell, b) for cell in cells)
    return sum(inside(cell, a) and inside(cell, b) for cell in cells) / union if union else 0.0


def slow_selection(asked: Sequence[Phrase], found: Sequence[Found], config: PseudoLabelConfig) -> list[list[int]]:
    """Per phrase the places of its boxes in ``found``, by asking about every pair."""
    kept: list[list[int]] = [[] for _ in asked]
    for i in sorted(range(len(found)), key=lambda i: -found[i][2]):  # equal scores keep their order
        phrase, box, score = found[i]
        width, height = box[2] - box[0], box[3] - box[1]
        if score < config.min_score or min(width, height) < config.min_box_side:
            continue
        if width * height / (SIZE[0] * SIZE[1]) > config.max_area_share:
            continue
        is_single = config.one_box_per_singular and asked[phrase].is_plural is False
        if len(kept[phrase]) >= (1 if is_single else config.max_boxes_per_phrase):
            continue
        for other, places in enumerate(kept):
            limit = config.nms_threshold if other == phrase else config.compete_threshold
            if any(slow_iou(box, found[j][1]) > limit for j in places):
                break
        else:
            kept[phrase].append(i)
    return kept


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Phrase], list[Found]]:
    asked = phrases(*draw(st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=4)))
    side = st.integers(0, 12)
    found = []
    for _ in range(draw(st.integers(0, 10))):
        x, y, width, height = draw(st.tuples(side, side, side, side))
        score = draw(st.integers(0, 32)) / 32  # exact in float32
        found.append((draw(st.integers(0, len(asked) - 1)), (x, y, x + width, y + height), score))
    return asked, found


@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from([0.3, 0.55, 1.0]), st.sampled_from([0.2, 0.45]), st.booleans())
def test_selection_equals_the_slow_one(
    case: tuple[list[Phrase], list[Found]], compete: float, nms: float, one_box: bool
) -> None:
    asked, found = case
    changes = {"compete_threshold": compete, "nms_threshold": nms, "one_box_per_singular": one_box}
    config = dataclasses.replace(CONFIG, **changes, max_area_share=0.006)  # 120 pixels
    kept = select_boxes(asked, detections(found), SIZE, config)
    expected = slow_selection(asked, found, config)
    assert [[(box.xyxy, box.score) for box in phrase.boxes] for phrase in kept] == [
        [found[i][1:] for i in places] for places in expected
    ]
    for phrase in kept:
        assert (phrase.reject_reason is None) == bool(phrase.boxes)
        assert phrase.reject_reason in (None, *PHRASE_REJECT_REASONS)
