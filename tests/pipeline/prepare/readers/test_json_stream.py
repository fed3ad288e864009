from __future__ import annotations

import gzip
import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import MissingInputError
from pipeline.prepare.readers import json_stream
from pipeline.prepare.readers.json_stream import JsonStream

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('ab[]{}",\\:', max_size=3), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["images", "annotations", "categories", "info", 'é"]'])
FORMS = st.fixed_dictionaries(
    {"ensure_ascii": st.booleans(), "indent": st.sampled_from([None, 1]), "allow_nan": st.just(True)}
)


def as_objects(entries: Any) -> list[Any]:
    return [entry if isinstance(entry, dict) else {} for entry in entries]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json") / "file.json"


@given(
    content=st.dictionaries(NAMES, VALUES | st.lists(VALUES, max_size=4), max_size=5),
    asked=st.lists(NAMES, max_size=6),
    form=FORMS,
    block=st.sampled_from([1, 2, 3, 7, 40, 1 << 20]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
def test_lists_are_those_of_the_whole_file_in_any_order_and_at_any_block(
    content: dict[str, Any], asked: list[str], form: dict[str, Any], block: int, encoding: str, path: Path
) -> None:
    path.write_text(json.dumps(content, **form), encoding=encoding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "BLOCK_BYTES", block)
        stream = JsonStream(str(path))
        for name in asked:
            if isinstance(expected := content.get(name), list | None):
                assert list(stream.entries(name)) == as_objects(expected or [])
            else:
                with pytest.raises(MissingInputError, match="holds no list"):
                    list(stream.entries(name))
        assert list(stream.pairs()) == list(content.items())


@given(content=st.lists(VALUES, max_size=5), form=FORMS, block=st.sampled_from([1, 3, 40]))
def test_a_list_at_the_top_is_read(content: list[Any], form: dict[str, Any], block: int, path: Path) -> None:
    path.write_text(json.dumps(content, **form), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "BLOCK_BYTES", block)
        assert list(JsonStream(str(path)).entries()) == as_objects(content)


def test_numbers_that_json_does_not_have_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"annotations": [{"bbox": [NaN, Infinity, -Infinity, 1e999]}, {"id": 2}]}')
    first, second = JsonStream(str(path)).entries("annotations")
    assert math.isnan(first["bbox"][0])
    assert first["bbox"][1:] == [math.inf, -math.inf, math.inf]
    assert second == {"id": 2}


def test_compressed_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json.gz"
    path.write_bytes(
        gzip.compress(json.dumps({"info": {}, "images": [{"id": 1}], "annotations": [{"id": 2}]}).encode())
    )
    stream = JsonStream(str(path))
    for _ in range(2):
        assert list(stream.entries("annotations")) == [{"id": 2}]
        assert list(stream.entries("images")) == [{"id": 1}]


def test_lists_are_found_again_without_reading_what_stands_before(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    rows = [{"id": i} for i in range(1000)]
    path.write_text(json.dumps({"images": rows, "annotations": [{"id": 7}], "categories": [{"id": 8}]}))
    stream = JsonStream(str(path))
    assert list(stream.entries("images")) == rows
    assert list(stream.entries("annotations")) == [{"id": 7}]
    text = path.read_text()
    path.write_text("!" * text.index('"annotations"') + text[text.index('"annotations"') :])
    assert list(stream.entries("annotations")) == [{"id": 7}]
    assert list(stream.entries("categories")) == [{"id": 8}]
    with pytest.raises(MissingInputError):
        list(stream.entries("images"))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "the end of the file, expected {"),
        (b"[1]", r"found \[, expected \{"),
        (b'{"images": [{"id": 1}', "the end of the file, expected , or ]"),
        (b'{"images": [{"id": 1} {"id": 2}]}', r"found \{, expected , or \]"),
        (b'{"images": [{"id": 1, }]}', "near byte 12"),
        (b'{"images": [{"id": tru}]}', "near byte 12"),
        (b'{"images": [{"id": "\xff"}]}', "utf-8.*expected UTF-8"),
        (b'{"images": {"0": {"id": 1}}}', "'images' holds no list"),
        (b'{"images": "a.json"}', "'images' holds no list"),
        (b'{"images": [{"caption": "' + b"a" * 300, "more than 200 characters"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(
    content: bytes, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_stream, "BLOCK_BYTES", 50)
    monkeypatch.setattr(json_stream, "MAX_ENTRY_CHARS", 200)
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(MissingInputError, match=rf"a\.json: not readable as JSON.*{found}.*; fetch the file again"):
        list(JsonStream(str(path)).entries("images"))


def test_what_holds_no_list_is_told_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"annotations": {"1": {}}, "empty": null, "images": [{"id": 1}]}', encoding="utf-8")
    stream = JsonStream(str(path))
    assert list(stream.entries("images")) == [{"id": 1}]
    assert list(stream.entries("empty")) == []
    with pytest.raises(MissingInputError, match="'annotations' holds no list"):
        list(stream.entries("annotations"))


def test_entries_before_the_damage_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"images": [{"id": 1}, {"id": 2}, {"id"')
    entries = JsonStream(str(path)).entries("images")
    assert [next(entries), next(entries)] == [{"id": 1}, {"id": 2}]
    with pytest.raises(MissingInputError):
        next(entries)


def test_brackets_without_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"images": ' + "[" * 1_000_000)
    with pytest.raises(MissingInputError, match=r"near byte 12: .*recursion"):
        list(JsonStream(str(path)).entries("images"))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"annotations": [{"id": i, "bbox": [1.5, 2, 3, 4]} for i in range(300_000)]}))
    assert path.stat().st_size > 11 * json_stream.BLOCK_BYTES
    tracemalloc.start()
    assert sum(1 for _ in JsonStream(str(path)).entries("annotations")) == 300_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * json_stream.BLOCK_BYTES
