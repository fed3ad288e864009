"""Raw rows to records: one place that decides what is right, for all formats.

A row that cannot be used becomes a ``Reject``, a box a ``DroppedBox``; neither ends a run. What is left holds what
``records`` promises: boxes inside their picture, spans inside their caption and with text in them, captions that every
encoding can hold, sizes as the picture has them once it stands upright and boxes in its pixels, keys that depend on the
content alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal
from urllib.parse import unquote

from glip_model.images import ImageError, check_image
from pipeline.prepare.frames import Frame, find_frame
from pipeline.prepare.held_out import HeldOut, Sighting, perceptual_hash
from pipeline.prepare.raw import (
    BOXES_CLIPPED,
    CAPTION_DAMAGED,
    LOOKS_HELD_OUT,
    Converted,
    DroppedBox,
    PictureRow,
    RawDetection,
    RawGrounding,
    RawImage,
    RawPair,
    RawRow,
    Reject,
)
from pipeline.prepare.search import find_picture
from pipeline.prepare.values import (
    MIN_BOX_SIDE,
    clean_caption,
    content_key,
    is_allowed,
    is_clipped,
    is_name,
    is_size,
    read_area,
    read_box,
    read_license,
    read_spans,
)
from pipeline.store.filesystem import read_many
from pipeline.store.image_roots import check_inside, join_inside
from pipeline.store.records import (
    CaptionRecord,
    DetectedObject,
    DetectionRecord,
    GroundingRecord,
    ImageRef,
    Phrase,
    Record,
    ScoredBox,
)
from pipeline.store.web import PUBLIC_WEB

MAX_CAPTION_CHARS = 100_000
"""Longer captions are no captions, but whole pages that some crawl took for one."""
READ_AHEAD = 64
"""Pictures fetched at a time; a remote store answers them side by side."""
CHECKED_SIDE = 64
"""Pixels of the small picture that is looked at."""
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\|\.\.\\")
_KEY_DIGITS = 8
"""Of the content's hash behind the name of a picture."""


@dataclass(frozen=True)
class Rules:
    """What applies to all rows of a source."""

    source: str
    """Name in the records."""
    pictures: Literal["embed", "reference", "unread"]
    max_pixels: int
    categories: frozenset[int] = frozenset()
    """Ids of the vocabulary, for detection rows."""
    held_out: HeldOut | None = None
    """Pictures that must not be shown in training."""
    data_set: str = ""
    """Sources with the same are parts of one data set, whose own split stands; empty where nobody said so."""
    min_box_side: float = MIN_BOX_SIDE
    """Pixels; 0 in data that models are judged by, where every box that is one counts."""
    is_judged_by: bool = False
    """Models are judged by the rows, so that pseudo-labels are rejects."""
    roots: tuple[str, ...] = ()
    """Folders and URLs where pictures may be that records refer to, see ``allowed_roots``."""
    data_root: str = "."
    """Below it pictures may be read, too."""
    licenses: tuple[str, ...] = ()
    """Patterns of licences that are used; none means all."""

    def roots_of(self, image: RawImage) -> list[str]:
        """Return where a picture may be read: below its own folder, or, of a list of addresses, from the public web."""
        own = [image.folder or "."] if image.folder is not None else PUBLIC_WEB
        return [*own, self.data_root, *self.roots]


@dataclass(frozen=True, slots=True)
class _Picture:
    """A picture that was looked at."""

    ref: ImageRef
    height: int
    width: int
    content: bytes
    """What the key is made of."""
    sighting: Sighting
    orientation: int = 1
    """EXIF's, 1 to 8, by which the stored picture was turned."""
    license: str | None = None


def to_records(
    rows: Iterable[RawRow], rules: Rules, sightings: list[Sighting] | None = None
) -> Iterator[Record | Reject | DroppedBox | Converted]:
    """Check rows and make records of them, in their order.

    Args:
        rows: what a reader yields.
        rules: of their source.
        sightings: gets an entry for every picture that became a record, where somebody wants to know.

    Yields:
        Records, and what was left out.
    """
    iterator = iter(rows)
    while batch := list(islice(iterator, READ_AHEAD)):
        fetched = _fetch(batch, rules) if rules.pictures != "unread" else {}
        for i, row in enumerate(batch):
            if isinstance(row, PictureRow):
                yield from _convert(row, fetched.get(i), rules, sightings)
            else:
                yield row


def _fetch(batch: Sequence[RawRow], rules: Rules) -> dict[int, RawImage | ImageError]:
    """Read the pictures of rows that do not carry them, each from the first of its places that has it."""
    rows = {i: row for i, row in enumerate(batch) if isinstance(row, PictureRow)}
    found: dict[int, RawImage | ImageError] = {}
    waiting: dict[int, list[str]] = {}
    roots = list(dict.fromkeys(root for row in rows.values() for root in rules.roots_of(row.image)))
    for i, row in rows.items():
        if row.image.data is None:
            try:
                waiting[i] = _places(row.image)
            except ImageError as error:
                found[i] = error

    def read(asked: dict[int, str]) -> None:
        for (i, url), data in zip(asked.items(), read_many(list(asked.values()), roots), strict=True):
            found[i] = data if isinstance(data, ImageError) else replace(rows[i].image, data=data, url=url)

    while waiting := {i: places for i, places in waiting.items() if places and not isinstance(found.get(i), RawImage)}:
        read({i: places.pop(0) for i, places in waiting.items()})
    lost = {i: row.image for i, row in rows.items() if row.image.is_searched and isinstance(found.get(i), ImageError)}
    read({i: place for i, image in lost.items() if (place := find_picture(image.folder or ".", _names(image)))})
    return found


def _places(image: RawImage) -> list[str]:
    """Return where a picture may be; ImageError when one of the names leaves its folder."""
    names = _names(image)
    if image.folder is None:
        return names
    # A path of somebody's Windows machine says nothing of ours but the name at its end.
    names = [re.split(r"[\\/]", name)[-1] if _WINDOWS.match(name) else name for name in names]
    names += [unquote(name) for name in names if "%" in name]  # labelling tools name pictures as in URLs
    return [join_inside(image.folder, name) for name in names]


def _names(image: RawImage) -> list[str]:
    return [name for name in (image.url, *image.choices) if name is not None]


def _convert(
    row: PictureRow, fetched: RawImage | ImageError | None, rules: Rules, sightings: list[Sighting] | None
) -> Iterator[Record | Reject | DroppedBox | Converted]:
    caption = "" if isinstance(row, RawDetection) else clean_caption(row.caption)
    notes = row.converted
    if not isinstance(row, RawDetection) and caption != row.caption and CAPTION_DAMAGED not in notes:
        notes += (CAPTION_DAMAGED,)
    if isinstance(row, RawPair):
        caption = caption.strip()
    if not isinstance(row, RawDetection) and not caption.strip():
        yield Reject(row.name, "caption_empty")
        return
    if len(caption) > MAX_CAPTION_CHARS:
        yield Reject(row.name, "caption_too_long")
        return
    if rules.licenses and not is_allowed(read_license(row.image.license), rules.licenses):
        yield Reject(row.name, "license_refused")
        return
    try:
        picture = _unread(row.image, rules) if rules.pictures == "unread" else _look(fetched or row.image, rules)
    except ImageError as error:
        yield Reject(row.name, error.reason)
        return
    if rules.held_out is not None and rules.held_out.has(picture.sighting):
        yield Reject(row.name, "held_out")
        return
    if rules.held_out is not None and rules.data_set and rules.held_out.resembles(picture.sighting):
        notes = (*notes, LOOKS_HELD_OUT)
    if sightings is not None:
        sightings.append(picture.sighting)
    try:
        frame = _frame(row, picture, rules)
    except ImageError as error:
        yield Reject(f"{row.name}: {error}", error.reason)
        return
    for made in _make(row, picture, frame, caption, rules):
        yield made
        if not isinstance(made, Reject | DroppedBox | Converted):
            yield from (Converted(row.name, what) for what in (*notes, *frame.converted))


def _make(
    row: PictureRow, picture: _Picture, frame: Frame, caption: str, rules: Rules
) -> Iterator[Record | Reject | DroppedBox | Converted]:
    if isinstance(row, RawPair):
        key = content_key(rules.source, picture.content, caption)
        yield CaptionRecord(caption=caption, **_head(picture, key, rules))
    elif isinstance(row, RawDetection):
        yield from _detection(row, picture, frame, rules)
    else:
        yield from _grounding(row, picture, frame, caption, rules)


def _frame(row: PictureRow, picture: _Picture, rules: Rules) -> Frame:
    """Return the pixels that the boxes of a row count in; ImageError when that is not certain."""
    size = picture.height, picture.width
    if rules.pictures == "unread" or isinstance(row, RawPair):
        return Frame(size)
    height, width = row.image.height, row.image.width
    stated = (height, width) if is_size(height) and is_size(width) else None
    if isinstance(row, RawDetection):
        boxes = [item.xyxy for item in row.objects if not item.is_relative]
    else:
        boxes = [box for phrase in row.phrases if not phrase.is_relative for box in phrase.boxes]
    frame = find_frame(stated, size, picture.orientation, boxes)
    if frame is None:
        told = "no size" if stated is None else f"{width}×{height}"
        raise ImageError("size_mismatch", f"annotated at {told}, the picture is {picture.width}×{picture.height}")
    return frame


def _head(picture: _Picture, key: str, rules: Rules) -> dict[str, Any]:
    return {
        "key": key,
        "image": picture.ref,
        "height": picture.height,
        "width": picture.width,
        "source": rules.source,
        "license": picture.license,
    }


def _detection(
    row: RawDetection, picture: _Picture, frame: Frame, rules: Rules
) -> Iterator[DetectionRecord | DroppedBox | Converted]:
    objects = []
    num_clipped = 0
    for item in row.objects:
        corners = frame.place(item.xyxy, item.is_relative)
        box = read_box(corners, picture.height, picture.width, rules.min_box_side)
        if isinstance(box, str):
            yield DroppedBox(row.name, box)
        elif not isinstance(item.category_id, int) or item.category_id not in rules.categories:
            yield DroppedBox(row.name, "category_unknown")
        else:
            num_clipped += is_clipped(corners, box)
            is_crowd, area = bool(item.is_crowd), read_area(item.area)
            area = None if area is None else area * frame.scale[0] * frame.scale[1]
            objects.append(
                DetectedObject(category_id=item.category_id, xyxy=box, is_crowd=is_crowd, area=area, score=item.score)
            )
    key = content_key(rules.source, picture.content)
    if is_name(row.key):  # with the content: what depends on the rows must see when a picture changes in its place
        key = f"{row.key}@{key[:_KEY_DIGITS]}"
    yield DetectionRecord(
        objects=tuple(objects),
        negative_category_ids=_known_ids(row.negative_category_ids, rules),
        not_exhaustive_category_ids=_known_ids(row.not_exhaustive_category_ids, rules),
        **_head(picture, key, rules),
    )
    if num_clipped:
        yield Converted(row.name, BOXES_CLIPPED)


def _known_ids(ids: Any, rules: Rules) -> tuple[int, ...]:
    found = ids if isinstance(ids, list | tuple) else ()
    return tuple(number for number in found if type(number) is int and number in rules.categories)


def _grounding(
    row: RawGrounding, picture: _Picture, frame: Frame, caption: str, rules: Rules
) -> Iterator[GroundingRecord | Reject | DroppedBox | Converted]:
    phrases = []
    num_clipped = 0
    for raw in row.phrases:
        spans = read_spans(raw.char_spans, caption)
        if not spans:
            yield from (DroppedBox(row.name, "span_empty") for _ in raw.boxes)
            continue
        # Boxes that lack a score where others have one are dropped.
        scores = [1.0] * len(raw.boxes) if raw.scores is None else [*raw.scores, *[None] * len(raw.boxes)]
        boxes = []
        for raw_box, score in zip(raw.boxes, scores, strict=False):
            corners = frame.place(raw_box, raw.is_relative)
            box = read_box(corners, picture.height, picture.width, rules.min_box_side)
            if isinstance(box, str):
                yield DroppedBox(row.name, box)
            elif not isinstance(score, int | float) or not 0 <= score <= 1:
                yield DroppedBox(row.name, "box_malformed")
            else:
                num_clipped += is_clipped(corners, box)
                boxes.append(ScoredBox(xyxy=box, score=float(score)))
        text = " ".join(caption[start:end] for start, end in spans)
        phrases.append(
            Phrase(text=text, char_spans=spans, boxes=tuple(boxes), is_plural=raw.is_plural, split=raw.split)
        )
    if not phrases:
        yield Reject(row.name, "no_phrases")
        return
    # One picture may have the same caption twice, of other things: the boxes tell them apart.
    content = repr([(phrase.char_spans, [box.xyxy for box in phrase.boxes]) for phrase in phrases])
    again = [str(row.occurrence)] if row.occurrence else []
    key = content_key(rules.source, picture.content, caption, content, *again)
    head = _head(picture, key, rules)
    if is_name(row.key) and is_name(row.source):
        head |= {"key": row.key, "source": row.source}
    record = GroundingRecord(caption=caption, phrases=tuple(phrases), **head)
    if rules.is_judged_by and record.is_pseudo_label:
        yield Reject(row.name, "pseudo_label")
        return
    yield record
    if num_clipped:
        yield Converted(row.name, BOXES_CLIPPED)


def _look(image: RawImage | ImageError, rules: Rules) -> _Picture:
    if isinstance(image, ImageError):
        raise image
    data = image.data
    if data is None:
        raise ImageError("image_missing", "the row names no picture")
    (height, width), small, orientation = check_image(data, rules.max_pixels, CHECKED_SIDE)
    by_reference = rules.pictures == "reference" and image.url is not None
    if by_reference and image.url is not None:
        check_inside(image.url, rules.roots)  # where later stages would refuse it
    ref = ImageRef(path=image.url) if by_reference else ImageRef(bytes=data)
    sighting = Sighting(image.picture_id, perceptual_hash(small), rules.data_set)
    return _Picture(ref, height, width, data, sighting, orientation, read_license(image.license))


def _unread(image: RawImage, rules: Rules) -> _Picture:
    if image.url is None:
        raise ImageError("image_missing", "a picture inside a table cannot stay unread; set prepare.pictures: embed")
    height, width, place = image.height, image.width, _places(replace(image, choices=()))[0]
    if not (is_size(height) and is_size(width)):
        raise ImageError("image_unreadable", "the annotations do not say the picture's size; set prepare.pictures")
    check_inside(place, rules.roots)
    sighting = Sighting(image.picture_id, None, rules.data_set)
    return _Picture(ImageRef(path=place), height, width, place.encode(), sighting, license=read_license(image.license))
