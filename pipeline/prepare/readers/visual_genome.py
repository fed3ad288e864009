"""Visual Genome: objects as detection data, region descriptions as grounding data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from pipeline.errors import MissingInputError
from pipeline.prepare.raw import (
    RawDetection,
    RawGrounding,
    RawImage,
    RawObject,
    RawPhrase,
    RawTable,
    SourceContext,
    Url,
)
from pipeline.prepare.readers.coco import Values, corners, listed, whole_number
from pipeline.prepare.readers.json_stream import JsonStream
from pipeline.prepare.readers.spool import Spool, text_id
from pipeline.store.filesystem import file_identity
from pipeline.store.records import Category, DetectionRecord, GroundingRecord
from pipeline.store.urls import redact


def read_visual_genome_objects(
    context: SourceContext,
    *,
    objects: Url,
    image_data: Url,
    images: Url,
    without_coco: bool = True,
    min_count: int = 1,
) -> list[RawTable]:
    """Visual Genome's objects with boxes; an object's first name, in lower case, is its category.

    Options:
        objects: ``objects.json``.
        image_data: ``image_data.json``, which knows sizes and COCO ids.
        images: folder that holds VG_100K and VG_100K_2, or all pictures.
        without_coco: leave out the pictures that are also in COCO, as GLIP does.
        min_count: names that fewer objects have are no categories.
    """
    counts: Counter[str] = Counter()
    for row in JsonStream(objects).entries():
        counts.update(name for item in _list(row, "objects") if (name := _name(item)) is not None)
    names = sorted(name for name, count in counts.items() if count >= min_count)
    ids = {name: number for number, name in enumerate(names, start=1)}
    spool = _spool(objects, "objects", lambda item: (_box(item), ids.get(_name(item) or "")), image_data, without_coco)
    identity = f"{file_identity(objects)} {file_identity(image_data)} {images} {without_coco} {min_count}"
    categories = tuple(Category(id=number, name=name) for name, number in ids.items())
    parts = partial(spool.parts, redact(objects), identity, partial(_detection_rows, images))
    return [RawTable(DetectionRecord, parts, len(spool), categories)]


def read_visual_genome_regions(
    context: SourceContext, *, regions: Url, image_data: Url, images: Url, without_coco: bool = True
) -> list[RawTable]:
    """Visual Genome's region descriptions: every description is a caption whose one phrase, all of it, has its region.

    Options:
        regions: ``region_descriptions.json``.
        image_data: ``image_data.json``.
        images: folder that holds VG_100K and VG_100K_2, or all pictures.
        without_coco: leave out the pictures that are also in COCO.
    """
    spool = _spool(regions, "regions", lambda item: (_box(item), item.get("phrase")), image_data, without_coco)
    identity = f"{file_identity(regions)} {file_identity(image_data)} {images} {without_coco}"
    parts = partial(spool.parts, redact(regions), identity, partial(_region_rows, images))
    return [RawTable(GroundingRecord, parts)]


def _spool(url: Url, items: str, values: Callable[[Values], Any], image_data: Url, without_coco: bool) -> Spool:
    """Join the pictures with what ``values`` keeps of the entries in their list ``items``."""
    spool, in_coco = Spool(), set[str | None]()
    fields = ("image_id", "url", "height", "width", "coco_id")

    def pictures() -> Iterator[tuple[Any, list[Any]]]:
        for row in JsonStream(image_data).entries():
            if without_coco and row.get("coco_id") is not None:
                in_coco.add(text_id(row.get("image_id")))
            else:
                yield row.get("image_id"), [row.get(name) for name in fields]

    spool.add_pictures(pictures())
    if not len(spool):
        raise MissingInputError(f"{redact(image_data)}: no pictures in it; expected Visual Genome's image_data.json")
    # Older releases call the picture "id".
    named = ((row.get("image_id", row.get("id")), _list(row, items)) for row in JsonStream(url).entries())
    spool.add_annotations(
        (picture, values(item)) for picture, found in named for item in found if text_id(picture) not in in_coco
    )
    return spool


def _detection_rows(images: str, pictures: list[tuple[Any, list[Any]]]) -> Iterator[RawDetection]:
    for values, found in pictures:
        objects = [RawObject(xyxy=box, category_id=category) for box, category in found]
        yield RawDetection(name=f"picture {values[0]}", image=_image(values, images), objects=objects)


def _region_rows(images: str, pictures: list[tuple[Any, list[Any]]]) -> Iterator[RawGrounding]:
    for values, found in pictures:
        image = _image(values, images)
        for box, phrase in found:
            length = len(phrase) if isinstance(phrase, str) else 0
            whole = RawPhrase(char_spans=[(0, length)], boxes=[box])
            yield RawGrounding(name=f"picture {values[0]}", image=image, caption=phrase, phrases=[whole])


def _image(values: list[Any], images: str) -> RawImage:
    number, url, height, width, coco = values
    # The last folder of the URL tells which of the two archives has the picture.
    archive = str(url).rpartition("/")[0].rpartition("/")[2]
    places = [f"{archive}/{number}.jpg"] if archive in ("VG_100K", "VG_100K_2") else []
    places += [f"{number}.jpg", f"VG_100K/{number}.jpg", f"VG_100K_2/{number}.jpg"]
    return RawImage(
        folder=images,
        url=places[0],
        choices=tuple(dict.fromkeys(places[1:])),
        height=whole_number(height),
        width=whole_number(width),
        picture_id=f"coco/{coco}" if isinstance(coco, int) else f"vg/{number}",
    )


def _list(row: Values, name: str) -> list[Values]:
    return [item if isinstance(item, dict) else {} for item in listed(row.get(name))]


def _name(item: Values) -> str | None:
    names = item.get("names")
    name = names[0] if isinstance(names, list) and names else item.get("name")
    return name.strip().lower() or None if isinstance(name, str) else None


def _box(item: Values) -> tuple[float, ...]:
    # Objects have w and h, regions width and height.
    sides = [item.get("x"), item.get("y"), item.get("w", item.get("width")), item.get("h", item.get("height"))]
    return corners(sides)
