"""What tells one state of a row from another, so that what is said of a row is never taken for another state of it."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from pipeline.store.records import GroundingRecord

_LENGTH = 32
"""Hexadecimal digits, 128 bits."""


def row_fingerprint(record: GroundingRecord) -> str:
    """Return a hash over what a person sees of a row: its key, size, caption, phrases, boxes and scores.

    The key stands for the picture, and numbers count as shards hold them. Detection records have that of the grounding
    record that they are seen as.
    """
    phrases = []
    for phrase in record.phrases:
        boxes = np.array([[*box.xyxy, box.score] for box in phrase.boxes], np.float32)
        phrases.append([phrase.text, phrase.char_spans, boxes.tolist()])
    seen = [record.key, record.width, record.height, record.caption, phrases]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:_LENGTH]
