"""Figures over shards."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.errors import MissingInputError, ShardError
from pipeline.inspection.figures import by_licence, collect_statistics, format_statistics
from pipeline.inspection.search import Filter, find_record, find_rows, list_keys
from pipeline.store.records import CaptionRecord, GroundingRecord
from pipeline.store.shards import PROVENANCE_KEY, shard_name, write_shard


def test_figures_add_up_over_shards(folder: Path) -> None:
    figures = collect_statistics(folder, 1).to_dict()
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
        "licenses": {},
        "licensed": 0,
        "provenances": 1,
        "defects": {},
    }
    json.dumps(figures)


def test_pictures_are_not_read_for_figures(folder: Path) -> None:
    path = folder / shard_name(0)
    pictures = pq.ParquetFile(path).metadata.row_group(0).column(1)
    assert pictures.path_in_schema == "image.bytes"
    data = bytearray(path.read_bytes())
    start = min(pictures.dictionary_page_offset or pictures.data_page_offset, pictures.data_page_offset)
    data[start : start + pictures.total_compressed_size] = b"\xff" * pictures.total_compressed_size
    path.write_bytes(data)
    assert collect_statistics(folder).rows == 5
    with pytest.raises(ShardError, match="not a readable"):
        find_record(folder, "apple-1")


def test_page_shows_figures_bars_and_provenance(folder: Path) -> None:
    page = format_statistics(collect_statistics(folder), "my labels")
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


def test_labels_of_two_teachers_are_called_mixed(
    folder: Path, rows: list[list[GroundingRecord]], other_provenance: dict[str, str]
) -> None:
    write_shard(folder / shard_name(2), rows[0], GroundingRecord, other_provenance)
    stats = collect_statistics(folder)
    assert stats.provenances == 2
    assert "MIXED: 2 different teachers" in format_statistics(stats, "x")


def test_human_data_have_no_provenance(tmp_path: Path, rows: list[list[GroundingRecord]]) -> None:
    write_shard(tmp_path / shard_name(0), rows[0], GroundingRecord)
    stats = collect_statistics(tmp_path)
    assert (stats.rows, stats.provenances) == (2, 0)
    assert "no provenance: not made by glip pseudo_label or glip label" in format_statistics(stats, "x")


def test_empty_shard_and_single_file(folder: Path, tmp_path: Path) -> None:
    assert collect_statistics(folder / shard_name(1)).rows == 3
    write_shard(tmp_path / "empty" / shard_name(0), [], GroundingRecord)
    stats = collect_statistics(tmp_path / "empty")
    assert (stats.shards, stats.rows, stats.boxes) == (1, 0, 0)
    assert "0 rows, 0 phrases, 0 boxes (0.00 a row)" in format_statistics(stats, "x")


def test_folders_without_grounding_shards_say_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"none: no Parquet shards"):
        collect_statistics(tmp_path / "none")
    write_shard(tmp_path / "human" / "grounding" / shard_name(0), [], GroundingRecord)
    with pytest.raises(MissingInputError, match=r"human: no shards here; look into .*human/grounding$"):
        collect_statistics(tmp_path / "human")
    write_shard(tmp_path / "web" / shard_name(0), [], CaptionRecord)
    with pytest.raises(ShardError, match="holds caption records; expected grounding or detection records"):
        collect_statistics(tmp_path / "web")


def test_broken_shards_are_named(folder: Path, rows: list[list[GroundingRecord]]) -> None:
    path = folder / shard_name(1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    for look in (
        collect_statistics,
        lambda folder: find_record(folder, "berry-1"),
        lambda folder: [*list_keys(folder, Filter())],
        lambda folder: [*find_rows(folder, Filter(phrase="dog"))],
    ):
        with pytest.raises(ShardError, match=r"part-00001\.parquet: not a readable Parquet file"):
            look(folder)
    assert find_record(folder, "apple-1").key == "apple-1"  # found before the broken one is opened


@pytest.mark.parametrize("odd", ["{broken", "[1, 2]", "NaN", '{"teacher": "mine"}', '{"settings": null}', "[" * 99_999])
def test_odd_provenance_is_counted(folder: Path, rows: list[list[GroundingRecord]], odd: str) -> None:
    write_shard(folder / shard_name(1), rows[1], GroundingRecord, {PROVENANCE_KEY: odd})
    stats = collect_statistics(folder)
    assert stats.defects == {"metadata_odd": 1}
    assert stats.provenance["parser"] == "spacy==1"
    assert "metadata_odd           1  shards whose" in format_statistics(stats, "mine")


def test_licences_are_counted_with_what_is_not_known(tmp_path: Path, rows: list[list[GroundingRecord]]) -> None:
    licences = ["CC BY 2.0", "CC BY 2.0", "CC0", "", None]
    found = [replace(row, license=licence) for row, licence in zip(chain(*rows), licences, strict=True)]
    write_shard(tmp_path / shard_name(0), found, GroundingRecord)
    stats = collect_statistics(tmp_path)
    assert (stats.licenses, stats.licensed) == ({"CC BY 2.0": 2, "CC0": 1}, 3)
    assert by_licence(stats) == {"CC BY 2.0": 2, "CC0": 1, "unknown": 2}
    assert by_licence(collect_statistics(tmp_path, 1)) == {"CC BY 2.0": 2, "others": 1, "unknown": 2}
    assert "rows by licence of their picture\n  CC BY 2.0         2" in format_statistics(stats, "labels")
    older = pq.read_table(tmp_path / shard_name(0)).drop_columns(["license"])
    pq.write_table(older, tmp_path / shard_name(0))
    assert collect_statistics(tmp_path).licensed == 0
