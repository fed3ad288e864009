"""A small run: three models, one benchmark of each task, every picture with a dog and a yak."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.evaluation.benchmark import Benchmark
from pipeline.evaluation.judged import Judged
from pipeline.evaluation.predictions import Predictions
from pipeline.evaluation.scoring import evaluate
from pipeline.report.settings import ReportConfig
from pipeline.store.records import (
    Box,
    Category,
    DetectedObject,
    DetectionRecord,
    GroundingRecord,
    ImageRef,
    Phrase,
    ScoredBox,
)
from pipeline.store.shards import categories_to_metadata, shard_name, write_shard

HOSTILE = "<script>alert('yak')</script>&\"\n\u202e"
CATEGORIES = [
    Category(id=5, name="dog"),
    Category(id=9, name=HOSTILE, split="novel"),
    Category(id=12, name="owl", split="novel"),
]
LEFT, RIGHT, AWAY = (5.0, 5.0, 25.0, 25.0), (60.0, 5.0, 90.0, 35.0), (40.0, 60.0, 60.0, 80.0)
CONFIG = ReportConfig(gallery_rows=3, bootstrap_samples=20)
Rows = Sequence[tuple[int, int, Box, float]]
"""Number of the row, label, box, score."""


@pytest.fixture(scope="session")
def judged_of(make_predictions: Callable[[Rows], Predictions]) -> Callable[..., Judged]:
    """Writes records as a shard of one benchmark and judges predictions of them."""

    def make(
        folder: Path, task: str, records: list[Any], found: dict[str, Rows], categories: Sequence[Category] = ()
    ) -> Judged:
        path = folder / task / shard_name(0)
        kind = DetectionRecord if task == "detection" else GroundingRecord
        write_shard(path, records, kind, categories_to_metadata(categories))
        predictions = {model: make_predictions(rows) for model, rows in found.items()}
        return Judged(
            Benchmark("test", task, records[0].source, (path,), (len(records),), (str(path.parent),)),
            records,
            list(categories),
            predictions,
            {model: evaluate(task, records, categories, each) for model, each in predictions.items()},
        )

    return make


@pytest.fixture(scope="session")
def head(png: Callable[..., ImageRef]) -> Callable[..., dict[str, Any]]:
    """Return what all records share: a plain picture of 100 pixels' width, in a colour of its own."""

    def make(number: int, height: int = 100) -> dict[str, Any]:
        image = png(100, height, (90, 140, 90 + number))
        return {"key": f"key-{number}", "image": image, "height": height, "width": 100, "source": "toys"}

    return make


@pytest.fixture
def detection(tmp_path: Path, head: Any, judged_of: Callable[..., Judged]) -> Judged:
    """Four pictures: the student finds yaks in all but the last, where only the teacher does."""
    dog, yak = DetectedObject(category_id=5, xyxy=LEFT), DetectedObject(category_id=9, xyxy=RIGHT)
    records = [DetectionRecord(objects=(dog, yak), **head(i, height=100 if i else 60)) for i in range(4)]
    dogs = [(i, 5, LEFT, 0.9) for i in range(4)]
    found: dict[str, Rows] = {
        "teacher": [*dogs, (3, 9, RIGHT, 0.8)],
        "student": [*dogs, *((i, 9, RIGHT, 0.8 - i / 10) for i in range(3)), (3, 9, AWAY, 0.4)],
        "control": [],
    }
    return judged_of(tmp_path, "detection", records, found, CATEGORIES)


def pair(number: int, head: Any, *names: str, boxes: Sequence[Sequence[Box]], splits: Sequence[str | None]) -> Any:
    """Return a caption of phrases with their true boxes."""
    caption, phrases = " and ".join(names), []
    for name, truth, split in zip(names, boxes, splits, strict=True):
        start = caption.index(name)
        scored = tuple(ScoredBox(xyxy=box) for box in truth)
        phrases.append(Phrase(text=name, char_spans=((start, start + len(name)),), boxes=scored, split=split))
    return GroundingRecord(caption=caption, phrases=tuple(phrases), **head(number))


@pytest.fixture
def grounding(tmp_path: Path, head: Any, judged_of: Callable[..., Judged]) -> Judged:
    """Three captions "a dog and a yak"; the teacher gives the dog's box to the yak of the first two."""
    records = [
        pair(i, head, "a dog", f"the {HOSTILE}", boxes=[[LEFT], [RIGHT]], splits=["base", "novel"]) for i in range(3)
    ]
    right = [(i, label, box, 0.9) for i in range(3) for label, box in ((0, LEFT), (1, RIGHT))]
    wrong = [(i, 1, LEFT, 0.95) for i in range(2)]
    return judged_of(tmp_path, "grounding", records, {"teacher": [*right, *wrong], "student": right})


@pytest.fixture(scope="session")
def toys(head: Any, judged_of: Any, make_predictions: Any) -> SimpleNamespace:
    """Return what tests build benchmarks of, which they cannot import from here."""
    return SimpleNamespace(
        CATEGORIES=CATEGORIES,
        HOSTILE=HOSTILE,
        LEFT=LEFT,
        RIGHT=RIGHT,
        AWAY=AWAY,
        CONFIG=CONFIG,
        predicted=make_predictions,
        judged_of=judged_of,
        head=head,
        pair=lambda number, *names, **values: pair(number, head, *names, **values),
    )


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a page; complain in the end about errors in it and about what it asked of the network."""
    opened, troubles = [], []

    def open_page(path: Path, **options: Any) -> Any:
        page = browser.new_page(**options)
        opened.append(page)
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: (troubles.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda sent: sent.url.startswith(("file:", "data:")) or troubles.append(sent.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    for page in opened:
        page.close()
    assert not troubles
