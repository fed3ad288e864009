"""The report stage on a benchmark of two pictures."""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
from pathlib import Path

import pytest
import torch
from PIL import Image

from glip_model.structures import Detections
from pipeline.data.records import Category, DetectedObject, DetectionRecord, ImageRef
from pipeline.data.shards import categories_to_metadata, shard_name, write_shard
from pipeline.errors import MissingInputError
from pipeline.evaluation.predictions import to_table, write_predictions
from stages import report

ROOT = Path(__file__).resolve().parents[2]
CATEGORIES = [Category(id=1, name="dog"), Category(id=2, name="yak", split="novel")]
BOX = (10.0, 10.0, 30.0, 30.0)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Write records, predictions and metrics: only the student finds the yak."""
    out = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 180, 90)).save(out, "PNG")
    image = ImageRef(bytes=out.getvalue())
    records = [
        DetectionRecord(
            key=f"picture {i}",
            image=image,
            height=48,
            width=64,
            source="test",
            objects=(DetectedObject(category_id=i + 1, xyxy=BOX),),
        )
        for i in range(2)
    ]
    folder = tmp_path / "records/test/detection"
    write_shard(folder / shard_name(0), records, DetectionRecord, categories_to_metadata(CATEGORIES))
    for model, yak in (("teacher", 0.0), ("student", 100.0), ("control", 0.0)):
        count = 1 if yak else 0
        found = [
            Detections(torch.tensor([BOX]), torch.tensor([0.9]), torch.tensor([0])),
            Detections(torch.tensor([BOX] * count).reshape(-1, 4), torch.full((count,), 0.8), torch.ones(count).long()),
        ]
        table = to_table([record.key for record in records], [0, 1], found, [1, 2])
        write_predictions(tmp_path / "predictions" / model / "test/detection.parquet", [table])
        detection = {"base": {"AP": 100.0, "AP50": 100.0}, "novel": {"AP": yak, "AP50": yak}}
        path = tmp_path / "metrics" / f"{model}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"test": {"detection": detection}}), encoding="utf-8")
    return tmp_path


def run_report(project: Path) -> None:
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml")
    words = {
        "--records": "records",
        "--predictions": "predictions",
        "--metrics": "metrics",
        "--out": "reports",
        "--summary": "metrics/summary.json",
    }
    report.run(parser.parse_args([word for name, value in words.items() for word in (name, str(project / value))]))


def test_page_picture_table_and_summary_are_written(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = project / "reports/notes.txt"
    kept.parent.mkdir()
    kept.write_text("mine", encoding="utf-8")
    with caplog.at_level(logging.INFO):
        run_report(project)
    summary = json.loads((project / "metrics/summary.json").read_text(encoding="utf-8"))
    assert summary["gains"]["novel"]["student_over_teacher"]["value"] == 100
    assert summary["gains"]["base"]["student_over_control"]["value"] == 0
    assert "student over teacher +100.0 AP on novel concepts, +0.0 on base" in caplog.text
    page = (project / "reports/report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "yak" in page
    with Image.open(project / "reports/teacher_vs_student.png") as picture:
        assert picture.width > picture.height
    with (project / "reports/category_ap.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["category"], row["gain"]) for row in rows] == [("yak", "100.0"), ("dog", "0.0")]
    assert kept.read_text(encoding="utf-8") == "mine"


def test_missing_metrics_are_named(project: Path) -> None:
    (project / "metrics/control.json").unlink()
    with pytest.raises(MissingInputError, match=r"control\.json: no such metrics; run: dvc repro"):
        run_report(project)
