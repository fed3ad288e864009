"""Stages that a graph of dvc.yaml has on demand, between others that then read what they make."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import ConfigError

_ROOMS = Path(__file__).parents[1]
_ODD = re.compile(r"[\"$`\\\n]")
"""Signs that a shell or DVC would take for something else."""


@dataclass(frozen=True)
class OptionalStage:
    """A stage, and what changes with it."""

    file: Path
    """YAML of the stage alone, as dvc.yaml would have it."""
    before: str
    """Folder that it reads, and other stages no longer."""
    after: str
    """Folder that they read in its place."""
    readers: tuple[str, ...]
    """These stages; what ``vars`` say counts to them."""

    def add(self, graph: Path, **values: str) -> None:
        """Add the stage to a dvc.yaml.

        Args:
            graph: the file, is written anew.
            values: paths or URLs that the stage names as ``${NAME}``.

        Raises:
            ConfigError: it has not the stages that would read what this one makes, or a value cannot be in a command.
        """
        for name, value in values.items():
            if _ODD.search(value):
                raise ConfigError(f"{name}: {value!r} cannot stand in a command; name a place without these signs")
        content = yaml.safe_load(graph.read_text(encoding="utf-8"))
        stages = content["stages"]
        if lacking := [name for name in self.readers if name not in stages]:
            raise ConfigError(f"{graph}: no stage {lacking[0]}, which would read what is in {self.after}")
        pattern = re.compile(rf"(?<![\w./-]){re.escape(self.before)}(?![\w.-])")

        def moved(value: Any) -> Any:
            return each_text(value, lambda text: pattern.sub(self.after, text))

        content["vars"] = moved(content.get("vars", [])) + ([values] if values else [])
        content["stages"] = yaml.safe_load(self.file.read_text(encoding="utf-8")) | {
            name: moved(stage) if name in self.readers else stage for name, stage in stages.items()
        }
        graph.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


CURATE = OptionalStage(
    _ROOMS / "curation/stage.yaml", "data/records/web", "data/curated", readers=("phrases", "pseudo_label")
)
MERGE = OptionalStage(
    _ROOMS / "review/stage.yaml", "data/pseudo_labels", "data/corrected", readers=("train", "train_baseline")
)


def each_text(value: Any, change: Callable[[str], str]) -> Any:
    """Return a value of YAML in which all texts are changed, keys as well."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {each_text(key, change): each_text(each, change) for key, each in value.items()}
    return [each_text(each, change) for each in value] if isinstance(value, list) else value
