"""Names that are no words: which are told of, and how they get others."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.prepare.class_names import is_code, read_renames, rename, warn_of_codes


@pytest.mark.parametrize(
    "name", ["cls_07", "class 3", "Class-12", "7", "c1", "label2", "ID_0004", "rbc", "objects", "none", "tag#3", "1.0"]
)
def test_codes_are_recognised(name: str) -> None:
    assert is_code(name)


@pytest.mark.parametrize(
    "name",
    ["dog", "fire truck", "tv", "sky", "CoW", "Cottontail-Rabbit", "Boeing 737", "U.S. flag", "犬", "7 of hearts"],
)
def test_words_are_none(name: str) -> None:
    assert not is_code(name)


def test_a_warning_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_codes(["dog", "person"])
    assert not caplog.records
    caplog.set_level(logging.WARNING)
    warn_of_codes(["dog", *(f"cls_{i:02d}" for i in range(8))])
    assert "'cls_00', 'cls_01', 'cls_02', 'cls_03', 'cls_04' and 3 more read like codes" in caplog.text
    assert "--rename 'cls_00=fire truck'" in caplog.text


def test_names_become_others(tmp_path: Path) -> None:
    path = tmp_path / "names.yaml"
    path.write_text("7: dog\ncls_1: ' cat '\n", encoding="utf-8")
    found = read_renames([str(path), "a=b=c", " old = new name "])
    assert found == {"7": "dog", "cls_1": "cat", "a": "b=c", "old": "new name"}
    assert rename(["7", " cls_1", "a", "old", "kept"], found) == ["dog", "cat", "b=c", "new name", "kept"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("old", "expected OLD=NEW"),
        ("=new", "expected OLD=NEW"),
        ("old=", "expected OLD=NEW"),
        ("none.yaml", "cannot be read"),
    ],
)
def test_mistakes_are_told(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_renames([text])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n", "expected a mapping"),
        ("", "expected a mapping"),
        ("a: 3\n", "'a' has no name"),
        ("a: [", "cannot be read"),
    ],
)
def test_files_that_are_no_mappings_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "names.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_renames([str(path)])


def test_names_that_are_not_there_or_get_two_are_refused() -> None:
    with pytest.raises(ConfigError, match="no category is called 'cot'; there are 'cat', 'dog'"):
        rename(["cat", "dog"], {"cot": "horse"})
    with pytest.raises(ConfigError, match="'cat' becomes both 'dog' and 'horse'"):
        read_renames(["cat=dog", "cat=horse"])
