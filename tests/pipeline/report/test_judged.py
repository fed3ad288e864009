"""Records and predictions of a benchmark, brought together from wherever they rest."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from glip_model.structures import Detections
from pipeline.evaluation.benchmark import list_benchmarks
from pipeline.evaluation.judged import has_predictions, judge
from pipeline.evaluation.predictions import to_table, write_predictions
from pipeline.store.records import DetectedObject, DetectionRecord
from pipeline.store.shards import categories_to_metadata, shard_name, write_shard
from pipeline.store.storage import to_place


def test_records_and_predictions_may_rest_in_a_store(s3: Any, toys: SimpleNamespace) -> None:
    records, predictions = to_place("s3://raw/records"), to_place("s3://raw/predictions")
    rows = [DetectionRecord(objects=(DetectedObject(category_id=5, xyxy=toys.LEFT),), **toys.head(i)) for i in range(2)]
    shard = records / "test" / "detection" / shard_name(0)
    write_shard(shard, rows, DetectionRecord, categories_to_metadata(toys.CATEGORIES))
    found = Detections(torch.tensor([toys.LEFT]), torch.tensor([0.9]), torch.tensor([0]))
    table = to_table([row.key for row in rows], [found, found], [category.id for category in toys.CATEGORIES])
    write_predictions(predictions / "teacher" / "test" / "detection" / shard_name(0), table, {})
    there = [name for name in ("teacher", "student") if has_predictions(predictions, name, "test")]
    assert there == ["teacher"]
    assert not has_predictions(predictions, "teacher", "dev")
    (benchmark,), _ = list_benchmarks(records, ["test"])
    judged = judge(benchmark, predictions, ["teacher", "student"])
    assert judged.models == ("teacher",)
    assert judged.pictures.tolist() == [0, 1]
    assert judged.results["teacher"].metrics()["AP50"] == 1
    assert [each.size for each in benchmark.pictures([1]) if isinstance(each, Image.Image)] == [(100, 100)]
