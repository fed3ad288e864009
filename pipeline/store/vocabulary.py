"""Names to label pictures with: what a teacher is asked for, and what one calls it oneself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from glip_model.prompts import clean_name
from pipeline.errors import ConfigError
from pipeline.store.records import Category

LISTS, TABLES = (".txt", ".names"), (".json", ".yaml", ".yml")
"""Suffixes of files with a name a line, and of those with a list or a mapping."""
MAX_NAME_CHARS = 200


@dataclass(frozen=True)
class Vocabulary:
    """Classes, and the prompts that find each.

    Attributes:
        classes: what boxes are called, in order.
        prompts: what the teacher is asked for, each once.
        class_of: per prompt the place of its class.
        min_scores: per class the least score that its boxes are kept from; empty leaves that to the settings.
    """

    classes: tuple[str, ...]
    prompts: tuple[str, ...]
    class_of: tuple[int, ...]
    min_scores: tuple[float, ...] = ()

    @classmethod
    def of(cls, prompts: Mapping[str, str]) -> Vocabulary:
        """Make one of prompts and the class of each; names that a teacher reads alike are one.

        Raises:
            ConfigError: there are none, one is empty or far too long, or one prompt stands for two classes.
        """
        classes: dict[str, int] = {}
        asked: dict[str, tuple[str, int]] = {}
        for prompt, name in prompts.items():
            for text in (prompt, name):
                if not clean_name(text).strip() or len(text) > MAX_NAME_CHARS or not text.isprintable():
                    raise ConfigError(f"{text[:40]!r} is no name; expected one of 1 to {MAX_NAME_CHARS} characters")
            number = classes.setdefault(name.strip(), len(classes))
            before = asked.setdefault(read_as(prompt), (prompt.strip(), number))
            if before[1] != number:
                others = " and ".join(repr(list(classes)[each]) for each in (before[1], number))
                raise ConfigError(f"{prompt!r} stands for both {others}; a prompt finds one class")
        if not classes:
            raise ConfigError('no names; write what to find: --names "forklift, pallet", or name a file of them')
        return cls(tuple(classes), tuple(text for text, _ in asked.values()), tuple(i for _, i in asked.values()))

    @property
    def categories(self) -> tuple[Category, ...]:
        """The classes as a detection vocabulary, with ids from 1."""
        return tuple(Category(id=number, name=name) for number, name in enumerate(self.classes, 1))

    def with_min_scores(self, by_class: Mapping[str, float], otherwise: float) -> Vocabulary:
        """Return the same with thresholds of some classes; ConfigError where one is no class or no score."""
        for name, score in by_class.items():
            if name not in self.classes:
                raise ConfigError(f"a threshold for {name!r}, which is none of the names: {', '.join(self.classes)}")
            if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
                raise ConfigError(f"the threshold for {name!r} is {score!r}; expected a number from 0 to 1")
        return replace(self, min_scores=tuple(float(by_class.get(name, otherwise)) for name in self.classes))

    def to_dict(self) -> dict[str, Any]:
        """Return what labels depend on, for their provenance."""
        found = {"classes": list(self.classes), "prompts": list(self.prompts), "class_of": list(self.class_of)}
        return found | ({"min_scores": list(self.min_scores)} if self.min_scores else {})


def read_names(text: str) -> Vocabulary:
    """Read names from the command line, or from the file that is named there.

    Args:
        text: names divided by commas; or a file with a name a line (.txt), with a list of names, a mapping of prompts
            to classes, or of classes to lists of prompts (.json, .yaml). Ultralytics' ``data.yaml`` is understood, too.
            Prompts whose class is null are not asked for.

    Raises:
        ConfigError: there are no names, or what is there is none.
    """
    table = read_table_of_names(text)
    try:
        return Vocabulary.of({prompt: name for prompt, name in table.items() if name})
    except ConfigError as error:
        raise ConfigError(f"--names {text}: {error}") from None


def read_thresholds(path: Path) -> dict[str, float]:
    """Read scores by class, as ``glip label --judge`` writes them under ``thresholds``, or alone.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"--thresholds {path}: cannot be read ({error})") from error
    found = found.get("thresholds", found) if isinstance(found, dict) else found
    if not isinstance(found, dict):
        raise ConfigError(f"--thresholds {path}: expected a score by name")
    return found


def _parse(path: Path) -> Any:
    text = path.read_text(encoding="utf-8-sig")
    return json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)


def read_table_of_names(text: str) -> dict[str, str]:
    """Read what ``read_names`` does, as prompts and the class of each; ``""`` is the class of those that have none.

    Raises:
        ConfigError: there are no names, or what is there is none.
    """
    path = Path(text)
    if path.suffix.lower() not in (*LISTS, *TABLES) or "," in text:
        return _unlike(text.split(","))
    try:
        if path.suffix.lower() in TABLES:
            return table_of_names(_parse(path))
        return _unlike(path.read_text(encoding="utf-8-sig").splitlines())
    except OSError as error:
        raise ConfigError(f"--names {text}: no file of names is there ({error})") from error
    except ConfigError as error:
        raise ConfigError(f"--names {text}: {error}") from None
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"--names {text}: cannot be read ({error})") from error


def table_of_names(found: Any) -> dict[str, str]:
    """Return prompts and the class of each, of what stands in a JSON or YAML file or in settings.

    A class may have a list of prompts, which may be empty, or a prompt its class; null is none, ``""`` here.

    Raises:
        ConfigError: it is something else, or one prompt stands for two classes.
    """
    if isinstance(found, dict) and isinstance(found.get("names"), list | dict):  # Ultralytics' data.yaml
        names = found["names"]
        found = list(names.values()) if isinstance(names, dict) else names
    if isinstance(found, list) and all(isinstance(name, str) for name in found):
        return _unlike(found)
    if not isinstance(found, dict):
        raise ConfigError("expected a list of names, or a mapping of prompts to classes")
    table: dict[str, str] = {}
    for key, value in found.items():
        # A list of none: the class is asked for by its own name.
        several = (value or [key]) if isinstance(value, list) else None
        pairs = [(key, "" if value is None else value)] if several is None else [(prompt, key) for prompt in several]
        for prompt, name in pairs:
            if not isinstance(prompt, str) or not isinstance(name, str):
                raise ConfigError(f"{key!r}: {value!r}; expected a prompt and its class, or a class and its prompts")
            if table.setdefault(prompt, name) != name:
                raise ConfigError(
                    f"{prompt!r} stands for both {table[prompt]!r} and {name!r}; a prompt finds one class"
                )
    return table


def _unlike(names: Iterable[str]) -> dict[str, str]:
    """Return names that each stand for themselves: of those that a teacher reads alike the first."""
    first: dict[str, str] = {}
    for name in names:
        if name.strip():
            first.setdefault(read_as(name), name.strip())
    return {name: name for name in first.values()}


def read_as(name: str) -> str:
    """Return a name as teachers read it: names with the same are one."""
    return clean_name(name).lower()
