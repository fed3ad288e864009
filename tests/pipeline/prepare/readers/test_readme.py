"""The page on raw data sets: its reader works, its table names every reader with its options."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.prepare.sources import READERS, open_sources
from pipeline.settings import load_all

ROOT = Path(__file__).resolve().parents[4]
PAGE = (ROOT / "pipeline/prepare/readers/README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_reader_of_ones_own_works(
    tmp_path: Path, picture: Callable[..., bytes], read_rows: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jpg").write_bytes(picture())
    (tmp_path / "captions.csv").write_text("file,text\na.jpg,a dog\n../b.jpg,a cat\nc.jpg,a bird\n")
    (code,), (*_, setting) = blocks("python"), blocks("yaml")
    (tmp_path / "my_readers.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    entry = yaml.safe_load(setting)["web"][0] | {"table": str(tmp_path / "captions.csv"), "images": str(tmp_path)}
    config = replace(load_all(ROOT / "params.yaml").prepare, web=(entry,))
    (source,) = open_sources("web", config, 0)
    record, outside, missing = read_rows(source.tables[0])
    assert (record.caption, outside.reason, missing.reason) == ("a dog", "image_outside_folder", "image_missing")
    del sys.modules["my_readers"]


def test_the_table_names_every_reader_with_its_options() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \|(.*)\|$", PAGE, re.MULTILINE)
    assert {name for name, _ in rows} == set(READERS)
    for name, options in rows:
        _, *parameters = inspect.signature(READERS[name]).parameters
        for parameter in parameters:
            assert f"`{parameter}`" in options, f"{name} has an option {parameter}"


def test_the_settings_at_the_top_are_settings() -> None:
    values = yaml.safe_load(blocks("yaml")[0])["prepare"]
    config = load_all(ROOT / "params.yaml").prepare
    sources = {name: tuple(entries) if isinstance(entries, list) else entries for name, entries in values.items()}
    assert replace(config, **sources).pictures == "reference"
