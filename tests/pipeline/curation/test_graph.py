"""The graph with curation: DVC understands it, and what is labelled is what curation keeps."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from pipeline.curation.graph import add_curation
from pipeline.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return Path(shutil.copy(ROOT / "dvc.yaml", tmp_path))


def test_phrases_and_labels_are_of_what_is_kept(graph: Path) -> None:
    before = yaml.safe_load(graph.read_text())["stages"]
    add_curation(graph)
    after = yaml.safe_load(graph.read_text())["stages"]
    assert set(after) == {*before, "curate"}
    assert "data/curated" in after["phrases"]["deps"]
    assert "--records data/curated " in after["pseudo_label"]["do"]["cmd"]
    for name, stage in after.items():
        assert ("data/records/web" in yaml.safe_dump(stage)) is (name in ("curate", "prepare"))
    changed = [name for name in before if before[name] != after[name]]
    assert changed == ["phrases", "pseudo_label"]


def test_the_stage_depends_on_what_it_runs(import_graph: dict[str, set[str]], graph: Path) -> None:
    add_curation(graph)
    deps = [Path(dep) for dep in yaml.safe_load(graph.read_text())["stages"]["curate"]["deps"]]
    found, waiting = set[str](), {"stages.curate"}
    while waiting:
        found |= waiting
        waiting = set().union(*(import_graph[module] for module in waiting)) - found
    for module in found:
        path = Path(*module.split("."))
        file = path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py")
        assert any(dep in (file, *file.parents) for dep in deps), module


def test_another_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {train: {cmd: x, deps: []}}")
    with pytest.raises(ConfigError, match="no stage phrases, which would read the pairs that curation keeps"):
        add_curation(tmp_path / "dvc.yaml")
