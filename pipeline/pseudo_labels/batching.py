"""Batches of pictures that can run together, out of a window over pictures of all shapes."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

WINDOW_BATCHES = 16
"""Pictures that wait for others of their shape at most, in batches."""
WINDOW_PIXELS = 1 << 27
"""And the pixels of all of them, 400 MB."""


class BatchWindow(Generic[T]):
    """Holds pictures back until there is a batch of their shape.

    What comes out, and in which order, depends on what went in alone: a shard that is made again is the same.

    Args:
        batch_size: pictures of a full batch.
        max_pixels: held at most; the last picture may pass it.
    """

    def __init__(self, batch_size: int, max_pixels: int = WINDOW_PIXELS) -> None:
        self._batch_size, self._max_pixels = batch_size, max_pixels
        self._groups: dict[Hashable, list[tuple[int, T]]] = {}
        self._count = self._pixels = 0

    def add(self, shape: Hashable, pixels: int, item: T) -> Iterator[list[T]]:
        """Take a picture of that many pixels; yield the batches that are due: a full one, or what has no room."""
        group = self._groups.setdefault(shape, [])
        group.append((pixels, item))
        self._count, self._pixels = self._count + 1, self._pixels + pixels
        if len(group) == self._batch_size:
            yield self._take(shape)
        while self._count > WINDOW_BATCHES * self._batch_size or self._pixels > self._max_pixels:
            # The fullest one, of several the one that began first: the others have the most to gain from waiting.
            yield self._take(max(self._groups, key=lambda shape: len(self._groups[shape])))

    def rest(self) -> Iterator[list[T]]:
        """Yield what is left, when no more pictures come."""
        while self._groups:
            yield self._take(next(iter(self._groups)))

    def _take(self, shape: Hashable) -> list[T]:
        group = self._groups.pop(shape)
        self._count -= len(group)
        self._pixels -= sum(pixels for pixels, _ in group)
        return [item for _, item in group]
