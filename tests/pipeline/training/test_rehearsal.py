"""The rehearsal of tests/benchmarks: what it takes for the same order of samples."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
STEPS = 6


@pytest.fixture
def rehearsal(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("rehearsal")


def write_logs(folder: Path, resumed: list[int], wrong: int | None = None) -> None:
    lines = {step: f"{step} web {10 * step} {step:016x}\n" for step in range(1, STEPS + 1)}
    (folder / "mixture.txt").write_text("".join(lines.values()), encoding="ascii")
    found = [lines[step].replace("web", "human") if i == wrong else lines[step] for i, step in enumerate(resumed)]
    (folder / "resume.txt").write_text("".join(found), encoding="ascii")


def test_steps_made_again_after_a_kill_are_counted(rehearsal: ModuleType, tmp_path: Path) -> None:
    write_logs(tmp_path, [1, 2, 3, 3, 4, 5, 5, 6])

    assert rehearsal.compare(tmp_path, [0, 2, 4], [3, 5, 6], STEPS) == 2


@pytest.mark.parametrize(
    ("resumed", "wrong"),
    [
        ([1, 2, 3, 3, 4, 5, 5, 6], 3),  # another row in a step that is made again
        ([1, 2, 3, 3, 4, 5, 5, 6], 7),  # and in the last one
        ([1, 2, 3, 4, 5, 5, 6], None),  # went on one step too late
        ([1, 2, 3, 3, 4, 5, 5], None),  # ended too early
        ([1, 2, 3, 3, 4, 5, 5, 6, 6], None),  # and too late
    ],
)
def test_another_order_ends_the_rehearsal(
    rehearsal: ModuleType, tmp_path: Path, resumed: list[int], wrong: int | None
) -> None:
    write_logs(tmp_path, resumed, wrong)

    with pytest.raises(SystemExit):
        rehearsal.compare(tmp_path, [0, 2, 4], [3, 5, 6], STEPS)


def test_raw_files_are_the_same_every_time_and_no_row_comes_twice(rehearsal: ModuleType, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        rehearsal.write_raw(tmp_path / name, 0.0001)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    lines = (tmp_path / "one/raw/web/00000.tsv").read_text(encoding="utf-8").splitlines()

    assert len(files) == 6
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)
    assert len(set(lines)) == len(lines) == 2401
