"""Samples to tensors: boxes follow the picture, targets follow the prompt."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from glip_model.alignment import tokenize_prompt
from glip_model.config import BackboneConfig, GLIPConfig, TextConfig
from glip_model.images import ImageError
from glip_model.prompts import caption_prompt, category_prompt
from pipeline.store.records import ImageRef
from pipeline.training.augment import build_target, flip_boxes, prepare_sample
from pipeline.training.prompts import Sample
from pipeline.training.settings import SamplesConfig

# Pixel values stay 0 to 255 in RGB order.
PLAIN = GLIPConfig(
    backbone=BackboneConfig(bgr=False, pixel_mean=(0, 0, 0), pixel_std=(1, 1, 1)),
    text=TextConfig(max_tokens=16),
    inclusive_corners=False,
)
RED = (10.0, 4.0, 30.0, 24.0)


def picture(width: int = 80, height: int = 40) -> ImageRef:
    """A red block on blue, at RED."""
    image = Image.new("RGB", (width, height), "blue")
    image.paste((255, 0, 0), tuple(int(side) for side in RED))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return ImageRef(bytes=stream.getvalue())


def sample_of(text: str = "a red block", image: ImageRef | None = None) -> Sample:
    prompt = caption_prompt(text, [[(0, len(text))]])
    return Sample(key="k", image=image or picture(), prompt=prompt, boxes=(RED,), box_phrases=((0,),))


def prepare(sample: Sample, config: SamplesConfig, tokenizer: Any, short_side: int = 40) -> Any:
    return prepare_sample(sample, np.random.default_rng(0), short_side, config, PLAIN, tokenizer, ())


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("short_side", [20, 40, 80])
def test_boxes_follow_the_picture(samples_config: SamplesConfig, tokenizer: Any, flip: float, short_side: int) -> None:
    config = replace(samples_config, flip=flip, long_side=1000)
    pixels, _, target = prepare(sample_of(), config, tokenizer, short_side)
    assert pixels.shape == (3, short_side, 2 * short_side)
    [(left, top, right, bottom)] = target.boxes_xyxy.tolist()
    scale = short_side / 40
    assert (right - left, bottom - top) == (20 * scale, 20 * scale)
    inside = torch.zeros(pixels.shape[1:], dtype=torch.bool)
    inside[round(top) + 1 : round(bottom) - 1, round(left) + 1 : round(right) - 1] = True
    outside = torch.ones_like(inside)
    outside[round(top) - 2 : round(bottom) + 2, round(left) - 2 : round(right) + 2] = False
    assert (pixels[0][inside] > 200).all()
    assert (pixels[0][outside] < 50).all()
    assert (left > 40 * scale) == bool(flip)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_targets_of_inclusive_corners_end_with_the_last_pixel(
    samples_config: SamplesConfig, tokenizer: Any, flip: float
) -> None:
    config = replace(samples_config, flip=flip, long_side=1000)
    model = replace(PLAIN, inclusive_corners=True)
    pixels, _, target = prepare_sample(sample_of(), np.random.default_rng(0), 40, config, model, tokenizer, ())
    [(left, top, right, bottom)] = target.boxes_xyxy.int().tolist()
    red = (pixels[0] > 200).nonzero()
    assert (red.min(0).values.tolist(), red.max(0).values.tolist()) == ([top, left], [bottom, right])


def test_long_side_limits_the_size(samples_config: SamplesConfig, tokenizer: Any) -> None:
    config = replace(samples_config, flip=0.0, long_side=40)
    pixels, _, target = prepare(sample_of(), config, tokenizer)
    assert pixels.shape == (3, 20, 40)
    assert target.boxes_xyxy.tolist() == [[side / 2 for side in RED]]


@pytest.mark.parametrize("text", ["block on the left", "RIGHT block", "the leftmost block", "a right-hand block"])
def test_pictures_with_sided_captions_are_not_flipped(samples_config: SamplesConfig, tokenizer: Any, text: str) -> None:
    config = replace(samples_config, flip=1.0)
    assert prepare(sample_of(text), config, tokenizer)[2].boxes_xyxy.tolist() == [list(RED)]


@pytest.mark.parametrize("text", ["a bright block", "a cleft block"])
def test_other_words_do_not_stop_a_flip(samples_config: SamplesConfig, tokenizer: Any, text: str) -> None:
    config = replace(samples_config, flip=1.0)
    assert prepare(sample_of(text), config, tokenizer)[2].boxes_xyxy.tolist() == [[50.0, 4.0, 70.0, 24.0]]


def test_flipping_twice_changes_nothing() -> None:
    boxes = torch.tensor([[0.0, 1.0, 10.0, 5.0], [3.5, 0.0, 80.0, 40.0]])
    assert torch.equal(flip_boxes(flip_boxes(boxes, 80), 80), boxes)
    assert flip_boxes(boxes[:0], 80).shape == (0, 4)


def test_targets_name_the_tokens_of_their_phrases(tokenizer: Any) -> None:
    prompt = category_prompt(["apple", "fire engine"])  # [CLS] apple . fire engine [SEP]
    sample = Sample(key="k", image=picture(), prompt=prompt, boxes=(RED, RED, RED), box_phrases=((1,), (0,), (0, 1)))
    target = build_target(sample, torch.zeros(3, 4), tokenize_prompt(tokenizer, prompt, 16))
    assert target.positive_map.int().tolist() == [[0, 0, 0, 1, 1, 0], [0, 1, 0, 0, 0, 0], [0, 1, 0, 1, 1, 0]]
    assert target.token_mask is None


def test_no_boxes_make_an_empty_target(tokenizer: Any) -> None:
    prompt = category_prompt(["apple"])
    sample = Sample(key="k", image=picture(), prompt=prompt, boxes=(), box_phrases=())
    target = build_target(sample, torch.zeros(0, 4), tokenize_prompt(tokenizer, prompt, 16))
    assert target.positive_map.shape == (0, 3)
    assert target.boxes_xyxy.shape == (0, 4)


def test_tokens_of_ignored_phrases_take_no_part_unless_they_name_a_box(tokenizer: Any) -> None:
    #               0 [CLS] 1 a 2 cat 3 on 4 a 5 red 6 mat [SEP]
    prompt = caption_prompt("a cat on a red mat", [[(0, 5)], [(9, 18)], [(0, 18)]])
    sample = Sample(key="k", image=picture(), prompt=prompt, boxes=(RED,), box_phrases=((0,),), ignored_phrases=(1,))
    tokenized = tokenize_prompt(tokenizer, prompt, 16)
    mask = build_target(sample, torch.zeros(1, 4), tokenized).token_mask
    assert mask is not None
    assert mask.int().tolist() == [1, 1, 1, 1, 0, 0, 0, 1]
    around = build_target(replace(sample, ignored_phrases=(2,)), torch.zeros(1, 4), tokenized).token_mask
    assert around is not None
    assert around.int().tolist() == [1, 1, 1, 0, 0, 0, 0, 1]


def test_phrase_beyond_the_token_limit_leaves_an_empty_row(samples_config: SamplesConfig, tokenizer: Any) -> None:
    prompt = caption_prompt("one " * 30 + "cat", [[(120, 123)]])
    sample = Sample(key="k", image=picture(), prompt=prompt, boxes=(RED,), box_phrases=((0,),))
    _, tokenized, target = prepare(sample, samples_config, tokenizer)
    assert tokenized.input_ids.shape == (16,)
    assert not target.positive_map.any()


def test_unreadable_picture_says_so(samples_config: SamplesConfig, tokenizer: Any) -> None:
    with pytest.raises(ImageError):
        prepare(sample_of(image=ImageRef(bytes=b"no picture")), samples_config, tokenizer)
