"""Labels by names against what people drew: figures by name, thresholds, crowds, partly annotated data sets."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glip_model.boxes import iou
from pipeline.errors import MissingInputError, RejectLimitError, ShardError
from pipeline.pseudo_labels.calibration import curves
from pipeline.pseudo_labels.judging import (
    collect_samples,
    format_verdicts,
    judge,
    judge_shards,
    thresholds,
    to_metrics,
    vocabulary_of,
    write_verdicts,
)
from pipeline.pseudo_labels.labeller import PseudoLabeller
from pipeline.pseudo_labels.settings import PseudoLabelConfig
from pipeline.store.records import Box, Category, DetectedObject, DetectionRecord, ImageRef
from pipeline.store.shards import categories_to_metadata, shard_name, write_shard

Make = Callable[..., DetectionRecord]
CATEGORIES = [Category(id=10, name="Cat"), Category(id=20, name="dog_house")]
CLASSES = ["dog house", "cat", "moon"]
BOX, ELSEWHERE = (10.0, 10.0, 30.0, 30.0), (60.0, 60.0, 90.0, 90.0)


def human(category: int, xyxy: Box = BOX, is_crowd: bool = False) -> DetectedObject:
    return DetectedObject(category_id=category, xyxy=xyxy, is_crowd=is_crowd)


def drawn(number: int, score: float, xyxy: Box = BOX) -> DetectedObject:
    return DetectedObject(category_id=number, xyxy=xyxy, score=score)


def test_figures_are_those_of_a_plain_count(make_detection: Make) -> None:
    """Against an obvious count at each threshold, of boxes that hit exactly or not at all."""
    chance = random.Random(0)
    places = [(float(x), float(y), x + 8.0, y + 8.0) for x in range(0, 90, 10) for y in range(0, 90, 10)]
    truth, found = [], []
    for number in range(20):
        mine = chance.sample(places, 6)
        theirs = [*mine[:3], *chance.sample([place for place in places if place not in mine], 3)]
        truth.append(make_detection(number, *(human(10, xyxy) for xyxy in mine)))
        found.append(make_detection(number, *(drawn(2, chance.random(), xyxy) for xyxy in theirs)))
    cats, whole = judge(truth, found, CATEGORIES[:1], CLASSES)
    assert (cats.name, cats.truth, whole.truth) == ("cat", 120, 120)
    for row in cats.curve:
        kept = [
            (record, item)
            for record, labels in zip(truth, found, strict=True)
            for item in labels.objects
            if item.score >= row["threshold"]
        ]
        right = sum(any(iou(item.xyxy, mine.xyxy) > 0.9 for mine in record.objects) for record, item in kept)
        assert row["precision"] == (round(right / len(kept), 4) if kept else None)
        assert row["recall"] == round(right / 120, 4)
    assert cats.threshold == max(cats.curve, key=lambda row: (row["f1"], row["threshold"]))["threshold"]


def test_thresholds_are_proposed_by_name_where_there_is_enough_to_say(make_detection: Make) -> None:
    truth = [make_detection(i, human(10)) for i in range(8)] + [make_detection(9, human(20))]
    found = [make_detection(i, drawn(2, 0.6), drawn(2, 0.31, ELSEWHERE)) for i in range(8)]
    found.append(make_detection(9, drawn(1, 0.9)))
    houses, cats, whole = judge(truth, found, CATEGORIES, CLASSES)
    assert [each.name for each in (houses, cats, whole)] == ["dog house", "cat", ""]
    assert thresholds([houses, cats, whole]) == {"cat": 0.6}
    assert houses.threshold is None
    metrics = to_metrics([houses, cats, whole], 0.3)
    assert metrics["classes"]["cat"]["precision"] == metrics["classes"]["cat"]["recall"] == 1.0
    assert metrics["classes"]["dog house"] == {
        "boxes": 1,
        "threshold": None,
        "at": 0.3,
        "precision": 1.0,
        "recall": 1.0,
        "f1": 1.0,
    }
    assert "cat            8      0.60     100.0 %" in format_verdicts([houses, cats, whole], 0.3)


def test_a_wanted_precision_takes_the_lowest_threshold_that_has_it(make_detection: Make) -> None:
    truth = [make_detection(i, human(10)) for i in range(10)]
    found = [make_detection(i, drawn(2, 0.9 if i < 5 else 0.4, BOX if i != 7 else ELSEWHERE)) for i in range(10)]
    sure, _ = judge(truth, found, CATEGORIES[:1], CLASSES, least_precision=0.95)
    assert sure.threshold is not None
    assert 0.4 < sure.threshold <= 0.9
    most, _ = judge(truth, found, CATEGORIES[:1], CLASSES, least_precision=0.9)
    assert most.threshold is not None
    assert most.threshold <= 0.4


def test_crowds_are_neither_right_nor_wrong(make_detection: Make) -> None:
    crowd = human(10, (40.0, 40.0, 100.0, 100.0), is_crowd=True)
    truth = [make_detection(i, human(10), crowd) for i in range(6)]
    found = [make_detection(i, drawn(2, 0.9), drawn(2, 0.8, ELSEWHERE)) for i in range(6)]
    cats, _ = judge(truth, found, CATEGORIES[:1], CLASSES)
    assert cats.truth == 6
    assert cats.at(0.5)["precision"] == 1.0


def test_where_not_everything_was_looked_for_only_what_was_counts(make_detection: Make) -> None:
    rare = [replace(CATEGORIES[0], frequency="r")]
    wrong = drawn(2, 0.9, ELSEWHERE)
    truth = [make_detection(0, human(10)), make_detection(1), make_detection(2, negative_category_ids=(10,))]
    truth.append(make_detection(3, human(10), not_exhaustive_category_ids=(10,)))
    found = [make_detection(0, drawn(2, 0.9)), *(make_detection(i, wrong) for i in (1, 2, 3))]
    cats, _ = judge(truth, found, rare, CLASSES)
    assert cats.truth == 1
    assert cats.at(0.5)["precision"] == 0.5


def test_shards_are_compared_and_what_does_not_belong_together_is_told(make_detection: Make, tmp_path: Path) -> None:
    truth = [make_detection(i, human(10)) for i in range(3)]
    found = [
        make_detection(0, drawn(2, 0.9)),
        replace(make_detection(1), reject_reason="image_unreadable"),
        replace(make_detection(2), reject_reason="no_boxes"),
    ]
    names = [Category(id=i, name=name) for i, name in enumerate(CLASSES, 1)]

    def write(folder: str, rows: list[DetectionRecord], categories: list[Category]) -> Path:
        write_shard(tmp_path / folder / shard_name(0), rows, DetectionRecord, categories_to_metadata(categories))
        return tmp_path / folder

    human_place, labels = write("truth", truth, CATEGORIES), write("found", found, names)
    houses, cats, whole = judge_shards(human_place, labels)
    assert (houses.truth, cats.truth, whole.truth) == (0, 2, 2)
    assert cats.at(0.5)["recall"] == 0.5
    write_verdicts([houses, cats, whole], tmp_path / "curves.csv")
    lines = (tmp_path / "curves.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "name,threshold,precision,recall,f1"
    assert len(lines) == 1 + 3 * len(cats.curve)
    with pytest.raises(ShardError, match="other pictures"):
        judge_shards(human_place, write("fewer", found[:2], names))
    with pytest.raises(MissingInputError, match="none of sun"):
        judge_shards(human_place, write("sun", found, [Category(id=1, name="sun")]))
    assert vocabulary_of(CATEGORIES).classes == ("Cat", "dog_house")


def test_calibration_asks_detection_records_for_all_of_their_classes(
    fake_teacher: Any, label_config: PseudoLabelConfig, decode: Any, picture: Callable[..., bytes]
) -> None:
    """The teacher scores every square of the colour that a name begins with 0.9."""
    red, blue = (2, 3, 12, 13), (18, 4, 30, 20)
    categories = [Category(id=7, name="red hat"), Category(id=9, name="blue car", split="novel")]

    def row(key: str, data: bytes, *objects: DetectedObject) -> DetectionRecord:
        image = ImageRef(bytes=data)
        return DetectionRecord(key=key, image=image, height=24, width=32, source="s", objects=objects)

    records = [
        row("right", picture(red=red), human(7, red)),
        row("missed", picture(red=red, blue=blue), human(7, red), human(9, red)),
        row("false alarm", picture(blue=blue)),
    ]
    told: list[int] = []

    def make(config: PseudoLabelConfig) -> PseudoLabeller:
        return PseudoLabeller(fake_teacher, config, decode)

    positive, negative = collect_samples(records, categories, make, label_config, told.append)
    assert told == [2, 1]
    assert len(positive) == 6
    assert len(negative) == 3
    rows = {row["threshold"]: row for row in curves(positive, negative)}
    # Found: red twice, blue twice, of which that of the second picture is elsewhere and that of the third is no car.
    assert rows[0.88]["precision_all"] == 0.5
    assert rows[0.88]["recall_all"] == round(2 / 3, 4)
    assert (rows[0.88]["precision_base"], rows[0.88]["precision_novel"]) == (1.0, 0.0)
    assert rows[0.88]["false_alarms"] == round(1 / 3, 4)
    assert {sample.noun for sample in positive} == {"red hat", "blue car"}
    broken = [row(f"broken {i}", b"no picture", human(7, red)) for i in range(4)]
    with pytest.raises(RejectLimitError, match="cannot be read"):
        collect_samples(broken, categories, make, label_config)
