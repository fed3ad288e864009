"""Tiny pictures, records and a model of a few ten thousand weights, small enough to train in a test."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from glip_model.config import GLIPConfig
from glip_model.glip import GLIP
from pipeline.settings import load, load_all
from pipeline.store.records import (
    Box,
    Category,
    DetectedObject,
    DetectionRecord,
    GroundingRecord,
    ImageRef,
    Phrase,
    ScoredBox,
)
from pipeline.store.shards import categories_to_metadata, shard_name, write_shard
from pipeline.training.settings import ModelConfig, OptimConfig, RunConfig, SamplesConfig, TrainConfig, TrainingSettings

ROOT = Path(__file__).resolve().parents[3]
SIDE = 64
COLOURS = {"apple": "red", "pear": "green", "plum": "purple", "lemon": "yellow", "sea": "blue", "coal": "black"}
CATEGORIES = tuple(Category(id=10 * i, name=name) for i, name in enumerate(COLOURS, 1))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one thread: sums then have one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def samples_config() -> SamplesConfig:
    return replace(
        load_all(ROOT / "params.yaml").train.samples,
        short_sides=(SIDE,),
        long_side=2 * SIDE,
        flip=0.5,
        max_prompt_tokens=40,
        detection_prompts="sampled",
        max_negatives=4,
        full_negatives=0.5,
        caption_negatives=2,
        caption_negatives_none=0.4,
        phrase_prompts=0.5,
        pseudo_phrase_prompts=None,
        ignore_unlocated=True,
    )


@pytest.fixture(scope="session")
def optim_config() -> OptimConfig:
    return replace(
        load_all(ROOT / "params.yaml").train.optim,
        batch_size=4,
        learning_rate=2e-3,
        text_learning_rate=1e-4,
        backbone_learning_rate=1e-3,
        weight_decay=0.01,
        warmup_steps=2,
        decay_at=(0.67, 0.89),
        schedule="cosine",
        max_grad_norm=1.0,
        ema_decay=0.0,
        bf16=False,
    )


@pytest.fixture(scope="session")
def run_config() -> RunConfig:
    return RunConfig(init="pretrained", steps=6, mixture={"detection": 0.5, "grounding": 0.5})


@pytest.fixture(scope="session")
def train_config(optim_config: OptimConfig, samples_config: SamplesConfig, run_config: RunConfig) -> TrainConfig:
    return replace(
        load_all(ROOT / "params.yaml").train,
        optim=optim_config,
        samples=samples_config,
        runs={"tiny": run_config},
        num_workers=1,
        checkpoint_every=2,
        log_every=1,
    )


@pytest.fixture(scope="session")
def tiny_model_config(tiny_glip: GLIPConfig) -> Callable[..., GLIPConfig]:
    def make(frozen_text: bool = True, dropout: float = 0.0) -> GLIPConfig:
        encoding = "segments" if frozen_text else "joint"
        text = replace(tiny_glip.text, dropout=dropout, frozen=frozen_text, encoding=encoding)
        return replace(tiny_glip, text=text, fusion=replace(tiny_glip.fusion, dropout=dropout, text_dropout=dropout))

    return make


@pytest.fixture
def make_model(tiny_model_config: Callable[..., GLIPConfig]) -> Callable[..., GLIP]:
    """Build the tiny model; the same weights every time."""

    def make(**settings: Any) -> GLIP:
        torch.manual_seed(7)
        return GLIP(tiny_model_config(**settings))

    return make


def draw(colours: Sequence[str], seed: int) -> tuple[bytes, list[Box]]:
    """Paint one disc of each colour on grey, in random places."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (SIDE, SIDE), "grey")
    boxes: list[Box] = []
    for i, colour in enumerate(colours):
        left = 2.0 + 20 * i + int(rng.integers(3))
        top = float(rng.integers(2, 42))
        boxes.append((left, top, left + 18, top + 18))
        ImageDraw.Draw(image).ellipse(boxes[-1], fill=colour)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue(), boxes


def detection_record(key: str, names: Sequence[str], seed: int = 0) -> DetectionRecord:
    ids = {category.name: category.id for category in CATEGORIES}
    data, boxes = draw([COLOURS[name] for name in names], seed)
    objects = tuple(DetectedObject(category_id=ids[name], xyxy=box) for name, box in zip(names, boxes, strict=True))
    return DetectionRecord(key=key, image=ImageRef(bytes=data), height=SIDE, width=SIDE, source="test", objects=objects)


def grounding_record(
    key: str, names: Sequence[str], seed: int = 0, template: str = "a picture of {}", unlocated: Sequence[str] = ()
) -> GroundingRecord:
    """Caption "a picture of an apple and a pear"; phrases of ``unlocated`` names have no boxes."""
    data, boxes = draw([COLOURS[name] for name in names], seed)
    caption = template.format(" and ".join(f"one {name}" for name in [*names, *unlocated]))
    phrases = []
    for i, name in enumerate([*names, *unlocated]):
        start = caption.index(f"one {name}")
        span = (start, start + len(f"one {name}"))
        found = (ScoredBox(xyxy=boxes[i]),) if i < len(names) else ()
        phrases.append(
            Phrase(text=f"one {name}", char_spans=(span,), boxes=found, reject_reason=None if found else "no_boxes")
        )
    return GroundingRecord(
        key=key,
        image=ImageRef(bytes=data),
        height=SIDE,
        width=SIDE,
        caption=caption,
        source="test",
        phrases=tuple(phrases),
    )


def write_detection(
    folder: Path, records: Sequence[DetectionRecord], categories: Sequence[Category] = CATEGORIES, number: int = 0
) -> Path:
    write_shard(folder / shard_name(number), records, DetectionRecord, categories_to_metadata(categories))
    return folder


def write_grounding(
    folder: Path, records: Sequence[GroundingRecord], number: int = 0, metadata: dict[str, str] | None = None
) -> Path:
    write_shard(folder / shard_name(number), records, GroundingRecord, metadata)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_model_config: Callable[..., GLIPConfig]) -> SimpleNamespace:
    """Give the tests the functions and the vocabulary above; test files cannot import one another."""
    return SimpleNamespace(
        CATEGORIES=CATEGORIES,
        COLOURS=COLOURS,
        SIDE=SIDE,
        detection_record=detection_record,
        grounding_record=grounding_record,
        model_config=tiny_model_config,
        write_detection=write_detection,
        write_grounding=write_grounding,
    )


@pytest.fixture
def human(tmp_path: Path) -> Path:
    """Write eight detection and eight grounding rows."""
    names = list(COLOURS)
    pairs = [(names[i % 6], names[(i + 1 + i // 6) % 6]) for i in range(8)]
    folder = tmp_path / "human"
    write_detection(folder / "detection", [detection_record(f"d{i}", pair, i) for i, pair in enumerate(pairs)])
    write_grounding(folder / "grounding", [grounding_record(f"g{i}", pair, i + 50) for i, pair in enumerate(pairs)])
    return folder


@pytest.fixture(scope="session")
def config(tiny_glip: GLIPConfig) -> TrainingSettings:
    """The shipped settings with a model too small to need pretrained weights."""
    model = ModelConfig(preset="glip_t", overrides=asdict(tiny_glip), backbone_weights=None, text_weights=None)
    return replace(load(ROOT / "params.yaml", TrainingSettings), model=model)
