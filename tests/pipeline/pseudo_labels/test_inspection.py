"""Figures over shards, and single rows of them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.data import shards
from pipeline.data.records import CaptionRecord, GroundingRecord, ImageRef, Phrase, ScoredBox
from pipeline.data.shards import PROVENANCE_KEY, read_shard, shard_name, write_shard
from pipeline.errors import MissingInputError, ShardError
from pipeline.pseudo_labels import inspection
from pipeline.pseudo_labels.inspection import (
    collect_statistics,
    find_record,
    format_record,
    format_statistics,
    list_keys,
)


def phrase(text: str, *scores: float, reason: str | None = None) -> Phrase:
    boxes = tuple(ScoredBox(xyxy=(1, 2, 3 + i, 4), score=score) for i, score in enumerate(scores))
    return Phrase(text=text, char_spans=((0, len(text)),), boxes=boxes, reject_reason=reason, is_plural=False)


def record(key: str, *phrases: Phrase, reason: str | None = None) -> GroundingRecord:
    caption = f"caption of {key}"
    image = ImageRef(bytes=key.encode() * 100)
    return GroundingRecord(
        key=key, image=image, height=10, width=20, caption=caption, source="t", phrases=phrases, reject_reason=reason
    )


ROWS = [
    [
        record("apple-1", phrase("Dog", 0.95, 0.25), phrase("cat", reason="below_min_score")),
        record("apple-2", reason="image_unreadable"),
    ],
    [
        record("berry-1", phrase("dog", 1.0), phrase("bird", 0.5)),
        record("berry-2", phrase("cat", reason="lost_to_other_phrase"), reason="no_boxes"),
        record("berry-3", phrase("cat", reason="below_min_score"), reason="no_boxes"),
    ],
]


def provenance(number: int, teacher: str = "teacher") -> dict[str, str]:
    value = {
        "teacher": {"name": teacher, "sha256": "abcdef0123456789"},
        "parser": "spacy==1",
        "settings": {"min_score": 0.2, "nms_threshold": 0.6},
        "input": {"pairs": f"hash {number}"},
        "fingerprint": f"f{number}",
    }
    return {PROVENANCE_KEY: json.dumps(value)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, rows in enumerate(ROWS):
        write_shard(tmp_path / "labels" / shard_name(number), rows, GroundingRecord, provenance(number))
    return tmp_path / "labels"


def test_figures_add_up_over_shards(folder: Path) -> None:
    figures = collect_statistics(folder).to_dict(most_frequent=1)
    assert figures == {
        "shards": 2,
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "rows": 5,
        "phrases": 6,
        "unique_phrases": 2,
        "boxes": 4,
        "score_histogram": [0, 0, 1, 0, 0, 1, 0, 0, 0, 2],
        "most_frequent_phrases": {"dog": 2},
        "row_rejects": {"image_unreadable": 1, "no_boxes": 2},
        "phrase_rejects": {"below_min_score": 2, "lost_to_other_phrase": 1},
        "provenance": {
            "teacher": {"name": "teacher", "sha256": "abcdef0123456789"},
            "parser": "spacy==1",
            "settings": {"min_score": 0.2, "nms_threshold": 0.6},
        },
        "provenances": 1,
    }
    json.dumps(figures)


def test_pictures_are_not_read_for_figures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    read_table = shards.read_table

    def watch(path: Path, columns: list[str] | None = None) -> object:
        asked.extend(pq.read_schema(path).names if columns is None else columns)
        return read_table(path, columns)

    monkeypatch.setattr(inspection, "read_table", watch)
    collect_statistics(folder)
    list(list_keys(folder))
    assert asked
    assert "image" not in asked


def test_page_shows_figures_bars_and_provenance(folder: Path) -> None:
    page = format_statistics(collect_statistics(folder), "my labels", most_frequent=5)
    lines = page.splitlines()
    assert lines[0] == "my labels"
    assert "5 rows, 6 phrases, 4 boxes (0.80 a row)" in page
    assert "teacher teacher (sha256 abcdef012345…)" in page
    assert "min_score 0.2, nms_threshold 0.6" in page
    assert "MIXED" not in page
    bars = {line.split()[0]: line.count("█") for line in lines if "█" in line}
    assert bars["dog"] == 40  # the longest bar of its block
    assert bars["bird"] == 20
    assert bars["0.9–1.0"] == 40
    assert bars["no_boxes"] == 40
    assert bars["lost_to_other_phrase"] == 20
    assert max(map(len, lines)) <= 100


def test_labels_of_two_teachers_are_called_mixed(folder: Path) -> None:
    write_shard(folder / shard_name(2), ROWS[0], GroundingRecord, provenance(2, teacher="other"))
    stats = collect_statistics(folder)
    assert stats.provenances == 2
    assert "MIXED: 2 different teachers" in format_statistics(stats, "x", 5)


def test_human_data_have_no_provenance(tmp_path: Path) -> None:
    write_shard(tmp_path / shard_name(0), ROWS[0], GroundingRecord)
    stats = collect_statistics(tmp_path)
    assert (stats.rows, stats.provenances) == (2, 0)
    assert "no provenance: not made by the pseudo_label stage" in format_statistics(stats, "x", 5)


def test_empty_shard_and_single_file(folder: Path, tmp_path: Path) -> None:
    assert collect_statistics(folder / shard_name(1)).rows == 3
    write_shard(tmp_path / "empty" / shard_name(0), [], GroundingRecord)
    stats = collect_statistics(tmp_path / "empty")
    assert (stats.shards, stats.rows, stats.boxes) == (1, 0, 0)
    assert "0 rows, 0 phrases, 0 boxes (0.00 a row)" in format_statistics(stats, "x", 5)


def test_every_row_is_found_by_its_key_in_any_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ROW_GROUP_ROWS", 2)
    path = tmp_path / shard_name(0)
    write_shard(path, [row for rows in ROWS for row in rows], GroundingRecord)
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


def test_keys_come_with_captions_in_order(folder: Path) -> None:
    assert list(list_keys(folder)) == [(row.key, row.caption) for rows in ROWS for row in rows]


def test_row_shows_spans_boxes_and_reasons() -> None:
    text = format_record(ROWS[0][0])
    assert text.splitlines() == [
        "apple-1  20×10  t",
        "“caption of apple-1”",
        "  Dog  [0–3]",
        "    0.950  (1, 2, 3, 4)",
        "    0.250  (1, 2, 4, 4)",
        "  cat  [0–3]  no box: below_min_score",
    ]
    assert "rejected: image_unreadable" in format_record(ROWS[0][1])


def test_folders_without_grounding_shards_say_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"none: no Parquet shards"):
        collect_statistics(tmp_path / "none")
    write_shard(tmp_path / "human" / "grounding" / shard_name(0), [], GroundingRecord)
    with pytest.raises(MissingInputError, match=r"human: no shards here; look into .*human/grounding$"):
        collect_statistics(tmp_path / "human")
    write_shard(tmp_path / "web" / shard_name(0), [], CaptionRecord)
    with pytest.raises(ShardError, match="holds caption records; expected grounding records"):
        collect_statistics(tmp_path / "web")


def test_broken_shards_are_named(folder: Path) -> None:
    path = folder / shard_name(1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    for look in (
        collect_statistics,
        lambda folder: find_record(folder, "berry-1"),
        lambda folder: [*list_keys(folder)],
    ):
        with pytest.raises(ShardError, match=r"part-00001\.parquet: not a readable Parquet file"):
            look(folder)
    assert find_record(folder, "apple-1").key == "apple-1"  # found before the broken one is opened
    write_shard(path, ROWS[1], GroundingRecord, {PROVENANCE_KEY: "{broken"})
    with pytest.raises(ShardError, match=r"glip\.provenance is no JSON"):
        collect_statistics(folder)
