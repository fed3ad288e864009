"""``glip label``: from a folder and a list of names to labels that everything else reads."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from glip_model.config import GLIPConfig
from glip_model.glip import GLIP
from pipeline.store.records import DetectionRecord, GroundingRecord
from pipeline.store.shards import list_shards, read_categories, read_shard
from stages.glip import main


@pytest.fixture(scope="module")
def model(tiny_glip: GLIPConfig, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "teacher"
    torch.manual_seed(3)
    GLIP(replace(tiny_glip, score_threshold=0.0)).save_pretrained(folder, tokenizer)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five noisy pictures with captions beside them, and a broken one."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(5):
        noise = np.random.default_rng(i).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        picture = Image.fromarray(noise)
        ImageDraw.Draw(picture).rectangle((10, 10, 30, 30), fill="red")
        picture.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a red box on a grey table")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def glip(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words)])
    return int(ended.value.code or 0)


def times(folder: Path) -> list[int]:
    return [path.stat().st_mtime_ns for path in list_shards(folder)]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_running")
@pytest.mark.filterwarnings("ignore")
def test_a_folder_and_names_become_labels_that_everything_reads(
    photos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "labels", tmp_path / "labels.html"
    words = ["label", photos, "--teacher", model, "--out", out, "--min-score", 0, "--actors", 1]
    assert glip(*words, "--names", "red box, table, table", "--html", page) == 0
    (shard,) = list_shards(out)
    records = read_shard(shard, DetectionRecord)
    assert [category.name for category in read_categories(shard)] == ["red box", "table"]
    assert [record.key.partition("@")[0] for record in records] == [str(photos / f"{i}.png") for i in range(5)]
    assert all(record.image.bytes == (photos / f"{i}.png").read_bytes() for i, record in enumerate(records))
    assert {item.category_id for record in records for item in record.objects} == {1, 2}
    assert all(0 <= item.score < 1 for record in records for item in record.objects)
    result = json.loads((out / "_label.json").read_text(encoding="utf-8"))
    assert result["pictures"]["rejects"] == {"image_unreadable": 1}
    assert result["labels"]["phrases"] == 10
    assert "red box" in page.read_text(encoding="utf-8")

    before = times(out)
    shutil.rmtree(out / "_work")
    assert glip(*words, "--names", "red box, table") == 0
    assert times(out) == before

    capsys.readouterr()
    assert glip("inspect", out, "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["rows"] == 5
    assert set(figures["most_frequent_phrases"]) == {"red box", "table"}
    assert not figures["defects"]
    tuned = tmp_path / "mine"
    assert glip("finetune", "--data", out, "--from", model, "--out", tuned, "--dry-run", "--val-share", 0.4) == 0


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_running")
@pytest.mark.filterwarnings("ignore")
def test_captions_are_labelled_as_web_pairs_are(photos: Path, model: Path, tmp_path: Path) -> None:
    words = ["label", f"{photos}/*.png", "--captions", "--reference", "--teacher", model, "--min-score", 0]
    assert glip(*words, "--out", tmp_path / "out", "--actors", 1) == 0
    (shard,) = list_shards(tmp_path / "out")
    records = read_shard(shard, GroundingRecord)
    assert [record.image.path for record in records] == [str(photos / f"{i}.png") for i in range(5)]
    assert {phrase.text for record in records for phrase in record.phrases} == {"red box", "grey table"}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_running")
@pytest.mark.filterwarnings("ignore")
def test_labels_are_judged_by_annotated_pictures(
    photos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 60} for i in range(5)]
    boxes = [{"id": i, "image_id": i, "category_id": 3, "bbox": [10, 10, 21, 21], "area": 441} for i in range(5)]
    values = {"images": images, "annotations": boxes, "categories": [{"id": 3, "name": "red box"}]}
    (tmp_path / "data").mkdir()
    for i in range(5):
        shutil.copy(photos / f"{i}.png", tmp_path / "data")
    (tmp_path / "data/_annotations.coco.json").write_text(json.dumps(values), encoding="utf-8")
    words = ["label", "--judge", tmp_path / "data", "--teacher", model, "--actors", 1]
    assert glip(*words, "--out", tmp_path / "out", "--min-score", 0) == 0
    heading, red, whole = capsys.readouterr().out.splitlines()
    assert heading.split() == ["boxes", "threshold", "precision", "recall", "F1"]
    assert red.split()[:3] == ["red", "box", "5"]
    assert whole.split()[:2] == ["all", "5"]
    judged = json.loads((tmp_path / "out/judged.json").read_text(encoding="utf-8"))
    assert judged["classes"]["red box"]["boxes"] == 5


def test_mistakes_are_told(photos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--teacher", model, "--out", tmp_path / "out"]
    assert glip("label", photos, "--names", " ", *words) == 2
    assert "no names" in capsys.readouterr().err
    assert glip("label", photos, "--names", "none.txt", *words) == 2
    assert "no file of names" in capsys.readouterr().err
    assert glip("label", photos, *words) == 2
    assert "--names" in capsys.readouterr().err
    assert glip("label", "--judge", photos, "--captions", *words) == 2
    assert "--judge FOLDER" in capsys.readouterr().err
    (tmp_path / "t.json").write_text('{"thresholds": {"cow": 0.5}}', encoding="utf-8")
    assert glip("label", photos, "--names", "cat", "--thresholds", tmp_path / "t.json", *words) == 2
    assert "none of the names" in capsys.readouterr().err
    assert not os.path.exists(tmp_path / "out")
