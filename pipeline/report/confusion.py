"""What models take for what: phrases that get another phrase's box, and objects called by another category's name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from glip_model.boxes import pairwise_iou
from pipeline.evaluation.benchmark import is_federated
from pipeline.evaluation.flickr30k import IOU_THRESHOLD
from pipeline.evaluation.judged import SHOWN_SCORE
from pipeline.evaluation.predictions import NO_BOXES, Predictions
from pipeline.store.records import Category, DetectionRecord, GroundingRecord

OFTEN = 3
"""Times that a phrase is said in a benchmark to stand for longer ones that end in it."""
_ARTICLES = ("a", "an", "the", "some")


@dataclass(frozen=True)
class Confusions:
    """How often one thing was taken for another."""

    counts: list[tuple[str, str, int]]
    """Two names and how often, most frequent first."""
    total: int
    """Mistakes of any kind that these are a part of."""

    @property
    def confused(self) -> int:
        """How many of the mistakes are confusions."""
        return sum(count for *_, count in self.counts)


def confused_phrases(records: Sequence[GroundingRecord], predictions: Predictions) -> Confusions:
    """Count (asked, taken): phrases whose best box misses its own truth, but has that of another phrase of the caption.

    Args:
        records: all rows of the benchmark, in order.
        predictions: labels count the phrases of the row.

    Returns:
        Phrases in lower case, without what is seldom said before them; the total is of all whose best box misses.
    """
    name = _shortener(records)
    counts: Counter[tuple[str, str]] = Counter()
    misses = 0
    rows = predictions.by_number()
    for number, record in enumerate(records):
        chosen = predictions.best_of_labels(rows.get(number, NO_BOXES))
        best = {int(predictions.labels[i]): torch.from_numpy(predictions.boxes_xyxy[[i]]) for i in chosen}
        truths = {i: torch.tensor([box.xyxy for box in p.boxes]) for i, p in enumerate(record.phrases) if p.boxes}
        for asked in truths:
            overlaps = {i: _overlap(best[asked], truth) for i, truth in truths.items()} if asked in best else {}
            if overlaps.get(asked, 0.0) >= IOU_THRESHOLD:
                continue
            misses += 1
            taken = max((i for i in overlaps if i != asked), key=overlaps.__getitem__, default=None)
            if taken is not None and overlaps[taken] >= IOU_THRESHOLD:
                counts[name(record.phrases[asked].text), name(record.phrases[taken].text)] += 1
    return Confusions(_ranked(counts), misses)


def confused_categories(
    records: Sequence[DetectionRecord], categories: Sequence[Category], predictions: Predictions
) -> Confusions:
    """Count (shown, called): false alarms of some score that lie on an object of another category.

    Where pictures were checked for some categories only, as in LVIS, others are no false alarms.

    Args:
        records: all rows of the benchmark, in order.
        categories: the vocabulary.
        predictions: labels are category ids.

    Returns:
        Category names; the total is of all detections of that score that meet no object of their own category.
    """
    names = {category.id: category.name for category in categories}
    federated = is_federated(categories)
    counts: Counter[tuple[str, str]] = Counter()
    false_alarms = 0
    rows = predictions.by_number()
    for number, mine in rows.items():
        record, mine = records[number], mine[predictions.scores[mine] >= SHOWN_SCORE]
        objects = [item for item in record.objects if item.category_id in names]
        shown = np.array([item.category_id for item in objects], np.int64)
        if federated:
            mine = mine[np.isin(predictions.labels[mine], [*shown, *record.negative_category_ids])]
        called = predictions.labels[mine]
        truth = torch.tensor([item.xyxy for item in objects]).reshape(-1, 4)
        overlap = pairwise_iou(torch.from_numpy(predictions.boxes_xyxy[mine]), truth).numpy()
        is_own = called[:, None] == shown
        is_false = ~((overlap >= IOU_THRESHOLD) & is_own).any(1)
        false_alarms += int(is_false.sum())
        is_crowd = np.array([item.is_crowd for item in objects], bool)
        others = np.where(is_own | is_crowd, 0.0, overlap)
        for i in np.flatnonzero(is_false & (others.max(1, initial=0.0) >= IOU_THRESHOLD)):
            counts[names[int(shown[others[i].argmax()])], names.get(int(called[i]), str(called[i]))] += 1
    return Confusions(_ranked(counts), false_alarms)


def _overlap(box: torch.Tensor, truth: torch.Tensor) -> float:
    return float(pairwise_iou(box, truth).max())


def _ranked(counts: Counter[tuple[str, str]]) -> list[tuple[str, str, int]]:
    return [(*names, count) for names, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def _shortener(records: Sequence[GroundingRecord]) -> Callable[[str], str]:
    """Return what makes one of "a shiny banjo" and "the banjo": a phrase's longest ending that is often a phrase."""
    said = Counter(_words(phrase.text) for record in records for phrase in record.phrases)

    def shorten(text: str) -> str:
        words = _words(text)
        endings = (words[start:] for start in range(len(words)))
        return " ".join(next((each for each in endings if said[each] >= OFTEN), words))

    return shorten


def _words(text: str) -> tuple[str, ...]:
    words = tuple(text.lower().split())
    return words[1:] if words[1:] and words[0] in _ARTICLES else words
