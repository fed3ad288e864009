"""Ultralytics' layout of detection data: data.yaml, pictures in images/, a text file for each in labels/."""

from __future__ import annotations

import hashlib
import math
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import yaml

from pipeline.errors import MissingInputError
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
from pipeline.prepare.readers.lines import decode_text, open_text
from pipeline.prepare.readers.pictures import is_picture
from pipeline.store.filesystem import file_identity, open_file, read_many
from pipeline.store.read_errors import describe
from pipeline.store.records import Category, DetectionRecord
from pipeline.store.storage import exists, is_folder, list_below, name_below, side_by_side, to_place
from pipeline.store.urls import redact

MAX_YAML_BYTES = 1 << 20
_LABELS = re.compile(r"(^|/)images/(?!.*(?:^|/)images/)")
"""The last folder called images; labels are in the one called labels in its place."""


@dataclass(frozen=True)
class YoloFile:
    """What a data.yaml says: names by class, the folders or lists of each split, below ``folder``."""

    url: str
    folder: str
    names: dict[int, str]
    splits: dict[str, tuple[str, ...]]
    has_keypoints: bool

    @classmethod
    def read(cls, url: str) -> YoloFile:
        """Read one.

        Raises:
            MissingInputError: it is not there, or says something else.
        """
        with open_file(url) as file:
            text, _ = decode_text(file.read(MAX_YAML_BYTES))
        try:
            found = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise MissingInputError(f"{redact(url)}: no YAML ({describe(error, url)})") from error
        names = found.get("names") if isinstance(found, dict) else None
        by_class = dict(enumerate(names)) if isinstance(names, list) else names
        if not isinstance(by_class, dict) or not all(
            type(number) is int and isinstance(name, str) for number, name in by_class.items()
        ):
            raise MissingInputError(f"{redact(url)}: expected names as a list, or by number, as Ultralytics has them")
        folder, root = posixpath.dirname(url) or ".", found.get("path")
        splits = {
            name: _places(url, folder, root if isinstance(root, str) else "", found[name])
            for name in ("train", "val", "test")
            if found.get(name)
        }
        return cls(url, folder, by_class, splits, found.get("kpt_shape") is not None)

    def has(self, split: str) -> bool:
        """Tell whether a split is named and there."""
        return any(_is_there(f"{self.folder}/{place}") for place in self.splits.get(split, ()))

    def pictures(self, split: str) -> list[str]:
        """Return the pictures of a split, below ``folder``, in order; MissingInputError where it has none."""
        found: dict[str, None] = {}
        for place in self.splits.get(split, ()):
            url = f"{self.folder}/{place}"
            if is_folder(to_place(url)):
                top = to_place(url)
                names = (name_below(top, path) for path in list_below(top))
                found |= dict.fromkeys(posixpath.normpath(f"{place}/{name}") for name in names if is_picture(name))
            elif exists(to_place(url)):
                with open_text(url) as lines:
                    above = posixpath.dirname(place)
                    listed = [line.strip() for line in lines if line.strip()]
                found |= dict.fromkeys(posixpath.normpath(posixpath.join(above, name)) for name in listed)
        if not found:
            told = ", ".join(f"{name}: {', '.join(places)}" for name, places in self.splits.items())
            raise MissingInputError(f"{redact(self.folder)}: no pictures of the split {split} ({told or 'none named'})")
        return list(found)


def read_yolo(context: SourceContext, *, data: Url, split: str = "train") -> list[RawTable]:
    """Detection data as Ultralytics has it: boxes, polygons and oriented boxes; polygons become the boxes around them.

    A picture without a label file shows nothing, as there. Sixth numbers of a line are scores, as its predictions have
    them.

    Options:
        data: data.yaml.
        split: train, val or test.
    """
    file = YoloFile.read(data)
    pictures = file.pictures(split)
    categories = tuple(Category(id=number, name=name) for number, name in sorted(file.names.items()))
    there = _label_files(file.folder, pictures)

    def parts(rows_per_part: int) -> Iterator[Part]:
        for start in range(0, len(pictures), rows_per_part):
            some = pictures[start : start + rows_per_part]
            labels = [label if (label := label_of(name)) in there else None for name in some]
            texts = side_by_side(file_identity, [f"{file.folder}/{label}" for label in labels if label])
            identity = hashlib.sha256("\n".join([*some, *texts, str(file)]).encode("utf-8", "surrogateescape"))
            rows = partial(_rows, file.folder, some, labels, file.has_keypoints)
            yield Part(f"{redact(data)}, {split} {start + 1}", identity.hexdigest(), rows, len(some))

    return [RawTable(DetectionRecord, parts, num_rows=len(pictures), categories=categories)]


def label_of(picture: str) -> str:
    """Return where the labels of a picture are: in labels/ in place of the last images/, else beside it."""
    stem, _ = posixpath.splitext(_LABELS.sub(r"\1labels/", picture))
    return f"{stem}.txt"


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


def _rows(
    folder: str, pictures: Sequence[str], labels: Sequence[str | None], has_keypoints: bool
) -> Iterator[RawDetection | Reject]:
    asked = [f"{folder}/{label}" for label in labels if label]
    texts = dict(zip(asked, read_many(asked, [folder]), strict=True))
    for name, label in zip(pictures, labels, strict=True):
        data = texts[f"{folder}/{label}"] if label else b""
        if not isinstance(data, bytes):
            yield Reject(f"{name}: {data}", "row_malformed")
            continue
        text, note = decode_text(data)
        objects = [parse_line(line, has_keypoints) for line in text.splitlines() if line.strip()]
        notes = [*([note] if note else []), *([BOXES_FROM_POLYGONS] if any(each for _, each in objects) else [])]
        yield RawDetection(
            name=name,
            image=RawImage(folder=folder, url=name),
            objects=[item for item, _ in objects],
            converted=tuple(notes),
        )


def _label_files(folder: str, pictures: Sequence[str]) -> set[str]:
    """Return the label files that are there, below the folder."""
    above = {posixpath.dirname(label_of(name)) for name in pictures}
    found: set[str] = set()
    for place in above:
        top = to_place(f"{folder}/{place}")
        if is_folder(top):
            found |= {
                posixpath.normpath(posixpath.join(place, path.name))
                for path in list_below(top)
                if path.suffix == ".txt"
            }
    return found


def _places(url: str, folder: str, root: str, value: Any) -> tuple[str, ...]:
    """Return the folders or lists that a split names, below the folder of data.yaml.

    Tools write paths as they were on their machine: of ``root/../train/images`` what is there below the folder counts.

    Raises:
        MissingInputError: a name leaves the folder, and nothing like it is there.
    """
    found = []
    for name in value if isinstance(value, list) else [value]:
        if not isinstance(name, str):
            raise MissingInputError(f"{redact(url)}: {name!r} is no folder of pictures")
        tries = [posixpath.normpath(posixpath.join(root, name)), posixpath.normpath(name)]
        tries += [re.sub(r"^(\.\./)+", "", each) for each in tries]
        inside = [each for each in tries if not each.startswith(("../", "/")) and each != ".." and "://" not in each]
        if not inside:
            raise MissingInputError(
                f"{redact(url)}: {name} leaves its folder; write where it is from there, such as images/train"
            )
        found.append(next((each for each in inside if _is_there(f"{folder}/{each}")), inside[0]))
    return tuple(found)


def _is_there(url: str) -> bool:
    place = to_place(url)
    return is_folder(place) or exists(place)
