"""Files appear whole or not at all, and errors name what was to be written."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from glip_model.whole_files import save_picture, whole_file, whole_files


@pytest.fixture
def short_disk() -> Iterator[int]:
    """Let no file become longer than so many bytes, as a disk does that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield 1000
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_room_names_the_file_and_leaves_what_was_there(tmp_path: Path, short_disk: int) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(OSError, match=r"too large: '.*a\.txt'$") as raised, whole_file(path) as aside:
        aside.write_bytes(bytes(2 * short_disk))
    assert raised.value.errno == errno.EFBIG
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    """Not even on two machines that give their processes the same numbers."""
    path = tmp_path / "a.txt"
    with whole_file(path) as first, whole_file(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("mine")
    link = tmp_path / "a.txt"
    link.symlink_to(tmp_path / "outside")
    with whole_file(link) as aside:
        aside.write_text("new")
    assert not link.is_symlink()
    assert (link.read_text(), (tmp_path / "outside").read_text()) == ("new", "mine")


def test_files_of_a_folder_appear_together_the_last_one_last(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    with whole_files(tmp_path, "b") as aside:
        for name in "bac":
            (aside / name).write_text(name)
        assert not (tmp_path / "a").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "other"]


def test_errors_of_rust_are_errors_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device: '.*model'"), whole_files(tmp_path / "model", "b"):
        raise ValueError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert list((tmp_path / "model").iterdir()) == []


def test_pictures_are_saved_by_their_names(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 4))
    for name, kind in (("a.jpg", "JPEG"), ("deep/b.PNG", "PNG")):
        save_picture(picture, tmp_path / name)
        with Image.open(tmp_path / name) as saved:
            assert (saved.format, saved.size) == (kind, (8, 4))
    with pytest.raises(ValueError, match=r"unknown file extension: \.xyz"):
        save_picture(picture, tmp_path / "c.xyz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "deep"]


def test_half_a_picture_is_none(tmp_path: Path, short_disk: int, noise: Callable[[int, int], Image.Image]) -> None:
    with pytest.raises(OSError, match=r"a\.png"):
        save_picture(noise(200, 200), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
