"""Quality of pseudo-labels by noun and by the frequency of nouns, so that rounds can be compared.

Self-training amplifies what its teacher gets wrong: a concept that is mistaken for another one is learned as that. A
mean over all phrases hides it; precision of each noun does not.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.pseudo_labels.calibration import Sample, head_noun
from pipeline.store.shards import list_shards, read_table
from pipeline.store.storage import Place

FREQUENCY_CLASSES = ("rare", "common", "frequent")
"""Thirds of the nouns of the truth by how often web captions say them."""
COUNTS = ("truth", "boxes", "right")
"""True boxes, labels, and labels that are right."""
SCORE_BINS = 20
MAX_NOUNS = 1000
"""Nouns that are reported: those with the most true boxes."""


def count_head_nouns(phrases: Place) -> Counter[str]:
    """Count each head noun in shards of phrases; MissingInputError where there are none."""
    counts: Counter[str] = Counter()
    for shard in list_shards(phrases):
        for said in read_table(shard, ["phrases"])["phrases"].to_pylist():
            counts.update(head_noun(phrase["text"]) for phrase in said)
    return counts


def label_quality(samples: Sequence[Sample], min_score: float, said: Mapping[str, int]) -> dict[str, Any]:
    """Return how good the labels of phrases with true boxes are.

    Args:
        samples: what each phrase was given, and what it should have been given.
        min_score: boxes below it are no labels.
        said: counts of each noun in web captions; empty where they were not counted.

    Returns:
        ``scores``: the share of labels in each of ``SCORE_BINS`` equal bins of the score from 0 to 1; ``by_part`` and
        ``by_noun``: part of the concepts, or noun → ``COUNTS``; ``by_frequency``: class → the same, with ``precision``
        and ``recall``, None where there is nothing to take a share of.
    """
    of_noun, of_part = (defaultdict[str, list[int]](lambda: [0, 0, 0]) for _ in range(2))
    kept: list[float] = []
    for sample in samples:
        labels = [(score, hit) for score, hit in zip(sample.scores, sample.hits, strict=True) if score >= min_score]
        kept += [score for score, _ in labels]
        for counts in (of_noun[sample.noun], of_part[sample.split or "all"]):
            for place, count in enumerate((sample.truth, len(labels), sum(hit for _, hit in labels))):
                counts[place] += count
    histogram = np.histogram(kept, SCORE_BINS, (0.0, 1.0))[0] / max(len(kept), 1)
    first = sorted(of_noun, key=lambda noun: (-of_noun[noun][0], noun))[:MAX_NOUNS]
    return {
        "scores": histogram.round(4).tolist(),
        "by_part": {part: dict(zip(COUNTS, counts, strict=True)) for part, counts in sorted(of_part.items())},
        "by_noun": {noun: dict(zip(COUNTS, of_noun[noun], strict=True)) for noun in sorted(first)},
        "by_frequency": _by_frequency(of_noun, said) if said else {},
    }


def _by_frequency(of_noun: Mapping[str, Sequence[int]], said: Mapping[str, int]) -> dict[str, Any]:
    order = sorted(of_noun, key=lambda noun: (said.get(noun, 0), noun))
    found = {}
    for name, nouns in zip(FREQUENCY_CLASSES, np.array_split(np.array(order, dtype=object), 3), strict=True):
        truth, boxes, right = (sum(of_noun[noun][place] for noun in nouns) for place in range(len(COUNTS)))
        found[name] = {
            "nouns": len(nouns),
            **dict(zip(COUNTS, (truth, boxes, right), strict=True)),
            "precision": round(right / boxes, 4) if boxes else None,
            "recall": round(right / truth, 4) if truth else None,
        }
    return found
