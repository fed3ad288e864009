"""What is taken for what, against plain loops and by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.evaluation.judged import Judged
from pipeline.report.confusion import Confusions, confused_categories, confused_phrases
from pipeline.store.records import Category, DetectedObject, DetectionRecord


def iou(a: Any, b: Any) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return float(shared / max(sum(area) - shared, 1e-9))


def test_phrases_that_take_the_box_of_another(grounding: Judged, toys: SimpleNamespace) -> None:
    yak = " ".join(toys.HOSTILE.lower().split())
    teacher = confused_phrases(grounding.records, grounding.predictions["teacher"])
    assert teacher == Confusions([(yak, "dog", 2)], total=2)
    assert teacher.confused == 2
    assert confused_phrases(grounding.records, grounding.predictions["student"]) == Confusions([], 0)


def test_misses_that_take_nothing_are_misses_alone(toys: SimpleNamespace) -> None:
    records = [
        toys.pair(0, "dog", "yak", "sky", boxes=[[toys.LEFT], [toys.RIGHT], []], splits=[None] * 3),
        toys.pair(1, "dog", boxes=[[toys.LEFT]], splits=[None]),
    ]
    found = toys.predicted([(0, 0, toys.AWAY, 0.9), (0, 0, toys.RIGHT, 0.8), (0, 2, toys.LEFT, 0.9)])
    # The dog's best box is nowhere, the yak and the second dog have none, the sky has no truth to miss.
    assert confused_phrases(records, found) == Confusions([], total=3)


def test_a_box_that_is_right_too_is_no_confusion(toys: SimpleNamespace) -> None:
    records = [toys.pair(0, "dog", "yak", boxes=[[toys.AWAY, toys.LEFT], [toys.LEFT]], splits=[None] * 2)]
    assert confused_phrases(records, toys.predicted([(0, i, toys.LEFT, 0.9) for i in range(2)])) == Confusions([], 0)


def test_adjectives_that_are_seldom_said_do_not_count_apart(toys: SimpleNamespace) -> None:
    names = [("a shiny red Dog", "the yak"), ("red dog", "yak"), ("red dog", "yak"), ("the red dog", "a hot yak")]
    records = [toys.pair(i, *two, boxes=[[toys.LEFT], [toys.RIGHT]], splits=[None] * 2) for i, two in enumerate(names)]
    swapped = [(i, label, box, 0.9) for i in range(4) for label, box in ((0, toys.RIGHT), (1, toys.LEFT))]
    counts = confused_phrases(records, toys.predicted(swapped)).counts
    assert counts == [("red dog", "yak", 4), ("yak", "red dog", 4)]


def test_objects_called_by_another_name_as_a_plain_loop_counts_them(
    random_benchmark: Callable[..., Any],
) -> None:
    for seed in range(3):
        records, categories, found = random_benchmark(seed, num_pictures=30)
        names = {category.id: category.name for category in categories}
        expected: Counter[tuple[str, str]] = Counter()
        false_alarms = 0
        for number, label, box, score in zip(found.numbers, found.labels, found.boxes_xyxy, found.scores, strict=True):
            objects = records[number].objects
            own = [iou(box, each.xyxy) for each in objects if each.category_id == label]
            if score < 0.3 or max(own, default=0) >= 0.5:
                continue
            false_alarms += 1
            others = [each for each in objects if each.category_id != label and not each.is_crowd]
            best = max(others, key=lambda each: iou(box, each.xyxy), default=None)
            if best is not None and iou(box, best.xyxy) >= 0.5:
                expected[names[best.category_id], names[int(label)]] += 1
        confusions = confused_categories(records, categories, found)
        assert confusions.total == false_alarms
        assert {(shown, called): count for shown, called, count in confusions.counts} == expected
        assert expected
        ranks = [(-count, shown, called) for shown, called, count in confusions.counts]
        assert ranks == sorted(ranks)


def test_categories_that_nobody_looked_for_are_no_false_alarms(tmp_path: Path, toys: SimpleNamespace) -> None:
    categories = [Category(id=i, name=name, frequency="f") for i, name in enumerate(("cat", "dog", "owl"))]
    cat = DetectedObject(category_id=0, xyxy=toys.LEFT)
    records = [DetectionRecord(objects=(cat,), negative_category_ids=(1,), **toys.head(0))]
    found = toys.predicted([(0, label, toys.LEFT, 0.9) for label in range(3)])
    assert confused_categories(records, categories, found) == Confusions([("cat", "dog", 1)], total=1)


def test_nothing_found_and_nothing_there(toys: SimpleNamespace) -> None:
    records = [DetectionRecord(objects=(), **toys.head(0))]
    assert confused_categories(records, toys.CATEGORIES, toys.predicted([])) == Confusions([], 0)
    one = toys.predicted([(0, 5, toys.LEFT, 0.9)])
    assert confused_categories(records, toys.CATEGORIES, one) == Confusions([], total=1)
    assert confused_phrases([], toys.predicted([])) == Confusions([], 0)
