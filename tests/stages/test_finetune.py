"""``glip finetune`` on a handful of pictures with a tiny model: from the folder to a model that predicts."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from glip_model.config import GLIPConfig
from glip_model.glip import GLIP
from glip_model.predictor import GLIPPredictor
from pipeline.settings import load
from pipeline.store.folders import local_folder
from pipeline.store.records import Category, DetectedObject, DetectionRecord, ImageRef
from pipeline.store.shards import categories_to_metadata, shard_name, write_shard
from pipeline.store.storage import read_text, to_place
from pipeline.training.finetune import AUGMENT, RUN, Choices, finetune_config, steps_for, with_length
from pipeline.training.settings import TrainingSettings
from stages.glip import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def model(tiny_glip: GLIPConfig, tokenizer: Any, tmp_path: Path) -> Path:
    config = replace(tiny_glip, score_threshold=0.0)
    torch.manual_seed(3)
    GLIP(config).save_pretrained(tmp_path / "start", tokenizer)
    return tmp_path / "start"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten noisy pictures with a red disc or a blue square, as one COCO file."""
    folder = tmp_path / "data"
    folder.mkdir()
    images, annotations = [], []
    for i in range(10):
        rng = np.random.default_rng(i)
        picture = Image.fromarray(rng.integers(0, 256, (64, 80, 3), dtype=np.uint8))
        x, y = int(rng.integers(5, 50)), int(rng.integers(5, 35))
        draw = ImageDraw.Draw(picture)
        (draw.ellipse if i % 2 else draw.rectangle)((x, y, x + 20, y + 20), fill="red" if i % 2 else "blue")
        picture.save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 80})
        annotations.append({"id": i, "image_id": i, "category_id": i % 2, "bbox": [x, y, 20, 20], "area": 400})
    categories = [{"id": 0, "name": "blue square"}, {"id": 1, "name": "red disc"}]
    values = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "_annotations.coco.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """Six pictures of two other names and of one that the data has too."""
    folder = tmp_path / "others"
    folder.mkdir()
    images, annotations = [], []
    for i in range(6):
        picture = Image.fromarray(np.random.default_rng(100 + i).integers(0, 256, (64, 80, 3), dtype=np.uint8))
        ImageDraw.Draw(picture).rectangle((10, 10, 40, 40), fill="green")
        picture.save(folder / f"other {i}.png")
        images.append({"id": i, "file_name": f"other {i}.png", "height": 64, "width": 80})
        annotations.append({"id": i, "image_id": i, "category_id": i % 3, "bbox": [10, 10, 30, 30], "area": 900})
    categories = [{"id": i, "name": name} for i, name in enumerate(("door", "lamp", "Red disc"))]
    values = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "_annotations.coco.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def glip(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words)])
    return int(ended.value.code or 0)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_running")
@pytest.mark.filterwarnings("ignore")
def test_own_pictures_make_a_model_that_predicts(
    data: Path, model: Path, others: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine"
    words = ["--data", data, "--from", model, "--out", out, "--steps", 3, "--batch-size", 4, "--tuning", "prompt"]
    words += ["--keep", others, "--may-lose", 100]
    assert glip("finetune", *words, "--workers", 0) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "8 pictures, 3 steps; judged on 2 others"
    assert [line.split()[:2] for line in lines[1:3]] == [["before", "AP"], ["after", "AP"]]
    result = json.loads((out / "finetune.json").read_text(encoding="utf-8"))
    assert result["pictures"] == {"train": 8, "validation": 2}
    assert lines[3].startswith("own AP ")
    assert ", other names " in lines[3]
    assert {"AP", "other"} <= set(result["before"]) & set(result["after"])
    assert sorted(trial["share"] for trial in result["trials"]) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    card = (out / "card.md").read_text(encoding="utf-8")
    assert "blue square, red disc" in card
    assert "2 pictures of 2 names" in card  # the name that both have is left out
    assert (out / "mistakes/confusion.png").is_file()
    trained = (out / "work/tuned/trained.json").stat().st_mtime_ns
    assert all(0 <= result[when]["AP"] <= 100 for when in ("before", "after"))
    picture = Image.open(data / "1.png")
    (found,) = GLIPPredictor.from_pretrained(out).predict(picture, ["red disc", "blue square"], min_score=0.0)
    assert found.phrases == ("red disc", "blue square")
    assert GLIP.from_pretrained(out).text_offset is not None
    assert glip("finetune", *words, "--workers", 0) == 0  # run again, what was trained stays
    assert (out / "work/tuned/trained.json").stat().st_mtime_ns == trained


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_running")
@pytest.mark.filterwarnings("ignore")
def test_other_data_and_the_starting_model_help_to_keep(
    data: Path, model: Path, others: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Replay, names, distillation, another folder to judge by, new names, and a model that stands in for the truth."""
    shards = tmp_path / "replay"
    path = data / "_annotations.coco.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["categories"][0]["name"] = "cls_0"
    path.write_text(json.dumps(values), encoding="utf-8")
    categories = [Category(id=1, name="door"), Category(id=2, name="lamp")]
    records = [
        DetectionRecord(
            key=f"other {i}",
            image=ImageRef(bytes=(others / f"other {i}.png").read_bytes()),
            height=64,
            width=80,
            source="other",
            objects=(DetectedObject(category_id=1 + i % 2, xyxy=(10, 10, 40, 40)),),
        )
        for i in range(4)
    ]
    write_shard(shards / "detection" / shard_name(0), records, DetectionRecord, categories_to_metadata(categories))
    out = tmp_path / "mine"
    words = ["--data", data, "--val", data, "--from", model, "--out", out, "--steps", 2, "--batch-size", 4]
    words += ["--replay", shards, "--replay-share", 0.5, "--distil", 1, "--keep", model, "--workers", 0]
    params = tmp_path / "low.yaml"
    params.write_text(f"extends: {ROOT / 'params.yaml'}\npseudo_label: {{min_score: 0.0}}\n", encoding="utf-8")
    assert glip("finetune", *words, "--rename", "cls_0=blue square", "--augment", "--params", params) == 0
    result = json.loads((out / "finetune.json").read_text(encoding="utf-8"))
    assert result["pictures"] == {"train": 10, "validation": 10}
    assert result["losses"]["loss_distillation"] >= 0
    assert result["settings"]["other_names"] == 20
    card = (out / "card.md").read_text(encoding="utf-8")
    assert "blue square, red disc" in card
    assert "stands in for the truth" in card
    assert "10 of 10 pictures look like ones of the same data set" in caplog.text


@pytest.mark.ray
@pytest.mark.slow
def test_pictures_and_models_may_rest_in_a_store(data: Path, model: Path, tmp_path: Path, s3: Any) -> None:
    for folder in (data, model):
        s3.put(str(folder), f"raw/{folder.name}", recursive=True)
    words = ["--data", "s3://raw/data", "--from", "s3://raw/start", "--out", "s3://raw/mine", "--tuning", "prompt"]
    words += ["--keep", "none"]
    done = subprocess.run(
        [sys.executable, "-m", "stages.glip", "finetune", *words, "--steps", "3", "--batch-size", "4"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("8 pictures, 3 steps; judged on 2 others")
    place = to_place("s3://raw/mine")
    assert json.loads(read_text(place / "finetune.json") or "")["pictures"] == {"train": 8, "validation": 2}
    with local_folder(place) as folder:
        assert GLIP.from_pretrained(folder).text_offset is not None


def test_mistakes_are_told(data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert glip("finetune", "--data", data, "--from", tmp_path / "none", "--out", tmp_path / "out") == 2
    assert "no such folder" in capsys.readouterr().err
    assert glip("finetune", "--data", data, "--from", data, "--out", tmp_path / "out") == 2
    assert "glip convert" in capsys.readouterr().err
    assert glip("finetune", "--data", data, "--from", model, "--out", model) == 2
    assert "name another folder" in capsys.readouterr().err
    assert glip("finetune", "--data", model, "--from", model, "--out", tmp_path / "out") == 2
    assert "no annotations found" in capsys.readouterr().err
    words = ["--data", data, "--from", model, "--out", tmp_path / "out"]
    wrong = [("--steps", 0), ("--learning-rate", 0), ("--learning-rate", "nan"), ("--replay-share", 1.0)]
    for option, value in (*wrong, ("--may-lose", -1.0), ("--distil", "inf"), ("--other-names", -1)):
        assert glip("finetune", *words, option, value) == 2
        assert f"{option} is {value}" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.usefixtures("ray_running")
def test_what_is_found_is_told_without_training(
    data: Path,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    path = data / "_annotations.coco.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    for row in values["annotations"]:
        row["image_id"] = str(row["image_id"])
    path.write_text(json.dumps(values), encoding="utf-8-sig")
    (data / "0.png").rename(data / "unlisted.PNG")
    words = ["--data", data, "--from", model, "--out", tmp_path / "out", "--dry-run"]
    assert glip("finetune", *words) == 0
    assert "finetune: reads _annotations.coco.json; pictures in data" in caplog.text
    assert "image_missing: 1, for example 0.png" in caplog.text
    assert f"1 of 10 pictures in these folders are not used, for example {data}/unlisted.PNG" in caplog.text
    assert "would learn from 7 pictures, judged on 2 others" in caplog.text
    assert not (tmp_path / "out/work/predictions").exists()
    values["categories"][0]["name"] = "(unknown)"
    path.write_text(json.dumps(values), encoding="utf-8")
    assert glip("finetune", *words) == 2
    assert "no model can be asked for '(unknown)'" in capsys.readouterr().err
    assert glip("finetune", *words, "--val-share", 1.5) == 2
    assert "expected a share between 0 and 1" in capsys.readouterr().err


def test_settings_follow_the_model_and_the_number_of_pictures() -> None:
    base = load(ROOT / "params.yaml", TrainingSettings)
    config = finetune_config(base, GLIPConfig(), Choices())
    assert config.train.samples.short_sides == (480, 560, 640, 720, 800)
    assert config.train.samples.max_prompt_tokens == 256
    assert config.train.optim.text_learning_rate == pytest.approx(1e-5)
    assert with_length(config, 100).train.runs[RUN].steps == 300
    assert with_length(config, 100).train.evaluate_every == 15
    assert config.train.optim.schedule == "plateau"
    assert config.train.samples.augment == base.train.samples.augment
    plain = finetune_config(base, GLIPConfig(), Choices(stops_early=False, is_augmented=True, replay_share=0.25))
    assert (plain.train.optim.schedule, with_length(plain, 100).train.evaluate_every) == ("cosine", 0)
    assert plain.train.samples.augment == AUGMENT
    assert plain.train.runs[RUN].mixture == {"detection": 0.75, "replay": 0.25}
    assert [steps_for(rows, 8) for rows in (10, 100, 100_000)] == [200, 300, 5000]
    chosen = finetune_config(base, GLIPConfig(), Choices("prompt", steps=7))
    assert with_length(chosen, 100).train.runs[RUN].steps == 7
    assert chosen.train.optim.learning_rate == 0.05
