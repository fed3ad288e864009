"""Rows found by key, by what they hold, and at random."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.errors import MissingInputError
from pipeline.inspection.reading import read_record
from pipeline.inspection.search import Filter, find_record, find_rows, format_record, list_keys, sample_rows
from pipeline.store import shards
from pipeline.store.records import GroundingRecord, ImageRef, Phrase, ScoredBox
from pipeline.store.shards import read_shard, shard_name, write_shard


def matches(record: GroundingRecord, wanted: Filter) -> bool:
    """Decide slowly."""
    reasons = {record.reject_reason, *(phrase.reject_reason for phrase in record.phrases)}
    if wanted.source not in (None, record.source) or wanted.reason not in (None, *reasons):
        return False
    if wanted.phrase is wanted.min_score is wanted.max_score is None:
        return True
    return any(
        (wanted.phrase or "").lower() in phrase.text.lower()
        and (wanted.min_score is None or any(box.score >= wanted.min_score for box in phrase.boxes))
        and (wanted.max_score is None or any(box.score <= wanted.max_score for box in phrase.boxes))
        for phrase in record.phrases
    )


@pytest.mark.parametrize(
    "wanted",
    [
        Filter(),
        Filter(phrase="DO"),
        Filter(phrase="' OR true --"),
        Filter(min_score=0.6),
        Filter(max_score=0.5),
        Filter(phrase="dog", max_score=0.5),
        Filter(reason="below_min_score"),
        Filter(reason="no_boxes"),
        Filter(source="t", phrase="cat", reason="lost_to_other_phrase"),
        Filter(source="elsewhere"),
    ],
)
def test_filters_let_through_what_a_slow_look_does(
    folder: Path, rows: list[list[GroundingRecord]], wanted: Filter
) -> None:
    expected = [row.key for shard in rows for row in shard if matches(row, wanted)]
    assert [read_record(*found).key for found in find_rows(folder, wanted)] == expected
    assert [key for key, _ in list_keys(folder, wanted)] == expected


def test_samples_are_fair_seeded_and_in_order(folder: Path) -> None:
    drawn: Counter[Any] = Counter()
    for seed in range(300):
        found = sample_rows(folder, Filter(), 2, seed)
        assert found == sorted(found)
        assert found == sample_rows(folder, Filter(), 2, seed)
        drawn.update(found)
    assert len(drawn) == 5
    assert all(80 < times < 160 for times in drawn.values())  # 120 each on average
    assert len(sample_rows(folder, Filter(), 99)) == 5


def test_a_row_is_read_from_a_single_file_too(folder: Path, rows: list[list[GroundingRecord]]) -> None:
    assert find_record(folder / shard_name(1), "berry-2") == dataclasses.replace(rows[1][1])


def test_every_row_is_found_by_its_key_in_any_row_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[list[GroundingRecord]]
) -> None:
    monkeypatch.setattr(shards, "ROW_GROUP_ROWS", 2)
    path = tmp_path / shard_name(0)
    write_shard(path, [row for shard in rows for row in shard], GroundingRecord)
    assert pq.ParquetFile(path).num_row_groups == 3
    for row in read_shard(path, GroundingRecord):
        assert find_record(tmp_path, row.key) == row


def test_unknown_key_is_answered_with_near_ones(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"no row has the key 'bery-2'; keys look like berry-2, .*--keys"):
        find_record(folder, "bery-2")
    with pytest.raises(MissingInputError, match="keys look like apple-1, apple-2, berry-1; list them with --keys"):
        find_record(folder, "@")
    write_shard(tmp_path / "empty" / shard_name(0), [], GroundingRecord)
    with pytest.raises(MissingInputError, match="there are no rows"):
        find_record(tmp_path / "empty", "x")


def test_keys_come_with_captions_in_order(folder: Path, rows: list[list[GroundingRecord]]) -> None:
    assert list(list_keys(folder, Filter())) == [(row.key, row.caption) for shard in rows for row in shard]


def test_row_shows_spans_boxes_and_reasons(rows: list[list[GroundingRecord]]) -> None:
    text = format_record(rows[0][0])
    assert text.splitlines() == [
        "apple-1  20×10  t",
        "“caption of apple-1”",
        "  Dog  [0–3]",
        "    0.950  (1, 2, 3, 4)",
        "    0.250  (1, 2, 4, 4)",
        "  cat  [0–3]  no box: below_min_score",
    ]
    assert "rejected: image_unreadable" in format_record(rows[0][1])


def test_a_row_says_who_found_a_box_and_in_which_pass() -> None:
    boxes = (
        ScoredBox(xyxy=(1, 2, 3, 4), score=0.9, teachers=("a", "b"), agreement=2 / 3, in_pass=1),
        ScoredBox(xyxy=(1, 2, 3, 4), score=0.8, in_pass=2),
        ScoredBox(xyxy=(1, 2, 3, 4), score=0.7),
    )
    dog = Phrase(text="dog", char_spans=((2, 5),), boxes=boxes)
    row = GroundingRecord(key="k", image=ImageRef(), height=9, width=9, caption="a dog", source="web", phrases=(dog,))
    ends = [line.partition(")")[2] for line in format_record(row).splitlines()[3:]]
    assert ends == ["  by a, b (67% agree)  in pass 1", "  in pass 2", ""]
