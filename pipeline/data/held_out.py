"""Pictures of evaluation sets, which nothing may be trained on: known by id, and otherwise by their looks.

Ids are exact, and decide wherever both sides have one of the same data set. Everywhere else a perceptual hash tells
copies that were resized, recompressed or slightly recoloured. Pictures of one colour hash alike whatever they are, so
those have no hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

HASH_BITS = 64
MAX_DISTANCE = 4
"""Bits in which hashes of copies may differ; see tests/pipeline/data/test_held_out.py for what that finds."""
MIN_CONTRAST = 8.0
"""Standard deviation of grey values, 0 to 255, below which a picture shows too little to be known by its looks."""
_BANDS = MAX_DISTANCE + 1
"""Hashes that differ in at most ``MAX_DISTANCE`` bits are equal in one of these bands at least."""


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
        ids, looks = set(), set()
        for seen in sightings:
            if seen.picture_id is not None:
                ids.add(seen.picture_id)
            if seen.looks is not None:
                looks.add(seen.looks)
        self.ids = frozenset(ids)
        self._namespaces = frozenset(map(_namespace, ids))
        self._looks: NDArray[np.uint64] = np.array(sorted(looks), np.uint64)
        # Per band the hashes sorted by their bits there, so that the few to compare with are found by bisection.
        self._orders = [np.argsort(_band(self._looks, band), kind="stable") for band in range(_BANDS)]
        self._sorted = [_band(self._looks, band)[order] for band, order in enumerate(self._orders)]

    def __len__(self) -> int:
        """Count what is known: ids and hashes."""
        return len(self.ids) + len(self._looks)

    def digest(self) -> str:
        """Hash what is known, whatever the order it was given in."""
        known = "\n".join(sorted(self.ids)).encode() + self._looks.tobytes()
        return hashlib.sha256(known).hexdigest()

    def has(self, seen: Sighting) -> bool:
        """Tell whether a picture is one of these."""
        if seen.picture_id is not None and _namespace(seen.picture_id) in self._namespaces:
            return seen.picture_id in self.ids
        if seen.looks is None or not len(self._looks):
            return False
        wanted = np.uint64(seen.looks)
        for band in range(_BANDS):
            bits = _band(np.array([wanted]), band)[0]
            first, last = np.searchsorted(self._sorted[band], [bits, bits + np.uint64(1)])
            near = self._looks[self._orders[band][first:last]]
            if len(near) and int(np.bitwise_count(near ^ wanted).min()) <= MAX_DISTANCE:
                return True
        return False


def _namespace(picture_id: str) -> str:
    return picture_id.partition("/")[0]


def _band(hashes: NDArray[np.uint64], band: int) -> NDArray[np.uint64]:
    """Return a hash's bits of one band, as a small number."""
    first, last = band * HASH_BITS // _BANDS, (band + 1) * HASH_BITS // _BANDS
    return (hashes >> np.uint64(first)) & np.uint64((1 << (last - first)) - 1)
