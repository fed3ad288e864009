"""What is broken in shards of somebody else: counted alike by columns and by rows, and nowhere in what comes out."""

from __future__ import annotations

import io
import json
import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.inspection.defects import KINDS, count_defects, format_defects, sound_record
from pipeline.inspection.figures import collect_statistics
from pipeline.store.records import GROUNDING_SCHEMA
from pipeline.store.shards import KIND_KEY, VERSION_KEY, read_table
from stages.glip import main

METADATA = {VERSION_KEY: "1", KIND_KEY: "grounding"}
BOX = {"x1": 1.0, "y1": 1.0, "x2": 9.0, "y2": 9.0, "score": 0.5}
PHRASE = {
    "text": "dog",
    "char_spans": [{"start": 2, "end": 5}],
    "boxes": [BOX],
    "reject_reason": None,
    "is_plural": None,
    "split": None,
}


def picture() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (20, 10), "teal").save(data, "PNG")
    return data.getvalue()


ROW = {
    "key": "k",
    "image": {"bytes": picture(), "path": None},
    "height": 10,
    "width": 20,
    "source": "s",
    "caption": "a dog",
    "phrases": [PHRASE],
    "reject_reason": None,
}


def write(path: Path, *rows: dict[str, Any], metadata: dict[str, str] | None = None) -> Path:
    fields = [field.with_nullable(True) for field in GROUNDING_SCHEMA]
    schema = pa.schema(fields, metadata=METADATA | (metadata or {}))
    path.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path / "part-00000.parquet", row_group_size=3)
    return path


def box(**values: Any) -> dict[str, Any]:
    return {**ROW, "phrases": [{**PHRASE, "boxes": [BOX, {**BOX, **values}]}]}


def phrase(**values: Any) -> dict[str, Any]:
    return {**ROW, "phrases": [PHRASE, {**PHRASE, **values}]}


BROKEN: dict[str, list[dict[str, Any]]] = {
    "key_missing": [{**ROW, "key": None}],
    "caption_missing": [{**ROW, "caption": None}],
    "size_missing": [{**ROW, "height": None}, {**ROW, "width": 0}, {**ROW, "width": -3}],
    "source_missing": [{**ROW, "source": None}],
    "picture_missing": [{**ROW, "image": None}, {**ROW, "image": {"bytes": None, "path": None}}],
    "phrases_missing": [{**ROW, "phrases": None}],
    "phrase_missing": [phrase(text=None), {**ROW, "phrases": [None, PHRASE]}],
    "span_outside": [
        *(phrase(char_spans=[{"start": a, "end": b}]) for a, b in ((-3, 2), (0, 6), (3, 2), (2, 2), (None, 2))),
        phrase(char_spans=[None]),
    ],
    "box_not_finite": [box(x1=math.nan), box(y2=math.inf), box(y1=None)],
    "box_reversed": [box(x2=0.5), box(y1=9.5), box(x2=1.0)],
    "box_outside": [box(x2=21.5), box(y1=-1.5), box(x1=-9e30)],
    "score_outside": [box(score=math.nan), box(score=-5.0), box(score=1.5), box(score=None)],
}
CASES = [(kind, row) for kind, rows in BROKEN.items() for row in rows]
EMPTY = ("key_missing", "caption_missing", "size_missing", "phrases_missing")
"""Kinds of rows without phrases."""


@pytest.mark.parametrize(("kind", "row"), CASES)
def test_every_kind_is_found_and_the_sound_rest_is_kept(kind: str, row: dict[str, Any], tmp_path: Path) -> None:
    folder = write(tmp_path / "labels", ROW, row)
    assert count_defects(folder / "part-00000.parquet") == {kind: 1}
    found: Counter[str] = Counter()
    record = sound_record(row, found)
    assert found == {kind: 1}
    boxes = [each.xyxy for phrase in record.phrases for each in phrase.boxes]
    assert boxes == ([] if kind in EMPTY else [(1, 1, 9, 9)])
    assert set(BROKEN) | {"metadata_odd", "picture_unreadable"} == set(KINDS)


def test_boxes_along_the_border_and_rows_without_phrases_are_sound(tmp_path: Path) -> None:
    rows = [box(x1=-1, y1=-0.5, x2=21, y2=11, score=1.0), box(score=0.0), {**ROW, "phrases": []}, phrase(boxes=None)]
    folder = write(tmp_path / "labels", *rows, phrase(char_spans=None), phrase(boxes=[]))
    assert not count_defects(folder / "part-00000.parquet")
    assert not count_defects(write(tmp_path / "empty") / "part-00000.parquet")


NUMBERS = st.sampled_from([None, -5.0, 0.0, 0.5, 1.0, 7.0, 30.0, math.nan, math.inf])
BOXES = st.none() | st.fixed_dictionaries(dict.fromkeys(BOX, NUMBERS))
SPANS = st.none() | st.fixed_dictionaries(dict.fromkeys(("start", "end"), st.none() | st.integers(-1, 6)))
PHRASES = st.none() | st.fixed_dictionaries(
    {
        **{name: st.just(value) for name, value in PHRASE.items()},
        "text": st.sampled_from([None, "dog"]),
        "char_spans": st.none() | st.lists(SPANS, max_size=2),
        "boxes": st.none() | st.lists(BOXES, max_size=3),
    }
)
ROWS = st.fixed_dictionaries(
    {
        **{name: st.just(value) for name, value in ROW.items()},
        "key": st.sampled_from([None, "k"]),
        "caption": st.sampled_from([None, "a dog", "", "né 😀"]),
        "height": st.sampled_from([None, 0, 10]),
        "phrases": st.none() | st.lists(PHRASES, max_size=3),
    }
)


@given(st.lists(ROWS, max_size=7))
def test_columns_and_rows_are_counted_alike(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        shard = write(Path(place), *rows) / "part-00000.parquet"
        by_row: Counter[str] = Counter()
        for row in read_table(shard).to_pylist():
            sound_record(row, by_row)
        assert count_defects(shard) == by_row


@pytest.mark.parametrize("odd", [{VERSION_KEY: "9"}, {"glip.repeat": "-1"}, {"glip.repeat": "x"}])
def test_odd_metadata_is_counted_and_rows_are_read(odd: dict[str, str], tmp_path: Path) -> None:
    folder = write(tmp_path / "labels", ROW, metadata=odd)
    assert collect_statistics(folder).defects == {"metadata_odd": 1}
    with pytest.raises(SystemExit) as ended:
        main(["inspect", str(folder), "--row", "k"])
    assert not ended.value.code


def test_defects_are_told_in_one_order() -> None:
    assert format_defects({"score_outside": 1, "key_missing": 1200, "box_outside": 0}) == (
        "1,200 key_missing, 1 score_outside"
    )


WAYS = [
    [],
    ["--json"],
    ["--keys"],
    ["--sample", "99"],
    ["--sample", "99", "--json"],
    ["--row", "k"],
    ["--row", "k", "--save", "drawn.png"],
    ["--row", "nothing"],
    ["--min-score", "0.1"],
    ["--max-score", "0.9"],
    ["--html", "page.html"],
    ["--sql", "SELECT * FROM boxes"],
    ["--sql", "SELECT * EXCLUDE image FROM labels", "--json"],
    ["--against", "sound"],
    ["--against", "broken", "--json"],
    *(["--export", name, "--out", "out"] for name in ("coco", "odvg", "webdataset")),
]


@pytest.mark.parametrize("words", WAYS)
def test_every_way_of_looking_goes_on(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "broken", *(row for _, row in CASES))
    write(tmp_path / "sound", ROW)
    with pytest.raises(SystemExit) as ended:
        main(["inspect", "broken", *words])
    assert (ended.value.code or 0) == (2 if "nothing" in words else 0)
    written = [path.read_text(encoding="utf-8") for path in tmp_path.glob("out/*.json*")]
    for text in [capsys.readouterr().out] * ("--json" in words) + written:
        assert "NaN" not in text
        assert "Infinity" not in text
        assert json.JSONDecoder().raw_decode(text)
    if {"--sample", "--export", "--html"} & set(words):
        assert "broken and left out: 1 key_missing, 1 caption_missing, 3 size_missing" in caplog.text
        assert "3 box_not_finite, 3 box_reversed, 3 box_outside, 4 score_outside" in caplog.text
