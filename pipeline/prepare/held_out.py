"""Pictures of evaluation sets, which nothing may be trained on: known by id, and otherwise by their looks.

Ids are exact, and decide between two pictures that have ids of one kind. Between others a perceptual hash tells copies
that were resized, recompressed or slightly recoloured. Frames of one camera hash alike as well: between parts of one
data set its own split stands. Pictures of one colour hash alike whatever they are, so those have no hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
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
    """Kind and number, such as ``coco/139``."""
    looks: int | None
    """Perceptual hash of 64 bits; None where the picture was not opened or shows too little."""
    data_set: str = ""
    """What the picture is a part of; empty where nobody said."""

    @property
    def kind(self) -> str:
        """The kind of its id; empty without one."""
        return (self.picture_id or "").partition("/")[0]


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
        self._ids: dict[str, set[str]] = {}
        """Of each the data sets with such a picture."""
        self._looks: dict[int, set[tuple[str, str]]] = {}
        """Of each the data sets with such a picture, and the kind of its id."""
        for each in seen:
            if each.picture_id is not None:
                self._ids.setdefault(each.picture_id, set()).add(each.data_set)
            if each.looks is not None:
                self._looks.setdefault(each.looks, set()).add((each.data_set, each.kind))
        # Per band the hashes by their bits there: only the few under the same bits are compared.
        self._near: list[dict[int, list[int]]] = []
        for first, mask in _BANDS:
            by_bits: dict[int, list[int]] = {}
            for value in sorted(self._looks):
                by_bits.setdefault(value >> first & mask, []).append(value)
            self._near.append(by_bits)

    def __len__(self) -> int:
        """Count what is known: ids and hashes."""
        return len(self._ids) + len(self._looks)

    def digest(self) -> str:
        """Hash what is known, whatever the order it was given in."""
        ids = sorted((each, sorted(data_sets)) for each, data_sets in self._ids.items())
        looks = sorted((each, sorted(places)) for each, places in self._looks.items())
        return hashlib.sha256(repr((ids, looks)).encode()).hexdigest()

    def has(self, seen: Sighting) -> bool:
        """Tell whether a picture is one of these, of another data set."""
        return any(_differ(seen.data_set, other) for other in self._ids.get(seen.picture_id or "", ())) or any(
            _differ(seen.data_set, other) and _differ(seen.kind, kind) for other, kind in self._that_look_like(seen)
        )

    def resembles(self, seen: Sighting) -> bool:
        """Tell whether a picture is or looks like one of these, of whatever data set."""
        return seen.picture_id in self._ids or any(True for _ in self._that_look_like(seen))

    def _that_look_like(self, seen: Sighting) -> Iterator[tuple[str, str]]:
        """Yield data set and kind of id of pictures that look like one."""
        if seen.looks is None:
            return
        for (first, mask), by_bits in zip(_BANDS, self._near, strict=True):
            for value in by_bits.get(seen.looks >> first & mask, ()):
                if (value ^ seen.looks).bit_count() <= MAX_DISTANCE:
                    yield from self._looks[value]


def group_alike(looks: Sequence[int | None]) -> list[int]:
    """Group pictures that look alike, or that others between them link.

    Args:
        looks: perceptual hashes; None is like no other.

    Returns:
        The number of each picture's group.
    """
    values = np.array(sorted({each for each in looks if each is not None}), np.uint64)
    groups: dict[int, int] = {}
    number = 0
    while len(values):
        border, values = [values[0]], values[1:]
        while border:
            value = border.pop()
            groups[int(value)] = number
            near = np.bitwise_count(values ^ value) <= MAX_DISTANCE
            border += list(values[near])
            values = values[~near]
        number += 1
    return [groups[each] if each is not None else number + i for i, each in enumerate(looks)]


def _differ(one: str, other: str) -> bool:
    """Tell whether two may not be the same: of what is empty nobody knows."""
    return not one or one != other
