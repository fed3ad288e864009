"""Local copies: filled once, bounded, and cleaned of what killed processes left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, StorageError
from pipeline.store.copies import kept_copy, limit_bytes, scratch


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLIP_COPIES", str(tmp_path / "copies"))
    return tmp_path / "copies"


def write_kilobyte(folder: Path) -> None:
    (folder / "file").write_bytes(b"x" * 1000)


def kept(home: Path) -> int:
    return len(list((home / "kept").iterdir()))


def kill_in_block(block: str) -> None:
    """Run a process that enters a block and is killed in it."""
    code = f"import time\nfrom pipeline.store.copies import kept_copy, scratch\n{block}"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_copy_is_filled_once_also_when_many_ask_at_once(home: Path) -> None:
    filled = []
    together = threading.Barrier(8)

    def read(_: int) -> bytes:
        together.wait()
        with kept_copy("a", 1000, lambda folder: (filled.append(1), write_kilobyte(folder))[1]) as folder:
            return (folder / "file").read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(read, range(8))) == {b"x" * 1000}
    assert len(filled) == 1


def test_the_copies_used_longest_ago_go_and_those_in_use_stay(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIP_COPIES_GB", "0.0000025")  # two of them
    with ExitStack() as stack:
        first = stack.enter_context(kept_copy("a", 1000, write_kilobyte))
        for number, key in enumerate("bc"):
            with kept_copy(key, 1000, write_kilobyte) as folder:
                pass
            os.utime(folder, (number, number))
        with kept_copy("b", 1000, write_kilobyte):
            assert kept(home) <= 3
        assert (first / "file").stat().st_size == 1000
    with kept_copy("d", 1000, write_kilobyte):
        pass
    assert kept(home) == 2
    monkeypatch.setenv("GLIP_COPIES_GB", "0")
    with kept_copy("e", 1000, write_kilobyte) as folder:
        assert (folder / "file").is_file()
    assert kept(home) == 0


def test_a_fill_that_fails_or_is_killed_leaves_nothing_that_counts(home: Path) -> None:
    def fail(folder: Path) -> None:
        write_kilobyte(folder)
        raise OSError("broken off")

    with pytest.raises(OSError, match="broken off"), kept_copy("a", 1000, fail):
        pytest.fail("the block must not begin")
    assert kept(home) == 0
    half = "(folder / 'half').touch(); print('in', flush=True); time.sleep(600)"
    kill_in_block(f"def fill(folder):\n    {half}\nwith kept_copy('a', 1000, fill): pass")
    assert kept(home) == 1
    with kept_copy("a", 1000, write_kilobyte) as folder:
        assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == ["file"]


def test_what_a_killed_process_left_goes_and_what_others_use_stays(home: Path) -> None:
    kill_in_block("with scratch() as folder:\n    (folder / 'x').touch(); print('in', flush=True); time.sleep(600)")
    assert len(list((home / "scratch").iterdir())) == 1
    with scratch() as mine:
        assert list((home / "scratch").iterdir()) == [mine]
        with scratch() as other:
            assert sorted((home / "scratch").iterdir()) == sorted([mine, other])
    assert list((home / "scratch").iterdir()) == []


def test_a_folder_that_is_not_ours_is_refused(home: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    home.symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(StorageError, match=r"copies: is not your folder; name one for copies by GLIP_COPIES"),
        scratch(),
    ):
        pytest.fail("the block must not begin")


@pytest.mark.parametrize("text", ["much", "-1", "inf", "nan"])
def test_a_limit_that_is_no_size_is_told(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIP_COPIES_GB", text)
    with pytest.raises(ConfigError, match=f"GLIP_COPIES_GB={text}: expected a size in GB"):
        limit_bytes()
