"""The report stage and ``glip report`` on benchmarks of two pictures: whole, in part, and of nothing."""

from __future__ import annotations

import csv
import io
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from glip_model.structures import Detections
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
from stages import glip

ROOT = Path(__file__).resolve().parents[2]
CATEGORIES = [Category(id=1, name="dog"), Category(id=2, name="yak", split="novel")]
BOX = (10.0, 10.0, 30.0, 30.0)
KEYS = ["picture 0", "picture 1"]


def head(number: int) -> dict[str, Any]:
    out = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 180, 90 + number)).save(out, "PNG")
    image = ImageRef(bytes=out.getvalue())
    return {"key": KEYS[number], "image": image, "height": 48, "width": 64, "source": "toys"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write records, predictions and metrics where a run has them: only the student finds the yak."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    things = [DetectedObject(category_id=i + 1, xyxy=BOX) for i in range(2)]
    objects = [DetectionRecord(objects=(thing,), **head(i)) for i, thing in enumerate(things)]
    records = Path("data/records/test")
    write_shard(records / "detection" / shard_name(0), objects, DetectionRecord, categories_to_metadata(CATEGORIES))
    phrases = [
        Phrase(text=each.name, char_spans=((0, 3),), boxes=(ScoredBox(xyxy=BOX),), split=each.split)
        for each in CATEGORIES
    ]
    captions = [GroundingRecord(caption=each.text, phrases=(each,), **head(i)) for i, each in enumerate(phrases)]
    write_shard(records / "grounding" / shard_name(0), captions, GroundingRecord)
    for model in ("teacher", "control", "round_1"):
        yak = model == "round_1"
        write_found(model, "detection", [one(0), one(1) if yak else Detections.none()], [1, 2])
        write_found(model, "grounding", [one(0), one(0) if yak else Detections.none()], None)
        measures = {"base": {"AP": 100.0}, "novel": {"AP": 100.0 * yak}}
        write_metrics(model, {"test": {"detection": {"toys": measures}}})
    return tmp_path


def one(label: int) -> Detections:
    return Detections(torch.tensor([BOX]), torch.tensor([0.9]), torch.tensor([label]))


def write_found(model: str, task: str, detections: list[Detections], ids: list[int] | None) -> None:
    place = Path("data/predictions") / model / "test" / task / shard_name(0)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_predictions(place, to_table(KEYS, detections, ids), {})


def write_metrics(name: str, value: Any) -> None:
    path = Path("metrics", *([] if "/" in name else ["models"]), f"{name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        glip.main(["report", *words])
    return int(ended.value.code or 0)


def page(folder: str = "reports") -> str:
    return (Path(folder) / "report.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("project")
def test_page_picture_table_and_summary_are_written(caplog: pytest.LogCaptureFixture) -> None:
    kept = Path("reports/notes.txt")
    kept.parent.mkdir()
    kept.write_text("mine", encoding="utf-8")
    with caplog.at_level(logging.INFO):
        assert run("--summary", "metrics/summary.json") == 0
    gains = json.loads(Path("metrics/summary.json").read_text(encoding="utf-8"))["gains"]
    assert gains["detection"]["toys"]["novel"]["round_1_over_teacher"]["value"] == 100
    assert gains["grounding"]["toys"]["novel"]["round_1_over_control"]["value"] == 100
    assert gains["detection"]["toys"]["base"]["round_1_over_control"]["value"] == 0
    assert "On novel concepts round_1 reaches 100.0 AP: +100.0 over the teacher" in caplog.text
    assert page().startswith("<!doctype html>")
    assert "yak" in page()
    with Image.open("reports/side_by_side.png") as picture:
        assert picture.width > picture.height
    with Path("reports/category_ap.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["source"], row["category"], row["gain"]) for row in rows] == [
        ("toys", "yak", "100.0"),
        ("toys", "dog", "0.0"),
    ]
    assert kept.read_text(encoding="utf-8") == "mine"


@pytest.mark.usefixtures("project")
def test_one_model_alone_by_its_name_or_folder() -> None:
    assert run("--models", "models/teacher", "--out", "alone") == 0
    assert "the teacher reaches 0.0 AP (95 % interval" in page("alone")
    assert not list(Path("alone").glob("*.png"))
    assert json.loads(Path("alone/summary.json").read_text(encoding="utf-8"))["gains"] == {}
    assert run("--models", "control", "teacher") == 0
    assert Path("reports/side_by_side.png").is_file()


@pytest.mark.usefixtures("project")
def test_models_that_are_not_there_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--models", "teacher", "pupil") == 2
    assert "pupil: neither in data/predictions nor in metrics/models; run: dvc repro" in capsys.readouterr().err
    assert run("--predictions", "nowhere", "--metrics", "nowhere") == 2
    assert "teacher, control, one_round, round_1, round_2: neither in nowhere" in capsys.readouterr().err


@pytest.mark.usefixtures("project")
def test_models_that_have_run_are_compared_until_the_others_have() -> None:
    shutil.rmtree("data/predictions/control")
    Path("metrics/models/control.json").unlink()
    assert run() == 0
    assert "over the teacher" in page()
    assert "over control" not in page()


@pytest.mark.usefixtures("project")
def test_what_is_missing_is_noted_in_a_line() -> None:
    Path("metrics/models/control.json").unlink()
    shutil.rmtree("data/predictions/control/test/grounding")
    assert run() == 0
    assert "metrics/models/control.json is not there: no measures of control." in page()
    assert "test/grounding/toys: no predictions of control." in page()
    assert "No records of test/referring." in page()
    assert "Left out: no metrics of pseudo_label" in page()
    assert "No dvc.lock" in page()


@pytest.mark.usefixtures("project")
def test_benchmarks_without_any_truth_are_left_out() -> None:
    blank = [DetectionRecord(objects=(), **head(i)) for i in range(2)]
    silent = [GroundingRecord(caption="nothing", phrases=(), **head(i)) for i in range(2)]
    records = Path("data/records/test")
    write_shard(records / "grounding" / shard_name(0), silent, GroundingRecord)
    assert run() == 0
    assert "test/grounding/toys: left out, no row has a true box." in page()
    assert "On novel concepts round_1 reaches 100.0 AP" in page()
    write_shard(records / "detection" / shard_name(0), blank, DetectionRecord, categories_to_metadata(CATEGORIES))
    assert run() == 0
    assert "test/detection/toys: left out, no row has a true box." in page()
    assert "reaches" not in page()
    assert "Left out: there are no pictures with predictions." in page()


@pytest.mark.usefixtures("project")
def test_metrics_of_an_older_version_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    write_metrics("teacher", {"test": {"detection": {"all": {"AP": 46.1}}}})
    assert run() == 2
    assert "metrics/models/teacher.json: not split → task" in capsys.readouterr().err


@pytest.mark.usefixtures("project")
def test_rows_without_a_picture_are_told_in_a_note() -> None:
    write_metrics("round_1", {"test": {"detection": {"toys": {"all": {"AP": 50.0}, "missing": {"rows": 3}}}}})
    assert run() == 0
    assert "test/detection/toys: 3 rows without a readable picture count as empty." in page()
    assert "missing rows" not in page()


@pytest.mark.usefixtures("project")
def test_urls_name_folders_too(tmp_path: Path) -> None:
    places = [f"--{name}=file://{tmp_path}/data/{name}" for name in ("records", "predictions")]
    Path("metrics/models/round_1.json").unlink()
    assert run(*places) == 0
    assert "On novel concepts round_1 reaches 100.0 AP" in page()


@pytest.mark.usefixtures("project")
def test_captions_alone_have_pictures_and_no_categories() -> None:
    shutil.rmtree("data/records/test/detection")
    assert run() == 0
    assert "On novel concepts round_1 reaches 100.0 R@1" in page()
    assert "Left out: there is no detection benchmark with predictions." in page()
    assert page().count("data:image/jpeg") == 2 * 3
    assert Path("reports/category_ap.csv").read_text(encoding="utf-8").strip().endswith("gain")


@pytest.mark.usefixtures("project")
def test_metrics_alone_make_a_page() -> None:
    shutil.rmtree("data")
    assert run() == 0
    assert "Nothing but metrics: data/records/test" in page()
    assert "100.0" in page()
    assert not list(Path("reports").glob("*.png"))


@pytest.mark.usefixtures("project")
def test_predictions_of_other_rows_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    place = Path("data/predictions/round_1/test/detection") / shard_name(0)
    write_predictions(place, to_table(["another", "picture 1"], [one(0), one(1)], [1, 2]), {})
    assert run() == 2
    assert "'another', which is not in the records" in capsys.readouterr().err


@pytest.mark.usefixtures("project")
def test_the_labels_of_the_run_are_judged() -> None:
    write_metrics("labels/round_1", {"rows": 6000, "rows_labelled": 5185, "boxes": 9718})
    write_metrics("train/teacher", {"steps": 600, "images_per_s": 55.9})
    assert run() == 0
    assert "5,185" in page()
    assert "55.9" in page()
