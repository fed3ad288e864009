"""How shards are written, counted, freed of duplicates and of held-out pictures, and kept when a run starts again."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
from datasets import load_dataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import MissingInputError, RejectLimitError
from pipeline.prepare import job, parts
from pipeline.prepare.held_out import HeldOut, Sighting
from pipeline.prepare.job import prepare, shards_by_part
from pipeline.prepare.parts import ROOTS_KEY, PartResult, PartTask, drop_rows, find_duplicates
from pipeline.prepare.raw import Converted, DroppedBox, Part, RawImage, RawPair, Reject
from pipeline.prepare.settings import PrepareConfig
from pipeline.prepare.validation import Rules
from pipeline.settings import load_all
from pipeline.store.records import (
    SCHEMA_VERSION,
    CaptionRecord,
    DetectedObject,
    DetectionRecord,
    GroundingRecord,
    ImageRef,
    Phrase,
    ScoredBox,
)
from pipeline.store.resume import MANIFEST_FILE
from pipeline.store.shards import PROVENANCE_KEY, list_shards, read_metadata, read_shard, shard_name

ROOT = Path(__file__).resolve().parents[3]


def record(key: str, num_boxes: int = 1, data: bytes = b"") -> DetectionRecord:
    objects = tuple(DetectedObject(category_id=1, xyxy=(0.0, 0.0, 1.0, 2.0)) for _ in range(num_boxes))
    return DetectionRecord(key=key, image=ImageRef(bytes=data), height=9, width=9, source="test", objects=objects)


def task(folder: Path | None, rows: Sequence[Any], **changes: Any) -> PartTask:
    base = PartTask(
        folder=folder,
        number=0,
        part=Part("rows", "rows", partial(iter, rows), len(rows)),
        record_type=DetectionRecord,
        rules=Rules(source="test", pictures="embed", max_pixels=1000),
        metadata={PROVENANCE_KEY: "this run"},
        rows_per_shard=100,
        shard_bytes=10**9,
        keeps_sightings=False,
    )
    return dataclasses.replace(base, **changes)


def as_it_is(part: PartTask) -> PartTask:
    """Return a part that knows what is in its folder, as ``prepare`` plans it."""
    there = {} if part.folder is None else shards_by_part(part.folder)
    return dataclasses.replace(part, there=there.get(part.number, ()))


def write_part(part: PartTask, held_out: HeldOut | None) -> PartResult:
    return parts.write_part(as_it_is(part), held_out)


def finished(part: PartTask) -> PartResult | None:
    return parts.finished(as_it_is(part))


def test_a_shard_holds_its_records_and_counts_the_rest(tmp_path: Path) -> None:
    rows = [
        record("a", 2),
        *(Reject(f"{i}.jpg", "image_missing") for i in range(5)),
        DroppedBox("b.jpg", "box_degenerate"),
        DroppedBox("b.jpg", "box_degenerate"),
        record("b", 3),
        Reject("x", "caption_empty"),
    ]
    result = write_part(task(tmp_path, rows), None)
    assert [row.key for row in read_shard(tmp_path / "part-00000.parquet", DetectionRecord)] == ["a", "b"]
    assert read_metadata(tmp_path / "part-00000.parquet")[PROVENANCE_KEY] == "this run"
    assert (result.rows, result.boxes) == (2, 5)
    assert result.rejects == {"image_missing": 5, "caption_empty": 1}
    assert result.examples == {"image_missing": ["0.jpg", "1.jpg", "2.jpg"], "caption_empty": ["x"]}
    assert result.dropped_boxes == {"box_degenerate": 2}


def test_pseudo_labels_and_converted_rows_are_counted_besides_others(tmp_path: Path) -> None:
    def labelled(key: str, *scores: float) -> GroundingRecord:
        boxes = tuple(ScoredBox(xyxy=(1, 1, 9, 9), score=score) for score in scores)
        phrase = Phrase(text="dog", char_spans=((0, 3),), boxes=boxes)
        image = ImageRef(path=f"/{key}.jpg")
        return GroundingRecord(key=key, image=image, height=10, width=10, source="s", caption="dog", phrases=(phrase,))

    rows = [labelled("a", 1.0), labelled("b", 1.0, 0.5), labelled("c"), Converted("c", "boxes_turned")]
    result = write_part(task(tmp_path, rows, record_type=GroundingRecord), None)
    assert (result.rows, result.boxes) == (3, 3)
    assert result.converted == {"pseudo_labels": 1, "boxes_turned": 1}


def test_a_part_of_rejects_alone_is_written_empty(tmp_path: Path) -> None:
    result = write_part(task(tmp_path, [Reject("x", "image_missing")]), None)
    assert result.rows == 0
    assert read_shard(tmp_path / "part-00000.parquet", DetectionRecord) == []


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"rows_per_shard": 2}, [["0", "1"], ["2", "3"], ["4"]]),
        ({"rows_per_shard": 5}, [["0", "1", "2", "3", "4"]]),
        ({"shard_bytes": 250}, [["0", "1", "2"], ["3", "4"]]),
    ],
)
def test_a_long_part_becomes_several_shards(tmp_path: Path, limits: dict[str, int], expected: list[list[str]]) -> None:
    result = write_part(task(tmp_path, [record(str(i), data=b"x" * 100) for i in range(5)], **limits), None)
    shards = list_shards(tmp_path)
    assert [[row.key for row in read_shard(path, DetectionRecord)] for path in shards] == expected
    assert [path.name for path in shards] == [shard_name(0, i) for i in range(len(expected))] == result.files


class TestFinished:
    rows = (record("a", 2), Reject("x", "image_missing"), record("b"))

    def test_a_part_is_finished_when_its_receipt_is_there(self, tmp_path: Path) -> None:
        job = task(tmp_path, self.rows, rows_per_shard=1)
        assert finished(job) is None
        write_part(job, None)
        again = finished(job)
        assert again is not None
        assert (again.rows, again.boxes, again.rejects, again.files) == (
            2,
            3,
            {"image_missing": 1},
            ["part-00000.parquet", "part-00000_001.parquet"],
        )

    def test_pictures_refused_for_their_place_are_tried_again_where_others_are_allowed(self, tmp_path: Path) -> None:
        one, other = ({PROVENANCE_KEY: "this run", ROOTS_KEY: roots} for roots in ("one", "other"))
        write_part(task(tmp_path, [record("a")], metadata=one), None)
        assert finished(task(tmp_path, [], metadata=other)) is not None
        write_part(task(tmp_path, [record("a"), Reject("b", "image_outside_folder")], metadata=one), None)
        assert finished(task(tmp_path, [], metadata=one)) is not None
        assert finished(task(tmp_path, [], metadata=other)) is None

    def test_what_depends_on_other_things_is_not_finished(self, tmp_path: Path) -> None:
        write_part(task(tmp_path, self.rows), None)
        assert finished(task(tmp_path, self.rows, metadata={PROVENANCE_KEY: "another run"})) is None

    @pytest.mark.parametrize("lost", ["part-00000.parquet", "part-00000_001.parquet"])
    def test_a_part_that_lost_a_shard_is_not_finished(self, tmp_path: Path, lost: str) -> None:
        job = task(tmp_path, self.rows, rows_per_shard=1)
        write_part(job, None)
        (tmp_path / lost).unlink()
        assert finished(job) is None

    def test_a_broken_shard_is_not_finished(self, tmp_path: Path) -> None:
        job = task(tmp_path, self.rows)
        write_part(job, None)
        (tmp_path / "part-00000.parquet").write_bytes(b"PAR1")
        assert finished(job) is None

    def test_a_part_that_broke_off_leaves_nothing(self, tmp_path: Path) -> None:
        def broken() -> Any:
            yield record("a")
            raise OSError("disk on fire")

        job = task(tmp_path, (), part=Part("rows", "rows", broken))
        with pytest.raises(OSError, match="disk on fire"):
            write_part(job, None)
        assert list(tmp_path.iterdir()) == []


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
    path = tmp_path / "part-00000.parquet"
    part = task(tmp_path, [record("a"), record("b", 4), record("c"), record("a", 2)])
    write_part(part, None)
    figures = drop_rows(path, [1, 3], "")
    assert [row.key for row in read_shard(path, DetectionRecord)] == ["a", "c"]
    assert (figures.rows, figures.duplicates) == (2, 2)
    assert figures.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert finished(part) is not None
    assert drop_rows(path, [0], "").duplicates == 3


def test_a_part_that_lost_rows_to_earlier_ones_is_made_anew_when_those_become_others(tmp_path: Path) -> None:
    rows = [record("a"), record("b")]
    part = task(tmp_path, rows, earlier="parts that had a")
    write_part(part, None)
    assert finished(dataclasses.replace(part, earlier="others")) is not None  # it lacks nothing
    drop_rows(tmp_path / "part-00000.parquet", [0], part.earlier)
    assert finished(part) is not None
    assert finished(dataclasses.replace(part, earlier="others")) is None


def test_files_that_prepare_did_not_write_are_no_leftovers(tmp_path: Path) -> None:
    raw, old, stays = tmp_path / "test/JPEGImages", tmp_path / "test/detection", tmp_path / "test/grounding"
    for folder in (raw, old, stays):
        folder.mkdir(parents=True)
    for file in (raw / "a.jpg", raw / "manifest.json", tmp_path / "test/notes.txt"):
        file.write_text("mine")
    (tmp_path / "test/link").symlink_to(raw)
    for folder in (old, stays):
        for name in ("part-00000.parquet", ".part-00001.parquet.99", MANIFEST_FILE):
            (folder / name).write_text("")
    job._remove_leftovers(tmp_path / "test", {stays})
    left = {str(path.relative_to(tmp_path / "test")) for path in (tmp_path / "test").rglob("*") if path.is_file()}
    assert left >= {"JPEGImages/a.jpg", "JPEGImages/manifest.json", "notes.txt", "grounding/part-00000.parquet"}
    assert not old.exists()


def test_sightings_are_kept_where_they_are_asked_for_and_held_out_pictures_are_not_shown(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.new("RGB", (20, 20)).save(out, "PNG")
    rows = [
        RawPair(name=name, image=RawImage(data=out.getvalue(), picture_id=name), caption=name)
        for name in ("coco/1", "coco/2")
    ]
    judged = write_part(task(None, rows, record_type=CaptionRecord, keeps_sightings=True), None)
    assert [seen.picture_id for seen in judged.sightings] == ["coco/1", "coco/2"]
    shown = write_part(task(tmp_path, rows, record_type=CaptionRecord), HeldOut([Sighting("coco/2", None)]))
    assert [row.caption for row in read_shard(tmp_path / shard_name(0), CaptionRecord)] == ["coco/1"]
    assert shown.rejects == {"held_out": 1}
    assert shown.sightings == []


class Raw:
    """Two COCO-style sources over one folder of pictures, each picture of another width."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "images").mkdir()

    def picture(self, name: str, width: int, height: int = 20) -> None:
        out = io.BytesIO()
        rng = np.random.default_rng(width)
        pixels = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(out, "PNG")
        (self.folder / "images" / name).write_bytes(out.getvalue())

    def source(self, reader: str, names: Sequence[str], texts: Sequence[str] = (), **options: Any) -> dict[str, Any]:
        path = self.folder / f"{reader}{len(names)}.json"
        rows = [{"image_id": i, "bbox": [1, 1, 5, 5], "category_id": 1} for i in range(len(names))]
        if texts:
            rows = [{"image_id": i, "caption": text} for i in range(len(names)) for text in texts]
        images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
        content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "dog"}]}
        path.write_text(json.dumps(content), encoding="utf-8")
        return {"reader": reader, "annotations": str(path), "images": str(self.folder / "images"), **options}


@pytest.fixture
def raw(tmp_path: Path) -> Raw:
    return Raw(tmp_path)


def config(**changes: Any) -> PrepareConfig:
    shipped = load_all(ROOT / "params.yaml").prepare
    values: dict[str, Any] = {"human": (), "web": (), "dev": (), "test": (), "rows_per_shard": 2, **changes}
    return dataclasses.replace(shipped, **values)


def read_all(folder: Path, kind: Any) -> list[Any]:
    return [row for path in list_shards(folder) for row in read_shard(path, kind)]


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

    def test_boxes_below_a_pixel_count_where_models_are_judged_alone(self, raw: Raw, tmp_path: Path) -> None:
        sources = {}
        for role, width in (("human", 30), ("dev", 31), ("test", 32)):
            raw.picture(f"{role}.png", width)
            source = raw.source("coco_detection", [f"{role}.png"])
            text = Path(source["annotations"]).read_text(encoding="utf-8").replace("[1, 1, 5, 5]", "[1, 1, 5, 0.5]")
            path = tmp_path / f"{role}.json"
            path.write_text(text, encoding="utf-8")
            sources[role] = ({**source, "annotations": str(path)},)
        metrics = prepare(config(**sources), 0, tmp_path / "out")
        assert {folder: figures["boxes"] for folder, figures in metrics.items()} == {
            "human/detection": 0,
            "dev/detection": 1,
            "test/detection": 1,
        }

    def test_pictures_and_pairs_that_come_again_are_rejected(self, raw: Raw, tmp_path: Path) -> None:
        for name, width in (("a.png", 30), ("b.png", 31), ("copy_of_a.png", 30)):
            raw.picture(name, width)
        names = ["a.png", "b.png", "b.png", "copy_of_a.png"]
        sources = {
            "human": (raw.source("coco_detection", names),),
            "web": (raw.source("coco_captions", ["a.png", "b.png"], ["a dog", "a cat", "a dog "]),),
        }
        for _ in range(2):  # a second run finds the shards finished, and the same duplicates in them
            metrics = prepare(config(**sources, max_reject_share=0.5), 0, tmp_path / "out")
            assert [row.width for row in read_all(tmp_path / "out/human/detection", DetectionRecord)] == [30, 31]
            assert metrics["human/detection"] == {
                "rows": 2,
                "boxes": 2,
                "rejects": {"duplicate_key": 2},
                "dropped_boxes": {},
            }
            pairs = [(row.width, row.caption) for row in read_all(tmp_path / "out/web", CaptionRecord)]
            assert pairs == [(30, "a dog"), (30, "a cat"), (31, "a dog"), (31, "a cat")]
            assert metrics["web"] == {"rows": 4, "boxes": 0, "rejects": {"duplicate_key": 2}, "dropped_boxes": {}}

    def test_sources_of_a_role_share_its_folder(self, raw: Raw, tmp_path: Path) -> None:
        raw.picture("a.png", 30)
        shipped = load_all(ROOT / "params.yaml").prepare.embedded
        small = dataclasses.replace(shipped, human_detection=3, human_grounding=1)
        both = ({"reader": "embedded"}, raw.source("coco_detection", ["a.png"], name="mine", repeat=3))
        metrics = prepare(config(human=both, embedded=small), 0, tmp_path / "out")
        assert {folder: figures["rows"] for folder, figures in metrics.items()} == {
            "human/detection": 4,
            "human/grounding": 1,
        }
        shards = list_shards(tmp_path / "out/human/detection")
        assert [row.source for row in read_all(shards[0].parent, DetectionRecord)] == ["embedded"] * 3 + ["mine"]
        assert [read_metadata(path)["glip.repeat"] for path in shards] == ["1", "1", "3"]

    def test_a_mixture_brings_its_sources_and_their_repeats(self, raw: Raw, tmp_path: Path) -> None:
        for i in range(3):
            raw.picture(f"{i}.png", 30 + i)
        one = raw.source("coco_detection", ["0.png"], name="one", repeat=8)
        two = raw.source("coco_detection", ["1.png", "2.png"], name="two")
        mixtures = {"both": (one, two)}
        for entry, repeats in (({"mixture": "both"}, ["8", "1"]), ({"mixture": "both", "repeat": 2}, ["2", "2"])):
            prepare(config(human=(entry,), mixtures=mixtures), 0, tmp_path / "out")
            shards = list_shards(tmp_path / "out/human/detection")
            assert [read_metadata(path)["glip.repeat"] for path in shards] == repeats

    def test_a_table_without_rows_is_counted_as_such(self, tmp_path: Path) -> None:
        shipped = load_all(ROOT / "params.yaml").prepare.embedded
        none = dataclasses.replace(shipped, web=0)
        metrics = prepare(config(web=({"reader": "embedded"},), embedded=none), 0, tmp_path / "out")
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
            prepare(config(dev=(source,), max_reject_share=0.5, rows_per_shard=8), 0, tmp_path / "out")
        assert str(caught.value).splitlines() == [
            "dev/detection: 7 of 8 rows rejected, more than prepare.max_reject_share = 0.5:",
            "  image_missing: 6, for example absent0.png, absent1.png, absent2.png",
            "  image_unreadable: 1, for example b.png",
            "mend the data or raise the limit, then run: dvc repro prepare",
        ]
        metrics = prepare(config(dev=(source,), max_reject_share=0.875), 0, tmp_path / "out")
        assert metrics["dev/detection"]["rejects"] == {"image_missing": 6, "image_unreadable": 1}

    def test_pictures_of_evaluation_are_kept_out_of_training(self, raw: Raw, tmp_path: Path) -> None:
        for i in range(6):
            raw.picture(f"{i}.png", 300 + 60 * i, 200)
        with Image.open(raw.folder / "images/0.png") as picture:  # the same, smaller and compressed
            picture.convert("RGB").resize((150, 100)).save(raw.folder / "images/copy.jpg")
        metrics = prepare(
            config(
                dev=(raw.source("coco_detection", ["0.png"]),),
                held_out=(raw.source("coco_captions", ["1.png"], ["x"]),),
                human=(raw.source("coco_detection", ["copy.jpg", "1.png", "2.png", "3.png"]),),
                web=(raw.source("coco_captions", ["4.png", "1.png", "0.png"], ["x"]),),
                max_reject_share=0.0,
            ),
            0,
            tmp_path / "out",
        )
        widths = {row.width for row in read_all(tmp_path / "out/human/detection", DetectionRecord)}
        assert widths == {420, 480}
        assert [row.width for row in read_all(tmp_path / "out/web", CaptionRecord)] == [540]
        assert metrics["human/detection"]["rejects"] == {"held_out": 2}
        assert metrics["web"]["rejects"] == {"held_out": 2}
        assert "held_out" not in metrics
        assert not (tmp_path / "out/held_out").exists()

    def test_parts_of_one_data_set_lose_nothing_to_one_another(
        self, raw: Raw, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for i in range(2):
            raw.picture(f"{i}.png", 300 + 60 * i, 200)
        with Image.open(raw.folder / "images/0.png") as picture:  # as the next frame of a fixed camera looks
            picture.convert("RGB").save(raw.folder / "images/next.jpg")
        own = {"data_set": "mine"}
        sources = {
            "dev": (raw.source("coco_detection", ["0.png"], **own),),
            "human": (raw.source("coco_detection", ["next.jpg", "1.png"], **own),),
        }
        metrics = prepare(config(**sources), 0, tmp_path / "out")
        assert (metrics["human/detection"]["rows"], metrics["human/detection"]["rejects"]) == (2, {})
        assert metrics["human/detection"]["converted"] == {"looks_held_out": 1}
        assert "1 of 2 pictures look like ones of the same data set that models are judged by" in caplog.text
        sources["held_out"] = (raw.source("coco_detection", ["1.png", "0.png", "0.png"], **own),)  # named as such: go
        metrics = prepare(config(**sources), 0, tmp_path / "out")
        assert metrics["human/detection"]["rejects"] == {"held_out": 2}
        assert "give both sources the same data_set" in caplog.text

    def test_shards_of_an_earlier_run_do_not_stay(self, raw: Raw, tmp_path: Path) -> None:
        names = [f"{i}.png" for i in range(5)]
        for i, name in enumerate(names):
            raw.picture(name, 30 + i)
        for count in (5, 1):
            prepare(config(human=(raw.source("coco_detection", names[:count]),)), 0, tmp_path / "out")
        assert [path.name for path in list_shards(tmp_path / "out/human/detection")] == ["part-00000.parquet"]

    def test_sources_that_are_no_more_leave_nothing(self, raw: Raw, tmp_path: Path) -> None:
        raw.picture("a.png", 30)
        source, pairs = raw.source("coco_detection", ["a.png"]), raw.source("coco_captions", ["a.png"], ["x"])
        prepare(config(human=(source,), test=(source,), web=(pairs,)), 0, tmp_path / "out")
        assert prepare(config(), 0, tmp_path / "out") == {}
        found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")}
        assert found == {"human", "human/detection", "human/grounding", "web", "dev", "test"}

    def test_finished_parts_are_kept_and_others_written_anew(
        self, raw: Raw, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        names = [f"{i}.png" for i in range(5)]
        for i, name in enumerate(names):
            raw.picture(name, 30 + i)
        sources = config(human=(raw.source("coco_detection", names),))
        expected = prepare(sources, 0, tmp_path / "out")
        shards = list_shards(tmp_path / "out/human/detection")
        before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in shards}
        shards[1].unlink()
        shards[0].with_name(".part-00001.parquet.99").write_bytes(b"half a shard")
        with caplog.at_level(logging.INFO):
            assert prepare(sources, 0, tmp_path / "out") == expected
        assert "2 parts were finished already" in caplog.text
        after = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in shards}
        assert {name for name in before if before[name][0] != after[name][0]} == {"part-00001.parquet"}
        assert {name: data for name, (_, data) in before.items()} == {name: data for name, (_, data) in after.items()}
        other = dataclasses.replace(sources, max_image_pixels=5000)
        prepare(other, 0, tmp_path / "out")
        assert all(path.stat().st_mtime_ns > after[path.name][0] for path in shards)

    def test_other_code_writes_everything_anew(self, raw: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        raw.picture("a.png", 30)
        sources = config(human=(raw.source("coco_detection", ["a.png"]),))
        prepare(sources, 0, tmp_path / "out")
        (shard,) = list_shards(tmp_path / "out/human/detection")
        written = shard.stat().st_mtime_ns
        monkeypatch.setattr(job, "code_sha256", lambda paths: "changed")
        prepare(sources, 0, tmp_path / "out")
        assert shard.stat().st_mtime_ns > written

    def test_a_missing_source_is_found_before_anything_is_removed(self, raw: Raw, tmp_path: Path) -> None:
        raw.picture("a.png", 30)
        good = raw.source("coco_detection", ["a.png"])
        prepare(config(human=(good,)), 0, tmp_path / "out")
        with pytest.raises(MissingInputError, match=r"absent\.json"):
            prepare(config(human=(good,), dev=({**good, "annotations": "absent.json"},)), 0, tmp_path / "out")
        assert len(list_shards(tmp_path / "out/human/detection")) == 1

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_the_manifest_is_right_and_everybody_reads_the_shards(self, raw: Raw, tmp_path: Path) -> None:
        names = [f"{i}.png" for i in range(3)]
        for i, name in enumerate(names):
            raw.picture(name, 30 + i)
        prepare(config(web=(raw.source("coco_captions", names, ["a dog", "चित्र"]),)), 0, tmp_path / "out")
        folder = tmp_path / "out/web"
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        assert (manifest["rows"], manifest["kind"], manifest["schema_version"]) == (6, "caption", SCHEMA_VERSION)
        for shard, path in zip(manifest["shards"], list_shards(folder), strict=True):
            data = path.read_bytes()
            assert shard == {
                "name": path.name,
                "rows": len(read_shard(path, CaptionRecord)),
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        pattern = str(folder / "*.parquet")
        rows = read_all(folder, CaptionRecord)
        expected = {(row.key, row.caption, row.width) for row in rows}
        query = f"SELECT key, caption, width FROM '{pattern}'"
        assert set(duckdb.sql(query).fetchall()) == expected
        frame = pd.read_parquet(folder / "part-00000.parquet")
        assert list(frame["caption"]) == [row.caption for row in rows[:2]]
        whole = pd.read_parquet(folder)  # the folder as it lies, its manifest beside the shards
        assert list(whole["caption"]) == [row.caption for row in rows]
        table = load_dataset("parquet", data_files=pattern, split="train", cache_dir=str(tmp_path / "cache"))
        assert {(row["key"], row["caption"], row["width"]) for row in table} == expected
        assert Image.open(io.BytesIO(table[0]["image"]["bytes"])).width == 30
