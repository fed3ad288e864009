"""What others report for the benchmarks: GLIP (Li et al., CVPR 2022), its tables and its project page.

GLIP-T (A) learned from Objects365 without deep fusion, (B) with it, (C) from GoldG as well, GLIP-T from pseudo-labels
of four million pairs too (Cap4M), GLIP-L from FourODs, GoldG and 24 million; "GLIP-T (CC3M, SBU)" is the one whose
weights are released, with pseudo-labels of public pairs in place of Cap4M's. Zero-shot unless "fine-tuned".

On ODinW, sentences as prompts are for models that learned from grounding data, so (A) and (B) were asked for plain
names. What the manual prompts change for GLIP-T is in table 10; where there are none, both ask for the same.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

MODELS = ("GLIP-T (A)", "GLIP-T (B)", "GLIP-T (C)", "GLIP-T", "GLIP-L")

Key = tuple[str, str, str]
"""Source, part and measure, as they stand in the metrics."""


def _read(name: str) -> list[dict[str, str]]:
    with Path(__file__).with_name(name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


_ROWS, _TUNED = _read("published.csv"), _read("published_tuned.csv")
COLUMNS = tuple(_ROWS[0])[3:]
"""All models, those of ``MODELS`` first."""
PUBLISHED: Mapping[Key, Mapping[str, float]] = MappingProxyType(
    {
        (row["source"], row["part"], row["measure"]): {model: float(row[model]) for model in COLUMNS if row[model]}
        for row in _ROWS
    }
)
"""Percent by model. Sources are called as in the mixtures of params.yaml."""
TUNED: Mapping[str, Mapping[str, tuple[float, ...]]] = MappingProxyType(
    {
        mode: {model: tuple(float(row[model]) for row in _TUNED if row["mode"] == mode) for model in MODELS}
        for mode in dict.fromkeys(row["mode"] for row in _TUNED)
    }
)
"""Mean AP on ODinW-13 of tuned models, by mode and model, in the order of ``odinw.SHOTS``."""
