"""YOLO's layouts of detection data: pictures in images/ and a text file for each in labels/, or both in one."""

from __future__ import annotations

import hashlib
import math
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from glip_model.images import ImageError
from pipeline.prepare.raw import (
    BOXES_FROM_POLYGONS,
    Part,
    RawDetection,
    RawImage,
    RawObject,
    RawTable,
    Reject,
    SourceContext,
    Url,
)
from pipeline.prepare.readers.lines import decode_text
from pipeline.prepare.readers.yolo_sets import YoloSet, is_folder_there, is_there
from pipeline.store.filesystem import file_identity, read_many
from pipeline.store.records import Category, DetectionRecord
from pipeline.store.storage import list_below, name_below, side_by_side, to_place
from pipeline.store.urls import redact

_LABELS = re.compile(r"(^|/)images/(?!.*(?:^|/)images/)")
"""The last folder called images; labels are in the one called labels in its place."""


def read_yolo(context: SourceContext, *, data: Url, split: str = "train", images: Url | None = None) -> list[RawTable]:
    """Detection data as Ultralytics and darknet have it: boxes, polygons and oriented boxes, as the boxes around them.

    A picture without a label file shows nothing, as Ultralytics has it; with darknet it was not annotated, and one that
    shows nothing has an empty file. A label file in a folder of pictures has one there, or its boxes are lost, and that
    is told. Sixth numbers of a line are scores, as predictions have them.

    Options:
        data: data.yaml; or darknet's obj.data or list of classes, beside lists or folders of train, valid and test.
        split: train, val or test.
        images: the folder above pictures and labels; left out, that of ``data``.
    """
    found = YoloSet.read(data, images)
    pictures = found.pictures(split)
    categories = tuple(Category(id=number, name=name) for number, name in sorted(found.names.items()))
    there = _label_files(found, split, pictures)
    labels = [next((label for label in labels_of(name) if label in there), None) for name in pictures]
    alone = _without_picture(found, split, labels, there)

    def parts(rows_per_part: int) -> Iterator[Part]:
        for start in range(0, len(pictures), rows_per_part):
            some, theirs = pictures[start : start + rows_per_part], labels[start : start + rows_per_part]
            identity = _identity(found, some, [label for label in theirs if label])
            rows = partial(_rows, found, some, theirs)
            yield Part(f"{redact(data)}, {split} {start + 1}", identity, rows, len(some))
        for start in range(0, len(alone), rows_per_part):
            texts = alone[start : start + rows_per_part]
            name = f"{redact(data)}, {split}, labels without pictures {start + 1}"
            yield Part(name, _identity(found, texts, texts), partial(_lost, found, texts))

    return [RawTable(DetectionRecord, parts, num_rows=len(pictures), categories=categories)]


def labels_of(picture: str) -> tuple[str, str]:
    """Return where the labels of a picture may be: in labels/ in place of the last images/, and beside it."""
    places = (_LABELS.sub(r"\1labels/", picture), picture)
    in_labels, beside = (f"{posixpath.splitext(place)[0]}.txt" for place in places)
    return in_labels, beside


def parse_line(line: str, has_keypoints: bool = False) -> tuple[RawObject, bool]:
    """Return the object of a line of labels, and whether its box is that around a polygon.

    What is no number makes an object whose box is none.
    """
    try:
        number, *values = map(float, line.split())
        category = int(number) if number == int(number) else None
    except (ValueError, OverflowError):
        return RawObject(xyxy=(), category_id=None), False
    is_polygon = not has_keypoints and len(values) >= 6 and len(values) % 2 == 0
    if is_polygon:
        box = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    elif len(values) >= 4 and (has_keypoints or len(values) <= 5):
        x, y, width, height = values[:4]
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    else:
        return RawObject(xyxy=(), category_id=category), False
    score = values[4] if len(values) == 5 and not has_keypoints else 1.0
    if not 0 <= score <= 1 or not all(map(math.isfinite, box)):
        return RawObject(xyxy=(), category_id=category), False
    return RawObject(xyxy=box, category_id=category, is_relative=True, score=score), is_polygon


def _rows(found: YoloSet, pictures: Sequence[str], labels: Sequence[str | None]) -> Iterator[RawDetection | Reject]:
    texts = iter(_read(found, [label for label in labels if label]))
    for name, label in zip(pictures, labels, strict=True):
        data = next(texts) if label else b""
        if not isinstance(data, bytes):
            yield Reject(f"{name}: {data}", "row_malformed")
            continue
        if label is None and found.is_darknet and is_there(found.folder, name):
            told = (
                f"{labels_of(name)[1]} is not there, so nobody annotated it; one that shows nothing has an empty file"
            )
            yield Reject(f"{name}: {told}", "row_malformed")
            continue
        text, note = decode_text(data)
        objects = [parse_line(line, found.has_keypoints) for line in text.splitlines() if line.strip()]
        notes = [*([note] if note else []), *([BOXES_FROM_POLYGONS] if any(each for _, each in objects) else [])]
        yield RawDetection(
            name=name,
            image=RawImage(folder=found.folder, url=name),
            objects=[item for item, _ in objects],
            converted=tuple(notes),
        )


def _read(found: YoloSet, labels: Sequence[str]) -> list[bytes | ImageError]:
    return read_many([f"{found.folder}/{label}" for label in labels], [found.folder])


def _identity(found: YoloSet, names: Sequence[str], labels: Sequence[str]) -> str:
    """Return what changes with the data set, the names of its files, or what stands in labels."""
    versions = side_by_side(file_identity, [f"{found.folder}/{label}" for label in labels])
    return hashlib.sha256("\n".join([*names, *versions, str(found)]).encode("utf-8", "surrogateescape")).hexdigest()


def _label_files(found: YoloSet, split: str, pictures: Sequence[str]) -> set[str]:
    """Return the text files that are there, below the folder: where labels of pictures are, or of folders of them."""
    shown = [*pictures, *(f"{place}/any" for place in found.folders(split))]
    folders = {posixpath.normpath(posixpath.dirname(label)) for name in shown for label in labels_of(name)}
    top = to_place(found.folder)
    files: set[str] = set()
    for place in folders:
        if is_folder_there(found.folder, place):
            files |= {name_below(top, path) for path in list_below(top / place) if path.suffix == ".txt"}
    return files - {name_below(top, to_place(found.url))}


def _without_picture(found: YoloSet, split: str, used: Iterable[str | None], there: Iterable[str]) -> list[str]:
    """Return the text files among those of folders of pictures that are no labels of one of these."""
    above = [posixpath.dirname(label) for place in found.folders(split) for label in labels_of(f"{place}/any")]
    inside = [name for name in there if any(place in (".", "") or name.startswith(f"{place}/") for place in above)]
    return sorted(set(inside) - set(used))


def _lost(found: YoloSet, labels: Sequence[str]) -> Iterator[Reject]:
    """Yield the text files that hold boxes; others, such as lists of pictures, are no labels."""
    for label, data in zip(labels, _read(found, labels), strict=True):
        lines = decode_text(data)[0].splitlines() if isinstance(data, bytes) else []
        if any(parse_line(line, found.has_keypoints)[0].xyxy for line in lines if line.strip()):
            yield Reject(f"{label}: it has boxes, and no picture of that name is there for them", "image_missing")
