"""Readers of raw data: good rows become records, bad rows counted rejects, and bad files errors that say where."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.config import SourceConfig, load_config
from pipeline.data.records import (
    BOX_DROP_REASONS,
    ROW_REJECT_REASONS,
    CaptionRecord,
    Category,
    DetectionRecord,
)
from pipeline.data.shards import CATEGORIES_KEY
from pipeline.data.sources import READERS, Role, clean_caption, clip_box, content_key, read_source
from pipeline.data.tables import DroppedBox, RecordTable, Reject
from pipeline.errors import ConfigError, MissingInputError

ROOT = Path(__file__).resolve().parents[3]
CONFIG = load_config(ROOT / "params.yaml").prepare
CATEGORIES = [{"id": 3, "name": "dog"}, {"id": 90, "name": "cat"}]


def jpeg(colour: str = "red", size: tuple[int, int] = (40, 30)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "JPEG")
    return out.getvalue()


class Raw:
    """A raw COCO-style data set in a folder."""

    def __init__(self, folder: Path) -> None:
        self.images = folder / "images"
        self.annotations = folder / "annotations.json"
        self.images.mkdir()

    def tables(self, reader: str, content: Any, role: Role = "human", **changes: Any) -> list[RecordTable]:
        self.annotations.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        source = SourceConfig(reader=reader, annotations=str(self.annotations), images=str(self.images))
        return read_source(source, role, dataclasses.replace(CONFIG, **changes), seed=0)

    def rows(self, reader: str, content: Any, role: Role = "human", **changes: Any) -> list[Any]:
        (table,) = self.tables(reader, content, role, **changes)
        return list(table.shard(0, table.num_rows)())

    def detect(self, *boxes: Any, **changes: Any) -> list[Any]:
        """Read one picture of 40 × 30 pixels with boxes given as (bbox, category id)."""
        (self.images / "a.jpg").write_bytes(jpeg())
        annotations = [{"image_id": 1, "bbox": bbox, "category_id": category} for bbox, category in boxes]
        images = [{"id": 1, "file_name": "a.jpg", "height": 999, "width": 999}]
        return self.rows(
            "coco_detection", {"images": images, "annotations": annotations, "categories": CATEGORIES}, **changes
        )


@pytest.fixture
def raw(tmp_path: Path) -> Raw:
    return Raw(tmp_path)


def test_a_picture_becomes_a_record_of_its_own_size_and_bytes(raw: Raw) -> None:
    (record,) = raw.detect(([1, 2, 10, 20], 3), ([0.5, 0.5, 5, 5], 90))
    assert isinstance(record, DetectionRecord)
    assert record.image.bytes == jpeg()
    assert (record.height, record.width) == (30, 40)  # what the annotation file says of it is not believed
    assert [(item.category_id, item.xyxy) for item in record.objects] == [
        (3, (1.0, 2.0, 11.0, 22.0)),
        (90, (0.5, 0.5, 5.5, 5.5)),
    ]
    assert record.source == "coco_detection"
    assert record.key == content_key(jpeg())


def test_the_vocabulary_keeps_ids_and_names(raw: Raw) -> None:
    (table,) = raw.tables("coco_detection", {"images": [], "annotations": [], "categories": CATEGORIES})
    categories = [Category(**entry) for entry in json.loads(table.metadata[CATEGORIES_KEY])]
    assert categories == [Category(id=3, name="dog"), Category(id=90, name="cat")]


def test_crowds_are_kept_and_marked(raw: Raw) -> None:
    (raw.images / "a.jpg").write_bytes(jpeg())
    annotations = [{"image_id": 1, "bbox": [1, 1, 9, 9], "category_id": 3, "iscrowd": crowd} for crowd in (0, 1)]
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": annotations, "categories": CATEGORIES}
    (record,) = raw.rows("coco_detection", content)
    assert [item.is_crowd for item in record.objects] == [False, True]


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("bbox", "category", "reason"),
    [
        ([NAN, 1, 5, 5], 3, "box_malformed"),
        ([1, 1, NAN, 5], 3, "box_malformed"),
        ([-INFINITE, 1, INFINITE, 5], 3, "box_malformed"),
        ([1e308, 1, 1e308, 5], 3, "box_malformed"),
        ([10**400, 1, 5, 5], 3, "box_malformed"),
        ([1, 2, 3], 3, "box_malformed"),
        ([1, 2, 3, "wide"], 3, "box_malformed"),
        (None, 3, "box_malformed"),
        ([1, 1, 0, 5], 3, "box_degenerate"),
        ([1, 1, -5, 5], 3, "box_degenerate"),
        ([39.5, 1, 20, 5], 3, "box_degenerate"),
        ([-30, 1, 20, 5], 3, "box_degenerate"),
        ([1, 1, 5, 5], 4, "category_unknown"),
        ([1, 1, 5, 5], None, "category_unknown"),
        ([1, 1, 5, 5], [3], "category_unknown"),
    ],
)
def test_a_bad_box_is_dropped_and_counted_and_its_picture_stays(
    raw: Raw, bbox: Any, category: Any, reason: str
) -> None:
    dropped, record = raw.detect((bbox, category), ([1, 1, 5, 5], 3))
    assert dropped == DroppedBox("a.jpg", reason)
    assert reason in BOX_DROP_REASONS
    assert [item.xyxy for item in record.objects] == [(1.0, 1.0, 6.0, 6.0)]


@given(
    st.tuples(*[st.floats(-1e4, 1e4)] * 4),
    st.integers(1, 500),
    st.integers(1, 500),
)
def test_clipped_boxes_lie_inside_and_lose_only_what_is_outside(
    box: tuple[float, float, float, float], height: int, width: int
) -> None:
    clipped = clip_box(box, height, width)
    left, right = max(box[0], 0), min(box[2], width)
    top, bottom = max(box[1], 0), min(box[3], height)
    if right - left < 1 or bottom - top < 1:
        assert clipped is None
    else:
        assert clipped == (left, top, right, bottom)


def test_a_picture_without_boxes_is_a_record(raw: Raw) -> None:
    (record,) = raw.detect()
    assert record.objects == ()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent.jpg", "image_missing"),
        (".", "image_missing"),
        ("nul\0.jpg", "image_missing"),
        ("\ud800.jpg", "image_missing"),
        ("x" * 5000, "image_missing"),
        ("text.jpg", "image_unreadable"),
        ("large.jpg", "image_too_large"),
        ("../secret.jpg", "image_outside_folder"),
        ("sub/../../secret.jpg", "image_outside_folder"),
        ("link.jpg", "image_outside_folder"),
        ("/etc/hostname", "image_outside_folder"),
    ],
)
@pytest.mark.parametrize("reader", ["coco_detection", "coco_captions"])
def test_a_picture_that_cannot_be_used_is_a_reject(raw: Raw, reader: str, name: str, reason: str) -> None:
    (raw.images.parent / "secret.jpg").write_bytes(jpeg())
    (raw.images / "link.jpg").symlink_to(raw.images.parent / "secret.jpg")
    (raw.images / "text.jpg").write_text("not a picture")
    (raw.images / "large.jpg").write_bytes(jpeg(size=(101, 100)))
    (raw.images / "good.jpg").write_bytes(jpeg())
    content = {
        "images": [{"id": 1, "file_name": name}, {"id": 2, "file_name": "good.jpg"}],
        "annotations": [{"image_id": i, "caption": "a dog", "bbox": [1, 1, 5, 5], "category_id": 3} for i in (1, 2)],
        "categories": CATEGORIES,
    }
    role: Role = "web" if reader == "coco_captions" else "human"
    reject, record = raw.rows(reader, content, role, max_image_pixels=10_000)
    assert reject == Reject(name, reason)
    assert reason in ROW_REJECT_REASONS
    assert record.image.bytes == jpeg()


def captions(*texts: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 1, "caption": text} for text in texts],
    }


def test_every_caption_is_a_pair_with_a_key_of_its_own_and_needs_no_categories(raw: Raw) -> None:
    (raw.images / "a.jpg").write_bytes(jpeg())
    first, second = raw.rows("coco_captions", captions(" A dog.\n", "Two cats"), "web")
    assert isinstance(first, CaptionRecord)
    assert (first.caption, second.caption) == ("A dog.", "Two cats")
    assert first.image == second.image
    assert first.key != second.key
    assert first.key == content_key(jpeg(), "A dog.")


@pytest.mark.parametrize("text", ["", " \n\t", None, 5, ["a dog"]])
def test_an_empty_caption_is_a_reject(raw: Raw, text: Any) -> None:
    (raw.images / "a.jpg").write_bytes(jpeg())
    assert raw.rows("coco_captions", captions(text), "web") == [Reject("a.jpg", "caption_empty")]


def test_captions_of_pictures_that_the_file_does_not_list_are_left_out(raw: Raw) -> None:
    (raw.images / "a.jpg").write_bytes(jpeg())
    content = captions("a dog")
    content["annotations"].append({"image_id": 7, "caption": "of nothing"})
    assert [row.caption for row in raw.rows("coco_captions", content, "web")] == ["a dog"]


@given(st.text())
def test_a_clean_caption_can_be_stored(text: str) -> None:
    cleaned = clean_caption(text)
    assert cleaned == cleaned.strip()
    assert cleaned.encode("utf-8").decode("utf-8") == cleaned


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_clean_caption_is_the_text_itself(text: str) -> None:
    assert clean_caption(text) == text.strip()


def test_half_a_surrogate_pair_is_replaced_and_a_whole_one_joined(raw: Raw) -> None:
    (raw.images / "a.jpg").write_bytes(jpeg())
    rows = raw.rows("coco_captions", captions("a \ud83d dog", "a \ud83d\udc36 dog"), "web")
    assert [row.caption for row in rows] == ["a \N{REPLACEMENT CHARACTER} dog", "a \N{DOG FACE} dog"]


def test_keys_tell_contents_apart_and_do_not_run_together() -> None:
    parts = [(b"a",), (b"b",), (b"a", ""), (b"a", "b"), (b"ab",)]
    assert len({content_key(*part) for part in parts}) == len(parts)


IMAGES = [{"id": 1, "file_name": "a.jpg"}]


@pytest.mark.parametrize(
    ("reader", "content", "message"),
    [
        ("coco_detection", "{", "not readable as JSON"),
        ("coco_detection", "[" * 100_000, "not readable as JSON"),
        ("coco_detection", [], "holds a list; expected a COCO file"),
        ("coco_detection", {"info": 1}, r"no list 'categories' \(found: info\)"),
        ("coco_detection", {"images": IMAGES, "annotations": []}, "no list 'categories'"),
        ("coco_detection", {"categories": [], "annotations": [], "images": 5}, "no list 'images'"),
        ("coco_detection", {"categories": [], "annotations": [], "images": [5]}, r"images\[0\] should have 'id'"),
        (
            "coco_detection",
            {"categories": [], "annotations": [], "images": [*IMAGES, {"id": 2}]},
            r"images\[1\] should have 'file_name', found 'nothing'",
        ),
        (
            "coco_detection",
            {"categories": [], "annotations": [], "images": [{"id": 1, "file_name": 7}]},
            r"images\[0\] should have 'file_name', found 7",
        ),
        (
            "coco_detection",
            {"categories": [{"id": 1}], "annotations": [], "images": []},
            r"categories\[0\] should have 'name'",
        ),
        (
            "coco_detection",
            {"categories": [], "annotations": [{"bbox": [1, 1, 2, 2]}], "images": []},
            r"annotations\[0\] should have 'image_id'",
        ),
        ("coco_captions", {"images": IMAGES}, "no list 'annotations'"),
        ("coco_captions", {"images": IMAGES, "annotations": ["a dog"]}, r"annotations\[0\] should have 'image_id'"),
    ],
)
def test_a_file_of_another_structure_is_told_where(raw: Raw, reader: str, content: Any, message: str) -> None:
    with pytest.raises(MissingInputError, match=message) as caught:
        raw.tables(reader, content, "web" if reader == "coco_captions" else "human")
    assert str(raw.annotations) in str(caught.value)


def test_a_file_in_another_encoding_is_told(raw: Raw) -> None:
    raw.annotations.write_bytes(b'{"images": "\xff\xfe"}')
    source = SourceConfig(reader="coco_captions", annotations=str(raw.annotations), images=str(raw.images))
    with pytest.raises(MissingInputError, match="not readable as JSON"):
        read_source(source, "web", CONFIG, seed=0)


def test_missing_files_and_folders_are_told_with_the_setting(raw: Raw) -> None:
    source = SourceConfig(reader="coco_captions", annotations="nowhere.json", images=str(raw.images))
    with pytest.raises(MissingInputError, match=r"nowhere\.json: no such file; set annotations of prepare\.web"):
        read_source(source, "web", CONFIG, seed=0)
    raw.annotations.write_text("{}")
    source = SourceConfig(reader="coco_captions", annotations=str(raw.annotations), images="nowhere")
    with pytest.raises(MissingInputError, match=r"nowhere: no such folder; set images of prepare\.web"):
        read_source(source, "web", CONFIG, seed=0)


@pytest.mark.parametrize("absent", ["annotations", "images"])
def test_a_coco_source_needs_both_paths(absent: str) -> None:
    paths: dict[str, str | None] = {"annotations": "a.json", "images": "a", absent: None}
    with pytest.raises(ConfigError, match="needs both annotations and images"):
        read_source(SourceConfig(reader="coco_detection", **paths), "dev", CONFIG, seed=0)


def test_an_unknown_reader_is_told_the_known_ones() -> None:
    source = SourceConfig(reader="lvis", annotations=None, images=None)
    with pytest.raises(ConfigError, match=r"prepare\.dev: no reader 'lvis'; readers: .*coco_captions, coco_detection"):
        read_source(source, "dev", CONFIG, seed=0)


@pytest.mark.parametrize(
    ("reader", "role"), [("coco_detection", "web"), ("coco_captions", "human"), ("coco_captions", "test")]
)
def test_a_reader_in_a_role_that_has_no_use_for_it_is_an_error(raw: Raw, reader: str, role: Role) -> None:
    with pytest.raises(ConfigError, match=rf"prepare\.{role}: reader '{reader}' reads .* expected one that reads"):
        raw.tables(reader, {"images": [], "annotations": [], "categories": []}, role)


@pytest.mark.parametrize("role", ["human", "web", "dev", "test"])
def test_the_embedded_reader_serves_every_role(role: Role) -> None:
    tables = read_source(SourceConfig(reader="embedded", annotations=None, images=None), role, CONFIG, seed=0)
    folders = {"human": ["detection", "grounding"], "web": [""]}
    assert [table.folder for table in tables] == folders.get(role, ["detection", "grounding", "referring"])


@pytest.mark.parametrize("reader", ["coco_detection", "coco_captions"])
def test_a_shard_carries_its_own_rows_and_not_the_data_set(raw: Raw, reader: str) -> None:
    def size(num_pictures: int) -> int:
        numbers = range(num_pictures)
        content = {
            "images": [{"id": i, "file_name": f"{i:012d}.jpg"} for i in numbers],
            "annotations": [{"image_id": i, "bbox": [1, 2, 3, 4], "category_id": 3, "caption": "x"} for i in numbers],
            "categories": CATEGORIES,
        }
        (table,) = raw.tables(reader, content, "web" if reader == "coco_captions" else "human")
        assert table.num_rows == num_pictures
        return len(cloudpickle.dumps(table.shard(10, 20)))

    assert size(2000) < 1.1 * size(20)


@pytest.mark.parametrize("role", ["human", "web", "dev", "test"])
def test_readers_survive_pickling(role: Role) -> None:
    for table in READERS["embedded"](SourceConfig(reader="embedded", annotations=None, images=None), role, CONFIG, 0):
        read = table.shard(3, 5)
        assert list(pickle.loads(pickle.dumps(read))()) == list(read())


def test_any_range_of_rows_reads_the_same(raw: Raw) -> None:
    names = [f"{i}.jpg" for i in range(5)]
    for i, name in enumerate(names):
        (raw.images / name).write_bytes(jpeg(size=(40 + i, 30)))
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [],
        "categories": CATEGORIES,
    }
    (table,) = raw.tables("coco_detection", content)
    whole = list(table.shard(0, 5)())
    assert [record.width for record in whole] == [40, 41, 42, 43, 44]  # type: ignore[union-attr]
    assert [*table.shard(0, 2)(), *table.shard(2, 5)()] == whole
