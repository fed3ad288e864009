"""A simulated reviewer on the embedded data: who never errs makes labels right, and who always errs changes nothing."""

from __future__ import annotations

import argparse
import csv
import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import MissingInputError
from pipeline.prepare.embedded.tables import web_truth
from pipeline.review.corrections import correct
from pipeline.review.simulation import precision, simulate
from pipeline.review.taking import as_it_is
from pipeline.settings import load_all
from pipeline.store.records import GroundingRecord, ScoredBox
from pipeline.store.shards import shard_name, write_shard
from stages import review_gain

ROOT = Path(__file__).resolve().parents[3]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
PAIRS = 12


@pytest.fixture(scope="module")
def truth() -> dict[str, GroundingRecord]:
    settings = load_all(ROOT / "params.yaml")
    records = [web_truth(settings.prepare.embedded, settings.seed, number) for number in range(PAIRS)]
    return {record.key: record for record in records}


@pytest.fixture
def labels(truth: dict[str, GroundingRecord]) -> list[GroundingRecord]:
    """Give labels in which every phrase has one box, somewhere."""
    made = []
    for record in truth.values():
        phrases = [
            dataclasses.replace(phrase, split=None, boxes=(ScoredBox(xyxy=(0, 0, 12.5, 12.5), score=0.25 + i / 8),))
            for i, phrase in enumerate(record.phrases)
        ]
        made.append(dataclasses.replace(record, phrases=tuple(phrases)))
    return made


def corrected(labels: Any, truth: Any, error_rate: float) -> list[GroundingRecord]:
    made = simulate(labels, truth, error_rate, NOW, np.random.default_rng(0))
    return [correct(record, decision) for record, decision in zip(labels, made, strict=True)]


def test_who_never_errs_makes_labels_right(labels: Any, truth: Any) -> None:
    before, after = precision(labels, truth), precision(corrected(labels, truth, 0.0), truth)
    assert before < 0.2
    assert after == 1.0
    assert before < precision(corrected(labels, truth, 0.5), truth) < 1.0


def test_who_always_errs_changes_nothing(labels: Any, truth: Any) -> None:
    made = simulate(labels, truth, 1.0, NOW, np.random.default_rng(0))
    assert [list(decision.phrases) for decision in made] == [as_it_is(record) for record in labels]


def test_the_table_has_a_line_for_each_number_and_order(
    labels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = tmp_path / "small.yaml"
    params.write_text(f"extends: {ROOT / 'params.yaml'}\nprepare: {{embedded: {{web: {PAIRS}}}}}\n", encoding="utf-8")
    write_shard(tmp_path / "labels" / shard_name(0), labels, GroundingRecord)
    parser = argparse.ArgumentParser()
    review_gain.add_arguments(parser)
    places = ["--labels", str(tmp_path / "labels"), "--out", str(tmp_path / "out"), "--params", str(params)]
    places += ["--table", str(tmp_path / "out/table.csv")]
    args = parser.parse_args([*places, "--reviewed", "0", "6", "12", "--error-rate", "0", "--labels-only"])
    for _ in range(2):
        review_gain.run(args)
        with (tmp_path / "out/table.csv").open(encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        assert [(line["order"], line["reviewed"], line["rows"]) for line in lines] == [
            ("none", "0", "0"),
            ("uncertain", "6", "6"),
            ("random", "6", "6"),
            ("uncertain", "12", "12"),
            ("random", "12", "12"),
        ]
        precisions = [float(line["precision_all"]) for line in lines]
        assert precisions[0] < min(precisions[1:3]) <= max(precisions[1:3]) < precisions[3] == precisions[4] == 100
        # What is finished is read, and not made again.
        monkeypatch.setattr(review_gain, "_correct", None)
    monkeypatch.undo()
    stranger = dataclasses.replace(labels[0], key="stranger")
    write_shard(tmp_path / "labels" / shard_name(0), [stranger], GroundingRecord)
    with pytest.raises(MissingInputError, match="stranger is no web pair of these settings"):
        review_gain.run(parser.parse_args([*places, "--reviewed", "1", "--labels-only", "--error-rate", "0.5"]))


def test_the_recipe_of_the_students_gives_reviewed_rows_weight() -> None:
    mixture = load_all(review_gain.WITH).train.runs[review_gain.ROUND].mixture
    assert mixture["reviewed"] > 0
    assert sum(mixture.values()) == pytest.approx(1)
    assert set(load_all(review_gain.WITHOUT).train.runs[review_gain.ROUND].mixture) == {"detection", "pseudo"}
