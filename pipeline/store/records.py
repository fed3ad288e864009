"""Row types and Arrow schemas of every record that the project stores.

Four kinds of rows rest in Parquet. All share a head: ``key`` (unique in its data set, derived from the content),
``image`` (encoded bytes, or a path when the pictures stay where they are), ``height`` and ``width`` of the decoded
picture, ``source``, and ``license`` where the data set names one.

    caption     head + caption                       web pairs, before labelling
    phrases     key + caption + phrases               what the phrase parser found, one row per caption row
    grounding   head + caption + phrases with boxes   human grounding data and pseudo-labels alike
    detection   head + objects                        category boxes, human or labelled; the vocabulary rests in the
                                                      file's metadata

Boxes are ``xyxy`` corners in pixels of the decoded picture, spans are half-open character offsets into the caption
exactly as it is stored.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa

SCHEMA_VERSION = "2"
"""Version of the schemas below, stored in every file's metadata under ``glip.schema_version``."""
READABLE_VERSIONS = ("1", SCHEMA_VERSION)
"""Of version 1 rows lack ``reviewed``: nobody reviewed them. Reading and writing a shard again migrates it."""

ROW_REJECT_REASONS = (
    "image_missing",
    "image_unreadable",
    "image_too_large",
    "image_outside_folder",
    "image_timeout",
    "size_mismatch",
    "caption_empty",
    "caption_too_long",
    "no_phrases",
    "not_in_names",
    "no_boxes",
    "nothing_new",
    "nothing_new_found",
    "pseudo_label",
    "duplicate_key",
    "held_out",
    "license_refused",
    "phrases_common",
    "row_malformed",
    "answer_unusable",
)
"""Why a row may be refused; every stage counts its rejects by these."""

NOTHING_FOUND = "no_boxes"
"""Reject reason of a row for which a teacher was asked, and no box of it was kept."""

NOTHING_NEW, NOTHING_NEW_FOUND = "nothing_new", "nothing_new_found"
"""Reject reasons of pairs of which all phrases, or all that have boxes, are of words that human data has."""

NOT_IN_NAMES = "not_in_names"
"""Reject reason of a phrase that means none of one's own classes, and of a row that has no other ones."""

NOT_THERE = "not_there"
"""Reject reason of a phrase of which a person said that it is not in the picture; training takes it as a negative."""

BOX_DROP_REASONS = ("box_malformed", "box_degenerate", "category_unknown", "span_empty", "picture_unknown")
"""Why a box of a raw data set may be left out while its picture stays; ``prepare`` counts them by these."""

Box = tuple[float, float, float, float]
Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ImageRef:
    """A picture: its encoded bytes, or the URL or path where they rest (one of the two is set)."""

    bytes: bytes | None = None
    path: str | None = None


@dataclass(frozen=True, kw_only=True)
class _PictureRecord:
    """The head that rows with a picture share."""

    key: str
    image: ImageRef
    height: int
    width: int
    source: str
    license: str | None = None
    """Of the picture, as its data set names it; None where it says nothing."""


@dataclass(frozen=True, kw_only=True)
class CaptionRecord(_PictureRecord):
    """A web image-text pair."""

    caption: str
    source_caption: str | None = None
    """What the caption was before a model wrote another one; None where none did."""


@dataclass(frozen=True, kw_only=True)
class ScoredBox:
    """One box of a phrase; human boxes score 1, those of a pseudo-label less."""

    xyxy: Box
    score: float = 1.0
    teachers: tuple[str, ...] | None = None
    """Which of several teachers found it; None where there was one."""
    agreement: float | None = None
    """The share of the teachers that found it, 0 to 1; None where there was one."""
    in_pass: int | None = None
    """In which pass over the picture it was found, from 1; None where there is one."""


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """A noun phrase of a caption, its boxes, and why it has none."""

    text: str
    char_spans: tuple[Span, ...]
    boxes: tuple[ScoredBox, ...] = ()
    reject_reason: str | None = None
    is_plural: bool | None = None
    """Whether the head noun stands in the plural; None when nobody said."""
    split: str | None = None
    """The parts of an evaluation that the phrase counts to, joined by ``/``; None where nobody said.

    ``base`` or ``novel``, or the types of Flickr30k Entities: people, clothing, bodyparts, animals, vehicles,
    instruments, scene, other.
    """
    category: str | None = None
    """Which of one's own classes the phrase means, see ``pipeline.store.ontology``; None where it means none."""


@dataclass(frozen=True, kw_only=True)
class PhrasesRecord:
    """The phrases that the parser found in one caption."""

    key: str
    caption: str
    phrases: tuple[Phrase, ...]
    reject_reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class GroundingRecord(_PictureRecord):
    """A picture with a caption and boxes for its phrases; a rejected row keeps its key and its reason."""

    caption: str
    phrases: tuple[Phrase, ...]
    reject_reason: str | None = None
    source_caption: str | None = None
    """What the caption was before a model wrote another one; None where none did."""
    reviewed: bool = False
    """A person judged the row: its boxes are those of people, with score 1, and all of their phrases' boxes."""

    @property
    def is_pseudo_label(self) -> bool:
        """Whether a machine drew any of the boxes, which its score tells."""
        return any(box.score < 1 for phrase in self.phrases for box in phrase.boxes)


@dataclass(frozen=True, kw_only=True)
class DetectedObject:
    """One box of a category."""

    category_id: int
    xyxy: Box
    is_crowd: bool = False
    area: float | None = None
    """Of its mask in pixels², as the data set has it; None takes that of the box."""
    score: float = 1.0
    """Human boxes score 1, those of a teacher less."""
    teachers: tuple[str, ...] | None = None
    """Which of several teachers found it; None where there was one."""
    agreement: float | None = None
    """The share of the teachers that found it, 0 to 1; None where there was one."""
    in_pass: int | None = None
    """In which pass over the picture it was found, from 1; None where there is one."""


@dataclass(frozen=True, kw_only=True)
class DetectionRecord(_PictureRecord):
    """A picture with category boxes; the ids are those of its data set's vocabulary."""

    objects: tuple[DetectedObject, ...]
    negative_category_ids: tuple[int, ...] = ()
    """Categories that somebody looked for and that are not there, where not all are looked for, as in LVIS."""
    not_exhaustive_category_ids: tuple[int, ...] = ()
    """Categories of which some objects may have no box."""
    reject_reason: str | None = None
    """Why a labelled picture has no boxes; ``no_boxes`` where it was looked at and nothing was found."""
    reviewed: bool = False
    """As of grounding records; categories that a person rejected are among ``negative_category_ids``."""


@dataclass(frozen=True, kw_only=True)
class Category:
    """One entry of a detection vocabulary."""

    id: int
    name: str
    split: str = "base"
    """``base`` when human data shows it, ``novel`` when only web pairs do."""
    frequency: str | None = None
    """``r``, ``c`` or ``f``: on how few or many pictures LVIS shows it, rare, common or frequent."""


_IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
_SPANS = pa.list_(pa.struct([pa.field("start", pa.int32()), pa.field("end", pa.int32())]))
_XYXY = [pa.field(side, pa.float32()) for side in ("x1", "y1", "x2", "y2")]
_HEAD = [
    pa.field("key", pa.string(), nullable=False),
    pa.field("image", _IMAGE, nullable=False),
    pa.field("height", pa.int32(), nullable=False),
    pa.field("width", pa.int32(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
]
_PHRASES = pa.list_(
    pa.struct(
        [
            pa.field("text", pa.string()),
            pa.field("char_spans", _SPANS),
            pa.field("boxes", pa.list_(pa.struct([*_XYXY, pa.field("score", pa.float32())]))),
            pa.field("reject_reason", pa.string()),
            pa.field("is_plural", pa.bool_()),
            pa.field("split", pa.string()),
        ]
    )
)
_CAPTION = pa.field("caption", pa.string(), nullable=False)
_REJECT = pa.field("reject_reason", pa.string())
_REVIEWED = pa.field("reviewed", pa.bool_())

_LICENSE = pa.field("license", pa.string())

CAPTION_SCHEMA = pa.schema([*_HEAD, _CAPTION, _LICENSE])
PHRASES_SCHEMA = pa.schema([_HEAD[0], _CAPTION, pa.field("phrases", _PHRASES), _REJECT])
GROUNDING_SCHEMA = pa.schema([*_HEAD, _CAPTION, pa.field("phrases", _PHRASES), _REJECT, _REVIEWED, _LICENSE])
_OBJECT = [pa.field("category_id", pa.int32()), *_XYXY, pa.field("is_crowd", pa.bool_())]
_AREA = pa.field("area", pa.float64())
DETECTION_SCHEMA = pa.schema(
    [
        *_HEAD,
        pa.field("objects", pa.list_(pa.struct([*_OBJECT, _AREA, pa.field("score", pa.float32())]))),
        pa.field("negative_category_ids", pa.list_(pa.int32())),
        pa.field("not_exhaustive_category_ids", pa.list_(pa.int32())),
        _REJECT,
        _REVIEWED,
        _LICENSE,
    ]
)
ADDED_LISTS = ("negative_category_ids", "not_exhaustive_category_ids")
ADDED_COLUMNS: dict[type, tuple[str, ...]] = {
    CaptionRecord: (_LICENSE.name,),
    GroundingRecord: (_REVIEWED.name, _LICENSE.name),
    DetectionRecord: (*ADDED_LISTS, _REJECT.name, _REVIEWED.name, _LICENSE.name),
}
OLDER_TYPES = {"objects": (pa.list_(pa.struct(_OBJECT)), pa.list_(pa.struct([*_OBJECT, _AREA])))}
"""Columns that older shards of a kind may lack, and types that they may have; their records take the defaults."""

Record = CaptionRecord | PhrasesRecord | GroundingRecord | DetectionRecord
SCHEMAS: dict[type, pa.Schema] = {
    CaptionRecord: CAPTION_SCHEMA,
    PhrasesRecord: PHRASES_SCHEMA,
    GroundingRecord: GROUNDING_SCHEMA,
    DetectionRecord: DETECTION_SCHEMA,
}

_OF_BOXES = [
    pa.field("teachers", pa.list_(pa.string())),
    pa.field("agreement", pa.float32()),
    pa.field("in_pass", pa.int32()),
]
_OF_PHRASES = [pa.field("category", pa.string())]
_OF_ROWS = [pa.field("source_caption", pa.string())]
_MOST_OF = {"boxes": _OF_BOXES, "objects": _OF_BOXES, "phrases": _OF_PHRASES}
EXTRAS = frozenset(field.name for field in (*_OF_BOXES, *_OF_PHRASES, *_OF_ROWS))
"""Fields that a shard has where its maker had use for them: at the end of boxes, phrases and rows."""
_CAPTIONED = (CaptionRecord, GroundingRecord)
ADDED_COLUMNS |= {kind: (*ADDED_COLUMNS.get(kind, ()), *(field.name for field in _OF_ROWS)) for kind in _CAPTIONED}


def schema_of(record_type: type, extras: Collection[str] = ()) -> pa.Schema:
    """Return the schema of a kind of records, with some of ``EXTRAS`` as far as the kind has them."""
    fields = [field.with_type(_with_extras(field.type, field.name, extras)) for field in SCHEMAS[record_type]]
    more = [field for field in _OF_ROWS if record_type in _CAPTIONED and field.name in extras]
    return pa.schema([*fields, *more])


def extras_of(schema: pa.Schema) -> set[str]:
    """Return which of ``EXTRAS`` a schema has."""
    found = {field.name for field in _OF_ROWS if field.name in schema.names}
    waiting: list[tuple[pa.DataType, str]] = [(field.type, field.name) for field in schema]
    while waiting:
        kind, name = waiting.pop()
        if pa.types.is_list(kind):
            waiting.append((kind.value_type, name))
        elif pa.types.is_struct(kind):
            found |= {field.name for field in kind} & {field.name for field in _MOST_OF.get(name, ())}
            waiting += [(field.type, field.name) for field in kind]
    return found


def without_extras(kind: pa.DataType, name: str = "") -> pa.DataType:
    """Return the type of a column without what ``EXTRAS`` are in it; ``name`` is that of the column."""
    if pa.types.is_list(kind):
        return pa.list_(without_extras(kind.value_type, name))
    if pa.types.is_struct(kind):
        added = {field.name: field.type for field in _MOST_OF.get(name, ())}
        kept = [field for field in kind if added.get(field.name) != field.type]
        return pa.struct([field.with_type(without_extras(field.type, field.name)) for field in kept])
    return kind


def _with_extras(kind: pa.DataType, name: str, extras: Collection[str]) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(_with_extras(kind.value_type, name, extras))
    if pa.types.is_struct(kind):
        inner = [field.with_type(_with_extras(field.type, field.name, extras)) for field in kind]
        return pa.struct([*inner, *(field for field in _MOST_OF.get(name, ()) if field.name in extras)])
    return kind
