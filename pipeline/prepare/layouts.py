"""Folders of annotated pictures as people have them: which files there are, and what part each of them is.

Only names are looked at; what stands in the files is up to their readers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pipeline.errors import MissingInputError
from pipeline.prepare.readers.yolo_sets import NAME_FILES, YoloSet
from pipeline.prepare.settings import SourceEntry
from pipeline.store.resume import SHARDS
from pipeline.store.storage import Place, is_folder, list_below, list_files, name_below, to_place

NAME = "own"
"""What records of such a folder are called."""
_PLACES = ("annotations", "", "train", "valid", "val", "validation", "dev", "test")
"""Folders that annotation files may be in; of upper or lower case."""
_XML = "*.xml"
YOLO = "data.yaml"
DARKNET = {
    "obj.data": "YOLO as darknet and CVAT have it, with lists of pictures such as train.txt",
    "classes.txt": "YOLO as labelImg and Label Studio have it, or *.names: texts beside the pictures or in labels/",
    "_darknet.labels": "YOLO as Roboflow exports it for darknet",
}
"""Files of data sets without a data.yaml, which count where there is no other format."""
_DARKNET_PLACES = ("", "labels", "train")
"""Folders that these may be in."""
FORMATS = {
    "_annotations.coco.json": "COCO as Roboflow exports it: in train/ and valid/, or all in one folder",
    "instances*.json": "COCO as its authors and CVAT have it: annotations/instances_train*.json, instances_val*.json",
    "result.json": "COCO as Label Studio exports it, pictures in images/",
    "*coco*.json": "COCO of other tools",
    "annotations.json": "COCO of other tools",
    "train*.json": "COCO of other tools, with val*.json or test*.json",
    _XML: "Pascal VOC or labelImg, in Annotations/ or beside the pictures, parted by folders or ImageSets/Main/*.txt",
}
"""Names of annotation files and what has them. Of several formats in a folder, the first counts."""
_BESIDE = {"train*.json": ("val*.json", "dev*.json", "test*.json")}
_PATTERNS = (*FORMATS, *_BESIDE["train*.json"])
_PICTURE_FOLDERS = ("images", "jpegimages", "img", "imgs", "pictures")
_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
_SHOWN = 5
"""Names in a message."""
_ROLES = {
    "train": re.compile(r"train"),
    "validation": re.compile(r"(?<![a-z])(mini)?val(?!u)|(?<![a-z])dev(?![a-z])"),
    "test": re.compile(r"(?<![a-z])test"),
    "": re.compile(""),
}


@dataclass(frozen=True)
class Layout:
    """Sources of ``prepare`` for a folder."""

    train: tuple[SourceEntry, ...]
    validation: tuple[SourceEntry, ...]
    """Empty where the folder does not say what to judge by."""
    description: str
    """What was found, for people."""


@dataclass(frozen=True)
class _Piece:
    """A source, what it is by its name, and where it stands in the folder."""

    role: str
    entry: SourceEntry
    path: Place


def find_layout(folder: Place) -> Layout:
    """Find out what a folder holds.

    Raises:
        MissingInputError: it is not there, or has none of the known layouts.
    """
    folder = folder.resolve()
    if not is_folder(folder):
        raise MissingInputError(f"{folder}: no such folder; expected one of annotated pictures")
    if shards := list_files(folder, SHARDS):
        entry = {"reader": "detection_records", "name": NAME, "data_set": NAME, "shards": str(folder)}
        return Layout((entry,), (), f"reads {len(shards)} shards of labels; what a teacher drew is judged by as well")
    if (data := _data_yaml(folder)) is not None:
        return _yolo(data)
    files = list(_files(folder))
    found = {pattern: [path for path in files if fnmatchcase(path.name.lower(), pattern)] for pattern in _PATTERNS}
    pattern = next((pattern for pattern in FORMATS if found[pattern]), None)
    darknet = _darknet_files(folder)
    if pattern is None:
        return _yolo(_darknet(folder, darknet))
    used = found[pattern] + [path for other in _BESIDE.get(pattern, ()) for path in found[other]]
    pieces = list(_voc(folder, used) if pattern == _XML else _coco(folder, used))
    train, validation, test = ([p for p in pieces if p.role == role] for role in ("train", "validation", "test"))
    train += [piece for piece in pieces if not piece.role]
    if not train:
        train, validation, test = validation + test, [], []
    if not validation:
        validation, test = test, []
    told = {
        "reads": [piece.path for piece in train],
        "judges by": [piece.path for piece in validation],
        "pictures in": [to_place(piece.entry["images"]) for piece in train + validation],
        "does not read": [*(p.path for p in test), *(path for path in files if path not in used), *darknet],
    }
    description = "; ".join(f"{what} {_listed(folder, paths)}" for what, paths in told.items() if paths)
    places = [to_place(piece.entry["images"]) for piece in pieces]
    return Layout(_entries(train, places), _entries(validation, places), description)


def _data_yaml(folder: Place) -> YoloSet | None:
    """Return the YAML of a folder that names classes and pictures, as Ultralytics has it; None where there is none."""
    for path in sorted([*list_files(folder, "*.yaml"), *list_files(folder, "*.yml")], key=lambda p: p.name != YOLO):
        try:
            found = YoloSet.read(str(path))
        except MissingInputError:
            if path.name == YOLO:
                raise
            continue
        if found.splits:
            return found
    return None


def _darknet_files(folder: Place) -> list[Place]:
    """Return the files by which darknet and its tools describe a data set, the surest first."""
    places = [each for place in _DARKNET_PLACES for each in (_folders(folder, place) if place else [folder])]
    patterns = ("obj.data", "*.data", "obj.names", "*.names", *NAME_FILES)
    return list(dict.fromkeys(path for pattern in patterns for place in places for path in list_files(place, pattern)))


def _darknet(folder: Place, files: list[Place]) -> YoloSet:
    """Return the first of these that names classes.

    Raises:
        MissingInputError: there is none; the message is that of a folder without annotations.
    """
    told = ""
    for path in files:
        try:
            return YoloSet.read(str(path), str(folder))
        except MissingInputError as error:
            told = told or f"{error}\n"
    known = {
        SHARDS: "labels as glip label writes them",
        YOLO: "YOLO as Ultralytics and Roboflow have it",
        **FORMATS,
        **DARKNET,
    }
    kinds = "".join(f"\n  {pattern:24}{what}" for pattern, what in known.items())
    raise MissingInputError(
        f"{told}{folder}: no annotations found; expected one of{kinds}\nLet your tool export one of them: LabelMe's "
        "files, among others, are not read"
    )


def _yolo(file: YoloSet) -> Layout:
    """Return what describes a data set of YOLO's: its own parts, where they are different ones."""
    there = [split for split in ("train", "val", "test") if file.has(split)]
    train = "train" if "train" in there else next(iter(there), "train")
    others = [split for split in there if file.splits[split] != file.splits[train] and split != train]

    def entry(split: str, name: str) -> SourceEntry:
        images = {"images": file.folder} if file.is_darknet else {}
        return {"reader": "yolo", "name": name, "data_set": NAME, "data": file.url, "split": split, **images}

    told = f"reads {file.url}, {train}: {', '.join(file.splits.get(train, ()))}"
    if others:
        told += f"; judges by {others[0]}: {', '.join(file.splits[others[0]])}"
    validation = tuple(entry(split, f"{NAME} {split}") for split in others[:1])
    return Layout((entry(train, NAME),), validation, told)


def picture_files(layout: Layout) -> set[str]:
    """Return the paths of all pictures in and below the folders where those of a layout are looked for."""
    folders = {str(entry["images"]) for entry in (*layout.train, *layout.validation) if "images" in entry}
    files = [path for folder in folders for path in list_below(to_place(folder))]
    return {str(path) for path in files if path.suffix.lower() in _SUFFIXES}


def _entries(pieces: list[_Piece], places: list[Place]) -> tuple[SourceEntry, ...]:
    """Return sources with names of their own, so that a picture of two files is not taken for a row that comes twice.

    What is searched for in a folder above that of another part could be found among its pictures.
    """
    return tuple(
        {
            **piece.entry,
            "name": f"{NAME} {i}" if i > 1 else NAME,
            "search": not any(to_place(piece.entry["images"]) in place.parents for place in places),
        }
        for i, piece in enumerate(pieces, 1)
    )


def _files(folder: Place) -> Iterator[Place]:
    """Yield what may be annotation files, in the order of ``_PLACES``."""
    for place in _PLACES:
        for each in [folder] if not place else _folders(folder, place):
            deeper: list[Place] = [each] if place != "annotations" or any(each.glob("*.*")) else sorted(each.iterdir())
            for path in sorted(path for inner in deeper if inner.is_dir() for path in inner.iterdir()):
                if path.suffix.lower() in (".json", ".xml") and path.is_file():
                    yield path


def _coco(folder: Place, files: list[Place]) -> Iterator[_Piece]:
    for path in files:
        split = path.stem.lower().removeprefix("instances_")
        entry = _entry(folder, path, path.parent, split)
        yield _Piece(_role(folder, path), {"reader": "coco_detection", **entry, "only_used": True}, path)


def _voc(folder: Place, files: list[Place]) -> Iterator[_Piece]:
    for place in dict.fromkeys(path.parent for path in files):
        entry = {"reader": "pascal_voc", **_entry(folder, place, place, place.name.lower())}
        lists = {path.stem.lower(): path for path in folder.glob("ImageSets/Main/*.txt")}
        train, validation = (
            next((lists[name] for name in names if name in lists), None)
            for names in (("train", "trainval"), ("val", "test"))
        )
        if train is None or validation is None or place.name.lower() != "annotations":
            yield _Piece(_role(folder, place), entry, place / _XML)
            continue
        yield _Piece("train", {**entry, "split": str(train)}, train)
        yield _Piece("validation", {**entry, "split": str(validation)}, validation)


def _entry(folder: Place, annotations: Place, beside: Place, split: str) -> SourceEntry:
    """Return the options that all sources have."""
    images = _picture_folder(folder, beside, split)
    return {"data_set": NAME, "annotations": str(annotations), "images": str(images)}


def _picture_folder(folder: Place, beside: Place, split: str) -> Place:
    """Return the folder that pictures are below: beside the annotations, of that part or of all."""
    if any(path.suffix.lower() in _SUFFIXES for path in beside.iterdir()):
        return beside
    above = [place for place in (beside, folder) if place.name.lower() != "annotations"]
    pictures = [each for place in above for name in _PICTURE_FOLDERS for each in _folders(place, name)]
    names = dict.fromkeys((split, split.rstrip("0123456789")))
    of_split = [each for place in (*pictures, folder) for name in names for each in _folders(place, name)]
    for place in (*of_split, *pictures):
        if any(path.suffix.lower() in _SUFFIXES for path in place.rglob("*")):
            return place
    return folder


def _folders(place: Place, name: str) -> list[Place]:
    """Return the folders below another that are called so, in upper or lower case."""
    return sorted(path for path in place.iterdir() if path.name.lower() == name and path.is_dir())


def _role(folder: Place, path: Place) -> str:
    name = name_below(folder, path).lower()
    return next(role for role, pattern in _ROLES.items() if pattern.search(name))


def _listed(folder: Place, paths: list[Place]) -> str:
    names = [name_below(folder, path) or folder.name for path in dict.fromkeys(paths)]
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
