"""The floors of the project: who may import whom."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Room -> the rooms it may import from. A module belongs to the longest room that its name starts with.
ALLOWED = {
    "glip_model": set(),
    "pipeline.errors": set(),
    "pipeline.plain_json": set(),
    "pipeline.settings": {"pipeline.errors"},
    "pipeline.cli": {"pipeline.errors", "pipeline.settings"},
    "pipeline.ray_session": {"pipeline.errors", "pipeline.settings", "pipeline.cli"},
}
BASE = {
    "pipeline.errors",
    "pipeline.plain_json",
    "pipeline.settings",
    "pipeline.cli",
    "pipeline.ray_session",
    "glip_model",
}
LOWER = {"pipeline.store", "pipeline.phrases"}
UPPER = {
    "pipeline.prepare",
    "pipeline.recaption",
    "pipeline.pseudo_labels",
    "pipeline.training",
    "pipeline.evaluation",
    "pipeline.inspection",
    "pipeline.submission",
    "pipeline.serving",
}
TOP = {
    # What a list of URLs is, and by what a picture is known again, prepare says.
    "pipeline.download": {"pipeline.prepare"},
    "pipeline.curation": {"pipeline.prepare"},
    "pipeline.report": {"pipeline.evaluation", "pipeline.inspection"},
    "pipeline.publishing": {"pipeline.inspection"},
    "pipeline.review": {"pipeline.inspection"},
}
ALLOWED |= {
    "pipeline.store": BASE,
    "pipeline.phrases": BASE | {"pipeline.store"},
    **dict.fromkeys(UPPER, BASE | LOWER),
    **{room: BASE | LOWER | more for room, more in TOP.items()},
    "stages": BASE | LOWER | UPPER | TOP.keys(),
}
FORBIDDEN_OUTSIDE = {"glip_model": {"ray", "dvc", "pyarrow", "spacy", "pycocotools"}}


def source_files() -> list[Path]:
    return sorted(p for room in ("glip_model", "pipeline", "stages") for p in (ROOT / room).rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = sorted(map(module_name, source_files()))


def room_of(module: str) -> str | None:
    rooms = [room for room in ALLOWED if module == room or module.startswith(room + ".")]
    return max(rooms, key=len, default=None)


@pytest.mark.parametrize("module", MODULES)
def test_imports_respect_the_floors(module: str, imports: dict[str, set[str]]) -> None:
    if module == "pipeline":
        return
    room = room_of(module)
    assert room is not None, f"{module} belongs to no room"
    for name in imports[module]:
        target = room_of(name)
        assert name != "pipeline", f"{module} imports the bare package"
        if target is not None and target != room:
            assert target in ALLOWED[room], f"{module} (room {room}) may not import {name}"
        assert name.split(".")[0] not in FORBIDDEN_OUTSIDE.get(room, set()), f"{module} may not import {name}"


def test_no_modules_import_one_another_in_a_circle(import_graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(import_graph).prepare()
    except CycleError as error:
        pytest.fail(f"each of these imports the one before it: {', '.join(error.args[1])}")


@pytest.mark.parametrize("module", MODULES)
def test_ray_stays_in_job_modules(module: str, imports: dict[str, set[str]]) -> None:
    if module.split(".")[-1] not in ("job", "ray_session"):
        assert not any(name.split(".")[0] == "ray" for name in imports[module]), f"{module} imports ray"


def test_only_glip_model_re_exports(imports: dict[str, set[str]]) -> None:
    for path in (ROOT / "pipeline").rglob("__init__.py"):
        assert not imports[module_name(path)], f"{path} re-exports; import from the module instead"


def test_no_drawer_for_everything() -> None:
    names = {path.stem for path in source_files()} | {path.parent.name for path in source_files()}
    assert not names & {"utils", "util", "misc", "helpers", "common"}


def test_tests_have_no_packages() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
