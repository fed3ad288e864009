"""Folders of files on disk and in stores: read whole or not at all, written file by file, a mark last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import MissingInputError, StorageError
from pipeline.store import folders
from pipeline.store.folders import Mirror, local_files, local_folder, sent_folder
from pipeline.store.storage import (
    Place,
    exists,
    folders_below,
    is_folder,
    list_below,
    read_text,
    remove_folder,
    to_place,
)


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    copies = tmp_path_factory.mktemp("copies")
    monkeypatch.setenv("GLIP_COPIES", str(copies))
    return copies


def write(folder: Place, **files: str) -> None:
    with sent_folder(folder, "last") as local:
        for name, text in files.items():
            path = local / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def test_a_folder_comes_back_with_its_name_and_without_folders_in_it(disk_or_store: Place) -> None:
    place = disk_or_store / "teacher"
    write(place, last="weights", config="a", **{"best/config": "b"})
    with local_folder(place) as folder:
        assert folder.name == "teacher"
        assert contents(folder) == {"last": "weights", "config": "a"}
    assert [path.name for path in list_below(place)] == ["config", "config", "last"]
    assert folders_below(place) == [place / "best"]
    assert is_folder(place)
    remove_folder(place)
    assert not is_folder(place)


def test_a_changed_folder_is_copied_anew_and_an_unchanged_one_is_not(s3: Any, home: Path) -> None:
    place = to_place("s3://raw/model")
    for text, copies in (("one", 1), ("one", 1), ("two", 2)):
        write(place, last=text)
        with local_folder(place) as folder:
            assert contents(folder) == {"last": text}
        assert len(list((home / "kept").iterdir())) == copies


def test_no_reader_gets_files_of_two_versions(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place = to_place("s3://raw/model")
    write(place, last="old", config="old")
    found = folders.versions

    def written_meanwhile(folder: Any) -> Any:
        before = found(folder)
        monkeypatch.setattr(folders, "versions", found)
        write(place, last="new", config="new")
        return before

    monkeypatch.setattr(folders, "versions", written_meanwhile)
    with local_folder(place) as folder:
        assert contents(folder) == {"last": "new", "config": "new"}


def test_a_folder_that_never_rests_is_told(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place = to_place("s3://raw/model")
    write(place, last="old")
    found, numbers = folders.versions, iter(range(100))

    def changing(folder: Any) -> Any:
        return {name: (size, str(next(numbers))) for name, (size, _) in found(folder).items()}

    monkeypatch.setattr(folders, "versions", changing)
    with pytest.raises(StorageError, match="model: was written while it was read"), local_folder(place):
        pytest.fail("the block must not begin")


def test_a_folder_that_is_not_there_is_told(s3: Any) -> None:
    with (
        pytest.raises(MissingInputError, match="s3://raw/nothing: no such folder"),
        local_folder(to_place("s3://raw/nothing")),
    ):
        pytest.fail("the block must not begin")


def test_the_mark_is_there_only_with_all_other_files(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place = to_place("s3://raw/model")
    write(place, last="old", config="old")
    sent = folders.upload

    def break_off(source: Path, target: Any) -> None:
        if source.name == "tokenizer":
            raise PermissionError("no more")
        sent(source, target)

    monkeypatch.setattr(folders, "upload", break_off)
    with pytest.raises(StorageError, match="cannot be written"):
        write(place, last="new", config="new", tokenizer="new")
    assert not exists(place / "last")
    assert read_text(place / "config") == "new"
    with pytest.raises(TypeError):
        write(place, last="newer", config=None)  # type: ignore[arg-type]
    assert not exists(place / "last")


def test_a_mirror_sends_what_has_changed_and_brings_what_was_sent(
    disk_or_store: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, sent = disk_or_store / "tracking", []
    real = folders.upload
    monkeypatch.setattr(folders, "upload", lambda source, target: (sent.append(source.name), real(source, target)))
    with Mirror(place) as mirror:
        (mirror.folder / "runs").mkdir()
        (mirror.folder / "runs/a").write_text("1")
        mirror.send()
        (mirror.folder / "b").write_text("2")
        mirror.send()
    assert sent in ([], ["a", "b"])
    with Mirror(place) as mirror:
        mirror.fetch()
        assert (mirror.folder / "runs/a").read_text() == "1"
        mirror.send()
    assert sent in ([], ["a", "b"])
    with local_files([place / "runs/a", place / "b"]) as paths:
        assert [path.read_text() for path in paths] == ["1", "2"]
        assert [path.parent.name for path in paths] == ["runs", "tracking"]
