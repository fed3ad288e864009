"""Folders of annotated pictures as people have them: which files are what, and what to judge by where none says so."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import MissingInputError
from pipeline.prepare.raw import Url
from pipeline.prepare.readers.voc import read_names
from pipeline.prepare.settings import SourceEntry

NAME = "own"
"""What records of such a folder are called."""
KNOWN = (
    "a COCO file train/_annotations.coco.json or _annotations.coco.json beside its pictures, "
    "annotations/instances_train*.json or annotations/instances_*.json with pictures in train*/, images/ or beside, or "
    "Pascal VOC's XML files in Annotations/ with pictures in JPEGImages/ or images/"
)
_ROBOFLOW = "_annotations.coco.json"
_TRAIN_FILES = (f"train/{_ROBOFLOW}", _ROBOFLOW, "annotations/instances_train*.json", "annotations/instances_*.json")
_VALIDATION_FILES = (f"valid/{_ROBOFLOW}", f"val/{_ROBOFLOW}", "annotations/instances_val*.json")
_XML_FOLDERS = ("Annotations", "annotations")
_PICTURE_FOLDERS = ("JPEGImages", "images", "Images", ".")


@dataclass(frozen=True)
class Layout:
    """Sources of ``prepare`` for a folder."""

    train: SourceEntry
    validation: SourceEntry
    description: str
    """What was found, for people."""


def find_layout(folder: Path, work: Path, validation_share: float) -> Layout:
    """Find out what a folder holds; without a validation part, some of its pictures become one.

    Args:
        folder: with the data.
        work: folder for lists of what belongs to which part.
        validation_share: share of the pictures that are held out where the folder does not say which.

    Raises:
        MissingInputError: the folder has none of the known layouts, or too little in it.
    """
    train = _first(folder, _TRAIN_FILES)
    if train is not None:
        validation = _first(folder, _VALIDATION_FILES)
        if validation is not None and validation != train:
            found = f"{train.relative_to(folder)}, judged on {validation.relative_to(folder)}"
            return Layout(_coco(folder, train, work), _coco(folder, validation, work), found)
        return _split_coco(folder, train, work, validation_share)
    for name in _XML_FOLDERS:
        if any((folder / name).glob("*.xml")):
            return _voc(folder, folder / name, work, validation_share)
    raise MissingInputError(f"{folder}: no annotations found; expected {KNOWN}")


def _first(folder: Path, patterns: Sequence[str]) -> Path | None:
    return next((path for pattern in patterns for path in sorted(folder.glob(pattern))), None)


def _coco(folder: Path, annotations: Path, work: Path, pictures: set[Any] | None = None, part: str = "") -> SourceEntry:
    """Write a copy of a COCO file with some of its pictures, None all; return the source that reads it."""
    values = _read_json(annotations)
    images = [row for row in values["images"] if pictures is None or row.get("id") in pictures]
    used = {row.get("category_id") for row in values["annotations"]}
    copy = work / f"{part or annotations.parent.name}_{annotations.name}"
    kept = {
        "images": images,
        "annotations": [r for r in values["annotations"] if pictures is None or r.get("image_id") in pictures],
        # Labelling tools list the data set itself as a category, which no box has.
        "categories": [row for row in values["categories"] if row.get("id") in used],
    }
    work.mkdir(parents=True, exist_ok=True)
    copy.write_text(json.dumps(kept), encoding="utf-8")
    place = _picture_folder(folder, annotations, str(images[0].get("file_name")))
    return {"reader": "coco_detection", "name": NAME, "annotations": str(copy), "images": str(place)}


def _split_coco(folder: Path, annotations: Path, work: Path, share: float) -> Layout:
    rows = {row.get("id"): str(row.get("file_name")) for row in _read_json(annotations)["images"]}
    held_out = _held_out(list(rows.values()), share, annotations)
    train, validation = (
        _coco(folder, annotations, work, {key for key, name in rows.items() if (name in held_out) is wanted}, part)
        for part, wanted in (("train", False), ("validation", True))
    )
    found = f"{annotations.relative_to(folder)}, {len(held_out)} of {len(rows)} pictures held out to judge by"
    return Layout(train, validation, found)


def _voc(folder: Path, annotations: Path, work: Path, share: float) -> Layout:
    lists = [folder / "ImageSets/Main" / f"{name}.txt" for name in ("train", "val")]
    if all(path.is_file() for path in lists):
        found = f"{annotations.name}/*.xml in the parts of ImageSets/Main"
    else:
        stems = sorted(path.stem for path in annotations.glob("*.xml"))
        held_out = _held_out(stems, share, annotations)
        lists = [work / "train.txt", work / "validation.txt"]
        work.mkdir(parents=True, exist_ok=True)
        for path, wanted in zip(lists, (False, True), strict=True):
            path.write_text("".join(f"{s}\n" for s in stems if (s in held_out) is wanted), encoding="utf-8")
        found = f"{annotations.name}/*.xml, {len(held_out)} of {len(stems)} pictures held out to judge by"
    images = next(folder / name for name in _PICTURE_FOLDERS if (folder / name).is_dir())
    places = {"annotations": str(annotations.resolve()), "images": str(images.resolve())}
    common = {"reader": "pascal_voc", "name": NAME, **places, "names": list(read_names(Url(annotations.resolve())))}
    train, validation = ({**common, "split": str(path.resolve())} for path in lists)
    return Layout(train, validation, found)


def _held_out(names: Sequence[str], share: float, where: Path) -> set[str]:
    """Choose pictures to judge by: by their names' hashes, so that they stay the same when others are added."""
    if len(names) < 2:
        raise MissingInputError(f"{where}: {len(names)} pictures; expected at least two, to learn from and to judge by")
    order = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    return set(order[: min(max(math.ceil(share * len(names)), 1), len(names) - 1)])


def _picture_folder(folder: Path, annotations: Path, name: str) -> Path:
    """Find the folder that a file's pictures are in, by the first of them."""
    split = annotations.stem.removeprefix("instances_")
    names = (".", split, f"images/{split}", split.rstrip("0123456789"), "images")
    places = [annotations.parent, *(folder / each for each in names)]
    for place in places:
        if (place / name).is_file():
            return place.resolve()
    looked = ", ".join(dict.fromkeys(str(place) for place in places))
    raise MissingInputError(f"{annotations}: its first picture {name} is in none of {looked}")


def _read_json(path: Path) -> Any:
    try:
        values = json.loads(path.read_bytes())
        lists = [values[name] for name in ("images", "annotations", "categories")]
    except (ValueError, KeyError, TypeError) as error:
        raise MissingInputError(f"{path}: not readable as a COCO file: {error!r}") from error
    if not all(isinstance(rows, list) and all(isinstance(row, dict) for row in rows) for rows in lists):
        raise MissingInputError(f"{path}: expected lists of images, annotations and categories, as in COCO")
    if not values["images"]:
        raise MissingInputError(f"{path}: no pictures in a list 'images'")
    return values
