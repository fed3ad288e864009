"""How good pseudo-labels are at each score threshold, measured where people have drawn the boxes.

The teacher labels human grounding data as if it were web pairs, with the same competition and limits. Because boxes are
given out best first, those that a higher threshold would keep are just those of a higher score: one pass over the data
answers for all thresholds. How often the teacher finds what is not there is asked with negative captions: each picture
is shown the caption of another one that names nothing of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import isotonic_regression

from glip_model.boxes import pairwise_iou
from pipeline.errors import RejectLimitError
from pipeline.pseudo_labels.labeller import PseudoLabeller
from pipeline.pseudo_labels.settings import PseudoLabelConfig
from pipeline.store.atomic import write_csv
from pipeline.store.records import CaptionRecord, GroundingRecord, Phrase, PhrasesRecord
from pipeline.store.storage import Place

IOU_THRESHOLD = 0.5
THRESHOLDS = tuple(round(0.02 * step, 2) for step in range(51))
PARTS = ("all", "base", "novel")
Row = Mapping[str, float | None]
"""Figures at a threshold; None where there is nothing to take a share of."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """What one phrase was given, and what it should have been given."""

    scores: tuple[float, ...]
    """Scores of its boxes, best first."""
    hits: tuple[bool, ...]
    """Whether each box found a true box that no better one had found."""
    truth: int
    """True boxes."""
    split: str | None
    noun: str = ""
    """The head of the phrase in lower case, without the ``s`` of a plural; of detection records the class."""
    agreements: tuple[float | None, ...] = ()
    """For each box the share of the teachers that found it."""


def collect_samples(
    records: Sequence[GroundingRecord],
    make_labeller: Callable[[PseudoLabelConfig], PseudoLabeller],
    config: PseudoLabelConfig,
    on_rows: Callable[[int], Any] = lambda rows: None,
) -> tuple[list[Sample], list[Sample]]:
    """Label human data, and the same pictures with captions of others.

    Args:
        records: phrases with true boxes.
        make_labeller: loads the teacher for given settings.
        config: the settings of the stage; its thresholds of the score are set aside.
        on_rows: receives the number of rows that were done.

    Returns:
        Samples of phrases that were annotated, and of phrases that name nothing in the picture.

    Raises:
        RejectLimitError: too many of the pictures cannot be read.
    """
    labeller = make_labeller(
        dataclasses.replace(config, min_score=0.0, min_score_by_source={}, min_agreement=0.0, other_phrases="keep")
    )
    usable = [record for record in records if any(phrase.boxes for phrase in record.phrases)]
    positive: list[Sample] = []
    negative: list[Sample] = []
    broken = 0
    for start in range(0, len(usable), config.batch_size):
        batch = usable[start : start + config.batch_size]
        labelled = _label(labeller, batch, batch)
        broken += sum(record.reject_reason not in (None, "no_boxes") for record in labelled)
        for truth, found in zip(batch, labelled, strict=True):
            positive += [_sample(*pair) for pair in zip(truth.phrases, found.phrases, strict=True) if pair[0].boxes]
        others = [_unrelated_record(usable, start + i) for i in range(len(batch))]
        asked = [(row, other) for row, other in zip(batch, others, strict=True) if other is not None]
        for found in _label(labeller, [row for row, _ in asked], [other for _, other in asked]):
            negative += [_sample(dataclasses.replace(phrase, boxes=()), phrase) for phrase in found.phrases]
        on_rows(len(batch))
    check_readable(broken, len(usable), config)
    return positive, negative


def check_readable(broken: int, rows: int, config: PseudoLabelConfig) -> None:
    """Raise RejectLimitError where too large a share of the pictures cannot be read."""
    if broken > config.max_reject_share * rows:
        raise RejectLimitError(f"{broken} of {rows} pictures cannot be read; a curve over the rest would mislead")


def curves(positive: Sequence[Sample], negative: Sequence[Sample]) -> list[dict[str, float | None]]:
    """Return a row per threshold.

    Columns: ``threshold``; per part (all, base, novel) ``precision_…``, the share of kept boxes that are right,
    ``recall_…``, the share of true boxes that are found, ``f1_…``; ``false_alarms``, the share of phrases that name
    nothing in the picture and get a box; ``hit_rate``, how often a box of just this score is right. None where there is
    nothing to take a share of.
    """
    parts = {part: [each for each in positive if part in ("all", each.split)] for part in PARTS}
    arrays = {part: _arrays(samples) for part, samples in parts.items()}
    best = np.array([max(sample.scores, default=-1.0) for sample in negative])
    rows = []
    for threshold, hit_rate in zip(THRESHOLDS, _hit_rates(*arrays["all"][:2]), strict=True):
        row: dict[str, float | None] = {"threshold": threshold}
        for part, found in arrays.items():
            row |= {f"{measure}_{part}": share for measure, share in _shares(*found, threshold).items()}
        row["false_alarms"] = _share(int((best >= threshold).sum()), len(best))
        row["hit_rate"] = hit_rate
        rows.append(row)
    return rows


def curve(samples: Sequence[Sample]) -> list[Row]:
    """Return ``precision``, ``recall`` and ``f1`` of some samples, a row per ``threshold``, as ``curves`` does."""
    found = _arrays(samples)
    return [{"threshold": threshold, **_shares(*found, threshold)} for threshold in THRESHOLDS]


def summarise(rows: Sequence[Mapping[str, float | None]], min_score: float) -> dict[str, Any]:
    """Return the row of the threshold in use, and for each part the threshold where F1 is best."""
    used = min(rows, key=lambda row: abs((row["threshold"] or 0.0) - min_score))
    best = {part: max(rows, key=lambda row: row[f"f1_{part}"] or 0.0)["threshold"] for part in PARTS}
    return {"min_score": min_score, "at_min_score": dict(used), "best_f1_at": best}


def by_agreement(samples: Sequence[Sample], min_score: float) -> list[dict[str, float | None]]:
    """Return how often boxes are right by how many of several teachers found them, the fewest first.

    Rows: ``agreement``, the least share of teachers; ``boxes`` that at least as many found; ``precision`` of these;
    ``precision_of_just`` those that just as many found; ``recall``. None at all where one teacher was asked.
    """
    found = [
        (agreement, hit)
        for sample in samples
        for score, hit, agreement in zip(sample.scores, sample.hits, sample.agreements, strict=False)
        if agreement is not None and score >= min_score
    ]
    truth = sum(sample.truth for sample in samples)
    rows: list[dict[str, float | None]] = []
    for least in sorted({agreement for agreement, _ in found}):
        kept = [hit for agreement, hit in found if agreement >= least]
        just = [hit for agreement, hit in found if agreement == least]
        figures = {"precision": _share(sum(kept), len(kept)), "precision_of_just": _share(sum(just), len(just))}
        rows.append({"agreement": round(least, 4), "boxes": len(kept), **figures, "recall": _share(sum(kept), truth)})
    return rows


def write_curves(rows: Sequence[Mapping[str, float | None]], path: Place) -> None:
    """Write the rows as CSV."""
    write_csv(path, [list(rows[0]), *(list(row.values()) for row in rows)], end="\n")


def _label(
    labeller: PseudoLabeller, pictures: Sequence[GroundingRecord], captions: Sequence[GroundingRecord]
) -> list[GroundingRecord]:
    """Label pictures with captions, their own or others'."""
    pairs, phrases = [], []
    for picture, words in zip(pictures, captions, strict=True):
        head = {name: getattr(picture, name) for name in ("key", "image", "height", "width", "source")}
        pairs.append(CaptionRecord(**head, caption=words.caption))
        bare = tuple(dataclasses.replace(phrase, boxes=(), reject_reason=None) for phrase in words.phrases)
        phrases.append(PhrasesRecord(key=picture.key, caption=words.caption, phrases=bare))
    return labeller.label(pairs, phrases)


def _unrelated_record(records: Sequence[GroundingRecord], row: int) -> GroundingRecord | None:
    """Return the next record that shares no noun with this one; None where all do."""
    mine = _nouns(records[row])
    for step in range(1, len(records)):
        other = records[(row + step) % len(records)]
        if not mine & _nouns(other):
            return other
    return None


def _nouns(record: GroundingRecord) -> set[str]:
    return {head_noun(phrase.text) for phrase in record.phrases}


def head_noun(phrase: str) -> str:
    """Return the last word of a phrase in lower case, without the ``s`` of a plural; empty where there is none."""
    return next(reversed(phrase.lower().split()), "").removesuffix("s")


def _sample(truth: Phrase, found: Phrase) -> Sample:
    boxes = sorted(found.boxes, key=lambda box: -box.score)
    return Sample(
        scores=tuple(box.score for box in boxes),
        hits=tuple(match_boxes([box.xyxy for box in boxes], [box.xyxy for box in truth.boxes])),
        truth=len(truth.boxes),
        split=truth.split,
        noun=head_noun(truth.text),
        agreements=tuple(box.agreement for box in boxes),
    )


def match_boxes(boxes: Sequence[Sequence[float]], truth: Sequence[Sequence[float]]) -> Iterator[bool]:
    """Match boxes, best first, each to the free true box that it overlaps most; yield whether each has a match."""
    overlap = pairwise_iou(torch.tensor(boxes).reshape(-1, 4), torch.tensor(truth).reshape(-1, 4))
    is_free = torch.ones(len(truth), dtype=torch.bool)
    for mine in overlap:
        candidates = torch.where(is_free, mine, -1.0)
        is_hit = len(truth) > 0 and bool(candidates.max() >= IOU_THRESHOLD)
        if is_hit:
            is_free[candidates.argmax()] = False
        yield is_hit


def _arrays(samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray, int]:
    scores = np.array([score for sample in samples for score in sample.scores], dtype=np.float64)
    hits = np.array([hit for sample in samples for hit in sample.hits], dtype=bool)
    return scores, hits, sum(sample.truth for sample in samples)


def _hit_rates(scores: np.ndarray, hits: np.ndarray) -> list[float | None]:
    """Return how often boxes of each of the thresholds as their score are right, never less for a higher score."""
    if not len(scores):
        return [None] * len(THRESHOLDS)
    order = np.argsort(scores, kind="stable")
    # A higher score must never mean a lower weight, so the noisy rates are fitted by the closest rising ones.
    rates = isotonic_regression(hits[order].astype(np.float64)).x
    return [round(float(rate), 4) for rate in np.interp(THRESHOLDS, scores[order], rates)]


def _shares(scores: np.ndarray, hits: np.ndarray, truth: int, threshold: float) -> dict[str, float | None]:
    kept = scores >= threshold
    right = int(hits[kept].sum())
    return {
        "precision": _share(right, int(kept.sum())),
        "recall": _share(right, truth),
        "f1": _share(2 * right, int(kept.sum()) + truth),
    }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
