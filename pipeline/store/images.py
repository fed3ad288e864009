"""The pictures that records refer to: from their bytes or their places to RGB."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from glip_model.images import ImageError, decode_image
from pipeline.store.filesystem import read_bytes, read_many
from pipeline.store.records import ImageRef


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


def read_encoded(refs: Sequence[ImageRef]) -> list[bytes | ImageError]:
    """Return encoded pictures in order, or why one cannot be read; those that rest elsewhere are read side by side."""
    found: list[bytes | ImageError] = [
        ref.bytes if ref.bytes is not None else ImageError("image_missing", "the record holds neither bytes nor a path")
        for ref in refs
    ]
    elsewhere = [(i, ref.path) for i, ref in enumerate(refs) if ref.bytes is None and ref.path is not None]
    for (i, _), data in zip(elsewhere, read_many([path for _, path in elsewhere]), strict=True):
        found[i] = data
    return found
