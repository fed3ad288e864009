"""SQL over labels."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, MissingInputError, ShardError
from pipeline.inspection.queries import format_table, query
from pipeline.inspection.reading import read_pseudo_labels
from pipeline.store.records import GroundingRecord, ImageRef
from pipeline.store.shards import shard_name, write_shard


def test_labels_are_a_lazy_table_for_notebooks(folder: Path) -> None:
    labels = read_pseudo_labels(folder)
    assert labels.count_rows() == 5
    table = labels.to_table(columns=["key", "phrases"])
    assert table["key"].to_pylist() == ["apple-1", "apple-2", "berry-1", "berry-2", "berry-3"]
    assert read_pseudo_labels(str(folder / shard_name(1))).count_rows() == 3
    with pytest.raises(MissingInputError, match="no Parquet shards"):
        read_pseudo_labels(folder / "none")


def test_labels_in_a_store_are_a_table_too(folder: Path, s3: object) -> None:
    from pipeline.store.storage import to_place

    for path in folder.iterdir():
        (to_place("s3://raw/labels") / path.name).write_bytes(path.read_bytes())
    assert read_pseudo_labels("s3://raw/labels").to_table() == read_pseudo_labels(folder).to_table()
    assert query(to_place("s3://raw/labels"), "SELECT count(*) AS n FROM boxes").to_pylist() == [{"n": 4}]


def test_tables_of_labels_phrases_and_boxes(folder: Path) -> None:
    boxes = query(folder, "SELECT key, phrase, x1, y2, score FROM boxes ORDER BY key, score DESC").to_pylist()
    assert [(row["key"], row["phrase"]) for row in boxes] == [
        ("apple-1", "Dog"),
        ("apple-1", "Dog"),
        ("berry-1", "dog"),
        ("berry-1", "bird"),
    ]
    assert boxes[0] == {"key": "apple-1", "phrase": "Dog", "x1": 1.0, "y2": 4.0, "score": pytest.approx(0.95)}
    phrases = query(folder, "SELECT phrase, boxes, best, reject_reason FROM phrases WHERE key = 'apple-1'").to_pylist()
    assert phrases[0]["boxes"] == 2
    assert phrases[0]["best"] == pytest.approx(0.95)
    assert phrases[1] == {"phrase": "cat", "boxes": 0, "best": None, "reject_reason": "below_min_score"}
    assert query(folder, "SELECT count(*) AS n FROM labels").to_pylist() == [{"n": 5}]
    json.dumps(boxes)


def test_wrong_queries_name_the_tables(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"--sql: .*nonsense(.|\n)*tables:\nlabels "):
        query(folder, "SELECT * FROM nonsense")


def test_broken_pages_are_an_error_and_no_answer(folder: Path) -> None:
    path = folder / shard_name(0)
    data = bytearray(path.read_bytes())
    data[20:60] = b"\x00" * 40
    path.write_bytes(data)
    with pytest.raises((ConfigError, ShardError)):
        query(folder, "SELECT key, image FROM labels")


def test_text_that_is_none_is_an_error_and_no_answer(tmp_path: Path) -> None:
    path = tmp_path / shard_name(0)
    head = {"height": 9, "width": 9, "source": "web", "caption": "a dog"}
    write_shard(path, [GroundingRecord(key="k", image=ImageRef(path="a"), phrases=(), **head)], GroundingRecord)
    table = pq.read_table(path)
    caption = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff dog"], pa.binary()).buffers())
    place = table.column_names.index("caption")
    pq.write_table(table.set_column(place, "caption", caption), path)
    with pytest.raises(ShardError, match="cannot be shown"):
        query(tmp_path, "SELECT caption FROM labels")


def test_answers_are_laid_out_for_a_terminal() -> None:
    table = pa.table(
        {"phrase": ["dog", "x" * 100, "a\nb"], "score": [0.123456, 1.0, 2.0], "image": [b"abc", None, b""]}
    )
    assert format_table(table, 2).splitlines() == [
        "phrase" + " " * 76 + "score   image",
        "dog" + " " * 79 + "0.1235  <3 bytes>",
        "x" * 79 + "…  1       None",
        "… and 1 more; --limit shows them",
    ]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "COPY (SELECT key FROM labels) TO '{out}'",
        "ATTACH '{out}'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "SELECT * FROM GROUNDING_SCHEMA",
    ],
)
def test_a_query_sees_the_labels_alone(folder: Path, tmp_path: Path, sql: str) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="--sql: "):
        query(folder, sql.format(out=out))
    assert not out.exists()


def test_a_query_touches_files_where_the_user_wants_it(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    query(folder, f"COPY (SELECT key FROM labels) TO '{out}'", is_unsafe=True)
    assert len(out.read_text().splitlines()) == 6
