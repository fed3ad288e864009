"""What varies few pictures: boxes stay on their objects, whole, and nothing happens where it is switched off."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from glip_model.config import BackboneConfig, GLIPConfig, TextConfig
from pipeline.errors import ConfigError
from pipeline.store.records import ImageRef
from pipeline.training.augment import prepare_sample
from pipeline.training.batches import BatchMaker, Worker
from pipeline.training.prompts import DetectionPrompter, Sample
from pipeline.training.rows import Rows, make_sources
from pipeline.training.settings import AugmentConfig, RunConfig, SamplesConfig, TrainConfig
from pipeline.training.transforms import tile, vary

OFF = AugmentConfig(colour=0.0, crop=0.0, shrink=1.0, mosaic=0.0)
BLOCKS = ((10, 4, 30, 24), (50, 10, 70, 36))


def picture(width: int = 80, height: int = 40) -> Image.Image:
    """Red blocks on blue."""
    image = Image.new("RGB", (width, height), (0, 0, 255))
    for block in BLOCKS:
        image.paste((255, 0, 0), block)
    return image


def corners(image: Image.Image) -> list[tuple[int, int, int, int]]:
    """Find the two red blocks, the left one first, whatever is around them."""
    red = np.asarray(image).astype(int)
    is_red = (red[..., 0] > 150) & (red[..., 2] < 100) & (red[..., 1] < 100)
    columns = np.flatnonzero(is_red.any(0))
    middle = columns[np.argmax(np.diff(columns))] + 1
    found = []
    for left, part in ((0, is_red[:, :middle]), (middle, is_red[:, middle:])):
        ys, xs = np.nonzero(part)
        found.append((left + xs.min(), ys.min(), left + xs.max() + 1, ys.max() + 1))
    return [tuple(int(side) for side in box) for box in found]  # type: ignore[misc]


def boxes() -> torch.Tensor:
    return torch.tensor(BLOCKS, dtype=torch.float32)


def test_off_is_off() -> None:
    rng = np.random.default_rng(0)
    state, image = rng.bit_generator.state, picture()
    found, moved = vary(image, boxes(), OFF, rng)
    assert found is image
    assert torch.equal(moved, boxes())
    assert rng.bit_generator.state == state  # nothing is drawn: runs without it are what they were


@given(st.integers(0, 10_000), st.booleans(), st.booleans())
def test_boxes_stay_on_their_objects(seed: int, crops: bool, shrinks: bool) -> None:
    config = replace(OFF, crop=float(crops), shrink=3.0 if shrinks else 1.0)
    image, moved = vary(picture(), boxes(), config, np.random.default_rng(seed))
    assert [tuple(box) for box in moved.int().tolist()] == corners(image)
    assert (moved >= 0).all()
    assert (moved[:, 2::2] <= image.width).all()
    assert (moved[:, 3::2] <= image.height).all()


def test_cuts_and_frames_differ_and_do_something() -> None:
    for config, smaller in ((replace(OFF, crop=1.0), True), (replace(OFF, shrink=3.0), False)):
        sizes = {vary(picture(), boxes(), config, np.random.default_rng(seed))[0].size for seed in range(20)}
        assert len(sizes) > 10
        assert all((width <= 80 and height <= 40) is smaller or (width, height) == (80, 40) for width, height in sizes)


def test_pictures_without_boxes_are_cut_too() -> None:
    config = replace(OFF, crop=1.0)
    for seed in range(20):
        image, moved = vary(picture(), torch.zeros(0, 4), config, np.random.default_rng(seed))
        assert moved.shape == (0, 4)
        assert image.width >= 0.3 * 80 - 1
        assert image.height >= 0.3 * 40 - 1


def test_colours_change_and_places_do_not() -> None:
    image, moved = vary(picture(), boxes(), replace(OFF, colour=0.3), np.random.default_rng(1))
    assert torch.equal(moved, boxes())
    assert image.size == (80, 40)
    assert np.asarray(image).tolist() != np.asarray(picture()).tolist()
    again, _ = vary(picture(), boxes(), replace(OFF, colour=0.3), np.random.default_rng(1))
    assert np.array_equal(np.asarray(image), np.asarray(again))


def test_four_pictures_are_shown_as_one() -> None:
    images = [picture(), picture(160, 80), picture(80, 80), picture()]
    image, moved = tile(images, [boxes(), boxes(), boxes()[:1], torch.zeros(0, 4)])
    assert image.size == (80, 40)
    assert moved.shape == (5, 4)
    assert moved[0].tolist() == [5, 2, 15, 12]
    assert moved[2].tolist() == [40 + 2.5, 1, 40 + 7.5, 6]
    pixels = np.asarray(image)
    for left, top, right, bottom in moved[:4].tolist():
        assert pixels[int((top + bottom) / 2), int((left + right) / 2)].tolist() == [255, 0, 0]


def test_a_mosaic_has_the_boxes_of_all_its_rows(
    tmp_path: Path, tiny: SimpleNamespace, samples_config: SamplesConfig, tokenizer: Any
) -> None:
    records = [
        tiny.detection_record(str(i), names) for i, names in enumerate((["apple"], ["sea", "coal"], [], ["plum"]))
    ]
    rows = Rows(
        tiny.write_detection(tmp_path, records),
        DetectionPrompter(replace(samples_config, detection_prompts="all"), lambda text: len(text.split())),
    )
    sample = rows.sample_together([0, 1, 2, 3], np.random.default_rng(0))
    assert sample is not None
    assert [count for _, count in sample.beside] == [2, 0, 1]
    assert [sample.prompt.phrases[i] for (i,) in sample.box_phrases] == ["apple", "sea", "coal", "plum"]
    model = GLIPConfig(
        backbone=BackboneConfig(bgr=False, pixel_mean=(0, 0, 0), pixel_std=(1, 1, 1)),
        text=TextConfig(max_tokens=40),
        inclusive_corners=False,
    )
    config = replace(samples_config, flip=0.0)
    pixels, _, target = prepare_sample(sample, np.random.default_rng(0), tiny.SIDE, config, model, tokenizer, ())
    colours = {"apple": (255, 0, 0), "sea": (0, 0, 255), "coal": (0, 0, 0), "plum": (128, 0, 128)}
    for (left, top, right, bottom), colour in zip(target.boxes_xyxy.tolist(), colours.values(), strict=True):
        found = pixels[:, int((top + bottom) / 2), int((left + right) / 2)]
        assert torch.allclose(found, torch.tensor(colour, dtype=torch.float32), atol=40)


def test_batches_are_made_with_all_of_it_and_are_the_same_again(
    human: Path, train_config: TrainConfig, run_config: RunConfig, tiny: SimpleNamespace, tokenizer: Any
) -> None:
    augment = AugmentConfig(colour=0.3, crop=0.5, shrink=1.5, mosaic=0.5)
    config = replace(train_config, samples=replace(train_config.samples, augment=augment))

    def made(config: TrainConfig) -> list[torch.Tensor]:
        sources = make_sources(human, None, run_config.mixture, config.samples, tokenizer)
        batches = BatchMaker(sources, config, run_config, tiny.model_config(), tokenizer, 0, Worker())
        return [batches.make(step).inputs.pixel_values for step in range(3)]

    first, second, plain = made(config), made(config), made(train_config)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(first, plain, strict=True))


def test_mosaics_want_all_rows_in_memory(samples_config: SamplesConfig) -> None:
    with pytest.raises(ConfigError, match="mosaic shows rows from anywhere"):
        replace(samples_config, augment=replace(OFF, mosaic=0.5), shuffle_window=100)


def test_a_caption_is_shown_alone(human: Path, samples_config: SamplesConfig, tokenizer: Any) -> None:
    rows = make_sources(human, None, {"grounding": 1.0}, samples_config, tokenizer)["grounding"]
    sample = rows.sample_together([0, 1], np.random.default_rng(0))
    assert isinstance(sample, Sample)
    assert sample.beside == ()
    assert isinstance(sample.image, ImageRef)
    assert Image.open(io.BytesIO(sample.image.bytes or b"")).size
