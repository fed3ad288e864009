"""What all exports of labels share: pairs with their pictures, and files of them."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from glip_model.images import ImageError, check_image, decode_image
from pipeline.errors import ShardError
from pipeline.inspection.reading import read_records
from pipeline.inspection.search import Found
from pipeline.store.images import read_encoded
from pipeline.store.ontology import Ontology
from pipeline.store.records import NOTHING_FOUND, Box, GroundingRecord, ImageRef
from pipeline.store.storage import Place

MAX_PIXELS = 1_000_000_000
"""Larger pictures are not copied from beside the shards."""
KEYS_FILE = "keys.csv"
"""Which row every picture was: pictures are called by numbers, because keys are untrusted."""
_NOT_IN_XML = re.compile(r"[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SUFFIXES = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp", b"GI": "gif", b"BM": "bmp"}
"""By the first two bytes."""


@dataclass(frozen=True)
class Pairs:
    """What is exported: the pairs that have a picture and boxes, each with its number from 1.

    Of pictures that were labelled with names, those where nothing was found are exported as well.

    Attributes:
        found: rows and where they stand.
        on_row: is told of every row that was read.
        roots: where pictures may be that do not lie in the shards.
        defects: counts what is left out as broken, by kind.
        val_share: of the pairs that are written apart, to judge by, where a format knows parts.
        classes: categories that come first, in this order.
        ontology: says of which class each phrase is; boxes of others are left out. None: phrases are categories, or the
            classes that their maker had for them.
        keeps_empty: export pictures where nothing was found, too.
    """

    found: Iterable[Found]
    on_row: Callable[[int], Any]
    roots: Sequence[str]
    defects: Counter[str]
    val_share: float = 0.0
    classes: tuple[str, ...] = ()
    keeps_empty: bool = False
    ontology: Ontology | None = None
    other_phrases: Counter[str] = field(default_factory=Counter)
    """Counts the phrases with boxes that mean none of the classes."""

    def __iter__(self) -> Iterator[tuple[int, GroundingRecord]]:
        """Yield number and pair."""
        count = 0
        for record in read_records(self.found, self.defects):
            if self.ontology is not None:
                record = self._of_classes(record, self.ontology)
            if record.image != ImageRef() and self._is_wanted(record):
                if _is_readable(record.image):
                    count += 1
                    yield count, record
                else:
                    self.defects["picture_unreadable"] += 1
            self.on_row(1)

    def _of_classes(self, record: GroundingRecord, ontology: Ontology) -> GroundingRecord:
        """Return a pair whose phrases are called by their classes, without the boxes of those that mean none."""
        phrases = [replace(phrase, category=ontology.category(phrase.text)) for phrase in record.phrases]
        self.other_phrases.update(phrase.text.lower() for phrase in phrases if phrase.boxes and not phrase.category)
        return replace(record, phrases=tuple(each if each.category else replace(each, boxes=()) for each in phrases))

    def _is_wanted(self, record: GroundingRecord) -> bool:
        is_empty = not any(phrase.boxes for phrase in record.phrases)
        return not is_empty or (self.keeps_empty and record.reject_reason in (None, NOTHING_FOUND))

    def by_shard(self) -> Iterator[tuple[Place, Pairs]]:
        """Yield shards with their pairs, to be read one after the other."""
        for shard, rows in groupby(self.found, key=lambda each: each[0]):
            yield shard, replace(self, found=rows)

    def picture(self, record: GroundingRecord) -> bytes:
        """Return the encoded picture of a pair; ShardError where it cannot be read."""
        path = record.image.path if record.image.bytes is None else None
        try:
            (data,) = read_encoded([record.image], self.roots)
            if isinstance(data, ImageError):
                raise data
            if path is not None:  # a file of any kind may be named
                decode_image(data, MAX_PIXELS)
        except ImageError as error:
            raise ShardError(f"row {record.key}: {error.reason}: {error}") from error
        return data


def _is_readable(image: ImageRef) -> bool:
    """Say whether the bytes in a record are a picture; what a path leads to is seen when it is read."""
    if image.bytes is None:
        return True
    try:
        check_image(image.bytes, MAX_PIXELS, 1)
    except ImageError:
        return False
    return True


@contextmanager
def keys_table(out: Path) -> Iterator[Callable[[str, str], None]]:
    """Begin ``OUT/keys.csv``, and give what writes a picture's name and its key into it."""
    with (out / KEYS_FILE).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["picture", "key"])
        yield lambda name, key: table.writerow([name, key])


def xml_text(value: object) -> str:
    """Return a text without the characters that XML cannot have, which a sign stands for."""
    return _NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", str(value))


def xywh(xyxy: Box) -> list[float]:
    """Return a box as COCO writes it: its corner, its width and its height."""
    x1, y1, x2, y2 = xyxy
    return [x1, y1, x2 - x1, y2 - y1]


def write_picture(data: bytes, folder: Path, number: int) -> str:
    """Write a picture into a folder under a number, because keys are untrusted; return its name."""
    name = f"{number:012d}.{suffix_of(data)}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return name


def suffix_of(data: bytes) -> str:
    """Return the suffix for a picture's file, by its first bytes."""
    return _SUFFIXES.get(data[:2], "img")
