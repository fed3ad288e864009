"""Row groups: indexed from the ends of shards, read one at a time, a few kept."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ShardError
from pipeline.store.records import CaptionRecord, ImageRef
from pipeline.store.row_groups import Recent, RowGroups
from pipeline.store.shards import REPEAT_KEY, ROW_GROUP_ROWS, list_shards, shard_name, write_shard

ROWS = (ROW_GROUP_ROWS + 10, 0, 30)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write shards of two groups, of none, and of one that comes twice."""
    for number, count in enumerate(ROWS):
        rows = [
            CaptionRecord(key=f"{number}-{i}", image=ImageRef(path="p"), height=1, width=1, caption="c", source="s")
            for i in range(count)
        ]
        write_shard(tmp_path / shard_name(number), rows, CaptionRecord, {REPEAT_KEY: "2"} if number == 2 else None)
    return tmp_path


def test_rows_are_found_where_they_stand(folder: Path) -> None:
    groups = RowGroups(list_shards(folder), ["key"])
    assert len(groups) == 4
    assert groups.rows.tolist() == [ROW_GROUP_ROWS, 10, 30, 30]
    assert groups.shard_of.tolist() == [0, 0, 2, 3]
    keys = []
    for row in range(int(groups.rows.sum())):
        group, place = groups.locate(row)
        if place == 0:
            table = groups.read(group)
        keys.append(table["key"][place].as_py())
    assert keys == [f"0-{i}" for i in range(ROWS[0])] + [f"2-{i}" for i in range(30)] * 2
    assert table.column_names == ["key"]
    assert groups.shard(3) == folder / shard_name(2)


def test_groups_are_read_in_a_store_and_in_another_process(folder: Path, s3: Any) -> None:
    from upath import UPath

    s3.put(str(folder), "raw/records", recursive=True)
    remote = RowGroups(list_shards(UPath("s3://raw/records")), ["key", "caption"])
    assert remote.digest == RowGroups(list_shards(folder), ["key"]).digest
    assert len(remote.read(1)) == 10
    assert pickle.loads(pickle.dumps(remote)).read(3)["key"][29].as_py() == "2-29"


def test_digest_changes_with_a_row_and_with_a_repeat(folder: Path) -> None:
    def digest() -> str:
        return RowGroups(list_shards(folder), ["key"]).digest

    digests = [digest()]
    record = CaptionRecord(key="k", image=ImageRef(path="p"), height=1, width=1, caption="c", source="s")
    for metadata in (None, {REPEAT_KEY: "3"}):
        write_shard(folder / shard_name(1), [record], CaptionRecord, metadata)
        digests.append(digest())
    assert len(set(digests)) == 3


def test_broken_shards_are_errors_that_name_them(folder: Path) -> None:
    with pytest.raises(ShardError, match=r"part-00000.parquet: no column 'phrases'"):
        RowGroups(list_shards(folder), ["phrases"])
    path = folder / shard_name(2)
    whole = path.read_bytes()
    groups = RowGroups(list_shards(folder), ["key"])
    path.write_bytes(whole[:4] + b"\xff" * 200 + whole[204:])
    with pytest.raises(ShardError, match=r"part-00002.parquet: not a readable Parquet file"):
        groups.read(2)
    path.write_bytes(whole[:100])
    with pytest.raises(ShardError, match=r"part-00002.parquet: not a readable Parquet file"):
        RowGroups(list_shards(folder), ["key"])


def test_what_was_asked_for_last_is_kept() -> None:
    asked: list[int] = []
    recent = Recent[int, int](lambda number: asked.append(number) or number**2, 2)
    assert [recent[number] for number in (1, 2, 1, 3, 1, 2)] == [1, 4, 1, 9, 1, 4]
    assert asked == [1, 2, 3, 2]
    assert len(recent) == 2
