"""The picture that a record refers to: from its bytes or its place to RGB."""

from __future__ import annotations

from PIL import Image

from glip_model.images import ImageError, decode_image
from pipeline.data.filesystem import read_bytes
from pipeline.data.records import ImageRef


def load_image(ref: ImageRef, max_pixels: int) -> Image.Image:
    """Decode the picture that a record refers to, from its bytes, its path, its URL or its range of a file.

    Raises:
        ImageError: as ``decode_image``, or ``image_missing``.
    """
    if ref.bytes is not None:
        return decode_image(ref.bytes, max_pixels)
    if ref.path is None:
        raise ImageError("image_missing", "the record holds neither bytes nor a path")
    return decode_image(read_bytes(ref.path), max_pixels)
