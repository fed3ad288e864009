"""MDETR's grounding files: pictures with captions, boxes with spans."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, MissingInputError
from pipeline.prepare.raw import DroppedBox, RawGrounding, Reject, SourceContext, Url
from pipeline.prepare.readers.mdetr import read_mdetr
from pipeline.prepare.validation import Rules, to_records
from pipeline.settings import load_all
from pipeline.store.records import GroundingRecord

ROOT = Path(__file__).resolve().parents[4]
CAPTION = "Two dogs chase a red ball."


def write(folder: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> Url:
    content = {"info": [], "licenses": [], "images": images, "annotations": annotations, "categories": []}
    (folder / "mdetr.json").write_text(json.dumps(content), encoding="utf-8")
    return Url(folder / "mdetr.json")


def entry(name: str = "1000092795.jpg", number: int = 0, **values: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name, "height": 30, "width": 40, "caption": CAPTION, **values}


def box(xywh: list[float], *spans: list[int], image: int = 0) -> dict[str, Any]:
    return {"image_id": image, "bbox": xywh, "tokens_positive": list(spans), "category_id": 1, "iscrowd": 0}


def test_boxes_of_the_same_words_are_one_phrase(
    tmp_path: Path, picture: Callable[..., bytes], context: SourceContext, read_rows: Callable[..., list[Any]]
) -> None:
    (tmp_path / "1000092795.jpg").write_bytes(picture())
    boxes = [box([1, 1, 8, 8], [0, 8]), box([20, 2, 9, 9], [15, 25]), box([11, 1, 8, 8], [0, 8])]
    both = box([5, 5, 9, 9], [0, 8], [15, 25])
    url = write(tmp_path, [entry(dataset_name="flickr", original_img_id=1000092795)], [*boxes, both])
    (table,) = read_mdetr(context, annotations=url, images={"flickr": Url(tmp_path)})
    (record,) = read_rows(table)
    assert isinstance(record, GroundingRecord)
    assert record.caption == CAPTION
    assert [(phrase.text, [item.xyxy for item in phrase.boxes]) for phrase in record.phrases] == [
        ("Two dogs", [(1.0, 1.0, 9.0, 9.0), (11.0, 1.0, 19.0, 9.0)]),
        ("a red ball", [(20.0, 2.0, 29.0, 11.0)]),
        ("Two dogs a red ball", [(5.0, 5.0, 14.0, 14.0)]),
    ]


@pytest.mark.parametrize(
    ("role", "task", "folder"),
    [("test", "referring", "referring"), ("test", "grounding", None), ("human", "referring", None)],
)
def test_a_file_of_expressions_is_judged_as_such(
    tmp_path: Path, context: SourceContext, role: str, task: Literal["grounding", "referring"], folder: str | None
) -> None:
    url = write(tmp_path, [entry()], [box([1, 1, 8, 8], [0, 8])])
    context = dataclasses.replace(context, role=role)
    (table,) = read_mdetr(context, annotations=url, images={"flickr": Url(tmp_path)}, task=task)
    assert table.folder == folder


@pytest.mark.parametrize("role", ["dev", "test"])
def test_models_are_judged_by_the_phrases_that_are_asked_for(
    tmp_path: Path, role: str, context: SourceContext, read_rows: Callable[..., list[Any]]
) -> None:
    asked = [[[15, 25]], [[0, 8]], [[9, 14]]]
    boxes = [box([1, 1, 8, 8], [0, 8]), box([20, 2, 9, 9], [15, 25], [0, 8]), box([1, 2, 9, 9], [3, 8])]
    url = write(tmp_path, [entry(tokens_positive_eval=asked, data_source="flickr")], boxes)
    judged = dataclasses.replace(context, role=role)
    (table,) = read_mdetr(judged, annotations=url, images={"flickr": Url(tmp_path)})
    dropped, record = read_rows(table, pictures="unread")
    assert dropped == DroppedBox("1000092795.jpg (0)", "span_empty")
    assert [(phrase.text, len(phrase.boxes)) for phrase in record.phrases] == [
        ("a red ball", 1),
        ("Two dogs", 2),
        ("chase", 0),
    ]


def test_training_takes_all_spans_of_a_box_at_once(
    tmp_path: Path, context: SourceContext, read_rows: Callable[..., list[Any]]
) -> None:
    asked = [[[0, 8]], [[15, 25]]]
    boxes = [box([1, 1, 8, 8], [15, 25], [0, 8]), box([2, 1, 8, 8], [0, 8], [15, 25])]
    url = write(tmp_path, [entry(tokens_positive_eval=asked, data_source="flickr")], boxes)
    (table,) = read_mdetr(context, annotations=url, images={"flickr": Url(tmp_path)})
    (record,) = read_rows(table, pictures="unread")
    assert [(phrase.char_spans, len(phrase.boxes)) for phrase in record.phrases] == [(((0, 8), (15, 25)), 2)]


def test_flickr_writes_sizes_as_text(
    tmp_path: Path, context: SourceContext, read_rows: Callable[..., list[Any]]
) -> None:
    values = {"height": "500", "width": "371", "dataset_name": "flickr", "caption": "<b>2 boys</b> &amp; a dog"}
    url = write(tmp_path, [entry(**values)], [box([1, 1, 300, 8], [3, 9])])
    (table,) = read_mdetr(context, annotations=url, images={"flickr": Url(tmp_path)})
    (record,) = read_rows(table, pictures="unread")
    assert (record.height, record.width) == (500, 371)
    assert (record.caption, record.phrases[0].text) == ("<b>2 boys</b> &amp; a dog", "2 boys")


@pytest.mark.parametrize(
    ("values", "kind", "place", "picture_id"),
    [
        ({"dataset_name": "flickr", "original_img_id": 77}, "flickr", "1000092795.jpg", "flickr30k/77"),
        ({"dataset_name": "flickr"}, "flickr", "flickr30k_images/1000092795.jpg", "flickr30k/1000092795"),
        ({"data_source": "vg", "file_name": "2355.jpg"}, "vg", "VG_100K_2/2355.jpg", "vg/2355"),
        ({"data_source": "vg", "file_name": "2355.jpg", "original_id": "2355"}, "vg", "images/2355.jpg", "vg/2355"),
        ({"file_name": "gqa/2355.jpg"}, "vg", "2355.jpg", "vg/2355"),
        ({"data_source": "coco", "file_name": "x.jpg", "original_id": 12}, "coco", "x.jpg", "coco/12"),
        ({"file_name": "000000000009.jpg"}, "coco", "COCO_train2014_000000000009.jpg", "coco/9"),
        (
            {"data_source": "coco", "file_name": "COCO_train2014_000000000009.jpg"},
            "coco",
            "train2014/COCO_train2014_000000000009.jpg",
            "coco/9",
        ),
        (
            {"dataset_name": "refcoco", "file_name": "COCO_train2014_000000000009.jpg"},
            "coco",
            "train2017/000000000009.jpg",
            "coco/9",
        ),
    ],
)
def test_pictures_are_looked_for_where_they_come_from(
    values: dict[str, Any],
    kind: str,
    place: str,
    picture_id: str,
    tmp_path: Path,
    picture: Callable[..., bytes],
    context: SourceContext,
    read_rows: Callable[..., list[Any]],
) -> None:
    for name in ("coco", "vg", "flickr"):
        (tmp_path / name).mkdir()
    (tmp_path / kind / place).parent.mkdir(exist_ok=True)
    (tmp_path / kind / place).write_bytes(picture())
    folders = {name: Url(tmp_path / name) for name in ("coco", "vg", "flickr")}
    url = write(tmp_path, [entry(**values)], [box([1, 1, 8, 8], [0, 8])])
    (table,) = read_mdetr(context, annotations=url, images=folders)
    (record,) = read_rows(table, pictures="reference")
    assert record.image.path == str(tmp_path / kind / place)
    (raw,) = [row for part in table.parts(9) for row in part.rows()]
    assert isinstance(raw, RawGrounding)
    assert raw.image.picture_id == picture_id


def test_bad_rows_are_rejects(tmp_path: Path, context: SourceContext, read_rows: Callable[..., list[Any]]) -> None:
    images = [entry("../a.jpg", 0), entry("b.jpg", 1, caption=None), {"id": 2}, entry("c.jpg", 3), entry("d.jpg", 4)]
    annotations = [box([1, 1, 8, 8], [0, 8]), {"image_id": 3, "bbox": "x", "tokens_positive": 5}]
    annotations.append({"image_id": 4, "bbox": [1, 1, 8, 8], "tokens_positive": [["a", "b"], [7, 8, 9], 4]})
    (table,) = read_mdetr(context, annotations=write(tmp_path, images, annotations), images={"vg": Url(tmp_path)})
    reasons = [row.reason for row in read_rows(table, pictures="unread")]
    assert reasons == [
        "image_outside_folder",
        "caption_empty",
        "row_malformed",
        "span_empty",
        "no_phrases",
        "span_empty",
        "no_phrases",
    ]


def test_other_folders_and_files_are_told(tmp_path: Path, context: SourceContext) -> None:
    url = write(tmp_path, [], [])
    with pytest.raises(ConfigError, match=r"images names \['gqa'\]; expected coco, vg, flickr"):
        read_mdetr(context, annotations=url, images={"gqa": Url(tmp_path)})
    with pytest.raises(MissingInputError, match="no pictures in a list 'images'"):
        read_mdetr(context, annotations=url, images={"vg": Url(tmp_path)})
    (tmp_path / "mdetr.json").write_text('{"images": [{"id": 1}')
    with pytest.raises(MissingInputError, match="not readable as JSON"):
        read_mdetr(context, annotations=url, images={"vg": Url(tmp_path)})
    (tmp_path / "mdetr.json").write_text("")
    with pytest.raises(MissingInputError, match="not readable as JSON"):
        read_mdetr(context, annotations=url, images={"vg": Url(tmp_path)})
    with pytest.raises(MissingInputError, match="nowhere: no such file"):
        read_mdetr(context, annotations=Url(tmp_path / "nowhere"), images={"vg": Url(tmp_path)})


def test_pictures_without_a_folder_of_their_kind_are_missing(
    tmp_path: Path, context: SourceContext, read_rows: Callable[..., list[Any]]
) -> None:
    url = write(tmp_path, [entry(data_source="coco")], [box([1, 1, 8, 8], [0, 8])])
    folders = {"vg": Url(tmp_path), "flickr": Url(tmp_path)}
    (table,) = read_mdetr(context, annotations=url, images=folders)
    assert read_rows(table) == [Reject("1000092795.jpg (0)", "image_missing")]


def test_an_entry_whose_id_came_before_has_no_boxes(
    tmp_path: Path, context: SourceContext, read_rows: Callable[..., list[Any]]
) -> None:
    url = write(tmp_path, [entry(), entry("b.jpg")], [box([1, 1, 8, 8], [0, 8])])
    (table,) = read_mdetr(context, annotations=url, images={"vg": Url(tmp_path)})
    first, again = read_rows(table, 1, pictures="unread")
    assert len(first.phrases) == 1
    assert again == Reject("b.jpg (None)", "no_phrases")


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 50)
    | st.floats(allow_nan=False, allow_infinity=False, width=32)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
spans = st.lists(st.tuples(st.integers(-1, 26), st.integers(-1, 26)), max_size=3)
quads = st.lists(st.integers(-5, 50), min_size=4, max_size=4)


@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(("caption", "file_name", "height", "data_source"), junk)),
    st.lists(st.tuples(quads | junk, spans | junk), max_size=5),
    st.lists(spans | junk, max_size=3) | junk,
    st.sampled_from(["human", "test"]),
)
def test_whatever_a_file_holds_every_box_is_kept_or_counted(
    values: dict[str, Any], boxes: list[tuple[Any, Any]], asked: Any, role: str
) -> None:
    images = [entry(**{"tokens_positive_eval": asked, **values})]
    annotations = [{"image_id": 0, "bbox": bbox, "tokens_positive": tokens} for bbox, tokens in boxes]
    context = SourceContext(role, "test", load_all(ROOT / "params.yaml").prepare, 0)
    with TemporaryDirectory() as folder:
        (table,) = read_mdetr(context, annotations=write(Path(folder), images, annotations), images={"vg": Url("/x")})
        rows = [row for part in table.parts(9) for row in part.rows()]
    told = list(to_records(rows, Rules(source="t", pictures="unread", max_pixels=10**6, roots=("/",))))
    if any(isinstance(row, GroundingRecord) for row in told):
        kept = sum(len(phrase.boxes) for row in told if isinstance(row, GroundingRecord) for phrase in row.phrases)
        total = kept + sum(isinstance(row, DroppedBox) for row in told)
        # A box that speaks of several phrases that are asked for is a box of each.
        assert total >= len(boxes) if role == "test" else total == len(boxes)
    else:
        assert isinstance(told[-1], Reject)
