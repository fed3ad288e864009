"""From what editors say of rows to decisions: of rows where something was changed, and of no others."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from pipeline.inspection.exporting import xml_text
from pipeline.inspection.row_identity import row_fingerprint
from pipeline.review.decisions import Decision, DecisionError, JudgedPhrase, check_places
from pipeline.review.editors import Sheet
from pipeline.store.records import Box, GroundingRecord
from pipeline.store.spans import find_phrase

SAME_PIXELS = 0.02
"""Sides that differ by less were rounded by an editor, and nobody moved them."""


def to_decisions(
    records: Iterable[GroundingRecord],
    sheets: Iterable[Sheet],
    reviewer: str,
    at: datetime,
    takes_all: bool,
    problems: Counter[str],
) -> Iterator[Decision]:
    """Yield decisions about the rows that sheets speak of.

    Args:
        records: rows, as they were exported.
        sheets: what editors made of them; of several about a row the last one counts.
        reviewer: whose decisions they are.
        at: when they were made.
        takes_all: rows that nobody changed count as accepted; else nothing is said of them.
        problems: counts what is left out, by what is wrong.
    """
    by_key = {sheet.key: sheet for sheet in sheets}
    for record in records:
        sheet = by_key.pop(record.key, None)
        if sheet is None:
            continue
        try:
            phrases = judge(record, sheet)
            if phrases == as_it_is(record) and not takes_all:
                continue
            # The same file taken up twice says everything once.
            said = [
                record.key,
                row_fingerprint(record),
                reviewer,
                [phrase.model_dump(mode="json") for phrase in phrases],
            ]
            decision = Decision.model_validate(
                {
                    "id": hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32],
                    "key": record.key,
                    "row": said[1],
                    "reviewer": reviewer,
                    "at": at,
                    "phrases": phrases,
                }
            )
            check_places(decision, (record.width, record.height), len(record.caption))
        except (ValueError, DecisionError) as error:
            problems[f"rows with what is no decision, such as {record.key}: {error}"] += 1
        else:
            yield decision
    if by_key:
        problems["pictures whose row is not among these labels"] += len(by_key)


def as_it_is(record: GroundingRecord) -> list[JudgedPhrase]:
    """Return a row as a decision that changes nothing."""
    return [
        _judged(phrase.text, phrase.char_spans, [box.xyxy for box in phrase.boxes], "open") for phrase in record.phrases
    ]


def judge(record: GroundingRecord, sheet: Sheet) -> list[JudgedPhrase]:
    """Return the phrases of a row as an editor left them.

    Names are compared without case, as COCO's categories have none. Boxes that nobody moved stay to the bit. A phrase
    that lost all its boxes is not there; one that had none stays open; what the row does not have is new.
    """
    texts = {_name(phrase.text): phrase.text for phrase in reversed(record.phrases)}
    left: dict[str, list[Box]] = {}
    for text, box in sheet.boxes:
        left.setdefault(_name(text), []).append(box)
        texts.setdefault(_name(text), text.strip())
    kept = [[_take(left.get(_name(phrase.text), []), box.xyxy) for box in phrase.boxes] for phrase in record.phrases]
    found = []
    for phrase, places in zip(record.phrases, kept, strict=True):
        boxes = [box for box in places if box is not None]
        boxes += left.pop(_name(phrase.text), [])  # those that are new, or were moved
        found.append(_judged(phrase.text, phrase.char_spans, boxes, "absent" if phrase.boxes else "open"))
    for name, boxes in left.items():
        span = find_phrase(texts[name], record.caption)
        found.append(_judged(texts[name], (span,) if span else (), boxes, "open"))
    return found


def _take(boxes: list[Box], wanted: Box) -> Box | None:
    """Take a box that is this one, but for rounding, from others; return the exact one, or None."""
    for box in boxes:
        if all(abs(a - b) < SAME_PIXELS for a, b in zip(box, wanted, strict=True)):
            boxes.remove(box)
            return wanted
    return None


def _judged(text: str, spans: Any, boxes: list[Box], otherwise: str) -> JudgedPhrase:
    values = {"text": text, "spans": spans, "boxes": boxes, "verdict": "right" if boxes else otherwise}
    return JudgedPhrase.model_validate(values)


def _name(text: str) -> str:
    return xml_text(text).strip().lower()
