"""Readers of raw data sets, one a format, registered by name.

A reader is a function from a source's settings to the tables that ``prepare`` writes. Each table says how many raw rows
there are and reads any range of them, so that shards are made in parallel and a row that cannot be used is a counted
``Reject`` and never an end of the run. To add a format, write such a function and add it to ``READERS``.

Raw data comes from outside: names of pictures must stay in their folder, numbers must be numbers, and a file that does
not have the promised structure is an error that says where.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from glip_model.images import ImageError, decode_image
from pipeline.config import PrepareConfig, SourceConfig
from pipeline.data.embedded import tables as embedded
from pipeline.data.images import read_file
from pipeline.data.records import (
    Box,
    CaptionRecord,
    Category,
    DetectedObject,
    DetectionRecord,
    GroundingRecord,
    ImageRef,
)
from pipeline.data.shards import KIND, categories_to_metadata
from pipeline.data.tables import DroppedBox, RecordTable, Reject, RowReader
from pipeline.errors import ConfigError, MissingInputError

Role = Literal["human", "web", "dev", "test"]
Reader = Callable[[SourceConfig, Role, PrepareConfig, int], list[RecordTable]]

MIN_BOX_SIDE = 1.0
"""Pixels; smaller boxes are degenerate after clipping and dropped."""

_ROLE_TYPES: dict[Role, tuple[type, ...]] = {
    "human": (DetectionRecord, GroundingRecord),
    "web": (CaptionRecord,),
    "dev": (DetectionRecord, GroundingRecord),
    "test": (DetectionRecord, GroundingRecord),
}
_ID = (int, str)


@dataclass(frozen=True)
class _Picture:
    """One picture of a COCO-style file, or one caption of a picture."""

    file_name: str
    rows: tuple[Mapping[str, Any], ...]


def read_source(source: SourceConfig, role: Role, config: PrepareConfig, seed: int) -> list[RecordTable]:
    """Return the tables of one source.

    Raises:
        ConfigError: there is no such reader, or it reads what the role has no use for.
        MissingInputError: a raw file is not there or has another structure.
    """
    reader = READERS.get(source.reader)
    if reader is None:
        raise ConfigError(f"prepare.{role}: no reader {source.reader!r}; readers: {', '.join(sorted(READERS))}")
    tables = reader(source, role, config, seed)
    for table in tables:
        if table.record_type not in _ROLE_TYPES[role]:
            wanted = " or ".join(KIND[record_type] for record_type in _ROLE_TYPES[role])
            raise ConfigError(
                f"prepare.{role}: reader {source.reader!r} reads {KIND[table.record_type]} records; expected one that "
                f"reads {wanted} records"
            )
    return tables


def read_embedded(source: SourceConfig, role: Role, config: PrepareConfig, seed: int) -> list[RecordTable]:
    """Emoji scenes that ship with the project; every role has its own pictures."""
    return embedded.tables_for(role, config.embedded, seed)


def read_coco_detection(source: SourceConfig, role: Role, config: PrepareConfig, seed: int) -> list[RecordTable]:
    """COCO instances JSON beside a folder of pictures; crowd boxes are kept and marked."""
    annotations, images = _paths(source, role)
    content = _load_json(annotations)
    categories = [
        Category(id=row["id"], name=row["name"]) for row in _rows(annotations, content, "categories", id=int, name=str)
    ]
    boxes: dict[int | str, list[Mapping[str, Any]]] = {}
    for row in _rows(annotations, content, "annotations", image_id=_ID):
        boxes.setdefault(row["image_id"], []).append(row)
    pictures = [
        _Picture(row["file_name"], tuple(boxes.get(row["id"], ())))
        for row in _rows(annotations, content, "images", id=_ID, file_name=str)
    ]
    known = frozenset(category.id for category in categories)

    def shard(start: int, stop: int) -> RowReader:
        return partial(
            _read_detection_rows, pictures[start:stop], images, source.reader, config.max_image_pixels, known
        )

    return [RecordTable("detection", DetectionRecord, len(pictures), categories_to_metadata(categories), shard)]


def read_coco_captions(source: SourceConfig, role: Role, config: PrepareConfig, seed: int) -> list[RecordTable]:
    """COCO captions JSON beside a folder of pictures; every caption is a pair of its own."""
    annotations, images = _paths(source, role)
    content = _load_json(annotations)
    rows = _rows(annotations, content, "images", id=_ID, file_name=str)
    names = {row["id"]: row["file_name"] for row in rows}
    pairs = [
        _Picture(names[row["image_id"]], (row,))
        for row in _rows(annotations, content, "annotations", image_id=_ID)
        if row["image_id"] in names
    ]

    def shard(start: int, stop: int) -> RowReader:
        return partial(_read_caption_rows, pairs[start:stop], images, source.reader, config.max_image_pixels)

    return [RecordTable("", CaptionRecord, len(pairs), {}, shard)]


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
    """Clip a box to the picture; None when less than ``MIN_BOX_SIDE`` of it is left."""
    x1, y1, x2, y2 = box
    clipped = (max(0.0, x1), max(0.0, y1), min(float(width), x2), min(float(height), y2))
    if clipped[2] - clipped[0] < MIN_BOX_SIDE or clipped[3] - clipped[1] < MIN_BOX_SIDE:
        return None
    return clipped


def clean_caption(value: Any) -> str:
    """Return a raw caption as text that every encoding can hold, stripped; empty when it is no text at all."""
    if not isinstance(value, str):
        return ""
    # JSON can hold half a surrogate pair, which no file and no tokenizer takes.
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace").strip()


def _read_detection_rows(
    pictures: Sequence[_Picture], folder: Path, source: str, max_pixels: int, known: frozenset[int]
) -> Iterator[DetectionRecord | Reject | DroppedBox]:
    for picture in pictures:
        try:
            data, height, width = _read_picture(folder, picture.file_name, max_pixels)
        except ImageError as error:
            yield Reject(picture.file_name, error.reason)
            continue
        objects = []
        for row in picture.rows:
            item = _parse_object(row, height, width, known)
            if isinstance(item, DetectedObject):
                objects.append(item)
            else:
                yield DroppedBox(picture.file_name, item)
        yield DetectionRecord(
            key=content_key(data),
            image=ImageRef(bytes=data),
            height=height,
            width=width,
            source=source,
            objects=tuple(objects),
        )


def _parse_object(row: Mapping[str, Any], height: int, width: int, known: frozenset[int]) -> DetectedObject | str:
    """Read one annotation; return why it is dropped (one of ``BOX_DROP_REASONS``) when it cannot be used."""
    try:
        x, y, w, h = map(float, row.get("bbox", ()))
    except (TypeError, ValueError, OverflowError):
        return "box_malformed"
    if not all(map(math.isfinite, (x, y, x + w, y + h))):
        return "box_malformed"
    category = row.get("category_id")
    if not isinstance(category, int) or category not in known:
        return "category_unknown"
    box = clip_box((x, y, x + w, y + h), height, width)
    if box is None:
        return "box_degenerate"
    return DetectedObject(category_id=category, xyxy=box, is_crowd=bool(row.get("iscrowd", 0)))


def _read_caption_rows(
    pairs: Sequence[_Picture], folder: Path, source: str, max_pixels: int
) -> Iterator[CaptionRecord | Reject]:
    for pair in pairs:
        caption = clean_caption(pair.rows[0].get("caption"))
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
    try:
        is_inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError) as error:  # a name that no file can have, or links in a circle
        raise ImageError("image_missing", str(error)) from error
    if not is_inside:
        raise ImageError("image_outside_folder", f"{name} leaves {folder}")
    data = read_file(path)
    image = decode_image(data, max_pixels)
    return data, image.height, image.width


def _paths(source: SourceConfig, role: Role) -> tuple[Path, Path]:
    if source.annotations is None or source.images is None:
        raise ConfigError(f"prepare.{role}: reader {source.reader!r} needs both annotations and images")
    annotations, images = Path(source.annotations), Path(source.images)
    if not annotations.is_file():
        raise MissingInputError(f"{annotations}: no such file; set annotations of prepare.{role} in params.yaml")
    if not images.is_dir():
        raise MissingInputError(f"{images}: no such folder; set images of prepare.{role} in params.yaml")
    return annotations, images


def _load_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or brackets without end
        raise MissingInputError(f"{path}: not readable as JSON: {error}; fetch the file again") from error
    if not isinstance(content, dict):
        raise MissingInputError(f"{path}: holds a {type(content).__name__}; expected a COCO file, which is an object")
    return content


def _rows(
    path: Path, content: Mapping[str, Any], name: str, /, **fields: type | tuple[type, ...]
) -> list[Mapping[str, Any]]:
    """Return a list of a COCO file after a check that its rows have what the reader needs of them."""
    rows = content.get(name)
    if not isinstance(rows, list):
        raise MissingInputError(f"{path}: no list {name!r} (found: {', '.join(content)}); expected a COCO file")
    for i, row in enumerate(rows):
        for key, kind in fields.items():
            if not isinstance(row, dict) or not isinstance(row.get(key), kind):
                found = row.get(key, "nothing") if isinstance(row, dict) else row
                raise MissingInputError(
                    f"{path}: {name}[{i}] should have {key!r}, found {found!r}; is it a COCO file of the right kind?"
                )
    return rows
