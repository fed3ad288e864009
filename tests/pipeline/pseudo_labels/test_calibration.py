"""Calibration: one pass over human data answers for every threshold, by counting that can be done by hand."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import RejectLimitError
from pipeline.pseudo_labels.calibration import (
    THRESHOLDS,
    Sample,
    by_agreement,
    collect_samples,
    curves,
    summarise,
    write_curves,
)
from pipeline.pseudo_labels.labeller import PseudoLabeller
from pipeline.pseudo_labels.settings import PseudoLabelConfig
from pipeline.store.records import GroundingRecord, ImageRef, Phrase, ScoredBox

RED, BLUE = (2, 3, 12, 13), (18, 4, 30, 20)


def human(key: str, data: bytes, caption: str, **boxes: tuple[int, int, int, int]) -> GroundingRecord:
    phrases = tuple(
        Phrase(
            text=text.replace("_", " "),
            char_spans=((caption.index(text.replace("_", " ")), caption.index(text.replace("_", " ")) + len(text)),),
            boxes=(ScoredBox(xyxy=box),),
            split="base" if "red" in text else "novel",
            is_plural=False,
        )
        for text, box in boxes.items()
    )
    image = ImageRef(bytes=data)
    return GroundingRecord(key=key, image=image, height=24, width=32, caption=caption, source="people", phrases=phrases)


@pytest.fixture
def labellers(fake_teacher: Any, decode: Any) -> Callable[[PseudoLabelConfig], PseudoLabeller]:
    return lambda config: PseudoLabeller(fake_teacher, config, decode)


def test_right_and_wrong_boxes_and_false_alarms_are_counted(
    labellers: Any, label_config: PseudoLabelConfig, picture: Callable[..., bytes]
) -> None:
    records = [
        human("right", picture(red=RED), "a red hat", red_hat=RED),
        human("elsewhere", picture(red=RED), "a red dog", red_dog=BLUE),
        human("unseen", picture(red=RED), "a blue car", blue_car=BLUE),
    ]
    positive, negative = collect_samples(records, labellers, label_config)
    rows = {row["threshold"]: row for row in curves(positive, negative)}
    # The teacher scores what it finds 0.9, by colour alone.
    assert (rows[0.88]["precision_all"], rows[0.88]["recall_all"]) == (0.5, round(1 / 3, 4))
    assert (rows[0.88]["precision_base"], rows[0.88]["recall_base"]) == (0.5, 0.5)
    assert (rows[0.88]["precision_novel"], rows[0.88]["recall_novel"]) == (None, 0.0)
    assert (rows[0.92]["precision_all"], rows[0.92]["recall_all"]) == (None, 0.0)
    # Every picture is red: "red dog" on the first and "red hat" on the third are found there without being named.
    assert rows[0.88]["false_alarms"] == round(2 / 3, 4)
    assert rows[0.92]["false_alarms"] == 0.0


def test_thresholds_of_the_settings_do_not_matter(
    labellers: Any, label_config: PseudoLabelConfig, picture: Callable[..., bytes]
) -> None:
    records = [human("right", picture(red=RED), "a red hat", red_hat=RED)]
    high = dataclasses.replace(label_config, min_score=1.0, min_score_by_source={"people": 1.0})
    assert collect_samples(records, labellers, high) == collect_samples(records, labellers, label_config)


def test_unreadable_pictures_end_it(
    labellers: Any, label_config: PseudoLabelConfig, picture: Callable[..., bytes]
) -> None:
    records = [human(str(i), b"broken", "a red hat", red_hat=RED) for i in range(3)]
    with pytest.raises(RejectLimitError, match="3 of 3 pictures cannot be read"):
        collect_samples(records, labellers, label_config)


shares = st.floats(0, 1, width=32)
samples = st.builds(
    lambda found, extra, split: Sample(
        scores=tuple(score for score, _ in found),
        hits=tuple(hit for _, hit in found),
        truth=sum(hit for _, hit in found) + extra,
        split=split,
    ),
    st.lists(st.tuples(shares, st.booleans()), max_size=4),
    st.integers(0, 2),
    st.sampled_from(["base", "novel", None]),
)


@given(st.lists(samples, max_size=8), st.lists(samples, max_size=4))
def test_curves_are_those_of_counting_anew_at_each_threshold(positive: list[Sample], negative: list[Sample]) -> None:
    for threshold, row in zip(THRESHOLDS, curves(positive, negative), strict=True):
        for part in ("all", "base", "novel"):
            mine = [each for each in positive if part in ("all", each.split)]
            kept = [
                hit for each in mine for score, hit in zip(each.scores, each.hits, strict=True) if score >= threshold
            ]
            truth = sum(each.truth for each in mine)
            assert row[f"precision_{part}"] == (round(sum(kept) / len(kept), 4) if kept else None)
            assert row[f"recall_{part}"] == (round(sum(kept) / truth, 4) if truth else None)
        alarms = [any(score >= threshold for score in each.scores) for each in negative]
        assert row["false_alarms"] == (round(sum(alarms) / len(alarms), 4) if alarms else None)


def test_summary_names_the_best_threshold(tmp_path: Path) -> None:
    positive = [Sample((0.6,), (True,), 1, "base"), Sample((0.3,), (False,), 1, "novel")]
    rows = curves(positive, [])
    summary = summarise(rows, 0.5)
    assert summary["at_min_score"]["precision_all"] == 1.0
    assert 0.3 < summary["best_f1_at"]["all"] <= 0.6
    write_curves(rows, tmp_path / "a" / "curve.csv")
    with (tmp_path / "a" / "curve.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(THRESHOLDS)
    assert table[25]["threshold"] == "0.5"
    assert table[25]["false_alarms"] == ""


def test_precision_grows_with_agreement_as_a_plain_count_says() -> None:
    samples = [
        Sample(scores=(0.9, 0.8, 0.1), hits=(True, False, True), truth=3, split=None, agreements=(1.0, 0.5, 1.0)),
        Sample(scores=(0.7, 0.6), hits=(True, False), truth=1, split=None, agreements=(0.5, 0.5)),
    ]
    half, all_of_them = by_agreement(samples, min_score=0.5)
    assert half == {"agreement": 0.5, "boxes": 4, "precision": 0.5, "precision_of_just": 0.3333, "recall": 0.5}
    assert all_of_them == {"agreement": 1.0, "boxes": 1, "precision": 1.0, "precision_of_just": 1.0, "recall": 0.25}
    assert by_agreement([dataclasses.replace(each, agreements=(None,) * 3) for each in samples], 0.5) == []
