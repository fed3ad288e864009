"""What tells one state of a row from another, so that what is said of a row is never taken for another state of it."""

from __future__ import annotations

import hashlib
import json

from pipeline.store.records import GroundingRecord

_LENGTH = 32
"""Hexadecimal digits, 128 bits."""


def row_fingerprint(record: GroundingRecord) -> str:
    """Return a hash over what a person sees of a row: its key, size, caption, phrases, boxes and scores.

    The key stands for the picture. Detection records have that of the grounding record that they are seen as.
    """
    phrases = [
        [phrase.text, phrase.char_spans, [[*box.xyxy, box.score] for box in phrase.boxes]] for phrase in record.phrases
    ]
    seen = [record.key, record.width, record.height, record.caption, phrases]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:_LENGTH]
