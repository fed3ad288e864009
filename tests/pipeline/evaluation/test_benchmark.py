"""How a model is asked about a shard, and what its answers score."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from glip_model.prompts import Prompt
from glip_model.structures import Detections
from pipeline.config import EvaluateConfig
from pipeline.data.records import (
    Category,
    DetectedObject,
    DetectionRecord,
    GroundingRecord,
    ImageRef,
    Phrase,
    ScoredBox,
)
from pipeline.data.shards import categories_to_metadata, shard_name, write_shard
from pipeline.errors import BenchmarkError, MissingInputError
from pipeline.evaluation.benchmark import predict_shard, read_task, score_split
from pipeline.evaluation.predictions import read_predictions, write_predictions

BOX = (10.0, 10.0, 30.0, 30.0)
CATEGORIES = [Category(id=7, name="dog"), Category(id=3, name="yak", split="novel")]
CONFIG = EvaluateConfig(splits=("dev",), batch_size=2, num_actors=1, max_prompt_categories=40, max_detections=100)


class FakePredictor:
    """Finds ``BOX`` once for every phrase and name it is asked for."""

    def __init__(self) -> None:
        self.batches: list[Any] = []

    def _answer(self, count: int) -> Detections:
        return Detections(torch.tensor([BOX] * count).reshape(-1, 4), torch.full((count,), 0.5), torch.arange(count))

    def detect(self, images: Sequence[Image.Image], names: Sequence[str], most: int) -> list[Detections]:
        self.batches.append((len(images), tuple(names), most))
        return [self._answer(len(names)) for _ in images]

    def ground(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Detections]:
        self.batches.append([prompt.phrases for prompt in prompts])
        return [self._answer(len(prompt.char_spans)) for prompt in prompts]


@pytest.fixture
def split(
    tmp_path: Path, make_detection: Callable[..., DetectionRecord], make_grounding: Callable[..., GroundingRecord]
) -> Path:
    """Write a split with all three tasks: three rows each, in two shards."""
    boxes = [make_detection(i, DetectedObject(category_id=7, xyxy=BOX)) for i in range(3)]
    dog = Phrase(text="a dog", char_spans=((0, 5),), boxes=(ScoredBox(xyxy=BOX),), split="base")
    yak = Phrase(text="a yak", char_spans=((10, 15),), boxes=(ScoredBox(xyxy=(60, 60, 80, 80)),), split="novel")
    captions = [
        make_grounding(0, "a dog and a yak", dog, yak),
        make_grounding(1, "a dog", dog),
        make_grounding(2, "nothing to see"),
    ]
    whole = replace(dog, text="a dog there", char_spans=((0, 11),))
    expressions = [make_grounding(i, "a dog there", whole) for i in range(3)]
    for task, rows in (("detection", boxes), ("grounding", captions), ("referring", expressions)):
        kind = DetectionRecord if task == "detection" else GroundingRecord
        metadata = categories_to_metadata(CATEGORIES) if task == "detection" else {}
        write_shard(tmp_path / task / shard_name(0), rows[:2], kind, metadata)
        write_shard(tmp_path / task / shard_name(1), rows[2:], kind, metadata)
    return tmp_path


def predict(split: Path, task: str) -> Any:
    """Run the fake model over both shards of a task and read its predictions back."""
    tables = [predict_shard(FakePredictor(), split / task / shard_name(i), task, 2 * i, CONFIG) for i in (0, 1)]
    write_predictions(split / f"{task}.parquet", tables)
    return read_predictions(split / f"{task}.parquet")


def test_detection_asks_for_the_whole_vocabulary_and_answers_with_its_ids(split: Path) -> None:
    model, rows = FakePredictor(), []
    config = replace(CONFIG, batch_size=1, max_prompt_categories=13)
    table = predict_shard(model, split / "detection" / shard_name(0), "detection", 5, config, rows.append)
    assert model.batches == [(1, ("dog", "yak"), 13)] * 2
    assert table["number"].to_pylist() == [5, 5, 6, 6]
    assert table["key"].to_pylist() == ["key-0", "key-0", "key-1", "key-1"]
    assert table["label"].to_pylist() == [7, 3, 7, 3]
    assert rows == [1, 1]


def test_grounding_asks_for_each_captions_own_phrases(split: Path) -> None:
    model = FakePredictor()
    table = predict_shard(model, split / "grounding" / shard_name(0), "grounding", 0, CONFIG)
    assert model.batches == [[("a dog", "a yak"), ("a dog",)]]
    assert table["label"].to_pylist() == [0, 1, 0]
    assert table["number"].to_pylist() == [0, 0, 1]


def test_a_referring_expression_is_asked_for_as_a_whole(split: Path) -> None:
    model = FakePredictor()
    predict_shard(model, split / "referring" / shard_name(1), "referring", 2, CONFIG)
    assert model.batches == [[("a dog there",)]]


@pytest.mark.parametrize("picture", [ImageRef(path="/nowhere/dog.jpg"), ImageRef(bytes=b"no picture")])
def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path, picture: ImageRef, make_detection: Any) -> None:
    path = tmp_path / shard_name(0)
    rows = [make_detection(0), replace(make_detection(1), image=picture)]
    write_shard(path, rows, DetectionRecord, categories_to_metadata(CATEGORIES))
    with pytest.raises(BenchmarkError, match=r"part-00000\.parquet: the picture of row 'key-1' cannot be read"):
        predict_shard(FakePredictor(), path, "detection", 0, CONFIG)


def test_all_tasks_are_scored_for_all_base_and_novel(split: Path) -> None:
    metrics, detection = score_split(
        split, {task: predict(split, task) for task in ("detection", "grounding", "referring")}
    )
    assert detection is not None
    perfect, none = {"AP": 100.0, "AP50": 100.0}, {"AP": 0.0, "AP50": 0.0}
    # No yak is in the pictures: its false alarms count nowhere.
    assert metrics["detection"] == {"all": perfect, "base": perfect, "novel": none}
    assert metrics["grounding"] == {
        "all": dict.fromkeys(("R@1", "R@5", "R@10"), 66.67),
        "base": dict.fromkeys(("R@1", "R@5", "R@10"), 100.0),
        "novel": dict.fromkeys(("R@1", "R@5", "R@10"), 0.0),
    }
    assert metrics["referring"] == {"all": {"P@1": 100.0}, "base": {"P@1": 100.0}, "novel": {"P@1": 0.0}}
    assert "NaN" not in json.dumps(metrics)


def test_a_task_without_predictions_is_absent(split: Path) -> None:
    metrics, detection = score_split(split, {"referring": predict(split, "referring")})
    assert set(metrics) == {"referring"}
    assert detection is None


def test_a_task_that_is_not_there_or_empty_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="grounding"):
        read_task(tmp_path, "grounding")
    write_shard(tmp_path / "grounding" / shard_name(0), [], GroundingRecord)
    with pytest.raises(BenchmarkError, match="no rows to judge"):
        read_task(tmp_path, "grounding")
