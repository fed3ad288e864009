"""Labels of five pairs in two shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.store.records import GroundingRecord, ImageRef, Phrase, ScoredBox
from pipeline.store.shards import PROVENANCE_KEY, shard_name, write_shard


def phrase(text: str, *scores: float, reason: str | None = None) -> Phrase:
    boxes = tuple(ScoredBox(xyxy=(1, 2, 3 + i, 4), score=score) for i, score in enumerate(scores))
    return Phrase(text=text, char_spans=((0, len(text)),), boxes=boxes, reject_reason=reason, is_plural=False)


def record(key: str, *phrases: Phrase, reason: str | None = None) -> GroundingRecord:
    caption = f"caption of {key}"
    image = ImageRef(bytes=key.encode() * 100)
    return GroundingRecord(
        key=key, image=image, height=10, width=20, caption=caption, source="t", phrases=phrases, reject_reason=reason
    )


ROWS = [
    [
        record("apple-1", phrase("Dog", 0.95, 0.25), phrase("cat", reason="below_min_score")),
        record("apple-2", reason="image_unreadable"),
    ],
    [
        record("berry-1", phrase("dog", 1.0), phrase("bird", 0.5)),
        record("berry-2", phrase("cat", reason="lost_to_other_phrase"), reason="no_boxes"),
        record("berry-3", phrase("cat", reason="below_min_score"), reason="no_boxes"),
    ],
]


def provenance(number: int, teacher: str = "teacher") -> dict[str, str]:
    value = {
        "teacher": {"name": teacher, "sha256": "abcdef0123456789"},
        "parser": "spacy==1",
        "settings": {"min_score": 0.2, "nms_threshold": 0.6},
        "input": {"pairs": f"hash {number}"},
        "fingerprint": f"f{number}",
    }
    return {PROVENANCE_KEY: json.dumps(value)}


@pytest.fixture(scope="session")
def rows() -> list[list[GroundingRecord]]:
    return ROWS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, rows in enumerate(ROWS):
        write_shard(tmp_path / "labels" / shard_name(number), rows, GroundingRecord, provenance(number))
    return tmp_path / "labels"


@pytest.fixture(scope="session")
def other_provenance() -> dict[str, str]:
    return provenance(2, teacher="other")
