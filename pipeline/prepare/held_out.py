"""Pictures of evaluation sets, which nothing may be trained on: known by id, and otherwise by their looks.

Ids are exact, and decide wherever both sides have one of the same data set. Everywhere else a perceptual hash tells
copies that were resized, recompressed or slightly recoloured. Pictures of one colour hash alike whatever they are, so
those have no hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import imagehash
import numpy as np
from PIL import Image

HASH_BITS = 64
MAX_DISTANCE = 4
"""Bits in which hashes of copies may differ; see tests/pipeline/prepare/test_held_out.py for what that finds.

Half of a hash's bits are set, so that the distances of pictures are even.
"""
MIN_CONTRAST = 8.0
"""Standard deviation of grey values, 0 to 255, below which a picture shows too little to be known by its looks."""
_CUTS = [band * HASH_BITS // (MAX_DISTANCE + 1) for band in range(MAX_DISTANCE + 2)]
_BANDS = [(first, (1 << (last - first)) - 1) for first, last in pairwise(_CUTS)]
"""First bit and mask of bands; hashes that differ in at most ``MAX_DISTANCE`` bits are equal in one band or more."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """By what a picture is known again."""

    picture_id: str | None
    """Such as ``coco/139``."""
    looks: int | None
    """Perceptual hash of 64 bits; None where the picture was not opened or shows too little."""


def perceptual_hash(image: Image.Image) -> int | None:
    """Hash what a picture looks like; None when it shows too little.

    Args:
        image: RGB, upright; small is enough.
    """
    grey = image.convert("L")
    if np.asarray(grey).std() < MIN_CONTRAST:
        return None
    return int(str(imagehash.phash(grey)), 16)


class HeldOut:
    """A set of pictures that answers whether another is one of them.

    Args:
        sightings: of the pictures that are held out.
    """

    def __init__(self, sightings: Iterable[Sighting]) -> None:
        seen = list(sightings)
        self.ids = frozenset(each.picture_id for each in seen if each.picture_id is not None)
        self._namespaces = frozenset(map(_namespace, self.ids))
        self._looks = frozenset(each.looks for each in seen if each.looks is not None)
        # Per band the hashes by their bits there: only the few under the same bits are compared.
        self._near: list[dict[int, list[int]]] = []
        for first, mask in _BANDS:
            by_bits: dict[int, list[int]] = {}
            for value in sorted(self._looks):
                by_bits.setdefault(value >> first & mask, []).append(value)
            self._near.append(by_bits)

    def __len__(self) -> int:
        """Count what is known: ids and hashes."""
        return len(self.ids) + len(self._looks)

    def digest(self) -> str:
        """Hash what is known, whatever the order it was given in."""
        digest = hashlib.sha256("\n".join(sorted(self.ids)).encode())
        for value in sorted(self._looks):
            digest.update(value.to_bytes(HASH_BITS // 8, "little"))
        return digest.hexdigest()

    def has(self, seen: Sighting) -> bool:
        """Tell whether a picture is one of these."""
        if seen.picture_id is not None and _namespace(seen.picture_id) in self._namespaces:
            return seen.picture_id in self.ids
        if seen.looks is None:
            return False
        return any(
            (value ^ seen.looks).bit_count() <= MAX_DISTANCE
            for (first, mask), by_bits in zip(_BANDS, self._near, strict=True)
            for value in by_bits.get(seen.looks >> first & mask, ())
        )


def _namespace(picture_id: str) -> str:
    return picture_id.partition("/")[0]
