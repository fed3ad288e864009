"""``glip trade`` and ``glip few_shots``: which models are tuned, what is kept, and what the pages say."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.settings import load_all
from stages import few_shots, finetune, glip, trade

ROOT = Path(__file__).resolve().parents[2]
TUNED = {
    "before": {"AP": 12.8, "other": 31.0},
    "after": {"AP": 37.3, "other": 9.2},
    "seconds": 90,
    "trials": [{"share": 1.0, "own": 35.0, "other": 10.0}, {"share": 0.0, "own": 12.0, "other": 30.0}],
}


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Make a folder with models, and commands that only write what they measure; collect what was run."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    for name in ("teacher", "round_2"):
        Path("models", name).mkdir(parents=True)
        Path("models", name, "model.safetensors").write_text(name, encoding="utf-8")
        Path("models", name, "config.json").write_text("{}", encoding="utf-8")
    seen: list[list[str]] = []

    def run(command: list[str], check: bool) -> Any:
        seen.append(command[2:])
        if "--metrics" in command:
            place = Path(command[command.index("--metrics") + 1])
            value: Any = {"test": {"detection": {"embedded_target": {"all": {"AP": 10.0 * len(seen)}}}}}
        else:
            place, value = Path(command[command.index("--out") + 1], "finetune.json"), TUNED
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(value), encoding="utf-8")
        return SimpleNamespace(returncode=int("broken" in str(place)))

    monkeypatch.setattr(subprocess, "run", run)
    return seen


def run(*words: str, status: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        glip.main([*words])
    assert (ended.value.code or 0) == status


def test_every_way_tunes_every_data_set_once(ran: list[list[str]]) -> None:
    words = ["trade", "--data", "a=pictures", "--data", "b=others", "--methods", "plain", "replay", "--replay", "r"]
    run(*words)
    assert [each[each.index("--out") + 1] for each in ran] == [
        f"trade/{data}/{way}" for data in "ab" for way in ("plain", "replay")
    ]
    assert [each[each.index("--data") + 1] for each in ran] == ["pictures", "pictures", "others", "others"]
    assert "--no-average" in ran[0]
    assert ran[1][ran[1].index("--replay") + 1] == "r"
    table = Path("trade/table.md").read_text(encoding="utf-8").splitlines()
    assert table[2] == "| a | plain | 12.8 | 37.3 | 24.5 | 31.0 | 9.2 | 21.8 | 1.5 |"
    assert len(table) == 6
    ran.clear()
    run(*words)
    assert ran == []
    Path("models/teacher/model.safetensors").write_text("another", encoding="utf-8")
    run(*words)
    assert len(ran) == 4


def test_ways_are_what_glip_finetune_understands() -> None:
    parser = argparse.ArgumentParser()
    finetune.add_arguments(parser)
    for words in trade.METHODS.values():
        parser.parse_args(["--data", "d", "--from", "m", "--out", "o", *words])


def test_cells_are_those_of_the_protocol(ran: list[list[str]]) -> None:
    run("few_shots", "--starts", "teacher=models/teacher", "--ways", "full", "--shots", "1", "0", "--seeds", "3", "30")
    folders = [each[each.index("--out") + 1] for each in ran if each[0] == "stages.train"]
    names = [f"few_shots/{name}/{place}" for name in ("teacher-full", "scratch") for place in ("1/3", "1/30", "all/3")]
    assert folders == [f"{name}/model" for name in names]
    assert [each[0] for each in ran[:3]] == ["stages.prepare", "stages.train", "stages.evaluate"]
    assert ran[1][ran[1].index("--teacher") + 1] == "models/teacher"
    assert "--teacher" not in ran[-2]
    settings = load_all(Path("few_shots/teacher-full/1/30/params.yaml"))
    assert settings.prepare.human[0]["shots"] == settings.prepare.dev[0]["shots"] == 1
    assert settings.prepare.dev[0]["shot_seed"] == 30
    assert "shots" not in load_all(Path("few_shots/scratch/all/3/params.yaml")).prepare.human[0]
    table = Path("few_shots/table.md").read_text(encoding="utf-8").splitlines()
    # AP 30 and 60: a mean of 45, and an interval that goes beyond what there is.
    assert table[2] == "| teacher-full | 1 | 45.0 | 0.0 to 100.0 | 2 |"
    assert table[3] == "| teacher-full | all | 90.0 | – | 1 |"
    ran.clear()
    run("few_shots", "--starts", "teacher=models/teacher", "--ways", "full", "--shots", "1", "0", "--seeds", "3", "30")
    assert ran == []


def test_recipes_say_what_is_tuned() -> None:
    found = {path.stem: load_all(path) for path in few_shots.RECIPES.glob("*.yaml")}
    assert set(found) == {*few_shots.WAYS, few_shots.SCRATCH}
    runs = {name: each.train.runs["tune"] for name, each in found.items()}
    assert {name: each.tuning for name, each in runs.items()} == {
        **{name: name for name in few_shots.WAYS},
        few_shots.SCRATCH: "full",
    }
    assert {name for name, each in runs.items() if each.init == "pretrained"} == {few_shots.SCRATCH}


def test_mistakes_are_told(ran: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (("trade", "--data", "pictures"), "expected NAME=FOLDER"),
        (("trade", "--data", "../x=pictures"), "expected NAME=FOLDER"),
        (("trade", "--data", "broken=pictures"), "glip finetune ended with status 1"),
        (("trade", "--data", "a=b", "--keep", "none"), "nothing to tell what is lost by"),
        (("trade", "--data", "a=b", "--from", "nowhere"), "no such model"),
        (("few_shots", "--starts", "models/teacher"), "expected NAME=MODEL"),
        (("few_shots", "--shots", "-1"), "expected how many pictures"),
    ):
        run(*words, status=2)
        assert message in capsys.readouterr().err


def test_pages_open_and_load_nothing(ran: list[list[str]], browser: Any, tmp_path: Path) -> None:
    run("trade", "--data", "a=pictures", "--methods", "plain", "average", "distil")
    run("few_shots", "--shots", "1", "3", "10", "0")
    complaints: list[str] = []
    for name in ("trade/trade.html", "few_shots/few_shots.html"):
        page = browser.new_page(viewport={"width": 900, "height": 900})
        page.on("console", lambda message: complaints.append(message.text))
        page.on("request", lambda sent: sent.url.startswith("file:") or complaints.append(sent.url))
        page.goto((tmp_path / name).as_uri())
        assert page.locator("figure.plot").count() == 1
        assert page.locator("tbody tr").count() >= 3
        assert page.evaluate("document.documentElement.scrollWidth") <= 900
        page.screenshot(path=str(tmp_path / f"{Path(name).stem}.png"), full_page=True)
        page.close()
    assert complaints == []
