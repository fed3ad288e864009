"""Labels as COCO, VOC and YOLO: our own readers get back what was exported, in the parts that it was written in."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.inspection.detection_sets import split_of
from pipeline.inspection.exports import export
from pipeline.inspection.reading import labelled_names
from pipeline.inspection.search import Filter, find_rows
from pipeline.prepare.layouts import find_layout
from pipeline.prepare.raw import SourceContext
from pipeline.prepare.sources import READERS
from pipeline.store.ontology import Ontology
from pipeline.store.records import Category, DetectedObject, DetectionRecord, GroundingRecord, Phrase, ScoredBox
from pipeline.store.shards import categories_to_metadata, shard_name, write_shard

NAMES = ["cat", 'odd: "name" <&> #', "never seen"]
ReadRows = Callable[..., list[Any]]


@pytest.fixture
def labels(tmp_path: Path, make_detection: Callable[..., DetectionRecord]) -> Path:
    """Twenty pictures, one of them empty and one that nobody could look at."""
    rows = []
    for i in range(18):
        boxes = [DetectedObject(category_id=1, xyxy=(i, 2, 20 + i, 30), score=0.5)]
        boxes += [DetectedObject(category_id=2, xyxy=(40, 40, 60 + i, 90), score=0.25)] * (i % 2)
        rows.append(make_detection(i, *boxes))
    for number, reason in ((18, "no_boxes"), (19, "image_unreadable")):
        rows.append(DetectionRecord(**vars(make_detection(number)) | {"reject_reason": reason}))
    metadata = categories_to_metadata([Category(id=i, name=name) for i, name in enumerate(NAMES, 1)])
    write_shard(tmp_path / "labels" / shard_name(0), rows, DetectionRecord, metadata)
    return tmp_path / "labels"


def write(labels: Path, name: str, share: float = 0.0) -> Path:
    out = labels.parent / name
    count = export(name, find_rows(labels, Filter()), out, lambda rows: None, (), None, share, labelled_names(labels))
    assert count == 19
    return out


def boxes(context: SourceContext, read_rows: ReadRows, entries: Any) -> dict[str, set[Any]]:
    """Return by the part of each source the names and boxes in it."""
    found: dict[str, set[Any]] = {}
    for number, entry in enumerate(entries):
        options = {k: v for k, v in entry.items() if k not in ("reader", "name", "data_set", "search")}
        (table,) = READERS[entry["reader"]](context, **options)
        names = {category.id: category.name for category in table.categories}
        found[str(number)] = {
            (names[item.category_id], *(round(side) for side in item.xyxy))
            for row in read_rows(table)
            if isinstance(row, DetectionRecord)
            for item in row.objects
        }
    return found


@pytest.mark.parametrize("name", ["coco", "voc", "yolo"])
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_readers_get_back_what_was_exported(
    labels: Path, name: str, share: float, context: SourceContext, read_rows: ReadRows
) -> None:
    layout = find_layout(write(labels, name, share))
    found = boxes(context, read_rows, (*layout.train, *layout.validation))
    assert len(found) == (2 if share else 1)
    whole = {("cat", i, 2, 20 + i, 30) for i in range(18)} | {
        (NAMES[1], 40, 40, 60 + i, 90) for i in range(18) if i % 2
    }
    assert set.union(*found.values()) == whole
    if share:
        validation = {f"key-{i}" for i in range(18) if split_of(f"key-{i}", share) == "val"}
        assert {f"key-{box[1]}" for box in found["1"] if box[0] == "cat"} == validation
        assert not found["0"] & found["1"]


def test_yolo_says_its_names_and_which_row_each_picture_was(labels: Path) -> None:
    out = write(labels, "yolo")
    found = yaml.safe_load((out / "data.yaml").read_text(encoding="utf-8"))
    assert found["names"] == dict(enumerate(NAMES))
    assert found["train"] == found["val"] == "images/train"
    with (out / "keys.csv").open(encoding="utf-8", newline="") as file:
        keys = dict(list(csv.reader(file))[1:])
    assert len(keys) == 19
    assert keys["train/000000000001.png"] == "key-0"
    empty = next(name for name, key in keys.items() if key == "key-18")
    assert (out / "labels" / empty).with_suffix(".txt").read_text() == ""
    assert (out / "images" / empty).is_file()


def test_coco_has_all_categories_in_order(labels: Path) -> None:
    values = json.loads((write(labels, "coco") / "annotations.json").read_text(encoding="utf-8"))
    assert [(entry["id"], entry["name"]) for entry in values["categories"]] == list(enumerate(NAMES, 1))
    assert {entry["score"] for entry in values["annotations"]} == {0.5, 0.25}


def test_voc_escapes_what_xml_cannot_hold(tmp_path: Path, make_grounding: Callable[..., GroundingRecord]) -> None:
    phrase = Phrase(text="a\x00\x1b<b>&", char_spans=((0, 1),), boxes=(ScoredBox(xyxy=(0, 0, 9, 9), score=0.5),))
    write_shard(tmp_path / "labels" / shard_name(0), [make_grounding(1, "a thing", phrase)], GroundingRecord)
    found = find_rows(tmp_path / "labels", Filter())
    assert export("voc", found, tmp_path / "voc", lambda rows: None) == 1
    (text,) = [path.read_text(encoding="utf-8") for path in (tmp_path / "voc/Annotations").iterdir()]
    assert "<name>a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}&lt;b&gt;&amp;</name>" in text
    assert re.search(r"<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>", text)


def test_parts_depend_on_the_key_alone() -> None:
    parts = [split_of(f"k{i}", 0.25) for i in range(4000)]
    assert 900 < parts.count("val") < 1100
    assert all(split_of(f"k{i}", 0.0) == "train" and split_of(f"k{i}", 1.0) == "val" for i in range(100))
    assert {i for i in range(4000) if split_of(f"k{i}", 0.1) == "val"} <= {i for i in range(4000) if parts[i] == "val"}


@pytest.mark.parametrize("name", ["coco", "voc", "yolo"])
def test_phrases_are_exported_as_ones_own_classes(
    tmp_path: Path,
    name: str,
    context: SourceContext,
    read_rows: ReadRows,
    make_grounding: Callable[..., GroundingRecord],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def said(text: str, *boxes: tuple[int, int, int, int]) -> Phrase:
        return Phrase(text=text, char_spans=((0, 3),), boxes=tuple(ScoredBox(xyxy=box, score=0.5) for box in boxes))

    rows = [
        make_grounding(0, "caption", said("an old Lorry", (1, 2, 30, 40)), said("the sky", (5, 5, 90, 20))),
        make_grounding(
            1, "caption", said("two red cars", (3, 4, 20, 20), (50, 4, 70, 20)), said("toy car", (9, 9, 20, 20))
        ),
        make_grounding(2, "caption", said("a sky", (5, 5, 90, 20))),
    ]
    write_shard(tmp_path / "labels" / shard_name(0), rows, GroundingRecord)
    ontology = Ontology.of_settings({"bus": [], "truck": ["lorry"], "car": [], "toy car": None})
    found, out = find_rows(tmp_path / "labels", Filter()), tmp_path / "out"
    assert export(name, found, out, lambda rows: None, ontology=ontology) == 2
    layout = find_layout(out)
    read = boxes(context, read_rows, layout.train)
    assert set.union(*read.values()) == {("truck", 1, 2, 30, 40), ("car", 3, 4, 20, 20), ("car", 50, 4, 70, 20)}
    assert "3 phrases with boxes, 3 different ones, mean none of the names" in caplog.text
    if name == "coco":
        written = json.loads((out / "annotations.json").read_text(encoding="utf-8"))
        assert [category["name"] for category in written["categories"]] == ["bus", "truck", "car"]


def test_classes_that_labels_say_themselves_are_exported(
    tmp_path: Path, make_grounding: Callable[..., GroundingRecord]
) -> None:
    boxes = (ScoredBox(xyxy=(1, 2, 30, 40), score=0.5),)
    lorry = Phrase(text="old lorry", char_spans=((0, 9),), boxes=boxes, category="truck")
    other = Phrase(text="sky", char_spans=((0, 3),), boxes=boxes)
    write_shard(
        tmp_path / "labels" / shard_name(0),
        [make_grounding(0, "old lorry", lorry, other)],
        GroundingRecord,
        extras={"category"},
    )
    export("coco", find_rows(tmp_path / "labels", Filter()), tmp_path / "out", lambda rows: None)
    written = json.loads((tmp_path / "out/annotations.json").read_text(encoding="utf-8"))
    assert [category["name"] for category in written["categories"]] == ["truck", "sky"]
