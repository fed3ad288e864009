"""A reviewer who knows the truth, and errs as often as one wants: what people's time is worth can then be measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

import numpy as np

from glip_model.boxes import iou
from pipeline.inspection.row_identity import row_fingerprint
from pipeline.review.decisions import Decision, JudgedPhrase
from pipeline.review.taking import as_it_is
from pipeline.store.records import Box, GroundingRecord, Phrase

RIGHT_IOU = 0.5
"""From this overlap on a box is where it should be."""
_REVIEWER = "simulated"


def simulate(
    records: Iterable[GroundingRecord],
    truth: Mapping[str, GroundingRecord],
    error_rate: float,
    at: datetime,
    rng: np.random.Generator,
) -> Iterator[Decision]:
    """Yield what the reviewer says of rows.

    Args:
        records: labels.
        truth: by key, the same captions with the true boxes of their phrases; none of what is mentioned and not there.
        error_rate: share of the phrases that are left as they are, right or wrong.
        at: when.
        rng: chance.
    """
    for number, record in enumerate(records):
        phrases = [
            as_it_was if rng.random() < error_rate else _judge(phrase, true_boxes(phrase, truth[record.key]))
            for phrase, as_it_was in zip(record.phrases, as_it_is(record), strict=True)
        ]
        yield Decision(
            id=f"simulated-{number:08d}",
            key=record.key,
            row=row_fingerprint(record),
            reviewer=_REVIEWER,
            at=at,
            phrases=tuple(phrases),
        )


def precision(
    records: Iterable[GroundingRecord], truth: Mapping[str, GroundingRecord], split: str | None = None
) -> float:
    """Return the share of boxes that are where their phrase is, each true box counting once; NaN where there are none.

    Args:
        records: labels.
        truth: as ``simulate`` has it.
        split: of the phrases that are counted; None counts all.
    """
    right = total = 0
    for record in records:
        for phrase in record.phrases:
            if split is not None and split not in _splits(phrase, truth[record.key]):
                continue
            left = list(true_boxes(phrase, truth[record.key]))
            for box in sorted(phrase.boxes, key=lambda box: -box.score):
                total += 1
                best = max(left, key=lambda true: iou(box.xyxy, true), default=None)
                if best is not None and iou(box.xyxy, best) >= RIGHT_IOU:
                    right += 1
                    left.remove(best)
    return right / total if total else float("nan")


def true_boxes(phrase: Phrase, truth: GroundingRecord) -> tuple[Box, ...]:
    """Return the boxes of what a phrase of the same caption speaks of."""
    return tuple(box.xyxy for meant in _meant(phrase, truth) for box in meant.boxes)


def _judge(phrase: Phrase, boxes: tuple[Box, ...]) -> JudgedPhrase:
    """Return a phrase as it should be; boxes of the teacher that are right stay where they are."""
    kept = []
    for true in boxes:
        best = max((box.xyxy for box in phrase.boxes), key=lambda box: iou(box, true), default=None)
        kept.append(best if best is not None and best not in kept and iou(best, true) >= RIGHT_IOU else true)
    return JudgedPhrase(
        text=phrase.text, spans=phrase.char_spans, boxes=tuple(kept), verdict="right" if kept else "absent"
    )


def _meant(phrase: Phrase, truth: GroundingRecord) -> list[Phrase]:
    return [
        other
        for other in truth.phrases
        if any(a < end and start < b for start, end in other.char_spans for a, b in phrase.char_spans)
    ]


def _splits(phrase: Phrase, truth: GroundingRecord) -> set[str | None]:
    return {other.split for other in _meant(phrase, truth)}
