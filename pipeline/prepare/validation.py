"""Raw rows to records: one place that decides what is right, for all formats.

A row that cannot be used becomes a ``Reject``, a box a ``DroppedBox``; neither ends a run. What is left holds what
``records`` promises: boxes inside their picture, spans inside their caption and with text in them, captions that every
encoding can hold, sizes as the picture has them once it stands upright and boxes in its pixels, keys that depend on the
content alone.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, Literal, TypeGuard
from urllib.parse import unquote

from glip_model.images import ImageError, check_image
from pipeline.prepare.frames import TOLERANCE, Frame, find_frame
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
from pipeline.store.filesystem import read_many
from pipeline.store.image_roots import check_inside, join_inside
from pipeline.store.records import (
    Box,
    CaptionRecord,
    DetectedObject,
    DetectionRecord,
    GroundingRecord,
    ImageRef,
    Phrase,
    Record,
    ScoredBox,
    Span,
)
from pipeline.store.web import PUBLIC_WEB

MIN_BOX_SIDE = 1.0
"""Pixels; boxes that are smaller after clipping teach nothing and are dropped."""
MAX_CAPTION_CHARS = 100_000
"""Longer captions are no captions, but whole pages that some crawl took for one."""
READ_AHEAD = 64
"""Pictures fetched at a time; a remote store answers them side by side."""
CHECKED_SIDE = 64
"""Pixels of the small picture that is looked at."""
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\|\.\.\\")
_KEY_DIGITS = 8
"""Of the content's hash behind the name of a picture."""
UNKNOWN_LICENSE = "unknown"
"""What a pattern calls the licence of pictures whose data set says nothing."""
MAX_NAME_CHARS = 200
"""Of the key and the source that a row brings along."""


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
    stated = (height, width) if _is_size(height) and _is_size(width) else None
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
            num_clipped += _is_clipped(corners, box)
            is_crowd, area = bool(item.is_crowd), read_area(item.area)
            area = None if area is None else area * frame.scale[0] * frame.scale[1]
            objects.append(
                DetectedObject(category_id=item.category_id, xyxy=box, is_crowd=is_crowd, area=area, score=item.score)
            )
    key = content_key(rules.source, picture.content)
    if _is_name(row.key):  # with the content: what depends on the rows must see when a picture changes in its place
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
                num_clipped += _is_clipped(corners, box)
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
    if _is_name(row.key) and _is_name(row.source):
        head |= {"key": row.key, "source": row.source}
    record = GroundingRecord(caption=caption, phrases=tuple(phrases), **head)
    if rules.is_judged_by and record.is_pseudo_label:
        yield Reject(row.name, "pseudo_label")
        return
    yield record
    if num_clipped:
        yield Converted(row.name, BOXES_CLIPPED)


def read_license(value: Any) -> str | None:
    """Return a licence as text of one line; None where the data set says nothing, as LAION does by ``?``."""
    text = " ".join(clean_caption(value).split())[:MAX_NAME_CHARS]
    return text if text.strip("?") else None


def is_allowed(license_: str | None, patterns: Sequence[str]) -> bool:
    """Tell whether a licence matches one of some patterns, whatever the case; ``unknown`` stands for none."""
    text = (license_ or UNKNOWN_LICENSE).lower()
    return any(fnmatchcase(text, pattern.lower()) for pattern in patterns)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARS and value.isprintable()


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
    if not (_is_size(height) and _is_size(width)):
        raise ImageError("image_unreadable", "the annotations do not say the picture's size; set prepare.pictures")
    check_inside(place, rules.roots)
    sighting = Sighting(image.picture_id, None, rules.data_set)
    return _Picture(ImageRef(path=place), height, width, place.encode(), sighting, license=read_license(image.license))


def _is_size(side: Any) -> TypeGuard[int]:
    return isinstance(side, int) and not isinstance(side, bool) and 0 < side < 1 << 20


def content_key(*parts: bytes | str) -> str:
    """Return a key that depends on the content alone, 20 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()[:20]


def read_box(xyxy: Sequence[Any], height: int, width: int, min_side: float = MIN_BOX_SIDE) -> Box | str:
    """Read corners and clip them to the picture; one of ``BOX_DROP_REASONS`` when they cannot be used.

    A box that lies inside stays as it is; shards round its corners to float32.
    """
    try:
        x1, y1, x2, y2 = map(float, xyxy)
    except (TypeError, ValueError, OverflowError):
        return "box_malformed"
    if not math.isfinite(x1 + y1 + x2 + y2):
        return "box_malformed"
    clipped = (max(0.0, x1), max(0.0, y1), min(float(width), x2), min(float(height), y2))
    side = min(clipped[2] - clipped[0], clipped[3] - clipped[1])
    if side < min_side or side <= 0:
        return "box_degenerate"
    return clipped


def _is_clipped(corners: Sequence[Any], box: Box) -> bool:
    """Tell whether clipping moved a side by more than sides are rounded by."""
    return any(abs(float(corner) - side) > TOLERANCE for corner, side in zip(corners, box, strict=True))


def read_area(value: Any) -> float | None:
    """Return the area of a mask, whatever became of its box; None when it is no number, negative or without end."""
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number can be larger
        return None


def read_spans(spans: Sequence[Any], caption: str) -> tuple[Span, ...]:
    """Return the pieces that have text in them, cut to the caption and freed of blanks at their ends, in order."""
    read = []
    for span in spans if isinstance(spans, list | tuple) else ():
        try:
            start, end = span
            start, end = max(int(start), 0), min(int(end), len(caption))
        except (TypeError, ValueError, OverflowError):
            continue
        text = caption[start:end]
        start += len(text) - len(text.lstrip())
        end -= len(text) - len(text.rstrip())
        if start < end:
            read.append((start, end))
    return tuple(sorted(set(read)))


def clean_caption(value: Any) -> str:
    """Return a raw caption as text that every encoding can hold, as long as before; empty when it is no text."""
    if not isinstance(value, str):
        return ""
    if value.isascii() and "\0" not in value:
        return value
    # JSON can hold half a surrogate pair, which no file and no tokenizer takes; null characters end strings early.
    text = "".join("\N{REPLACEMENT CHARACTER}" if "\ud800" <= c <= "\udfff" else c for c in value)
    return text.replace("\0", " ")
