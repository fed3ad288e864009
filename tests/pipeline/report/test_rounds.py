"""Rounds side by side: what was skipped, what has drifted, and a planted teacher that confuses two concepts."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from pipeline.evaluation.bootstrap import Interval
from pipeline.evaluation.standings import Standing
from pipeline.pseudo_labels.calibration import Sample
from pipeline.pseudo_labels.label_quality import label_quality
from pipeline.report.rounds import curves_over_rounds, notes_on_rounds, read_rounds
from pipeline.store.records import GroundingRecord, ImageRef, Phrase, ScoredBox
from pipeline.store.shards import shard_name, write_shard

TEACHERS = {"round_1": "teacher", "round_2": "round_1", "round_3": "round_2"}
NOUNS = ("cat", "dog", "fox", "owl", "yak", "emu", "ant", "bee")


def write(folder: Path, name: str, value: Any) -> None:
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def quality(seed: int, right: float, confused: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the figures of labels that are right so often, and one time in ten of the nouns that are confused."""
    rng = random.Random(seed)
    samples = [
        Sample((rng.uniform(0.3, 0.9),), (rng.random() < (0.1 if noun in confused else right),), 1, "base", noun)
        for noun in NOUNS
        for _ in range(60)
    ]
    return label_quality(samples, 0.28, {})


def test_a_teacher_that_confuses_two_concepts_is_found_out(tmp_path: Path) -> None:
    for name, figures in (("round_1", quality(0, 0.85)), ("round_2", quality(1, 0.9, confused=("fox", "owl")))):
        write(tmp_path, f"calibration/{name}", figures)
        write(tmp_path, f"labels/{name}", {"boxes": 480, "rows_labelled": 400})
    first, second = read_rounds(TEACHERS, tmp_path, tmp_path / "labels")
    assert first.worse == ()
    assert {each.noun for each in second.worse} == {"fox", "owl", "base"}
    assert second.worse[0].noun == "base"  # the mean has fallen, too
    assert all(each.now < 25 < 75 < each.before for each in second.worse[1:])
    (note,) = notes_on_rounds([first, second])
    assert note.startswith("Labels of round_2 are less often right than those before: base (")
    assert "fox (" in note
    assert "owl (" in note


def test_rounds_that_are_alike_have_nothing_worse(tmp_path: Path) -> None:
    for seed, name in enumerate(TEACHERS):
        write(tmp_path, f"calibration/{name}", quality(seed, 0.85))
    rounds = read_rounds(TEACHERS, tmp_path, tmp_path / "labels")
    assert len(rounds) == 3
    assert notes_on_rounds(rounds) == []


def labelled(folder: Path, *boxes: tuple[float, float, float, float]) -> None:
    rows = [
        GroundingRecord(
            key=str(i),
            image=ImageRef(bytes=b"x"),
            height=90,
            width=90,
            caption="a dog",
            source="web",
            phrases=(Phrase(text="a dog", char_spans=((0, 5),), boxes=(ScoredBox(xyxy=box, score=0.5),)),),
        )
        for i, box in enumerate(boxes)
    ]
    write_shard(folder / shard_name(0), rows, GroundingRecord)


def test_what_has_drifted_and_changed_and_why_a_round_was_skipped(tmp_path: Path) -> None:
    here, there, away = (0.0, 0.0, 20.0, 20.0), (1.0, 0.0, 20.0, 20.0), (50.0, 50.0, 80.0, 80.0)
    labelled(tmp_path / "labels/round_1", here, here, here)
    labelled(tmp_path / "labels/round_2", here, there, away)  # the same, much the same, another one
    used = {"precision_novel": 0.5, "recall_novel": 0.25, "false_alarms": 0.1}
    write(tmp_path, "calibration/round_1", {"scores": [0.5, 0.5], "at_min_score": used})
    write(tmp_path, "calibration/round_2", {"scores": [0.2, 0.8], "at_min_score": used})
    for kind in ("labels", "models", "calibration"):
        write(tmp_path, f"{kind}/round_3", {"skipped": "round_2 gained nothing"})
    first, second, third = read_rounds(TEACHERS, tmp_path, tmp_path / "labels")
    assert (first.drift, first.changed, first.skipped) == (None, None, None)
    assert second.drift is not None
    assert round(second.drift, 6) == 30
    assert second.changed == 100 * 2 / 4  # one box gone, one new, two kept
    assert (second.precision["novel"], second.recall["novel"], second.false_alarms) == (50, 25, 10)
    assert third.skipped == "round_2 gained nothing"
    assert notes_on_rounds([first, second, third]) == ["round_3 was skipped: round_2 gained nothing."]


def test_curves_run_from_the_teacher_to_the_last_round_beside_the_baselines(tmp_path: Path) -> None:
    for name in ("round_1", "round_2"):
        write(tmp_path, f"labels/{name}", {"boxes": 1})
    rounds = read_rounds(TEACHERS, tmp_path, tmp_path / "labels")
    values = {"teacher": 3.0, "control": 2.5, "one_round": 37.0, "round_1": 31.0, "round_2": 52.0}
    models = {name: Interval(value, value - 1, value + 1) for name, value in values.items()}
    (plot,) = curves_over_rounds(rounds, [Standing("detection", "toys", "novel", "AP", models, {}, True)])
    assert {line.name: line.points for line in plot.lines} == {
        "self-training": ((0, 3.0), (1, 31.0), (2, 52.0)),
        "control": ((0, 3.0), (2, 2.5)),
        "one_round": ((1, 31.0), (2, 37.0)),
    }
    assert plot.lines[0].band == ((0, 2.0, 4.0), (1, 30.0, 32.0), (2, 51.0, 53.0))
    assert curves_over_rounds(rounds, [Standing("detection", "toys", "novel", "AP", {}, {}, True)]) == []
    assert curves_over_rounds([], []) == []
