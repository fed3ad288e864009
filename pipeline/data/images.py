"""The picture that a record refers to: from its bytes or its path to RGB."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from glip_model.images import ImageError, decode_image
from pipeline.data.records import ImageRef


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
