"""The evaluate stage around its job: metrics, curves, the closing line, and what a failure leaves alone."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from glip_model.structures import Detections
from pipeline.cli import call
from pipeline.errors import MissingInputError
from pipeline.evaluation.benchmark import Benchmark, list_benchmarks, predictions_of
from pipeline.evaluation.predictions import to_table, write_predictions
from pipeline.store.records import (
    Category,
    DetectedObject,
    DetectionRecord,
    GroundingRecord,
    ImageRef,
    Phrase,
    ScoredBox,
)
from pipeline.store.shards import categories_to_metadata, shard_name, write_shard
from stages import evaluate

ROOT = Path(__file__).resolve().parents[2]
BOX = (10.0, 10.0, 30.0, 30.0)
CATEGORIES = [Category(id=1, name="dog"), Category(id=2, name="yak", split="novel")]


def write_records(folder: Path, tasks: Sequence[str], source: str = "home", number: int = 0) -> None:
    out = io.BytesIO()
    Image.new("RGB", (64, 48)).save(out, "PNG")
    head: dict[str, Any] = {"image": ImageRef(bytes=out.getvalue()), "height": 48, "width": 64, "source": source}
    if "detection" in tasks:
        thing = DetectedObject(category_id=1, xyxy=BOX)
        rows = [DetectionRecord(key=f"key-{i}", objects=(thing,), **head) for i in range(2)]
        write_shard(
            folder / "detection" / shard_name(number), rows, DetectionRecord, categories_to_metadata(CATEGORIES)
        )
    for task in set(tasks) & {"grounding", "referring"}:
        dog = Phrase(text="a dog", char_spans=((0, 5),), boxes=(ScoredBox(xyxy=BOX),), split="base")
        captions = [GroundingRecord(key=f"key-{i}", caption="a dog", phrases=(dog,), **head) for i in range(2)]
        write_shard(folder / task / shard_name(number), captions, GroundingRecord)


@pytest.fixture
def fake_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for Ray: the model finds the dog of the first picture of every task; the second is not there."""

    def predict_benchmarks(config: Any, model: Path, records: Path, out: Path, allowed: Any) -> list[Benchmark]:
        if not model.is_dir():
            raise MissingInputError(f"{model}: no such model")
        benchmarks, _ = list_benchmarks(records, config.splits, allowed)
        found = Detections(torch.tensor([BOX]), torch.tensor([0.9]), torch.tensor([0]))
        for benchmark in benchmarks:
            for place in predictions_of(benchmark, out):
                table = to_table(["key-0"], [found], [1] if benchmark.task == "detection" else None)
                write_predictions(place, table, {}, {"key-1": "image_missing"} if benchmark.split == "dev" else {})
        return benchmarks

    monkeypatch.setattr("pipeline.evaluation.job.predict_benchmarks", predict_benchmarks)
    monkeypatch.setattr("pipeline.ray_session.ray_session", contextlib.nullcontext)


def run_evaluate(folder: Path, model: Path, *more: str) -> int:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    words = {
        "--params": ROOT / "params.yaml",
        "--model": model,
        "--records": "records",
        "--out": "out",
        "--metrics": "m.json",
        "--table": "plots/table.csv",
        "--curves": "plots/pr.csv",
    }
    return call(
        evaluate.run,
        parser.parse_args([*(w for name, value in words.items() for w in (name, str(folder / value))), *more]),
    )


@pytest.mark.usefixtures("fake_job")
def test_metrics_and_curves_are_written_for_every_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split in ("dev", "test"):
        write_records(tmp_path / "records" / split, ("detection", "grounding", "referring"))
    model = tmp_path / "student"
    model.mkdir()
    with caplog.at_level(logging.INFO):
        assert run_evaluate(tmp_path, model) == 0
    metrics = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))
    assert set(metrics) == {"dev", "test"}
    assert set(metrics["test"]) == {"detection", "grounding", "referring"}
    half = round(100 * 51 / 101, 2)  # one of two dogs: 51 of 101 recalls
    assert metrics["test"]["detection"]["home"]["base"] == {"AP": half, "AP50": half}
    assert metrics["dev"]["grounding"]["home"]["base"]["R@10"] == 50.0
    assert metrics["dev"]["referring"]["home"]["all"]["P@1"] == 50.0
    assert metrics["dev"]["referring"]["home"]["missing"] == {"rows": 1}
    assert "missing" not in metrics["test"]["referring"]["home"]
    assert (
        "dev/detection/home: 1 rows count as empty, for their pictures cannot be read: image_missing 1" in caplog.text
    )
    line = (
        "evaluate student: test/detection/home 50.5 all, 50.5 base; test/grounding/home 50.0 all, 50.0 base; test/ref"
    )
    assert line in caplog.text

    with (tmp_path / "plots/pr.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    np.testing.assert_allclose([float(row["recall"]) for row in rows], np.linspace(0, 1, 101))
    assert set(rows[0]) == {"recall", "base", "novel"}
    assert [float(row["base"]) for row in rows] == [1.0] * 51 + [0.0] * 50
    assert {row["novel"] for row in rows} == {"0.0"}


@pytest.mark.usefixtures("fake_job")
def test_data_with_grounding_alone_has_no_detection_metrics(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split in ("dev", "test"):
        write_records(tmp_path / "records" / split, ("grounding",))
    model = tmp_path / "student"
    model.mkdir()
    with caplog.at_level(logging.INFO):
        assert run_evaluate(tmp_path, model) == 0
    metrics = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))
    assert set(metrics["test"]) == {"grounding"}
    assert "evaluate student: test/grounding/home 50.0 all, 50.0 base;" in caplog.text
    assert (tmp_path / "plots/pr.csv").read_text(encoding="utf-8").splitlines()[0] == "recall"


@pytest.mark.usefixtures("fake_job")
def test_the_table_puts_published_numbers_beside(tmp_path: Path) -> None:
    write_records(tmp_path / "records/dev", ("detection",), source="odinw_raccoon")
    for split, source in (("test", "coco_val2017"),):
        write_records(tmp_path / "records" / split, ("detection",), source=source)
    (tmp_path / "student").mkdir()
    assert run_evaluate(tmp_path, tmp_path / "student") == 0
    with (tmp_path / "plots/table.csv").open(newline="", encoding="utf-8") as file:
        rows = {(row["source"], row["part"], row["measure"]): row for row in csv.DictReader(file)}
    coco = rows["coco_val2017", "all", "AP"]
    assert (coco["GLIP-T"], coco["GLIP-L, fine-tuned"]) == ("46.3", "60.8")
    assert coco["value"] == str(round(100 * 51 / 101, 2))
    assert rows["coco_val2017", "all", "AP50"]["GLIP-T"] == ""
    assert rows["odinw_raccoon", "all", "AP"]["GLIP-T"] == "57.8"
    assert rows["odinw13", "all", "AP"]["value"] == coco["value"]
    assert rows["odinw13", "all", "data_sets"]["value"] == "1"


@pytest.mark.usefixtures("fake_job")
def test_several_sources_have_a_curve_each(tmp_path: Path) -> None:
    for split in ("dev", "test"):
        write_records(tmp_path / "records" / split, ("detection",), source="a")
    write_records(tmp_path / "records/test", ("detection",), source="b", number=1)
    (tmp_path / "student").mkdir()
    assert run_evaluate(tmp_path, tmp_path / "student") == 0
    with (tmp_path / "plots/pr.csv").open(newline="", encoding="utf-8") as file:
        assert next(csv.reader(file)) == ["recall", "a base", "a novel", "b base", "b novel"]


@pytest.mark.usefixtures("fake_job")
def test_a_failure_leaves_earlier_predictions_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    earlier = tmp_path / "out/dev/detection/part-00000.parquet"
    write_predictions(earlier, to_table([], [], None), {})
    assert run_evaluate(tmp_path, tmp_path / "nothing") == 2
    assert "no such model" in capsys.readouterr().err
    assert earlier.exists()


@pytest.mark.usefixtures("fake_job")
def test_the_gain_on_another_model_is_that_of_dev(tmp_path: Path) -> None:
    for split in ("dev", "test"):
        write_records(tmp_path / "records" / split, ("detection",))
    model = tmp_path / "student"
    model.mkdir()
    assert run_evaluate(tmp_path, model, "--over", "teacher") == 0
    metrics = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))
    assert "gain" not in metrics  # there are no predictions of a teacher
    place = tmp_path / "teacher/dev/detection" / shard_name(0)
    place.parent.mkdir(parents=True)
    write_predictions(place, to_table(["key-0", "key-1"], [Detections.none()] * 2, [1, 2]), {})
    assert run_evaluate(tmp_path, model, "--over", "teacher") == 0
    gain = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))["gain"]
    assert (gain["over"], gain["split"], gain["source"], gain["part"]) == ("teacher", "dev", "home", "all")
    assert gain["value"] == round(100 * 51 / 101, 2)
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert gain["is_beyond_chance"] == (gain["low"] > 0)
    with (tmp_path / "plots/table.csv").open(newline="", encoding="utf-8") as file:
        assert "gain" not in {row["split"] for row in csv.DictReader(file)}  # it is no measure of a split
