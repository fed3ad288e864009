"""glip settings, as it is called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pipeline.settings import json_schema, load_all
from stages.glip import main

ROOT = Path(__file__).resolve().parents[2]


def glip(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["settings", *map(str, words)])
    return int(ended.value.code or 0)


def test_what_is_printed_is_a_params_file_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ROOT / "pipeline/training/recipes/glip_t.yaml"
    assert glip("--params", recipe) == 0
    whole = tmp_path / "whole.yaml"
    whole.write_text(capsys.readouterr().out, encoding="utf-8")
    assert "extends" not in yaml.safe_load(whole.read_text(encoding="utf-8"))
    assert load_all(whole) == load_all(recipe)


def test_outside_a_checkout_settings_are_those_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert glip() == 0
    assert yaml.safe_load(capsys.readouterr().out)["seed"] == load_all(ROOT / "params.yaml").seed
    (tmp_path / "params.yaml").write_text("sead: 1", encoding="utf-8")
    assert glip() == 2
    assert "params.yaml: sead is not a setting; did you mean seed?" in capsys.readouterr().err


def test_the_schema_is_that_of_editors(capsys: pytest.CaptureFixture[str]) -> None:
    assert glip("--schema") == 0
    assert json.loads(capsys.readouterr().out) == json_schema()
