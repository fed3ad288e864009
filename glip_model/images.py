"""Pictures from anywhere: paths, URLs, PIL pictures, arrays and tensors to RGB, or refused with a reason."""

from __future__ import annotations

import io
import math
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:  # what reads pictures alone does not wait for torch
    from torch import Tensor

ImageLike: TypeAlias = "Image.Image | str | Path | np.ndarray[Any, Any] | Tensor"
"""What the predictor takes for a picture; see ``open_image``."""

MAX_PIXELS = 100_000_000
"""Pictures with more are refused unless another limit is given; 10,000 × 10,000 needs 300 MB as RGB."""

# What Pillow's decoders and its EXIF reader raise over broken files, by trial with thousands of them.
_DECODER_ERRORS = (
    UnidentifiedImageError,
    OSError,
    ValueError,
    TypeError,
    SyntaxError,
    EOFError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)

_DRAWN_BY_PROGRAMS = {"EPS": "Ghostscript", "WMF": "Windows"}
"""Formats that Pillow gives to another program or to the system to run: not with files that anybody may have made."""

MIN_RANGE = 1 / 8
"""Deeper pictures whose values span a smaller part of their full scale are stretched, see ``to_rgb``."""

OUTLIERS = 1 / 10_000
"""Share of the pixels of a deeper picture, at either end of the values, that is ignored in its scale."""

_ORIENTATION = 0x0112
"""The EXIF tag of the camera's orientation."""
LYING = range(5, 9)
"""Its values for pictures that are turned by a quarter."""


class ImageError(ValueError):
    """A picture that cannot be used; ``reason`` is ``image_missing``, ``image_unreadable`` or ``image_too_large``."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def decode_image(data: bytes, max_pixels: int) -> Image.Image:
    """Decode a picture of any format PIL reads to upright RGB as ``to_rgb`` makes it; of an animation the first frame.

    Args:
        data: encoded bytes, untrusted.
        max_pixels: pictures with more are refused from their header, before anything is unpacked.

    Raises:
        ImageError: ``image_unreadable`` or ``image_too_large``.
    """
    with _picture_errors():
        return to_rgb(ImageOps.exif_transpose(_open(data, max_pixels)))


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a picture as 8-bit RGB, transparent pixels composed over white.

    Of a picture with one deeper channel (16-bit, 32-bit integer, float) black is 0 and white the full scale: 1 for
    floats up to 1, otherwise 2^n - 1 of the fewest bits n >= 8 that hold the greatest value, so that a 12-bit picture
    in a 16-bit file keeps its brightness. With values below 0, or that span less than ``MIN_RANGE`` of that scale
    (thermal cameras), the smallest value becomes black and the greatest white. NaN and -inf become black, inf white.
    The share ``OUTLIERS`` of the pixels at either end does not count as smallest or greatest: hot and dead pixels.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        return _deep_to_grey(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    over = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")


def _deep_to_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    finite = values[np.isfinite(values)]
    first = int(finite.size * OUTLIERS)
    last = finite.size - 1 - first
    low, high = np.partition(finite, (first, last))[[first, last]].tolist() if finite.size else (0.0, 0.0)
    is_unit = image.mode == "F" and high <= 1
    scale = 1.0 if is_unit else float(2 ** max(8, math.ceil(high).bit_length()) - 1)
    is_stretched = low < 0 or 0 < high - low < MIN_RANGE * scale
    black, white = (low, high) if is_stretched and high > low else (0.0, scale)
    shares = np.nan_to_num((values - black) / (white - black), nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1)
    grey = (shares * 255).round().astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # a PNG's one value that stands for nothing
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def check_image(data: bytes, max_pixels: int, side: int) -> tuple[tuple[int, int], Image.Image, int]:
    """Find out whether a picture can be decoded, without the cost of all its pixels where the format allows.

    Args:
        data: encoded bytes, untrusted.
        max_pixels: as for ``decode_image``.
        side: least height and width in pixels of the picture that comes back, where the original has them.

    Returns:
        (height, width) as ``decode_image`` would return it; the upright RGB picture, perhaps smaller; the EXIF
        orientation by which it was turned upright, 1 to 8.

    Raises:
        ImageError: as ``decode_image``.
    """
    with _picture_errors():
        image = _open(data, max_pixels)
        width, height = image.size
        orientation = next((value for value in range(2, 9) if value == image.getexif().get(_ORIENTATION)), 1)
        # A JPEG is read to its end, so that a truncated one is found, but its blocks are unpacked to a few pixels only.
        is_reduced = image.draft("RGB", (side, side)) is not None
        upright = to_rgb(ImageOps.exif_transpose(image))
        if not is_reduced:
            return (upright.height, upright.width), upright, orientation
        return ((width, height) if orientation in LYING else (height, width)), upright, orientation


@contextmanager
def _picture_errors() -> Iterator[None]:
    """Turn what decoders raise and warn of into ImageErrors."""
    try:
        with warnings.catch_warnings():
            # Our own limit is checked, and what is wrong with a picture beyond use is raised: warnings are noise.
            warnings.simplefilter("ignore")
            yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("image_unreadable", "its bytes are none of a picture format that can be read") from error
    except Image.DecompressionBombError as error:
        raise ImageError("image_too_large", str(error)) from error
    except _DECODER_ERRORS as error:
        raise ImageError("image_unreadable", str(error)) from error


def open_image(source: ImageLike, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return a picture as RGB.

    Args:
        source: a path or a URL of any file system that fsspec knows; a PIL picture, taken as it lies; an array
            (H, W, 3), (H, W, 4) or (H, W) of uint8 in RGB order, the fourth channel alpha; a tensor (3, H, W) of
            uint8, or of floats in [0, 1].
        max_pixels: limit for files, see ``decode_image``.

    Raises:
        ImageError: there is no such file, or it is no picture.
        ValueError: an array or tensor of another shape, type or range.
    """
    if isinstance(source, Image.Image):
        return to_rgb(source)
    if isinstance(source, str | Path):
        return _from_file(str(source), max_pixels)
    return _from_array(source) if isinstance(source, np.ndarray) else _from_tensor(source)


def _from_file(url: str, max_pixels: int) -> Image.Image:
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        if isinstance(filesystem, LocalFileSystem) and os.path.exists(path) and not os.path.isfile(path):
            raise OSError("it is no file but a folder, a pipe or a device, which may never end")
        with filesystem.open(path, "rb") as file:
            data = file.read()
    except (OSError, ValueError, ImportError) as error:  # ImportError: a file system whose package is not installed
        raise ImageError("image_missing", f"{url}: cannot be read: {error}") from error
    try:
        return decode_image(data, max_pixels)
    except ImageError as error:
        raise ImageError(error.reason, f"{url}: {error}") from error


def _from_array(pixels: np.ndarray[Any, Any]) -> Image.Image:
    is_picture = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not is_picture or 0 in pixels.shape:
        raise ValueError(f"an array must be (H, W, 3) of uint8, got {pixels.shape} of {pixels.dtype}")
    return to_rgb(Image.fromarray(pixels))


def _from_tensor(tensor: Tensor) -> Image.Image:
    if tensor.ndim != 3 or tensor.shape[0] != 3 or 0 in tensor.shape:
        raise ValueError(f"a tensor must be (3, H, W), got {tuple(tensor.shape)}")
    pixels: np.ndarray[Any, Any] = tensor.detach().float().cpu().numpy().transpose(1, 2, 0)
    if tensor.is_floating_point():
        if not ((pixels >= 0) & (pixels <= 1)).all():
            raise ValueError("a tensor of floats must lie in [0, 1]; give pixels of 0 to 255 as uint8")
        pixels = (pixels * 255).round()
    elif tensor.element_size() != 1:
        raise ValueError(f"a tensor must be of uint8 or floats, got {tensor.dtype}")
    return Image.fromarray(pixels.astype(np.uint8))


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read a picture's header; of an animation the first frame's."""
    image = Image.open(io.BytesIO(data))
    if image.format in _DRAWN_BY_PROGRAMS:
        raise ImageError(
            "image_unreadable", f"{image.format} is a program for {_DRAWN_BY_PROGRAMS[image.format]}; make a PNG of it"
        )
    if image.width * image.height > max_pixels:
        raise ImageError("image_too_large", f"{image.width}×{image.height} pixels; the limit is {max_pixels}")
    image.seek(0)
    return image
