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

    Names are compared without case, as COCO's categories have none; a phrase goes by the class that it means, too.
    Boxes that nobody moved stay to the bit. A phrase that lost all its boxes is not there; one that had none stays
    open; what the row does not have is new.
    """
    texts: dict[str, str] = {}
    left: dict[str, list[Box]] = {}
    for text, box in sheet.boxes:
        left.setdefault(_name(text), []).append(box)
        texts.setdefault(_name(text), text.strip())
    names = [[_name(text) for text in (phrase.text, phrase.category) if text] for phrase in record.phrases]
    kept = [
        [_take([left.get(name, []) for name in of_phrase], box.xyxy) for box in phrase.boxes]
        for phrase, of_phrase in zip(record.phrases, names, strict=True)
    ]
    new: list[list[Box]] = [[] for _ in record.phrases]  # boxes that are new, or were moved
    for name in texts:
        number = _owner(name, names, kept)
        if number is not None:
            new[number] += left.pop(name)
    found = []
    for phrase, places, others in zip(record.phrases, kept, new, strict=True):
        boxes = [box for box in places if box is not None] + others
        found.append(_judged(phrase.text, phrase.char_spans, boxes, "absent" if phrase.boxes else "open"))
    for name, boxes in left.items():
        span = find_phrase(texts[name], record.caption)
        found.append(_judged(texts[name], (span,) if span else (), boxes, "open"))
    return found


def _owner(name: str, names: list[list[str]], kept: list[list[Box | None]]) -> int | None:
    """Return the phrase that new boxes of a name belong to: best of this very text, then one that lost a box."""
    ranks = [(of[0] != name, None not in kept[number], number) for number, of in enumerate(names) if name in of]
    return min(ranks)[-1] if ranks else None


def _take(lists: list[list[Box]], wanted: Box) -> Box | None:
    """Take a box that is this one, but for rounding, from lists of others; return the exact one, or None."""
    for boxes in lists:
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
