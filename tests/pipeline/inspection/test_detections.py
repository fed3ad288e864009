"""Detection records looked at as grounding records are: figures, search, SQL, pages, exports, defects."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.inspection.defects import count_defects
from pipeline.inspection.detections import as_grounding_row
from pipeline.inspection.exports import export
from pipeline.inspection.figures import collect_statistics, format_statistics
from pipeline.inspection.gallery import Page, write_gallery
from pipeline.inspection.queries import query
from pipeline.inspection.reading import read_pseudo_labels, read_records
from pipeline.inspection.search import Filter, find_record, find_rows, list_keys
from pipeline.store.records import Category, DetectedObject, DetectionRecord, ImageRef
from pipeline.store.shards import PROVENANCE_KEY, categories_to_metadata, shard_name, write_shard

CATEGORIES = [Category(id=3, name="cat"), Category(id=7, name="fire truck")]


@pytest.fixture
def labels(tmp_path: Path, png: Callable[..., ImageRef]) -> Path:
    """Three shards: two boxes of a cat and one of a truck, nothing found, nothing to look at."""
    metadata = categories_to_metadata(CATEGORIES)
    metadata[PROVENANCE_KEY] = json.dumps({"teacher": {"name": "t"}, "names": {"classes": ["cat", "fire truck"]}})

    def write(number: int, *objects: DetectedObject, reason: str | None = None) -> None:
        head = {"key": f"k{number}", "image": png(), "height": 30, "width": 40, "source": "photos"}
        record = DetectionRecord(**head, objects=objects, reject_reason=reason)
        write_shard(tmp_path / "labels" / shard_name(number), [record], DetectionRecord, metadata)

    write(
        0,
        DetectedObject(category_id=3, xyxy=(1, 2, 11, 12), score=0.75),
        DetectedObject(category_id=7, xyxy=(5, 5, 30, 30), score=0.5),
        DetectedObject(category_id=3, xyxy=(20, 2, 31, 12), score=0.25),
    )
    write(1, reason="no_boxes")
    write(2, reason="image_unreadable")
    return tmp_path / "labels"


def test_figures_count_names_as_phrases(labels: Path) -> None:
    stats = collect_statistics(labels)
    assert (stats.rows, stats.phrases, stats.boxes) == (3, 2, 3)
    assert stats.most_frequent == {"cat": 1, "fire truck": 1}
    assert stats.row_rejects == {"no_boxes": 1, "image_unreadable": 1}
    assert not stats.defects
    assert "names cat, fire truck" in format_statistics(stats, "x")


def test_names_are_searched_and_asked_by_sql(labels: Path) -> None:
    assert [shard.name for shard, _ in find_rows(labels, Filter(phrase="TRUCK"))] == [shard_name(0)]
    assert [shard.name for shard, _ in find_rows(labels, Filter(reason="no_boxes"))] == [shard_name(1)]
    assert list(find_rows(labels, Filter(phrase="truck", min_score=0.6))) == []
    assert list(list_keys(labels, Filter(max_score=0.3))) == [("k0", "cat. fire truck")]
    table = query(
        labels, "SELECT b.phrase, b.score, p.boxes FROM boxes b JOIN phrases p USING (key, phrase) ORDER BY 2"
    )
    assert table.to_pylist() == [
        {"phrase": "cat", "score": 0.25, "boxes": 2},
        {"phrase": "fire truck", "score": 0.5, "boxes": 1},
        {"phrase": "cat", "score": 0.75, "boxes": 2},
    ]
    assert len(read_pseudo_labels(labels).head(5)) == 3


def test_a_row_names_what_is_in_its_picture(labels: Path) -> None:
    record = find_record(labels, "k0")
    assert record.caption == "cat. fire truck"
    for phrase in record.phrases:
        assert [record.caption[start:end] for start, end in phrase.char_spans] == [phrase.text]
    assert [[box.score for box in phrase.boxes] for phrase in record.phrases] == [[0.75, 0.25], [0.5]]
    assert record.image.bytes


def test_pages_and_exports_take_them(labels: Path, tmp_path: Path) -> None:
    found = list(find_rows(labels, Filter()))
    assert write_gallery(found, tmp_path / "page.html", Page("x"), 10_000) == 3
    assert export("coco", found, tmp_path / "coco", lambda rows: None) == 1
    values = json.loads((tmp_path / "coco/annotations.json").read_text(encoding="utf-8"))
    assert [entry["bbox"] for entry in values["annotations"]] == [[1, 2, 10, 10], [20, 2, 11, 10], [5, 5, 25, 25]]


def test_what_is_broken_is_counted_and_left_out(labels: Path) -> None:
    path = labels / shard_name(0)
    table = pq.read_table(path)
    box = {"x1": 1.0, "y1": 2.0, "x2": 11.0, "y2": 12.0, "is_crowd": False, "area": None, "score": 0.5}
    objects: list[Any] = [
        box | {"category_id": 99},
        box | {"category_id": 3, "x2": float("nan")},
        box | {"category_id": 3, "score": 7.0},
        None,
        box | {"category_id": 3},
    ]
    column = pa.array([objects], table.schema.field("objects").type)
    pq.write_table(table.set_column(table.schema.get_field_index("objects"), "objects", column), path)
    wanted = {"phrase_missing": 1, "box_not_finite": 1, "score_outside": 1}
    assert {kind: count for kind, count in count_defects(path).items() if kind in wanted} == wanted
    defects: Counter[str] = Counter()
    (record,) = read_records([(path, 0)], defects)
    assert [(phrase.text, len(phrase.boxes)) for phrase in record.phrases] == [("cat", 1)]
    assert {kind: defects[kind] for kind in wanted} == wanted


def test_rows_without_objects_lack_phrases() -> None:
    row = {"key": "a", "image": {}, "height": 1, "width": 1, "source": "s", "objects": None}
    assert as_grounding_row(row, {})["phrases"] is None
