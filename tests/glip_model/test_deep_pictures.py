"""Pictures that are not 8-bit RGB: more bits, floats and transparency."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from glip_model.images import check_image, decode_image, open_image, to_rgb

MAX_PIXELS = 10_000


def decoded(image: Image.Image, kind: str, **options: object) -> np.ndarray:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    (height, width), small, _ = check_image(buffer.getvalue(), MAX_PIXELS, 64)
    pixels = np.asarray(decode_image(buffer.getvalue(), MAX_PIXELS))
    assert (height, width) == pixels.shape[:2]
    np.testing.assert_array_equal(np.asarray(small), pixels)
    return pixels


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_to_8(kind: str) -> None:
    values = np.array([[0, 257, 32768], [40000, 65278, 65535]], np.uint16)
    pixels = decoded(Image.fromarray(values), kind)
    assert pixels[..., 0].tolist() == [[0, 1, 128], [156, 254, 255]]
    assert (pixels == pixels[..., :1]).all()


def test_12_bits_in_a_16_bit_file_keep_their_brightness() -> None:
    values = np.array([[0, 1024, 2048, 4095]], np.uint16)
    assert decoded(Image.fromarray(values), "PNG")[0, :, 0].tolist() == [0, 64, 128, 255]


def test_big_endian_16_bits() -> None:
    image = Image.frombytes("I;16B", (3, 1), np.array([0, 32768, 65535], ">u2").tobytes())
    assert np.asarray(open_image(image))[0, :, 0].tolist() == [0, 128, 255]
    assert decoded(image, "TIFF")[0, :, 0].tolist() == [0, 128, 255]


def test_narrow_ranges_and_negative_values_are_stretched() -> None:
    thermal = np.array([[29000, 30000, 31000]], np.uint16)
    assert decoded(Image.fromarray(thermal), "PNG")[0, :, 0].tolist() == [0, 128, 255]
    signed = np.array([[-1000, 0, 1000]], np.int32)
    assert decoded(Image.fromarray(signed), "TIFF")[0, :, 0].tolist() == [0, 128, 255]


def test_32_bit_integers() -> None:
    values = np.array([[0, 2**30, 2**31 - 1]], np.int32)
    assert decoded(Image.fromarray(values), "TIFF")[0, :, 0].tolist() == [0, 128, 255]
    low = np.array([[0, 100, 255]], np.int32)
    assert decoded(Image.fromarray(low), "TIFF")[0, :, 0].tolist() == [0, 100, 255]


def test_floats_with_values_that_are_none() -> None:
    values = np.array([[0, 0.5, 1, np.nan, np.inf, -np.inf]], np.float32)
    assert decoded(Image.fromarray(values), "TIFF")[0, :, 0].tolist() == [0, 128, 255, 0, 255, 0]
    bytes_like = np.array([[0, 100, 255]], np.float32)
    assert decoded(Image.fromarray(bytes_like), "TIFF")[0, :, 0].tolist() == [0, 100, 255]
    assert decoded(Image.fromarray(np.full((1, 2), np.nan, np.float32)), "TIFF").max() == 0


def test_a_constant_deep_picture_keeps_its_brightness() -> None:
    assert decoded(Image.fromarray(np.full((2, 2), 40000, np.uint16)), "PNG").max() == 156


def test_a_turned_deep_picture_stands_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.array([[0, 32768, 65535]], np.uint16)
    assert decoded(Image.fromarray(values), "PNG", exif=exif)[:, 0, 0].tolist() == [0, 128, 255]


def test_transparency_is_composed_over_white() -> None:
    rgba = np.array([[[0, 0, 0, 0], [0, 0, 0, 255], [255, 0, 0, 128]]], np.uint8)
    expected = [[255, 255, 255], [0, 0, 0], [255, 127, 127]]
    assert decoded(Image.fromarray(rgba), "PNG")[0].tolist() == expected
    assert np.asarray(open_image(rgba))[0].tolist() == expected
    grey = np.array([[[0, 0], [7, 255]]], np.uint8)
    assert decoded(Image.fromarray(grey, "LA"), "PNG")[0, :, 0].tolist() == [255, 7]


def test_one_transparent_colour_becomes_white() -> None:
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert decoded(palette, "PNG", transparency=0)[0].tolist() == [[255, 255, 255], [10, 20, 30]]
    assert decoded(palette, "GIF", transparency=0)[0].tolist() == [[255, 255, 255], [10, 20, 30]]
    rgb = np.array([[[0, 0, 0], [1, 2, 3]]], np.uint8)
    assert decoded(Image.fromarray(rgb), "PNG", transparency=(0, 0, 0))[0].tolist() == [[255, 255, 255], [1, 2, 3]]
    grey = np.array([[0, 9]], np.uint8)
    assert decoded(Image.fromarray(grey), "PNG", transparency=0)[0, :, 0].tolist() == [255, 9]


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7)])
def test_8_bit_pictures_without_transparency_stay_as_they_are(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pixels = decoded(Image.fromarray(values), "PNG")
    np.testing.assert_array_equal(pixels, np.broadcast_to(values if values.ndim == 3 else values[..., None], (5, 7, 3)))
    opaque = Image.fromarray(pixels).convert("RGBA")
    np.testing.assert_array_equal(decoded(opaque, "PNG"), pixels)


def test_hot_and_dead_pixels_do_not_darken_a_picture() -> None:
    values = np.full((100, 200), 2048, np.uint16)
    values[:50] = 0
    plain = np.asarray(decode_image(encode_png(values), 10**6))
    assert (plain[0, 0, 0], plain[99, 0, 0]) == (0, 128)
    values[99, 199], values[98, 198] = 65535, 65535
    found = np.array(decode_image(encode_png(values), 10**6))
    assert found[99, 199].tolist() == [255, 255, 255]
    found[98:, 198:] = plain[98:, 198:]
    np.testing.assert_array_equal(found, plain)


def test_a_dead_pixel_does_not_end_the_stretching_of_a_thermal_picture() -> None:
    values = np.full((100, 200), 30_000, np.uint16)
    values[:50] = 31_000
    values[0, 0] = 0
    found = np.asarray(decode_image(encode_png(values), 10**6))
    assert (found[1, 1, 0], found[99, 0, 0], found[0, 0, 0]) == (255, 0, 0)


def encode_png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


@given(
    st.lists(st.integers(0, 65535), min_size=2, max_size=60),
    st.sampled_from([(np.uint16, "I;16"), (np.int32, "I"), (np.float32, "F")]),
)
def test_brighter_stays_brighter_and_black_to_full_scale_is_kept(values: list[int], kind: tuple[Any, str]) -> None:
    dtype, mode = kind
    image = Image.fromarray(np.array([values], dtype=dtype))
    assert image.mode == mode
    grey = np.asarray(to_rgb(image))[0]
    assert (grey == grey[:, :1]).all()
    order = np.argsort(values, kind="stable")
    assert (np.diff(grey[order, 0].astype(int)) >= 0).all()
    bits = max(8, max(values).bit_length()) if mode != "F" or max(values) > 1 else 0
    scale = 2**bits - 1 if bits else 1
    if max(values) - min(values) >= scale / 8 or max(values) == min(values):  # else it is stretched
        expected = [round(255 * value / scale) for value in values]
        assert np.abs(grey[:, 0].astype(int) - expected).max() <= 1
    else:
        assert grey[order[[0, -1]], 0].tolist() == [0, 255]
