"""ODinW-13, "object detection in the wild": COCO's AP on thirteen small data sets, and the mean over them.

Zero-shot, a model is judged on the sources ``odinw_NAME`` (class names as they are) and ``odinw_manual_NAME`` (the
paper's words where it has some); params.yaml has both as mixtures. Of tuned models: ``odinw_tuned``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DATA_SETS = (
    "pascal_voc",
    "aerial_maritime_drone",
    "aquarium",
    "cottontail_rabbits",
    "egohands",
    "mushrooms",
    "packages",
    "raccoon",
    "shellfish",
    "vehicles",
    "pistols",
    "pothole",
    "thermal",
)
"""Data sets in the order of the paper's tables."""
PREFIXES = {"odinw13": "odinw_", "odinw13_manual": "odinw_manual_"}
"""What an average is called, and how its sources are."""


@dataclass(frozen=True)
class Average:
    """A mean over data sets."""

    ap: float
    data_sets: int
    """That there is a value of, of thirteen; fewer are not the benchmark."""


def averages(ap_by_source: Mapping[str, float]) -> dict[str, Average]:
    """Return the means over the data sets of ODinW that are there, by prompts; none where there is none.

    Args:
        ap_by_source: source to AP.
    """
    found = {}
    for name, prefix in PREFIXES.items():
        values = [ap_by_source[prefix + each] for each in DATA_SETS if prefix + each in ap_by_source]
        if values:
            found[name] = Average(sum(values) / len(values), len(values))
    return found
