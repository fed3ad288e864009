"""Pictures from outside: decoded upright to RGB, or refused with a reason."""

from __future__ import annotations

import io
import os
import random
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glip_model.images import ImageError, check_image, decode_image, open_image

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
    size, small, _ = check_image(data, LIMIT, 4)
    assert (size, small.mode) == ((20, 30), "RGB")
    assert min(small.size) >= 4


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
    for file_format in ("PNG", "JPEG", "TIFF", "WEBP"):
        size, small, _ = check_image(encode(Image.fromarray(pixels), file_format, exif=exif), LIMIT, 4)
        assert size == (image.height, image.width)
        assert (small.width > small.height) == (image.width > image.height)
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


def test_formats_that_start_a_program_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr("subprocess.Popen", lambda *words, **options: started.append(words))
    data = encode(gradient(), "EPS")
    assert reason_of(data) == "image_unreadable"
    for look in (lambda: decode_image(data, LIMIT), lambda: check_image(data, LIMIT, 8)):
        with pytest.raises(ImageError, match="EPS is a program for Ghostscript; make a PNG of it"):
            look()
    assert not started


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_a_truncated_picture_is_found_without_unpacking_it_whole(file_format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), file_format)
    assert check_image(data, LIMIT, 8)[0] == (64, 64)
    for length in (len(data) // 2, len(data) - 200):
        with pytest.raises(ImageError) as caught:
            check_image(data[:length], LIMIT, 8)
        assert caught.value.reason == reason_of(data[:length]) == "image_unreadable"


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
    decoded, checked = (outcome(look, bytes(data)) for look in (decode_image, lambda *given: check_image(*given, 8)))
    if isinstance(decoded, str):
        assert decoded in REASONS
        assert checked == decoded
    else:
        assert decoded.mode == "RGB"
        assert decoded.width * decoded.height <= LIMIT
        assert checked[0] == (decoded.height, decoded.width)


def outcome(look: Any, data: bytes) -> Any:
    """Return what a look at a picture gives, or the reason why it gives nothing."""
    try:
        return look(data, LIMIT)
    except ImageError as error:
        return error.reason


def test_errors_that_decoders_raise_besides_their_own_are_refusals() -> None:
    flags = bytearray(encode(gradient(), "DDS"))
    flags[80:84] = (1).to_bytes(4, "little")  # pixel format flags that Pillow answers with NotImplementedError
    assert reason_of(bytes(flags)) == "image_unreadable"
    spider = bytearray(encode(gradient(), "SPIDER"))
    spider[4 * 26 : 4 * 27] = struct.pack("f", 2.0)  # an image within a stack, at which Pillow misses an attribute
    assert reason_of(bytes(spider)) == "image_unreadable"


# Pictures of every kind


def same(image: Image.Image, pixels: np.ndarray[Any, Any]) -> bool:
    return image.mode == "RGB" and np.array_equal(np.asarray(image), pixels)


def test_a_picture_is_opened_by_path_text_and_url(tmp_path: Path) -> None:
    path = tmp_path / "a picture #1 ü.png"
    gradient().save(path)
    for source in (path, str(path), f"file://{path}"):
        assert same(open_image(source), np.asarray(gradient()))


def test_a_picture_is_opened_from_any_file_system_that_fsspec_knows() -> None:
    import fsspec

    with fsspec.open("memory://pictures/gradient.png", "wb") as file:
        file.write(encode(gradient()))
    assert same(open_image("memory://pictures/gradient.png"), np.asarray(gradient()))


def test_a_file_is_turned_upright_and_a_picture_taken_as_it_lies(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    (tmp_path / "turned.png").write_bytes(encode(gradient(), exif=exif))
    assert open_image(tmp_path / "turned.png").size == (20, 30)
    with Image.open(tmp_path / "turned.png") as image:
        assert open_image(image).size == (30, 20)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "RGBA", "CMYK", "1", "YCbCr", "HSV"])
def test_pil_pictures_of_every_mode_become_rgb(mode: str) -> None:
    image = open_image(gradient().convert(mode))
    assert same(image, np.asarray(gradient().convert(mode).convert("RGB")))


def test_a_pil_picture_is_not_changed() -> None:
    source = gradient().convert("RGBA")
    before = source.tobytes()
    image = open_image(source)
    image.paste((1, 2, 3), (0, 0, 30, 20))
    assert (source.mode, source.tobytes()) == ("RGBA", before)


def test_missing_files_are_refused_with_their_name(tmp_path: Path) -> None:
    for source in (tmp_path / "none.png", f"file://{tmp_path}/none.png", "memory://no/such.png"):
        with pytest.raises(ImageError, match=f"{Path(str(source)).name}: cannot be read") as caught:
            open_image(source)
        assert caught.value.reason == "image_missing"


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=f"{tmp_path}: cannot be read"):
        open_image(tmp_path)


def test_an_unknown_kind_of_url_is_refused() -> None:
    with pytest.raises(ImageError, match=r"nosuchscheme://bucket/a\.png: cannot be read") as caught:
        open_image("nosuchscheme://bucket/a.png")
    assert caught.value.reason == "image_missing"


def test_what_may_never_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for place in (tmp_path / "pipe.png", tmp_path, "/dev/zero", "file:///dev/zero"):
        with pytest.raises(ImageError, match="it is no file but") as refused:
            open_image(place)
        assert refused.value.reason == "image_missing"


def test_broken_and_large_files_are_refused_with_their_name_and_reason(tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(encode(gradient())[:60])
    with pytest.raises(ImageError, match=f"{path}: ") as caught:
        open_image(path)
    assert caught.value.reason == "image_unreadable"
    path.write_bytes(encode(gradient()))
    with pytest.raises(ImageError, match=f"{path}: 30×20 pixels; the limit is 599") as caught:
        open_image(path, max_pixels=599)
    assert caught.value.reason == "image_too_large"
    assert open_image(path, max_pixels=600).size == (30, 20)


def random_pixels(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_arrays_are_rgb_grey_or_rgb_with_a_transparency_over_white() -> None:
    colour, grey, transparent = random_pixels(5, 7, 3), random_pixels(5, 7), random_pixels(5, 7, 4)
    assert same(open_image(colour), colour)
    assert same(open_image(grey), np.stack([grey] * 3, -1))
    share = transparent[..., 3:] / 255
    over_white = transparent[..., :3] * share + 255 * (1 - share)
    assert np.abs(np.asarray(open_image(transparent)) - over_white).max() <= 1


def test_views_into_larger_arrays_are_read_as_they_look() -> None:
    whole = random_pixels(10, 14, 3)
    for view in (whole[::2, ::-1], whole[..., ::-1], whole.transpose(1, 0, 2), whole[3:4, 5:6]):
        assert same(open_image(view), view.copy())


def test_a_changed_array_does_not_change_its_picture() -> None:
    pixels = random_pixels(5, 7, 3)
    image, before = open_image(pixels), pixels.copy()
    pixels[:] = 0
    assert same(image, before)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 7, 3)),
        np.zeros((5, 7, 3), np.int64),
        np.zeros((5, 7, 3), np.uint16),
        np.zeros((5, 7, 3), bool),
        np.zeros((3, 5, 7), np.uint8),
        np.zeros((5, 7, 1), np.uint8),
        np.zeros((5, 7, 2), np.uint8),
        np.zeros((1, 5, 7, 3), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((0, 7, 3), np.uint8),
        np.zeros((5, 0), np.uint8),
    ],
    ids=lambda array: f"{array.shape} {array.dtype}",
)
def test_arrays_of_another_shape_or_type_are_refused_with_what_they_are(array: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ValueError, match="an array must be") as caught:
        open_image(array)
    assert f"got {array.shape} of {array.dtype}" in str(caught.value)


def test_tensors_are_of_bytes_or_of_floats_up_to_one() -> None:
    pixels = random_pixels(5, 7, 3)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    assert same(open_image(tensor), pixels)
    assert same(open_image(tensor.contiguous()), pixels)
    assert same(open_image(tensor / 255), pixels)
    assert same(open_image(tensor.double() / 255), pixels)
    assert same(open_image((tensor.float() / 255).requires_grad_()), pixels)


@given(st.floats(0, 1, width=32))
def test_a_float_becomes_the_nearest_byte(value: float) -> None:
    image = open_image(torch.full((3, 1, 1), value))
    byte = np.asarray(image)[0, 0, 0]
    assert abs(int(byte) - value * 255) <= 0.5 + 1e-4
    assert image.getpixel((0, 0)) == (byte,) * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_to_its_own_precision(dtype: torch.dtype) -> None:
    tensor = torch.linspace(0, 1, 3 * 4 * 5).view(3, 4, 5).to(dtype)
    expected = (tensor.float() * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert same(open_image(tensor), expected)


@pytest.mark.parametrize("shape", [(5, 7, 3), (1, 5, 7), (4, 5, 7), (1, 3, 5, 7), (5, 7), (3,), (3, 0, 7), (3, 5, 0)])
def test_tensors_of_another_shape_are_refused_with_their_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"a tensor must be \(3, H, W\), got") as caught:
        open_image(torch.zeros(shape))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("value", [-0.01, 1.01, 255.0, float("nan"), float("inf")])
def test_floats_beyond_one_are_refused_with_advice(value: float) -> None:
    tensor = torch.zeros(3, 5, 7)
    tensor[1, 2, 3] = value
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]; give pixels of 0 to 255 as uint8"):
        open_image(tensor)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16])
def test_tensors_of_wide_integers_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"must be of uint8 or floats, got {dtype}"):
        open_image(torch.zeros(3, 5, 7, dtype=dtype))


# Pictures that are only looked at


def photograph(width: int = 96, height: int = 72) -> Image.Image:
    """Return something that JPEG does not pack into a few bytes, bright in its upper left quarter alone."""
    pixels = random_pixels(height, width, 3) // 4
    pixels[: height // 2, : width // 2] += 190
    return Image.fromarray(pixels)


def looks(data: bytes, side: int = 8, limit: int = LIMIT) -> tuple[Any, Any]:
    """Return what both ways of looking at a picture find: (height, width), or the reason why it cannot be used."""
    decoded = outcome(lambda given, _: decode_image(given, limit), data)
    checked = outcome(lambda given, _: check_image(given, limit, side), data)
    sizes = decoded if isinstance(decoded, str) else (decoded.height, decoded.width)
    return sizes, checked if isinstance(checked, str) else checked[0]


def bright_corner(image: Image.Image) -> tuple[bool, bool]:
    """Tell whether the bright quarter is at the bottom, and whether at the right."""
    grey = np.asarray(image.convert("L"), np.float64)
    rows, columns = grey.mean(1), grey.mean(0)
    return bool(rows[0] < rows[-1]), bool(columns[0] < columns[-1])


ENCODINGS: dict[str, bytes] = {
    "grey JPEG": encode(photograph().convert("L"), "JPEG"),
    "CMYK JPEG": encode(photograph().convert("CMYK"), "JPEG"),
    "progressive JPEG": encode(photograph(), "JPEG", progressive=True),
    "JPEG without subsampling": encode(photograph(), "JPEG", subsampling="4:4:4"),
    "JPEG with restarts": encode(photograph(), "JPEG", restart_marker_rows=1),
    "two JPEGs in one": encode(photograph(), "MPO", save_all=True, append_images=[gradient()]),
    "palette PNG": encode(photograph().quantize(16)),
    "transparent PNG": encode(photograph().convert("RGBA")),
    "16-bit PNG": encode(Image.fromarray(random_pixels(72, 96).astype(np.uint16) * 257)),
    "one-bit PNG": encode(photograph().convert("1")),
    "animated PNG": encode(photograph(), save_all=True, append_images=[photograph().rotate(180)]),
    "animated GIF": encode(photograph(), "GIF", save_all=True, append_images=[photograph().rotate(180)]),
    "animated WebP": encode(photograph(), "WEBP", save_all=True, append_images=[photograph().rotate(180)]),
    "TIFF of two pages": encode(photograph(), "TIFF", save_all=True, append_images=[gradient()]),
    "JPEG inside of a TIFF": encode(photograph(), "TIFF", compression="jpeg"),
    "JPEG 2000": encode(photograph(), "JPEG2000"),
    "BMP": encode(photograph(), "BMP"),
    "lossless WebP": encode(photograph(), "WEBP", lossless=True),
}


@pytest.mark.parametrize("kind", ENCODINGS)
@pytest.mark.parametrize("side", [1, 8, 30, 72, 1000])
def test_a_look_finds_the_size_that_decoding_gives(kind: str, side: int) -> None:
    image = decode_image(ENCODINGS[kind], LIMIT)
    size, small, _ = check_image(ENCODINGS[kind], LIMIT, side)
    assert size == (image.height, image.width) == (72, 96)
    assert small.mode == "RGB"
    assert min(small.size) >= min(side, 72)
    assert bright_corner(small) == bright_corner(image)


def test_a_jpeg_is_unpacked_to_a_few_pixels_alone() -> None:
    data = encode(photograph(640, 480), "JPEG")
    for side, expected in ((8, (80, 60)), (60, (80, 60)), (61, (160, 120)), (240, (320, 240)), (241, (640, 480))):
        size, small, _ = check_image(data, 640 * 480, side)
        assert (size, small.size) == ((480, 640), expected)


@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 mean nothing
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP", "MPO"])
@pytest.mark.parametrize("shape", [(96, 72), (72, 96), (80, 80)], ids=["lying", "standing", "square"])
def test_a_look_turns_pictures_as_decoding_does(file_format: str, orientation: int, shape: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encode(photograph(*shape), file_format, exif=exif)
    image = decode_image(data, LIMIT)
    size, small, _ = check_image(data, LIMIT, 8)
    assert size == (image.height, image.width)
    assert bright_corner(small) == bright_corner(image)
    assert abs(small.width / small.height - image.width / image.height) < 0.1


# Type and count of the entry, its value or where that is, and what follows: a byte, text, a long, a share, many shorts.
@pytest.mark.parametrize(
    "entry",
    [
        struct.pack("<HI4s", 1, 1, b"\6\0\0\0"),
        struct.pack("<HI4s", 2, 2, b"6\0\0\0"),
        struct.pack("<HII", 4, 1, 6),
        struct.pack("<HII", 5, 1, 26) + bytes(4) + struct.pack("<II", 6, 1),
        struct.pack("<HII", 5, 1, 26) + bytes(4) + struct.pack("<II", 6, 0),
        struct.pack("<HIHH", 3, 2, 6, 6),
        struct.pack("<HII", 5, 1, 9999),
        struct.pack("<HII", 99, 99, 99),
        b"",
    ],
    ids=["byte", "text", "long", "share", "share of nothing", "shorts", "beyond the end", "unknown", "cut"],
)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_an_orientation_of_an_odd_type_is_taken_alike(file_format: str, entry: bytes) -> None:
    exif = b"Exif\0\0II*\0" + struct.pack("<IHH", 8, 1, ORIENTATION) + entry
    decoded, checked = looks(encode(photograph(), file_format, exif=exif))
    assert checked == decoded


@pytest.mark.parametrize("kind", ENCODINGS)
def test_what_breaks_off_is_refused_by_both_alike(kind: str) -> None:
    data = ENCODINGS[kind]
    refused = 0
    for length in {*range(0, len(data), max(1, len(data) // 60)), *range(len(data) - 20, len(data))}:
        decoded, checked = looks(data[:length])
        assert checked == decoded
        refused += isinstance(decoded, str)
    assert refused >= 10


@pytest.mark.parametrize("kind", ["grey JPEG", "progressive JPEG", "palette PNG", "transparent PNG"])
def test_half_a_picture_is_unreadable(kind: str) -> None:
    data = ENCODINGS[kind]
    for length in (0, 10, len(data) // 2, len(data) * 9 // 10):
        assert looks(data[:length]) == ("image_unreadable", "image_unreadable")


def claim(data: bytes, width: int, height: int) -> bytes:
    """Return a JPEG or PNG whose header says another size."""
    if data.startswith(b"\x89PNG"):
        header = data[12:16] + struct.pack(">II", width, height) + data[24:29]
        return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    start = next(data.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in data)
    return data[: start + 5] + struct.pack(">HH", height, width) + data[start + 9 :]


@pytest.mark.parametrize("kind", ["grey JPEG", "CMYK JPEG", "progressive JPEG", "palette PNG", "16-bit PNG"])
@pytest.mark.parametrize("size", [(101, 100), (60_000, 60_000), (65_000, 2), (1, 10_001)])
def test_bombs_are_refused_by_what_their_header_says(kind: str, size: tuple[int, int]) -> None:
    bomb = claim(ENCODINGS[kind], *size)
    start = time.process_time()
    assert looks(bomb) == ("image_too_large", "image_too_large")
    assert looks(bomb[: len(bomb) // 2]) == ("image_too_large", "image_too_large")  # nothing behind the header counts
    assert time.process_time() - start < 1


def test_a_picture_may_be_as_large_as_its_limit() -> None:
    for kind in ("grey JPEG", "palette PNG"):
        assert looks(ENCODINGS[kind], limit=96 * 72) == ((72, 96), (72, 96))
        assert looks(ENCODINGS[kind], limit=96 * 72 - 1) == ("image_too_large", "image_too_large")


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"BM"])
)
def test_bytes_of_any_kind_are_judged_alike(data: bytes, magic: bytes) -> None:
    decoded, checked = looks(magic + data)
    assert checked == decoded
    assert decoded in REASONS or isinstance(decoded, tuple)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(ENCODINGS)), st.integers(0, 2**32), st.sampled_from([1, 8, 30]))
def test_changed_pictures_are_judged_alike(kind: str, seed: int, side: int) -> None:
    chance = random.Random(seed)
    data = bytearray(ENCODINGS[kind])
    for _ in range(chance.randint(1, 5)):
        place = chance.randrange(chance.choice([min(len(data), 700), len(data)]))
        if chance.random() < 0.7:
            data[place] = chance.randrange(256)
        elif chance.random() < 0.5:
            del data[place : place + chance.randint(1, 20)]
        else:
            data[place:place] = chance.randbytes(chance.randint(1, 20))
    decoded, checked = looks(bytes(data), side)
    assert checked == decoded


@pytest.mark.parametrize("sampling", [0x11, 0x12, 0x13, 0x14, 0x21, 0x22, 0x23, 0x31, 0x33, 0x41, 0x44, 0x00, 0x55])
@pytest.mark.parametrize("place", [11, 14, 17])
def test_odd_sampling_is_refused_or_read_by_both(sampling: int, place: int) -> None:
    # Whether libjpeg can bring colours to the size of the picture might depend on the size that it unpacks to.
    data = bytearray(ENCODINGS["JPEG without subsampling"])
    data[data.index(b"\xff\xc0") + place] = sampling
    for side in (1, 8, 20, 40):
        decoded, checked = looks(bytes(data), side)
        assert checked == decoded
