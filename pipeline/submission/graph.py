"""The graph of dvc.yaml with its data in a store: for clusters whose nodes share no folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from dvc.repo import Repo

from pipeline.errors import ConfigError
from pipeline.submission.optional_stages import each_text

_WRITTEN = ("outs", "metrics", "plots")


def put_in_store(graph: Path, store: str) -> None:
    """Let the stages of a dvc.yaml read and write their data and models below a URL; metrics and plots stay files.

    Data and models are outputs that are folders, by their names without a suffix. DVC knows a changed one by what the
    store says of its files, and keeps no copies of any output: its cache would go with the machine.

    Args:
        graph: the file, is written anew.
        store: the URL.

    Raises:
        ConfigError: a folder that is written lies in no other: it cannot be told from words of a command.
    """
    content = yaml.safe_load(graph.read_text(encoding="utf-8"))
    bodies = [stage.get("do", stage) for stage in content["stages"].values()]
    folders = {path for body in bodies for path in _paths(body.get("outs", ())) if not PurePosixPath(path).suffix}
    if alone := sorted(path for path in folders if "/" not in path):
        raise ConfigError(f"{graph}: {', '.join(alone)}: expected outputs in folders, such as data/{alone[0]}")
    tops = "|".join(sorted({re.escape(path.split("/")[0]) for path in folders}))
    pattern, place = re.compile(rf"(?<![\w./-])({tops})/"), rf"{store.rstrip('/')}/\1/"

    def moved(value: Any) -> Any:
        return each_text(value, lambda text: pattern.sub(place, text))

    def written(output: Any) -> Any:
        path, options = next(iter(output.items())) if isinstance(output, Mapping) else (output, {})
        return {moved(path): {**options, "cache": False}}

    content["vars"] = moved(content.get("vars", []))
    for stage, body in zip(content["stages"].values(), bodies, strict=True):
        body |= {name: moved(body[name]) for name in ("cmd", "deps") if name in body}
        body |= {name: [written(each) for each in body[name]] for name in _WRITTEN if name in body}
        if "foreach" in stage:
            stage["foreach"] = moved(stage["foreach"])
    graph.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def stages_in_order(folder: Path, target: str | None) -> list[str]:
    """Return the names of all stages of a graph, or of those that a target needs and itself, each behind what it needs.

    Raises:
        ConfigError: there is no such stage.
    """
    with Repo(str(folder)) as repo:
        stages = {stage.name: stage for stage in repo.index.stages}
        written = {out.fs_path: name for name, stage in stages.items() for out in stage.outs}
        needs = {
            name: {writer for dep in stage.deps for out, writer in written.items() if _overlap(dep.fs_path, out)}
            for name, stage in stages.items()
        }
    order = list(TopologicalSorter({name: sorted(needs[name]) for name in sorted(needs)}).static_order())
    if target is None:
        return order
    wanted = {name for name in order if name == target or name.startswith(f"{target}@")}
    if not wanted:
        raise ConfigError(f"{folder / 'dvc.yaml'}: no stage {target!r}; there are {', '.join(order)}")
    for name in reversed(order):
        wanted |= needs[name] if name in wanted else set()
    return [name for name in order if name in wanted]


def _overlap(one: str, other: str) -> bool:
    """Tell whether two paths are the same, or one lies below the other."""
    short, long = sorted((one.rstrip("/") + "/", other.rstrip("/") + "/"), key=len)
    return long.startswith(short)


def _paths(outputs: Any) -> Iterator[str]:
    for output in outputs:
        yield from output if isinstance(output, Mapping) else [output]
