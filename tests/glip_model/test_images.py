"""Pictures from outside: decoded upright to RGB, or refused with a reason."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glip_model.images import ImageError, decode_image

REASONS = ("image_missing", "image_unreadable", "image_too_large")
LIMIT = 10_000
ORIENTATION = 0x0112


def encode(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


def reason_of(data: bytes, limit: int = LIMIT) -> str:
    with pytest.raises(ImageError) as caught:
        decode_image(data, limit)
    assert caught.value.reason in REASONS
    return caught.value.reason


def gradient() -> Image.Image:
    return Image.fromarray(np.arange(20 * 30 * 3, dtype=np.uint32).reshape(20, 30, 3).astype(np.uint8))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16", "F"])
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "GIF", "JPEG"])
def test_every_mode_and_format_becomes_rgb_of_the_same_size(mode: str, file_format: str) -> None:
    source = Image.new("L", (30, 20), 90) if mode == "I;16" else gradient()
    try:
        data = encode(source.convert(mode), file_format)
    except (OSError, ValueError):
        pytest.skip(f"{file_format} has no {mode}")
    image = decode_image(data, LIMIT)
    assert image.mode == "RGB"
    assert image.size == (30, 20)


def test_palette_with_transparency_decodes_without_a_warning() -> None:
    data = encode(gradient().quantize(8), "PNG", transparency=b"\0\x80\xff")
    assert decode_image(data, LIMIT).mode == "RGB"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:10, :15] = 255  # upper left quarter of the stored picture
    image = decode_image(encode(Image.fromarray(pixels), "PNG", exif=exif), LIMIT)
    assert image.size == ((30, 20) if orientation <= 4 else (20, 30))
    quarters = np.asarray(image.convert("L"))
    height, width = quarters.shape
    is_bottom, is_right = bool(quarters[-1].any()), bool(quarters[:, -1].any())
    # EXIF 2.32, tag 0x0112: where the stored picture's row 0 and column 0 stand in the upright one.
    expected = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}[orientation]
    assert ("b" if is_bottom else "t") + ("r" if is_right else "l") == expected
    assert (quarters == 255).sum() == height * width // 4


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data, LIMIT).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"<html>404</html>", encode(gradient())[:60]])
def test_what_is_no_picture_is_unreadable(data: bytes) -> None:
    assert reason_of(data) == "image_unreadable"


def test_large_pictures_are_refused_at_their_header() -> None:
    data = encode(Image.new("RGB", (101, 100)))
    assert reason_of(data, limit=10_000) == "image_too_large"
    assert decode_image(data, 10_100).size == (101, 100)
    # The header alone decides: nothing after it is there to unpack.
    assert reason_of(data[:50], limit=10_000) == "image_too_large"


def test_a_bomb_is_too_large_and_not_an_error() -> None:
    header = encode(Image.new("1", (8, 8)))
    bomb = header[:16] + (60_000).to_bytes(4, "big") * 2 + header[24:]
    assert reason_of(bomb) in ("image_too_large", "image_unreadable")


FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "ICO", "DDS", "TGA", "PPM")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(0, 2**32))
def test_broken_files_are_refused_and_never_crash(file_format: str, seed: int) -> None:
    chance = random.Random(seed)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    options = {"exif": exif} if file_format in ("PNG", "JPEG", "TIFF", "WEBP") else {}
    data = bytearray(encode(gradient(), file_format, **options))
    for _ in range(chance.randint(1, 5)):
        data[chance.randrange(min(len(data), 250))] = chance.randrange(256)
    reason = ""
    try:
        image = decode_image(bytes(data), LIMIT)
    except ImageError as error:
        reason = error.reason
    if reason:
        assert reason in REASONS
    else:
        assert image.mode == "RGB"
        assert image.width * image.height <= LIMIT


def test_errors_that_decoders_raise_besides_their_own_are_refusals() -> None:
    flags = bytearray(encode(gradient(), "DDS"))
    flags[80:84] = (1).to_bytes(4, "little")  # pixel format flags that Pillow answers with NotImplementedError
    assert reason_of(bytes(flags)) == "image_unreadable"
