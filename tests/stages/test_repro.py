"""``glip repro``: the graph with other settings in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from pipeline.settings import load_all
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


@pytest.mark.parametrize("name", ["noisy", "skewed", "balanced"])
def test_recipes_of_curation_differ_from_the_project_in_data_alone(name: str) -> None:
    found = load_all(ROOT / f"pipeline/training/recipes/curation/{name}.yaml")
    project = load_all(ROOT / "params.yaml")
    changed = {section for section in vars(project) if getattr(found, section) != getattr(project, section)}
    assert changed <= {"prepare", "curate", "phrases"}
    assert "prepare" in changed
