"""ODVG: object detection and visual grounding as JSON lines, the format of Open Grounding DINO and kin."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any, Literal

from pipeline.errors import MissingInputError
from pipeline.prepare.raw import (
    Part,
    RawDetection,
    RawGrounding,
    RawImage,
    RawObject,
    RawPhrase,
    RawTable,
    Reject,
    SourceContext,
    Url,
)
from pipeline.prepare.readers.coco import Values, coco_picture_id, listed, whole_number
from pipeline.prepare.readers.lines import PROBED_LINES, WHOLE, json_lines, json_parts
from pipeline.store.filesystem import file_identity, open_file
from pipeline.store.records import Category, DetectionRecord, GroundingRecord
from pipeline.store.spans import find_phrase
from pipeline.store.urls import redact

Kind = Literal["detection", "grounding"]
KINDS: tuple[Kind, ...] = ("detection", "grounding")
SUREST = 1 - 2**-24
"""What a machine's score of 1 becomes, the next number that shards hold: 1 is for boxes of people."""


def read_odvg(context: SourceContext, *, annotations: Url, images: Url, labels: Url | None = None) -> list[RawTable]:
    """ODVG JSON lines, of detection, of grounding or of both.

    Regions of grounding lines are found in the caption by ``tokens_positive`` where they have it, else by the first
    place where their phrase stands, whatever the case. Regions of the same words make one phrase. Regions with a
    ``score`` are a machine's, and keep it: their rows are pseudo-labels, which nothing is judged by. Detection records
    have no scores, so that detection lines with such instances are rejects. ``key`` and ``source`` of a line, as
    ``glip inspect --export odvg`` writes them, stay those of its record.

    Options:
        annotations: the file, plain or compressed.
        images: folder of the pictures.
        labels: label map of detection lines, a JSON object from label to name.
    """
    kinds = _kinds(annotations)
    if "detection" in kinds and labels is None:
        raise MissingInputError(f"{redact(annotations)}: detection lines need the option labels, a label map")
    categories = _read_labels(labels) if "detection" in kinds and labels is not None else ()
    identity = f"{file_identity(annotations)} {redact(images)} {file_identity(labels) if categories and labels else ''}"

    names = {category.id: category.name for category in categories}

    def parts(kind: Kind, rows_per_part: int) -> Iterator[Part]:
        rows = partial(_rows, images, names, kind, len(kinds) == 1)
        return json_parts(annotations, f"{identity} {kind}", rows, rows_per_part)

    types: dict[Kind, type] = {"detection": DetectionRecord, "grounding": GroundingRecord}
    return [
        RawTable(types[kind], partial(parts, kind), categories=categories if kind == "detection" else ())
        for kind in kinds
    ]


def _kinds(annotations: Url) -> list[Kind]:
    """Return which kinds of lines the beginning of a file has; MissingInputError when it has neither."""
    found: set[str] = set()
    for _, values, _ in islice(json_lines(annotations, *WHOLE), PROBED_LINES):
        found |= set(values) if isinstance(values, dict) else set()
    kinds: list[Kind] = [kind for kind in KINDS if kind in found]
    if not kinds:
        raise MissingInputError(
            f"{redact(annotations)}: no line with 'detection' or 'grounding' at its beginning; expected an ODVG file"
        )
    return kinds


def _rows(
    images: str, names: Mapping[int, str], kind: Kind, is_only_kind: bool, url: str, start: int, stop: int
) -> Iterator[RawDetection | RawGrounding | Reject]:
    for label, values, notes in json_lines(url, start, stop):
        found = [name for name in KINDS if name in values] if isinstance(values, dict) else []
        if not is_only_kind and kind not in (found or KINDS[:1]):
            continue  # the other table has it; what is of neither kind is told once
        body = values.get(kind) if isinstance(values, dict) else None
        if not isinstance(values, dict) or not isinstance(body, dict) or not isinstance(values.get("filename"), str):
            yield Reject(label, "row_malformed")
            continue
        name = values["filename"]
        image = RawImage(
            folder=images,
            url=name,
            height=whole_number(values.get("height")),
            width=whole_number(values.get("width")),
            picture_id=coco_picture_id({"file_name": name}),
        )
        if kind == "detection":
            instances = _list(body, "instances")
            if any(item.get("score") is not None for item in instances):
                yield Reject(name, "pseudo_label")
            else:
                yield RawDetection(name=name, image=image, objects=[_object(item, names) for item in instances])
        else:
            caption = body.get("caption")
            phrases = _phrases(_list(body, "regions"), caption if isinstance(caption, str) else "")
            yield RawGrounding(
                name=name,
                image=image,
                caption=caption,
                phrases=phrases,
                key=values.get("key"),
                source=values.get("source"),
                converted=notes,
            )


def _list(body: Values, name: str) -> list[Values]:
    return [item if isinstance(item, dict) else {} for item in listed(body.get(name))]


def _object(item: Values, names: Mapping[int, str]) -> RawObject:
    label, category = whole_number(item.get("label")), item.get("category")
    name = None if label is None else names.get(label)
    if isinstance(category, str) and name is not None and category.strip().lower() != name.strip().lower():
        label = None  # the line or the label map is of another data set, and nothing says which
    return RawObject(xyxy=listed(item.get("bbox")), category_id=label)


def _phrases(regions: list[Values], caption: str) -> list[RawPhrase]:
    """Gather regions by their spans, in the order in which spans come first."""
    by_spans: dict[str, tuple[Any, list[Any], list[Any]]] = {}
    is_scored = any(item.get("score") is not None for item in regions)
    for item in regions:
        spans, boxes = _spans(item, caption), item.get("bbox")
        if not isinstance(boxes, list):
            boxes = [()]
        elif not boxes or not isinstance(boxes[0], list):
            boxes = [boxes]
        known = by_spans.setdefault(repr(spans), (spans, [], []))
        known[1].extend(box if isinstance(box, list) else () for box in boxes)
        scores = item.get("score", 1.0)
        # A region of several boxes has a score, or one for each; boxes that lack theirs are dropped.
        several = scores if isinstance(scores, list) else [scores] * len(boxes)
        several = [SUREST if score == 1 and "score" in item else score for score in several]
        known[2].extend((*several, *[None] * len(boxes))[: len(boxes)])
    return [
        RawPhrase(char_spans=spans, boxes=boxes, scores=scores if is_scored else None)
        for spans, boxes, scores in by_spans.values()
    ]


def _spans(item: Values, caption: str) -> list[Any]:
    spans, phrase = item.get("tokens_positive"), item.get("phrase")
    if isinstance(spans, list):
        return spans
    # A phrase that lies apart in the caption is a list of its pieces.
    pieces = phrase if isinstance(phrase, list) else [phrase]
    places = [find_phrase(piece, caption) if isinstance(piece, str) else None for piece in pieces]
    return [list(place) for place in places if place] if all(places) else []


def _read_labels(labels: Url) -> tuple[Category, ...]:
    try:
        with open_file(labels, compression="infer") as file:
            content = json.load(file, object_pairs_hook=_names_by_label)
        return tuple(Category(id=label, name=name) for label, name in content.items())
    except (ValueError, AttributeError, RecursionError) as error:
        raise MissingInputError(
            f"{redact(labels)}: expected a JSON object from label to name ({error}); mend the option labels"
        ) from error


def _names_by_label(pairs: list[tuple[str, Any]]) -> dict[int, str]:
    """Return an object of JSON as a label map; ValueError where it is none, or one label has two names."""
    names: dict[int, str] = {}
    for label, name in pairs:
        if not isinstance(name, str):
            raise ValueError(f"label {label} has the name {name!r}")
        if names.setdefault(int(label), name) != name:
            raise ValueError(f"label {label} has two names, {names[int(label)]!r} and {name!r}")
    return names
