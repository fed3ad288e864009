"""ODVG's JSON lines: boxes of labels, boxes of phrases."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import MissingInputError
from pipeline.prepare.raw import CAPTION_NOT_UTF8, Converted, DroppedBox, RawGrounding, Reject, SourceContext, Url
from pipeline.prepare.readers.odvg import find_phrase, read_odvg
from pipeline.prepare.validation import Rules, to_records
from pipeline.settings import load_all
from pipeline.store.records import Category, DetectionRecord, GroundingRecord

ROOT = Path(__file__).resolve().parents[4]
SAMPLE = Path(__file__).resolve().parents[5] / "shared" / "data" / "odvg"
Read = Callable[..., list[Any]]


def write(folder: Path, *rows: Any) -> dict[str, Url]:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "odvg.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "labels.json").write_text('{"0": "dog", "1": "cat"}')
    return {"annotations": Url(folder / "odvg.jsonl"), "images": Url(folder)}


def line(kind: str, body: Any, name: str = "a.jpg") -> dict[str, Any]:
    return {"filename": name, "height": 30, "width": 40, kind: body}


def test_detection_lines_have_boxes_of_labels(
    tmp_path: Path, picture: Callable[..., bytes], context: SourceContext, read_rows: Read
) -> None:
    (tmp_path / "a.jpg").write_bytes(picture())
    instances = [
        {"bbox": [1, 2, 30, 20], "label": 0, "category": "dog"},
        {"bbox": [1, 2, 3], "label": 0},
        {"bbox": None, "label": 1},
        {"bbox": [1, 2, 30, 20], "label": 7},
        "dog",
        {"bbox": [1, 2, 30, 20], "label": 1, "category": "dog"},
    ]
    options = write(tmp_path, line("detection", {"instances": instances}), line("detection", {}), line("detection", 5))
    (table,) = read_odvg(context, **options, labels=Url(tmp_path / "labels.json"))
    assert table.categories == (Category(id=0, name="dog"), Category(id=1, name="cat"))
    *dropped, first, empty, bad = read_rows(table)
    assert [row.reason for row in dropped] == [
        *("box_malformed", "box_malformed", "category_unknown", "box_malformed"),
        "category_unknown",  # nobody knows whether the label or the name is wrong
    ]
    assert isinstance(first, DetectionRecord)
    assert [(item.category_id, item.xyxy) for item in first.objects] == [(0, (1.0, 2.0, 30.0, 20.0))]
    assert empty.objects == ()
    assert isinstance(bad, Reject)
    with pytest.raises(MissingInputError, match="need the option labels"):
        read_odvg(context, **options)


def test_regions_are_found_by_their_spans_or_by_their_words(
    tmp_path: Path, picture: Callable[..., bytes], context: SourceContext, read_rows: Read
) -> None:
    (tmp_path / "a.jpg").write_bytes(picture())
    regions = [
        {"bbox": [1, 1, 9, 9], "phrase": "A dog"},
        {"bbox": [[1, 1, 9, 9], [2, 2, 8, 8]], "phrase": "cat"},
        {"bbox": [3, 3, 9, 9], "phrase": "whatever", "tokens_positive": [[2, 5], [10, 15]]},
        {"bbox": [3, 3, 9, 9], "phrase": "bird"},
        {"bbox": [3, 3, 9, 9]},
    ]
    caption = "a dog and cats, a cat"
    options = write(tmp_path, line("grounding", {"caption": caption, "regions": regions}))
    (table,) = read_odvg(context, **options)
    *dropped, record = read_rows(table)
    assert dropped == [DroppedBox("a.jpg", "span_empty")] * 2
    assert isinstance(record, GroundingRecord)
    assert [(p.text, p.char_spans, len(p.boxes)) for p in record.phrases] == [
        ("a dog", ((0, 5),), 1),
        ("cat", ((18, 21),), 2),
        ("dog cats,", ((2, 5), (10, 15)), 1),
    ]


def test_a_file_of_both_kinds_makes_two_tables(
    tmp_path: Path, picture: Callable[..., bytes], context: SourceContext, read_rows: Read
) -> None:
    (tmp_path / "a.jpg").write_bytes(picture())
    rows = [line("detection", {"instances": []}), line("grounding", {"caption": "dogs", "regions": []}), "{", "{}"]
    options = write(tmp_path, *rows)
    detection, grounding = read_odvg(context, **options, labels=Url(tmp_path / "labels.json"))
    record, *broken = read_rows(detection)
    assert isinstance(record, DetectionRecord)
    assert [row.reason for row in broken] == ["row_malformed", "row_malformed"]
    assert read_rows(grounding) == [Reject("a.jpg", "no_phrases")]


def test_bad_lines_are_rejects_and_other_files_are_told(
    tmp_path: Path, context: SourceContext, read_rows: Read
) -> None:
    bad = [{"grounding": {"caption": "x"}}, "[]", "", line("grounding", {"caption": 5}), line("grounding", {}, "../a")]
    (table,) = read_odvg(context, **write(tmp_path, *bad))
    reasons = [row.reason for row in read_rows(table)]
    assert reasons == ["row_malformed", "row_malformed", "caption_empty", "caption_empty"]
    for content in ("", "{}", "a dog\n", "[" * 100_000):
        (tmp_path / "odvg.jsonl").write_text(content)
        with pytest.raises(MissingInputError, match="expected an ODVG file"):
            read_odvg(context, annotations=Url(tmp_path / "odvg.jsonl"), images=Url(tmp_path))
    options = write(tmp_path, line("detection", {}))
    for content in ("[1]", '{"0": "dog", "0": "cat"}', '{"0": "dog", "00": "cat"}', '{"0": null}', '{"0": {}}'):
        (tmp_path / "labels.json").write_text(content)
        with pytest.raises(MissingInputError, match="expected a JSON object from label to name"):
            read_odvg(context, **options, labels=Url(tmp_path / "labels.json"))


letters = "ab .*(A_9\N{LATIN SMALL LETTER E WITH ACUTE}\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}"


@given(st.text(letters, max_size=4), st.text(letters, max_size=30))
def test_a_phrase_is_found_where_it_first_stands_as_whole_words(phrase: str, caption: str) -> None:
    wanted = re.escape(phrase.strip())
    matched = re.search(rf"(?<!\w){wanted}(?!\w)", caption, re.IGNORECASE) if wanted else None
    assert find_phrase(phrase, caption) == (matched.span() if matched else None)


def test_places_are_right_behind_letters_whose_lower_case_is_longer() -> None:
    caption = "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}stanbul and a Dog"
    start, end = find_phrase("a dog", caption) or (0, 0)
    assert caption[start:end] == "a Dog"


def test_regions_of_the_same_words_are_one_phrase(tmp_path: Path, context: SourceContext, read_rows: Read) -> None:
    regions = [
        {"bbox": [1, 1, 9, 9], "phrase": "dog"},
        {"bbox": [[2, 2, 9, 9], 5], "phrase": "Dog"},
        {"bbox": [3, 3, 9, 9], "phrase": ["a dog", "cat"]},
        {"bbox": [3, 3, 9, 9], "phrase": ["a dog", "bird"]},
    ]
    body = {"caption": "<i>a dog</i> and a cat", "regions": regions}
    (table,) = read_odvg(context, **write(tmp_path, line("grounding", body, "COCO_train2014_000000000009.jpg")))
    malformed, unknown, record = read_rows(table, pictures="unread")
    assert (malformed.reason, unknown.reason) == ("box_malformed", "span_empty")
    assert record.caption == "<i>a dog</i> and a cat"
    assert [(phrase.text, len(phrase.boxes)) for phrase in record.phrases] == [("dog", 2), ("a dog cat", 1)]
    (raw,) = [row for part in table.parts(9) for row in part.rows()]
    assert isinstance(raw, RawGrounding)
    assert raw.image.picture_id == "coco/9"


def test_scores_of_regions_are_kept(tmp_path: Path, context: SourceContext, read_rows: Read) -> None:
    regions = [
        {"bbox": [1, 1, 9, 9], "phrase": "dog", "score": 0.5},
        {"bbox": [[2, 2, 9, 9], [3, 3, 9, 9]], "phrase": "cat", "score": [0.25, 0.75]},
        {"bbox": [2, 2, 9, 9], "phrase": "dog", "score": 7},
    ]
    (table,) = read_odvg(context, **write(tmp_path, line("grounding", {"caption": "dog, cat", "regions": regions})))
    dropped, record = read_rows(table, pictures="unread")
    assert dropped == DroppedBox("a.jpg", "box_malformed")
    assert [[box.score for box in phrase.boxes] for phrase in record.phrases] == [[0.5], [0.25, 0.75]]


def test_a_score_of_1_is_still_a_machines(tmp_path: Path, context: SourceContext, read_rows: Read) -> None:
    scored = [{"bbox": [1, 1, 9, 9], "phrase": "dog", "score": 1.0}, {"bbox": [2, 2, 9, 9], "phrase": "cat"}]
    instances = [{"bbox": [1, 2, 30, 20], "label": 0, "score": 1}, {"bbox": [1, 2, 30, 20], "label": 0}]
    rows = [line("grounding", {"caption": "dog, cat", "regions": scored}), line("detection", {"instances": instances})]
    detection, grounding = read_odvg(context, **write(tmp_path, *rows), labels=Url(tmp_path / "labels.json"))
    (record,) = read_rows(grounding, pictures="unread")
    scores = [np.float32(box.score) for phrase in record.phrases for box in phrase.boxes]
    assert scores == [np.nextafter(np.float32(1), np.float32(0)), 1.0]
    assert read_rows(grounding, pictures="unread", is_judged_by=True) == [Reject("a.jpg", "pseudo_label")]
    assert read_rows(detection, pictures="unread") == [Reject("a.jpg", "pseudo_label")]


@pytest.mark.parametrize(
    ("names", "is_kept"),
    [
        ({"key": "k", "source": "cc12m"}, True),
        ({"key": "k"}, False),
        ({"source": "cc12m"}, False),
        ({"key": 5, "source": "cc12m"}, False),
        ({"key": "", "source": "cc12m"}, False),
        ({"key": "k" * 201, "source": "cc12m"}, False),
        ({"key": "k", "source": "\x1b[31m"}, False),
        ({"key": "\ud83d", "source": "cc12m"}, False),
    ],
)
def test_key_and_source_stay_where_a_line_has_both(
    names: dict[str, Any], is_kept: bool, tmp_path: Path, context: SourceContext, read_rows: Read
) -> None:
    regions = [{"bbox": [1, 1, 9, 9], "phrase": "dog"}]
    row = line("grounding", {"caption": "a dog", "regions": regions}) | names
    (table,) = read_odvg(context, **write(tmp_path, row))
    (record,) = read_rows(table, pictures="unread")
    assert ((record.key, record.source) == ("k", "cc12m")) is is_kept
    assert is_kept or (len(record.key), record.source) == (20, "test")


def test_lines_in_another_encoding_are_decoded_and_counted(
    tmp_path: Path, picture: Callable[..., bytes], context: SourceContext, read_rows: Read
) -> None:
    (tmp_path / "a.jpg").write_bytes(picture())
    body = {"caption": "a café", "regions": [{"bbox": [1, 1, 9, 9], "phrase": "café"}]}
    options = write(tmp_path, line("grounding", body))
    (tmp_path / "odvg.jsonl").write_bytes(json.dumps(line("grounding", body), ensure_ascii=False).encode("latin-1"))
    (table,) = read_odvg(context, **options)
    record, told = read_rows(table)
    assert (record.caption, record.phrases[0].text) == ("a café", "café")
    assert told == Converted("a.jpg", CAPTION_NOT_UTF8)


def test_labels_may_be_text(tmp_path: Path, context: SourceContext, read_rows: Read) -> None:
    instances = [{"bbox": [1, 2, 30, 20], "label": "1"}, {"bbox": [1, 2, 30, 20], "label": "one"}]
    options = write(tmp_path, line("detection", {"instances": instances}))
    (table,) = read_odvg(context, **options, labels=Url(tmp_path / "labels.json"))
    dropped, record = read_rows(table, pictures="unread")
    assert dropped.reason == "category_unknown"
    assert [item.category_id for item in record.objects] == [1]


def test_a_truncated_file_loses_its_last_line(tmp_path: Path, context: SourceContext, read_rows: Read) -> None:
    rows = [line("grounding", {"caption": f"{i} dogs", "regions": []}, f"{i}.jpg") for i in range(50)]
    options = write(tmp_path, *rows)
    (tmp_path / "odvg.jsonl").write_bytes((tmp_path / "odvg.jsonl").read_bytes()[:-5])
    (table,) = read_odvg(context, **options)
    for rows_per_part in (1, 7, 100):
        names = [row.name for row in read_rows(table, rows_per_part)]
        assert names[:-1] == [f"{i}.jpg" for i in range(49)]
        assert ", byte " in names[-1]


def test_a_compressed_file_is_read(tmp_path: Path, context: SourceContext, read_rows: Read) -> None:
    regions = [{"bbox": [1, 1, 9, 9], "phrase": "dog"}]
    row = json.dumps(line("grounding", {"caption": "a dog", "regions": regions})) + "\n"
    (tmp_path / "odvg.jsonl.gz").write_bytes(gzip.compress((row * 3).encode()))
    (table,) = read_odvg(context, annotations=Url(tmp_path / "odvg.jsonl.gz"), images=Url(tmp_path))
    assert len(read_rows(table, 1, pictures="unread")) == 3


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 50) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
quads = st.lists(st.integers(-5, 50), min_size=4, max_size=4)
regions_of_any_kind = st.fixed_dictionaries(
    {"bbox": quads | st.lists(quads, min_size=1, max_size=3) | junk},
    optional={"phrase": st.sampled_from(["dog", "a cat", "bird"]) | junk, "tokens_positive": junk},
)


@given(st.lists(regions_of_any_kind | junk, max_size=5) | junk, junk)
def test_whatever_a_line_holds_every_box_is_kept_or_counted(regions: Any, other: Any) -> None:
    first = line("grounding", {"caption": "a dog and a cat", "regions": regions})
    with TemporaryDirectory() as folder:
        options = write(Path(folder), first, line("grounding", other), {"filename": other, "grounding": {}})
        (table,) = read_odvg(SourceContext("human", "test", load_all(ROOT / "params.yaml").prepare, 0), **options)
        rows = [row for part in table.parts(9) for row in part.rows()]
        told = list(to_records(rows[:1], Rules(source="t", pictures="unread", max_pixels=10**6, roots=("/",))))
    assert len(rows) == 3
    expected = 0
    # What is no list, and not empty, is one broken region.
    is_empty = regions is None or regions in ("", {})
    for region in regions if isinstance(regions, list) else [] if is_empty else [None]:
        boxes = region.get("bbox") if isinstance(region, dict) else None
        is_several = isinstance(boxes, list) and bool(boxes) and isinstance(boxes[0], list)
        expected += len(boxes) if is_several and boxes is not None else 1
    kept = sum(len(phrase.boxes) for row in told if isinstance(row, GroundingRecord) for phrase in row.phrases)
    assert kept + sum(isinstance(row, DroppedBox) for row in told) == expected


@pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"the real sample is not here: {SAMPLE}")
def test_the_formats_own_sample_is_read(tmp_path: Path, context: SourceContext, read_rows: Read) -> None:
    def read(labels: Path) -> tuple[list[Any], list[Any]]:
        annotations, images = Url(SAMPLE / "odvg_sample.jsonl"), Url("/nowhere")
        detection, grounding = read_odvg(context, annotations=annotations, images=images, labels=Url(labels))
        return read_rows(detection, pictures="unread"), read_rows(grounding, pictures="unread")

    # The label map that comes with it is of another data set.
    (*dropped, detection), _ = read(SAMPLE / "coco2017_label_map.json")
    assert [row.reason for row in dropped] == ["category_unknown"] * 3
    assert detection.objects == ()
    (tmp_path / "labels.json").write_text('{"0": "dog", "1": "cat", "2": "apple"}')
    (detection,), (grounding,) = read(tmp_path / "labels.json")
    assert detection.objects[0].xyxy == (262.0, 210.0, 323.0, 338.0)
    assert len(detection.objects) == 3
    assert [phrase.text for phrase in grounding.phrases] == [
        "a paper cover that reads we heart our customers",
        "a wire hanger",
    ]
