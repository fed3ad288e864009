"""What a reader promises ``prepare``: raw rows as a data set has them, in tables made of parts.

A reader only says what stands in the files. Whether a picture can be opened, a box lies inside and a span has text is
checked once for all formats, in ``validation``; so nothing here needs to be right. One part is one task of Ray and one
or several output shards; it is read where the task runs, so it must survive pickling and carry no whole data set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from pipeline.prepare.settings import PrepareConfig
from pipeline.settings import EXPECTED
from pipeline.store.records import Category, Record


class Url(str):
    """An option of a reader that names a file or folder: a path, or a URL of any file system that fsspec knows.

    Relative ones start at ``prepare.data_root``.
    """

    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, kind: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Let a string of a params file become one."""
        text = core_schema.custom_error_schema(
            handler(str), EXPECTED, custom_error_message="no text", custom_error_context={EXPECTED: cls.__name__}
        )
        return core_schema.no_info_after_validator_function(cls, text)


@dataclass(frozen=True, kw_only=True, slots=True)
class RawImage:
    """A picture of a raw row: its encoded bytes, or where they are."""

    data: bytes | None = None
    url: str | None = None
    """A path or URL; ``#bytes=FIRST-LAST`` at its end names a range of a file, both included."""
    choices: tuple[str, ...] = ()
    """Further places to look when ``url`` names nothing: data sets are unpacked in more ways than one."""
    folder: str | None = None
    """Where ``url`` and ``choices`` start; a name that leaves it is refused. For names that stand in files."""
    is_searched: bool = False
    """Where none of these is there, it may be anywhere below ``folder``, see ``search.find_picture``."""
    height: int | None = None
    """As the annotations say. Boxes count in pixels of a picture of this size, see ``frames``."""
    width: int | None = None
    picture_id: str | None = None
    """The same for one picture in all data sets that show it, such as ``coco/139`` or ``flickr30k/1000092795``."""
    license: Any = None
    """As the data set names it, a name or an address; None where it says nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawObject:
    """A box of a category: corners x1 y1 x2 y2 in pixels, in whatever state they are."""

    xyxy: Sequence[Any]
    category_id: Any
    is_crowd: bool = False
    is_relative: bool = False
    """The corners are shares of the picture's sides, 0 to 1."""
    area: Any = None
    """Of its mask in pixels², where the data set has one."""
    score: float = 1.0
    """Below 1 where a teacher drew it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawPhrase:
    """A phrase of a caption with its boxes: half-open character spans, corners in pixels."""

    char_spans: Sequence[Sequence[Any]]
    boxes: Sequence[Sequence[Any]] = ()
    is_relative: bool = False
    """The corners of boxes are shares of the picture's sides, 0 to 1."""
    scores: Sequence[Any] | None = None
    """Per box, where a machine drew them; None for people's, which score 1. Scores below 1 make a pseudo-label."""
    is_plural: bool | None = None
    split: str | None = None
    """See ``records.Phrase``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _RawPicture:
    name: str
    """What the raw data calls the row, for messages."""
    image: RawImage
    converted: tuple[str, ...] = ()
    """What the reader did to the row to make sense of it, see ``Converted``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawPair(_RawPicture):
    """A picture with a caption."""

    caption: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class RawDetection(_RawPicture):
    """A picture with category boxes."""

    objects: Sequence[RawObject]
    negative_category_ids: Any = ()
    """A list of what somebody looked for in vain, where not all categories are looked for."""
    not_exhaustive_category_ids: Any = ()
    """A list of categories of which some objects may have no box."""
    key: Any = None
    """What the record's key begins with, for pictures that people will look for; None derives it from the content."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawGrounding(_RawPicture):
    """A picture with a caption and boxes for its phrases."""

    caption: Any
    phrases: Sequence[RawPhrase]
    key: Any = None
    """Of the record, with ``source``, where the row was a record before; None derives it from the content."""
    source: Any = None
    occurrence: int = 0
    """Counts rows that say the same and that the data set yet counts as several, as benchmarks do."""


@dataclass(frozen=True, slots=True)
class Reject:
    """A raw row that cannot be used."""

    name: str
    reason: str
    """One of ``records.ROW_REJECT_REASONS``."""


@dataclass(frozen=True, slots=True)
class DroppedBox:
    """A box that cannot be used; its picture stays."""

    name: str
    """What the raw data calls the row."""
    reason: str
    """One of ``records.BOX_DROP_REASONS``."""


CAPTION_NOT_UTF8 = "caption_not_utf8"
"""The row's text was in another encoding, see ``lines.decode_line``, and no character of it is lost."""
CAPTION_DAMAGED = "caption_damaged"
"""The row's text had bytes or halves of characters that mean nothing; U+FFFD, blanks or wrong letters stand there."""
CAPTION_UNQUOTED = "caption_unquoted"
"""A cell of a TSV stood in quotes, with those inside doubled, as in CSV."""
NAMES_NOT_UTF8 = "names_not_utf8"
"""The row's XML was in another encoding than it says."""
BOXES_FROM_POLYGONS = "boxes_from_polygons"
"""Objects of the row have a polygon or mask and no box; theirs is the smallest around it."""
BOXES_CLIPPED = "boxes_clipped"
"""Boxes of the row reach outside of the picture by more than a pixel and were cut off at its sides."""
LOOKS_HELD_OUT = "looks_held_out"
"""Its data set's own split has the row in training, though it looks like a picture that models are judged by."""
MEMBERS_UNREAD = "members_unread"
"""Beside the picture of the pair lies another, by its name a mask or the like, that is not read; once for each."""


@dataclass(frozen=True, slots=True)
class Converted:
    """A row that is used, but not as it stands in the data, or not without doubt; counted besides the row."""

    name: str
    """What the raw data calls the row."""
    what: str
    """Such as ``CAPTION_NOT_UTF8``."""


PictureRow = RawPair | RawDetection | RawGrounding
RawRow = PictureRow | Reject | DroppedBox | Record
"""What a part yields. A reader may reject a row for itself, and one that makes its pictures yields finished records."""


@dataclass(frozen=True)
class Part:
    """A piece of a table, read by one task."""

    name: str
    """Which file and what of it, for messages; without credentials."""
    identity: str
    """Changes whenever the rows may: versions of the files, settings of the reader, which rows."""
    rows: Callable[[], Iterator[RawRow]]
    num_rows: int | None = None
    """Raw rows, where known before reading."""


@dataclass(frozen=True)
class RawTable:
    """Rows of one kind, bound for one folder of shards."""

    record_type: type
    """``CaptionRecord``, ``DetectionRecord`` or ``GroundingRecord``."""
    parts: Callable[[int], Iterator[Part]]
    """Makes the parts one after the other, each of about so many rows where the format leaves a choice."""
    num_rows: int | None = None
    """Raw rows, where known before reading."""
    categories: tuple[Category, ...] = ()
    """The vocabulary of a detection table."""
    folder: str | None = None
    """Below the role's folder; None takes ``detection`` or ``grounding`` by the kind of rows, for web pairs nothing."""


@dataclass(frozen=True)
class SourceContext:
    """What a reader is told besides its own options."""

    role: str
    """``human``, ``web``, ``dev`` or ``test``."""
    name: str
    """What records of this source are called."""
    config: PrepareConfig
    seed: int

    @property
    def is_judged_by(self) -> bool:
        """Whether models are judged by these rows, and do not learn from them."""
        return self.role in ("dev", "test")

    def folder_of_expressions(self) -> str | None:
        """Return the folder of expressions for single things; in training they are captions like others."""
        return "referring" if self.is_judged_by else None


Reader = Callable[..., list[RawTable]]
"""``(context: SourceContext, *, its own options) -> tables``. Options are settings: their annotations are checked, a
default makes one optional. It raises MissingInputError where a file is not what it should be, saying where."""
