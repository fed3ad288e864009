"""Names on the command line and in files, as prompts and the classes that they find."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.store.vocabulary import Vocabulary, read_names


def test_names_on_the_command_line_stand_for_themselves() -> None:
    found = read_names("forklift, pallet , safety vest,, Pallet")
    assert found.classes == found.prompts == ("forklift", "pallet", "safety vest")
    assert found.class_of == (0, 1, 2)
    assert [(category.id, category.name) for category in found.categories] == [
        (1, "forklift"),
        (2, "pallet"),
        (3, "safety vest"),
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "\ufeffcat\n\n dog \n"),
        ("a.json", '["cat", "dog"]'),
        ("a.yaml", "- cat\n- dog\n"),
        ("data.yaml", "nc: 2\nnames: [cat, dog]\n"),
        ("data.yml", "path: .\nnames:\n  0: cat\n  1: dog\n"),
    ],
)
def test_files_list_names(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_names(str(tmp_path / name)) == Vocabulary(("cat", "dog"), ("cat", "dog"), (0, 1))


@pytest.mark.parametrize(
    "table",
    [
        {"sedan": "car", "van": "car", "person": "person"},
        {"car": ["sedan", "van"], "person": ["person"]},
        {"car": ["sedan", "van"], "person": "person"},
    ],
)
def test_an_ontology_has_several_prompts_a_class(tmp_path: Path, table: dict[str, object]) -> None:
    (tmp_path / "a.json").write_text(json.dumps(table), encoding="utf-8")
    found = read_names(str(tmp_path / "a.json"))
    assert found == Vocabulary(("car", "person"), ("sedan", "van", "person"), (0, 0, 1))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "\n", "no names"),
        ("a.json", "{", "cannot be read"),
        ("a.yaml", "a: [", "cannot be read"),
        ("a.json", "7", "expected a list of names"),
        ("a.json", '{"car": 7}', "expected a prompt and its class"),
        ("a.json", '{"car": ["van"], "bus": ["van"]}', "stands for both"),
        ("a.json", '{"Van": "car", "van": "bus"}', "stands for both"),
        ("a.json", '{"van": " "}', "is no name"),
        ("a.txt", "x" * 300, "is no name"),
        ("none.txt", None, "no file of names"),
    ],
)
def test_what_is_no_list_of_names_is_told(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_names(str(tmp_path / name))
    with pytest.raises(ConfigError, match="no names"):
        read_names(" , ")


def test_classes_may_have_thresholds() -> None:
    names = read_names("cat, dog")
    assert names.with_min_scores({"dog": 0.6}, 0.3).min_scores == (0.3, 0.6)
    for wrong in ({"cow": 0.5}, {"dog": 7}, {"dog": True}, {"dog": float("nan")}):
        with pytest.raises(ConfigError):
            names.with_min_scores(wrong, 0.3)
