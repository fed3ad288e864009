"""Visual Genome: objects and region descriptions, with and without the pictures that COCO has too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import MissingInputError
from pipeline.prepare.raw import RawDetection, SourceContext, Url
from pipeline.prepare.readers.visual_genome import read_visual_genome_objects, read_visual_genome_regions
from pipeline.store.records import GroundingRecord

Read = Callable[..., list[Any]]
IMAGE_DATA = [
    {"image_id": 1, "url": "https://x/VG_100K/1.jpg", "width": 40, "height": 30, "coco_id": None, "flickr_id": 5},
    {"image_id": 2, "url": "https://x/VG_100K_2/2.jpg", "width": 40, "height": 30, "coco_id": 77},
]
OBJECTS = [
    {
        "image_id": 2,
        "objects": [{"names": ["Tree"], "x": 0, "y": 1, "w": 10, "h": 20}, {"names": ["sky"], "x": 0, "y": 0, "w": 9}],
    },
    {
        "image_id": 1,
        "objects": [
            {"names": ["tree ", "plant"], "x": 5, "y": 5, "w": 10, "h": 10},
            {"names": [], "x": 5, "y": 5, "w": 10, "h": 10},
            "object",
        ],
    },
    {"image_id": 9, "objects": [{"names": ["ghost"], "x": 0, "y": 0, "w": 9, "h": 9}]},
]
REGIONS = [
    {
        "id": 1,
        "regions": [
            {"region_id": 1, "image_id": 1, "phrase": "a tall tree", "x": 1, "y": 2, "width": 10, "height": 20},
            {"region_id": 2, "image_id": 1, "phrase": "", "x": 1, "y": 2, "width": 10, "height": 20},
        ],
    }
]


@pytest.fixture
def files(tmp_path: Path, picture: Callable[..., bytes]) -> dict[str, Url]:
    for number, folder in ((1, "VG_100K"), (2, "VG_100K_2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{number}.jpg").write_bytes(picture())
    for name, content in (("objects", OBJECTS), ("image_data", IMAGE_DATA), ("regions", REGIONS)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return {name: Url(tmp_path / f"{name}.json") for name in ("objects", "image_data", "regions")}


def test_objects_are_boxes_of_their_first_names(
    files: dict[str, Url], tmp_path: Path, context: SourceContext, read_rows: Read
) -> None:
    options = {"objects": files["objects"], "image_data": files["image_data"], "images": Url(tmp_path)}
    (table,) = read_visual_genome_objects(context, **options, without_coco=False)
    assert [category.name for category in table.categories] == ["ghost", "sky", "tree"]
    *dropped, first, halved, second = read_rows(table)
    assert [row.reason for row in dropped] == ["picture_unknown", "category_unknown", "box_malformed"]
    assert halved.reason == "box_malformed"
    assert [(item.category_id, item.xyxy) for item in first.objects] == [(3, (5.0, 5.0, 15.0, 15.0))]
    assert [(item.category_id, item.xyxy) for item in second.objects] == [(3, (0.0, 1.0, 10.0, 21.0))]
    raws = [row for part in table.parts(9) for row in part.rows()]
    assert [row.image.picture_id for row in raws if isinstance(row, RawDetection)] == ["vg/1", "coco/77"]


def test_pictures_of_coco_and_rare_names_can_be_left_out(
    files: dict[str, Url], tmp_path: Path, context: SourceContext, read_rows: Read
) -> None:
    options = {"objects": files["objects"], "image_data": files["image_data"], "images": Url(tmp_path)}
    (table,) = read_visual_genome_objects(context, **options, min_count=2)
    assert [category.name for category in table.categories] == ["tree"]
    rows = read_rows(table)
    *reasons, last = [getattr(row, "reason", "record") for row in rows]
    assert (reasons, last) == (["picture_unknown", "category_unknown", "box_malformed"], "record")


def test_every_region_is_a_caption_of_its_own(
    files: dict[str, Url], tmp_path: Path, context: SourceContext, read_rows: Read
) -> None:
    (table,) = read_visual_genome_regions(
        context, regions=files["regions"], image_data=files["image_data"], images=Url(tmp_path)
    )
    record, empty = read_rows(table)
    assert isinstance(record, GroundingRecord)
    assert (record.caption, [p.char_spans for p in record.phrases]) == ("a tall tree", [((0, 11),)])
    assert record.phrases[0].boxes[0].xyxy == (1.0, 2.0, 11.0, 22.0)
    assert empty.reason == "caption_empty"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("objects", "[", "not readable as JSON"),
        ("objects", "", "not readable as JSON"),
        ("image_data", "[]", "no pictures in it"),
        ("image_data", "{}", "not readable as JSON"),
    ],
)
def test_other_files_are_told(
    name: str, content: str, message: str, files: dict[str, Url], tmp_path: Path, context: SourceContext
) -> None:
    (tmp_path / f"{name}.json").write_text(content)
    with pytest.raises(MissingInputError, match=message):
        read_visual_genome_objects(
            context, objects=files["objects"], image_data=files["image_data"], images=Url(tmp_path)
        )


def test_regions_of_unknown_pictures_and_those_that_are_none_are_counted(
    files: dict[str, Url], tmp_path: Path, context: SourceContext, read_rows: Read
) -> None:
    Path(files["regions"]).write_text(
        json.dumps([*REGIONS, {"id": 9, "regions": [{}]}, {"id": 1, "regions": ["tree"]}])
    )
    options = {"regions": files["regions"], "image_data": files["image_data"], "images": Url(tmp_path)}
    (table,) = read_visual_genome_regions(context, **options)
    rows = read_rows(table)
    assert [getattr(row, "reason", "record") for row in rows] == [
        "picture_unknown",
        "record",
        "caption_empty",
        "caption_empty",
    ]
