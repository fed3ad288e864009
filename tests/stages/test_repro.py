"""``glip repro``: the graph with other settings in a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from pipeline.inspection.row_identity import row_fingerprint
from pipeline.review.decisions import Decision, JudgedPhrase
from pipeline.review.store import DecisionStore
from pipeline.settings import load_all
from pipeline.store.records import GroundingRecord, ImageRef, Phrase, ScoredBox
from pipeline.store.shards import read_shard, shard_name, write_shard
from stages import glip, submitted

ROOT = Path(__file__).resolve().parents[2]
OTHER_STYLE = ROOT / "pipeline/training/recipes/worlds/other_style.yaml"


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Collect what would be run of DVC."""
    seen: list[list[str]] = []
    monkeypatch.setattr(submitted, "_call", lambda command, folder: seen.append([*command[3:], str(folder)]))
    return seen


def run(*words: object, status: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        glip.main(["repro", *map(str, words)])
    assert (ended.value.code or 0) == status


def test_the_folder_gets_graph_code_and_settings_in_one_file(tmp_path: Path, called: list[list[str]]) -> None:
    folder = tmp_path / "world"
    run("--params", OTHER_STYLE, "--folder", folder)
    assert called == [["repro", str(folder)]]
    assert load_all(folder / "params.yaml") == load_all(OTHER_STYLE)
    assert "extends" not in yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    assert not (folder / "dvc.lock").exists()  # that of the project is of other settings
    with Repo(str(folder)) as repo:
        assert "train@round_1" in {stage.name for stage in repo.index.stages}
    kept = folder / "models/teacher/model.safetensors"
    kept.parent.mkdir(parents=True)
    kept.touch()
    run("--params", ROOT / "params.yaml", "--folder", folder, "evaluate@round_1")
    assert called[1] == ["repro", "evaluate@round_1", str(folder)]
    assert load_all(folder / "params.yaml") == load_all(ROOT / "params.yaml")
    assert kept.exists()


def test_the_project_itself_and_unknown_stages_are_refused(
    called: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("--folder", ROOT, status=2)
    assert "holds the project itself; name a folder of its own" in capsys.readouterr().err
    run("--folder", tmp_path / "x", "labels", status=2)
    assert "no stage 'labels'" in capsys.readouterr().err
    assert called == []
    assert not (tmp_path / "x").exists()


def test_curation_comes_between_prepare_and_phrases(tmp_path: Path, called: list[list[str]]) -> None:
    noisy = ROOT / "pipeline/training/recipes/curation/noisy.yaml"
    run("--params", noisy, "--folder", tmp_path / "curated", "--curate", "phrases")
    assert called == [["repro", "phrases", str(tmp_path / "curated")]]
    with Repo(str(tmp_path / "curated")) as repo:
        stages = {stage.name: stage for stage in repo.index.stages}
        deps = {dep.def_path for dep in stages["phrases"].deps}
        assert "data/curated" in deps
        assert "data/records/web" in {dep.def_path for dep in stages["curate"].deps}
    run("--params", noisy, "--folder", tmp_path / "noisy")
    with Repo(str(tmp_path / "noisy")) as repo:
        assert "curate" not in {stage.name for stage in repo.index.stages}


def labelled(caption: str = "a dog") -> GroundingRecord:
    boxes = (ScoredBox(xyxy=(1, 2, 20, 20), score=0.5),)
    dog = Phrase(text="dog", char_spans=((2, 5),), boxes=boxes)
    image = ImageRef(path="a.png")
    return GroundingRecord(key="k", image=image, height=30, width=40, caption=caption, source="web", phrases=(dog,))


def test_dvc_merges_reviews_between_labels_and_training(tmp_path: Path, called: list[list[str]], capfd: Any) -> None:
    folder, reviews = tmp_path / "world", tmp_path / "my reviews"
    words = ["--params", ROOT / "params.yaml", "--folder", folder, "--reviews", reviews]
    run(*words, status=2)
    assert "no such store of decisions" in capfd.readouterr().err
    row = labelled()
    phrase = JudgedPhrase(text="dog", spans=((2, 5),), boxes=((2, 2, 22, 20),), verdict="right")
    decision = Decision(
        id="a" * 16, key="k", row=row_fingerprint(row), reviewer="ann", at=datetime.now(UTC), phrases=(phrase,)
    )
    DecisionStore(reviews).add([decision])
    run(*words, "merge@round_1")
    assert called == [["repro", "merge@round_1", str(folder)]]
    write_shard(folder / "data/pseudo_labels/round_1" / shard_name(0), [row], GroundingRecord)
    judged = folder / "metrics/models/teacher.json"
    judged.parent.mkdir(parents=True)
    judged.write_text("{}")
    merge = [*submitted.DVC, "repro", "--single-item", "merge@round_1"]

    def reproduce() -> str:
        done = subprocess.run(
            merge, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "1 of 1 rows reviewed" in reproduce()
    (merged,) = read_shard(folder / "data/corrected/round_1" / shard_name(0), GroundingRecord)
    assert merged.reviewed
    assert [(box.xyxy, box.score) for box in merged.phrases[0].boxes] == [((2, 2, 22, 20), 1.0)]
    assert json.loads((folder / "metrics/merge/round_1.json").read_text())["reviewed"] == 1
    assert "didn't change, skipping" in reproduce()
    DecisionStore(reviews).add([decision.model_copy(update={"id": "b" * 16, "verdict": "withdrawn"})])
    assert "0 of 1 rows reviewed" in reproduce()
    judged.write_text(json.dumps({"skipped": "no gain"}))
    assert "round_1 is skipped: no gain" in reproduce()
    assert (folder / "data/corrected/round_1/skipped.json").exists()


@pytest.mark.parametrize("name", ["noisy", "skewed", "balanced"])
def test_recipes_of_curation_differ_from_the_project_in_data_alone(name: str) -> None:
    found = load_all(ROOT / f"pipeline/training/recipes/curation/{name}.yaml")
    project = load_all(ROOT / "params.yaml")
    changed = {section for section in vars(project) if getattr(found, section) != getattr(project, section)}
    assert changed <= {"prepare", "curate", "phrases"}
    assert "prepare" in changed
