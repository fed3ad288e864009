"""COCO's JSON and its kin: what becomes of good files, of bad rows and of files that are something else."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask

from pipeline.errors import MissingInputError
from pipeline.prepare.raw import BOXES_FROM_POLYGONS, Converted, DroppedBox, RawDetection, Reject, SourceContext, Url
from pipeline.prepare.readers.coco import (
    coco_picture_id,
    corners,
    read_coco_captions,
    read_coco_detection,
    whole_number,
)
from pipeline.prepare.readers.lvis import read_lvis
from pipeline.prepare.readers.objects365 import read_objects365
from pipeline.prepare.readers.odinw import MANUAL_PROMPTS, read_odinw
from pipeline.store.records import CaptionRecord, Category, DetectionRecord
from pipeline.store.shards import read_shard, write_shard

SHARED = Path(__file__).resolve().parents[5] / "shared" / "data"
CATEGORIES = [{"id": 3, "name": "dog"}, {"id": 90, "name": "cat"}]
Read = Callable[..., list[Any]]
Encode = Callable[..., bytes]


def write(folder: Path, content: Any, name: str = "annotations.json") -> dict[str, Url]:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text, encoding="utf-8")
    return {"annotations": Url(folder / name), "images": Url(folder)}


def coco(images: list[Any], annotations: list[Any], categories: Any = CATEGORIES) -> dict[str, Any]:
    return {"info": {}, "annotations": annotations, "images": images, "categories": categories}


def test_boxes_become_corners_and_keep_category_and_crowd(
    tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
) -> None:
    (tmp_path / "a.jpg").write_bytes(picture())
    annotations = [
        {
            "image_id": 1,
            "bbox": [1, 2, 10, 20],
            "category_id": 3,
            "iscrowd": 0,
            "segmentation": [[1, 2.5]],
            "area": 99.5,
        },
        {"image_id": 1, "bbox": [0.5, 0.5, 5, 5], "category_id": 90, "iscrowd": 1},
    ]
    images = [{"id": 1, "file_name": "a.jpg", "height": 30, "width": 40}]
    (table,) = read_coco_detection(context, **write(tmp_path, coco(images, annotations)))
    assert table.categories == (Category(id=3, name="dog"), Category(id=90, name="cat"))
    (record,) = read_rows(table)
    assert isinstance(record, DetectionRecord)
    assert (record.height, record.width) == (30, 40)  # what the file says of it is not believed
    assert [(item.category_id, item.xyxy, item.is_crowd, item.area) for item in record.objects] == [
        (3, (1.0, 2.0, 11.0, 22.0), False, 99.5),
        (90, (0.5, 0.5, 5.5, 5.5), True, None),
    ]


def test_a_gzipped_file_is_read_as_it_is(tmp_path: Path, context: SourceContext, read_rows: Read) -> None:
    content = coco([{"id": 1, "file_name": "a.jpg", "height": 5, "width": 5}], [])
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(content).encode()))
    (table,) = read_coco_detection(context, annotations=Url(tmp_path / "a.json.gz"), images=Url(tmp_path))
    assert len(read_rows(table, pictures="unread")) == 1


def test_any_cut_reads_the_same_rows_and_a_part_carries_its_own_alone(
    tmp_path: Path, context: SourceContext, read_rows: Read
) -> None:
    def table(count: int) -> Any:
        numbers = range(count)
        images = [{"id": i, "file_name": f"{i:012d}.jpg", "height": 50, "width": 40 + i % 9} for i in numbers]
        annotations = [{"image_id": i, "bbox": [1, 2, 3, 4], "category_id": 3} for i in reversed(numbers)]
        return read_coco_detection(context, **write(tmp_path, coco(images, annotations)))[0]

    whole = read_rows(table(20), pictures="unread")
    assert [row.width for row in whole] == [40 + i % 9 for i in range(20)]
    assert all(len(row.objects) == 1 for row in whole)
    for rows_per_part in (1, 7):
        assert read_rows(table(20), rows_per_part, pictures="unread") == whole
    sizes = [len(cloudpickle.dumps(next(table(count).parts(10)).rows)) for count in (20, 2000)]
    assert sizes[1] < 1.1 * sizes[0]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent.jpg", "image_missing"),
        ("nul\0.jpg", "image_missing"),
        ("x" * 5000, "image_missing"),
        ("text.jpg", "image_unreadable"),
        ("large.jpg", "image_too_large"),
        ("../secret.jpg", "image_outside_folder"),
        ("sub/../../secret.jpg", "image_outside_folder"),
        ("/etc/hostname", "image_outside_folder"),
        (7, "row_malformed"),
        (None, "row_malformed"),
    ],
)
@pytest.mark.parametrize("reader", [read_coco_detection, read_coco_captions])
def test_a_picture_that_cannot_be_used_is_a_reject(
    reader: Any, name: Any, reason: str, tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "secret.jpg").write_bytes(picture())
    (folder / "text.jpg").write_text("not a picture")
    (folder / "large.jpg").write_bytes(picture((101, 100)))
    (folder / "good.jpg").write_bytes(picture())
    images = [{"id": 1, "file_name": name}, {"id": 2, "file_name": "good.jpg"}]
    annotations = [{"image_id": i, "caption": "a dog", "bbox": [1, 1, 5, 5], "category_id": 3} for i in (1, 2)]
    (table,) = reader(context, **write(folder, coco(images, annotations)))
    reject, record = read_rows(table, max_pixels=10_000)
    assert isinstance(reject, Reject)
    assert reject.reason == reason
    assert record.image.bytes == picture()


def test_every_caption_is_a_pair_and_the_file_needs_no_categories(
    tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
) -> None:
    (tmp_path / "a.jpg").write_bytes(picture())
    texts = [" A dog.\n", "Two cats", "", None]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 1, "caption": text} for text in texts],
    }
    (table,) = read_coco_captions(context, **write(tmp_path, content))
    first, second, *rejects = read_rows(table)
    assert isinstance(first, CaptionRecord)
    assert (first.caption, second.caption) == ("A dog.", "Two cats")
    assert first.image == second.image
    assert first.key != second.key
    assert rejects == [Reject("a.jpg", "caption_empty")] * 2


@pytest.mark.parametrize("value", [None, "x", -1, [], {}, float("nan"), float("inf"), True])
def test_what_is_no_area_no_frequency_and_no_list_of_ids_costs_nothing_else(
    value: Any, tmp_path: Path, context: SourceContext, read_rows: Read
) -> None:
    lists = {"neg_category_ids": value, "not_exhaustive_category_ids": [value, 3]}
    images = [{"id": 1, "file_name": "a.jpg", "height": 30, "width": 40, **lists}]
    annotations = [{"image_id": 1, "bbox": [1, 1, 9, 9], "category_id": 3, "area": value}]
    categories = [{"id": 3, "name": "dog", "frequency": value}]
    (table,) = read_coco_detection(context, **write(tmp_path, coco(images, annotations, categories)))
    (record,) = read_rows(table, pictures="unread")
    assert table.categories == (Category(id=3, name="dog"),)
    assert [item.area for item in record.objects] == [None]
    assert (record.negative_category_ids, record.not_exhaustive_category_ids) == ((), (3,))


def test_bad_rows_are_counted_and_the_rest_is_read(tmp_path: Path, context: SourceContext, read_rows: Read) -> None:
    good = {"id": 1, "file_name": "a.jpg", "height": 30, "width": 40}
    images = [good, 5, {"id": 2}, {**good, "file_name": "again.jpg"}, {"file_name": "b.jpg", "height": 9, "width": 9}]
    annotations = [
        {"image_id": 1, "bbox": [1, 1, 9, 9], "category_id": 3},
        {"image_id": 1, "bbox": [1, 1, 9], "category_id": 3},
        {"image_id": 1, "category_id": 3},
        {"image_id": 99, "bbox": [1, 1, 9, 9], "category_id": 3},
        "annotation",
    ]
    (table,) = read_coco_detection(context, **write(tmp_path, coco(images, annotations)))
    rows = read_rows(table, pictures="unread")
    assert read_rows(table, 2, pictures="unread") == rows
    # One annotation has a picture that is not there, one has none at all.
    assert rows[:2] == [DroppedBox(str(tmp_path / "annotations.json"), "picture_unknown")] * 2
    assert rows[2:4] == [DroppedBox("a.jpg", "box_malformed")] * 2
    records = [row for row in rows if isinstance(row, DetectionRecord)]
    # Whose boxes are those of an id that comes again, nobody knows: that picture must not teach that nothing is there.
    assert [len(record.objects) for record in records] == [1]
    assert [row.reason for row in rows if isinstance(row, Reject)] == ["row_malformed"] * 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable as JSON"),
        ("", "not readable as JSON"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}', "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ([], r"not readable as JSON near byte 0: found \[, expected \{"),
        ({"info": 1}, "no pictures in a list 'images'"),
        ({"images": 5}, "'images' holds no list"),
        (coco([{"id": 1}], {"1": {"image_id": 1}}, [{"id": 1, "name": "dog"}]), "'annotations' holds no list"),
        ({"images": [{"id": 1, "file_name": "a"}]}, "no categories in a list 'categories'"),
        (coco([{"id": 1}], [], [{"id": 1}]), r"categories\[0\] should have a whole number 'id' and a 'name'"),
        (coco([{"id": 1}], [], [{"id": "one", "name": "dog"}]), r"categories\[0\] should have a whole number 'id'"),
        (
            coco([{"id": 1}], [], [{"id": 0, "name": "dog"}, {"id": "0", "name": "cat"}]),
            "'dog' and 'cat' have the same",
        ),
        ('{"images": [{"id": 1}], "images": [{"id": 2}], "annotations": []}', "a second list 'images'"),
        ('{"images": [{"id": 1}], "annotations": [], "annotations": []}', "a second list 'annotations'"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": [', "not readable as JSON"),
    ],
)
def test_a_file_of_another_structure_is_told(
    content: Any, message: str, tmp_path: Path, context: SourceContext
) -> None:
    with pytest.raises(MissingInputError, match=message) as caught:
        read_coco_detection(context, **write(tmp_path, content))
    assert str(tmp_path / "annotations.json") in str(caught.value)


def test_a_file_in_another_encoding_and_one_that_is_not_there_are_told(tmp_path: Path, context: SourceContext) -> None:
    (tmp_path / "a.json").write_bytes(b'{"images": "\xff\xfe"}')
    with pytest.raises(MissingInputError, match="not readable as JSON"):
        read_coco_captions(context, annotations=Url(tmp_path / "a.json"), images=Url(tmp_path))
    with pytest.raises(MissingInputError, match=r"nowhere\.json: no such file"):
        read_coco_captions(context, annotations=Url("nowhere.json"), images=Url(tmp_path))


@given(st.lists(st.floats() | st.integers() | st.text(max_size=3) | st.none(), max_size=5) | st.none())
def test_corners_are_four_numbers_or_nothing(bbox: Any) -> None:
    found = corners(bbox)
    assert len(found) in (0, 4)
    assert all(isinstance(side, float) for side in found)


@pytest.mark.parametrize("bbox", ["1234", {"1": 0, "2": 0, "3": 0, "4": 0}, 5, [[1, 2, 3, 4]]])
def test_what_only_looks_like_four_numbers_is_no_box(bbox: Any) -> None:
    assert corners(bbox) == ()


def test_numbers_may_be_written_in_other_ways(tmp_path: Path, context: SourceContext, read_rows: Read) -> None:
    images = [{"id": 1.0, "file_name": "a.jpg", "height": 30.0, "width": "40"}]
    annotations = [
        {"image_id": "1", "bbox": ["1", 1, 9.0, "9"], "category_id": 3.0, "iscrowd": "0"},
        {"image_id": 1, "bbox": [1, 1, 9, 9], "category_id": "3", "iscrowd": "1"},
        {"image_id": 1, "bbox": [1, 1, 9, 9], "category_id": True},
    ]
    (table,) = read_coco_detection(context, **write(tmp_path, coco(images, annotations, [{"id": 3.0, "name": "dog"}])))
    dropped, record = read_rows(table, pictures="unread")
    assert dropped == DroppedBox("a.jpg", "category_unknown")
    assert (record.height, record.width) == (30, 40)
    assert [(item.category_id, item.is_crowd) for item in record.objects] == [(3, False), (3, True)]


@pytest.mark.parametrize("side", [None, 0, -5, 30.5, "30.5", "wide", "", "9" * 5000, 1e300, float("inf"), True, [30]])
def test_a_size_that_is_none_rejects_only_pictures_that_stay_unread(
    side: Any, tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
) -> None:
    if side == float("inf"):
        assert whole_number(side) is None  # the parser takes no such number
        return
    (tmp_path / "a.jpg").write_bytes(picture())
    images = [{"id": 1, "file_name": "a.jpg", "height": side, "width": 40}]
    (table,) = read_coco_detection(context, **write(tmp_path, coco(images, [])))
    assert read_rows(table, pictures="unread") == [Reject("a.jpg", "image_unreadable")]
    assert [row.height for row in read_rows(table)] == [30]


@given(st.integers() | st.floats() | st.text(max_size=20) | st.none() | st.booleans() | st.lists(st.integers()))
def test_a_whole_number_is_the_number_itself_or_nothing(value: Any) -> None:
    found = whole_number(value)
    assert found is None or found == float(value) or found == value


def test_categories_come_by_their_ids(tmp_path: Path, context: SourceContext) -> None:
    categories = [{"id": 90, "name": "cat"}, {"id": 3, "name": "dog"}]
    (table,) = read_coco_detection(context, **write(tmp_path, coco([{"id": 1, "file_name": "a.jpg"}], [], categories)))
    assert table.categories == (Category(id=3, name="dog"), Category(id=90, name="cat"))


def test_captions_of_unknown_pictures_and_pictures_without_an_id_are_counted(
    tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
) -> None:
    (tmp_path / "a.jpg").write_bytes(picture())
    images = [{"id": 1, "file_name": "a.jpg"}, {"file_name": "b.jpg"}, "picture"]
    annotations = [{"image_id": 1, "caption": "a dog"}, {"image_id": 7, "caption": "of nothing"}, {"caption": "lost"}]
    (table,) = read_coco_captions(context, **write(tmp_path, {"images": images, "annotations": annotations}))
    rows = read_rows(table)
    assert rows[:2] == [DroppedBox(str(tmp_path / "annotations.json"), "picture_unknown")] * 2
    assert rows[2].caption == "a dog"
    assert rows[3:] == [Reject("b.jpg", "row_malformed"), Reject("picture None", "row_malformed")]


def test_half_a_surrogate_pair_harms_nobody(tmp_path: Path, context: SourceContext, read_rows: Read) -> None:
    images = [{"id": "\ud800", "file_name": "\ud800.jpg", "height": 30, "width": 40}]
    annotations = [{"image_id": "\ud800", "bbox": [1, 1, 9, 9], "category_id": 3}]
    (table,) = read_coco_detection(context, **write(tmp_path, coco(images, annotations, [{"id": 3, "name": "\ud800"}])))
    (record,) = read_rows(table, pictures="unread")
    assert len(record.objects) == 1
    assert (record.image.path + table.categories[0].name).encode()


def test_secrets_of_a_folder_stay_out_of_what_parts_are_known_by(tmp_path: Path, context: SourceContext) -> None:
    paths = write(tmp_path, coco([{"id": 1, "file_name": "a.jpg"}], []))
    (table,) = read_coco_detection(context, **{**paths, "images": Url("https://me:hunter2@host/coco?token=hunter2")})
    (part,) = table.parts(10)
    assert "hunter2" not in part.identity + part.name


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"file_name": "COCO_val2014_000000000139.jpg"}, "coco/139"),
        ({"file_name": "train2014/COCO_train2014_000000581857.jpg"}, "coco/581857"),
        (
            {"file_name": "000000000139.jpg", "coco_url": "http://images.cocodataset.org/val2017/000000000139.jpg"},
            "coco/139",
        ),
        ({"coco_url": "http://images.cocodataset.org/train2017/000000391895.jpg"}, "coco/391895"),
        ({"file_name": "000000000139.jpg"}, None),  # anybody numbers pictures like that
        ({"file_name": "000000000139.jpg", "coco_url": ""}, None),
        ({"file_name": "a.jpg", "coco_url": "http://evil.example/cocodataset.org/val2017/000000000139.jpg"}, None),
    ],
)
def test_pictures_of_coco_are_known_by_their_names(values: dict[str, Any], expected: str | None) -> None:
    assert coco_picture_id(values) == expected


def test_lvis_finds_pictures_in_cocos_folders(
    tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
) -> None:
    (tmp_path / "train2017").mkdir()
    (tmp_path / "train2017/000000391895.jpg").write_bytes(picture())
    (tmp_path / "000000266409.jpg").write_bytes(picture((50, 30)))
    images = [
        {"id": 391895, "coco_url": "http://images.cocodataset.org/train2017/000000391895.jpg"},
        {
            "id": 266409,
            "file_name": "COCO_val2014_000000266409.jpg",
            "coco_url": "http://images.cocodataset.org/val2017/000000266409.jpg",
        },
    ]
    annotations = [{"image_id": 391895, "bbox": [1, 1, 9, 9], "category_id": 3}]
    (table,) = read_lvis(context, **write(tmp_path, coco(images, annotations)))
    first, second = read_rows(table)
    assert (first.width, len(first.objects), second.width) == (40, 1, 50)
    (raw, _) = [row for part in table.parts(9) for row in part.rows()]
    assert isinstance(raw, RawDetection)
    assert raw.image.picture_id == "coco/391895"


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("images/v1/patch8/objects365_v1_00420917.jpg", "patch8/objects365_v1_00420917.jpg"),
        ("images/v2/patch16/objects365_v2_00908726.jpg", "images/v2/patch16/objects365_v2_00908726.jpg"),
        ("images/v2/patch16/objects365_v2_00908726.jpg", "objects365_v2_00908726.jpg"),
        ("obj365_train_000000123456.jpg", "obj365_train_000000123456.jpg"),
    ],
)
def test_objects365_is_found_however_it_is_unpacked(
    name: str, place: str, tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
) -> None:
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_bytes(picture())
    images = [{"id": 1, "file_name": name}, {"id": 2, "file_name": "images/v1/patch6/objects365_v1_00320532.jpg"}]
    (table,) = read_objects365(context, **write(tmp_path, coco(images, [])))
    record, missing = read_rows(table, pictures="reference")
    assert record.image.path == str(tmp_path / place)
    assert missing.reason == "image_missing"


def test_odinw_leaves_out_the_category_above_the_others(
    tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
) -> None:
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid/a.jpg").write_bytes(picture())
    categories = [
        {"id": 0, "name": "creatures", "supercategory": "none"},
        {"id": 1, "name": "penguin", "supercategory": "creatures"},
        {"id": 2, "name": "fish", "supercategory": "creatures"},
    ]
    boxes = [{"image_id": 1, "bbox": [1, 1, 9, 9], "category_id": 1}]
    write(tmp_path / "valid", coco([{"id": 1, "file_name": "a.jpg"}], boxes, categories), "_annotations.coco.json")
    for prompts, names in (("original", ["penguin", "fish"]), ("manual", [MANUAL_PROMPTS["penguin"], "fish"])):
        (table,) = read_odinw(context, folder=Url(tmp_path), split="valid", prompts=prompts)  # type: ignore[arg-type]
        assert [category.name for category in table.categories] == names
        (record,) = read_rows(table)
        assert [item.category_id for item in record.objects] == [1]
    with pytest.raises(MissingInputError, match=r"no _annotations\.coco\.json; expected a COCO export"):
        read_odinw(context, folder=Url(tmp_path), split="test")


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real samples are not here: {SHARED}")
def test_boxes_of_real_pictures_come_back_from_a_shard_but_for_rounding(
    tmp_path: Path, context: SourceContext, read_rows: Read
) -> None:
    folder = SHARED / "coco_tiny"
    path = folder / "annotations/instances_train2017.json"
    truth = json.loads(path.read_text(encoding="utf-8"))
    (table,) = read_coco_detection(context, annotations=Url(path), images=Url(folder / "train2017"))
    write_shard(tmp_path / "part-00000.parquet", read_rows(table, pictures="reference"), DetectionRecord)
    records = read_shard(tmp_path / "part-00000.parquet", DetectionRecord)
    found = [item for record in records for item in record.objects]
    expected = [row for image in truth["images"] for row in truth["annotations"] if row["image_id"] == image["id"]]
    assert [item.area for item in found] == [row["area"] for row in expected]
    for item, row in zip(found, expected, strict=True):
        assert item.xyxy == pytest.approx(corners(row["bbox"]), rel=2**-24, abs=0)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real samples are not here: {SHARED}")
def test_real_samples_are_read_to_the_last_box(context: SourceContext, read_rows: Read) -> None:
    for reader, path in (
        (read_lvis, SHARED / "lvis_100/lvis_val_100.json"),
        (read_coco_detection, SHARED / "coco_tiny/annotations/instances_train2017.json"),
    ):
        truth = json.loads(path.read_text(encoding="utf-8"))
        (table,) = reader(context, annotations=Url(path), images=Url("/nowhere"))
        rows = read_rows(table, 30, pictures="unread")
        records = [row for row in rows if isinstance(row, DetectionRecord)]
        assert len(records) == len(truth["images"])
        assert sum(len(record.objects) for record in records) + len(rows) - len(records) == len(truth["annotations"])
        raws = [row for part in table.parts(30) for row in part.rows()]
        assert [item.area for record in records for item in record.objects] == [
            row["area"] for image in truth["images"] for row in truth["annotations"] if row["image_id"] == image["id"]
        ]
        ids = [row.image.picture_id for row in raws if isinstance(row, RawDetection)]
        assert ids == [f"coco/{image['id']}" for image in truth["images"]]


RUNS = np.zeros((30, 40), np.uint8)
RUNS[4:9, 7:15] = 1
RUNS[20, 30] = 1


@pytest.mark.parametrize(
    ("segmentation", "box"),
    [
        ([[1, 1, 20, 1, 20, 21]], (1, 1, 20, 21)),
        ([[1, 1, 20, 1, 20, 21], [30.5, 2, 31, 28.25, 5, 5]], (1, 1, 31, 28.25)),
        ([1, 1, 20, 1, 20, 21], (1, 1, 20, 21)),
        ({"counts": [34, 5, 25, 5, 1131], "size": [30, 40]}, (1, 4, 3, 9)),
        ({"counts": mask.encode(np.asfortranarray(RUNS))["counts"].decode(), "size": [30, 40]}, (7, 4, 31, 21)),
        ([], None),
        ([[]], None),
        (None, None),
        ([[1, 2]], None),
        ([[1, 1, 20, 1, 20]], None),
        ([["a", 1, 20, 1]], None),
        ([[1, 1, None, 5]], None),
        ([5, [1, 1, 20, 20]], None),
        ({"counts": [0, 9]}, None),
        ({"counts": "garbage!!", "size": [80, 100]}, None),
        ({"counts": [34, 5, 25, 5, 1130], "size": [30, 40]}, None),  # a pixel is missing
        ({"counts": [0, 9], "size": [0, 0]}, None),
        ({"counts": [-5, 9], "size": [30, 40]}, None),
        ({"counts": "", "size": [30, 40]}, None),
        ({"counts": {}, "size": [30, 40]}, None),
        ({"counts": [0, 0], "size": [30, 40]}, None),
        ({"counts": [0, 9], "size": [1 << 30, 1 << 30]}, None),
    ],
)
@pytest.mark.parametrize("bbox", [{}, {"bbox": []}, {"bbox": None}, {"bbox": [1, 2, 3]}])
def test_the_box_of_an_object_that_has_a_mask_alone_lies_around_it(
    bbox: Any, segmentation: Any, box: Any, tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
) -> None:
    (tmp_path / "a.jpg").write_bytes(picture())
    found = [{"image_id": 1, "category_id": 3, "segmentation": segmentation, "area": 5} | bbox]
    images = [{"id": 1, "file_name": "a.jpg"}]
    (table,) = read_coco_detection(context, **write(tmp_path, coco(images, found)))
    first, second = read_rows(table)
    if box is None:
        assert (first, second.objects) == (DroppedBox("a.jpg", "box_malformed"), ())
    else:
        assert [(item.xyxy, item.area) for item in first.objects] == [(box, 5.0)]
        assert second == Converted("a.jpg", BOXES_FROM_POLYGONS)


def test_a_box_that_is_one_stays_whatever_the_mask(
    tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
) -> None:
    (tmp_path / "a.jpg").write_bytes(picture())
    found = [{"image_id": 1, "category_id": 3, "segmentation": [[1, 1, 9, 1, 9, 9]], "bbox": [2, 2, 5, 5]}]
    (table,) = read_coco_detection(context, **write(tmp_path, coco([{"id": 1, "file_name": "a.jpg"}], found)))
    (record,) = read_rows(table)
    assert record.objects[0].xyxy == (2, 2, 7, 7)
