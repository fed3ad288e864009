"""Annotations that saw their picture at another size: boxes of what is drawn in it stay on what is drawn in it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glip_model.images import decode_image
from pipeline.prepare.frames import BOXES_SCALED, BOXES_TAKEN_UPRIGHT, BOXES_TURNED
from pipeline.prepare.held_out import Sighting
from pipeline.prepare.raw import (
    BOXES_CLIPPED,
    Converted,
    DroppedBox,
    RawDetection,
    RawGrounding,
    RawImage,
    RawObject,
    RawPair,
    RawPhrase,
    Reject,
)
from pipeline.prepare.validation import Rules, to_records
from pipeline.store.records import DetectionRecord, GroundingRecord

RULES = Rules(source="test", pictures="embed", max_pixels=10**7, categories=frozenset({1}))
BOX = (70, 10, 150, 40)
"""Where the drawn picture, 200 × 100 as it is stored, is bright."""


def drawn(orientation: int = 1, size: tuple[int, int] = (200, 100), kind: str = "PNG") -> bytes:
    """Return a picture, bright inside of BOX in its stored pixels, at a size (width, height)."""
    pixels = np.zeros((100, 200, 3), np.uint8)
    x1, y1, x2, y2 = BOX
    pixels[y1:y2, x1:x2] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(out, kind, exif=exif)
    return out.getvalue()


def bright(data: bytes) -> tuple[float, ...]:
    """Return the box of what is bright in the upright picture."""
    rows, columns = np.nonzero(np.asarray(decode_image(data, 10**7).convert("L")) > 127)
    return (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def detection(
    data: bytes, height: Any, width: Any, *boxes: Any, is_relative: bool = False, area: float | None = None
) -> RawDetection:
    image = RawImage(data=data, height=height, width=width)
    objects = [RawObject(xyxy=box, category_id=1, is_relative=is_relative, area=area) for box in boxes]
    return RawDetection(name="row", image=image, objects=objects)


def convert(row: Any) -> list[Any]:
    return list(to_records([row], RULES))


def reasons(row: Any) -> list[str]:
    return [told.reason if isinstance(told, Reject) else "" for told in convert(row)]


def boxes_of(record: Any) -> list[tuple[float, ...]]:
    assert isinstance(record, DetectionRecord)
    return [item.xyxy for item in record.objects]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_of_stored_pixels_follow_exif(orientation: int) -> None:
    data = drawn(orientation)
    record, told = convert(detection(data, 100, 200, BOX))
    assert boxes_of(record) == [bright(data)]
    assert (record.height, record.width) == (200, 100)
    assert told == Converted("row", BOXES_TURNED)


@pytest.mark.parametrize("orientation", [1, 5, 6, 7, 8])
def test_boxes_of_the_upright_picture_stay(orientation: int) -> None:
    data = drawn(orientation)
    height, width = (100, 200) if orientation == 1 else (200, 100)
    (record,) = convert(detection(data, height, width, bright(data)))
    assert boxes_of(record) == [bright(data)]


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_where_no_size_tells_boxes_are_taken_for_upright_and_counted(orientation: int) -> None:
    data = drawn(orientation)
    for height, width in ((100, 200), (None, None), (0, 200), (-1, -1), (True, True)):
        record, told = convert(detection(data, height, width, bright(data)))
        assert boxes_of(record) == [bright(data)]
        assert told == Converted("row", BOXES_TAKEN_UPRIGHT)


def test_without_a_size_boxes_that_fit_the_stored_pixels_alone_are_not_certain() -> None:
    data = drawn(6)
    record, told = convert(detection(data, None, None, (60, 70, 90, 150)))
    assert (boxes_of(record), told.what) == ([(60, 70, 90, 150)], BOXES_TAKEN_UPRIGHT)
    assert reasons(detection(data, None, None, BOX)) == ["size_mismatch"]


@pytest.mark.parametrize("size", [(100, 50), (50, 25), (67, 33), (400, 200), (199, 100), (200, 101)])
def test_boxes_of_a_picture_before_it_was_resized_are_scaled(size: tuple[int, int]) -> None:
    data = drawn(size=size, kind="JPEG" if size == (400, 200) else "PNG")
    record, told = convert(detection(data, 100, 200, BOX, area=2400.0))
    by_x, by_y = size[0] / 200, size[1] / 100
    assert boxes_of(record)[0] == pytest.approx((70 * by_x, 10 * by_y, 150 * by_x, 40 * by_y))
    np.testing.assert_allclose(boxes_of(record)[0], bright(data), atol=1.0)
    assert record.objects[0].area == pytest.approx(2400 * by_x * by_y)
    assert told == Converted("row", BOXES_SCALED)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_are_scaled_and_turned(orientation: int) -> None:
    data = drawn(orientation, (100, 50))
    record, *told = convert(detection(data, 100, 200, BOX))
    assert boxes_of(record) == [bright(data)]
    assert told == [Converted("row", BOXES_SCALED), Converted("row", BOXES_TURNED)]


@pytest.mark.parametrize(
    ("stated", "orientation"),
    [
        ((200, 100), 1),
        ((200, 100), 3),
        ((100, 100), 1),
        ((100, 190), 1),
        ((50, 200), 1),
        ((400, 100), 6),
        ((400, 200), 1),
    ],
)
def test_a_size_of_another_shape_is_a_reject(stated: tuple[int, int], orientation: int) -> None:
    data = drawn(orientation)
    assert reasons(detection(data, *stated, (10, 10, 20, 20))) == ["size_mismatch"]
    assert reasons(detection(data, *stated)) == ["size_mismatch"]
    phrase = RawPhrase(char_spans=[(0, 1)], boxes=[(1, 1, 9, 9)])
    image = RawImage(data=data, height=stated[0], width=stated[1])
    row = RawGrounding(name="row", image=image, caption="a", phrases=[phrase])
    assert reasons(row) == ["size_mismatch"]


def test_a_picture_whose_size_is_not_certain_is_still_held_out() -> None:
    sightings: list[Sighting] = []
    (reject,) = to_records([detection(drawn(), 77, 200, BOX)], RULES, sightings)
    assert (type(reject), len(sightings)) == (Reject, 1)


def test_of_a_turned_picture_that_is_nearly_a_square_only_its_own_sizes_are_certain() -> None:
    data = drawn(6, (101, 100))
    assert [row.what for row in convert(detection(data, 100, 101, (1, 1, 9, 9)))[1:]] == [BOXES_TURNED]
    assert len(convert(detection(data, 101, 100, (1, 1, 9, 9)))) == 1
    assert reasons(detection(data, 202, 200, (1, 1, 9, 9))) == ["size_mismatch"]


def test_a_turned_square_that_was_resized_is_scaled_and_taken_for_upright() -> None:
    for orientation in (3, 6):
        record, *told = convert(detection(drawn(orientation, (100, 100)), 200, 200, (20, 40, 60, 80)))
        assert boxes_of(record) == [(10, 20, 30, 40)]
        assert [row.what for row in told] == [BOXES_SCALED, BOXES_TAKEN_UPRIGHT]


def test_boxes_that_fit_the_picture_but_not_the_stated_size_speak_against_it() -> None:
    assert reasons(detection(drawn(), 50, 100, BOX)) == ["size_mismatch"]
    upright = drawn(6)
    assert convert(detection(drawn(), 50, 100, BOX)) == [
        Reject("row: annotated at 100×50, the picture is 200×100", "size_mismatch")
    ]
    assert reasons(detection(upright, 100, 200, bright(upright))) == ["size_mismatch"]
    # What fits into neither is a careless box, and what is a pixel over is rounded.
    record, *notes = convert(detection(drawn(), 50, 100, (90, 10, 500, 40)))
    assert [note.what for note in notes] == [BOXES_SCALED, BOXES_CLIPPED]
    assert boxes_of(record) == [(180, 20, 200, 80)]
    record, *_ = convert(detection(drawn(), 50, 100, (90, 10, 101, 40)))
    assert boxes_of(record) == [(180, 20, 200, 80)]


def test_boxes_in_shares_are_turned_and_never_scaled() -> None:
    shares = (0.35, 0.1, 0.75, 0.4)
    for orientation, size in ((1, (200, 100)), (1, (100, 50)), (6, (200, 100)), (8, (100, 50))):
        data = drawn(orientation, size)
        record = convert(detection(data, 100, 200, shares, is_relative=True))[0]
        assert boxes_of(record)[0] == pytest.approx(bright(data))


def test_phrases_follow_as_objects_do() -> None:
    data = drawn(6)
    phrases = [RawPhrase(char_spans=[(0, 5)], boxes=[BOX, "no box"])]
    row = RawGrounding(name="row", image=RawImage(data=data, height=100, width=200), caption="a dog", phrases=phrases)
    dropped, record, told = convert(row)
    assert dropped == DroppedBox("row", "box_malformed")
    assert isinstance(record, GroundingRecord)
    assert record.phrases[0].boxes[0].xyxy == bright(data)
    assert told == Converted("row", BOXES_TURNED)


@pytest.mark.parametrize("box", [(), None, "dog", (1, 2, 3), (1, 2, 3, "x"), (1, 2, 3, 10**400), (float("nan"),) * 4])
def test_a_box_that_is_none_is_counted_whatever_the_size(box: Any) -> None:
    for row in (detection(drawn(6), 100, 200, box), detection(drawn(), 50, 100, box), detection(drawn(), None, 9, box)):
        assert DroppedBox("row", "box_malformed") in convert(row)


def test_pairs_have_no_boxes_and_take_every_size() -> None:
    (record,) = convert(RawPair(name="row", image=RawImage(data=drawn(6), height=7, width=7), caption="a dog"))
    assert (record.height, record.width) == (200, 100)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_exif_counts_in_every_format(kind: Any) -> None:
    data = drawn(8, kind=kind)
    record, told = convert(detection(data, 100, 200, BOX))
    np.testing.assert_allclose(boxes_of(record)[0], bright(data), atol=2.0)
    assert told.what == BOXES_TURNED
