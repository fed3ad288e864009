"""A place belongs to the run that claimed it first, on disk and in a store."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import OwnershipError
from pipeline.store.atomic import create
from pipeline.store.storage import Place
from pipeline.submission.ownership import OWNER_FILE, Owner, claim


def owner(run: str) -> Owner:
    return Owner(run=run, since="2030-01-01T00:00:00Z", sent="0" * 64)


@pytest.fixture
def folder(disk_or_store: Place) -> Any:
    return disk_or_store / "deep/run"


def test_the_first_run_has_it(folder: Any) -> None:
    claim(folder, owner("mine"))
    (folder / "part.txt").write_text("made")
    claim(folder, owner("mine"))
    with pytest.raises(OwnershipError, match=r"run: belongs to the run 'mine' since 2030-01-01T00:00:00Z.*'other'"):
        claim(folder, owner("other"))
    claim(folder, owner("other"), take_over=True)
    assert json.loads((folder / OWNER_FILE).read_bytes())["run"] == "other"
    assert (folder / "part.txt").read_text() == "made"
    with pytest.raises(OwnershipError, match="belongs to the run 'other'"):
        claim(folder, owner("mine"))


def test_what_lies_below_belongs_to_the_run_too(folder: Any) -> None:
    claim(folder, owner("mine"))
    with pytest.raises(OwnershipError, match="belongs to the run 'mine'"):
        claim(folder / "data/labels", owner("other"))
    claim(folder / "data/labels", owner("mine"))


def test_files_of_nobody_are_not_taken_unasked(folder: Any) -> None:
    create(folder / "data/part.txt", b"made")
    with pytest.raises(OwnershipError, match="holds files and no glip-run"):
        claim(folder, owner("mine"))
    claim(folder, owner("mine"), take_over=True)


def test_of_several_that_begin_at_once_one_gets_it(folder: Any) -> None:
    def begins(number: int) -> bool:
        return create(folder / OWNER_FILE, str(number).encode())

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(begins, range(8)))
    assert sum(got) == 1
    assert (folder / OWNER_FILE).read_bytes() == str(got.index(True)).encode()


def test_a_file_that_we_did_not_write_is_told(tmp_path: Path) -> None:
    (tmp_path / OWNER_FILE).write_text("[]")
    with pytest.raises(OwnershipError, match="not written by glip submit"):
        claim(tmp_path, owner("mine"))
