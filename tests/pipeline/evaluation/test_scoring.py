"""What predictions score: every protocol, its parts, and nothing that is not a number."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import BenchmarkError
from pipeline.evaluation.benchmark import Benchmark
from pipeline.evaluation.scoring import leading, score
from pipeline.store.records import Category, DetectedObject, DetectionRecord, GroundingRecord, Phrase, Record, ScoredBox
from pipeline.store.shards import categories_to_metadata, shard_name, write_shard

BOX, AWAY = (10.0, 10.0, 30.0, 30.0), (60.0, 60.0, 80.0, 80.0)
KINDS = {"detection": DetectionRecord, "grounding": GroundingRecord, "referring": GroundingRecord}


@pytest.fixture
def make_benchmark(tmp_path: Path) -> Callable[..., Benchmark]:
    """Return a benchmark of these rows in two shards."""

    def make(task: str, rows: Sequence[Record], categories: Sequence[Category] = ()) -> Benchmark:
        parts = [rows[:1], rows[1:]]
        paths = [tmp_path / task / shard_name(i) for i in range(2)]
        for path, part in zip(paths, parts, strict=True):
            write_shard(path, part, KINDS[task], categories_to_metadata(categories) if categories else {})
        return Benchmark("test", task, "here", tuple(paths), tuple(map(len, parts)), ())

    return make


def dogs(make_detection: Any, count: int = 3) -> list[DetectionRecord]:
    return [make_detection(i, DetectedObject(category_id=7, xyxy=BOX)) for i in range(count)]


def test_detection_has_cocos_numbers_and_two_of_base_and_novel(
    make_benchmark: Any, make_detection: Any, make_predictions: Any
) -> None:
    categories = [Category(id=7, name="dog"), Category(id=3, name="yak", split="novel")]
    benchmark = make_benchmark("detection", dogs(make_detection), categories)
    # No yak is in the pictures: its false alarms count nowhere.
    found = score(benchmark, make_predictions([(i, label, BOX, 0.5) for i in range(3) for label in (7, 3)]))
    assert found.metrics["base"] == {"AP": 100.0, "AP50": 100.0}
    assert "novel" not in found.metrics  # no ground truth, no number
    assert found.metrics["all"]["APs"] == 100.0
    assert "APl" not in found.metrics["all"]
    assert set(found.curves) == {"base", "novel"}
    assert leading("detection", found.metrics) == {"all": 100.0, "base": 100.0}


def test_a_vocabulary_of_one_kind_has_no_parts(make_benchmark: Any, make_detection: Any, make_predictions: Any) -> None:
    benchmark = make_benchmark("detection", dogs(make_detection), [Category(id=7, name="dog")])
    found = score(benchmark, make_predictions([(0, 7, BOX, 0.5)]))
    assert set(found.metrics) == set(found.curves) == {"all"}
    assert found.metrics["all"]["AP"] == round(100 * 34 / 101, 2)


def test_frequencies_call_for_both_protocols_of_lvis(
    make_benchmark: Any, make_detection: Any, make_predictions: Any
) -> None:
    categories = [Category(id=7, name="dog", frequency="f"), Category(id=3, name="yak", frequency="r")]
    rows = dogs(make_detection)
    rows[1] = replace(rows[1], negative_category_ids=(3,))
    rows[2] = replace(rows[2], objects=(DetectedObject(category_id=3, xyxy=BOX),))
    benchmark = make_benchmark("detection", rows, categories)
    # A yak in picture 0 costs nothing, for nobody looked; the one in picture 1 is a false alarm before the hit.
    found = score(benchmark, make_predictions([(0, 3, BOX, 0.9), (1, 3, BOX, 0.8), (2, 3, BOX, 0.7), (0, 7, BOX, 0.9)]))
    assert found.metrics["fixed"]["APr"] == 50.0
    assert found.metrics["fixed"]["APf"] == round(100 * 51 / 101, 2)
    assert found.metrics["standard"]["APr"] == 50.0
    assert {"AR@-1", "AR@300"} <= set(found.metrics["fixed"]) | set(found.metrics["standard"])
    assert set(leading("detection", found.metrics)) == {"fixed"}
    assert found.curves["fixed"].shape == (101,)


def test_captions_and_expressions_are_scored_by_part(
    make_benchmark: Any, make_grounding: Any, make_predictions: Any
) -> None:
    dog = Phrase(text="a dog", char_spans=((0, 5),), boxes=(ScoredBox(xyxy=BOX),), split="base")
    yak = Phrase(text="a yak", char_spans=((10, 15),), boxes=(ScoredBox(xyxy=AWAY),), split="novel")
    rows = [make_grounding(0, "a dog and a yak", dog, yak), make_grounding(1, "a dog", dog), make_grounding(2, "no")]
    answers = make_predictions([(0, 0, BOX, 0.5), (0, 1, BOX, 0.5), (1, 0, BOX, 0.5)])
    found = score(make_benchmark("grounding", rows), answers)
    assert leading("grounding", found.metrics) == {"all": 66.67, "base": 100.0, "novel": 0.0}
    assert found.metrics["base"]["merged R@1"] == 100.0
    found = score(make_benchmark("referring", rows), answers)
    assert leading("referring", found.metrics) == {"all": 66.67, "base": 100.0, "novel": 0.0}
    assert found.curves == {}


@pytest.mark.parametrize("frequency", [None, "c"])
def test_a_model_that_finds_nothing_scores_0(
    make_benchmark: Any, make_detection: Any, make_predictions: Any, frequency: str | None
) -> None:
    categories = [Category(id=7, name="dog", frequency=frequency), Category(id=3, name="yak")]
    found = score(make_benchmark("detection", dogs(make_detection), categories), make_predictions([]))
    values = [value for measures in found.metrics.values() for value in measures.values()]
    assert set(values) == {0.0}
    assert "NaN" not in json.dumps(found.metrics)
    assert all(np.isfinite(curve).all() for curve in found.curves.values())


def test_pictures_without_any_object_are_no_crash(
    make_benchmark: Any, make_detection: Any, make_predictions: Any
) -> None:
    benchmark = make_benchmark("detection", [make_detection(i) for i in range(3)], [Category(id=7, name="dog")])
    assert score(benchmark, make_predictions([(1, 7, BOX, 0.5)])).metrics == {}


def test_predictions_of_other_rows_are_refused(make_benchmark: Any, make_detection: Any, make_predictions: Any) -> None:
    benchmark = make_benchmark("detection", dogs(make_detection, 2), [Category(id=7, name="dog")])
    with pytest.raises(BenchmarkError, match="row 2"):
        score(benchmark, make_predictions([(2, 7, BOX, 0.5)]))
