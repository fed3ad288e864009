"""``curate`` over Ray: rows in order, exactly once, byte for byte; measured once, and goes on from what is finished."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.curation import job
from pipeline.curation.job import Inputs, curate, metrics_table
from pipeline.curation.settings import CurateConfig
from pipeline.errors import ConfigError, MissingInputError, ShardError
from pipeline.settings import load_all
from pipeline.store.provenance import file_sha256
from pipeline.store.records import CaptionRecord, ImageRef
from pipeline.store.shards import list_shards, read_repeat, read_shard, shard_name, write_shard

ROOT = Path(__file__).resolve().parents[3]

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_running")]


def picture(seed: int, is_blank: bool = False) -> bytes:
    patches = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    image = Image.fromarray(patches).resize((64, 48), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    (Image.new("RGB", (64, 48), "red") if is_blank else image).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    """Write three shards of four pairs: one picture comes in all of them, one is blank, one is broken."""
    for number in range(3):
        rows = []
        for row in range(4):
            data = picture(0) if row == 1 else picture(10 * number + row + 1, is_blank=(number, row) == (1, 2))
            rows.append(
                CaptionRecord(
                    key=f"{number}-{row}",
                    image=ImageRef(bytes=b"broken" if (number, row) == (2, 3) else data),
                    height=48,
                    width=64,
                    caption=f"a dog number {number} {row}",
                    source="web",
                    license="CC BY 2.0" if row else None,
                )
            )
        write_shard(tmp_path / "web" / shard_name(number), rows, CaptionRecord, {"glip.repeat": "3"})
    return Inputs(tmp_path / "web", tmp_path / "out", tmp_path / "measures", 10_000)


@pytest.fixture
def tiny_classifier() -> Callable[[Path], Path]:
    """Save a classifier of random weights into a folder."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    def save(folder: Path) -> Path:
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=16)).save_pretrained(folder)
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def config() -> CurateConfig:
    return load_all(ROOT / "params.yaml").curate


def rows_of(folder: Any) -> list[CaptionRecord]:
    return [row for shard in list_shards(folder) for row in read_shard(shard, CaptionRecord)]


REJECTED = {"1-1": "duplicate_exact", "2-1": "duplicate_exact", "1-2": "picture_blank", "2-3": "picture_unreadable"}


def test_what_stays_is_what_it_was_in_order(inputs: Inputs, config: CurateConfig) -> None:
    before = rows_of(inputs.records)
    metrics = curate(config, inputs)
    assert rows_of(inputs.out) == [row for row in before if row.key not in REJECTED]
    assert [shard.name for shard in list_shards(inputs.out)] == [shard.name for shard in list_shards(inputs.records)]
    assert {read_repeat(shard) for shard in list_shards(inputs.out)} == {3}
    verdicts = [row for p in list_shards(inputs.measures / "verdicts") for row in pq.read_table(str(p)).to_pylist()]
    assert [row["key"] for row in verdicts] == [row.key for row in before]
    assert {row["key"]: row["reject_reason"] for row in verdicts if row["reject_reason"]} == REJECTED
    assert (metrics["rows"], metrics["kept"]) == (12, 8)
    assert metrics["rejects"] == {"picture_unreadable": 1, "picture_blank": 1, "duplicate_exact": 2}
    table = metrics_table(metrics)
    assert table[:2] == [("outcome", "pairs", "share"), ("kept", 8, 8 / 12)]
    assert sum(row[1] for row in table[1:]) == 12


def test_thresholds_change_without_another_look(
    inputs: Inputs, config: CurateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    curate(config, inputs)
    first = {shard.name: file_sha256(shard) for shard in list_shards(inputs.out)}
    looked = list_shards(inputs.measures / "looks")
    times = [shard.stat().st_mtime_ns for shard in looked]
    assert curate(replace(config, min_contrast=0.0), inputs)["kept"] == 9
    assert curate(config, inputs)["kept"] == 8
    assert [shard.stat().st_mtime_ns for shard in looked] == times
    assert {shard.name: file_sha256(shard) for shard in list_shards(inputs.out)} == first
    looked[0].write_bytes(looked[0].read_bytes()[:50])  # a broken measure is made anew, as is a shard that is gone
    list_shards(inputs.out)[1].unlink()
    curate(config, inputs)
    assert {shard.name: file_sha256(shard) for shard in list_shards(inputs.out)} == first


def test_mistakes_are_found_before_the_work_and_a_broken_shard_is_named(inputs: Inputs, config: CurateConfig) -> None:
    with pytest.raises(ConfigError, match="let it write to another place"):
        curate(config, replace(inputs, out=inputs.records))
    likeness = job.ScoreConfig(model=str(inputs.records / "nowhere"))
    with pytest.raises(MissingInputError, match=r"curate\.scores\.likeness: "):
        curate(replace(config, scores={"likeness": likeness}), inputs)
    assert not inputs.measures.exists()
    broken = list_shards(inputs.records)[1]
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(ShardError, match=str(broken)):
        curate(config, inputs)


def test_models_score_every_pair_once(
    inputs: Inputs, config: CurateConfig, tmp_path: Path, tiny_classifier: Callable[[Path], Path]
) -> None:
    model = str(tiny_classifier(tmp_path / "model"))
    score = job.ScoreConfig(model=model, kind="label", label="LABEL_1")
    metrics = curate(replace(config, scores={"odd": score}, num_actors=1), inputs)
    assert metrics["kept"] == 8
    places = list_shards(inputs.measures / "scores/odd")
    scores = [value for place in places for value in pq.read_table(str(place))["score"].to_pylist()]
    assert len(scores) == 12
    assert [value is None for value in scores] == [False] * 11 + [True]
    middle = metrics["scores"]["odd"]["0.5"]
    again = curate(replace(config, scores={"odd": replace(score, min=middle)}, duplicates="off"), inputs)
    assert again["rejects"]["score_odd"] == sum(
        value is not None and np.float32(value) < middle
        for n, value in enumerate(scores)
        if n != 6  # blank before
    )
