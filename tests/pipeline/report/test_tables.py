"""Tables and charts: which rows, in which order, and where marks lie."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import BenchmarkError
from pipeline.evaluation.judged import Judged
from pipeline.report.charts import BOTTOM, HEIGHT, LEFT, PERCENT, RIGHT, TOP, WIDTH, Line, Plot, scale
from pipeline.report.page import split_rows
from pipeline.report.tables import (
    CategoryRow,
    category_rows,
    count_notes,
    measure_rows,
    published_columns,
    read_metrics,
)


def test_measures_stand_beside_published_ones_in_reading_order() -> None:
    flickr = {"all": {"R@1": 80.0, "R@10": 96.0, "R@5": 95.0}, "people": {"R@1": 90.0}}
    lvis = {"fixed": {"AP": 20.0, "APs": 10.0}, "standard": {"AP": 19.0}}
    metrics = {
        "teacher": {"test": {"grounding": {"flickr30k_test": flickr}, "detection": {"lvis_val": lvis}}, "dev": {}},
        "student": {"test": {"grounding": {"flickr30k_test": {"all": {"R@1": 81.0}}}}},
    }
    rows = measure_rows(metrics)
    assert [(row.source, row.part, row.measure, row.is_leading) for row in rows] == [
        ("lvis_val", "fixed", "AP", True),
        ("lvis_val", "fixed", "APs", False),
        ("lvis_val", "standard", "AP", False),
        ("flickr30k_test", "all", "R@1", True),
        ("flickr30k_test", "all", "R@5", True),
        ("flickr30k_test", "all", "R@10", True),
        ("flickr30k_test", "people", "R@1", True),
    ]
    assert rows[3].values == {"teacher": 80.0, "student": 81.0}
    assert rows[4].values == {"teacher": 95.0}
    assert rows[3].published["GLIP-L"] == 87.1
    assert published_columns(rows) == ["GLIP-T (A)", "GLIP-T (B)", "GLIP-T (C)", "GLIP-T", "GLIP-L"]
    assert published_columns(rows[3:]) == ["GLIP-T (C)", "GLIP-T", "GLIP-L"]
    assert published_columns(rows[2:3]) == []
    assert measure_rows({"teacher": {}}) == []


def test_counts_are_told_in_notes_and_not_among_percent() -> None:
    def metrics(missing: int, data_sets: int) -> dict[str, Any]:
        coco = {"all": {"AP": 40.0}, "missing": {"rows": missing}}
        return {"test": {"detection": {"coco_val2017": coco, "odinw13": {"all": {"AP": 20.0, "data_sets": data_sets}}}}}

    some = {"teacher": metrics(3, 13), "student": metrics(3, 5)}
    assert [(row.source, row.part, row.measure) for row in measure_rows(some)] == [
        ("coco_val2017", "all", "AP"),
        ("odinw13", "all", "AP"),
    ]
    assert count_notes(some) == [
        "test/detection/coco_val2017: 3 rows without a readable picture count as empty.",
        "test/detection/odinw13: the mean of 5 of 13 data sets.",
    ]
    assert count_notes({"teacher": metrics(0, 13), "student": {}}) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"test": {"detection": {"all": {"AP": 46.1}}}}',
        '{"test": {"detection": {"coco": {"all": {"AP": [1]}}}}}',
        '{"seconds": 3}',
    ],
)
def test_metrics_of_another_shape_say_what_to_run(tmp_path: Path, text: str) -> None:
    path = tmp_path / "teacher.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BenchmarkError, match=r"teacher\.json: .*older version or broken; run: dvc repro evaluate"):
        read_metrics(path)


def test_metrics_are_read_as_they_were_written(tmp_path: Path) -> None:
    metrics = {"test": {"detection": {"coco": {"all": {"AP": 46.1, "AP50": 50}}}}, "dev": {}}
    (tmp_path / "teacher.json").write_text(json.dumps(metrics), encoding="utf-8")
    assert read_metrics(tmp_path / "teacher.json") == metrics
    assert read_metrics(tmp_path / "student.json") == {}


def test_categories_are_sorted_by_gain_and_unseen_ones_left_out(detection: Judged, toys: SimpleNamespace) -> None:
    yak, dog = category_rows(detection)
    assert (yak.name, yak.part, dog.name, dog.part) == (toys.HOSTILE, "novel", "dog", "base")
    assert yak.gain == pytest.approx(100 * 50 / 101, abs=0.11)
    assert (yak.values["control"], dog.gain) == (0, 0)


def test_one_model_alone_has_values_without_gains(detection: Judged, tmp_path: Path, toys: SimpleNamespace) -> None:
    alone = toys.judged_of(tmp_path, "detection", detection.records, {"a": [(0, 9, toys.RIGHT, 0.9)]}, toys.CATEGORIES)
    assert [(row.name, row.gain) for row in category_rows(alone)] == [(toys.HOSTILE, None), ("dog", None)]


def test_other_tasks_have_no_categories(grounding: Judged) -> None:
    assert category_rows(grounding) == []


@pytest.mark.parametrize(
    ("count", "sizes"), [(1203, [20, 1163, 20]), (51, [20, 11, 20]), (45, [45, 0, 0]), (0, [0] * 3)]
)
def test_twenty_at_either_end_are_shown_and_the_rest_folded(count: int, sizes: list[int]) -> None:
    rows = [CategoryRow(str(i), "base", {}, 0.0) for i in range(count)]
    parts = split_rows(rows)
    assert [len(part) for part in parts] == sizes
    assert [row for part in parts for row in part] == rows


@given(st.lists(st.floats(-1e6, 1e6), max_size=8), st.integers(2, 8))
def test_scales_hold_all_values_between_round_ticks(values: list[float], num_ticks: int) -> None:
    found = scale(values, num_ticks)
    assert found.low <= min([0, *values]) + 1e-6 * abs(found.high - found.low)
    assert found.high >= max([0, *values]) - 1e-6 * abs(found.high - found.low)
    assert found.ticks[0] == found.low < found.high == found.ticks[-1]
    assert 2 <= len(found.ticks) <= num_ticks + 3
    assert 0 in found.ticks
    assert all(0 <= found.at(value) <= 100 for value in [*values, math.inf, -math.inf])


def test_scales_of_little() -> None:
    assert scale([]).ticks == scale([0.0]).ticks == (0, 0.2, 0.4, 0.6, 0.8, 1)
    assert scale([27.6, -3.4, math.nan], 3).ticks == (-20, 0, 20, 40)
    assert scale([0.98]).ticks == (0, 0.2, 0.4, 0.6, 0.8, 1)


def test_lines_lie_within_the_frame_of_their_plot() -> None:
    line = Line("a", "model-0", ((0, 100), (50, 25), (100, 0)))
    plot = Plot("title", "x", "y", PERCENT, PERCENT, (line,))
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    middle = (LEFT + right) / 2
    assert plot.path(line) == f"{LEFT},{TOP} {middle:g},{bottom - (bottom - TOP) / 4:g} {right},{bottom}"
    assert list(plot.spots(line)) == list(line.points)
    long = Line("b", "model-1", tuple((i, i) for i in range(101)))
    assert [x for x, _ in plot.spots(long)] == list(range(0, 101, 10))
