"""dvc.yaml says the truth about the stages: commands run, dependencies cover imports, params exist."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def stage_body(name: str) -> dict[str, Any]:
    stage: dict[str, Any] = GRAPH["stages"][name]
    return stage.get("do", stage)


def module_of(name: str) -> str:
    words = stage_body(name)["cmd"].split()
    assert words[:2] == ["python", "-m"], words
    return str(words[2])


def project_imports(module: str, seen: set[str]) -> set[str]:
    """Every project module that ``module`` imports, directly or not."""
    if module in seen:
        return seen
    base = ROOT.joinpath(*module.split("."))
    path = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
    if not path.is_file():
        return seen
    seen.add(module)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.split(".")[0] in ("glip_model", "pipeline", "stages"):
                project_imports(name, seen)
    return seen


@pytest.mark.parametrize("name", sorted(GRAPH["stages"]))
def test_command_answers_help(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module_of(name), "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


@pytest.mark.parametrize("name", sorted(GRAPH["stages"]))
def test_dependencies_cover_the_code_that_runs(name: str) -> None:
    dependencies = [Path(dep) for dep in stage_body(name)["deps"] if "$" not in dep]
    for module in project_imports(module_of(name), set()):
        path = Path(*module.split("."))
        if path in (Path("pipeline"), Path("stages")):
            continue
        covered = any(path == dep or path.with_suffix(".py") == dep or dep in path.parents for dep in dependencies)
        assert covered, f"{name} runs {module} but no dependency in dvc.yaml covers it"


@pytest.mark.parametrize("name", sorted(GRAPH["stages"]))
def test_dependencies_on_code_exist_and_are_used(name: str) -> None:
    used = {Path(*module.split(".")) for module in project_imports(module_of(name), set())}
    for dep in map(Path, stage_body(name)["deps"]):
        if dep.parts[0] not in ("glip_model", "pipeline", "stages"):
            continue
        assert (ROOT / dep).exists(), f"{name} depends on {dep}, which is not there"
        covers = any(dep in (path, path.with_suffix(".py")) or dep in path.parents for path in used)
        assert covers, f"{name} depends on {dep} but imports nothing of it"


@pytest.mark.parametrize("name", sorted(GRAPH["stages"]))
def test_params_exist(name: str) -> None:
    for param in stage_body(name)["params"]:
        for key in GRAPH["vars"][0]["models"] if "$" in param else [""]:
            value: Any = PARAMS
            for part in param.replace("${key}", key).split("."):
                assert part in value, f"{name} depends on {param}, which params.yaml does not have"
                value = value[part]
