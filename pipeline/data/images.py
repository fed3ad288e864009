"""Pictures from outside: decoded to RGB, or refused with a reason."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.data.records import ImageRef

# What Pillow's decoders and its EXIF reader raise over broken files, by trial with thousands of them.
_DECODER_ERRORS = (
    UnidentifiedImageError,
    OSError,
    ValueError,
    TypeError,
    SyntaxError,
    EOFError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)


class ImageError(Exception):
    """A picture that cannot be used; ``reason`` is one of ``records.ROW_REJECT_REASONS``."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def decode_image(data: bytes, max_pixels: int) -> Image.Image:
    """Decode a picture of any format PIL reads to upright RGB; of an animation the first frame.

    Args:
        data: encoded bytes, untrusted.
        max_pixels: pictures with more are refused from their header, before anything is unpacked.

    Raises:
        ImageError: ``image_unreadable`` or ``image_too_large``.
    """
    try:
        with warnings.catch_warnings():
            # Our own limit is checked below, and what is wrong with a picture beyond use is raised: warnings are noise.
            warnings.simplefilter("ignore")
            return _decode(data, max_pixels)
    except Image.DecompressionBombError as error:
        raise ImageError("image_too_large", str(error)) from error
    except _DECODER_ERRORS as error:
        raise ImageError("image_unreadable", str(error)) from error


def load_image(ref: ImageRef, max_pixels: int) -> Image.Image:
    """Decode the picture that a record refers to, from its bytes or its path.

    Raises:
        ImageError: as ``decode_image``, or ``image_missing``.
    """
    if ref.bytes is not None:
        return decode_image(ref.bytes, max_pixels)
    if ref.path is None:
        raise ImageError("image_missing", "the record holds neither bytes nor a path")
    return decode_image(read_file(Path(ref.path)), max_pixels)


def read_file(path: Path) -> bytes:
    """Return the bytes of a picture's file; ImageError ``image_missing`` when there is no such regular file."""
    try:
        if not path.is_file():
            raise ImageError("image_missing", f"{path}: no such file")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have, with a null character in it
        raise ImageError("image_missing", str(error)) from error


def _decode(data: bytes, max_pixels: int) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    if image.width * image.height > max_pixels:
        raise ImageError("image_too_large", f"{image.width}×{image.height} pixels; the limit is {max_pixels}")
    image.seek(0)
    return ImageOps.exif_transpose(image).convert("RGB")
