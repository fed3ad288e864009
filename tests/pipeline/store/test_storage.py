"""Places of shards on disk and in a store: whole files or none, patience with a store that fails for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from pipeline.errors import ConfigError, ShardError, StorageError
from pipeline.store import storage
from pipeline.store.atomic import replacing
from pipeline.store.records import CaptionRecord, ImageRef
from pipeline.store.shards import list_shards, read_metadata, read_shard, rows_sha256, write_shard
from pipeline.store.storage import Place, exists, list_files, patiently, remove, size, to_place

ROWS = [
    CaptionRecord(key=str(i), image=ImageRef(bytes=b"x"), height=1, width=1, caption="a dog", source="s")
    for i in range(3)
]


@pytest.fixture
def folder(disk_or_store: Place) -> Any:
    return disk_or_store


def test_paths_and_urls_become_places(tmp_path: Path) -> None:
    assert to_place("a/b") == Path("a/b")
    assert to_place(f"file://{tmp_path}") == tmp_path
    assert isinstance(to_place("s3://bucket/a"), UPath)
    assert str(to_place("s3://bucket/a") / "b") == "s3://bucket/a/b"
    with pytest.raises(ConfigError, match=r"s3://\*\*\*@bucket: no credentials in URLs"):
        to_place("s3://KEY:SECRET@bucket")


def test_a_shard_comes_back_from_its_place(folder: Any) -> None:
    for name in ("part-00001.parquet", "part-00000.parquet"):
        write_shard(folder / name, ROWS, CaptionRecord, {"a": "b"})
    shards = list_shards(folder)
    assert [shard.name for shard in shards] == ["part-00000.parquet", "part-00001.parquet"]
    assert read_shard(shards[0], CaptionRecord) == ROWS
    assert read_metadata(shards[0])["a"] == "b"
    assert rows_sha256(shards[0]) == rows_sha256(shards[1])
    assert size(shards[0]) > 100
    remove(shards[0])
    remove(shards[0])
    assert not exists(shards[0])
    assert list_files(folder, "part-*.parquet") == [shards[1]]


def test_a_failed_write_leaves_what_was_there_and_nothing_else(folder: Any) -> None:
    place = folder / "a.txt"
    with replacing(place) as aside:
        aside.write_text("first")

    def fail_half_way() -> None:
        with replacing(place) as aside:
            aside.write_text("second")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_half_way()
    assert place.read_text() == "first"
    assert [file.name for file in list_files(folder, "*")] == ["a.txt"]


def test_a_missing_shard_is_told_at_once(folder: Any) -> None:
    start = time.monotonic()
    with pytest.raises(ShardError, match="no such shard"):
        read_shard(folder / "part-00000.parquet", CaptionRecord)
    assert time.monotonic() - start < 10


def test_a_store_that_refuses_us_is_told_at_once(
    s3: Any, s3_denied: Callable[[], AbstractContextManager[None]]
) -> None:
    shard = to_place("s3://raw/part-00000.parquet")
    write_shard(shard, ROWS, CaptionRecord)
    with s3_denied(), pytest.raises(StorageError, match=r"part-00000\.parquet: cannot be written"):
        write_shard(shard, ROWS, CaptionRecord)
    with s3_denied(), pytest.raises(StorageError, match=r"part-00000\.parquet: may not be read"):
        read_metadata(shard)
    with s3_denied(), pytest.raises(StorageError, match=r"part-00000\.parquet: may not be read"):
        read_shard(shard, CaptionRecord)


def test_a_store_that_gives_no_answer_does_not_seem_empty(
    s3: Any, s3_denied: Callable[[], AbstractContextManager[None]]
) -> None:
    folder = to_place("s3://raw")
    write_shard(folder / "part-00000.parquet", ROWS, CaptionRecord)
    shard = list_shards(folder)[0]
    questions: list[Callable[[], object]] = [
        lambda: exists(shard),
        lambda: size(shard),
        lambda: list_files(folder, "*"),
        lambda: remove(shard),
    ]
    for ask in questions:
        with s3_denied(), pytest.raises(StorageError, match=r"s3://raw.*: the store gives no answer"):
            ask()
    assert exists(shard)


@pytest.mark.parametrize("error", [OSError("503 Slow Down"), TimeoutError(), ConnectionError("reset")])
def test_a_store_that_fails_is_asked_again(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FIRST_PAUSE_S", 0.01)
    answers: list[Exception | str] = [error, error, "here"]

    def ask() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert patiently(ask, to_place("s3://raw/a")) == "here"
    answers[:] = [error]
    with pytest.raises(type(error)):  # a disk is asked once
        patiently(ask, Path("/a"))


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(storage, "PATIENCE_S", 0.2)
    with pytest.raises(OSError, match="503"):
        patiently(lambda: (_ for _ in ()).throw(OSError("503")), to_place("s3://raw/a"))


def test_readers_never_see_half_of_a_file(tmp_path: Path) -> None:
    place, seen, is_over = tmp_path / "a", set(), threading.Event()

    def look() -> None:
        while not is_over.is_set():
            if place.exists():
                seen.add(len(place.read_bytes()))

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(20):
        with replacing(place) as aside, aside.open("wb") as file:
            for _ in range(10):
                file.write(b"x" * 1000)
                file.flush()
    is_over.set()
    thread.join()
    assert seen <= {10_000}
