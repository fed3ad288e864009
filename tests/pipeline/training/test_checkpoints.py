"""Checkpoints: whole or not there, checked when read, never of another training."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest
import torch

from pipeline.training.checkpoints import discard_checkpoints, load_checkpoint, save_checkpoint


def save(folder: Path, *steps: int, fingerprint: str = "mine") -> None:
    for step in steps:
        save_checkpoint(folder, step, fingerprint, {"model": {"w": torch.full((3,), float(step))}, "skipped": 1})


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.iterdir())


def test_newest_comes_back(tmp_path: Path) -> None:
    save(tmp_path, 5, 10)
    state = load_checkpoint(tmp_path, "mine")
    assert state is not None
    assert (state["step"], state["skipped"]) == (10, 1)
    assert torch.equal(state["model"]["w"], torch.full((3,), 10.0))


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "absent", "mine") is None


def test_two_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 8, 9, 10, 11)
    assert steps_in(tmp_path) == [10, 11]


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    save(tmp_path, 99_999_999, 100_000_000)
    state = load_checkpoint(tmp_path, "mine")
    assert state is not None
    assert state["step"] == 100_000_000


def damage(path: Path, how: str) -> None:
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


@pytest.mark.parametrize("how", ["truncated", "empty", "rubbish", "bit"])
def test_damaged_newest_falls_back_to_the_one_before(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 5, 10)
    damage(max(tmp_path.iterdir()), how)
    state = load_checkpoint(tmp_path, "mine")
    assert state is not None
    assert state["step"] == 5
    assert "step-00000010" in caplog.text
    assert "damaged; falling back" in caplog.text


def test_all_damaged_starts_over(tmp_path: Path) -> None:
    save(tmp_path, 5, 10)
    for path in tmp_path.iterdir():
        damage(path, "truncated")
    assert load_checkpoint(tmp_path, "mine") is None


def test_another_training_is_not_continued(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 5, fingerprint="theirs")
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint(tmp_path, "mine") is None
    assert "other settings, data or starting weights; starting from the beginning" in caplog.text


def test_checkpoints_of_an_abandoned_training_do_not_push_out_new_ones(tmp_path: Path) -> None:
    save(tmp_path, 700, 800, fingerprint="theirs")
    save(tmp_path, 100)
    assert steps_in(tmp_path) == [100]
    state = load_checkpoint(tmp_path, "mine")
    assert state is not None
    assert state["step"] == 100


def test_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 5)

    def full_disk(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 10)
    assert [path.name[:13] for path in tmp_path.iterdir()] == ["step-00000005"]


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".step-00000003.4242").write_bytes(b"half")
    save(tmp_path, 5)
    assert [path.name[:13] for path in tmp_path.iterdir()] == ["step-00000005"]


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "step-one.pt").write_bytes(b"not ours")
    (tmp_path / "notes.txt").write_text("hello")
    save(tmp_path, 5, 6, 7)
    assert {"step-one.pt", "notes.txt"} <= {path.name for path in tmp_path.iterdir()}


def test_discarding(tmp_path: Path) -> None:
    save(tmp_path / "c", 5)
    discard_checkpoints(tmp_path / "c")
    discard_checkpoints(tmp_path / "c")  # nothing there is fine
    assert not (tmp_path / "c").exists()
