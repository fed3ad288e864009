"""Layouts of people's own data: which files are found, what part each of them is, where the pictures are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import MissingInputError
from pipeline.prepare.layouts import DARKNET, FORMATS, find_layout
from pipeline.prepare.raw import SourceContext, Url
from pipeline.prepare.readers.coco import read_coco_detection
from pipeline.prepare.readers.voc import read_pascal_voc
from pipeline.prepare.validation import Rules, to_records
from pipeline.settings import load_all
from pipeline.store.records import DetectionRecord

READERS: dict[str, Any] = {"coco_detection": read_coco_detection, "pascal_voc": read_pascal_voc}
ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "pipeline/prepare/readers/README.md").read_text(encoding="utf-8")
NAMES = [f"{i}.png" for i in range(10)]


def write_pictures(folder: Path, names: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        pixels = np.random.default_rng(sum(name.encode())).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)


def coco(names: Sequence[str]) -> dict[str, Any]:
    images = [{"id": i, "file_name": name, "height": 30, "width": 40} for i, name in enumerate(names)]
    boxes = [{"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [1, 2, 3, 4]} for i in range(len(names))]
    categories = [{"id": 0, "name": "things"}, {"id": 1, "name": "cup"}, {"id": 2, "name": "pen"}]
    return {"images": images, "annotations": boxes, "categories": categories}


def write_coco(path: Path, pictures: Path, names: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pictures(pictures, names)
    path.write_text(json.dumps(coco(names)), encoding="utf-8")


def write_voc(folder: Path, pictures: Path, names: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_pictures(pictures, names)
    box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    for i, name in enumerate(names):
        xml = f"<annotation><object><name>{'cup' if i else 'pen'}</name>{box}</object></annotation>"
        (folder / f"{name.rpartition('.')[0]}.xml").write_text(xml, encoding="utf-8")


def pictures_of(sources: Sequence[Any], categories: Sequence[str] = ("cup", "pen")) -> list[str]:
    """Read sources as ``prepare`` does; return the pictures that have their box."""
    names = []
    for source in sources:
        hints = READERS[source["reader"]].__annotations__
        options = {key: Url(value) if "Url" in hints[key] else value for key, value in source.items() if key in hints}
        context = SourceContext("human", "own", load_all(ROOT / "params.yaml").prepare, 0)
        [table] = READERS[source["reader"]](context, **options)
        assert [category.name for category in table.categories] == list(categories)
        ids = frozenset(category.id for category in table.categories)
        rules = Rules("own", "reference", 10**6, ids, roots=(source["images"],))
        for part in table.parts(100):
            for record in to_records(part.rows(), rules):
                assert isinstance(record, DetectionRecord), record
                assert len(record.objects) == 1
                place = Path(record.image.path or "")
                names.append(str(place.relative_to(source["images"])))
    return names


@pytest.mark.parametrize(
    ("train", "validation", "train_pictures", "validation_pictures"),
    [
        ("train/_annotations.coco.json", "valid/_annotations.coco.json", "train", "valid"),
        ("train/_annotations.coco.json", "test/_annotations.coco.json", "train", "test"),
        ("annotations/instances_train2017.json", "annotations/instances_val2017.json", "train2017", "val2017"),
        ("annotations/instances_train.json", "annotations/instances_val.json", "images/train", "images/val"),
        ("annotations/instances_train2017.json", "annotations/instances_val2017.json", "images", "images"),
        (
            "annotations/instances_Train.json",
            "annotations/instances_Validation.json",
            "images/Train",
            "images/Validation",
        ),
        ("Annotations/instances_default.json", "Annotations/instances_minival.json", "Images", "Images"),
        ("train.json", "val.json", "train", "val"),
        ("annotations/train_coco.json", "annotations/dev_coco.json", "img", "img"),
    ],
)
def test_given_parts_are_kept(
    tmp_path: Path, train: str, validation: str, train_pictures: str, validation_pictures: str
) -> None:
    write_coco(tmp_path / train, tmp_path / train_pictures, NAMES[:7])
    write_coco(tmp_path / validation, tmp_path / validation_pictures, NAMES[7:])
    layout = find_layout(tmp_path)
    assert pictures_of(layout.train) == NAMES[:7]
    assert pictures_of(layout.validation) == NAMES[7:]
    assert train in layout.description
    assert "does not read" not in layout.description


@pytest.mark.parametrize(
    ("file", "pictures"),
    [
        ("_annotations.coco.json", "."),
        ("train/_annotations.coco.json", "train"),
        ("valid/_annotations.coco.json", "valid"),
        ("annotations/instances_default.json", "images"),
        ("annotations/instances_default.json", "images/default"),
        ("annotations/instances_mine.json", "."),
        ("instances_default.json", "."),
        ("result.json", "images"),
        ("via_project_coco.json", "."),
        ("annotations.json", "pictures/2021"),
    ],
)
def test_without_a_part_to_judge_by_all_is_one(tmp_path: Path, file: str, pictures: str) -> None:
    folder = tmp_path / "odd [1] name"
    write_coco(folder / file, folder / pictures, NAMES)
    layout = find_layout(folder)
    assert [Path(name).name for name in pictures_of(layout.train)] == NAMES
    assert layout.validation == ()


def test_every_annotation_file_is_read_or_named(tmp_path: Path) -> None:
    for part in "ab":
        write_coco(
            tmp_path / f"annotations/instances_{part}.json", tmp_path / "images", [f"{part}{i}.png" for i in "12"]
        )
    (tmp_path / "annotations/captions_a.json").write_text("{}")
    layout = find_layout(tmp_path)
    assert pictures_of(layout.train) == ["a1.png", "a2.png", "b1.png", "b2.png"]
    assert layout.description.endswith("does not read annotations/captions_a.json")
    for part in ("train", "valid", "test"):
        write_coco(tmp_path / part / "_annotations.coco.json", tmp_path / part, NAMES[:2])
    told = find_layout(tmp_path).description
    assert "reads train/_annotations.coco.json; judges by valid/_annotations.coco.json" in told
    assert "does not read test/_annotations.coco.json, annotations/captions_a.json" in told


@pytest.mark.parametrize(
    ("said", "stored"),
    [
        ("0.jpg", "0.JPG"),
        ("my%20dog.jpg", "my dog.jpg"),
        ("images\\1\\a-x.jpg", "a-x.jpg"),
        ("/data/upload/1/a-x.jpg", "a-x.jpg"),
        ("../../label-studio/data/media/upload/1/a-x.jpg", "upload/1/a-x.jpg"),
        ("/data/local-files/?d=photos/x.jpg", "photos/x.jpg"),
        ("C:\\photos\\x.jpg", "x.jpg"),
        ("e\u0301.jpg", "\u00e9.jpg"),
    ],
)
def test_pictures_are_found_however_their_place_is_written(tmp_path: Path, said: str, stored: str) -> None:
    write_pictures(tmp_path / "images", [stored])
    (tmp_path / "result.json").write_text(json.dumps(coco([said])))
    assert pictures_of(find_layout(tmp_path).train, ["cup"]) == [stored]


def test_pictures_of_one_part_are_not_looked_for_in_another(tmp_path: Path) -> None:
    write_coco(tmp_path / "annotations/instances_train.json", tmp_path / "train", NAMES)
    (tmp_path / "annotations/instances_val.json").write_text(json.dumps(coco(NAMES)))
    layout = find_layout(tmp_path)
    assert [source["search"] for source in (*layout.train, *layout.validation)] == [True, False]


def test_a_picture_is_never_guessed(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", ["a/0.png", "b/0.png"])
    (tmp_path / "result.json").write_text(json.dumps(coco(["0.png", "c/0.png", "a/0.png"])))
    [entry] = find_layout(tmp_path).train
    [table] = read_coco_detection(
        SourceContext("human", "own", load_all(ROOT / "params.yaml").prepare, 0),
        annotations=Url(entry["annotations"]),
        images=Url(entry["images"]),
        search=True,
    )
    rows = [
        row
        for part in table.parts(9)
        for row in to_records(part.rows(), Rules("own", "reference", 10**6, roots=("/",)))
    ]
    assert [getattr(row, "reason", "used") for row in rows if not hasattr(row, "what")] == [
        "image_missing",
        "image_missing",
        "category_unknown",
        "used",
    ]


@pytest.mark.parametrize(
    ("folder", "pictures"),
    [("Annotations", "JPEGImages"), ("annotations", "images"), (".", "."), ("Annotations/a", "JPEGImages/a")],
)
def test_voc_folders(tmp_path: Path, folder: str, pictures: str) -> None:
    (tmp_path / "JPEGImages").mkdir()  # may be empty
    names = ["a.jpg", "a 1.jpg", "shot 2024.01.jpg", "d(2).jpg"]
    write_voc(tmp_path / folder, tmp_path / pictures, names)
    layout = find_layout(tmp_path)
    assert sorted(pictures_of(layout.train)) == sorted(names)
    assert layout.validation == ()


def test_voc_lists_are_kept(tmp_path: Path) -> None:
    write_voc(tmp_path / "Annotations", tmp_path / "JPEGImages", ["a.jpg", "a 1.jpg", "a -1.jpg", "b.c.jpg", "d.jpg"])
    lists = tmp_path / "ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\ufeffa 1\r\nd.jpg\r\na -1\r\n", encoding="utf-8")
    (lists / "val.txt").write_text("a  1\nd -1\nb.c\n", encoding="utf-8")
    layout = find_layout(tmp_path)
    assert pictures_of(layout.train, ["cup"]) == ["a 1.jpg", "d.jpg", "a -1.jpg"]
    assert pictures_of(layout.validation) == ["a.jpg", "b.c.jpg"]


def test_voc_parts_in_folders(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        write_voc(tmp_path / part, tmp_path / part, ["a.jpg", "b.jpg"])
    layout = find_layout(tmp_path)
    assert [source["annotations"] for source in layout.train] == [str(tmp_path / "train")]
    assert [source["annotations"] for source in layout.validation] == [str(tmp_path / "valid")]


Spoil = Callable[[dict[str, Any]], Any]
SPOILT: dict[str, tuple[Spoil, str]] = {
    "a list": (lambda values: values["annotations"], r"found \[, expected \{"),
    "no pictures": (lambda values: {**values, "images": []}, "no pictures in a list 'images'"),
    "no categories": (lambda values: {**values, "categories": []}, "no categories in a list 'categories'"),
    "ids as lists": (lambda values: {**values, "categories": [{"id": [1], "name": "cup"}]}, "a whole number 'id'"),
    "numbers": (lambda values: {**values, "images": [1, 2], "categories": [3]}, "a whole number 'id'"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_odd_files_are_refused_with_a_message(tmp_path: Path, kind: str) -> None:
    spoil, message = SPOILT[kind]
    (tmp_path / "_annotations.coco.json").write_text(json.dumps(spoil(coco(NAMES))), encoding="utf-8")
    with pytest.raises(MissingInputError, match=message):
        pictures_of(find_layout(tmp_path).train)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_texts_of_other_tools_are_read(tmp_path: Path, encoding: str) -> None:
    write_pictures(tmp_path, NAMES)
    values = coco(NAMES)
    for row in values["annotations"]:
        row["image_id"] = str(row["image_id"])
    (tmp_path / "_annotations.coco.json").write_text(json.dumps(values), encoding=encoding)
    assert pictures_of(find_layout(tmp_path).train) == NAMES


def test_formats_are_told_where_none_is_found(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"no annotations found; expected one of") as caught:
        find_layout(tmp_path)
    assert all(pattern in str(caught.value) and f"`{pattern}`" in PAGE for pattern in (*FORMATS, *DARKNET))
    with pytest.raises(MissingInputError, match="no such folder"):
        find_layout(tmp_path / "none")
