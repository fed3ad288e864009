"""What is finished stays, what is not what is wanted goes: on disk and in a store."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from upath import UPath

from pipeline.errors import ConfigError, OwnershipError, StorageError
from pipeline.store.provenance import with_fingerprint
from pipeline.store.records import CaptionRecord, ImageRef
from pipeline.store.resume import (
    MANIFEST_FILE,
    OLD_MANIFEST_FILE,
    alone_in,
    find_manifest,
    fingerprint_of,
    input_identity,
    keep_apart,
    keep_finished,
    write_manifest_file,
)
from pipeline.store.shards import PROVENANCE_KEY, rows_sha256, shard_name, write_shard
from pipeline.store.storage import Place, list_files, side_by_side

ROWS = [CaptionRecord(key="0", image=ImageRef(bytes=b"x"), height=1, width=1, caption="a dog", source="s")]
MINE, OTHERS = with_fingerprint({"model": 1}), with_fingerprint({"model": 2})


def write(place: Place, provenance: dict[str, Any]) -> None:
    write_shard(place, ROWS, CaptionRecord, {PROVENANCE_KEY: json.dumps(provenance)})


def names(shards: Sequence[Place]) -> list[str]:
    return [shard.name for shard in shards]


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "pipeline.store.resume"]


def keep(folder: Place, number: int = 4, refused: str = "") -> dict[str, str]:
    """Ask for some shards of MINE; return what stayed."""
    wanted = {folder / shard_name(i): MINE for i in range(number)}
    kept = keep_finished(
        "stage", [folder], wanted, lambda shards: [None if shard.name == refused else shard.name for shard in shards]
    )
    return {place.name: what for place, what in kept.items()}


def test_only_what_is_wanted_and_whole_stays(disk_or_store: Any, caplog: pytest.LogCaptureFixture) -> None:
    folder = disk_or_store
    write(folder / shard_name(0), MINE)
    write(folder / shard_name(1), OTHERS)
    (folder / shard_name(2)).write_bytes((folder / shard_name(0)).read_bytes()[:-30])
    write(folder / shard_name(9), MINE)  # of an earlier run with more shards
    write_shard(folder / shard_name(8), ROWS, CaptionRecord)  # says nothing of itself
    (folder / "notes.txt").write_text("mine")
    (folder / MANIFEST_FILE).write_text("{}")
    with caplog.at_level(logging.INFO):
        assert keep(folder) == {shard_name(0): shard_name(0)}
    assert names(list_files(folder, "*")) == ["notes.txt", shard_name(0)]
    assert told(caplog) == [
        "stage: removed 4 shards: broken, or made of other inputs, settings or code",
        "stage: 1 of 4 shards were finished already",
    ]


def test_a_complete_folder_stays_as_it_is(disk_or_store: Any) -> None:
    for number in range(4):
        write(disk_or_store / shard_name(number), MINE)
    (disk_or_store / MANIFEST_FILE).write_text("{}")
    before = {place.name: place.read_bytes() for place in list_files(disk_or_store, "*")}
    assert set(keep(disk_or_store)) == set(before) - {MANIFEST_FILE}
    assert {place.name: place.read_bytes() for place in list_files(disk_or_store, "*")} == before


def test_pandas_reads_a_folder_with_its_manifest(tmp_path: Path) -> None:
    write(tmp_path / shard_name(0), MINE)
    write_manifest_file(tmp_path, {"rows": 1})
    assert list(pd.read_parquet(tmp_path)["caption"]) == ["a dog"]


def test_a_manifest_of_the_old_name_is_found_until_a_new_one_is_there(disk_or_store: Any) -> None:
    assert find_manifest(disk_or_store) is None
    write(disk_or_store / shard_name(0), MINE)
    (disk_or_store / OLD_MANIFEST_FILE).write_text("{}")
    assert find_manifest(disk_or_store) == disk_or_store / OLD_MANIFEST_FILE
    keep(disk_or_store, number=1)
    assert find_manifest(disk_or_store) == disk_or_store / OLD_MANIFEST_FILE
    write_manifest_file(disk_or_store, {"rows": 1})
    assert names(list_files(disk_or_store, "*")) == [MANIFEST_FILE, shard_name(0)]
    assert find_manifest(disk_or_store) == disk_or_store / MANIFEST_FILE
    (disk_or_store / OLD_MANIFEST_FILE).write_text("{}")
    keep(disk_or_store, number=2)
    assert find_manifest(disk_or_store) is None


def test_what_a_closer_look_refuses_goes(disk_or_store: Any) -> None:
    for number in range(2):
        write(disk_or_store / shard_name(number), MINE)
    assert set(keep(disk_or_store, refused=shard_name(1))) == {shard_name(0)}
    assert names(list_files(disk_or_store, "*")) == [shard_name(0)]


def test_nothing_is_there_yet(disk_or_store: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert keep(disk_or_store / "absent") == {}
    assert told(caplog) == []


def test_half_a_shard_counts_as_nothing_and_goes(tmp_path: Path) -> None:
    write(tmp_path / shard_name(0), MINE)
    (tmp_path / shard_name(0)).rename(tmp_path / f".{shard_name(0)}.4711")  # killed before it was renamed
    (tmp_path / f".{MANIFEST_FILE}.4711").touch()
    assert keep(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_several_folders_are_one_plan(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path / name / shard_name(0), MINE)
    wanted = {tmp_path / name / shard_name(0): MINE for name in ("a", "b")}
    del wanted[tmp_path / "b" / shard_name(0)]
    assert set(keep_finished("stage", [tmp_path / "a", tmp_path / "b"], wanted, list)) == set(wanted)
    assert sorted(path.parent.name for path in tmp_path.rglob("*.parquet")) == ["a", "c"]  # nobody asked about c


def test_a_link_goes_and_what_it_points_to_stays(tmp_path: Path) -> None:
    write(tmp_path / "cache" / "ab", OTHERS)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / shard_name(0)).symlink_to(tmp_path / "cache" / "ab")
    assert keep(tmp_path / "out") == {}
    assert list((tmp_path / "out").iterdir()) == []
    assert (tmp_path / "cache" / "ab").is_file()


def test_broken_inputs_and_outputs_say_nothing_of_themselves(tmp_path: Path) -> None:
    write(tmp_path / "whole", MINE)
    (tmp_path / "broken").write_bytes(b"half")
    places = [tmp_path / "whole", tmp_path / "broken", tmp_path / "absent"]
    assert side_by_side(fingerprint_of, places) == [MINE["fingerprint"], None, None]
    assert side_by_side(input_identity, places) == [rows_sha256(places[0]), None, None]


def test_a_stage_does_not_write_into_what_it_reads(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    for out, records in (
        (tmp_path / "link", tmp_path),
        (tmp_path / "x" / "..", tmp_path),
        (UPath("memory://a/b/"), UPath("memory://a/b")),
    ):
        with pytest.raises(ConfigError, match="let it write to another place"):
            keep_apart(out, tmp_path / "other", records)
    keep_apart(tmp_path / "out", tmp_path, UPath("memory://out"))


def test_one_run_at_a_time_writes_to_a_folder(tmp_path: Path) -> None:
    """The system knows who is at work: a run that was killed keeps nobody out, and nothing is left in the folder."""
    out = tmp_path / "deep" / "out"
    code = "import sys, time\nfrom pathlib import Path\nfrom pipeline.store.resume import alone_in\n"
    code += "with alone_in(Path(sys.argv[1])):\n    print('in', flush=True)\n    time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        (tmp_path / "link").symlink_to(out)
        for place in (out, tmp_path / "link"):
            with pytest.raises(OwnershipError, match="another run is writing there; wait"), alone_in(place):
                pytest.fail("the block must not begin")
        other.kill()
    with alone_in(tmp_path / "link"):
        assert list(out.iterdir()) == []
    with pytest.raises(KeyError), alone_in(tmp_path / "new"):
        raise KeyError
    assert not (tmp_path / "new").exists()


def test_a_folder_that_goes_while_it_is_written_to_is_told(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(StorageError, match="removed or replaced while"), alone_in(out):
        out.rmdir()
    with pytest.raises(StorageError, match="removed or replaced while"), alone_in(out):
        out.rename(tmp_path / "away").with_name("out").mkdir()


def test_nothing_is_written_or_removed_behind_links_of_an_output_folder(tmp_path: Path) -> None:
    mine = tmp_path / "mine" / shard_name(0)
    write(mine, OTHERS)
    (tmp_path / "out" / "dev").mkdir(parents=True)
    (tmp_path / "out" / "dev" / "detection").symlink_to(mine.parent)
    with pytest.raises(ConfigError, match=r"dev/detection: a link to .*mine"), alone_in(tmp_path / "out"):
        pytest.fail("the block must not begin")
    shard = tmp_path / "shards" / shard_name(0)
    shard.parent.mkdir()
    shard.symlink_to(mine)
    assert keep(shard.parent) == {}
    assert not shard.exists()
    assert mine.exists()


def test_a_folder_on_disk_or_in_a_store_is_made(disk_or_store: Place) -> None:
    with alone_in(disk_or_store / "out"):
        write(disk_or_store / "out" / shard_name(0), MINE)
