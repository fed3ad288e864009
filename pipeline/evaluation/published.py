"""What others report for the benchmarks: GLIP (Li et al., CVPR 2022), its tables and its project page.

GLIP-T (A) learned from Objects365 without deep fusion, (B) with it, (C) from GoldG as well, GLIP-T from pseudo-labels
of four million pairs too (Cap4M), GLIP-L from FourODs, GoldG and 24 million. Zero-shot unless "fine-tuned".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from pipeline.evaluation.odinw import DATA_SETS

MODELS = ("GLIP-T (A)", "GLIP-T (B)", "GLIP-T (C)", "GLIP-T", "GLIP-L")
_A, _B, _C, _T, _L = MODELS
RELEASED = "GLIP-T (CC3M, SBU)"
"""The GLIP-T whose weights are released: with pseudo-labels of public pairs in place of Cap4M's."""
_FLICKR_MEASURES = ("R@1", "R@5", "R@10")
_LVIS_MEASURES = ("APr", "APc", "APf", "AP")

Key = tuple[str, str, str]
"""Source, part and measure, as they stand in the metrics."""


def _coco() -> dict[Key, dict[str, float]]:
    zero_shot = dict(zip(MODELS, (42.9, 44.9, 46.7, 46.3, 49.8), strict=True))
    tuned = dict(zip(MODELS, (52.9, 53.8, 55.1, 54.9, 60.8), strict=True))
    zero_shot[RELEASED], tuned[RELEASED] = 46.6, 55.2
    return {
        ("coco_val2017", "all", "AP"): zero_shot | {f"{model}, fine-tuned": value for model, value in tuned.items()}
    }


def _table(
    source: str, part: str, measures: Sequence[str], rows: Mapping[str, Sequence[float]]
) -> dict[Key, dict[str, float]]:
    return {
        (source, part, name): {model: values[i] for model, values in rows.items()} for i, name in enumerate(measures)
    }


_LVIS_MINIVAL = {
    _A: (14.2, 13.9, 23.4, 18.5),
    _B: (13.5, 12.8, 22.2, 17.8),
    _C: (17.7, 19.5, 31.0, 24.9),
    _T: (20.8, 21.4, 31.0, 26.0),
    RELEASED: (20.1, 21.3, 31.1, 25.9),
    _L: (28.2, 34.3, 41.5, 37.3),
}
_LVIS_VAL = {
    _A: (6.0, 8.0, 19.4, 12.3),
    _B: (4.2, 7.6, 18.6, 11.3),
    _C: (7.5, 11.6, 26.1, 16.5),
    _T: (10.1, 12.5, 25.5, 17.2),
    _L: (17.1, 23.3, 35.4, 26.9),
}
_FLICKR_VAL = {
    _A: (46.4, 63.2, 66.9),
    _B: (41.4, 57.7, 61.0),
    _C: (84.8, 94.9, 96.3),
    _T: (85.7, 95.4, 96.9),
    RELEASED: (85.3, 95.7, 97.2),
    _L: (86.7, 96.4, 97.9),
}
_FLICKR_TEST = {_C: (85.5, 95.4, 96.6), _T: (85.7, 95.8, 97.2), _L: (87.1, 96.9, 98.1)}
# Sentences as prompts are for models that learned from grounding data, so (A) and (B) were asked for plain names.
_ODINW_NAMES = {
    _A: (47.7, 9.8, 16.8, 60.5, 1.6, 13.7, 48.5, 44.4, 20.4, 52.4, 25.3, 0.8, 32.3),
    _B: (50.6, 4.9, 19.4, 71.6, 0.5, 21.8, 29.7, 47.0, 21.4, 56.0, 47.4, 3.6, 57.1),
}
_ODINW_MANUAL = {
    _C: (51.6, 8.1, 22.6, 71.1, 49.1, 69.4, 65.6, 51.5, 29.3, 49.9, 42.7, 17.0, 49.2),
    _T: (56.2, 12.5, 18.4, 70.2, 50.0, 73.8, 72.3, 57.8, 26.3, 56.0, 49.6, 17.7, 44.1),
    _L: (61.7, 7.1, 26.9, 75.0, 45.5, 49.0, 62.8, 63.3, 68.9, 57.3, 68.6, 25.7, 66.0),
}
# Table 10: what the manual prompts change.
_ODINW_T_BEFORE = {
    "aquarium": 17.7,
    "cottontail_rabbits": 68.0,
    "egohands": 22.1,
    "mushrooms": 13.6,
    "packages": 50.0,
    "pothole": 17.8,
}


def _odinw() -> dict[Key, dict[str, float]]:
    found: dict[Key, dict[str, float]] = {
        ("odinw13", "all", "AP"): {_A: 28.7, _B: 33.2},
        ("odinw13_manual", "all", "AP"): {_C: 44.4, _T: 46.5, _L: 52.1},
    }
    for i, name in enumerate(DATA_SETS):
        plain = {model: values[i] for model, values in _ODINW_NAMES.items()}
        manual = {model: values[i] for model, values in _ODINW_MANUAL.items()}
        # Where there are no manual words, both ask for the same.
        found[f"odinw_{name}", "all", "AP"] = plain | {_T: _ODINW_T_BEFORE.get(name, manual[_T])}
        found[f"odinw_manual_{name}", "all", "AP"] = manual
    return found


PUBLISHED: Mapping[Key, Mapping[str, float]] = MappingProxyType(
    {
        **_coco(),
        **_table("lvis_minival", "fixed", _LVIS_MEASURES, _LVIS_MINIVAL),
        **_table("lvis_val", "fixed", _LVIS_MEASURES, _LVIS_VAL),
        **_table("flickr30k_val", "all", _FLICKR_MEASURES, _FLICKR_VAL),
        **_table("flickr30k_test", "all", _FLICKR_MEASURES, _FLICKR_TEST),
        **_odinw(),
    }
)
"""Percent by model. Sources are called as in the mixtures of params.yaml."""
TUNED: Mapping[str, Mapping[str, tuple[float, ...]]] = MappingProxyType(
    {
        "full": {
            _A: (43.5, 48.8, 50.4, 54.1, 63.6),
            _B: (48.0, 52.0, 53.2, 54.9, 62.7),
            _C: (49.6, 53.8, 54.8, 57.2, 63.9),
            _T: (51.1, 54.9, 56.4, 58.4, 64.9),
            _L: (59.9, 62.1, 64.2, 64.9, 68.9),
        },
        "linear": {
            _A: (34.6, 35.9, 37.6, 37.9, 44.1),
            _B: (40.9, 42.8, 44.0, 44.4, 51.8),
            _C: (43.9, 45.4, 45.9, 46.7, 52.7),
            _T: (48.9, 50.5, 50.4, 51.2, 55.1),
            _L: (54.1, 54.7, 55.0, 55.9, 59.2),
        },
        "prompt": {
            _A: (34.0, 37.0, 40.0, 39.2, 43.3),
            _B: (46.4, 49.0, 50.6, 52.7, 58.5),
            _C: (50.6, 52.9, 53.9, 55.8, 62.8),
            _T: (49.9, 53.7, 55.5, 56.6, 62.4),
            _L: (59.5, 61.4, 62.4, 64.1, 67.9),
        },
    }
)
"""Mean AP on ODinW-13 of tuned models, by mode and model, in the order of ``odinw.SHOTS``."""
COLUMNS = (*MODELS, RELEASED, *(f"{model}, fine-tuned" for model in (*MODELS, RELEASED)))
