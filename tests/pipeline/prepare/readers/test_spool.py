"""Pictures and annotations joined on disk, against a join in memory."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.prepare.raw import DroppedBox
from pipeline.prepare.readers.spool import Spool

ids = st.integers(-3, 3) | st.sampled_from(["a", "b"]) | st.none()


@given(st.lists(ids), st.lists(st.tuples(ids, st.integers())), st.integers(1, 5), st.booleans())
def test_every_picture_comes_once_with_its_annotations(
    pictures: list[Any], annotations: list[tuple[Any, int]], step: int, annotations_first: bool
) -> None:
    spool = Spool()
    if annotations_first:
        spool.add_annotations(annotations)
    spool.add_pictures((key, [key, i]) for i, key in enumerate(pictures))
    if not annotations_first:
        spool.add_annotations(annotations)
    found = [row for start in range(0, len(spool), step) for row in spool.read(start, start + step)]
    expected = []
    for i, key in enumerate(pictures):
        mine = [value for owner, value in annotations if owner == key and owner is not None]
        expected.append(([key, i], mine if pictures.index(key) == i else []))
    assert found == expected
    owners = dict.fromkeys(str(owner) for owner, _ in annotations if owner is not None)
    assert list(spool.annotated()) == list(owners)
    rows = [row for part in spool.parts("file", "x", iter, step) for row in part.rows()]  # type: ignore[arg-type]
    strays = [row for row in rows if isinstance(row, DroppedBox)]
    known = set(pictures) - {None}
    assert len(strays) == (sum(owner not in known for owner, _ in annotations) if pictures else 0)


@pytest.mark.parametrize("key", [7, 7.0, "7"])
@pytest.mark.parametrize("owner", [7, 7.0, "7"])
def test_ids_are_the_same_however_they_are_written(key: Any, owner: Any) -> None:
    spool = Spool()
    spool.add_pictures([(key, "picture")])
    spool.add_annotations([(owner, "box")])
    assert spool.read(0, 1) == [("picture", ["box"])]


@pytest.mark.parametrize("key", [None, True, 7.5, float("nan"), float("inf"), [7], {"id": 7}])
def test_what_is_no_id_joins_nothing(key: Any) -> None:
    spool = Spool()
    spool.add_pictures([(key, "picture"), (key, "again")])
    spool.add_annotations([(key, "box")])
    assert spool.read(0, 2) == [("picture", []), ("again", [])]


def test_ids_that_are_no_text_are_told_apart() -> None:
    spool = Spool()
    spool.add_pictures([("\ud800", 1), ("\ud801", 2), ("a\0b", 3), ("a\0c", 4)])
    spool.add_annotations([("\ud801", "second"), ("a\0c", "fourth")])
    assert spool.read(0, 4) == [(1, []), (2, ["second"]), (3, []), (4, ["fourth"])]


def test_parts_cut_the_pictures_and_carry_their_own_alone() -> None:
    spool = Spool()
    spool.add_pictures((i, i) for i in range(25_000))
    spool.add_annotations((i, i * 2) for i in range(25_000))
    parts = list(spool.parts("file", "version 1", iter, 10_000))  # type: ignore[arg-type]
    assert [part.num_rows for part in parts] == [10_000, 10_000, 5_000]
    assert len({part.identity for part in parts}) == 3
    assert next(parts[2].rows()) == (20_000, [40_000])


def test_the_file_goes_with_the_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spool = Spool()
    spool.add_pictures([(1, 1)])
    assert len(list(tmp_path.iterdir())) == 1
    del spool
    gc.collect()
    assert list(tmp_path.iterdir()) == []
