"""Checkpoints: whole or not there, checked when read, never of another training, on disk and in a store."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.store.storage import Place, list_files
from pipeline.training.checkpoints import Checkpoints, discard_checkpoints

MINE, THEIRS = "a1" * 32, "b2" * 32


def state(step: int) -> dict[str, Any]:
    return {"model": {"w": torch.full((3,), float(step))}, "skipped": 1}


def save(
    folder: Place, *steps: int, fingerprint: str = MINE, keep_last: int = 2, scores: dict[int, float] | None = None
) -> None:
    with Checkpoints(folder, "seed: 1\n", keep_last) as checkpoints:
        for step in steps:
            checkpoints.save(step, fingerprint, state(step), score=(scores or {}).get(step))


def steps_in(folder: Place) -> list[int]:
    """Return the steps whose three files are there; nothing else is."""
    names = [path.name for path in list_files(folder, "*")]
    assert len(names) == 3 * len({name.split(".")[0] for name in names})
    return sorted(int(name.split("-")[1]) for name in names if name.endswith(".json"))


def loaded_step(folder: Place) -> int | None:
    found = Checkpoints(folder).load(MINE)
    if found is None:
        return None
    assert torch.equal(found["model"]["w"], torch.full((3,), float(found["step"])))
    return int(found["step"])


@pytest.fixture
def folder(disk_or_store: Place) -> Place:
    return disk_or_store / "checkpoints"


def newest(folder: Place, suffix: str) -> Place:
    return max(list_files(folder, f"step-*{suffix}"), key=lambda path: path.name)


def test_newest_comes_back_and_two_are_kept(folder: Place) -> None:
    assert loaded_step(folder) is None
    save(folder, 8, 9, 10, 11)
    assert steps_in(folder) == [10, 11]
    assert loaded_step(folder) == 11
    assert newest(folder, ".yaml").read_text() == "seed: 1\n"
    discard_checkpoints(folder)
    assert not list_files(folder, "*")
    discard_checkpoints(folder)  # nothing there is fine


def test_best_is_kept_besides_the_last(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4, 5, keep_last=1, scores={1: 0.5, 2: 0.7, 3: 0.6, 4: float("nan")})
    assert steps_in(tmp_path) == [2, 5]
    save(tmp_path, 6, keep_last=1)  # a training that was continued knows the best as well
    assert steps_in(tmp_path) == [2, 6]
    save(tmp_path, 7, keep_last=1, scores={7: 0.8})
    assert steps_in(tmp_path) == [7]
    assert json.loads(newest(tmp_path, ".json").read_text())["score"] == 0.8


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    save(tmp_path, 99_999_999, 100_000_000)
    assert loaded_step(tmp_path) == 100_000_000


def damage(path: Place, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "truncated":
        data = data[: len(data) // 2]
    elif how == "empty":
        data = bytearray()
    elif how == "rubbish":
        data = bytearray(random.Random(0).randbytes(500))
    else:  # one bit of a weight, which torch.load would not notice
        at = data.index(torch.full((3,), 10.0).numpy().tobytes())
        data[at + 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("how", "suffix"),
    [("bit", ".pt")] + [(how, suffix) for how in ("truncated", "empty", "rubbish") for suffix in (".pt", ".json")],
)
def test_damaged_newest_falls_back_to_the_one_before(
    tmp_path: Path, how: str, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 5, 10)
    damage(newest(tmp_path, suffix), how)
    assert loaded_step(tmp_path) == 5
    assert "step-00000010" in caplog.text
    assert "damaged; falling back" in caplog.text
    save(tmp_path, 10)
    assert loaded_step(tmp_path) == 10


def test_state_without_a_manifest_is_no_checkpoint_and_its_loss_is_seen(folder: Place) -> None:
    save(folder, 5, 10, 15)
    newest(folder, ".json").unlink()
    assert loaded_step(folder) == 10
    newest_complete = next(path for path in list_files(folder, "*.pt") if "10" in path.name)
    newest_complete.unlink()
    assert loaded_step(folder) is None


def test_files_that_hold_code_are_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "owned"),)

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, MINE, state(5))
        checkpoints.save(10, MINE, {"evil": Evil()})
    assert steps_in(tmp_path) == [5, 10]
    assert loaded_step(tmp_path) == 5
    assert not (tmp_path / "owned").exists()


def test_another_training_is_not_continued(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 5, fingerprint=THEIRS)
    with caplog.at_level(logging.WARNING):
        assert loaded_step(tmp_path) is None
    assert "other settings, data or starting weights; starting from the beginning" in caplog.text


def test_checkpoints_of_an_abandoned_training_do_not_push_out_new_ones(tmp_path: Path) -> None:
    save(tmp_path, 700, 800, fingerprint=THEIRS)
    save(tmp_path, 100)
    assert steps_in(tmp_path) == [100]
    save(tmp_path, 50)
    assert steps_in(tmp_path) == [50]


def test_state_may_change_while_it_is_written_and_one_write_waits_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, may_write, writing = torch.save, threading.Event(), []

    def slow(*args: Any) -> None:
        assert not writing
        writing.append(args)
        assert may_write.wait(10)
        original(*args)
        writing.pop()

    monkeypatch.setattr(torch, "save", slow)
    changing = state(5)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, MINE, changing)  # returns before anything is written
        changing["model"]["w"] += 1
        threading.Timer(0.1, may_write.set).start()
        checkpoints.save(10, MINE, state(10))
        assert (tmp_path / f"step-00000005-{MINE[:16]}.json").exists()
    assert steps_in(tmp_path) == [5, 10]
    newest(tmp_path, ".json").unlink()
    assert loaded_step(tmp_path) == 5


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for one checkpoint of a megabyte, not for two."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting needs rights that are missing here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk_is_a_warning_and_leaves_nothing_behind(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    megabyte = {"model": {"w": torch.zeros(250_000)}}
    with Checkpoints(small_disk) as checkpoints:
        checkpoints.save(5, MINE, megabyte)
        checkpoints.save(10, MINE, megabyte)
        checkpoints.wait()
        assert f"{small_disk}: the checkpoint of step 10 could not be written" in caplog.text
        assert "training goes on" in caplog.text
        assert steps_in(small_disk) == [5]
        checkpoints.save(15, MINE, state(15))  # which there is room for
    assert steps_in(small_disk) == [5, 15]
    found = Checkpoints(small_disk).load(MINE, step=5)
    assert found is not None
    assert found["model"]["w"].numel() == 250_000


def test_write_that_fails_is_a_warning_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 5)

    def full_disk(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    save(tmp_path, 10)
    assert "step 10 could not be written ([Errno 28] No space left on device)" in caplog.text
    assert steps_in(tmp_path) == [5]


def test_mistake_in_the_writer_is_not_swallowed(tmp_path: Path) -> None:
    with pytest.raises(AttributeError), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, MINE, {"local": lambda: None})


def test_what_a_killed_writer_left_is_removed_and_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / f".step-00000003-{MINE[:16]}.pt.4242").write_bytes(b"half")
    (tmp_path / f"step-00000003-{MINE[:16]}.pt").write_bytes(b"no manifest")
    (tmp_path / "step-one.pt").write_bytes(b"not ours")
    (tmp_path / "notes.txt").write_text("hello")
    save(tmp_path, 5, 6, 7)
    discard_checkpoints(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"step-one.pt", "notes.txt"}
