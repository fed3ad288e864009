"""Which rows are worth a person's time: those where a teacher was in doubt, or another one saw something else.

The doubt of a phrase, 0 to 1, is the largest of

- how near the least certain of its boxes is to the threshold,
- the share of its boxes that other labels of the same row (of another teacher, or of the student) do not have, or have
  beyond it,
- what made it lose its boxes: a mirrored picture that disagreed is a doubt, a score below the threshold half of one,

and more of it where the phrase is rare. A budget is spread over phrases: each row that is chosen for a phrase makes the
next one of that phrase worth less.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from pipeline.errors import MissingInputError
from pipeline.inspection.defects import read_provenance, sound_phrases
from pipeline.inspection.detections import label_table
from pipeline.inspection.search import Filter, Found, find_rows
from pipeline.inspection.versions import match_boxes
from pipeline.store.storage import Place, exists

REASON_DOUBTS = {"flip_disagrees": 1.0, "lost_to_other_phrase": 0.5, "below_min_score": 0.5}
"""Of phrases without boxes, by what their last box was left out for."""
LEAST_RARITY = 0.5
"""What the doubt about the most frequent phrases counts, beside that about a phrase that comes once."""
_COLUMNS = ("key", "height", "width", "caption", "phrases", "reviewed")
Phrases = list[dict[str, Any]]


def rank_rows(place: Place, wanted: Filter, count: int, others: Sequence[Place] = ()) -> tuple[list[Found], int]:
    """Return the rows that are most worth reviewing, best first, and among how many they were chosen.

    Rows that a person judged already, and rows without a phrase, are not chosen.

    Args:
        place: of the labels.
        wanted: which rows.
        count: how many.
        others: labels of the same rows, in shards of the same names.

    Raises:
        MissingInputError: there are no shards, or others lack one of them.
        ShardError: a shard is broken or holds other records.
    """
    rows: list[tuple[Found, dict[str, float]]] = []
    frequency: Counter[str] = Counter()
    total = 0
    for shard, group in itertools.groupby(find_rows(place, wanted), key=itemgetter(0)):
        numbers = {row for _, row in group}
        total += len(numbers)
        beside = [_phrases_by_key(_same_shard(shard, other)) for other in others]
        threshold = _threshold(shard)
        for number, key, phrases in _read_phrases(shard):
            frequency.update({phrase["text"].lower() for phrase in phrases})
            if number in numbers and phrases:
                doubts = _doubts(phrases, [other.get(key) for other in beside], threshold)
                rows.append(((shard, number), doubts))
    weights = {text: _rarity(times, frequency) for text, times in frequency.items()}
    worths = [{text: doubt * weights[text] for text, doubt in doubts.items()} for _, doubts in rows]
    return [rows[i][0] for i in spread(worths, count)], total


def spread(worths: Sequence[Mapping[str, float]], count: int) -> list[int]:
    """Choose rows one after the other, each time the one that is worth most now; return their numbers.

    A row is worth as much as its best phrase, and a phrase as much less as rows were chosen that have it: a half, a
    third … Equal rows come in their order.

    Args:
        worths: of every row, by phrase, what it would be worth if nothing else were chosen.
        count: rows to choose.
    """
    taken: Counter[str] = Counter()

    def worth(row: int) -> float:
        return max((value / (1 + taken[text]) for text, value in worths[row].items()), default=0.0)

    heap = [(-worth(row), row) for row in range(len(worths))]
    heapq.heapify(heap)
    chosen: list[int] = []
    while heap and len(chosen) < count:
        _, row = heapq.heappop(heap)
        now = worth(row)  # which only falls as others are chosen
        if heap and (-now, row) > heap[0]:
            heapq.heappush(heap, (-now, row))
            continue
        chosen.append(row)
        taken.update(worths[row].keys())
    return chosen


def _doubts(phrases: Phrases, others: Sequence[Phrases | None], threshold: float) -> dict[str, float]:
    """Return the doubt about each phrase of a row, by its text in lower case."""
    by_text: dict[str, Phrases] = {}
    for phrase in phrases:
        by_text.setdefault(phrase["text"].lower(), []).append(phrase)
    found = {}
    for text, group in by_text.items():
        boxes = [box for phrase in group for box in phrase["boxes"]]
        margins = [1 - (box["score"] - threshold) / max(1 - threshold, 1e-6) for box in boxes]
        reasons = [REASON_DOUBTS.get(phrase["reject_reason"], 0.0) for phrase in group if not phrase["boxes"]]
        found[text] = min(1.0, max([*margins, *reasons, *_disagreements(text, boxes, others)], default=0.0))
    return found


def _disagreements(text: str, boxes: Phrases, others: Sequence[Phrases | None]) -> Iterator[float]:
    for other in others:
        if other is not None:
            theirs = [box for phrase in other if phrase["text"].lower() == text for box in phrase["boxes"]]
            gained, lost, kept = match_boxes(boxes, theirs)
            yield (gained + lost) / max(gained + lost + 2 * kept, 1)


def _rarity(times: int, frequency: Counter[str]) -> float:
    most = max(frequency.values())
    return 1.0 - (1 - LEAST_RARITY) * (math.log(times) / math.log(most) if most > 1 else 0.0)


def _threshold(shard: Place) -> float:
    """Return the least score that boxes of a shard were kept from; 0 where it does not say."""
    value = read_provenance(shard).get("settings", {}).get("min_score")
    return float(value) if isinstance(value, int | float) and 0 <= value < 1 else 0.0


def _read_phrases(shard: Place) -> Iterator[tuple[int, str, Phrases]]:
    """Yield number, key and sound phrases of the rows that nobody reviewed."""
    for number, row in enumerate(label_table(shard, _COLUMNS).to_pylist()):
        if row.get("reviewed") or not (row["key"] and row["width"] and row["height"]) or row["caption"] is None:
            continue
        yield number, row["key"], sound_phrases(row["phrases"], row["caption"], row["width"], row["height"], Counter())


def _phrases_by_key(shard: Place) -> dict[str, Phrases]:
    return {key: phrases for _, key, phrases in _read_phrases(shard)}


def _same_shard(shard: Place, other: Place) -> Place:
    found = other if exists(other) else other / shard.name
    if not exists(found):
        raise MissingInputError(
            f"--against {other}: has no {shard.name}; name labels of the same rows, in as many shards"
        )
    return found
