"""dvc.yaml says the truth about the stages: commands run, dependencies cover imports, params exist."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

ROOT = Path(__file__).resolve().parent.parent
GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def stage_body(name: str) -> dict[str, Any]:
    stage: dict[str, Any] = GRAPH["stages"][name]
    return stage.get("do", stage)


def modules_of(name: str) -> list[str]:
    """Return the modules that a stage runs: its own, behind the one that may skip it where it is of a round."""
    words = stage_body(name)["cmd"].split()
    assert words[:2] == ["python", "-m"], words
    return [words[2], f"stages.{words[6]}"] if words[2] == "stages.in_round" else [words[2]]


def modules_behind(name: str, import_graph: dict[str, set[str]]) -> set[str]:
    """Return every module of the project that a stage imports, directly or not, and its own."""
    found, waiting = set[str](), set(modules_of(name))
    while waiting:
        found |= waiting
        waiting = set().union(*(import_graph[module] for module in waiting)) - found
    return found


def file_of(module: str) -> Path:
    path = Path(*module.split("."))
    return path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py")


def code_of(name: str) -> list[Path]:
    """Return the files and folders of code that a stage depends on."""
    deps = map(Path, stage_body(name)["deps"])
    return [dep for dep in deps if dep.parts[0] in ("glip_model", "pipeline", "stages")]


def holds(dep: Path, file: Path) -> bool:
    return dep == file or dep in file.parents


@pytest.mark.parametrize("name", sorted(GRAPH["stages"]))
def test_command_answers_help(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", modules_of(name)[-1], "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


@pytest.mark.parametrize("name", sorted(GRAPH["stages"]))
def test_dependencies_cover_the_code_that_runs(name: str, import_graph: dict[str, set[str]]) -> None:
    for module in modules_behind(name, import_graph):
        covered = any(holds(dep, file_of(module)) for dep in code_of(name))
        assert covered, f"{name} runs {module} but no dependency in dvc.yaml covers it"


@pytest.mark.parametrize("name", sorted(GRAPH["stages"]))
def test_dependencies_on_code_exist_and_are_used_once(name: str, import_graph: dict[str, set[str]]) -> None:
    used = {file_of(module) for module in modules_behind(name, import_graph)}
    code = code_of(name)
    assert len(set(code)) == len(code)
    for dep in code:
        assert (ROOT / dep).exists(), f"{name} depends on {dep}, which is not there"
        assert any(holds(dep, file) for file in used), f"{name} depends on {dep} but imports nothing of it"
        twice = [other for other in code if other in dep.parents]
        assert not twice, f"{name} depends on {dep}, which is in {twice[0]} already"


def touches(name: str, path: str) -> bool:
    return any(holds(dep, Path(path)) for dep in code_of(name))


def test_only_prepare_depends_on_readers() -> None:
    readers = [str(path.relative_to(ROOT)) for path in (ROOT / "pipeline/prepare/readers").glob("*.py")]
    assert len(readers) > 10
    for reader in readers:
        assert {name for name in GRAPH["stages"] if touches(name, reader)} == {"prepare"}, reader


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the project with stubs of what its stages write, known to DVC as what they wrote."""
    root = tmp_path_factory.mktemp("project")
    for name in ("glip_model", "pipeline", "stages"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, root)
    Repo.init(str(root), no_scm=True).close()
    settings = f"[core]\n    no_scm = true\n    analytics = false\n    site_cache_dir = {root / '.dvc' / 'site'}\n"
    (root / ".dvc" / "config").write_text(settings, encoding="utf-8")
    with Repo(str(root)) as repo:
        for stage in repo.index.stages:
            for place in [*(out.fs_path for out in stage.outs), *(dep.fs_path for dep in stage.deps)]:
                path = Path(place) if Path(place).suffix else Path(place, "stub")
                path.parent.mkdir(parents=True, exist_ok=True)
                if not Path(place).exists():
                    path.write_text("{}", encoding="utf-8")
        with chdir(root):
            repo.commit(force=True)
    assert not changed_stages(root)
    return root


def changed_stages(root: Path) -> set[str]:
    """Return the names of the stages that DVC would run anew, were there no others."""
    with chdir(root), Repo() as repo:
        return set(repo.status())


@pytest.mark.parametrize(
    ("file", "before", "after", "stages"),
    [
        ("pipeline/prepare/readers/voc.py", "from __future__", "# A comment.\nfrom __future__", {"prepare"}),
        ("pipeline/report/settings.py", "from __future__", "# A comment.\nfrom __future__", {"report"}),
        ("params.yaml", "\n  bootstrap_samples: ", "\n  bootstrap_samples: 1", {"report"}),
        (
            "params.yaml",
            "round_2: {teacher: round_1, pseudo_label: {min_score: 0.42}}",
            "round_2: {teacher: round_1}",
            {"pseudo_label@round_2", "calibrate@round_2", "train@round_2", "evaluate@round_2", "report"},
        ),
    ],
)
def test_dvc_runs_what_a_change_concerns_and_nothing_else(
    file: str, before: str, after: str, stages: set[str], finished_run: Path
) -> None:
    text = (finished_run / file).read_text(encoding="utf-8")
    assert text.count(before) == 1
    (finished_run / file).write_text(text.replace(before, after), encoding="utf-8")
    try:
        assert changed_stages(finished_run) == stages
    finally:
        (finished_run / file).write_text(text, encoding="utf-8")


def keys_of(name: str) -> list[str]:
    """Return what a stage is repeated for."""
    return list(PARAMS["rounds"] if GRAPH["stages"][name]["foreach"] == "${rounds}" else GRAPH["vars"][0]["baselines"])


@pytest.mark.parametrize("name", sorted(GRAPH["stages"]))
def test_params_exist(name: str) -> None:
    for param in stage_body(name)["params"]:
        for key in keys_of(name) if "$" in param else [""]:
            value: Any = PARAMS
            for part in param.replace("${key}", key).split("."):
                assert part in value, f"{name} depends on {param}, which params.yaml does not have"
                value = value[part]
