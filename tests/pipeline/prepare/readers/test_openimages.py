"""OpenImages' boxes: shares of the picture's sides, labels with names."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import MissingInputError
from pipeline.prepare.raw import DroppedBox, SourceContext, Url
from pipeline.prepare.readers.coco import read_coco_detection
from pipeline.prepare.readers.openimages import read_open_images
from pipeline.store.records import Category

SHARED = Path(__file__).resolve().parents[5] / "shared" / "data"
HEADER = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
Read = Callable[..., list[Any]]


def write(folder: Path, *rows: str, classes: str | None = None) -> dict[str, Url]:
    (folder / "boxes.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    options = {"annotations": Url(folder / "boxes.csv"), "images": Url(folder)}
    if classes is not None:
        (folder / "classes.csv").write_text(classes)
        options["classes"] = Url(folder / "classes.csv")
    return options


@pytest.mark.parametrize("header", ["", "LabelName,DisplayName\n"])
def test_shares_become_pixels_and_groups_crowds(
    header: str, tmp_path: Path, picture: Callable[..., bytes], context: SourceContext, read_rows: Read
) -> None:
    for name, size in (("aa", (40, 30)), ("bb", (100, 50))):
        (tmp_path / f"{name}.jpg").write_bytes(picture(size))
    options = write(
        tmp_path,
        "aa,xclick,/m/0bt9lr,1,0.25,0.5,0.1,1.0,0,0,0,0,0",
        "bb,xclick,/m/01yrx,1,0,1,0,0.5,0,0,1,0,0",
        "aa,xclick,/m/01yrx,1,0,1,0,0.5,0,0,0,0,0",
        "aa,xclick,/m/none,1,0,1,0,0.5,0,0,0,0,0",
        "bb,xclick,/m/01yrx,1,nothing,1,0,0.5,0,0,0,0,0",
        classes=f'{header}/m/0bt9lr,Dog\n/m/01yrx,"Cat, small"\n',
    )
    (table,) = read_open_images(context, **options)
    assert table.categories == (Category(id=1, name="Dog"), Category(id=2, name="Cat, small"))
    unknown, first, malformed, second = read_rows(table)
    assert (unknown, malformed) == (DroppedBox("aa", "category_unknown"), DroppedBox("bb", "box_malformed"))
    assert [(item.category_id, item.xyxy) for item in first.objects] == [
        (1, pytest.approx((10.0, 3.0, 20.0, 30.0))),
        (2, (0.0, 0.0, 40.0, 15.0)),
    ]
    assert [(item.xyxy, item.is_crowd) for item in second.objects] == [((0.0, 0.0, 100.0, 25.0), True)]


def test_unread_pictures_have_the_sizes_of_a_table(tmp_path: Path, context: SourceContext, read_rows: Read) -> None:
    options = write(tmp_path, "aa,x,dog,1,0,1,0,0.5,,,,,", "bb,x,dog,1,0,1,0,0.5,,,,,", "../c,x,dog,1,0,1,0,1,,,,,")
    (tmp_path / "sizes.csv").write_text("ImageID,Width,Height\naa,640,480\n../c,9,9\n")
    (table,) = read_open_images(context, **options, sizes=Url(tmp_path / "sizes.csv"))
    first, second, hostile = read_rows(table, pictures="unread")
    assert first.objects[0].xyxy == (0.0, 0.0, 640.0, 240.0)
    assert (second.reason, hostile.reason) == ("image_unreadable", "image_outside_folder")
    assert [category.name for category in table.categories] == ["dog"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("boxes.csv", "ImageID,LabelName\n", "no column 'XMax'"),
        ("boxes.csv", "", "no column 'ImageID'"),
        ("classes.csv", "\n", "expected rows of label and name"),
        ("sizes.csv", "a,b\n", "expected the columns ImageID, Width and Height"),
    ],
)
def test_other_tables_are_told(name: str, content: str, message: str, tmp_path: Path, context: SourceContext) -> None:
    options = write(tmp_path, "aa,x,dog,1,0,1,0,0.5,,,,,", classes="dog,Dog\n")
    (tmp_path / "sizes.csv").write_text("ImageID,Width,Height\n")
    (tmp_path / name).write_text(content)
    with pytest.raises(MissingInputError, match=message):
        read_open_images(context, **options, sizes=Url(tmp_path / "sizes.csv"))


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real samples are not here: {SHARED}")
def test_one_data_set_reads_alike_from_coco_and_open_images(
    tmp_path: Path, context: SourceContext, boxes_by_picture: Any
) -> None:
    folder = SHARED / "voc_100_formats"
    sizes = json.loads((folder / "sizes.json").read_text())
    with (tmp_path / "sizes.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["ImageID", "Width", "Height"])
        writer.writerows((name, width, height) for name, (width, height) in sizes.items())
    (by_coco,) = read_coco_detection(
        context, annotations=Url(folder / "coco_format_v1/instances_default.json"), images=Url("/nowhere")
    )
    (by_csv,) = read_open_images(
        context,
        annotations=Url(folder / "openimages_format/all_bounding_boxes.csv"),
        images=Url("/nowhere"),
        sizes=Url(tmp_path / "sizes.csv"),
    )

    coco, shares = boxes_by_picture(by_coco), boxes_by_picture(by_csv)
    assert coco.keys() == shares.keys()
    assert coco == shares
