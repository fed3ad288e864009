"""What becomes of raw rows, whatever the format: records that keep their promises, counted rejects, dropped boxes."""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from glip_model.images import ImageError
from pipeline.prepare.raw import (
    BOXES_CLIPPED,
    CAPTION_DAMAGED,
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
from pipeline.prepare.validation import MAX_CAPTION_CHARS, READ_AHEAD, Rules, to_records
from pipeline.prepare.values import content_key
from pipeline.store.images import load_image
from pipeline.store.records import BOX_DROP_REASONS, ROW_REJECT_REASONS, CaptionRecord, DetectionRecord, GroundingRecord

RULES = Rules(
    source="test",
    pictures="embed",
    max_pixels=10_000,
    categories=frozenset({3, 90}),
    roots=("/", "s3://nowhere", "memory://"),
)
NAN, INFINITE = float("nan"), float("inf")


def encode(kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (40, 30), **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size).save(out, kind, **options)
    return out.getvalue()


PICTURE = encode()


def pair(caption: Any = "a dog", **image: Any) -> RawPair:
    return RawPair(name="row", image=RawImage(**(image or {"data": PICTURE})), caption=caption)


def grounding(caption: str, *phrases: RawPhrase) -> RawGrounding:
    return RawGrounding(name="row", image=RawImage(data=PICTURE), caption=caption, phrases=phrases)


def convert(*rows: Any, **rules: Any) -> list[Any]:
    return list(to_records(rows, dataclasses.replace(RULES, **rules)))


def test_a_pair_becomes_a_record_with_its_own_size_and_bytes() -> None:
    (record,) = convert(pair(" A dog.\n", data=PICTURE, height=999, width=999))
    assert record == CaptionRecord(
        key=content_key("test", PICTURE, "A dog."),
        image=record.image,
        height=30,
        width=40,
        caption="A dog.",
        source="test",
    )
    assert (record.image.bytes, record.image.path) == (PICTURE, None)


@pytest.mark.parametrize(
    "data",
    [
        encode("JPEG", "L"),
        encode("JPEG", "CMYK"),
        encode("PNG", "P"),
        encode("PNG", "I;16"),
        encode("PNG", "RGBA"),
        encode("GIF", "P", save_all=True, append_images=[Image.new("P", (40, 30), 1)]),
        encode("WEBP"),
        encode("BMP"),
        encode("TIFF"),
    ],
)
def test_pictures_of_every_kind_are_taken(data: bytes) -> None:
    (record,) = convert(pair(data=data))
    assert (record.height, record.width) == (30, 40)
    assert load_image(record.image, 10_000, ["/"]).size == (40, 30)


def test_a_turned_picture_has_the_size_that_it_has_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (record,) = convert(pair(data=encode("JPEG", exif=exif)))
    assert (record.height, record.width) == (40, 30)


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = struct.pack(">I", 999) + b"IDAT" + bytes(999)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + pixels


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ({"url": "/nowhere/a.jpg"}, "image_missing"),
        ({"url": "/"}, "image_missing"),
        ({}, "image_missing"),
        ({"data": b"no picture"}, "image_unreadable"),
        ({"data": b""}, "image_unreadable"),
        ({"data": PICTURE[:-30]}, "image_unreadable"),
        ({"data": encode("JPEG")[:-100]}, "image_unreadable"),
        ({"data": encode(size=(101, 100))}, "image_too_large"),
        ({"data": png_header(50_000, 50_000)}, "image_too_large"),
    ],
)
def test_a_picture_that_cannot_be_used_is_a_reject(image: dict[str, Any], reason: str) -> None:
    row = RawPair(name="row", image=RawImage(**image), caption="a dog")
    assert convert(row, pair("a cat"))[0] == Reject("row", reason)
    assert reason in ROW_REJECT_REASONS


def test_pictures_are_found_in_the_first_place_that_has_them(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(PICTURE)
    places = [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    row = RawPair(name="row", image=RawImage(url=places[0], choices=tuple(places[1:])), caption="a dog")
    (record,) = convert(row)
    assert record.image.bytes == PICTURE
    (record,) = convert(row, pictures="reference")
    assert (record.image.bytes, record.image.path) == (None, places[1])
    assert load_image(record.image, 10_000, ["/"]).size == (40, 30)


def test_names_below_a_folder_do_not_leave_it(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(PICTURE)
    (tmp_path / "secret.png").write_bytes(PICTURE)
    folder = str(tmp_path / "images")
    for name, reason in (
        ("../secret.png", "image_outside_folder"),
        ("b\0", "image_missing"),
        ("b.png", "image_missing"),
    ):
        row = RawPair(name="row", image=RawImage(folder=folder, url=name, height=30, width=40), caption="a dog")
        assert convert(row) == [Reject("row", reason)]
        if name != "b.png":
            assert convert(row, pictures="unread") == [Reject("row", reason)]
    (record,) = convert(pair(folder=folder, url="x.png", choices=("./a.png",)), pictures="reference")
    assert record.image.path == f"{folder}/a.png"


def test_a_picture_inside_of_an_archive_is_referred_to_by_its_range(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    archive.write_bytes(b"x" * 100 + PICTURE + b"y" * 50)
    url = f"{archive}#bytes=100-{99 + len(PICTURE)}"
    (record,) = convert(pair(url=url, data=PICTURE), pictures="reference")
    assert record.image.path == url
    assert load_image(record.image, 10_000, ["/"]).size == (40, 30)
    (record,) = convert(pair(data=PICTURE), pictures="reference")  # nowhere else to be found
    assert record.image.bytes == PICTURE


def test_unread_pictures_have_the_size_that_the_annotations_give(tmp_path: Path) -> None:
    (record,) = convert(pair(url="s3://nowhere/a.jpg", height=480, width=640), pictures="unread")
    assert (record.height, record.width, record.image.path) == (480, 640, "s3://nowhere/a.jpg")
    for sizes in ({}, {"height": 480}, {"height": 0, "width": 9}, {"height": "480", "width": 640}, {"height": -1}):
        assert convert(pair(url="s3://nowhere/a.jpg", **sizes), pictures="unread") == [
            Reject("row", "image_unreadable")
        ]


@pytest.mark.parametrize("caption", ["", " \n\t", None, 5, ["a dog"], "\0"])
def test_an_empty_caption_is_a_reject(caption: Any) -> None:
    assert convert(pair(caption)) == [Reject("row", "caption_empty")]


def test_a_caption_without_end_is_a_reject() -> None:
    assert convert(pair("x" * (MAX_CAPTION_CHARS + 1))) == [Reject("row", "caption_too_long")]


def test_captions_stay_as_they_are(tmp_path: Path) -> None:
    texts = ["<script>alert(1)</script> & more", "चित्र में कुत्ता", "a \N{DOG FACE} dog", "ein  Hund"]
    assert [record.caption for record in convert(*map(pair, texts))] == texts


def test_boxes_keep_their_category_and_their_crowd() -> None:
    objects = [
        RawObject(xyxy=(1, 2, 11, 22), category_id=3),
        RawObject(xyxy=(0.5, 0.5, 5.5, 5.5), category_id=90, is_crowd=True),
    ]
    (record,) = convert(RawDetection(name="row", image=RawImage(data=PICTURE), objects=objects))
    assert isinstance(record, DetectionRecord)
    assert [(item.category_id, item.xyxy, item.is_crowd) for item in record.objects] == [
        (3, (1.0, 2.0, 11.0, 22.0), False),
        (90, (0.5, 0.5, 5.5, 5.5), True),
    ]
    (empty,) = convert(RawDetection(name="row", image=RawImage(data=PICTURE), objects=()))
    assert empty.objects == ()


@pytest.mark.parametrize(
    ("box", "category", "reason"),
    [
        ((NAN, 1, 5, 5), 3, "box_malformed"),
        ((1, 1, NAN, 5), 3, "box_malformed"),
        ((-INFINITE, 1, INFINITE, 5), 3, "box_malformed"),
        ((10**400, 1, 5, 5), 3, "box_malformed"),
        ((1, 2, 3), 3, "box_malformed"),
        ((1, 2, 3, "wide"), 3, "box_malformed"),
        ((), 3, "box_malformed"),
        (None, 3, "box_malformed"),
        ((1, 1, 1, 5), 3, "box_degenerate"),
        ((9, 1, 4, 5), 3, "box_degenerate"),
        ((39.5, 1, 60, 5), 3, "box_degenerate"),
        ((-30, 1, -10, 5), 3, "box_degenerate"),
        ((1, 1, 5, 5), 4, "category_unknown"),
        ((1, 1, 5, 5), None, "category_unknown"),
        ((1, 1, 5, 5), [3], "category_unknown"),
    ],
)
def test_a_bad_box_is_dropped_and_counted_and_its_picture_stays(box: Any, category: Any, reason: str) -> None:
    objects = [RawObject(xyxy=box, category_id=category), RawObject(xyxy=(1, 1, 6, 6), category_id=3)]
    dropped, record = convert(RawDetection(name="row", image=RawImage(data=PICTURE), objects=objects))
    assert dropped == DroppedBox("row", reason)
    assert reason in BOX_DROP_REASONS
    assert [item.xyxy for item in record.objects] == [(1.0, 1.0, 6.0, 6.0)]


def test_boxes_below_a_pixel_stay_where_models_are_judged_and_empty_ones_nowhere() -> None:
    corners = [(1, 1, 5, 5), (1, 1, 5, 1.25), (39.5, 1, 60, 5), (1, 1, 1, 5), (9, 1, 4, 5), (-30, 1, -10, 5)]
    objects = [RawObject(xyxy=box, category_id=3) for box in corners]
    raw = RawDetection(name="row", image=RawImage(data=PICTURE), objects=objects)
    caption = grounding("a dog", RawPhrase(char_spans=[(2, 5)], boxes=corners))
    for rules, count in (({}, 1), ({"min_box_side": 0.0}, 3)):
        clipped = [Converted("row", BOXES_CLIPPED)] * (count == 3)  # one that is kept reaches outside
        *dropped, record = convert(raw, **rules)[: 7 - count]
        assert (len(record.objects), len(dropped)) == (count, 6 - count)
        assert convert(raw, **rules)[7 - count :] == clipped
        *dropped, record = convert(caption, **rules)[: 7 - count]
        assert (len(record.phrases[0].boxes), len(dropped)) == (count, 6 - count)
        assert convert(caption, **rules)[7 - count :] == clipped


@pytest.mark.parametrize(
    ("area", "kept"),
    [
        (12.5, 12.5),
        (12, 12.0),
        (0, 0.0),
        (1e9, 1e9),
        (-1, None),
        (NAN, None),
        (INFINITE, None),
        (10**400, None),
        ("12", None),
        (True, None),
        ([12], None),
        (None, None),
    ],
)
def test_an_area_is_kept_though_its_box_is_clipped_or_is_no_number_and_none(area: Any, kept: float | None) -> None:
    objects = [RawObject(xyxy=(-9, 1, 50, 5), category_id=3, area=area)]
    record, clipped = convert(RawDetection(name="row", image=RawImage(data=PICTURE), objects=objects))
    assert clipped == Converted("row", BOXES_CLIPPED)
    assert [(item.xyxy, item.area) for item in record.objects] == [((0.0, 1.0, 40.0, 5.0), kept)]


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        ([90, 3], (90, 3)),
        ((3,), (3,)),
        ([3, 4, "90", 90.0, True, None, [3], {}, 90], (3, 90)),
        ({3: 90}, ()),
        ("3", ()),
        (3, ()),
        (None, ()),
    ],
)
def test_ids_outside_of_the_vocabulary_are_left_out(ids: Any, kept: tuple[int, ...]) -> None:
    raw = RawDetection(name="row", image=RawImage(data=PICTURE), objects=(), negative_category_ids=ids)
    (record,) = convert(raw)
    assert (record.negative_category_ids, record.not_exhaustive_category_ids) == (kept, ())
    (record,) = convert(dataclasses.replace(raw, negative_category_ids=None, not_exhaustive_category_ids=ids))
    assert (record.negative_category_ids, record.not_exhaustive_category_ids) == ((), kept)


def test_a_box_that_is_rounded_over_the_edge_is_not_counted_as_clipped() -> None:
    objects = [RawObject(xyxy=(-1, 1, 41, 5), category_id=3)]
    (record,) = convert(RawDetection(name="row", image=RawImage(data=PICTURE), objects=objects))
    assert record.objects[0].xyxy == (0.0, 1.0, 40.0, 5.0)


def test_phrases_keep_their_spans_their_boxes_and_their_order() -> None:
    caption = " a dog and a cat on a mat"
    (record,) = convert(
        grounding(
            caption,
            RawPhrase(char_spans=[[11, 16]], boxes=[(1, 1, 9, 9), (2, 2, 8, 8)]),
            RawPhrase(char_spans=[(3, 6), (20, 25)], boxes=[(1, 1, 9, 9)], scores=[0.25], is_plural=True),
            RawPhrase(char_spans=[(0, 6)]),
        )
    )
    assert isinstance(record, GroundingRecord)
    assert record.caption == caption  # spans index it as it came
    texts = [(phrase.text, phrase.char_spans, [box.score for box in phrase.boxes]) for phrase in record.phrases]
    assert texts == [
        ("a cat", ((11, 16),), [1.0, 1.0]),
        ("dog a mat", ((3, 6), (20, 25)), [0.25]),
        ("a dog", ((1, 6),), []),
    ]


def test_a_phrase_without_text_loses_its_boxes_and_a_row_without_phrases_is_a_reject() -> None:
    empty = RawPhrase(char_spans=[(5, 5), (1, 2), (90, 99), ("a", "b"), (3,)], boxes=[(1, 1, 9, 9)])
    good = RawPhrase(char_spans=[(2, 5)], boxes=[(1, 1, 9, 9), (1, 1, 1, 1)])
    first, second, record = convert(grounding("a dog", empty, good))
    assert (first, second) == (DroppedBox("row", "span_empty"), DroppedBox("row", "box_degenerate"))
    assert [phrase.text for phrase in record.phrases] == ["dog"]
    assert convert(grounding("a dog", empty))[-1] == Reject("row", "no_phrases")
    assert convert(grounding("a dog")) == [Reject("row", "no_phrases")]


@pytest.mark.parametrize("score", [-0.1, 1.5, NAN, None, "0.5"])
def test_a_score_outside_of_0_to_1_is_malformed(score: Any) -> None:
    phrase = RawPhrase(char_spans=[(0, 5)], boxes=[(1, 1, 9, 9)], scores=[score])
    assert convert(grounding("a dog", phrase))[0] == DroppedBox("row", "box_malformed")


def test_one_caption_of_two_things_makes_two_keys() -> None:
    rows = [grounding("a dog", RawPhrase(char_spans=[(0, 5)], boxes=[(1, 1, side, 9)])) for side in (5, 9, 9)]
    first, second, third, again = convert(*rows, dataclasses.replace(rows[0], occurrence=1))
    assert first.key != second.key == third.key
    assert again.key not in {first.key, second.key}


def test_order_stays_over_batches_of_reads(tmp_path: Path) -> None:
    rows: list[Any] = []
    for i in range(2 * READ_AHEAD + 5):
        path = tmp_path / f"{i}.png"
        if i % 7:
            path.write_bytes(PICTURE)
        rows.append(RawPair(name=str(i), image=RawImage(url=str(path)), caption=str(i)))
    rows.insert(3, Reject("x", "row_malformed"))
    found = [row.caption if isinstance(row, CaptionRecord) else f"{row.name} {row.reason}" for row in convert(*rows)]
    expected = [str(i) if i % 7 else f"{i} image_missing" for i in range(2 * READ_AHEAD + 5)]
    expected.insert(3, "x row_malformed")
    assert found == expected


def test_a_failed_read_says_why() -> None:
    with pytest.raises(ImageError, match="no such file"):
        load_image(convert(pair(url="/nowhere/a.jpg", height=5, width=5), pictures="unread")[0].image, 100, ["/"])


@pytest.mark.parametrize("name", ["a%20b%C3%A9.jpg", "a bé.jpg", "C:\\x\\a%20bé.jpg"])
def test_a_picture_may_be_named_as_in_a_url(name: str, tmp_path: Path) -> None:
    (tmp_path / "a bé.jpg").write_bytes(PICTURE)
    (record,) = convert(pair(url=name, folder=str(tmp_path)), pictures="reference")
    assert record.image.path == str(tmp_path / "a bé.jpg")
    (reject,) = convert(pair(url="%2e%2e/secret.jpg", folder=str(tmp_path)))
    assert reject == Reject("row", "image_outside_folder")


def test_boxes_beyond_the_last_score_are_dropped() -> None:
    phrase = RawPhrase(char_spans=[(0, 5)], boxes=[(1, 1, 9, 9), (2, 2, 9, 9)], scores=[0.5])
    dropped, record = convert(grounding("a dog", phrase))
    assert (dropped.reason, len(record.phrases[0].boxes)) == ("box_malformed", 1)


def test_a_caption_that_had_to_be_mended_is_counted() -> None:
    record, told = convert(pair("a\0dog \ud83d"))
    assert (record.caption, told) == ("a dog \N{REPLACEMENT CHARACTER}", Converted("row", CAPTION_DAMAGED))
    assert len(convert(pair(" a dog \n"))) == 1
