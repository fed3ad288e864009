"""The pictures that records refer to: from their bytes or their places to RGB."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from glip_model.images import ImageError, decode_image
from pipeline.store.filesystem import read_many
from pipeline.store.records import ImageRef
from pipeline.store.storage import Place, exists


def image_roots(place: Place, allowed: Sequence[str]) -> list[str]:
    """Return where pictures of shards may be: the shards' folder, and what ``allowed_roots`` names."""
    return [str(place.parent if exists(place) else place), *allowed]


def load_image(ref: ImageRef, max_pixels: int, roots: Sequence[str]) -> Image.Image:
    """Decode the picture that a record refers to, from its bytes, its path, its URL or its range of a file.

    Args:
        ref: of a record.
        max_pixels: larger pictures are refused.
        roots: folders and URLs that the place must be below, see ``check_inside``.

    Raises:
        ImageError: as ``decode_image``, ``image_missing``, or ``image_outside_folder``.
    """
    (data,) = read_encoded([ref], roots)
    if isinstance(data, ImageError):
        raise data
    return decode_image(data, max_pixels)


def read_encoded(refs: Sequence[ImageRef], roots: Sequence[str]) -> list[bytes | ImageError]:
    """Return encoded pictures in order, or why one cannot be read; those that rest elsewhere are read side by side.

    Args:
        refs: of records.
        roots: folders and URLs that the places must be below, see ``check_inside``.
    """
    found: list[bytes | ImageError] = [
        ref.bytes if ref.bytes is not None else ImageError("image_missing", "the record holds neither bytes nor a path")
        for ref in refs
    ]
    elsewhere = [(i, ref.path) for i, ref in enumerate(refs) if ref.bytes is None and ref.path is not None]
    for (i, _), data in zip(elsewhere, read_many([path for _, path in elsewhere], roots), strict=True):
        found[i] = data
    return found
