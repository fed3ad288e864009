"""Noise of known kinds beside the web pairs, and long-tailed concepts; without them the pairs are what they were."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.curation.captions import caption_hash
from pipeline.prepare.embedded.tables import read_embedded
from pipeline.prepare.raw import SourceContext
from pipeline.settings import load_all
from pipeline.store.records import CaptionRecord

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def context() -> SourceContext:
    config = load_all(ROOT / "params.yaml").prepare
    return SourceContext("web", "embedded", replace(config, embedded=replace(config.embedded, web=40)), 0)


def rows(context: SourceContext, **settings: Any) -> list[CaptionRecord]:
    config = replace(context.config, embedded=replace(context.config.embedded, **settings))
    tables = read_embedded(replace(context, config=config))
    return [row for table in tables for part in table.parts(7) for row in part.rows()]  # type: ignore[misc]


def pixels(row: CaptionRecord) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(row.image.bytes or b"")) as image:
        return np.asarray(image.convert("RGB")).astype(float)


def test_noise_comes_behind_the_pairs_and_is_what_it_says(context: SourceContext) -> None:
    clean = rows(context)
    noisy = rows(context, web_doubles_share=0.25, web_wrong_captions_share=0.5, web_blank_share=0.1)
    assert noisy[:40] == clean
    doubles, wrong, blank = noisy[40:50], noisy[50:70], noisy[70:]
    assert len(blank) == 4
    assert len({row.key for row in noisy}) == len(noisy)

    for number, row in enumerate(doubles):
        pair = clean[4 * number]
        assert row.caption == pair.caption
        assert row.image != pair.image
        assert np.abs(pixels(row) - pixels(pair)).mean() < 12
    assert max(Counter(caption_hash(row.caption) for row in wrong).values()) == 20
    assert not {row.caption for row in wrong} & {row.caption for row in clean}
    assert all(pixels(row).std(axis=(0, 1)).max() < 1 for row in blank)


def test_skewed_pairs_speak_of_few_concepts_often(context: SourceContext) -> None:
    def words(skew: float) -> list[int]:
        said = Counter(word for row in rows(context, web_skew=skew) for word in set(row.caption.lower().split()))
        return sorted(said.values(), reverse=True)

    assert rows(context, web_skew=0.0) == rows(context)
    alike, skewed = (np.cumsum(words(skew)) for skew in (0.0, 2.0))
    assert skewed[-1] > 0
    assert len(skewed) < len(alike)
