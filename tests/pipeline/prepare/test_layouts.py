"""Layouts of people's own data: what is found, and what is held out where nothing says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.errors import MissingInputError
from pipeline.prepare.layouts import Layout, find_layout
from pipeline.prepare.raw import SourceContext, Url
from pipeline.prepare.readers.coco import read_coco_detection
from pipeline.prepare.readers.voc import read_pascal_voc
from pipeline.settings import load_all

READERS: dict[str, Any] = {"coco_detection": read_coco_detection, "pascal_voc": read_pascal_voc}
ROOT = Path(__file__).resolve().parents[3]


def write_coco(path: Path, pictures: Path, names: list[str]) -> None:
    for folder in (path.parent, pictures):
        folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (40, 30)).save(pictures / name)
    images = [{"id": i, "file_name": name, "height": 30, "width": 40} for i, name in enumerate(names)]
    boxes = [{"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [1, 2, 3, 4]} for i in range(len(names))]
    categories = [{"id": 0, "name": "things"}, {"id": 1, "name": "cup"}, {"id": 2, "name": "pen"}]
    values = {"images": images, "annotations": boxes, "categories": categories}
    path.write_text(json.dumps(values), encoding="utf-8")


def write_voc(folder: Path, pictures: Path, stems: list[str]) -> None:
    for each in (folder, pictures):
        each.mkdir(parents=True)
    box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    for i, stem in enumerate(stems):
        Image.new("RGB", (40, 30)).save(pictures / f"{stem}.jpg")
        xml = f"<annotation><object><name>{'cup' if i else 'pen'}</name>{box}</object></annotation>"
        (folder / f"{stem}.xml").write_text(xml, encoding="utf-8")


def pictures_of(source: Any) -> list[str]:
    """Read a source as ``prepare`` would; every picture must be where it says."""
    options = {k: Url(v) if isinstance(v, str) else v for k, v in source.items() if k not in ("reader", "name")}
    if "names" in options:
        options["names"] = tuple(options["names"])
    context = SourceContext("human", "own", load_all(ROOT / "params.yaml").prepare, 0)
    [table] = READERS[source["reader"]](context, **options)
    assert [category.name for category in table.categories] == ["cup", "pen"]
    rows = [row for part in table.parts(100) for row in part.rows()]
    assert all((Path(row.image.folder) / name).is_file() for row in rows for name in [row.image.url] if "." in name)
    assert all(len(row.objects) == 1 for row in rows)
    return [row.name for row in rows]


def parts_of(layout: Layout) -> tuple[list[str], list[str]]:
    return pictures_of(layout.train), pictures_of(layout.validation)


NAMES = [f"{i}.png" for i in range(10)]


@pytest.mark.parametrize(
    ("train", "validation", "train_pictures", "validation_pictures"),
    [
        ("train/_annotations.coco.json", "valid/_annotations.coco.json", "train", "valid"),
        ("annotations/instances_train2017.json", "annotations/instances_val2017.json", "train2017", "val2017"),
        ("annotations/instances_train.json", "annotations/instances_val.json", "images/train", "images/val"),
        ("annotations/instances_train2017.json", "annotations/instances_val2017.json", "images", "images"),
    ],
)
def test_given_parts_are_kept(
    tmp_path: Path, train: str, validation: str, train_pictures: str, validation_pictures: str
) -> None:
    write_coco(tmp_path / train, tmp_path / train_pictures, NAMES[:7])
    write_coco(tmp_path / validation, tmp_path / validation_pictures, NAMES[7:])
    layout = find_layout(tmp_path, tmp_path / "work", 0.5)
    assert parts_of(layout) == (NAMES[:7], NAMES[7:])
    assert train in layout.description


@pytest.mark.parametrize(
    ("file", "pictures"),
    [
        ("_annotations.coco.json", "."),
        ("train/_annotations.coco.json", "train"),
        ("annotations/instances_default.json", "images"),
        ("annotations/instances_mine.json", "."),
    ],
)
def test_without_a_validation_part_some_pictures_are_held_out(tmp_path: Path, file: str, pictures: str) -> None:
    write_coco(tmp_path / file, tmp_path / pictures, NAMES)
    layout = find_layout(tmp_path, tmp_path / "work", 0.15)
    train, validation = parts_of(layout)
    assert len(validation) == 2
    assert sorted(train + validation) == NAMES
    assert "2 of 10 pictures held out" in layout.description


def test_held_out_pictures_stay_held_out_when_others_are_added(tmp_path: Path) -> None:
    held_out = []
    for count in (10, 20):
        write_coco(tmp_path / "_annotations.coco.json", tmp_path, [f"{i}.png" for i in range(count)])
        held_out.append(set(parts_of(find_layout(tmp_path, tmp_path / "work", 0.5))[1]))
    assert len(held_out[0] & held_out[1]) >= 4


@pytest.mark.parametrize(("folder", "pictures"), [("Annotations", "JPEGImages"), ("annotations", "images")])
def test_voc_folders(tmp_path: Path, folder: str, pictures: str) -> None:
    write_voc(tmp_path / folder, tmp_path / pictures, ["a", "b", "c", "d"])
    train, validation = parts_of(find_layout(tmp_path, tmp_path / "work", 0.25))
    assert len(validation) == 1
    assert sorted(train + validation) == ["a", "b", "c", "d"]
    lists = tmp_path / "ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("d\na\n", encoding="utf-8")
    (lists / "val.txt").write_text("b\n", encoding="utf-8")
    assert parts_of(find_layout(tmp_path, tmp_path / "work", 0.25)) == (["d", "a"], ["b"])


def test_what_cannot_be_used_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"no annotations found; expected a COCO file"):
        find_layout(tmp_path, tmp_path / "work", 0.15)
    path = tmp_path / "_annotations.coco.json"
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(MissingInputError, match="not readable as a COCO file"):
        find_layout(tmp_path, tmp_path / "work", 0.15)
    write_coco(path, tmp_path, NAMES[:1])
    with pytest.raises(MissingInputError, match="1 pictures; expected at least two"):
        find_layout(tmp_path, tmp_path / "work", 0.15)
    write_coco(path, tmp_path / "elsewhere", NAMES)
    (tmp_path / "0.png").unlink()
    with pytest.raises(MissingInputError, match=r"its first picture \d\.png is in none of"):
        find_layout(tmp_path, tmp_path / "work", 0.99)
