"""Pictures from outside: decoded to RGB, or refused with a reason."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.data.records import ImageRef


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
            # Our own limit is checked below; Pillow's warning about a lower one would only repeat it.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
        if image.width * image.height > max_pixels:
            raise ImageError("image_too_large", f"{image.width}×{image.height} pixels; the limit is {max_pixels}")
        image.seek(0)
        upright = ImageOps.exif_transpose(image)
        return upright.convert("RGB")
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("image_too_large", str(error)) from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
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
    try:
        return decode_image(Path(ref.path).read_bytes(), max_pixels)
    except OSError as error:
        raise ImageError("image_missing", str(error)) from error
