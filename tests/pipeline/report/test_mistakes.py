"""What lies beside a tuned model: what it takes for what, where it does worst, and its card."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from pipeline.evaluation.judged import Judged
from pipeline.report import mistakes
from pipeline.report.card import CARD_FILE, RESULT_FILE, Tuned, write_card, write_results
from pipeline.report.mistakes import calls_of, confusion, draw_confusion, worst_rows
from pipeline.store.records import DetectedObject, DetectionRecord


def judged_of(toys: SimpleNamespace, folder: Path, rows: list[Any]) -> Judged:
    dog, yak = DetectedObject(category_id=5, xyxy=toys.LEFT), DetectedObject(category_id=9, xyxy=toys.RIGHT)
    shown: list[tuple[DetectedObject, ...]] = [(dog, yak), (dog, dog), ()]
    records = [DetectionRecord(objects=objects, **toys.head(i)) for i, objects in enumerate(shown)]
    made: Judged = toys.judged_of(folder, "detection", records, {"after": rows}, toys.CATEGORIES)
    return made


def test_objects_are_called_something_or_nothing(toys: SimpleNamespace, tmp_path: Path) -> None:
    found = [
        (0, 5, toys.LEFT, 0.9),  # right
        (0, 12, toys.RIGHT, 0.8),  # the yak is called an owl
        (0, 9, toys.RIGHT, 0.7),  # and a yak, where the yak is taken
        (1, 5, toys.LEFT, 0.5),  # one of two dogs in one place
        (2, 5, toys.AWAY, 0.6),  # nothing is there
        (2, 9, toys.AWAY, 0.1),  # too weak to count
    ]
    rows = calls_of(judged_of(toys, tmp_path, found), "after")
    assert [sorted(row) for row in rows] == [[(0, 0), (1, 2), (3, 1)], [(0, 0), (0, 3)], [(3, 0)]]
    assert confusion(rows, 3).tolist() == [[2, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]]
    assert worst_rows(rows, 8) == [0, 1, 2]
    assert worst_rows(rows, 1) == [0]
    assert worst_rows([[(0, 0)], []], 8) == []


def test_the_picture_is_darkest_where_most_is(toys: SimpleNamespace) -> None:
    counts = np.array([[8, 2, 0], [0, 5, 5], [1, 0, 0]])
    pixels = np.asarray(draw_confusion(counts, ["dog", toys.HOSTILE]))
    cell, names = mistakes._CELL, mistakes._NAMES

    def corner(row: int, column: int) -> int:
        return int(pixels[names + cell * row + 4, names + cell * column + 4].sum())

    assert corner(0, 0) < corner(0, 1) < corner(0, 2) == 3 * 255
    assert pixels.shape == (names + 3 * cell, names + 3 * cell, 3)
    many = draw_confusion(np.eye(101, dtype=np.int64), [f"name {i}" for i in range(100)])
    assert many.width == names + cell * (mistakes.SHOWN_NAMES + 1)


def test_a_card_tells_it_and_names_are_no_marks(tmp_path: Path, toys: SimpleNamespace) -> None:
    tuned = Tuned(
        start="models/glip_t",
        data="my | pictures",
        layout="reads _annotations.coco.json",
        names=["dog", "<b>*yak*</b>\n"],
        pictures={"train": 30, "validation": 6, "choose": 5},
        is_chosen=True,
        kept="50 pictures of 70 names",
        before={"AP": 12.84, "AP50": 20.0, "other": 31.0},
        after={"AP": 37.31, "AP50": 60.0, "other": 9.16},
        trained={"steps": 200, "seconds": 90},
        trials=[{"share": 0.6, "own": 30.0, "other": 20.0}],
        settings={"tuning": "full"},
    )
    write_card(tmp_path / CARD_FILE, tuned)
    text = (tmp_path / CARD_FILE).read_text(encoding="utf-8")
    assert text.startswith("# A model tuned on my \\| pictures\n")
    assert "dog, \\<b\\>\\*yak\\*\\</b\\>\\\\u000a." in text
    assert "| own names, AP | 12.8 | 37.3 |" in text
    assert "| own names, AP75 | – | – |" in text
    assert "| other names, AP | 31.0 | 9.2 |" in text
    assert "5 others chose when to stop" in text
    assert "200 steps, 1.5 minutes" in text
    assert "60 % of the way" in text
    found = judged_of(toys, tmp_path / "records" / "dev", [(0, 5, toys.LEFT, 0.9)])
    assert found.predictions


def test_pictures_of_the_worst_lie_beside_the_model(tmp_path: Path, toys: SimpleNamespace, monkeypatch: Any) -> None:
    judged = judged_of(toys, tmp_path, [(0, 5, toys.LEFT, 0.9), (2, 5, toys.AWAY, 0.6)])
    monkeypatch.setattr(mistakes, "judge", lambda *_: judged)
    (tmp_path / "out" / mistakes.FOLDER).mkdir(parents=True)
    (tmp_path / "out" / mistakes.FOLDER / "worst-09.jpg").write_bytes(b"of before")
    tuned = Tuned(
        "m",
        "d",
        "l",
        ["dog"],
        {"train": 1, "validation": 3},
        True,
        "none",
        {},
        {},
        {"steps": 1, "seconds": 1},
        [{"share": 1.0}],
        {},
    )
    write_results(tmp_path / "out", tuned, judged.benchmark, tmp_path, "after")
    folder = tmp_path / "out" / mistakes.FOLDER
    assert sorted(path.name for path in folder.iterdir()) == [
        "confusion.png",
        *(f"worst-{i:02d}.jpg" for i in (1, 2, 3)),
    ]
    with Image.open(folder / "worst-01.jpg") as picture:
        assert picture.width > 200  # the truth beside what was found
    assert json.loads((tmp_path / "out" / RESULT_FILE).read_text(encoding="utf-8"))["share"] == 1.0
    assert "flatters it a little" in (tmp_path / "out" / CARD_FILE).read_text(encoding="utf-8")
