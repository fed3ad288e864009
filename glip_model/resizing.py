"""The published resize rule, without torch: processes that do no more than decode pictures apply it too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def resize_size(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Return the (height, width) that a picture is resized to.

    The short side becomes ``short_side`` unless the long side would exceed ``long_side``; the long side is truncated,
    as published. Of a sliver one row or column of pixels is left, where the published rule leaves nothing.
    """
    short, long = min(height, width), max(height, width)
    if short_side * long / short > long_side:
        short_side = round(long_side * short / long)
        if short_side == 0:
            return (1, long_side) if height < width else (long_side, 1)
    if short == short_side:
        return height, width
    other = int(short_side * long / short)
    return (short_side, other) if height < width else (other, short_side)


def padded_size(size: tuple[int, int], divisor: int) -> tuple[int, int]:
    """Return the (height, width) that a picture of this size is padded to when it is alone in its batch."""
    height, width = size
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


@dataclass(frozen=True, eq=False)
class ResizedImage:
    """A picture at the size that a model sees, before anything else is done to its pixels."""

    pixels: NDArray[np.uint8]
    """(h, w, 3) RGB."""
    original_size: tuple[int, int]
    """(height, width) before resizing; boxes are in pixels of this size."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def mirrored(self) -> ResizedImage:
        """Return the picture with left and right changed."""
        return ResizedImage(self.pixels[:, ::-1], self.original_size)


@dataclass(frozen=True)
class ResizeRule:
    """How a model wants its pictures; pickled to where they are decoded."""

    short_side: int
    long_side: int
    size_divisor: int
    """Padded height and width are multiples of it."""

    def size(self, original: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) that a picture of this size is resized to."""
        return resize_size(*original, self.short_side, self.long_side)

    def padded(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) of a batch of pictures of this size, which are resized already."""
        return padded_size(size, self.size_divisor)

    def resize(self, image: Image.Image) -> Image.Image:
        """Return a picture at its size; ValueError where it is of another mode than RGB."""
        if image.mode != "RGB":
            raise ValueError(f"pictures must be RGB, got mode {image.mode!r}; convert it: image.convert('RGB')")
        height, width = self.size((image.height, image.width))
        return image.resize((width, height), Image.Resampling.BILINEAR)

    def __call__(self, image: Image.Image) -> ResizedImage:
        """Resize an RGB picture as ``resize`` does."""
        return ResizedImage(np.asarray(self.resize(image)), (image.height, image.width))
