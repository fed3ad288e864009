"""Files appear whole or not at all, and what a killed writer leaves counts as nothing."""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import call
from pipeline.errors import StorageError
from pipeline.store.atomic import replacing, sweep, write_csv, write_json
from pipeline.store.storage import Place, list_files


def test_write_json_is_whole_sorted_and_leaves_nothing_beside(disk_or_store: Any) -> None:
    path = disk_or_store / "metrics" / "a.json"
    write_json(path, {"b": 1, "a": "é"})
    assert path.read_text(encoding="utf-8") == '{\n  "a": "é",\n  "b": 1\n}\n'
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "é", "b": 1}
    assert [each.name for each in list_files(path.parent, "*")] == ["a.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_is_told_and_nothing_stays_beside(
    disk_or_store: Any, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = disk_or_store / "a.json"
    write_json(place, 1)

    def refuse(path: Path, *_: object, **__: object) -> None:
        path.write_bytes(b"half")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_text", refuse)
    assert call(lambda _: write_json(place, 2), argparse.Namespace()) == 2
    told = capsys.readouterr().err
    assert f"error: {place}: cannot be written ([Errno {number}] {os.strerror(number)}); make room or mend" in told
    assert place.read_text() == "1\n"
    assert [each.name for each in list_files(disk_or_store, "*")] == ["a.json"]


def test_a_folder_that_cannot_be_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = r"file/a\.json: cannot be written .*make room or mend the access"
    with pytest.raises(StorageError, match=message), replacing(tmp_path / "file" / "a.json"):
        pytest.fail("the block must not begin")


def test_a_file_system_that_is_read_only_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(StorageError, match=r"a\.json: cannot be written .*Read-only"):
        write_json(tmp_path / "a.json", 1)
    assert list(tmp_path.iterdir()) == []


def test_what_the_block_cannot_read_is_not_called_unwritable(disk_or_store: Place, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(disk_or_store / "a") as aside:
        aside.write_bytes((tmp_path / "absent").read_bytes())
    assert list_files(disk_or_store, "*") == []


def test_a_killed_writer_leaves_what_was_there_and_the_next_sweeps(tmp_path: Path) -> None:
    place = tmp_path / "part-00000.parquet"
    place.write_text("first")
    code = f"""
import os, signal
from pathlib import Path
from pipeline.store.atomic import replacing
with replacing(Path({str(place)!r})) as aside:
    aside.write_text("second")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert place.read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 2
    assert list_files(tmp_path, "part-*.parquet") == [place]
    mine = (tmp_path / ".part-mine.parquet.txt", tmp_path / ".notes.77")
    for path in mine:
        path.touch()
    sweep(tmp_path, "part-*.parquet")
    assert set(tmp_path.iterdir()) == {place, *mine}


def test_write_csv_makes_its_folder(tmp_path: Path) -> None:
    write_csv(tmp_path / "plots/a.csv", iter([("a", "b"), (1, None)]))
    assert (tmp_path / "plots/a.csv").read_bytes() == b"a,b\r\n1,\r\n"


def test_json_has_no_numbers_that_are_none(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"loss": math.nan, "AP": [1.5, math.inf], "n": 3})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {"loss": None, "AP": [1.5, None], "n": 3}
