"""The graph of dvc.yaml with curation between ``prepare`` and ``phrases``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import ConfigError

STAGE = Path(__file__).with_name("stage.yaml")
BEFORE, AFTER = "data/records/web", "data/curated"
READERS = ("phrases", "pseudo_label")
"""Stages that read what is curated in place of all pairs."""


def add_curation(graph: Path) -> None:
    """Add the stage ``curate`` to a dvc.yaml, and let later stages read what it keeps.

    Args:
        graph: the file, is written anew; one that has the stage stays as it is.

    Raises:
        ConfigError: it has not the stages that would read the pairs.
    """
    content = yaml.safe_load(graph.read_text(encoding="utf-8"))
    stages = content["stages"]
    if lacking := [name for name in READERS if name not in stages]:
        raise ConfigError(f"{graph}: no stage {lacking[0]}, which would read the pairs that curation keeps")
    content["stages"] = yaml.safe_load(STAGE.read_text(encoding="utf-8")) | {
        name: _reading(stage) if name in READERS else stage for name, stage in stages.items()
    }
    graph.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _reading(stage: dict[str, Any]) -> dict[str, Any]:
    """Return a stage that reads the pairs that are kept."""
    if "do" in stage:
        return stage | {"do": _reading(stage["do"])}
    words = [AFTER if word == BEFORE else word for word in stage["cmd"].split()]
    return stage | {"cmd": " ".join(words), "deps": [AFTER if dep == BEFORE else dep for dep in stage["deps"]]}
