"""The way of pipeline/training/recipes/own in miniature: boxes and pairs become a detector of one's own classes."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageDraw

from glip_model.config import GLIPConfig
from glip_model.glip import GLIP
from pipeline.settings import load_all
from pipeline.store.records import GroundingRecord
from pipeline.store.shards import list_shards, read_shard
from stages.glip import main

RECIPE = Path(__file__).resolve().parents[2] / "pipeline/training/recipes/own/classes.yaml"
CAPTIONS = ["an old yellow forklift beside two pallets", "a toy forklift on a table", "blue sky over the sea"]


def glip(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words)])
    return int(ended.value.code or 0)


def picture(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    ImageDraw.Draw(image).rectangle((10, 10, 50, 50), fill="yellow")
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve pictures with boxes, as three COCO files, and nine pairs in a tar."""
    folder = tmp_path / "data"
    (folder / "mine/pictures").mkdir(parents=True)
    categories = [{"id": 1, "name": "forklift"}, {"id": 2, "name": "pallet"}]
    for part, numbers in {"train": range(8), "val": range(8, 10), "test": range(10, 12)}.items():
        images, boxes = [], []
        for i in numbers:
            (folder / f"mine/pictures/{i}.png").write_bytes(picture(i))
            images.append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 80})
            boxes.append({"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [10, 10, 41, 41], "area": 1681})
        values = {"images": images, "annotations": boxes, "categories": categories}
        (folder / f"mine/{part}.json").write_text(json.dumps(values), encoding="utf-8")
    (folder / "pairs").mkdir()
    with tarfile.open(folder / "pairs/00000.tar", "w") as tar:
        for i in range(9):
            for suffix, content in (("png", picture(100 + i)), ("txt", CAPTIONS[i % 3].encode())):
                member = tarfile.TarInfo(f"{i:05d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return folder


@pytest.fixture
def params(data: Path, tmp_path: Path) -> Path:
    """Say what differs from the recipe: where the data are, and that all is tiny."""
    small = {
        "extends": str(RECIPE),
        "image_roots": [str(data)],
        "prepare": {"data_root": str(data)},
        "pseudo_label": {"min_score": 0.0, "num_actors": 1, "batch_size": 4},
        "train": {
            "optim": {"batch_size": 2, "warmup_steps": 0, "bf16": False},
            "samples": {
                "short_sides": [64],
                "long_side": 96,
                "max_prompt_tokens": 64,
                "max_negatives": 2,
                "caption_negatives": 0,
                "shuffle_window": 0,
                "shuffle_lanes": 1,
            },
            "runs": {"student": {"init": "teacher", "steps": 2, "mixture": {"detection": 0.33, "pseudo": 0.67}}},
            "num_workers": 0,
            "log_every": 1,
        },
        "evaluate": {"num_actors": 1, "batch_size": 2, "precision": "float32"},
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small), encoding="utf-8")
    return path


@pytest.fixture
def model(tiny_glip: GLIPConfig, tokenizer: Any, tmp_path: Path) -> Path:
    torch.manual_seed(3)
    GLIP(replace(tiny_glip, score_threshold=0.0)).save_pretrained(tmp_path / "glip", tokenizer)
    return tmp_path / "glip"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_running")
@pytest.mark.filterwarnings("ignore")
def test_boxes_and_pairs_become_a_detector_of_ones_own_classes(
    data: Path, params: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, mine, student = tmp_path / "own", tmp_path / "mine", tmp_path / "student"
    words = ["finetune", "--data", data / "mine", "--from", model, "--out", mine, "--steps", 2, "--batch-size", 2]
    assert glip(*words, "--workers", 0) == 0
    assert glip("prepare", "--params", params, "--out", own) == 0
    assert glip("phrases", "--params", params, "--records", own / "web", "--out", own / "phrases") == 0
    calibrating = ["calibrate", "--params", params, "--records", own / "dev", "--teacher", mine]
    assert glip(*calibrating, "--out", tmp_path / "curves.csv", "--metrics", tmp_path / "calibration.json") == 0
    assert json.loads((tmp_path / "calibration.json").read_text(encoding="utf-8"))["rows"] == 2
    labelling = ["pseudo_label", "--params", params, "--records", own / "web", "--phrases", own / "phrases"]
    assert glip(*labelling, "--teacher", mine, "--out", own / "labels") == 0

    rows = [row for shard in list_shards(own / "labels") for row in read_shard(shard, GroundingRecord)]
    reasons = {row.caption: row.reject_reason for row in rows}
    assert reasons == {CAPTIONS[0]: None, CAPTIONS[1]: "not_in_names", CAPTIONS[2]: "not_in_names"}
    found = {phrase.category for row in rows for phrase in row.phrases if phrase.boxes}
    assert found <= {"forklift", "pallet"}
    assert found
    capsys.readouterr()
    exporting = ["inspect", own / "labels", "--image-root", data, "--export", "coco", "--names", "forklift"]
    assert glip(*exporting, "--out", tmp_path / "coco") == 0
    exported = json.loads((tmp_path / "coco/annotations.json").read_text(encoding="utf-8"))
    assert [category["name"] for category in exported["categories"]] == ["forklift"]

    training = ["train", "student", "--params", params, "--human", own / "human", "--pseudo-labels", own / "labels"]
    assert glip(*training, "--teacher", mine, "--out", student) == 0
    for name, folder in {"mine": mine, "student": student}.items():
        judging = ["evaluate", "--params", params, "--model", folder, "--records", own, "--out", own / "found" / name]
        assert glip(*judging, "--metrics", tmp_path / f"{name}.json") == 0
        judged = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
        assert {"dev", "test"} <= set(judged)


def test_the_recipe_is_whole() -> None:
    found = load_all(RECIPE)
    assert found.pseudo_label.other_phrases == "drop"
    assert found.pseudo_label.names["toy forklift"] is None
    assert set(found.train.runs) == {"student"}
