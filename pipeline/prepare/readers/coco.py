"""COCO's JSON and what is built like it: instances, captions, LVIS, Objects365, exports of labelling tools.

The files are read as streams, so that memory does not grow with them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Any

from pipeline.errors import MissingInputError
from pipeline.prepare.raw import (
    BOXES_FROM_POLYGONS,
    RawDetection,
    RawImage,
    RawObject,
    RawPair,
    RawTable,
    Reject,
    SourceContext,
    Url,
)
from pipeline.prepare.readers.json_stream import JsonStream
from pipeline.prepare.readers.spool import Spool, text_id
from pipeline.store.filesystem import file_identity
from pipeline.store.records import CaptionRecord, Category, DetectionRecord
from pipeline.store.urls import redact

logger = logging.getLogger(__name__)

Values = Mapping[str, Any]
_COCO_NAME = re.compile(r"COCO_[a-z]+20\d\d_(\d{12})\.jpg")
_NAME_OF_2014 = re.compile(r"COCO_(?:train|val|test)2014_(\d{12}\.jpg)")
_COCO_URL = re.compile(r"https?://(?:\w+\.)*cocodataset\.org/(\w+/0*(\d+)\.jpg)")
_CROWD = (1, "1")
_FREQUENCIES = ("r", "c", "f")
_PICTURE_KEYS = {"images": "id", "annotations": "image_id"}


def read_coco_detection(
    context: SourceContext, *, annotations: Url, images: Url, search: bool = False, only_used: bool = False
) -> list[RawTable]:
    """COCO instances JSON beside a folder of pictures; crowd boxes are kept and marked.

    It reads exports of labelling tools as well. Objects have the ``area`` that the file gives, which in COCO's own is
    that of their mask; those without a box get the one around their polygons or mask. Boxes are clipped to their
    picture, and change in no other way but where the file gives another size than the picture has, see ``frames``.

    Options:
        annotations: the JSON file.
        images: folder of the pictures.
        search: a picture that is not where the file says is looked for below ``images`` by its name.
        only_used: the vocabulary is the categories that have a box; some tools list the data set itself as one.
    """
    return [detection_table(CocoFile(annotations), images, search=search, only_used=only_used)]


def read_coco_captions(context: SourceContext, *, annotations: Url, images: Url) -> list[RawTable]:
    """COCO captions JSON beside a folder of pictures; every caption is a pair of its own."""
    file = CocoFile(annotations)
    spool = file.spool(lambda row: row.get("caption"))
    # One picture has about five captions: parts are cut by pictures, and their rows are counted as they are read.
    identity = f"{file.identity} {redact(images)}"
    rows = partial(_caption_rows, images, file.licenses())
    return [RawTable(CaptionRecord, partial(spool.parts, file.label, identity, rows))]


def detection_table(
    file: CocoFile,
    images: Url,
    places: Callable[[Values], Sequence[str]] | None = None,
    names: Mapping[int, str] | None = None,
    without: frozenset[int] = frozenset(),
    picture_id: Callable[[Values], str | None] | None = None,
    search: bool = False,
    only_used: bool = False,
) -> RawTable:
    """Return the boxes of a COCO-style file.

    Args:
        file: the annotations.
        images: folder of the pictures.
        places: of a picture's values, where below ``images`` it may be; None takes the usual ones.
        names: by category id, in place of the file's own names.
        without: ids that are no categories to ask for.
        picture_id: of a picture's values, what it is called in all data sets; None knows pictures of COCO.
        search: as for ``read_coco_detection``.
        only_used: likewise.

    Raises:
        MissingInputError: it has no pictures or no categories.
    """
    spool = file.spool(_object_values)
    licenses = file.licenses()
    rows = partial(_detection_rows, images, places or picture_places, picture_id or coco_picture_id, search, licenses)
    identity = f"{file.identity} {redact(images)} {names} {sorted(without)} {search}"
    parts = partial(spool.parts, file.label, identity, rows)
    categories = tuple(category for category in file.categories(names) if category.id not in without)
    if only_used:
        used = set(map(whole_number, spool.distinct(_CATEGORY)))
        categories = tuple(category for category in categories if category.id in used)
    return RawTable(DetectionRecord, parts, len(spool), categories)


class CocoFile:
    """A JSON object with the lists ``images``, ``annotations`` and ``categories``, plain or compressed.

    Args:
        url: of the file.
        pictures: ids, as ``text_id`` writes them, of those that are read, with their annotations; None reads all.

    Raises:
        MissingInputError: there is no such file.
    """

    def __init__(self, url: Url, pictures: frozenset[str] | None = None) -> None:
        self.url, self.label, self.identity = url, redact(url), file_identity(url)
        if pictures is not None:
            self.identity += f" {sorted(pictures)}"
        self._json, self._pictures = JsonStream(url), pictures

    def rows(self, name: str) -> Iterator[Values]:
        """Yield the entries of a list, see ``JsonStream``."""
        entries, key = self._json.entries(name), _PICTURE_KEYS.get(name)
        if self._pictures is None or key is None:
            return entries
        return (row for row in entries if text_id(row.get(key)) in self._pictures)

    def spool(self, values: Callable[[Values], Any]) -> Spool:
        """Join pictures and annotations on disk.

        Args:
            values: what to keep of an annotation, as plain values.

        Raises:
            MissingInputError: there are no pictures.
        """
        spool = Spool()
        spool.add_pictures((row.get("id"), row) for row in self.rows("images"))
        if not len(spool):
            raise MissingInputError(f"{self.label}: no pictures in a list 'images'; expected a COCO file")
        annotations = self.rows("annotations")
        first = next(annotations, None)
        if first is None:
            logger.warning("%s: nothing in a list 'annotations': its %d pictures show nothing", self.label, len(spool))
        else:
            spool.add_annotations((row.get("image_id"), values(row)) for row in chain([first], annotations))
        self._json.check_rest()
        return spool

    def licenses(self) -> dict[Any, Any]:
        """Return the addresses of the licences that pictures may have, or their names, by id; after ``spool``."""
        rows = self.rows("licenses")
        return {row["id"]: row.get("url") or row.get("name") for row in rows if isinstance(row.get("id"), int | str)}

    def categories(self, names: Mapping[int, str] | None = None) -> tuple[Category, ...]:
        """Return the vocabulary by ascending ids; MissingInputError where it is empty or not ids with names."""
        found: dict[int, Category] = {}
        for i, row in enumerate(self.rows("categories")):
            number, name = whole_number(row.get("id")), row.get("name")
            if names and number is not None:
                name = names.get(number, name)
            if number is None or not isinstance(name, str):
                raise MissingInputError(
                    f"{self.label}: categories[{i}] should have a whole number 'id' and a 'name', found {row!r}"
                )
            if number in found and found[number].name != _encodable(name):
                raise MissingInputError(
                    f"{self.label}: categories {found[number].name!r} and {name!r} have the same id {number}, and "
                    "nobody knows which of them a box is; give each an id of its own"
                )
            frequency = row.get("frequency")
            found[number] = Category(
                id=number, name=_encodable(name), frequency=frequency if frequency in _FREQUENCIES else None
            )
        if not found:
            raise MissingInputError(f"{self.label}: no categories in a list 'categories'; expected a COCO file")
        return tuple(found[number] for number in sorted(found))


_CATEGORY = 1
"""Place of the category among what is kept of an annotation."""


def _object_values(row: Values) -> tuple[Any, ...]:
    found = corners(row.get("bbox"))
    around = () if found else around_mask(row.get("segmentation"))
    is_crowd = row.get("iscrowd") in _CROWD
    return found or around, row.get("category_id"), is_crowd, row.get("area"), bool(around)


def around_mask(segmentation: Any) -> tuple[float, ...]:
    """Return the corners of the smallest box around COCO's polygons or run lengths; nothing where it is neither."""
    if isinstance(segmentation, dict):
        return _around_runs(segmentation)
    rings = listed(segmentation)
    rings = rings if any(isinstance(ring, list) for ring in rings) else [rings]
    try:
        numbers = [float(value) for ring in rings for value in ring]
    except (TypeError, ValueError, OverflowError):
        return ()
    if len(numbers) < 4 or any(len(ring) % 2 for ring in rings):
        return ()
    xs, ys = numbers[::2], numbers[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def _run_lengths(counts: str) -> list[int]:
    """Return compressed run lengths: five bits a character, lowest first; from the fourth on, less the last but one."""
    lengths: list[int] = []
    value = shift = 0
    for code in counts.encode("ascii"):
        value |= (code - 48 & 0x1F) << shift
        shift += 5
        if code - 48 & 0x20:  # more follow
            continue
        if code - 48 & 0x10:  # negative
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    return lengths


def _around_runs(segmentation: Values) -> tuple[float, ...]:
    from pycocotools import mask  # waits for no other reader

    size, counts = listed(segmentation.get("size")), segmentation.get("counts", "")
    if len(size) != 2 or any(type(side) is not int or not 0 < side < 1 << 16 for side in size):
        return ()
    try:
        runs = {"size": size, "counts": counts}
        lengths = counts if isinstance(counts, list) else _run_lengths(counts)
        if min(lengths) < 0 or sum(lengths) != size[0] * size[1]:
            return ()
        if isinstance(counts, list):
            runs = mask.frPyObjects(runs, *size)
        x, y, width, height = map(float, mask.toBbox(runs) if mask.area(runs) else (0, 0, 0, 0))
    except Exception:  # of Cython code, which names no errors
        return ()
    return (x, y, x + width, y + height) if width > 0 < height else ()


def _detection_rows(
    images: Url,
    places: Callable[[Values], Sequence[str]],
    picture_id: Callable[[Values], str | None],
    search: bool,
    licenses: Mapping[Any, Any],
    pictures: list[tuple[Any, list[Any]]],
) -> Iterator[RawDetection | Reject]:
    for values, boxes in pictures:
        image = raw_image(values, images, places, picture_id, search, licenses)
        if isinstance(image, Reject):
            yield image
            continue
        objects = [
            RawObject(xyxy=box, category_id=whole_number(category), is_crowd=is_crowd, area=area)
            for box, category, is_crowd, area, _ in boxes
        ]
        yield RawDetection(
            name=picture_name(values),
            image=image,
            objects=objects,
            negative_category_ids=values.get("neg_category_ids"),
            not_exhaustive_category_ids=values.get("not_exhaustive_category_ids"),
            converted=(BOXES_FROM_POLYGONS,) if any(is_derived for *_, is_derived in boxes) else (),
        )


def _caption_rows(
    images: Url, licenses: Mapping[Any, Any], pictures: list[tuple[Any, list[Any]]]
) -> Iterator[RawPair | Reject]:
    for values, captions in pictures:
        image = raw_image(values, images, picture_places, licenses=licenses)
        if isinstance(image, Reject):
            yield from [image] * max(1, len(captions))
            continue
        for caption in captions:
            yield RawPair(name=picture_name(values), image=image, caption=caption)


def raw_image(
    values: Values,
    images: Url,
    places: Callable[[Values], Sequence[str]],
    picture_id: Callable[[Values], str | None] | None = None,
    search: bool = False,
    licenses: Mapping[Any, Any] = MappingProxyType({}),
) -> RawImage | Reject:
    """Return where the picture of an ``images`` entry may be; a reject where it has no id or no name."""
    names = list(dict.fromkeys(_encodable(place) for place in places(values)))
    if not names or text_id(values.get("id")) is None:
        return Reject(picture_name(values), "row_malformed")
    number = values.get("license")
    return RawImage(
        folder=images,
        url=names[0],
        choices=tuple(names[1:]),
        is_searched=search,
        license=licenses.get(number) if isinstance(number, int | str) else None,
        height=whole_number(values.get("height")),
        width=whole_number(values.get("width")),
        picture_id=(picture_id or coco_picture_id)(values),
    )


def picture_places(values: Values) -> list[str]:
    """Return the names that a picture may have below its folder: ``file_name``, and what COCO's own URL ends with."""
    places = [values["file_name"]] if isinstance(values.get("file_name"), str) else []
    matched = _COCO_URL.fullmatch(str(values.get("coco_url", "")))
    if matched:  # LVIS has no file_name, and takes pictures from train2017 and val2017
        places += [matched[1], matched[1].rpartition("/")[2]]
    return places


def places_of_2017(name: str) -> list[str]:
    """Return where COCO 2017 has a picture with a name of 2014, which it dropped; nothing for another name."""
    matched = _NAME_OF_2014.fullmatch(name)
    return [f"{folder}{matched[1]}" for folder in ("train2017/", "val2017/", "")] if matched else []


def picture_name(values: Values) -> str:
    """Return what messages call a picture."""
    return _encodable(str(values.get("file_name") or values.get("coco_url") or f"picture {values.get('id')}"))


def coco_picture_id(values: Values) -> str | None:
    """Return the id that a picture has in COCO, whatever file speaks of it; None when it is no picture of COCO."""
    name = str(values.get("file_name", "")).rpartition("/")[2]
    matched = _COCO_NAME.fullmatch(name)
    if matched:
        return f"coco/{int(matched[1])}"
    by_url = _COCO_URL.fullmatch(str(values.get("coco_url", "")))
    return f"coco/{int(by_url[2])}" if by_url else None


def corners(bbox: Any) -> tuple[float, ...]:
    """Turn COCO's x y width height into corners; into nothing when it is something else."""
    if not isinstance(bbox, list | tuple):
        return ()
    try:
        x, y, width, height = map(float, bbox)
    except (TypeError, ValueError, OverflowError):
        return ()
    return x, y, x + width, y + height


def listed(value: Any) -> list[Any]:
    """Return a list; what is none is one entry that no check lets pass, so that it is counted, or nothing if empty."""
    if isinstance(value, list):
        return value
    return [] if value is None or value in ("", {}) else [None]


def whole_number(value: Any) -> int | None:
    """Return a number that some tools write as 480.0 or "480"; None for what is none, or has a fraction."""
    if type(value) is int:
        return value
    if isinstance(value, str) and len(value) < 16 and value.isdecimal():
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else None


def _encodable(text: str) -> str:
    """Return text without the halves of surrogate pairs that JSON can hold and files cannot."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
