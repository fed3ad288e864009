"""Names of categories that are no words: what they are recognised by, and how they get other ones."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from pipeline.errors import ConfigError
from pipeline.store.vocabulary import read_as

logger = logging.getLogger(__name__)

NOT_RENAMED: Mapping[str, str] = MappingProxyType({})
TABLES = (".yaml", ".yml", ".json")
"""Suffixes of files that map old names to new ones; JSON is YAML."""
_NUMBERED = re.compile(
    r"(cls|class|cat|category|label|obj|object|id|type|tag|item|[a-z])?[\s_\-.#]*\d[\d.]*", re.IGNORECASE
)
_CONSONANTS = re.compile(r"[b-df-hj-np-tv-xz]{3,}\d*", re.IGNORECASE)
_EMPTY = {
    "object",
    "objects",
    "item",
    "items",
    "thing",
    "things",
    "target",
    "targets",
    "root",
    "none",
    "null",
    "undefined",
}
"""Names that say nothing, such as tools give to what stands above all categories."""
_SHOWN = 5


def read_renames(asked: Sequence[str]) -> dict[str, str]:
    """Return old name to new one, of the command line: ``OLD=NEW``, or a file that maps the ones to the others.

    Raises:
        ConfigError: a word is neither, or one name gets two.
    """
    found: dict[str, str] = {}
    for text in asked:
        pairs = _read_table(Path(text)) if Path(text).suffix.lower() in TABLES and "=" not in text else _pair(text)
        for old, new in pairs.items():
            if found.setdefault(old, new) != new:
                raise ConfigError(f"--rename: {old!r} becomes both {found[old]!r} and {new!r}; say one of them")
    return found


def rename(names: Sequence[str], renamed: Mapping[str, str], must_exist: bool = True) -> list[str]:
    """Return names as they are to be called.

    Raises:
        ConfigError: there is none of those to rename, where it must exist.
    """
    stripped = [name.strip() for name in names]
    unknown = [old for old in renamed if old not in stripped]
    if must_exist and unknown:
        raise ConfigError(f"--rename: no category is called {unknown[0]!r}; there are {', '.join(map(repr, stripped))}")
    return [renamed.get(name, name) for name in stripped]


def is_code(name: str) -> bool:
    """Tell whether a name looks like a code or says nothing: a model that knows words can make nothing of it."""
    reading = read_as(name).replace("_", " ").strip()
    return bool(_NUMBERED.fullmatch(reading) or _CONSONANTS.fullmatch(reading.replace(" ", "")) or reading in _EMPTY)


def warn_of_codes(names: Sequence[str]) -> None:
    """Warn of names that look like codes."""
    codes = [name for name in names if is_code(name)]
    if codes:
        more = f" and {len(codes) - _SHOWN} more" if len(codes) > _SHOWN else ""
        logger.warning(
            "finetune: category names %s%s read like codes or say nothing, and the model knows words: it begins from "
            "nothing with them. Call things as people do: --rename '%s=fire truck', or --rename FILE.yaml",
            ", ".join(map(repr, codes[:_SHOWN])),
            more,
            codes[0],
        )


def _pair(text: str) -> dict[str, str]:
    old, sign, new = text.partition("=")
    if not sign or not old.strip() or not new.strip():
        raise ConfigError(
            f"--rename {text}: expected OLD=NEW, or a file ({', '.join(TABLES)}) that maps the old to new"
        )
    return {old.strip(): new.strip()}


def _read_table(path: Path) -> dict[str, str]:
    try:
        found: Any = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"--rename {path}: cannot be read ({error})") from error
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"--rename {path}: expected a mapping of old names to new ones")
    table = {str(old).strip(): new for old, new in found.items()}  # codes may be numbers
    wrong = [old for old, new in table.items() if not isinstance(new, str) or not new.strip()]
    if wrong:
        raise ConfigError(f"--rename {path}: {wrong[0]!r} has no name to become; expected text")
    return {old: new.strip() for old, new in table.items()}
