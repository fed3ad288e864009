"""``glip ablations``: which stages run, what is kept, and what the table says."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.pseudo_labels.manifest import ShardSummary, write_manifest
from stages import ablations, glip

ROOT = Path(__file__).resolve().parents[2]
FIGURES: dict[str, Any] = {
    "calibrate": {"at_min_score": {"precision_novel": 0.456, "recall_novel": 0.5}},
    "evaluate": {
        "dev": {
            "detection": {"toys": {"novel": {"AP": 30.5}, "base": {"AP": 60.25}}},
            "grounding": {"toys": {"novel": {"R@1": 80.0}, "base": {"R@1": 97.0}}},
        }
    },
}


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Make a folder with a teacher, and stages that only write their metrics; collect what was run."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    for name in ("teacher", "round_1"):
        Path("models", name).mkdir(parents=True)
        Path("models", name, "model.safetensors").write_text(name, encoding="utf-8")
        Path("models", name, "config.json").write_text("{}", encoding="utf-8")
    seen: list[list[str]] = []

    def stage(command: list[str], check: bool) -> Any:
        module, words = command[2].removeprefix("stages."), command[3:]
        seen.append([module, *words])
        place = Path(words[words.index("--metrics") + 1])
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(FIGURES.get(module, {})), encoding="utf-8")
        return SimpleNamespace(returncode=int("broken" in str(place)))

    monkeypatch.setattr(subprocess, "run", stage)
    return seen


def run(*words: str, status: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        glip.main(["ablations", *words])
    assert (ended.value.code or 0) == status


def test_every_recipe_names_one_round_and_what_it_changes() -> None:
    found = [ablations._read(path) for path in ablations._files([])]
    assert {each.round for each in found} == {"round_1", "round_2"}
    assert len({each.what for each in found}) == len({each.settings for each in found}) == len(found) > 10


def test_labels_of_the_run_are_learned_from_where_nothing_changes_them(ran: list[list[str]]) -> None:
    run("base", "no_competition")
    assert [words[0] for words in ran] == [
        *("calibrate", "train_only", "evaluate"),
        *("pseudo_label", "calibrate", "train_only", "evaluate"),
    ]
    train, own = (words for words in ran if words[0] == "train_only")
    assert train[train.index("--pseudo-labels") + 1] == "data/pseudo_labels/round_1"
    assert own[own.index("--pseudo-labels") + 1] == "ablations/no_competition/labels"
    assert "--calibration" not in own
    assert own[own.index("--params") + 1].endswith("recipes/ablations/no_competition.yaml")
    with Path("metrics/ablations.csv").open(newline="", encoding="utf-8") as file:
        base, other = csv.DictReader(file)
    assert (base["name"], base["novel AP"], base["base AP"], base["novel precision"]) == (
        "base",
        "30.5",
        "60.25",
        "45.6",
    )
    assert other["what"] == "Phrases of a caption do not compete for a box"
    assert other["base precision"] == ""


def test_another_number_of_web_pairs_has_records_and_phrases_of_its_own(ran: list[list[str]]) -> None:
    run("web_1500")
    assert [words[0] for words in ran] == [
        *("prepare", "phrases", "pseudo_label", "calibrate", "train_only", "evaluate"),
    ]
    prepare, phrases, labels, calibrate, train, judged = ran
    own = "ablations/web_1500"
    assert prepare[prepare.index("--out") + 1] == f"{own}/records"
    assert phrases[phrases.index("--records") + 1] == f"{own}/records/web"
    assert labels[labels.index("--phrases") + 1] == f"{own}/phrases"
    assert calibrate[calibrate.index("--records") + 1] == f"{own}/records/dev/grounding"
    assert train[train.index("--human") + 1] == f"{own}/records/human"
    assert judged[judged.index("--records") + 1] == f"{own}/records"


def test_the_table_keeps_rows_of_earlier_runs_and_counts_labels(ran: list[list[str]]) -> None:
    shards = Path("data/pseudo_labels/round_1")
    shards.mkdir(parents=True)
    summary = ShardSummary("", 10, 30, 30, {"no_boxes": 3}, {}, None, 1, "")
    write_manifest(shards, {}, [replace(summary, name="a.parquet"), replace(summary, name="b.parquet")])
    run("no_competition")
    run("base")
    with Path("metrics/ablations.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["base", "no_competition"]  # what the others are compared with is first
    assert [rows[0][name] for name in ("web pairs", "labelled pairs", "boxes")] == ["20", "14", "60"]
    assert rows[1]["what"] == "Phrases of a caption do not compete for a box"


def test_what_is_finished_stays_until_settings_or_teacher_change(ran: list[list[str]]) -> None:
    run("weight_precision")
    assert "--calibration" in ran[2]
    ran.clear()
    run("weight_precision")
    assert ran == []
    own = Path("own.yaml")
    text = "extends: params.yaml\n# Mine\nrounds:\n  round_2: {teacher: round_1, pseudo_label: {min_score: 0.3}}\n"
    own.write_text(text, encoding="utf-8")
    run("own.yaml")
    assert [words[0] for words in ran] == ["pseudo_label", "calibrate", "train_only", "evaluate"]
    ran.clear()
    Path("models/round_1/model.safetensors").write_text("another", encoding="utf-8")
    run("own.yaml")
    assert len(ran) == 4


def test_mistakes_are_named(ran: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    run("basis", status=2)
    known = "all_pairs, as_published, average, base"
    assert f"basis: no such file, nor one of the ablations: {known}" in capsys.readouterr().err
    run("params.yaml", status=2)
    assert "params.yaml: rounds has round_1, round_2; expected the one round to run" in capsys.readouterr().err
    Path("broken.yaml").write_text("extends: params.yaml\nrounds: {round_1: {teacher: teacher}}\n", encoding="utf-8")
    run("broken.yaml", status=2)
    assert "broken: stages.calibrate ended with status 1; its output is above" in capsys.readouterr().err
    Path("lost.yaml").write_text("extends: params.yaml\nrounds: {round_7: {teacher: teacher}}\n", encoding="utf-8")
    run("lost.yaml", status=2)
    assert "lost.yaml: train.runs has no 'round_7'" in capsys.readouterr().err
