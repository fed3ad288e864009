"""The graph with stages on demand: DVC understands it, orders it, and later stages read what these make."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from pipeline.errors import ConfigError
from pipeline.submission.graph import stages_in_order
from pipeline.submission.optional_stages import CURATE, MERGE, OptionalStage

ROOT = Path(__file__).resolve().parents[3]
STAGES = {"curate": CURATE, "merge": MERGE}


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    for name in ("params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, tmp_path)
    Repo.init(str(tmp_path), no_scm=True).close()
    return Path(shutil.copy(ROOT / "dvc.yaml", tmp_path))


def test_phrases_and_labels_are_of_what_curation_keeps(graph: Path) -> None:
    before = yaml.safe_load(graph.read_text())["stages"]
    CURATE.add(graph)
    after = yaml.safe_load(graph.read_text())["stages"]
    assert set(after) == {*before, "curate"}
    assert "data/curated" in after["phrases"]["deps"]
    assert "--records data/curated " in after["pseudo_label"]["do"]["cmd"]
    for name, stage in after.items():
        assert ("data/records/web" in yaml.safe_dump(stage)) is (name in ("curate", "prepare"))
    changed = [name for name in before if before[name] != after[name]]
    assert changed == ["phrases", "pseudo_label"]


def test_what_learns_from_labels_reads_those_that_people_corrected(graph: Path) -> None:
    CURATE.add(graph)  # both at once
    MERGE.add(graph, reviews="/with blanks/reviews")
    with Repo(str(graph.parent)) as repo:
        stages = {stage.name: stage for stage in repo.index.stages}
        deps = {name: {str(dep) for dep in stage.deps} for name, stage in stages.items()}
    corrected = [name for name in deps if any(dep.startswith("data/corrected") for dep in deps[name])]
    assert sorted(corrected) == ["train@round_1", "train@round_2", "train_baseline@one_round"]
    assert "--pseudo-labels data/corrected/round_2 " in stages["train@round_2"].cmd
    assert "--pseudo-labels data/corrected/round_1 " in stages["train_baseline@one_round"].cmd
    assert ' --reviews "/with blanks/reviews" ' in stages["merge@round_1"].cmd
    assert {"/with blanks/reviews", "data/pseudo_labels/round_1"} <= deps["merge@round_1"]
    order = stages_in_order(graph.parent, None)
    for key in ("round_1", "round_2"):
        chain = [f"{name}@{key}" for name in ("pseudo_label", "merge", "train")]
        assert [name for name in order if name in chain] == chain
    assert not any(name.startswith("merge") for name in stages_in_order(graph.parent, "calibrate@round_1"))


def test_the_project_itself_has_neither(graph: Path) -> None:
    text = graph.read_text()
    assert not any(stage.after in text for stage in STAGES.values())
    assert not STAGES.keys() & yaml.safe_load(text)["stages"].keys()


@pytest.mark.parametrize("name", STAGES)
def test_the_stage_depends_on_what_it_runs(name: str, import_graph: dict[str, set[str]]) -> None:
    stage = yaml.safe_load(STAGES[name].file.read_text())[name]
    body = stage.get("do", stage)
    deps = [Path(dep) for dep in body["deps"] if not dep.startswith(("$", "data", "metrics"))]
    found, waiting = set[str](), {f"stages.{name}", *(["stages.in_round"] if "in_round" in body["cmd"] else [])}
    while waiting:
        found |= waiting
        waiting = set().union(*(import_graph[module] for module in waiting)) - found
    files = set()
    for module in found:
        path = Path(*module.split("."))
        file = path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py")
        assert any(dep in (file, *file.parents) for dep in deps), module
        files.add(file)
    for dep in deps:
        assert any(dep in (file, *file.parents) for file in files), f"{dep} is not imported"


@pytest.mark.parametrize("stage", [CURATE, MERGE])
def test_another_graph_is_refused(stage: OptionalStage, tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {evaluate: {cmd: x, deps: []}}")
    with pytest.raises(ConfigError, match=rf"no stage {stage.readers[0]}, which would read what is in {stage.after}"):
        stage.add(tmp_path / "dvc.yaml")


@pytest.mark.parametrize("place", ['a"b', "$(rm x)", "`x`", "a\nb"])
def test_places_that_a_shell_would_take_for_more_are_refused(place: str, graph: Path) -> None:
    with pytest.raises(ConfigError, match="cannot stand in a command"):
        MERGE.add(graph, reviews=place)
