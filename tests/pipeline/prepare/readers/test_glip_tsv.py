"""GLIP's TSV data sets: objects by class name, captions with boxes in both versions."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import MissingInputError
from pipeline.prepare.raw import BOXES_CLIPPED, Converted, DroppedBox, Reject, SourceContext, Url
from pipeline.prepare.readers.glip_tsv import read_glip_tsv
from pipeline.prepare.validation import Rules, to_records
from pipeline.settings import load_all
from pipeline.store.records import Category, DetectionRecord, GroundingRecord

ROOT = Path(__file__).resolve().parents[4]
Read = Callable[..., list[Any]]


class DataSet:
    """A data set in a folder, with or without line indices."""

    def __init__(self, folder: Path, picture: Callable[..., bytes]) -> None:
        self.folder, self.picture = folder, picture

    def write(
        self, labels: list[Any], has_index: bool = True, pictures: list[bytes] | None = None, **files: Any
    ) -> Url:
        data = pictures or [self.picture((40 + i, 30)) for i in range(len(labels))]
        rows = {
            "img": [f"k{i}\t1\t{base64.b64encode(p).decode()}" for i, p in enumerate(data)],
            "label": [f"k{i}\t{row if isinstance(row, str) else json.dumps(row)}" for i, row in enumerate(labels)],
            "hw": [f'k{i}\t{{"height": 30, "width": 40}}' for i in range(len(labels))],
        }
        for name, lines in rows.items():
            (self.folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
            offsets, place = [], 0
            for line in lines:
                offsets.append(place)
                place += len(line.encode()) + 1
            if has_index:
                (self.folder / f"{name}.lineidx").write_text("\n".join(map(str, offsets)))
        content = {name: f"{name}.tsv" for name in rows}
        for name, value in files.items():
            (self.folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
            content[name] = name
        (self.folder / "set.yaml").write_text(yaml.safe_dump(content))
        return Url(self.folder / "set.yaml")


@pytest.fixture
def data_set(tmp_path: Path, picture: Callable[..., bytes]) -> DataSet:
    return DataSet(tmp_path, picture)


OBJECTS = [
    [{"class": "dog", "rect": [1, 2, 30, 20], "conf": 0.9}, {"class": "cat", "rect": [1, 1, 5, 50]}],
    {"objects": [{"class": "cat", "rect": [2, 2, 9, 9]}, {"class": "bird", "rect": [2, 2, 9, 9]}]},
    [],
]


@pytest.mark.parametrize("has_index", [True, False])
def test_objects_become_boxes_of_the_label_map(
    data_set: DataSet, has_index: bool, context: SourceContext, read_rows: Read
) -> None:
    label_map = {"label_to_idx": {"__background__": 0, "dog": 1, "cat": 2}}
    url = data_set.write(OBJECTS, has_index, labelmap=label_map)
    (table,) = read_glip_tsv(context, annotations=url)
    assert table.categories == (Category(id=1, name="dog"), Category(id=2, name="cat"))
    for rows_per_part in (1, 2, 100):
        first, clipped, dropped, second, third = read_rows(table, rows_per_part)
        assert isinstance(first, DetectionRecord)
        assert [(item.category_id, item.xyxy) for item in first.objects] == [
            (1, (1.0, 2.0, 30.0, 20.0)),
            (2, (1.0, 1.0, 5.0, 30.0)),
        ]
        assert clipped == Converted("k0", BOXES_CLIPPED)
        assert dropped == DroppedBox("k1", "category_unknown")
        assert ([item.category_id for item in second.objects], third.objects) == ([2], ())
        assert [row.width for row in (first, second, third)] == [40, 41, 42]


def test_without_a_label_map_names_are_numbered_in_order(data_set: DataSet, context: SourceContext) -> None:
    (table,) = read_glip_tsv(context, annotations=data_set.write(OBJECTS))
    assert [(category.id, category.name) for category in table.categories] == [(1, "bird"), (2, "cat"), (3, "dog")]


@pytest.mark.parametrize("content", ["dog\ncat\n", '{"dog": 1, "cat": 2, "ox": true, "__background__": 0}'])
def test_a_label_map_may_be_a_list_of_names(
    data_set: DataSet, content: str, context: SourceContext, read_rows: Read
) -> None:
    name = "names.tsv" if content.startswith("dog") else "names.json"
    url = data_set.write(OBJECTS)
    (data_set.folder / name).write_text(content)
    url_text = (data_set.folder / "set.yaml").read_text()
    (data_set.folder / "set.yaml").write_text(f"{url_text}jsondict: {name}\n")
    (table,) = read_glip_tsv(context, annotations=url)
    assert table.categories == (Category(id=1, name="dog"), Category(id=2, name="cat"))


def test_of_several_names_of_an_id_the_last_is_asked_for(
    data_set: DataSet, context: SourceContext, read_rows: Read
) -> None:
    url = data_set.write(OBJECTS, labelmap={"dog": 1, "cat": 2, "bird": 1})
    (table,) = read_glip_tsv(context, annotations=url)
    assert table.categories == (Category(id=1, name="bird"), Category(id=2, name="cat"))
    assert [item.category_id for item in read_rows(table)[2].objects] == [2, 1]


def test_boxes_of_groups_are_crowds(data_set: DataSet, context: SourceContext, read_rows: Read) -> None:
    row = [{"class": "dog", "rect": [1, 2, 30, 20], "IsGroupOf": flag} for flag in (1, 0)]
    (table,) = read_glip_tsv(context, annotations=data_set.write([row]))
    assert [item.is_crowd for item in read_rows(table)[0].objects] == [True, False]


def test_a_line_list_chooses_rows_and_each_comes_once(
    data_set: DataSet, context: SourceContext, read_rows: Read
) -> None:
    url = data_set.write(OBJECTS, linelist="2\n0\n0\n9\n")
    (table,) = read_glip_tsv(context, annotations=url)
    assert table.num_rows == 3
    for rows_per_part in (1, 2, 9):
        rows = [row for row in read_rows(table, rows_per_part) if not isinstance(row, Converted)]
        assert [getattr(row, "width", "reject") for row in rows] == [40, 42, "reject"]
    for content, message in (("zero", "expected a line number a row"), ("\n", "no line numbers"), ("9" * 30, "a row")):
        with pytest.raises(MissingInputError, match=message):
            read_glip_tsv(context, annotations=data_set.write(OBJECTS, linelist=content))


CAPTION = "a dog and two cats"
VERSION_1 = {
    "img_h": 30,
    "img_w": 40,
    "caption": CAPTION,
    "bboxes": [[1, 1, 9, 9], [2, 2, 20, 20], [3, 3, 30, 30]],
    "scores": [0.9, 0.8, 0.3],
    "tokens_positive": [[[0, 5]], [[10, 18]], [[10, 18]]],
}
VERSION_2 = {
    **VERSION_1,
    "bboxes": [[[1, 1, 9, 9]], [[2, 2, 20, 20], [3, 3, 30, 30]]],
    "scores": [[0.9], [0.8, 0.3]],
    "tokens_positive": [[[0, 5]], [[10, 18]]],
}


@pytest.mark.parametrize("row", [VERSION_1, VERSION_2])
def test_both_versions_of_captions_say_the_same(
    data_set: DataSet, row: dict[str, Any], context: SourceContext, read_rows: Read
) -> None:
    (table,) = read_glip_tsv(context, annotations=data_set.write([row]))
    (record,) = read_rows(table)
    assert isinstance(record, GroundingRecord)
    assert record.caption == CAPTION
    assert [(p.text, [(b.xyxy[2], b.score) for b in p.boxes]) for p in record.phrases] == [
        ("a dog", [(9.0, 0.9)]),
        ("two cats", [(20.0, 0.8), (30.0, 0.3)]),
    ]


def test_boxes_that_came_without_scores_are_sure_and_those_that_lost_theirs_are_dropped(
    data_set: DataSet, context: SourceContext, read_rows: Read
) -> None:
    without = {name: value for name, value in VERSION_2.items() if name != "scores"}
    lost = {**VERSION_2, "scores": [[0.9], [0.8]]}
    (table,) = read_glip_tsv(context, annotations=data_set.write([without, lost]))
    sure, dropped, rest = read_rows(table)
    assert [box.score for phrase in sure.phrases for box in phrase.boxes] == [1.0, 1.0, 1.0]
    assert dropped == DroppedBox("k1", "box_malformed")
    assert [box.score for phrase in rest.phrases for box in phrase.boxes] == [0.9, 0.8]


def test_an_entity_without_boxes_is_no_phrase(data_set: DataSet, context: SourceContext, read_rows: Read) -> None:
    row = {**VERSION_2, "bboxes": [[], [[2, 2, 20, 20]]], "scores": [[], [0.8]]}
    (table,) = read_glip_tsv(context, annotations=data_set.write([row]))
    (record,) = read_rows(table)
    assert [phrase.text for phrase in record.phrases] == ["two cats"]


spans = st.lists(st.tuples(st.integers(0, 9), st.integers(9, 18)).map(list), min_size=1, max_size=2)
quads = st.lists(st.integers(0, 40), min_size=4, max_size=4)
entities = st.lists(st.tuples(spans, st.lists(st.tuples(quads, st.floats(0, 1)), min_size=1, max_size=3)), max_size=3)


@given(entities)
def test_version_2_is_version_1_by_entity(found: list[tuple[Any, list[tuple[Any, float]]]]) -> None:
    flat = [(span, quad, score) for span, boxes in found for quad, score in boxes]
    rows: list[dict[str, Any]] = [
        {
            "caption": CAPTION,
            "bboxes": [quad for _, quad, _ in flat],
            "scores": [score for *_, score in flat],
            "tokens_positive": [span for span, *_ in flat],
        },
        {
            "caption": CAPTION,
            "bboxes": [[quad for quad, _ in boxes] for _, boxes in found],
            "scores": [[score for _, score in boxes] for _, boxes in found],
            "tokens_positive": [span for span, _ in found],
        },
    ]
    first, second = read_anything([json.dumps(row).encode() for row in rows])
    assert first.phrases == second.phrases
    assert sum(len(phrase.boxes) for phrase in first.phrases) == len(flat)


def read_anything(labels: list[bytes], key: bytes = b"k") -> list[Any]:
    """Reads label rows beside a picture that is no picture."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "label.tsv").write_bytes(b"".join(key + b"\t" + label + b"\n" for label in labels))
        (folder / "img.tsv").write_bytes(b"k\tAAAA\n" * len(labels))
        (folder / "set.yaml").write_text("img: img.tsv\nlabel: label.tsv\n")
        context = SourceContext("human", "test", load_all(ROOT / "params.yaml").prepare, 0)
        (table,) = read_glip_tsv(context, annotations=Url(folder / "set.yaml"))
        return [row for part in table.parts(9) for row in part.rows()]


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 50) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
values = st.dictionaries(st.sampled_from(["caption", "bboxes", "scores", "tokens_positive", "objects", "img_id"]), junk)
objects = st.lists(st.dictionaries(st.sampled_from(["class", "rect", "IsGroupOf"]), junk) | junk, max_size=4)


@given(st.sampled_from([VERSION_1, OBJECTS[0]]), st.binary(max_size=9), junk | values | objects, st.binary(max_size=4))
def test_whatever_a_row_holds_it_is_a_row_or_a_reject(first: Any, noise: bytes, row: Any, key: bytes) -> None:
    lines = [json.dumps(first).encode(), json.dumps(row).encode(), noise.replace(b"\n", b"")]
    rows = read_anything(lines, key.replace(b"\n", b"").replace(b"\t", b""))
    assert len(rows) == 3
    told = list(to_records(rows, Rules(source="t", pictures="embed", max_pixels=10**6)))
    assert all(isinstance(item, Reject | DroppedBox) for item in told)


def test_a_huge_picture_is_refused(data_set: DataSet, context: SourceContext, read_rows: Read) -> None:
    out = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(out, "PNG")
    (table,) = read_glip_tsv(context, annotations=data_set.write([VERSION_1], pictures=[out.getvalue()]))
    assert read_rows(table) == [Reject("k0", "image_too_large")]


def test_rows_without_a_second_column_are_rejects(data_set: DataSet, context: SourceContext, read_rows: Read) -> None:
    url = data_set.write([VERSION_1], has_index=False)
    with (data_set.folder / "label.tsv").open("a") as file:
        file.write("x" * 1000 + "\n\n")
    with (data_set.folder / "img.tsv").open("a") as file:
        file.write("k1\n\n")
    (table,) = read_glip_tsv(context, annotations=url)
    _, long, empty = read_rows(table)
    assert long == Reject("x" * 200, "row_malformed")
    assert empty.reason == "row_malformed"
    assert "label.tsv, byte" in empty.name


def test_pictures_that_are_missing_at_the_end_are_rejects(
    data_set: DataSet, context: SourceContext, read_rows: Read
) -> None:
    url = data_set.write([VERSION_1] * 2, has_index=False)
    text = (data_set.folder / "img.tsv").read_text()
    (data_set.folder / "img.tsv").write_text(text.splitlines(keepends=True)[0])
    (table,) = read_glip_tsv(context, annotations=url)
    record, reject = read_rows(table)
    assert isinstance(record, GroundingRecord)
    assert reject.reason == "row_malformed"


def test_an_index_of_another_file_is_told(data_set: DataSet, context: SourceContext) -> None:
    url = data_set.write(OBJECTS)
    whole = (data_set.folder / "img.tsv").read_bytes()
    (data_set.folder / "img.tsv").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MissingInputError, match=r"img\.tsv: \d+ bytes, but its \.lineidx has a row at byte"):
        read_glip_tsv(context, annotations=url)


def test_files_outside_of_the_folder_are_refused(data_set: DataSet, context: SourceContext) -> None:
    data_set.write(OBJECTS)
    for name in ("../label.tsv", "/etc/passwd", "file:///etc/passwd", "a::b", 5):
        (data_set.folder / "set.yaml").write_text(yaml.safe_dump({"img": "img.tsv", "label": name}))
        with pytest.raises(MissingInputError, match="expected a file in the YAML file's folder or below"):
            read_glip_tsv(context, annotations=Url(data_set.folder / "set.yaml"))


def test_a_yaml_file_runs_no_code(data_set: DataSet, context: SourceContext) -> None:
    url = data_set.write(OBJECTS)
    (data_set.folder / "set.yaml").write_text('!!python/object/apply:os.mkdir ["made-by-yaml"]')
    with pytest.raises(MissingInputError, match="not readable as YAML"):
        read_glip_tsv(context, annotations=url)
    assert not os.path.exists("made-by-yaml")


def test_parts_change_when_a_file_does(data_set: DataSet, context: SourceContext) -> None:
    def identities(url: Url) -> list[str]:
        (table,) = read_glip_tsv(context, annotations=url)
        return [part.identity for part in table.parts(9)]

    before = identities(data_set.write(OBJECTS, linelist="0\n1\n"))
    assert identities(data_set.write(OBJECTS, linelist="0\n12\n")) != before


def test_pictures_may_be_found_by_their_ids(data_set: DataSet, context: SourceContext, read_rows: Read) -> None:
    rows = [{**VERSION_1, "img_id": name} for name in ("b", "a", "nobody", 7, ["a"], "\ud800", "far")]
    lines = {"a": 0, "b": 2, "7": 1, "far": 10**30, "\u00e9": "x"}
    (table,) = read_glip_tsv(context, annotations=data_set.write(rows, imageid2idx=lines))
    for rows_per_part in (1, 9):
        widths = [getattr(row, "width", "reject") for row in read_rows(table, rows_per_part)]
        assert widths == [42, 40, "reject", 41, "reject", "reject", "reject"]
    with pytest.raises(MissingInputError, match="not readable as JSON"):
        read_glip_tsv(context, annotations=data_set.write(rows, imageid2idx='{"a": 0, "b"'))


def test_bad_rows_are_rejects(data_set: DataSet, context: SourceContext, read_rows: Read) -> None:
    bad: list[Any] = [VERSION_1, "{", "5", {"caption": CAPTION}, {**VERSION_1, "bboxes": 5, "scores": "x"}]
    (table,) = read_glip_tsv(context, annotations=data_set.write(bad))
    first, *rest, dropped, last = read_rows(table)
    assert first.phrases
    assert [row.reason for row in rest] == ["row_malformed", "row_malformed", "no_phrases"]
    assert dropped.reason == "box_malformed"
    assert [phrase.boxes for phrase in last.phrases] == [()]
    (data_set.folder / "img.tsv").write_text("k0\t1\tnot base64!\n" * 5)
    (data_set.folder / "img.lineidx").write_text("\n".join(str(i * 17) for i in range(5)))
    (table,) = read_glip_tsv(context, annotations=Url(data_set.folder / "set.yaml"))
    assert read_rows(table)[0] == Reject("k0", "image_unreadable")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("set.yaml", "[1]", "expected a mapping with img and label"),
        ("set.yaml", "img: [", "not readable as YAML"),
        ("label.lineidx", "zero", "is not a list of offsets"),
        ("label.lineidx", "", "no rows"),
        ("label.lineidx", "-1", "its .lineidx has a row at byte -1"),
        ("label.tsv", 'k0\t[{"caption": "a dog"}]\n' * 9, "neither lists of objects"),
        ("labelmap", "{", "not readable as JSON"),
        ("labelmap", "[1]", "not readable as JSON"),
    ],
)
def test_broken_files_are_told(
    data_set: DataSet, name: str, content: str, message: str, context: SourceContext
) -> None:
    url = data_set.write(OBJECTS, labelmap={"dog": 1})
    (data_set.folder / name).write_text(content)
    with pytest.raises(MissingInputError, match=message):
        read_glip_tsv(context, annotations=url)


def test_a_missing_file_is_named(data_set: DataSet, context: SourceContext) -> None:
    url = data_set.write(OBJECTS)
    (data_set.folder / "img.tsv").unlink()
    (data_set.folder / "img.lineidx").unlink()
    with pytest.raises(MissingInputError, match=r"img\.tsv: no such file"):
        read_glip_tsv(context, annotations=url)


def test_a_yaml_whose_pictures_are_null_is_refused(tmp_path: Path, context: SourceContext) -> None:
    (tmp_path / "set.yaml").write_text("img:\nlabel: label.tsv\n")
    with pytest.raises(MissingInputError, match="expected a mapping with img and label"):
        read_glip_tsv(context, annotations=Url(tmp_path / "set.yaml"))
