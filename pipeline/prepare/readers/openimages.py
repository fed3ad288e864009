"""OpenImages: boxes as a CSV in shares of the picture's sides."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from pipeline.errors import MissingInputError
from pipeline.prepare.raw import RawDetection, RawImage, RawObject, RawTable, SourceContext, Url
from pipeline.prepare.readers.coco import whole_number
from pipeline.prepare.readers.lines import open_csv
from pipeline.prepare.readers.spool import Spool
from pipeline.store.filesystem import file_identity
from pipeline.store.records import Category, DetectionRecord
from pipeline.store.urls import redact

_SIDES = ("XMin", "YMin", "XMax", "YMax")


def read_open_images(
    context: SourceContext,
    *,
    annotations: Url,
    images: Url,
    classes: Url | None = None,
    sizes: Url | None = None,
    licenses: Url | None = None,
) -> list[RawTable]:
    """OpenImages' box CSV beside a folder of pictures; boxes of groups are crowds.

    Options:
        annotations: such as ``oidv6-train-annotations-bbox.csv``.
        images: folder of the pictures, called as their ids.
        classes: ``class-descriptions-boxable.csv``, from labels to names; left out, labels are names.
        sizes: CSV with the columns ImageID, Width and Height; needed only for ``prepare.pictures: unread``.
        licenses: CSV with the columns ImageID and License, such as ``train-images-boxable-with-rotation.csv``.
    """
    names = _read_classes(classes) if classes is not None else {}
    spool, ids = Spool(), dict[str, int]()
    # Boxes of a picture mostly follow one another, but nobody promises it.
    spool.add_annotations(_boxes(annotations, names, ids))
    measured = {} if sizes is None else _read_sizes(sizes)
    licensed = {} if licenses is None else _read_licenses(licenses)
    spool.add_pictures((key, [key, *measured.get(key, (None, None)), licensed.get(key)]) for key in spool.annotated())
    categories = tuple(Category(id=number, name=names.get(label, label)) for label, number in ids.items())
    identity = f"{file_identity(annotations)} {images} {classes} {sizes} {licenses}"

    parts = partial(spool.parts, redact(annotations), identity, partial(_rows, images))
    return [RawTable(DetectionRecord, parts, len(spool), categories)]


def _rows(images: str, pictures: list[tuple[Any, list[Any]]]) -> Iterator[RawDetection]:
    for (key, height, width, license_), boxes in pictures:
        stem = key.removesuffix(".jpg")
        image = RawImage(
            folder=images,
            url=f"{stem}.jpg",
            choices=(f"{stem}.png",),
            height=height,
            width=width,
            picture_id=f"open_images/{stem}",
            license=license_,
        )
        objects = [
            RawObject(xyxy=sides, category_id=category, is_crowd=is_group, is_relative=True)
            for sides, category, is_group in boxes
        ]
        yield RawDetection(name=key, image=image, objects=objects)


def _boxes(url: Url, names: dict[str, str], ids: dict[str, int]) -> Iterator[tuple[str, Any]]:
    """Yield a picture's id and one of its boxes; ``ids`` learns the labels in the order in which they come."""
    for label in names:
        ids.setdefault(label, len(ids) + 1)
    with open_csv(url) as lines:
        rows = csv.DictReader(lines)
        missing = {"ImageID", "LabelName", *_SIDES} - set(rows.fieldnames or ())
        if missing:
            raise MissingInputError(
                f"{redact(url)}: no column {sorted(missing)[0]!r} (found: {', '.join(rows.fieldnames or ())}); "
                "expected OpenImages' box CSV"
            )
        for row in rows:
            label = row["LabelName"]
            number = ids.get(label) if names else ids.setdefault(label, len(ids) + 1)
            yield row["ImageID"], ([_share(row[side]) for side in _SIDES], number, row.get("IsGroupOf") == "1")


def _share(text: str | None) -> float | None:
    try:
        return float((text or "").replace(",", "."))  # some exporters write numbers as their country does
    except ValueError:
        return None


def _read_classes(url: Url) -> dict[str, str]:
    with open_csv(url) as lines:
        names = {row[0]: row[1] for row in csv.reader(lines) if len(row) >= 2 and row[0] != "LabelName"}
    if not names:
        raise MissingInputError(f"{redact(url)}: expected rows of label and name, found none")
    return names


def _read_sizes(url: Url) -> dict[str, tuple[int | None, int | None]]:
    with open_csv(url) as lines:
        rows = csv.DictReader(lines)
        if not {"ImageID", "Width", "Height"} <= set(rows.fieldnames or ()):
            raise MissingInputError(f"{redact(url)}: expected the columns ImageID, Width and Height")
        return {row["ImageID"]: (whole_number(row["Height"]), whole_number(row["Width"])) for row in rows}


def _read_licenses(url: Url) -> dict[str, str]:
    with open_csv(url) as lines:
        rows = csv.DictReader(lines)
        if not {"ImageID", "License"} <= set(rows.fieldnames or ()):
            raise MissingInputError(f"{redact(url)}: expected the columns ImageID and License")
        return {row["ImageID"]: sys.intern(row["License"] or "") for row in rows}
