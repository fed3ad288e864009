"""Settings: params files are read, laid over one another and checked here; what they may say stands beside the rooms.

A section is a frozen dataclass under ``@section`` in the module ``settings`` of the room that owns it. Values stand in
params.yaml. Settings that a section names as ``ADDED`` may be missing: files from before they were added lack them, and
the project's file has their values. Unknown, missing and mistyped settings and values out of range are ConfigErrors
that name the setting; a misspelt one gets a suggestion.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import json
import operator
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import pydantic.dataclasses
import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_json

from pipeline.errors import ConfigError, MissingInputError

SECTIONS = {
    "download": "pipeline.download.settings:DownloadConfig",
    "prepare": "pipeline.prepare.settings:PrepareConfig",
    "curate": "pipeline.curation.settings:CurateConfig",
    "model": "pipeline.training.settings:ModelConfig",
    "train": "pipeline.training.settings:TrainConfig",
    "recaption": "pipeline.recaption.settings:RecaptionConfig",
    "phrases": "pipeline.phrases.settings:PhrasesConfig",
    "pseudo_label": "pipeline.pseudo_labels.settings:PseudoLabelConfig",
    "evaluate": "pipeline.evaluation.settings:EvaluateConfig",
    "report": "pipeline.report.settings:ReportConfig",
}
"""Sections of a params file, by name: where their classes are."""
PROJECT_PARAMS = Path(__file__).with_name("params.yaml")
"""The project's params.yaml, as it travels with the package."""
_ROUND = "pipeline.pseudo_labels.settings:RoundConfig"
"""Class of what ``rounds`` maps names to."""
_EXTENDS = "extends"
"""Key of a params file: the path, from its own folder, of the file that it says the differences to."""
_RULES = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)
_IMAGE_ROOTS = (
    "Folders and URLs below which pictures may lie that records or raw files name, besides the folder of the shard or "
    "the source itself; relative ones start in the working folder, https:// stands for all public hosts."
)
EXPECTED = "expected"
"""Type of pydantic's errors that say in their context, under this name, what was expected."""
_ROUNDS = "Rounds of self-training, by name, in their order: in each a teacher labels and a student learns from it."
T = TypeVar("T")


Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


@typing.dataclass_transform(kw_only_default=True, frozen_default=True)
def section(cls: type[T]) -> type[T]:
    """Make a frozen dataclass with keywords alone, which checks what it is made of: ConfigError on what is wrong."""
    made: Any = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=_RULES)(cls)
    initialise = made.__init__

    @functools.wraps(initialise)
    def checked(self: Any, **values: Any) -> None:
        try:
            initialise(self, **values)
        except ValidationError as error:
            raise ConfigError(_explain(error, made, "")) from None

    made.__init__ = checked
    return cast(type[T], made)


def load(path: Path, kind: type[T]) -> T:
    """Read a params file as ``load_all`` does, and return one section or some settings of it.

    Args:
        path: the file.
        kind: the class of a section, or one whose fields are sections and other settings of the file.

    Raises:
        MissingInputError, ConfigError: as ``load_all``.
    """
    settings = load_all(path)
    parts: dict[str, Any] = {each.name: getattr(settings, each.name) for each in dataclasses.fields(settings)}
    whole = [part for part in parts.values() if isinstance(part, kind)]
    wanted: Any = kind
    return whole[0] if whole else wanted(**{each.name: parts[each.name] for each in dataclasses.fields(wanted)})


def load_all(path: Path) -> Any:
    """Read and check params.yaml, or a file that ``extends`` it and says only what differs.

    Sections are merged setting by setting. What is no section (a list, ``model.overrides``, ``train.runs``, a mixture)
    replaces what stood there as a whole.

    Returns:
        A dataclass with ``seed``, ``image_roots``, ``rounds`` and one field for every section.

    Raises:
        MissingInputError: there is no such file.
        ConfigError: it is not YAML, a setting is unknown, missing, of the wrong type or out of range, or files extend
            one another in a circle or one that is not there.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such params file; pass --params FILE")
    values: Any = {}
    for file, layer in reversed(_layers(path)):
        try:
            values = _extend(_file_class(), values, layer, "")
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from None
    _fill(values, _file_class())
    try:
        return parse(_file_class(), values, "")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def to_yaml(settings: Any) -> str:
    """Write a section, or several, as a params file has them."""
    values = json.loads(json.dumps(dataclasses.asdict(settings)))  # YAML has no tuples
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def extended_files(path: Path) -> list[Path]:
    """Return a params file and those that it extends, the last of which extends none; raises as ``load_all``."""
    return [file for file, _ in _layers(path)]


def parse(kind: type[T], values: Any, where: str) -> T:
    """Make a section of what a params file says; ``where`` is its dotted name for messages, ConfigErrors."""
    # By way of JSON, whose lists are tuples where tuples are wanted; all else is as strict as in Python.
    try:
        text = to_json(values, inf_nan_mode="constants", fallback=str)
    except PydanticSerializationError as error:  # half of a surrogate pair, an anchor inside of what it names
        raise ConfigError(f"{where or 'the file'} is not what YAML can say in JSON: {error}") from None
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        raise ConfigError(_explain(error, kind, where)) from None


def parse_options(hints: Mapping[str, Any], defaults: Mapping[str, Any], values: Any, where: str) -> dict[str, Any]:
    """Check a mapping of settings against types.

    Args:
        hints: setting to type, as in sections.
        defaults: settings that may be left out, with what they are then.
        values: what params.yaml says.
        where: dotted name for messages.

    Raises:
        ConfigError: a setting is unknown, missing or mistyped.
    """
    options = parse(_make("Options", hints, dict.fromkeys(defaults)), values, where)
    return {name: getattr(options, name) if name in values else defaults[name] for name in hints}


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of params files, for editors: one that extends none must have all but what was added."""
    schema = TypeAdapter(_file_class()).json_schema()
    demanded = _demanded(_file_class(), schema["$defs"] | {_file_class().__name__: schema})
    schema["properties"][_EXTENDS] = {"type": "string", "description": "The file that this one differs from."}
    return schema | {"if": {"not": {"required": [_EXTENDS]}}, "then": demanded}


def _demanded(kind: Any, schemas: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Take what a section and those inside must have out of their schemas, and return it as one."""
    inside = {name: _demanded(each, schemas) for name, each in _sections_of(kind)}
    required = [name for name in schemas[kind.__name__].pop("required") if name not in _added(kind)]
    return {"required": required, "properties": inside}


@functools.cache
def _file_class() -> Any:
    """Return the class of a whole params file: all sections, whoever asks, so that no mistake waits for hours."""
    # By name, not by imports: a stage depends on the sections that it names itself, the others decide nothing of it.
    # As plain calls: a checker of types knows no class that is found by its name.
    annotated, mapping = cast(Any, Annotated), cast(Any, Mapping)
    hints: dict[str, Any] = {
        "seed": Annotated[int, Field(description="Where all random choices start.")],
        "image_roots": Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(description=_IMAGE_ROOTS)],
        "rounds": annotated[mapping[str, _class_at(_ROUND)], Field(description=_ROUNDS)],
    }
    hints |= {name: _class_at(place) for name, place in SECTIONS.items()}
    added = ("image_roots", "rounds", "download", "curate", "recaption")
    return _make("Settings", hints, {"__doc__": "A params file.", "ADDED": added})


def _class_at(place: str) -> Any:
    module, _, cls = place.partition(":")
    return getattr(importlib.import_module(module), cls)


def _make(name: str, hints: Mapping[str, Any], attributes: Mapping[str, Any]) -> Any:
    return section(type(name, (), {"__annotations__": dict(hints), **attributes}))


def _layers(path: Path) -> list[tuple[Path, Any]]:
    """Read a params file and, following ``extends``, those beneath it."""
    layers: list[tuple[Path, Any]] = []
    while True:
        if any(path.resolve() == file.resolve() for file, _ in layers):
            raise ConfigError(f"{layers[-1][0]}: extends {path}, which extends it in turn")
        if not path.is_file():
            raise ConfigError(f"{layers[-1][0]}: extends {path}, which is not there")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: not readable as YAML: {error}") from error
        below = values.pop(_EXTENDS, None) if isinstance(values, dict) else None
        layers.append((path, values))
        if below is None:
            return layers
        if not isinstance(below, str):
            raise ConfigError(f"{path}: {_EXTENDS} is {below!r}; expected the path of a params file")
        path = path.parent / below


def _fill(values: dict[str, Any], kind: Any, *steps: str) -> None:
    """Add what an older file lacks of the settings that were added later, as the project's file has it."""
    lacking = [name for name in _added(kind) if name not in values]
    if lacking:
        (_, project), *_ = _layers(PROJECT_PARAMS)
        known = functools.reduce(operator.getitem, steps, project)
        values.update((name, known[name]) for name in lacking)
    for name, each in _sections_of(kind):
        if name in values:
            _fill(values[name], each, *steps, name)


def _added(kind: Any) -> tuple[str, ...]:
    return getattr(kind, "ADDED", ())


def _sections_of(kind: Any) -> list[tuple[str, Any]]:
    return [(name, hint) for name, hint in typing.get_type_hints(kind).items() if _is_section(hint)]


def _extend(kind: Any, base: Mapping[str, Any], layer: Any, where: str) -> dict[str, Any]:
    """Lay the settings of a file over those of a section beneath; ConfigError on one that is unknown."""
    hints = typing.get_type_hints(kind)
    if not isinstance(layer, Mapping):
        raise ConfigError(f"{where or 'the file'} is {layer!r}; expected a mapping of settings")
    merged = dict(base)
    for name, value in layer.items():
        if name not in hints:
            raise ConfigError(_unknown(name, hints, where))
        inner = _dotted(where, (name,))
        merged[name] = _extend(hints[name], merged.get(name, {}), value, inner) if _is_section(hints[name]) else value
    return merged


def _is_section(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint)


def _unknown(name: Any, known: Iterable[str], where: str) -> str:
    """Return what is said of a name that is no setting."""
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"settings here: {', '.join(known)}"
    return f"{_dotted(where, (name,))} is not a setting; {hint}"


_KINDS = {
    "bool_type": "bool",
    "dataclass_type": "a mapping of settings",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "float_type": "float",
    "int_type": "int",
    "string_type": "str",
    "tuple_type": "a list",
}
"""What pydantic's types of errors expected, in the words of params files."""


def _explain(error: ValidationError, kind: Any, where: str) -> str:
    """Return what is said of the first mistake; of a misspelt name, which is missing too, that it is unknown."""
    order = ("unexpected_keyword_argument", "missing")
    mistake = min(error.errors(), key=lambda each: order.index(each["type"]) if each["type"] in order else len(order))
    name, found = _dotted(where, mistake["loc"]), mistake["input"]
    match mistake["type"]:
        case "unexpected_keyword_argument":
            *above, last = mistake["loc"]
            return _unknown(last, typing.get_type_hints(_kind_at(kind, above)), _dotted(where, above))
        case "missing":
            return f"{name} is missing; add it to params.yaml"
        case "value_error":  # a rule of a section
            return f"{name}{'.' if name else ''}{mistake['ctx']['error']}"
        case "literal_error":
            expected = f"one of {mistake['ctx']['expected'].replace(' or ', ', ')}".replace("'", "")
        case "greater_than_equal" | "less_than_equal":
            expected = _limits(_kind_at(kind, mistake["loc"]))
        case other:
            expected = mistake.get("ctx", {}).get(EXPECTED) or _KINDS.get(other, mistake["msg"])
    # YAML 1.1 reads 1e-4 as a string; say so instead of leaving the reader puzzled.
    hint = " (write 1.0e-4 rather than 1e-4)" if expected == "float" and isinstance(found, str) else ""
    return f"{name} is {found!r}; expected {expected}{hint}"


def _dotted(where: str, steps: Iterable[Any]) -> str:
    """Return the name of a setting below ``where``."""
    below = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return (where + below).removeprefix(".")


def _kind_at(kind: Any, steps: Iterable[Any]) -> Any:
    """Return the type of a setting below a section."""
    for step in steps:
        hints = typing.get_type_hints(kind, include_extras=True) if _is_section(kind) else {}
        kind = hints.get(step) or typing.get_args(kind)[-1]
    return kind


def _limits(kind: Any) -> str:
    """Return the limits of a number, or of one that may be left open, in words."""
    [field] = next(each.__metadata__ for each in (kind, *typing.get_args(kind)) if hasattr(each, "__metadata__"))
    limits = {name: limit for each in field.metadata for name, limit in dataclasses.asdict(each).items()}
    return f"{limits['ge']} to {limits['le']}" if "le" in limits else f"at least {limits['ge']}"
