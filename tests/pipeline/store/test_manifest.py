"""Manifests: shards in a store by the hashes that their ends carry. How DVC uses them: tests/stages/test_submit.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from upath import UPath

from pipeline.store.manifest import describe_shards
from pipeline.store.records import CaptionRecord, ImageRef
from pipeline.store.shards import write_shard


def pairs(number: int, caption: str = "a red cup on a table") -> list[CaptionRecord]:
    image = ImageRef(path="nowhere.jpg")
    return [
        CaptionRecord(key=f"{number}-{i}", image=image, height=8, width=8, caption=caption, source="test")
        for i in range(3)
    ]


def fill(folder: Path | UPath) -> None:
    for number in range(3):
        write_shard(folder / f"part-{number:05d}.parquet", pairs(number), CaptionRecord)


def test_one_changed_shard_changes_one_entry(s3: Any, tmp_path: Path) -> None:
    store = UPath("s3://raw/web")
    fill(store)
    fill(tmp_path)
    before = describe_shards(store)
    assert before == describe_shards(tmp_path)
    assert [entry["rows"] for entry in before] == [3, 3, 3]
    write_shard(store / "part-00001.parquet", pairs(1, "a dog"), CaptionRecord)
    after = describe_shards(store)
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    write_shard(store / "part-00001.parquet", pairs(1), CaptionRecord, {"glip.repeat": "2"})
    assert describe_shards(store)[1]["sha256"] not in (before[1]["sha256"], after[1]["sha256"])
