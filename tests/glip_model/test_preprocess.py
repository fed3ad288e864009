"""Pictures to tensors: the published resize rule, channel order, padding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from glip_model.alignment import TokenizedPrompt
from glip_model.config import BackboneConfig
from glip_model.preprocess import PictureBatch, collate, image_to_tensor
from glip_model.prompts import Prompt
from glip_model.resizing import ResizedImage, ResizeRule, resize_size
from glip_model.structures import GroundingTarget


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (800, 1066)),  # 1066.67 is truncated
        (640, 480, (1066, 800)),
        (800, 1200, (800, 1200)),  # already there
        (600, 600, (800, 800)),
        (500, 2000, (333, 1332)),  # 333.25 is rounded, then the long side truncated
        (2000, 500, (1332, 333)),
        (3, 4000, (1, 1333)),
        (1, 5000, (1, 1333)),  # published: height 0
        (5000, 1, (1333, 1)),
    ],
)
def test_sizes_follow_the_published_rule(height: int, width: int, expected: tuple[int, int]) -> None:
    assert resize_size(height, width, 800, 1333) == expected


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(16, 900), st.integers(1, 4))
@example(1, 2, 463, 1)  # 231.5 is rounded to 232, and the long side, 464, lies on the bound itself
def test_resized_pictures_keep_their_shape_and_stay_within_limits(
    height: int, width: int, short_side: int, factor: int
) -> None:
    long_side = short_side * factor
    new_height, new_width = resize_size(height, width, short_side, long_side)
    short, long = sorted((new_height, new_width))
    assert short >= 1
    assert short <= short_side
    assert resize_size(width, height, short_side, long_side) == (new_width, new_height)
    # The short side is rounded, so a sliver's long side may pass the limit by its share of half a pixel: it is at most
    # long_side * short / (short - 0.5), here in whole numbers.
    assert long * (2 * short - 1) <= long_side * 2 * short or (height, width) == (new_height, new_width)
    ratio = max(height, width) / min(height, width)
    if long_side * min(height, width) >= 0.5 * max(height, width):  # else a sliver of one row
        assert short * ratio - 1 - 1e-6 < long <= short * ratio + 1e-6  # the quotient is rounded


def test_pixels_are_normalised_in_the_models_channel_order() -> None:
    pixels = np.zeros((2, 3, 3), dtype=np.uint8)
    pixels[0, 1] = (10, 20, 30)
    image = Image.fromarray(pixels)
    bgr = image_to_tensor(image, BackboneConfig())
    assert bgr.shape == (3, 2, 3)
    assert bgr.dtype == torch.float32
    expected = [(30 - 103.53) / 57.375, (20 - 116.28) / 57.12, (10 - 123.675) / 58.395]
    assert bgr[:, 0, 1].tolist() == pytest.approx(expected)
    rgb = image_to_tensor(
        image, BackboneConfig(bgr=False, pixel_mean=(123.675, 116.28, 103.53), pixel_std=(58.395, 57.12, 57.375))
    )
    torch.testing.assert_close(rgb, bgr.flip(0))


def test_the_tensor_does_not_share_the_pictures_memory() -> None:
    image = Image.new("RGB", (4, 4), "white")
    config = BackboneConfig(bgr=False, pixel_mean=(0.0, 0.0, 0.0), pixel_std=(1.0, 1.0, 1.0))
    image_to_tensor(image, config).zero_()
    assert image.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_a_picture_of_another_mode_is_refused_by_name(mode: str) -> None:
    with pytest.raises(ValueError, match=f"RGB.*{mode}"):
        image_to_tensor(Image.new(mode, (4, 4)), BackboneConfig())


@pytest.mark.parametrize("bgr", [True, False])
def test_a_batch_of_bytes_is_normalised_as_each_picture_by_itself(bgr: bool) -> None:
    rng, config = np.random.default_rng(0), BackboneConfig(bgr=bgr)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((33, 50), (64, 64), (40, 35))]
    batch = PictureBatch.of([ResizedImage(image, (1, 2)) for image in images], 32)
    assert batch.pixels.dtype == torch.uint8
    values = batch.to_device(torch.device("cpu"), config)
    assert values.is_contiguous()
    slow = collate(
        [image_to_tensor(Image.fromarray(image), config) for image in images], [make_prompt(1)] * 3, size_divisor=32
    )
    assert torch.equal(values, slow.pixel_values)
    assert batch.sizes == slow.image_sizes
    assert batch.original_sizes == ((1, 2),) * 3


@given(st.integers(1, 300), st.integers(1, 300), st.integers(16, 200), st.integers(0, 9))
def test_mirroring_and_resizing_change_places(height: int, width: int, short_side: int, seed: int) -> None:
    rule = ResizeRule(short_side, 2 * short_side, 32)
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    before, after = rule(ImageOps.mirror(image)), rule(image).mirrored()
    assert before.original_size == after.original_size == (height, width)
    # Pillow rounds the weights of its filter in one direction: now and then one value in 256 is the next one.
    assert np.abs(before.pixels.astype(int) - after.pixels).max() <= 1


def make_prompt(length: int) -> TokenizedPrompt:
    ids = torch.arange(1, length + 1)
    return TokenizedPrompt(Prompt(("text",), ([(0, 4)],)), ids, torch.ones(1, length, dtype=torch.bool))


def make_target(length: int, masked: bool) -> GroundingTarget:
    mask = torch.ones(length, dtype=torch.bool) if masked else None
    return GroundingTarget(torch.tensor([[0.0, 0.0, 5.0, 5.0]]), torch.ones(1, length, dtype=torch.bool), mask)


def test_a_batch_is_padded_below_to_the_right_and_behind() -> None:
    images = [torch.ones(3, 5, 9), torch.full((3, 8, 3), 2.0)]
    states = [torch.ones(3, 4), torch.full((5, 4), 2.0)]
    targets = [make_target(3, masked=True), make_target(5, masked=False)]
    batch = collate(images, [make_prompt(3), make_prompt(5)], size_divisor=8, targets=targets, text_states=states)
    assert batch.pixel_values.shape == (2, 3, 8, 16)
    assert batch.image_sizes == ((5, 9), (8, 3))
    for i, (image, size) in enumerate(zip(images, batch.image_sizes, strict=True)):
        assert torch.equal(batch.pixel_values[i, :, : size[0], : size[1]], image)
        assert batch.pixel_values[i].sum() == image.sum()  # zeros elsewhere
    assert batch.input_ids.tolist() == [[1, 2, 3, 0, 0], [1, 2, 3, 4, 5]]
    assert batch.attention_mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert batch.text_states is not None
    assert batch.text_states.sum(-1).tolist() == [[4, 4, 4, 0, 0], [8] * 5]
    assert batch.targets is not None
    assert batch.targets[0].positive_map.tolist() == [[True] * 3 + [False] * 2]
    assert batch.targets[0].token_mask is not None
    assert batch.targets[0].token_mask.tolist() == [True] * 3 + [False] * 2
    assert batch.targets[1].positive_map.tolist() == [[True] * 5]
    assert batch.targets[1].token_mask is None


def test_a_batch_without_targets_or_states_has_none() -> None:
    batch = collate([torch.ones(3, 32, 32)], [make_prompt(2)], size_divisor=32)
    assert batch.pixel_values.shape == (1, 3, 32, 32)
    assert batch.targets is None
    assert batch.text_states is None


def test_a_target_without_boxes_is_padded_too() -> None:
    empty = replace(make_target(2, masked=False), boxes_xyxy=torch.zeros(0, 4), positive_map=torch.zeros(0, 2).bool())
    batch = collate([torch.ones(3, 8, 8)] * 2, [make_prompt(2), make_prompt(4)], size_divisor=8, targets=[empty] * 2)
    assert batch.targets is not None
    assert batch.targets[0].positive_map.shape == (0, 4)


@pytest.mark.parametrize("part", ["prompts", "targets", "text_states"])
def test_parts_that_differ_in_number_are_refused(part: str) -> None:
    """A picture without its target would silently train as background."""
    images, target = [torch.ones(3, 8, 8)] * 2, make_target(2, masked=False)
    prompts = [make_prompt(2)] * (1 if part == "prompts" else 2)
    with pytest.raises(ValueError, match=f"2 pictures.*1 {part}"):
        collate(
            images,
            prompts,
            size_divisor=8,
            targets=[target] * (1 if part == "targets" else 2),
            text_states=[torch.ones(2, 4)] * (1 if part == "text_states" else 2),
        )
