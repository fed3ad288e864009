"""A stage of a round runs when dev saw a gain in the round before, and else leaves notes that the next rounds read."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cli import run_stage
from stages import in_round, phrases, train_only

ROOT = Path(__file__).resolve().parents[2]
GAIN = {"over": "teacher", "split": "dev", "source": "toys", "part": "novel", "measure": "AP", "value": 1.5}
WRITTEN = ["--out", "models/round_2", "--metrics", "metrics/train/round_2.json", "--log", "plots/train/round_2.csv"]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect what the stage would be run with."""
    seen: list[Any] = []
    monkeypatch.setattr(train_only, "run", seen.append)
    monkeypatch.setattr(phrases, "run", seen.append)
    return seen


def judged(gain: dict[str, Any] | None, name: str = "round_1") -> str:
    """Write the metrics of a round's teacher."""
    place = Path(f"metrics/models/{name}.json")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps({"dev": {}} | ({} if gain is None else {"gain": gain})), encoding="utf-8")
    return str(place)


def run(*words: str, status: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        run_stage(in_round.__doc__, in_round.add_arguments, in_round.run, words)
    assert (ended.value.code or 0) == status


def train(after: str) -> None:
    run("round_2", "--after", after, "train_only", "round_2", "--human", "data/records/human", *WRITTEN)


@pytest.mark.parametrize("gain", [None, GAIN | {"low": 0.2, "high": 2.8, "is_beyond_chance": True}])
def test_after_a_gain_and_after_a_teacher_that_nobody_taught_the_stage_runs(
    started: list[Any], gain: dict[str, Any] | None
) -> None:
    train(judged(gain))
    (arguments,) = started
    assert (arguments.name, arguments.out, arguments.human) == ("round_2", "models/round_2", "data/records/human")
    assert not Path("models").exists()


def test_without_a_gain_notes_stand_in_place_of_outputs_and_skip_what_follows(started: list[Any]) -> None:
    old = Path("models/round_2/model.safetensors")
    old.parent.mkdir(parents=True)
    old.touch()
    train(judged(GAIN | {"low": -0.4, "high": 3.4, "is_beyond_chance": False}))
    reason = "on dev round_1 gained +1.5 novel AP over teacher (95 % interval -0.4 to +3.4), which may be chance"
    assert json.loads(Path("models/round_2/skipped.json").read_text(encoding="utf-8")) == {"skipped": reason}
    assert not old.exists()
    assert json.loads(Path("metrics/train/round_2.json").read_text(encoding="utf-8")) == {"skipped": reason}
    assert list(csv.reader(Path("plots/train/round_2.csv").read_text(encoding="utf-8").splitlines())) == [
        ["skipped"],
        [reason],
    ]
    run("round_2", "--after", "metrics/train/round_2.json", "phrases", "--records", "x", "--out", "models/round_3")
    assert json.loads(Path("models/round_3/skipped.json").read_text(encoding="utf-8")) == {"skipped": reason}
    assert started == []
    train(judged(None))  # once there is a gain the note is gone
    assert not Path("models/round_2/skipped.json").exists()
    assert len(started) == 1


def test_a_round_may_be_run_always(started: list[Any]) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params["rounds"]["round_2"]["always"] = True
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    train(judged(GAIN | {"low": -0.4, "high": 3.4, "is_beyond_chance": False}))
    assert len(started) == 1


def test_rounds_and_metrics_that_are_not_there_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    run("round_9", "--after", judged(None), "train_only", "round_2", status=2)
    assert "rounds has no 'round_9'; rounds: round_1, round_2" in capsys.readouterr().err
    run("round_2", "--after", "metrics/none.json", "train_only", "round_2", status=2)
    assert "metrics/none.json: no such file; run: dvc repro evaluate" in capsys.readouterr().err
