"""Where models stand: values as measured, intervals of the same draws, sentences that follow from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.bootstrap import Interval, draw_pictures, resampled_share
from pipeline.evaluation.judged import Judged, pairs
from pipeline.evaluation.standings import Standing, standings
from pipeline.report.standings import headline, minus, summarise
from pipeline.store.records import Category, DetectedObject, DetectionRecord


def test_values_and_gains_of_novel_and_base_categories(detection: Judged) -> None:
    novel, base = standings(detection, draw_pictures(np.arange(4), 20, 0))
    assert (novel.part, base.part, novel.measure) == ("novel", "base", "AP")
    # One of four yaks found and no false alarm; three of four found before one.
    assert {model: each.value for model, each in novel.models.items()} == {
        "teacher": pytest.approx(100 * 26 / 101, abs=0.005),
        "student": pytest.approx(100 * 76 / 101, abs=0.005),
        "control": 0,
    }
    assert list(novel.gains) == [("student", "teacher"), ("student", "control")]
    gain = novel.gains["student", "teacher"]
    assert gain.value == pytest.approx(100 * 50 / 101, abs=0.005)
    assert gain.low <= gain.value <= gain.high
    assert novel.models["student"].low < novel.models["student"].value < novel.models["student"].high
    assert base.gains["student", "teacher"] == Interval(0, 0, 0)
    assert standings(detection, draw_pictures(np.arange(4), 20, 0)) == [novel, base]


def test_shares_of_right_phrases_are_recounted_draw_by_draw() -> None:
    rng = np.random.default_rng(3)
    hits, rows = rng.random(30) < 0.6, rng.integers(0, 8, 30)
    draws = draw_pictures(np.arange(8), 50, 1)
    slow = []
    for draw in draws:
        drawn = [hit for hit, row in zip(hits, rows, strict=True) for _ in range(draw[row])]
        if drawn:
            slow.append(100 * sum(drawn) / len(drawn))
    np.testing.assert_allclose(resampled_share(hits, rows, draws), slow)
    assert slow[0] == pytest.approx(100 * hits.mean())


def test_draws_that_ask_nothing_are_left_out() -> None:
    draws = np.array([[1, 1], [2, 0], [0, 2]])
    np.testing.assert_allclose(resampled_share(np.array([True, False]), np.array([0, 0]), draws), [50, 50])


def test_phrases_and_expressions_have_intervals_too(grounding: Judged, tmp_path: Path, toys: SimpleNamespace) -> None:
    novel, base = standings(grounding, draw_pictures(np.arange(3), 200, 0))
    assert (novel.measure, novel.is_resampled) == ("R@1", True)
    assert {model: round(each.value, 1) for model, each in novel.models.items()} == {"teacher": 33.3, "student": 100}
    assert novel.models["teacher"].low < 10 < 60 < novel.models["teacher"].high
    assert novel.models["student"] == Interval(100, 100, 100)
    assert base.gains["student", "teacher"].value == 0
    records = [toys.pair(i, "dog", boxes=[[toys.LEFT]], splits=[None]) for i in range(2)]
    judged = toys.judged_of(tmp_path / "r", "referring", records, {"a": [(0, 0, toys.LEFT, 0.5)]})
    (whole,) = standings(judged, draw_pictures(np.arange(2), 5, 0))
    assert (whole.part, whole.measure, whole.models["a"].value, whole.gains) == ("all", "P@1", 50, {})


@pytest.mark.parametrize("task", ["detection", "grounding", "referring"])
def test_rows_that_repeat_their_pictures_make_nothing_surer(tmp_path: Path, toys: SimpleNamespace, task: str) -> None:
    thing = DetectedObject(category_id=5, xyxy=toys.LEFT)
    once = [
        DetectionRecord(objects=(thing,), **toys.head(i))
        if task == "detection"
        else toys.pair(i, "dog", boxes=[[toys.LEFT]], splits=[None])
        for i in range(12)
    ]
    label, found = 5 * (task == "detection"), []
    for times in (1, 5):
        records = [replace(once[i // times], key=f"key-{i}") for i in range(12 * times)]
        rows = [(i, label, toys.LEFT if i // times % 3 else toys.AWAY, 0.9) for i in range(12 * times)]
        judged = toys.judged_of(tmp_path / str(times), task, records, {"a": rows}, toys.CATEGORIES)
        assert judged.pictures.tolist() == [i // times for i in range(12 * times)]
        (only,) = standings(judged, draw_pictures(judged.pictures, 200, 0))
        found.append(only.models["a"])
    assert found[0].high - found[0].low > 20
    assert vars(found[1]) == pytest.approx(vars(found[0]), abs=3)  # precision has finer steps


def test_lvis_has_values_of_rare_and_common_but_no_intervals(tmp_path: Path, toys: SimpleNamespace) -> None:
    categories = [Category(id=1, name="cat", frequency="c"), Category(id=2, name="rat", frequency="r")]
    things = (DetectedObject(category_id=1, xyxy=toys.LEFT), DetectedObject(category_id=2, xyxy=toys.RIGHT))
    records = [DetectionRecord(objects=things, **toys.head(0))]
    found = {"a": [(0, 1, toys.LEFT, 0.9)], "b": [(0, 1, toys.LEFT, 0.9), (0, 2, toys.RIGHT, 0.9)]}
    found_standings = standings(
        toys.judged_of(tmp_path, "detection", records, found, categories), draw_pictures(np.arange(1), 5, 0)
    )
    assert {each.part: each.gains["b", "a"].value for each in found_standings} == {
        "all": pytest.approx(50),
        "rare": pytest.approx(100),
        "common": 0,
    }
    assert not any(each.is_resampled for each in found_standings)
    assert summarise(found_standings)["models"]["detection"]["toys"]["rare"] == {"a": {"value": 0}, "b": {"value": 100}}
    assert headline(found_standings)[0] == "On toys b reaches 100.0 AP: +50.0 over a."


def test_without_base_and_novel_there_is_one_standing(tmp_path: Path, toys: SimpleNamespace) -> None:
    thing = DetectedObject(category_id=5, xyxy=toys.LEFT)
    records = [DetectionRecord(objects=(thing,), **toys.head(i)) for i in range(2)]
    judged = toys.judged_of(tmp_path, "detection", records, {"a": []}, toys.CATEGORIES)
    (only,) = standings(judged, draw_pictures(np.arange(2), 5, 0))
    assert (only.part, only.models) == ("all", {"a": Interval(0, 0, 0)})  # of the owl and the yak nothing is there
    assert (
        standings(
            toys.judged_of(tmp_path, "detection", records, {}, toys.CATEGORIES), draw_pictures(np.arange(2), 5, 0)
        )
        == []
    )


@pytest.mark.parametrize("frequency", [None, "r"])
def test_without_any_truth_there_is_no_standing(tmp_path: Path, toys: SimpleNamespace, frequency: str | None) -> None:
    categories = [replace(category, frequency=frequency) for category in toys.CATEGORIES]
    records: dict[str, Any] = {
        "detection": [DetectionRecord(objects=(), **toys.head(i)) for i in range(2)],
        "grounding": [toys.pair(i, "dog", boxes=[[]], splits=["novel"]) for i in range(2)],
    }
    records["referring"] = records["grounding"]
    for task, rows in records.items():
        judged = toys.judged_of(tmp_path, task, rows, {"a": [(0, 5, toys.LEFT, 0.9)], "b": []}, categories)
        assert standings(judged, draw_pictures(judged.pictures, 5, 0)) == []


def test_types_of_phrases_are_not_told_apart(tmp_path: Path, toys: SimpleNamespace) -> None:
    record = toys.pair(0, "dog", "man", boxes=[[toys.LEFT], [toys.RIGHT]], splits=["animals", "people/clothing"])
    judged = toys.judged_of(tmp_path, "grounding", [record], {"a": [(0, 0, toys.LEFT, 0.5)]})
    assert [(each.part, each.models["a"].value) for each in standings(judged, draw_pictures(np.arange(1), 5, 0))] == [
        ("all", 50)
    ]


def standing(part: str, gains: dict[tuple[str, str], Interval], source: str = "toys") -> Standing:
    models = {"teacher": Interval(3, 2, 4), "student": Interval(30.76, 29, 32)}
    return Standing("detection", source, part, "AP", models, gains, True)


def test_two_sentences_say_what_the_run_shows() -> None:
    over, level = ("student", "teacher"), ("student", "control")
    novel = standing("novel", {over: Interval(27.6, 25.5, 29.8), level: Interval(-3.05, -4.3, -1.8)})
    base = standing("base", {over: Interval(0.2, -0.6, 0.9)})
    assert headline([novel, base, base]) == [
        "On novel concepts the student reaches 30.8 AP: +27.6 over the teacher (95 % interval +25.5 to +29.8) and "
        "−3.0 against the control (−4.3 to −1.8).",
        "On base concepts the student reaches 30.8 AP: +0.2 over the teacher (−0.6 to +0.9, may be chance).",
    ]
    assert headline([novel, standing("all", {}, "coco")])[1] == "On coco the student reaches 30.8 AP (29.0 to 32.0)."
    assert headline([]) == []


def test_the_summary_holds_models_and_gains() -> None:
    summary = summarise([standing("novel", {("student", "teacher"): Interval(27.644, 25.5, 29.8)})])
    gain = summary["gains"]["detection"]["toys"]["novel"]["student_over_teacher"]
    assert gain == {"value": 27.64, "low": 25.5, "high": 29.8}
    assert summary["models"]["detection"]["toys"]["novel"]["student"]["value"] == 30.76
    assert summarise([standing("all", {})])["gains"] == {}


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        (["teacher", "student", "control"], [("student", "teacher"), ("student", "control")]),
        (["a", "b", "c"], [("c", "a"), ("c", "b")]),
        (["a"], []),
        ([], []),
    ],
)
def test_who_is_compared_with_whom(models: list[str], expected: list[tuple[str, str]]) -> None:
    assert pairs(models) == expected


def test_minus_signs() -> None:
    assert [minus(text) for text in ("-3.1", "+3.1", "-0.0", "-0", "0.0")] == ["−3.1", "+3.1", "+0.0", "+0", "0.0"]
