"""Small benchmarks, built in memory."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation.predictions import Predictions
from pipeline.store.records import (
    Box,
    Category,
    DetectedObject,
    DetectionRecord,
    GroundingRecord,
    ImageRef,
    Phrase,
)

Rows = Sequence[tuple[int, int, Box, float]]
"""Number of the row, label, box, score."""


@pytest.fixture(scope="session")
def png() -> Callable[[int, int], ImageRef]:
    def make(width: int = 40, height: int = 30) -> ImageRef:
        out = io.BytesIO()
        Image.new("RGB", (width, height), (90, 140, 90)).save(out, "PNG")
        return ImageRef(bytes=out.getvalue())

    return make


@pytest.fixture(scope="session")
def make_detection(png: Callable[[int, int], ImageRef]) -> Callable[..., DetectionRecord]:
    def make(
        number: int, *objects: DetectedObject, width: int = 100, height: int = 100, **checked: tuple[int, ...]
    ) -> DetectionRecord:
        return DetectionRecord(
            key=f"key-{number}",
            image=png(width, height),
            height=height,
            width=width,
            source="test",
            objects=objects,
            **checked,
        )

    return make


@pytest.fixture(scope="session")
def make_grounding(png: Callable[[int, int], ImageRef]) -> Callable[..., GroundingRecord]:
    def make(number: int, caption: str, *phrases: Phrase, width: int = 100, height: int = 100) -> GroundingRecord:
        return GroundingRecord(
            key=f"key-{number}",
            image=png(width, height),
            height=height,
            width=width,
            caption=caption,
            source="test",
            phrases=phrases,
        )

    return make


@pytest.fixture(scope="session")
def make_predictions() -> Callable[[Rows], Predictions]:
    def make(rows: Rows) -> Predictions:
        return Predictions(
            keys=tuple(f"key-{number}" for number, *_ in rows),
            numbers=np.array([row[0] for row in rows], np.int32),
            labels=np.array([row[1] for row in rows], np.int32),
            boxes_xyxy=np.array([row[2] for row in rows], np.float32).reshape(-1, 4),
            scores=np.array([row[3] for row in rows], np.float32),
        )

    return make


@pytest.fixture(scope="session")
def random_benchmark(
    make_detection: Callable[..., DetectionRecord], make_predictions: Callable[[Rows], Predictions]
) -> Callable[..., tuple[list[DetectionRecord], list[Category], Predictions]]:
    """Return a benchmark in which some boxes are found well, some badly and some not at all; scores all differ."""

    def make(
        seed: int, num_pictures: int = 20, num_categories: int = 6, noise: float = 3.0
    ) -> tuple[list[DetectionRecord], list[Category], Predictions]:
        rng = np.random.default_rng(seed)
        # Ids have gaps, as in COCO; the last category has no ground truth.
        categories = [
            Category(id=3 * i + 2, name=f"thing {i}", split="novel" if i % 3 == 0 else "base")
            for i in range(num_categories)
        ]
        ids = [category.id for category in categories]
        records, found = [], []
        for number in range(num_pictures):
            objects = []
            for _ in range(int(rng.integers(0, 5))):
                x, y, width, height = rng.uniform((0, 0, 15, 15), (60, 60, 40, 40))
                label = ids[int(rng.integers(num_categories - 1))]
                box = np.array([x, y, x + width, y + height], np.float32)
                crowd = bool(rng.random() < 0.1)
                objects.append(DetectedObject(category_id=label, xyxy=tuple(box.tolist()), is_crowd=crowd))
                for _ in range(int(rng.integers(0, 4))):
                    guess = label if rng.random() < 0.7 else ids[int(rng.integers(num_categories))]
                    found.append((number, guess, tuple((box + rng.normal(0, noise, 4)).tolist())))
            records.append(make_detection(number, *objects))
        scores = rng.permutation(np.linspace(0.1, 0.9, len(found)))
        rows = [(*row, float(score)) for row, score in zip(found, scores, strict=True)]
        return records, categories, make_predictions(rows)

    return make
