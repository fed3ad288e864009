"""The pictures of the report: which ones, and what is drawn on them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation import benchmark
from pipeline.evaluation.judged import Judged
from pipeline.report.gallery import choose_gallery, draw_rows, side_by_side
from pipeline.store.records import ImageRef

PAIR = ("student", "teacher")


def drawn(judged: Judged, number: int, *models: str | None) -> list[Any]:
    """Return the pictures of a row, one a model, as arrays."""
    (row,) = draw_rows(judged, [number], models)
    return [np.asarray(picture) for picture in row]


def with_found(judged: Judged, **found: Any) -> Judged:
    return replace(judged, predictions={**judged.predictions, **found})


def test_the_gallery_opens_with_wins_and_ends_with_a_loss(detection: Judged) -> None:
    assert choose_gallery(detection, PAIR, 4) == [0, 1, 2, 3]
    assert choose_gallery(detection, PAIR, 1) == [0]
    assert choose_gallery(detection, ("teacher", "student"), 4)[0] == 3


def test_boxes_too_weak_to_be_drawn_win_nothing(detection: Judged, toys: SimpleNamespace) -> None:
    student = toys.predicted([(0, 9, toys.RIGHT, 0.2), (2, 9, toys.RIGHT, 0.4)])
    judged = with_found(detection, student=student, teacher=toys.predicted([]))
    assert choose_gallery(judged, PAIR, 2) == [2, 0]


def test_a_win_on_a_novel_object_outweighs_one_on_a_base_object(detection: Judged, toys: SimpleNamespace) -> None:
    student = toys.predicted([(0, 5, toys.LEFT, 0.9), (3, 9, toys.RIGHT, 0.4)])
    judged = with_found(detection, student=student, teacher=toys.predicted([]))
    assert choose_gallery(judged, PAIR, 2) == [3, 0]


@pytest.mark.parametrize("count", [5, 8, 40])
def test_a_gallery_larger_than_the_benchmark_shows_each_picture_once(detection: Judged, count: int) -> None:
    assert sorted(choose_gallery(detection, PAIR, count)) == [0, 1, 2, 3]


def test_one_model_alone_is_shown_by_what_it_finds_and_misses(detection: Judged) -> None:
    assert choose_gallery(detection, ("teacher", None), 4) == [3, 0, 1, 2]
    assert choose_gallery(detection, ("student", None), 4)[-1] == 3


def test_phrases_are_won_by_their_best_box(grounding: Judged) -> None:
    assert choose_gallery(grounding, PAIR, 3) == [0, 1, 2]
    assert choose_gallery(grounding, ("teacher", "student"), 3)[0] == 2
    truth, teacher, student = drawn(grounding, 0, None, "teacher", "student")
    assert not np.array_equal(teacher, student)
    assert truth.shape == student.shape


def test_boxes_are_drawn_where_they_are(detection: Judged) -> None:
    seen, plain = (picture.astype(int) for picture in drawn(detection, 1, "student", "control"))
    assert plain.std(axis=(0, 1)).max() == 0  # nothing found, nothing drawn
    changed = np.abs(seen - plain).max(2) > 0
    scale = seen.shape[1] / detection.records[1].width
    assert changed[round(5 * scale), round(15 * scale)]  # upper edge of the dog
    assert changed[round(20 * scale), round(90 * scale)]  # right edge of the yak
    assert not changed[round(70 * scale) :].any()


def test_a_thing_has_one_colour_in_truth_and_predictions(detection: Judged) -> None:
    truth, teacher = drawn(detection, 3, None, "teacher")
    scale = truth.shape[1] / 100
    for corner in ((15, 90), (15, 5)):  # right edge of the yak, left edge of the dog
        spot = tuple(round(scale * each) for each in corner)
        assert truth[spot].tolist() == teacher[spot].tolist()


def test_boxes_with_corners_the_wrong_way_round_are_drawn_too(detection: Judged, toys: SimpleNamespace) -> None:
    found = toys.predicted([(0, 5, (20.0, 20.0, 19.5, 19.5), 0.9), (0, 77, toys.LEFT, 0.9)])
    drawn(with_found(detection, teacher=found), 0, "teacher")  # of a category that is not known, too


def test_a_picture_that_cannot_be_read_is_grey(detection: Judged, tmp_path: Path, toys: SimpleNamespace) -> None:
    records = [replace(detection.records[0], image=ImageRef(bytes=b"no picture"))]
    judged = toys.judged_of(tmp_path / "broken", "detection", records, {"a": []}, toys.CATEGORIES)
    assert np.unique(drawn(judged, 0, "a")[0]).tolist() == [128]
    assert choose_gallery(judged, ("a", None), 2) == [0]


def test_pictures_of_different_shapes_keep_theirs_side_by_side(detection: Judged, tmp_path: Path) -> None:
    models = ("teacher", "student")
    flat, square = (side_by_side(detection, [number], models).height for number in (0, 1))
    width = drawn(detection, 0, "teacher")[0].shape[1]
    assert (flat, square) == (round(0.6 * width), width)
    both = side_by_side(detection, [0, 1], models)
    assert (both.width, both.height) == (2 * width + 12, flat + square + 12)


def test_a_shard_is_read_and_a_picture_decoded_once(detection: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()

    def count(name: str, real: Any) -> None:
        monkeypatch.setattr(benchmark, name, lambda *args: (calls.update([name]), real(*args))[1])

    count("read_table", benchmark.read_table)
    count("decode_image", benchmark.decode_image)
    rows = list(draw_rows(detection, [3, 0, 1], (None, "teacher", "student")))
    assert [len(row) for row in rows] == [3, 3, 3]
    assert calls == {"read_table": 1, "decode_image": 3}
