"""Readers of raw data sets, one a format, registered by name.

A reader is a function from a source's settings to the tables that ``prepare`` writes. Each table says how many raw rows
there are and reads any range of them, so that shards are made in parallel and a row that cannot be used is a counted
``Reject`` and never an end of the run. To add a format, write such a function and add it to ``READERS``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pipeline.config import PrepareConfig, SourceConfig
from pipeline.data.embedded import tables as embedded
from pipeline.data.images import ImageError, decode_image
from pipeline.data.records import (
    Box,
    CaptionRecord,
    Category,
    DetectedObject,
    DetectionRecord,
    ImageRef,
    Record,
)
from pipeline.data.shards import categories_to_metadata
from pipeline.data.tables import RecordTable, Reject
from pipeline.errors import ConfigError, MissingInputError

Role = Literal["human", "web", "dev", "test"]
Reader = Callable[[SourceConfig, Role, PrepareConfig, int], list[RecordTable]]

MIN_BOX_SIDE = 1.0
"""Pixels; smaller boxes are degenerate after clipping and dropped."""


@dataclass(frozen=True)
class _Picture:
    """One picture of a COCO-style file."""

    file_name: str
    rows: tuple[Mapping[str, Any], ...] = field(default=())


def read_source(source: SourceConfig, role: Role, config: PrepareConfig, seed: int) -> list[RecordTable]:
    """Return the tables of one source; ConfigError for a reader that does not exist."""
    reader = READERS.get(source.reader)
    if reader is None:
        raise ConfigError(f"prepare.{role}: no reader {source.reader!r}; readers: {', '.join(sorted(READERS))}")
    return reader(source, role, config, seed)


def read_embedded(source: SourceConfig, role: Role, config: PrepareConfig, seed: int) -> list[RecordTable]:
    """Emoji scenes that ship with the project; every role has its own pictures."""
    return embedded.tables_for(role, config.embedded, seed)


def read_coco_detection(source: SourceConfig, role: Role, config: PrepareConfig, seed: int) -> list[RecordTable]:
    """COCO instances JSON beside a folder of pictures; crowd boxes are kept and marked."""
    annotations, images = _paths(source, role)
    content = _load_json(annotations)
    boxes: dict[int, list[Mapping[str, Any]]] = {}
    for row in content.get("annotations", ()):
        boxes.setdefault(row["image_id"], []).append(row)
    pictures = [_Picture(row["file_name"], tuple(boxes.get(row["id"], ()))) for row in content["images"]]
    categories = [Category(id=row["id"], name=row["name"]) for row in content.get("categories", ())]
    read = partial(_read_detection_rows, pictures, images, source.reader, config.max_image_pixels)
    metadata = categories_to_metadata(categories)
    return [RecordTable("detection", DetectionRecord, len(pictures), metadata, read)]


def read_coco_captions(source: SourceConfig, role: Role, config: PrepareConfig, seed: int) -> list[RecordTable]:
    """COCO captions JSON beside a folder of pictures; every caption is a pair of its own."""
    annotations, images = _paths(source, role)
    content = _load_json(annotations)
    names = {row["id"]: row["file_name"] for row in content["images"]}
    pairs = [
        _Picture(names[row["image_id"]], (row,)) for row in content["annotations"] if row["image_id"] in names
    ]
    read = partial(_read_caption_rows, pairs, images, source.reader, config.max_image_pixels)
    return [RecordTable("", CaptionRecord, len(pairs), {}, read)]


READERS: dict[str, Reader] = {
    "embedded": read_embedded,
    "coco_detection": read_coco_detection,
    "coco_captions": read_coco_captions,
}


def content_key(*parts: bytes | str) -> str:
    """Return a key that depends on the content alone, 20 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()[:20]


def clip_box(box: Box, height: int, width: int) -> Box | None:
    """Clip a box to the picture; None when nothing of it is left."""
    x1, y1, x2, y2 = box
    clipped = (max(0.0, x1), max(0.0, y1), min(float(width), x2), min(float(height), y2))
    if clipped[2] - clipped[0] < MIN_BOX_SIDE or clipped[3] - clipped[1] < MIN_BOX_SIDE:
        return None
    return clipped


def _read_detection_rows(
    pictures: Sequence[_Picture], folder: Path, source: str, max_pixels: int, start: int, stop: int
) -> Iterator[Record | Reject]:
    for picture in pictures[start:stop]:
        try:
            data, height, width = _read_picture(folder, picture.file_name, max_pixels)
        except ImageError as error:
            yield Reject(picture.file_name, error.reason)
            continue
        objects = []
        for row in picture.rows:
            x, y, w, h = map(float, row["bbox"])
            box = clip_box((x, y, x + w, y + h), height, width)
            if box is not None:
                is_crowd = bool(row.get("iscrowd", 0))
                objects.append(DetectedObject(category_id=int(row["category_id"]), xyxy=box, is_crowd=is_crowd))
        yield DetectionRecord(
            key=content_key(data),
            image=ImageRef(bytes=data),
            height=height,
            width=width,
            source=source,
            objects=tuple(objects),
        )


def _read_caption_rows(
    pairs: Sequence[_Picture], folder: Path, source: str, max_pixels: int, start: int, stop: int
) -> Iterator[Record | Reject]:
    for pair in pairs[start:stop]:
        caption = str(pair.rows[0].get("caption") or "").strip()
        if not caption:
            yield Reject(pair.file_name, "caption_empty")
            continue
        try:
            data, height, width = _read_picture(folder, pair.file_name, max_pixels)
        except ImageError as error:
            yield Reject(pair.file_name, error.reason)
            continue
        yield CaptionRecord(
            key=content_key(data, caption),
            image=ImageRef(bytes=data),
            height=height,
            width=width,
            caption=caption,
            source=source,
        )


def _read_picture(folder: Path, name: str, max_pixels: int) -> tuple[bytes, int, int]:
    """Return bytes, height and width of a picture that an annotation file names; the name is not trusted."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ImageError("image_outside_folder", f"{name} leaves {folder}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError("image_missing", str(error)) from error
    image = decode_image(data, max_pixels)
    return data, image.height, image.width


def _paths(source: SourceConfig, role: Role) -> tuple[Path, Path]:
    if source.annotations is None or source.images is None:
        raise ConfigError(f"prepare.{role}: reader {source.reader!r} needs both annotations and images")
    annotations, images = Path(source.annotations), Path(source.images)
    if not annotations.is_file():
        raise MissingInputError(f"{annotations}: no such annotation file; set prepare.{role} annotations in params.yaml")
    if not images.is_dir():
        raise MissingInputError(f"{images}: no such folder; set prepare.{role} images in params.yaml")
    return annotations, images


def _load_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MissingInputError(f"{path}: not readable as JSON: {error}; fetch the file again") from error
    if not isinstance(content, dict) or "images" not in content:
        raise MissingInputError(f"{path}: expected a COCO file with 'images' and 'annotations'")
    return content
