"""The pictures that records refer to: from their bytes or their places to RGB."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from glip_model.images import ImageError, decode_image
from pipeline.store.filesystem import allowed_roots, check_inside, read_bytes, read_many
from pipeline.store.records import ImageRef
from pipeline.store.storage import Place, exists


def image_roots(place: Place, allowed: Sequence[str] = ()) -> list[str]:
    """Return where pictures of shards may be: the shards' folder, what is allowed, and what the environment allows."""
    return [str(place.parent if exists(place) else place), *allowed, *allowed_roots()]


def load_image(ref: ImageRef, max_pixels: int, roots: Sequence[str] | None = None) -> Image.Image:
    """Decode the picture that a record refers to, from its bytes, its path, its URL or its range of a file.

    Args:
        ref: of a record.
        max_pixels: larger pictures are refused.
        roots: folders and URLs that the place must be below; None allows every place.

    Raises:
        ImageError: as ``decode_image``, ``image_missing``, or ``image_outside_folder``.
    """
    if ref.bytes is not None:
        return decode_image(ref.bytes, max_pixels)
    if ref.path is None:
        raise ImageError("image_missing", "the record holds neither bytes nor a path")
    if roots is not None:
        check_inside(ref.path, roots)
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
