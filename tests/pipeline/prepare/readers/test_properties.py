"""Whatever stands in raw files, every row and box is used or counted, and nothing is raised but our own errors.

A family is a small valid data set, held as plain values that one strategy wounds, whatever the format; it is encoded
after that, and its bytes may be wounded too.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import pickle
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import PipelineError
from pipeline.prepare.raw import (
    Converted,
    DroppedBox,
    RawDetection,
    RawGrounding,
    RawPair,
    RawTable,
    Reject,
    SourceContext,
    Url,
)
from pipeline.prepare.sources import READERS
from pipeline.prepare.validation import Rules, to_records
from pipeline.store.records import DetectionRecord, GroundingRecord

Files = dict[str, Any]
"""The values of a data set's files by their names; the suffix says how each is encoded."""
NUM_EXAMPLES = settings().max_examples if settings().max_examples > 100 else 12
"""Of every family: files are written for each."""
YOLO_LIST = "a.jpg\nb.jpg"
NOTHING_WRITTEN = ("embedded", "embedded_target", "pictures", "detection_records")
"""Readers of nothing that people write: of no files, of pictures alone, and of shards of this project."""


def _picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(out, "PNG")
    return out.getvalue()


PICTURE = _picture()
BASE64 = base64.b64encode(PICTURE).decode()


class Tally(NamedTuple):
    """What came out of a data set."""

    rows: int
    """With a picture, before it is looked at."""
    rejects: int
    boxes: int
    """Of those rows."""
    dropped: int
    """Boxes that the reader could not give to a row."""


@dataclass(frozen=True)
class Family:
    """A data set and how its rows and boxes are counted in its values without the reader."""

    files: Files
    options: Mapping[str, Any]
    """Of the reader; ``@NAME`` stands for a file."""
    num_rows: Callable[[Files], int | None] = lambda files: None
    """Of rows that must come out or be rejected; None where the values do not say."""
    num_boxes: Callable[[Files], int | None] = lambda files: None
    """Of boxes, or of captions of COCO; likewise."""
    may_reject_more: bool = False
    """A row may be rejected for several things."""


def _list(value: Any, *path: Any) -> list[Any]:
    """Return the list at a place of a value; an empty one where there is none."""
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    return value if isinstance(value, list) else []


def _size(value: Any) -> int:
    """Count the entries of what should be a list; what is none counts as one that is broken."""
    return len(value) if isinstance(value, list) else int(value is not None and value not in ("", {}))


def _lengths(rows: list[Any], name: str) -> int:
    return sum(_size(row.get(name)) for row in rows if isinstance(row, dict))


def _lines(name: str) -> Callable[[Files], int | None]:
    return lambda files: len(files[name]) if isinstance(files[name], list) else None


def _yolo_lines(files: Files) -> int:
    texts = (_text(files[name]) for name in ("a.txt", "b.txt"))
    return sum(bool(line.strip()) for text in texts for line in text.splitlines())


def _odvg_boxes(files: Files) -> int:
    count = 0
    for row in _list(files["a.jsonl"]):
        if isinstance(row, dict) and isinstance(row.get("detection"), dict):
            count += _size(row["detection"].get("instances"))
        if isinstance(row, dict) and isinstance(row.get("grounding"), dict):
            regions = row["grounding"].get("regions")
            for region in regions if isinstance(regions, list) else [None] * _size(regions):
                boxes = region.get("bbox") if isinstance(region, dict) else None
                is_several = isinstance(boxes, list) and boxes and isinstance(boxes[0], list)
                count += len(boxes) if is_several else 1
    return count


def _tsv_labels(files: Files) -> list[Any]:
    """Return the labels of the file's lines as they stand there; None for one that is not JSON."""
    found = []
    for line in _encode(files)["label.tsv"].removesuffix(b"\n").split(b"\n"):
        cells = line.rstrip(b"\r").split(b"\t")
        try:
            found.append(json.loads(cells[1]))
        except (IndexError, ValueError, RecursionError):
            found.append(None)
    return found


def _glip_boxes(files: Files) -> int:
    count = 0
    for label in _tsv_labels(files):
        objects = label.get("objects") if isinstance(label, dict) else label
        if isinstance(label, dict) and "caption" in label:
            boxes, scores = label.get("bboxes"), label.get("scores")
            rows = boxes if isinstance(boxes, list) else [None] * _size(boxes)
            firsts = [box[0] for box in rows if isinstance(box, list) and box] + _list(scores)
            by_entity = any(isinstance(first, list) for first in firsts)
            count += sum(_size(box) for box in rows) if by_entity else len(rows)
        elif isinstance(objects, list):
            count += len(objects)
    return count


def _csv_rows(files: Files, name: str) -> list[list[str]]:
    text = _encode(files)[name].decode("utf-8", "replace").replace("\0", "")
    return [row for row in csv.reader(io.StringIO(text, newline="")) if row]


def _xml_objects(files: Files) -> int | None:
    count = 0
    for place, data in _encode(files).items():
        if place.endswith(".xml"):
            try:
                count += len(ElementTree.fromstring(data.decode()).findall("object"))
            except (ElementTree.ParseError, UnicodeDecodeError, ValueError):
                return None
    return count


def _expressions(files: Files) -> int:
    refs = [ref for ref in _list(files["refs.p"]) if isinstance(ref, dict) and ref.get("split") == "train"]
    return _lengths(refs, "sentences")


def _tar_keys(files: Files) -> int:
    """Count the names without their known suffixes."""
    with tarfile.open(fileobj=io.BytesIO(_encode(files)["a.tar"])) as archive:
        names = [name for name in archive.getnames() if name.endswith((".png", ".txt"))]
    return len({name[:-4] for name in names if not name.rpartition("/")[2].startswith(".")})


BOXES = [[1, 2, 20, 10], [3, 3, 5.5, 6], [-4, 0, 60, 60]]
COCO = {
    "info": {"year": 2017, "more": [1, {"a": None}]},
    "images": [{"id": i, "file_name": name, "height": 30, "width": 40} for i, name in enumerate(("a.jpg", "b.jpg"))],
    "annotations": [
        {"id": i, "image_id": i % 2, "category_id": 1 + i % 2, "bbox": box, "area": 9, "iscrowd": 0, "caption": "a dog"}
        for i, box in enumerate(BOXES)
    ],
    "categories": [{"id": 1, "name": "dog", "frequency": "r"}, {"id": 2, "name": "cat"}],
}


def _coco(name: str) -> dict[str, Any]:
    return {
        "num_rows": lambda files: len(_list(files[name], "images")),
        "num_boxes": lambda files: len(_list(files[name], "annotations")),
    }


CAPTIONED = deepcopy(COCO)
for _entry in CAPTIONED["images"]:  # type: ignore[attr-defined]
    _entry |= {"caption": "a dog and a cat", "tokens_positive_eval": [[[0, 5]], [[10, 15]]], "data_source": "coco"}
for _entry in CAPTIONED["annotations"]:  # type: ignore[attr-defined]
    _entry["tokens_positive"] = [[0, 5]]
REGIONS = [
    {"bbox": [1, 2, 20, 10], "phrase": "a dog", "score": 0.5},
    {"bbox": [[3, 3, 20, 20], [1, 1, 9, 9]], "phrase": ["a", "cat"], "score": [0.5, 1]},
    {"bbox": [1, 2, 20, 10], "tokens_positive": [[0, 5]]},
]
ODVG = [
    {"filename": "a.jpg", "height": 30, "width": 40, "detection": {"instances": [{"bbox": BOXES[0], "label": 0}] * 2}},
    {"filename": "b.jpg", "height": 30, "width": 40, "detection": {"instances": [{"bbox": BOXES[1], "label": 1}]}},
    {"filename": "b.jpg", "grounding": {"caption": "a dog, a cat", "regions": REGIONS}},
]
IMAGE_DATA = [
    {"image_id": i, "url": f"https://x/VG_100K/{i}.jpg", "height": 30, "width": 40, "coco_id": coco}
    for i, coco in enumerate((None, 5, None))
]
VG_ITEMS = [{"x": 1, "y": 2, "w": 20, "h": 10, "names": ["dog"], "phrase": "a dog", "object_id": i} for i in range(2)]
OPEN_IMAGES = [
    ["ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf"],
    ["a", "/m/1", "0.1", "0.5", "0.2", "0.7", "0"],
    ["b", "/m/2", "0.1", "0.5", "0.2", "0.7", "1"],
    ["a", "/m/1", "0", "1", "0", "1", "0"],
]


def _voc(name: str) -> list[Any]:
    corners = [["xmin", "2"], ["ymin", "3"], ["xmax", "20"], ["ymax", "10"]]
    size = ["size", ["width", "40"], ["height", "30"], ["depth", "3"]]
    thing = ["object", ["name", name], ["difficult", "0"], ["bndbox", *corners]]
    return ["annotation", ["filename", "a.jpg"], size, thing, deepcopy(thing)]


GLIP_OBJECTS = [{"class": "dog", "rect": BOXES[0]}, {"class": "cat", "rect": BOXES[1], "IsGroupOf": 1}]
GLIP_CAPTION = {
    "caption": "a dog and a cat",
    "bboxes": [BOXES[0], BOXES[1]],
    "scores": [0.5, 1],
    "tokens_positive": [[[0, 5]], [[10, 15]]],
}
GLIP_YAML = {"img": "img.tsv", "label": "label.tsv"}
GLIP_IMAGES = [["a", BASE64], ["b", BASE64]]
SENTENCES = "[/EN#1/people A dog] and [/EN#2/other a cat] .\nA [/EN#1/people dog] ."
REFS = [
    {"image_id": i, "ann_id": i, "split": "train", "sentences": [{"sent": "the dog", "raw": "The dog"}, {"sent": "it"}]}
    for i in range(2)
]
TAR = [[f"2021.0{i}.{suffix}", content] for i in range(2) for suffix, content in (("png", BASE64), ("txt", "a dog"))]
REGIONS = [[0, 5, 0.1, 0.1, 0.5, 0.5, 0.9], [2, 5, 0.2, 0.2, 0.9, 0.9, 0.6]]
GRIT_TAR = [row for i in range(2) for row in (*TAR[2 * i : 2 * i + 2], [f"2021.0{i}.json", {"noun_chunks": REGIONS}])]

FAMILIES: dict[str, Family] = {
    "coco_detection": Family({"a.json": COCO}, {"annotations": "@a.json", "images": "@"}, **_coco("a.json")),
    "lvis": Family({"a.json": COCO}, {"annotations": "@a.json", "images": "@"}, **_coco("a.json")),
    "objects365": Family({"a.json": COCO}, {"annotations": "@a.json", "images": "@"}, **_coco("a.json")),
    "odinw": Family(
        {"train/_annotations.coco.json": COCO},
        {"folder": "@", "split": "train"},
        **_coco("train/_annotations.coco.json"),
    ),
    "mdetr": Family({"a.json": CAPTIONED}, {"annotations": "@a.json", "images": {"coco": "@"}}, **_coco("a.json")),
    "coco_captions": Family(
        {"a.json": COCO},
        {"annotations": "@a.json", "images": "@"},
        lambda files: len(_list(files["a.json"], "annotations")),
        may_reject_more=True,  # a picture without captions
    ),
    "open_images": Family(
        {"boxes.csv": OPEN_IMAGES, "classes.csv": [["/m/1", "Dog"], ["/m/2", "Cat"]]},
        {"annotations": "@boxes.csv", "images": "@", "classes": "@classes.csv"},
        num_boxes=lambda files: max(len(_csv_rows(files, "boxes.csv")) - 1, 0),
    ),
    "visual_genome_objects": Family(
        {
            "objects.json": [{"image_id": i, "objects": VG_ITEMS} for i in range(3)],
            "image_data.json": IMAGE_DATA,
        },
        {"objects": "@objects.json", "image_data": "@image_data.json", "images": "@", "without_coco": False},
        lambda files: len(_list(files["image_data.json"])),
        lambda files: _lengths(_list(files["objects.json"]), "objects"),
    ),
    "visual_genome_regions": Family(
        {
            "regions.json": [{"id": i, "regions": VG_ITEMS} for i in range(3)],
            "image_data.json": IMAGE_DATA,
        },
        {"regions": "@regions.json", "image_data": "@image_data.json", "images": "@", "without_coco": False},
        lambda files: _lengths(_list(files["regions.json"]), "regions"),
    ),
    "pascal_voc": Family(
        {"xml/a.xml": _voc("dog"), "xml/b.xml": _voc("cat")},
        {"annotations": "@xml", "images": "@"},
        lambda files: 2,
        _xml_objects,
    ),
    "yolo": Family(
        {
            "data.yaml": {"names": ["dog", "cat"], "train": "list.txt"},
            "list.txt": YOLO_LIST,
            "a.txt": "0 0.5 0.5 0.4 0.4\n1 0.2 0.2 0.2 0.2",
            "b.txt": "1 0.1 0.1 0.5 0.1 0.5 0.5",
        },
        {"data": "@data.yaml"},
        lambda files: 2 if files["list.txt"] == YOLO_LIST else None,
        lambda files: _yolo_lines(files) if files["list.txt"] == YOLO_LIST else None,
    ),
    "yolo of darknet": Family(
        {
            "obj.data": "classes = 2\ntrain = data/list.txt\nnames = data/obj.names",
            "obj.names": "dog\ncat",
            "list.txt": YOLO_LIST,
            "a.txt": "0 0.5 0.5 0.4 0.4\n1 0.2 0.2 0.2 0.2",
            "b.txt": "1 0.1 0.1 0.5 0.1 0.5 0.5",
        },
        {"data": "@obj.data"},
        lambda files: 2 if files["list.txt"] == YOLO_LIST else None,
        lambda files: _yolo_lines(files) if files["list.txt"] == YOLO_LIST else None,
        may_reject_more=True,  # where obj.data names no list, all pictures are read
    ),
    "imagenet_boxes": Family(
        {"xml/n1/a.xml": _voc("n1"), "xml/n1/b.xml": _voc("n2"), "synsets.txt": "n1 tench, fish\nn2 dog"},
        {"annotations": "@xml", "images": "@", "synsets": "@synsets.txt"},
        lambda files: 2,
        _xml_objects,
    ),
    "flickr30k_entities": Family(
        {
            "Sentences/a.txt": SENTENCES,
            "Annotations/a.xml": _voc("1"),
            "Sentences/b.txt": SENTENCES,
            "Annotations/b.xml": _voc("2"),
            "train.txt": "a\nb",
        },
        {"annotations": "@", "images": "@", "split": "train"},
    ),
    "refcoco": Family(
        {"refs.p": REFS, "instances.json": COCO},
        {"refs": "@refs.p", "instances": "@instances.json", "images": "@", "split": "train"},
        _expressions,
        may_reject_more=True,
    ),
    "glip_tsv": Family(
        {"a.yaml": GLIP_YAML, "img.tsv": GLIP_IMAGES, "label.tsv": [["a", GLIP_OBJECTS], ["b", GLIP_OBJECTS]]},
        {"annotations": "@a.yaml"},
        lambda files: len(_tsv_labels(files)),
        _glip_boxes,
    ),
    "glip_tsv of captions": Family(
        {"a.yaml": GLIP_YAML, "img.tsv": GLIP_IMAGES, "label.tsv": [["a", GLIP_CAPTION], ["b", GLIP_CAPTION]]},
        {"annotations": "@a.yaml"},
        lambda files: len(_tsv_labels(files)),
        _glip_boxes,
    ),
    "odvg": Family(
        {"a.jsonl": ODVG, "labels.json": {"0": "dog", "1": "cat"}},
        {"annotations": "@a.jsonl", "images": "@", "labels": "@labels.json"},
        _lines("a.jsonl"),
        _odvg_boxes,
        may_reject_more=True,  # a line may be of both kinds
    ),
    "captions_jsonl": Family(
        {"a.jsonl": [{"file_name": "a.jpg", "text": "a dog"}, {"image": "b.jpg", "caption": "a cat"}]},
        {"captions": "@a.jsonl", "images": "@"},
        _lines("a.jsonl"),
    ),
    "url_list": Family(
        {"a.csv": [["caption", "url"], ["a dog", "http://x/a.jpg"], ["a cat", "http://x/b.jpg"]]},
        {"tables": "@a.csv", "images": "@", "file_name": "{url_name}"},
        lambda files: sum(any("://" in cell for cell in row) for row in _csv_rows(files, "a.csv")),
        may_reject_more=True,
    ),
    "image_parquet": Family(
        {"a.parquet": [{"image": {"bytes": BASE64, "path": "a.jpg"}, "text": text} for text in ("a dog", "a cat")]},
        {"tables": "@a.parquet"},
        _lines("a.parquet"),
        may_reject_more=True,
    ),
    "grit": Family(
        {"a.parquet": [{"url": f"http://x/{i}.jpg", "caption": "a dog", "noun_chunks": REGIONS} for i in range(2)]},
        {"tables": "@a.parquet", "images": "@"},
        _lines("a.parquet"),
        may_reject_more=True,
    ),
    "grit of tars": Family({"a.tar": GRIT_TAR}, {"shards": "@a.tar"}, _tar_keys, may_reject_more=True),
    "img2dataset_files": Family(
        {"00000.parquet": [{"key": f"00000000{i}", "caption": "a dog", "status": "success"} for i in range(2)]},
        {"tables": "@00000.parquet", "images": "@"},
        _lines("00000.parquet"),
    ),
    "webdataset": Family({"a.tar": TAR}, {"shards": "@a.tar"}, _tar_keys, may_reject_more=True),
}

# --- Wounds of values ---

ODD = st.one_of(
    st.sampled_from(
        [None, True, 0, -1, 7, 1e308, 1 << 70, float("nan"), float("-inf"), "", "a", "1", "nan", [], {}, [[]], [[], []]]
    ),
    st.sampled_from(["\ud800", "\0", "é\u202e", "../../etc/passwd", "a::b", "x" * 5000, "\r", '"', "\t", "\n", "%s"]),
    st.sampled_from([{"a": [None]}, [None, None], [1, 2, 3, 4], ["1", "2", "3", "4"], {"id": 1}, 10**400]),
    st.just("deep"),
)


def _deep() -> Any:
    value: Any = []
    for _ in range(400):
        value = [value]
    return value


@st.composite
def wounded(draw: st.DrawFn, value: Any) -> Any:
    """Return a value with up to three defects, each anywhere."""
    whole = [deepcopy(value)]
    for _ in range(draw(st.integers(0, 3))):
        holder: Any = whole
        key: Any = 0
        # The path is drawn step by step, so that entries of long lists are no likelier than the fields around them.
        while isinstance(holder[key], list | dict) and holder[key] and draw(st.integers(0, 5)):
            holder = holder[key]
            key = draw(st.sampled_from(list(holder) if isinstance(holder, dict) else range(len(holder))))
        how = draw(st.sampled_from(["odd", "odd", "odd", "away", "doubled", "misspelt", "text", "number"]))
        if how == "away" and holder is not whole:
            del holder[key]
        elif how == "doubled" and isinstance(holder, list) and holder is not whole:
            holder.insert(draw(st.integers(0, len(holder))), deepcopy(holder[key]))
        elif how == "misspelt" and isinstance(holder, dict):
            holder[draw(st.sampled_from([f"{key} ", str(key).upper(), f"{key}s", ""]))] = holder.pop(key)
        elif how == "text":
            holder[key] = str(holder[key])
        elif how == "number" and isinstance(holder[key], str | int | float):
            holder[key] = draw(st.floats(-100, 100) | st.integers(-100, 100))
        else:
            odd = draw(ODD)
            holder[key] = _deep() if odd == "deep" else deepcopy(odd)
    return whole[0]


@st.composite
def torn(draw: st.DrawFn, data: bytes) -> bytes:
    """Return bytes that are cut, turned, of another encoding or behind a byte order mark."""
    how = draw(st.sampled_from(["cut", "turned", "mark", "utf-16", "latin-1", "again", "nothing"]))
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    if how == "cut":
        return data[:at]
    if how == "turned" and data:
        return data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
    if how == "mark":
        return b"\xef\xbb\xbf" + data
    if how in ("utf-16", "latin-1"):
        return data.decode("utf-8", "replace").encode(how, "replace")
    return data + data[:at] if how == "again" else b""


# --- Encoders ---


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _rows(value: Any) -> list[list[str]]:
    rows = value if isinstance(value, list) else [value]
    return [[_text(cell) for cell in row] if isinstance(row, list) else [_text(row)] for row in rows]


def _xml(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], str):
        return f"<{value[0]}>{''.join(map(_xml, value[1:]))}</{value[0]}>"
    return escape(_text(value))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _csv(value: Any) -> bytes:
    out = io.StringIO()
    for row in _rows(value):
        try:
            csv.writer(out, lineterminator="\n").writerow(row)
        except csv.Error:
            out.write(",".join(row) + "\n")
    return _bytes(out.getvalue())


def _tar(value: Any) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for row in _rows(value):
            name, content = [*row, "", ""][:2]
            try:
                data = PICTURE if content == BASE64 else _bytes(content)
                member = tarfile.TarInfo(name.encode("utf-8", "replace").decode())
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
            except ValueError:  # a name that no tar holds
                continue
    return out.getvalue()


def _parquet(value: Any) -> bytes:
    rows = [row if isinstance(row, dict) else {} for row in value] if isinstance(value, list) else [{}]
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        for each in values:
            if isinstance(each, dict) and each.get("bytes") == BASE64:
                each["bytes"] = PICTURE
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            columns[name] = pa.array([_bytes(str(each)) for each in values])
    out = io.BytesIO()
    try:
        pq.write_table(pa.table(columns), out)
    except (pa.ArrowException, ValueError):  # a struct without fields
        return b"PAR1"
    return out.getvalue()


ENCODERS: dict[str, Callable[[Any], bytes]] = {
    "json": lambda value: json.dumps(value).encode(),
    "yaml": lambda value: json.dumps(value).encode(),
    "jsonl": lambda value: "\n".join(map(json.dumps, value if isinstance(value, list) else [value])).encode(),
    "csv": _csv,
    "tsv": lambda value: _bytes("\n".join("\t".join(row) for row in _rows(value))),
    "xml": lambda value: _bytes(_xml(value)),
    **dict.fromkeys(("txt", "data", "names"), lambda value: _bytes(_text(value))),
    "p": lambda value: pickle.dumps(value, protocol=2),
    "tar": _tar,
    "parquet": _parquet,
}


# --- The properties ---


def _option(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {key: _option(item, folder) for key, item in value.items()}
    return Url(folder / value[1:]) if isinstance(value, str) and value.startswith("@") else value


def _read(tables: list[RawTable]) -> Tally:
    """Read all parts; every row must become one record or one reject with all of its boxes told."""
    rows = rejects = boxes = dropped = 0
    for table in tables:
        ids = frozenset(category.id for category in table.categories)
        rules = Rules(source="test", pictures="embed", max_pixels=10_000, categories=ids)
        for part in table.parts(2):
            for row in part.rows():
                out = list(to_records([row], rules))
                records = [item for item in out if isinstance(item, DetectionRecord | GroundingRecord)]
                if isinstance(row, RawDetection | RawGrounding | RawPair):
                    rows += 1
                    num_boxes = _boxes_of(row)
                    boxes += num_boxes
                    assert sum(not isinstance(item, DroppedBox | Converted) for item in out) == 1, out
                    lost = sum(isinstance(item, DroppedBox) for item in out)
                    if records:
                        assert _boxes_of(records[0]) + lost == num_boxes
                rejects += isinstance(row, Reject)
                dropped += isinstance(row, DroppedBox)
    return Tally(rows, rejects, boxes, dropped)


def _boxes_of(row: Any) -> int:
    if isinstance(row, RawDetection | DetectionRecord):
        return len(row.objects)
    return sum(len(phrase.boxes) for phrase in row.phrases) if isinstance(row, RawGrounding | GroundingRecord) else 0


def _run(family: str, contents: Mapping[str, bytes], context: SourceContext) -> Tally | None:
    """Return what is read of a data set; None where it is refused with a message of ours."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for place, data in {"a.jpg": PICTURE, "b.jpg": PICTURE, "0.jpg": PICTURE, **contents}.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_bytes(data)
        options = {key: _option(value, folder) for key, value in FAMILIES[family].options.items()}
        try:
            return _read(READERS[family.partition(" ")[0]](context, **options))
        except PipelineError:
            return None


def _encode(files: Files) -> dict[str, bytes]:
    return {place: ENCODERS[place.rpartition(".")[2]](value) for place, value in files.items()}


def _check(family: Family, files: Files, tally: Tally) -> None:
    num_rows, num_boxes = family.num_rows(files), family.num_boxes(files)
    if num_rows is not None:
        told = tally.rows + tally.rejects + (tally.dropped if num_boxes is None else 0)
        assert told >= num_rows
        if not family.may_reject_more:
            assert told == num_rows
    if num_boxes is not None:
        told = tally.boxes + tally.dropped
        assert told <= num_boxes
        if not tally.rejects:
            assert told == num_boxes


def test_every_reader_of_files_has_a_family() -> None:
    assert {name.partition(" ")[0] for name in FAMILIES} == READERS.keys() - set(NOTHING_WRITTEN)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sound_data_set_is_read_whole(family: str, context: SourceContext) -> None:
    tally = _run(family, _encode(FAMILIES[family].files), context)
    assert tally is not None
    assert tally.rows
    assert not tally.rejects
    assert not tally.dropped
    _check(FAMILIES[family], FAMILIES[family].files, tally)


@pytest.mark.parametrize("family", FAMILIES)
@settings(suppress_health_check=list(HealthCheck), max_examples=NUM_EXAMPLES)
@given(data=st.data())
def test_every_row_and_box_is_used_or_counted(family: str, context: SourceContext, data: st.DataObject) -> None:
    files = {place: data.draw(wounded(value), label=place) for place, value in FAMILIES[family].files.items()}
    tally = _run(family, _encode(files), context)
    if tally is not None:
        _check(FAMILIES[family], files, tally)


@pytest.mark.parametrize("family", FAMILIES)
@settings(suppress_health_check=list(HealthCheck), max_examples=NUM_EXAMPLES)
@given(data=st.data())
def test_broken_files_raise_no_error_but_ours(family: str, context: SourceContext, data: st.DataObject) -> None:
    contents = _encode(FAMILIES[family].files)
    place = data.draw(st.sampled_from(sorted(contents)))
    contents[place] = data.draw(torn(contents[place]))
    _run(family, contents, context)
