"""Pages of the site that are made from the project itself: from its READMEs, parsers, settings and docstrings."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
INCLUDED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "cluster/README.md": "how-to/cluster.md",
    "pipeline/prepare/readers/README.md": "how-to/readers.md",
    "pipeline/download/README.md": "how-to/download.md",
    "pipeline/curation/README.md": "how-to/curate.md",
    "pipeline/pseudo_labels/README.md": "how-to/label.md",
    "pipeline/training/README.md": "how-to/train.md",
    "pipeline/review/README.md": "how-to/review.md",
    "pipeline/store/README.md": "explanation/stores.md",
}
"""Pages that lie beside the code that they describe, and where they stand on the site."""
PICTURE = "reports/side_by_side.png"
"""That the README shows."""
PYTHON = {
    "Detection": ("glip_model.GLIPPredictor", "glip_model.Detections"),
    "Pseudo-labels": ("pipeline.inspection.reading.read_pseudo_labels",),
    "Records": ("pipeline.store.records.GroundingRecord", "pipeline.store.records.DetectionRecord"),
}
"""Public names of the Python reference, by heading."""
_LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the project."""
    made = {
        "reference/commands.md": commands_page(),
        "reference/settings.md": settings_page(),
        "reference/python.md": python_page(),
    } | {page: included_page(source) for source, page in INCLUDED.items()}
    for uri, text in made.items():
        files.append(File.generated(config, uri, content=text))
    files.append(File.generated(config, PICTURE, abs_src_path=str(ROOT / PICTURE)))
    return files


def included_page(source: str) -> str:
    """Return a page of the project with its links as they have to be on the site."""
    text = (ROOT / source).read_text(encoding="utf-8")
    parts, end = [], 0
    for fence in _FENCE.finditer(text):
        parts += [_relinked(text[end : fence.start()], source), fence.group()]
        end = fence.end()
    return "".join([*parts, _relinked(text[end:], source)])


def _relinked(text: str, source: str) -> str:
    here = PurePosixPath(INCLUDED[source]).parent

    def replace(found: re.Match[str]) -> str:
        words, target = found.groups()
        path, hash_sign, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not path:
            return found.group()
        place = normpath(PurePosixPath(source).parent / path)
        place = f"{place}/README.md" if (ROOT / place).is_dir() else place
        if place.startswith("docs/"):
            place = place.removeprefix("docs/")
        elif place in INCLUDED:
            place = INCLUDED[place]
        elif not words.startswith("!"):
            return words[1:-1]  # a file of the repository: its name, without a link
        return f"{words}({relpath(place, here)}{hash_sign}{anchor})"

    return _LINK.sub(replace, text)


def commands_page() -> str:
    """Return what every command says of itself, from its parser."""
    from stages import glip

    parts = ["# Commands\n\n`glip COMMAND --help` prints the same.\n"]
    for heading, commands in glip.GROUPS.items():
        parts.append(f"\n## {heading.capitalize()}\n")
        for name, what in commands.items():
            module = importlib.import_module(glip.COMMANDS[name])
            parser = argparse.ArgumentParser(
                prog=f"glip {name}",
                description=module.__doc__,
                formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=110),
            )
            module.add_arguments(parser)
            parts.append(f"\n### glip {name}\n\n{what.capitalize()}.\n\n```text\n{parser.format_help().strip()}\n```\n")
    return "".join(parts)


def settings_page() -> str:
    """Return every setting with its meaning and value in params.yaml, from the classes of the settings."""
    from pipeline.settings import json_schema, load_all

    schema = json_schema()
    values = dataclasses.asdict(load_all(ROOT / "params.yaml"))
    parts = ["# Settings\n\nEvery setting of params.yaml, with its value there.\n"]
    for section, described in schema["properties"].items():
        if section in values:
            rows = _settings(described, schema, section, values[section])
            parts.append(f"\n## {section}\n\n| setting | value | meaning |\n| --- | --- | --- |\n" + "".join(rows))
    return "".join(parts)


def _settings(described: dict[str, Any], schema: dict[str, Any], name: str, value: Any) -> Iterator[str]:
    described = _resolved(described, schema)
    if isinstance(value, dict) and (known := described.get("properties")):
        for key, each in known.items():
            yield from _settings(each, schema, f"{name}.{key}", value.get(key))
        return
    text = json.dumps(value, ensure_ascii=False)
    shown = f"`{text}`" if len(text) < 60 and "|" not in text else "see params.yaml"
    meaning = " ".join(str(described.get("description", "")).split()).replace("|", "\\|")
    yield f"| `{name}` | {shown} | {meaning} |\n"


def _resolved(described: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    found = described
    while "$ref" in found:
        target: Any = schema
        for key in found["$ref"].removeprefix("#/").split("/"):
            target = target[key]
        found = {**target, **{name: each for name, each in found.items() if name != "$ref"}}
    return found


def python_page() -> str:
    """Return the Python reference, which mkdocstrings fills from docstrings."""
    parts = ["# Python\n"]
    for heading, names in PYTHON.items():
        parts.append(f"\n## {heading}\n")
        parts += [f"\n::: {name}\n" for name in names]
    return "".join(parts)
