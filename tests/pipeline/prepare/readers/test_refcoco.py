from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import MissingInputError
from pipeline.prepare.raw import RawTable, Reject, SourceContext, Url
from pipeline.prepare.readers.refcoco import read_refcoco
from pipeline.prepare.validation import Rules, to_records
from pipeline.store.records import GroundingRecord

DATA = Path(__file__).resolve().parents[5] / "shared" / "data"
ReadRows = Callable[..., list[Any]]
Read = Callable[..., list[RawTable]]

LADY = "COCO_train2014_000000581857.jpg"
CAT = "COCO_train2014_000000098304.jpg"

# The first reference of RefCOCO's refs(unc).p, as Python 2 pickles it.
LADY_PICKLE = b"""(lp1
(dp2
S'sent_ids'
p3
(lp4
I0
aI1
asS'file_name'
p5
S'COCO_train2014_000000581857_16.jpg'
p6
sS'ann_id'
p7
I1719310
sS'ref_id'
p8
I0
sS'image_id'
p9
I581857
sS'split'
p10
S'train'
p11
sS'sentences'
p12
(lp13
(dp14
S'tokens'
p15
(lp16
Vthe
p17
aVlady
p18
asS'raw'
p19
VTHE LADY WITH THE BLUE SHIRT
p20
sS'sent_id'
p21
I0
sS'sent'
p22
Vthe lady with the blue shirt
p23
sa(dp24
g19
Vlady w back to us
p25
sg21
I1
sg22
Vlady with back to us
p26
sasS'category_id'
p27
I1
sa."""


def reference(split: str = "train", *sentences: str, **changed: Any) -> dict[str, Any]:
    values = {
        "sent_ids": list(range(len(sentences))),
        "file_name": "COCO_train2014_000000581857_16.jpg",
        "ann_id": 1719310,
        "ref_id": 0,
        "image_id": 581857,
        "split": split,
        "category_id": 1,
        "sentences": [
            {"tokens": text.split(), "raw": text.upper(), "sent_id": i, "sent": text}
            for i, text in enumerate(sentences)
        ],
    }
    return values | changed


def instances(**changed: Any) -> dict[str, Any]:
    return {
        "info": {"description": "hand-made"},
        "licenses": [],
        "images": [
            {"id": 98304, "file_name": CAT, "height": 30, "width": 40, "license": 4},
            {"id": 581857, "file_name": LADY, "height": 30, "width": 40, "license": 1},
        ],
        "annotations": [
            {"id": 3007, "image_id": 98304, "bbox": [1.5, 2, 10, 12.25], "category_id": 18, "iscrowd": 0, "area": 1},
            {"id": 1719310, "image_id": 581857, "bbox": [3, 4, 20, 10], "category_id": 1, "iscrowd": 0, "area": 1},
            {"id": 1, "image_id": 581857, "bbox": [0, 0, 5, 5], "category_id": 1, "iscrowd": 0, "area": 1},
        ],
        "categories": [{"supercategory": "person", "id": 1, "name": "person"}],
        **changed,
    }


@pytest.fixture
def read(context: SourceContext, tmp_path: Path, picture: Callable[..., bytes]) -> Read:
    """Writes the two files and two pictures, and opens them."""
    (tmp_path / "train2014").mkdir()
    (tmp_path / "train2014" / LADY).write_bytes(picture())
    (tmp_path / "train2014" / CAT).write_bytes(picture(colour="blue"))

    def write_and_open(
        content: Any, boxes: Any = None, split: Any = "train", role: str = context.role, **options: Any
    ) -> list[RawTable]:
        refs, boxes_json = tmp_path / "refs(unc).p", tmp_path / "instances.json"
        refs.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, 2))
        boxes = instances() if boxes is None else boxes
        boxes_json.write_text(boxes if isinstance(boxes, str) else json.dumps(boxes), encoding="utf-8")
        options = {"images": Url(tmp_path / "train2014")} | options
        return read_refcoco(
            replace(context, role=role), refs=Url(refs), instances=Url(boxes_json), split=split, **options
        )

    return write_and_open


def test_every_expression_of_a_python_2_file_is_a_row(read: Read, read_rows: ReadRows) -> None:
    [table] = read(LADY_PICKLE)
    records = read_rows(table)
    assert table.record_type is GroundingRecord
    assert table.num_rows == 2
    assert [record.caption for record in records] == ["the lady with the blue shirt", "lady with back to us"]
    [phrase] = records[0].phrases
    assert phrase.char_spans == ((0, 28),)
    assert [box.xyxy for box in phrase.boxes] == [(3, 4, 23, 14)]
    assert (records[0].height, records[0].width) == (30, 40)


@pytest.mark.parametrize(
    ("role", "folder"), [("human", None), ("dev", "referring"), ("test", "referring"), ("held_out", None)]
)
def test_models_are_judged_by_expressions_and_learn_from_captions(read: Read, role: str, folder: str | None) -> None:
    [table] = read(LADY_PICKLE, role=role)
    assert table.folder == folder


def test_raw_text_is_read_on_request(read: Read, read_rows: ReadRows) -> None:
    records = read_rows(read(LADY_PICKLE, text="raw")[0])
    assert [record.caption for record in records] == ["THE LADY WITH THE BLUE SHIRT", "lady w back to us"]


def test_the_same_words_of_two_people_count_twice(read: Read, read_rows: ReadRows) -> None:
    records = read_rows(read([reference("train", "left lady", "lady", "left lady", "left lady")])[0])
    assert [record.caption for record in records] == ["left lady", "lady", "left lady", "left lady"]
    assert len({record.key for record in records}) == 4


def test_pictures_are_known_by_their_number_in_coco(read: Read) -> None:
    [part] = read(LADY_PICKLE)[0].parts(10)
    assert {row.image.picture_id for row in part.rows()} == {"coco/581857"}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "place", [LADY, f"train2014/{LADY}", "train2017/000000581857.jpg", "val2017/000000581857.jpg", "000000581857.jpg"]
)
def test_pictures_are_found_in_every_usual_layout(
    read: Read, read_rows: ReadRows, tmp_path: Path, picture: Callable[..., bytes], place: str
) -> None:
    path = tmp_path / "layout" / place
    path.parent.mkdir(parents=True)
    path.write_bytes(picture())
    records = read_rows(read(LADY_PICKLE, images=Url(tmp_path / "layout"))[0])
    assert [type(record) for record in records] == [GroundingRecord] * 2


@pytest.mark.parametrize(
    ("split", "captions"),
    [
        ("train", ["a"]),
        ("val", ["b"]),
        ("test", ["c", "d", "e"]),
        ("testA", ["c", "e"]),
        ("testB", ["d", "e"]),
    ],
)
def test_splits(read: Read, read_rows: ReadRows, split: str, captions: list[str]) -> None:
    names = ("train", "val", "testA", "testB", "testAB")
    refs = [reference(name, text) for name, text in zip(names, "abcde", strict=True)]
    [table] = read(refs, split=split)
    assert [record.caption for record in read_rows(table)] == captions
    assert table.num_rows == len(captions)


def test_absent_split_is_named_with_those_that_are_there(read: Read) -> None:
    with pytest.raises(MissingInputError, match=r"refs\(unc\)\.p: no references in split 'testA' \(found: train, val"):
        read([reference("train", "a"), reference("val", "b")], split="testA")


def test_parts_hold_their_own_pictures_and_all_rows(read: Read, read_rows: ReadRows) -> None:
    cat = {"image_id": 98304, "ann_id": 3007}
    refs = [reference("train", "one", "two"), reference("train", "cat", **cat), reference("train", "three")]
    [table] = read(refs)
    assert [part.num_rows for part in table.parts(1)] == [1, 3]
    assert [record.caption for record in read_rows(table, rows_per_part=1)] == ["cat", "one", "two", "three"]


def test_identity_follows_files_and_options(read: Read) -> None:
    def identity(*arguments: Any, **options: Any) -> str:
        [part] = read(*arguments, **options)[0].parts(10)
        return part.identity

    refs = [reference("train", "a"), reference("val", "a")]
    first = identity(refs)
    assert identity(refs, split="val") != first
    assert identity(refs, text="raw") != first
    assert identity([*refs, reference("train", "b")]) != first
    assert identity(refs, instances(info={})) != first


@pytest.mark.parametrize(
    "bad",
    [
        "no reference",
        {"sentences": []},
        reference("train", "x") | {"split": 7},
        reference("train", "x", ann_id="1719310"),
        reference("train", "x", ann_id=True),
        reference("train", "x", ann_id=404),
        reference("train", "x", ann_id=3007),
        reference("train", "x", image_id=404),
        reference("train", "x", image_id=None),
        reference("train", sentences="x"),
        reference("train", sentences=["x"]),
        reference("train", sentences=[{"raw": "x"}]),
        reference("train", sentences=[{"sent": 1.5}]),
    ],
)
def test_references_that_cannot_be_used_are_rejected_one_by_one(read: Read, read_rows: ReadRows, bad: Any) -> None:
    [table] = read([reference("train", "good"), bad])
    rows = read_rows(table)
    assert sorted(type(row).__name__ for row in rows) == ["GroundingRecord", "Reject"]
    assert [row.reason for row in rows if isinstance(row, Reject)] == ["row_malformed"]


@pytest.mark.parametrize("bbox", [None, "wide", [1, 2, 3], [1, 2, "three", 4], {"x": 1}])
def test_reference_whose_box_has_no_numbers_is_rejected(read: Read, read_rows: ReadRows, bbox: Any) -> None:
    boxes = instances(annotations=[{"id": 1719310, "image_id": 581857, "bbox": bbox}])
    rows = read_rows(read([reference("train", "good")], boxes)[0])
    assert rows == [Reject("reference 0", "row_malformed")]


def test_captions_are_kept_as_they_are(read: Read, read_rows: ReadRows) -> None:
    texts = ["<b>bold</b> &amp; more", "caf\u00e9 \U0001f600", ""]
    rows = read_rows(read([reference("train", *texts)])[0])
    assert [row.caption for row in rows[:2]] == texts[:2]
    assert rows[2].reason == "caption_empty"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../../secret.jpg", "image_outside_folder"),
        ("/etc/passwd", "image_outside_folder"),
        ("s3://bucket/x.jpg", "image_outside_folder"),
        ("absent.jpg", "image_missing"),
        (None, "row_malformed"),
        (["a.jpg"], "row_malformed"),
    ],
)
def test_picture_names_stay_inside_their_folder(read: Read, read_rows: ReadRows, name: Any, reason: str) -> None:
    boxes = instances(images=[{"id": 581857, "file_name": name, "height": 30, "width": 40}])
    rows = read_rows(read([reference("train", "one", "two")], boxes)[0])
    assert [row.reason for row in rows] == [reason] * 2


def test_entries_of_instances_that_come_twice_or_broken_do_no_harm(read: Read, read_rows: ReadRows) -> None:
    good = instances()
    broken = [None, 7, {"id": "581857"}, {"id": [1]}, {"image_id": 581857}, {"id": 1719310, "image_id": "\ud800"}]
    boxes = instances(images=good["images"] * 2 + broken, annotations=broken + good["annotations"] * 2)
    rows = read_rows(read([reference("train", "good")], boxes)[0])
    assert [type(row) for row in rows] == [GroundingRecord]


def test_pickle_that_would_run_code_is_refused_and_not_run(read: Read, tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    class Call:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {mark}",)

    for protocol in (0, 2, 4):
        with pytest.raises(MissingInputError, match=r"refs\(unc\)\.p: .*opcode"):
            read(pickle.dumps([reference("train", "a"), Call()], protocol))
    assert not mark.exists()


@pytest.mark.parametrize("refs", [b"", LADY_PICKLE[:-200], b"refs", {"refs": []}, []], ids=str)
def test_file_that_is_no_list_of_references_is_refused(read: Read, refs: Any) -> None:
    with pytest.raises(MissingInputError, match=r"refs\(unc\)\.p: "):
        read(refs)


@pytest.mark.parametrize(
    ("boxes", "found"),
    [
        ("", "not readable as JSON"),
        (json.dumps(instances())[:-300], "not readable as JSON"),
        ("[]", "not readable as JSON"),
        (instances(images=[]), "none of the 1 pictures"),
        (instances(images=[{"id": 7, "file_name": "other.jpg"}]), "none of the 1 pictures"),
    ],
)
def test_instances_of_something_else_are_refused(read: Read, boxes: Any, found: str) -> None:
    with pytest.raises(MissingInputError, match=rf"instances\.json: {found}"):
        read([reference("train", "a")], boxes)


@pytest.mark.parametrize("option", ["refs", "instances"])
def test_absent_file_is_named(context: SourceContext, read: Read, tmp_path: Path, option: str) -> None:
    read(LADY_PICKLE)
    names = {"refs": "refs(unc).p", "instances": "instances.json", option: "absent"}
    refs, boxes = (Url(tmp_path / names[name]) for name in ("refs", "instances"))
    with pytest.raises(MissingInputError, match="absent: no such file"):
        read_refcoco(context, refs=refs, instances=boxes, images=Url(tmp_path), split="train")


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1_719_310) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["sent", "raw", "x"]), inner),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(changed=st.dictionaries(st.sampled_from(sorted(reference())), JSONISH, max_size=3), other=JSONISH)
def test_any_plain_values_become_rows_or_rejects(read: Read, changed: dict[str, Any], other: Any) -> None:
    [table] = read([reference("train", "good"), reference("train", "a", "b") | changed, other])
    rules = Rules(source="test", pictures="unread", max_pixels=1, roots=("/",))
    rows = [row for part in table.parts(2) for row in to_records(part.rows(), rules)]
    assert len(rows) >= table.num_rows  # type: ignore[operator]
    assert {row.caption for row in rows if isinstance(row, GroundingRecord)} >= {"good"}


def test_real_expressions_survive_the_way_through_a_pickle(read: Read, read_rows: ReadRows) -> None:
    path = DATA / "referring_text" / "refcoco_sample_expressions_testA.json"
    if not path.exists():
        pytest.skip(f"needs {path}")
    found = [row["sent"] for row in json.loads(path.read_text(encoding="utf-8"))["predictions"]]
    [table] = read([reference("testA", *found)], split="testA")
    rows = read_rows(table, pictures="unread")
    assert [row.caption for row in rows] == [text for text in found if text.strip()]
    assert all(row.phrases[0].text == row.caption.strip() for row in rows)
