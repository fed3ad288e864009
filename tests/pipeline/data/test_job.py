"""How shards are written, counted and freed of duplicates."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.config import PrepareConfig, SourceConfig, load_config
from pipeline.data.job import ShardResult, ShardTask, drop_rows, find_duplicates, prepare, write_records
from pipeline.data.records import CaptionRecord, DetectedObject, DetectionRecord, ImageRef
from pipeline.data.shards import list_shards, read_metadata, read_shard
from pipeline.data.tables import DroppedBox, Reject
from pipeline.errors import MissingInputError, RejectLimitError

ROOT = Path(__file__).resolve().parents[3]


def record(key: str, num_boxes: int = 1) -> DetectionRecord:
    objects = tuple(DetectedObject(category_id=1, xyxy=(0.0, 0.0, 1.0, 2.0)) for _ in range(num_boxes))
    return DetectionRecord(key=key, image=ImageRef(bytes=b""), height=9, width=9, source="test", objects=objects)


def task(folder: Path, rows: Sequence[Any]) -> ShardTask:
    return ShardTask(folder / "part-00000.parquet", DetectionRecord, {"x": "y"}, partial(iter, rows), len(rows))


def test_a_shard_holds_its_records_and_counts_the_rest(tmp_path: Path) -> None:
    rows = [
        record("a", 2),
        *(Reject(f"{i}.jpg", "image_missing") for i in range(5)),
        DroppedBox("b.jpg", "box_degenerate"),
        DroppedBox("b.jpg", "box_degenerate"),
        record("b", 3),
        Reject("x", "caption_empty"),
    ]
    result = write_records(task(tmp_path, rows))
    assert [row.key for row in read_shard(tmp_path / "part-00000.parquet", DetectionRecord)] == ["a", "b"]
    assert read_metadata(tmp_path / "part-00000.parquet")["x"] == "y"
    assert (result.rows, result.boxes) == (2, 5)
    assert result.rejects == {"image_missing": 5, "caption_empty": 1}
    assert result.examples == {"image_missing": ["0.jpg", "1.jpg", "2.jpg"], "caption_empty": ["x"]}
    assert result.dropped_boxes == {"box_degenerate": 2}


def test_a_shard_of_rejects_alone_is_written_empty(tmp_path: Path) -> None:
    result = write_records(task(tmp_path, [Reject("x", "image_missing")]))
    assert result.rows == 0
    assert read_shard(tmp_path / "part-00000.parquet", DetectionRecord) == []


@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=5), max_size=5))
def test_duplicates_are_all_but_the_first_of_each_key(shards: list[list[str]]) -> None:
    expected: dict[int, list[int]] = {}
    seen: set[str] = set()
    for number, keys in enumerate(shards):
        for row, key in enumerate(keys):
            if key in seen:
                expected.setdefault(number, []).append(row)
            seen.add(key)
    hashes = [np.array([ord(key) for key in keys], np.uint64) for keys in shards]
    assert find_duplicates(hashes) == expected


def test_dropped_rows_leave_the_rest_and_the_metadata(tmp_path: Path) -> None:
    job = task(tmp_path, [record("a"), record("b", 4), record("c"), record("a", 2)])
    write_records(job)
    result = drop_rows(job, [1, 3])
    assert [row.key for row in read_shard(job.path, DetectionRecord)] == ["a", "c"]
    assert read_metadata(job.path)["x"] == "y"
    assert (result.rows, result.boxes) == (2, 6)
    assert result.examples == {"duplicate_key": ["b", "a"]}


def test_equal_keys_hash_equally_in_every_shard(tmp_path: Path) -> None:
    first = write_records(task(tmp_path / "1", [record("a"), record("ü")]))
    second = write_records(task(tmp_path / "2", [record("ü"), record("b")]))
    assert find_duplicates([first.key_hashes, second.key_hashes]) == {1: [0]}
    assert find_duplicates([ShardResult().key_hashes]) == {}


class Raw:
    """Two COCO-style sources over one folder of pictures, each picture of another width."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "images").mkdir()

    def picture(self, name: str, width: int) -> None:
        out = io.BytesIO()
        Image.new("RGB", (width, 20)).save(out, "PNG")
        (self.folder / "images" / name).write_bytes(out.getvalue())

    def source(self, reader: str, names: Sequence[str], texts: Sequence[str] = ()) -> SourceConfig:
        path = self.folder / f"{reader}.json"
        rows = [{"image_id": i, "bbox": [1, 1, 5, 5], "category_id": 1} for i in range(len(names))]
        if texts:
            rows = [{"image_id": i, "caption": text} for i in range(len(names)) for text in texts]
        images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
        content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "dog"}]}
        path.write_text(json.dumps(content), encoding="utf-8")
        return SourceConfig(reader=reader, annotations=str(path), images=str(self.folder / "images"))


@pytest.fixture
def raw(tmp_path: Path) -> Raw:
    return Raw(tmp_path)


def config(**changes: Any) -> PrepareConfig:
    shipped = load_config(ROOT / "params.yaml").prepare
    values: dict[str, Any] = {"human": (), "web": (), "dev": (), "test": (), "rows_per_shard": 2, **changes}
    return dataclasses.replace(shipped, **values)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_running")
class TestPrepare:
    def test_rows_stay_in_order_over_shards(self, raw: Raw, tmp_path: Path) -> None:
        names = [f"{i}.png" for i in range(5)]
        for i, name in enumerate(names):
            raw.picture(name, 30 + i)
        metrics = prepare(config(human=(raw.source("coco_detection", names),)), 0, tmp_path / "out")
        shards = list_shards(tmp_path / "out/human/detection")
        assert [[row.width for row in read_shard(path, DetectionRecord)] for path in shards] == [
            [30, 31],
            [32, 33],
            [34],
        ]
        assert metrics == {"human/detection": {"rows": 5, "boxes": 5, "rejects": {}, "dropped_boxes": {}}}

    def test_pictures_and_pairs_that_come_again_are_rejected(self, raw: Raw, tmp_path: Path) -> None:
        for name, width in (("a.png", 30), ("b.png", 31), ("copy_of_a.png", 30)):
            raw.picture(name, width)
        names = ["a.png", "b.png", "b.png", "copy_of_a.png"]
        sources = {
            "human": (raw.source("coco_detection", names),),
            "web": (raw.source("coco_captions", ["a.png", "b.png"], ["a dog", "a cat", "a dog "]),),
        }
        metrics = prepare(config(**sources, max_reject_share=0.5), 0, tmp_path / "out")
        detection = [
            row for path in list_shards(tmp_path / "out/human/detection") for row in read_shard(path, DetectionRecord)
        ]
        assert [row.width for row in detection] == [30, 31]
        assert metrics["human/detection"]["rejects"] == {"duplicate_key": 2}
        assert metrics["human/detection"]["boxes"] == 2
        pairs = [row for path in list_shards(tmp_path / "out/web") for row in read_shard(path, CaptionRecord)]
        assert [(row.width, row.caption) for row in pairs] == [
            (30, "a dog"),
            (30, "a cat"),
            (31, "a dog"),
            (31, "a cat"),
        ]
        assert metrics["web"] == {"rows": 4, "boxes": 0, "rejects": {"duplicate_key": 2}, "dropped_boxes": {}}

    def test_sources_of_a_role_share_its_folder(self, raw: Raw, tmp_path: Path) -> None:
        raw.picture("a.png", 30)
        embedded = SourceConfig(reader="embedded", annotations=None, images=None)
        shipped = load_config(ROOT / "params.yaml").prepare.embedded
        small = dataclasses.replace(shipped, human_detection=3, human_grounding=1)
        both = (embedded, raw.source("coco_detection", ["a.png"]))
        metrics = prepare(config(human=both, embedded=small), 0, tmp_path / "out")
        assert {folder: figures["rows"] for folder, figures in metrics.items()} == {
            "human/detection": 4,
            "human/grounding": 1,
        }
        shards = list_shards(tmp_path / "out/human/detection")
        rows = [row.source for path in shards for row in read_shard(path, DetectionRecord)]
        assert rows == ["embedded"] * 3 + ["coco_detection"]

    def test_a_table_without_rows_is_counted_as_such(self, tmp_path: Path) -> None:
        embedded = SourceConfig(reader="embedded", annotations=None, images=None)
        shipped = load_config(ROOT / "params.yaml").prepare.embedded
        metrics = prepare(config(web=(embedded,), embedded=dataclasses.replace(shipped, web=0)), 0, tmp_path / "out")
        assert metrics == {"web": {"rows": 0, "boxes": 0, "rejects": {}, "dropped_boxes": {}}}

    def test_the_folders_that_later_stages_name_are_always_there(self, tmp_path: Path) -> None:
        assert prepare(config(), 0, tmp_path / "out") == {}
        found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")}
        assert found == {"human", "human/detection", "human/grounding", "web", "dev", "test"}

    def test_too_many_rejects_are_summed_up_by_reason_with_examples(self, raw: Raw, tmp_path: Path) -> None:
        raw.picture("a.png", 30)
        (raw.folder / "images/b.png").write_text("no picture")
        source = raw.source("coco_detection", ["a.png", "b.png", *(f"absent{i}.png" for i in range(6))])
        with pytest.raises(RejectLimitError) as caught:
            prepare(config(dev=(source,), max_reject_share=0.5), 0, tmp_path / "out")
        assert str(caught.value).splitlines() == [
            "dev/detection: 7 of 8 rows rejected, more than prepare.max_reject_share = 0.5:",
            "  image_missing: 6, for example absent0.png, absent1.png, absent2.png",
            "  image_unreadable: 1, for example b.png",
            "mend the data or raise the limit, then run: dvc repro prepare",
        ]
        metrics = prepare(config(dev=(source,), max_reject_share=0.875), 0, tmp_path / "out")
        assert metrics["dev/detection"]["rejects"] == {"image_missing": 6, "image_unreadable": 1}

    def test_shards_of_an_earlier_run_do_not_stay(self, raw: Raw, tmp_path: Path) -> None:
        names = [f"{i}.png" for i in range(5)]
        for i, name in enumerate(names):
            raw.picture(name, 30 + i)
        for count in (5, 1):
            prepare(config(human=(raw.source("coco_detection", names[:count]),)), 0, tmp_path / "out")
        assert [path.name for path in list_shards(tmp_path / "out/human/detection")] == ["part-00000.parquet"]

    def test_a_missing_source_is_found_before_anything_is_removed(self, raw: Raw, tmp_path: Path) -> None:
        raw.picture("a.png", 30)
        good = raw.source("coco_detection", ["a.png"])
        prepare(config(human=(good,)), 0, tmp_path / "out")
        absent = dataclasses.replace(good, annotations="absent.json")
        with pytest.raises(MissingInputError, match=r"absent\.json"):
            prepare(config(human=(good,), dev=(absent,)), 0, tmp_path / "out")
        assert len(list_shards(tmp_path / "out/human/detection")) == 1
