"""Decisions become shards: people's boxes, negatives, and everything else as it was."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError
from pipeline.inspection.reading import read_records
from pipeline.inspection.row_identity import row_fingerprint
from pipeline.inspection.search import Filter, find_rows
from pipeline.review.decisions import settle
from pipeline.review.merging import Merged, merge
from pipeline.review.store import DecisionStore
from pipeline.store.records import (
    NOT_THERE,
    NOTHING_FOUND,
    SCHEMA_VERSION,
    Category,
    DetectedObject,
    DetectionRecord,
    GroundingRecord,
    ImageRef,
)
from pipeline.store.shards import (
    VERSION_KEY,
    categories_to_metadata,
    list_shards,
    read_categories,
    read_metadata,
    read_shard,
    shard_name,
    write_shard,
)
from stages import merge as command

ROOT = Path(__file__).resolve().parents[3]


def read(folder: Path, kind: Any = GroundingRecord) -> dict[str, Any]:
    return {record.key: record for path in list_shards(folder) for record in read_shard(path, kind)}


def test_people_s_boxes_score_one_and_rejected_phrases_say_so(
    labels: Path, tmp_path: Path, rows: Any, decide: Any
) -> None:
    made = [
        decide(
            rows[0],
            [("dog", ((2, 5),), [(20, 20, 80, 80), (1, 2, 3.25, 4)], "right"), ("red cat", ((12, 19),), [], "absent")],
        ),
        decide(rows[1], [("bird", ((2, 6),), [], "absent")]),
        decide(rows[2]),
    ]
    found = merge(labels, settle(made), tmp_path / "out")
    after = read(tmp_path / "out")
    assert after["k3"] == rows[3]
    first = after["k0"]
    assert first.reviewed
    assert first.image == rows[0].image
    assert [(box.xyxy, box.score) for box in first.phrases[0].boxes] == [((20, 20, 80, 80), 1), ((1, 2, 3.25, 4), 1)]
    assert (first.phrases[1].boxes, first.phrases[1].reject_reason) == ((), NOT_THERE)
    assert (after["k1"].reject_reason, after["k1"].reviewed) == (NOTHING_FOUND, True)
    assert [phrase.reject_reason for phrase in after["k2"].phrases] == [None, "below_min_score"]
    assert found.boxes == Counter(accepted=3, drawn=1, rejected=2)
    assert (found.rows, found.reviewed, found.absent, found.changed) == (4, 3, 2, [])


def test_a_moved_box_is_told_from_a_drawn_one(labels: Path, tmp_path: Path, rows: Any, decide: Any) -> None:
    made = [decide(rows[1], [("bird", ((2, 6),), [(52, 31, 91, 72), (0, 0, 9, 9)], "right")])]
    assert merge(labels, settle(made), tmp_path / "out").boxes == Counter(moved=1, drawn=1)


def test_rows_that_changed_since_stay_and_are_told(
    labels: Path, tmp_path: Path, rows: Any, decide: Any, caplog: Any
) -> None:
    old = dataclasses.replace(rows[0], caption=f"{rows[0].caption}!")
    stranger = dataclasses.replace(rows[0], key="elsewhere")
    outside = decide(rows[1], [("bird", ((2, 6),), [(0, 0, 900, 9)], "right")])
    found = merge(labels, settle([decide(old), decide(stranger), outside]), tmp_path / "out")
    assert read(tmp_path / "out") == read(labels)
    assert (found.changed, found.unknown, found.outside, found.reviewed) == (["k0"], 1, 1, 0)
    manifest = json.loads((tmp_path / "out/_manifest.json").read_text())
    assert manifest["merged"]["changed"] == ["k0"]


def test_shards_of_version_1_are_read_and_become_version_2(
    labels: Path, tmp_path: Path, rows: Any, decide: Any
) -> None:
    for path in list_shards(labels):
        table = pq.read_table(path).drop_columns(["reviewed"])
        pq.write_table(table.replace_schema_metadata({**table.schema.metadata, VERSION_KEY.encode(): b"1"}), path)
    assert {key: record.reviewed for key, record in read(labels).items()} == dict.fromkeys(
        ("k0", "k1", "k2", "k3"), False
    )
    merge(labels, settle([decide(rows[0])]), tmp_path / "out")
    assert {read_metadata(path)[VERSION_KEY] for path in list_shards(tmp_path / "out")} == {SCHEMA_VERSION}
    assert {key: record.reviewed for key, record in read(tmp_path / "out").items()} == {
        "k0": True,
        "k1": False,
        "k2": False,
        "k3": False,
    }


def test_only_what_has_changed_is_written_again(labels: Path, tmp_path: Path, rows: Any, decide: Any) -> None:
    out = tmp_path / "out"
    first = decide(rows[0])
    merge(labels, settle([first]), out)
    times = [os.stat(path).st_mtime_ns for path in list_shards(out)]
    assert merge(labels, settle([first]), out).shards_kept == 2
    assert merge(labels, settle([first, decide(rows[3])]), out).shards_kept == 1
    after = [os.stat(path).st_mtime_ns for path in list_shards(out)]
    assert (after[0] == times[0], after[1] == times[1]) == (True, False)
    with pytest.raises(ConfigError, match="write to another place"):
        merge(labels, {}, labels)


def test_category_boxes_keep_crowds_areas_and_ids(tmp_path: Path, decide: Any) -> None:
    crowd = DetectedObject(category_id=7, xyxy=(1, 1, 9, 9), is_crowd=True, area=33.5)
    record = DetectionRecord(
        key="a",
        image=ImageRef(bytes=b"x"),
        height=100,
        width=100,
        source="coco",
        objects=(crowd, DetectedObject(category_id=2, xyxy=(5, 5, 50, 50), score=0.5)),
        negative_category_ids=(9,),
        not_exhaustive_category_ids=(7,),
    )
    categories = [Category(id=2, name="dog"), Category(id=7, name="people"), Category(id=9, name="tree")]
    for number in range(2):
        rows = [record if number == 0 else dataclasses.replace(record, key="b")]
        write_shard(tmp_path / "labels" / shard_name(number), rows, DetectionRecord, categories_to_metadata(categories))
    (seen, _) = read_records(find_rows(tmp_path / "labels", Filter()), Counter())
    made = decide(
        seen,
        [
            ("people", ((0, 6),), [(1, 1, 9, 9)], "right"),
            ("dog", ((8, 11),), [], "absent"),
            ("zebra", (), [(2, 2, 8, 8)], "right"),
            ("tree", (), [(3, 3, 4, 4)], "right"),
        ],
    )
    found = merge(tmp_path / "labels", settle([made]), tmp_path / "out")
    after = read(tmp_path / "out", DetectionRecord)
    assert after["b"] == dataclasses.replace(record, key="b")
    assert after["a"].objects == (
        crowd,
        DetectedObject(category_id=10, xyxy=(2, 2, 8, 8)),
        DetectedObject(category_id=9, xyxy=(3, 3, 4, 4)),
    )
    assert (after["a"].negative_category_ids, after["a"].not_exhaustive_category_ids) == ((2,), ())
    assert after["a"].reviewed
    assert found.boxes == Counter(accepted=1, rejected=1, drawn=2)
    for path in list_shards(tmp_path / "out"):
        assert read_categories(path) == [*categories, Category(id=10, name="zebra", split="novel")]
    # What was merged can be reviewed again.
    again = next(read_records(find_rows(tmp_path / "out", Filter()), Counter()))
    assert row_fingerprint(again) != row_fingerprint(seen)


def test_the_command_says_what_became_of_decisions(
    labels: Path, tmp_path: Path, rows: Any, decide: Any, caplog: pytest.LogCaptureFixture
) -> None:
    DecisionStore(tmp_path / "reviews").add([decide(rows[0]), decide(rows[0], [], reviewer="ben")])
    (tmp_path / "more.jsonl").write_text("no decision\n", encoding="utf-8")
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    places = [str(tmp_path / name) for name in ("reviews", "more.jsonl", "out", "merge.json")]
    line = command.run(
        parser.parse_args([str(labels), "--reviews", *places[:2], "--out", places[2], "--metrics", places[3]])
    )
    assert line.startswith(
        "merge: 1 of 4 rows reviewed; boxes: 0 accepted, 0 moved, 0 drawn, 2 rejected; 0 phrases not"
    )
    metrics = json.loads((tmp_path / "merge.json").read_text())
    assert (metrics["reviewed"], metrics["disputed"], metrics["lines_broken"]) == (1, 1, 1)
    assert set(vars(Merged())) <= set(metrics)
    assert "1 rows were judged differently by several people" in caplog.text
