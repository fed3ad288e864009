"""Scenes of the embedded data set: sprites composed over textured backgrounds, with the truth about every object.

A scene is a function of its random generator alone, so a seed and a number regenerate it anywhere.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from pipeline.prepare.embedded.sprites import STYLES, Concept
from pipeline.store.records import Box

MIN_SIDE_SHARE, MAX_SIDE_SHARE = 0.38, 0.62
"""Longest side of an object as a share of the picture's."""
MAX_SHARED_BOX = 0.35
"""Two boxes share at most this part of the smaller one."""
MIN_VISIBLE_SHARE = 0.6
"""Of every object at least this part stays in sight, whatever is drawn over it."""
VISIBLE_ALPHA = 64
"""A sprite's pixels above this, of 255, count as the object; its box is tight around them."""
MAX_ROTATION_DEGREES = 25.0
SAME_AGAIN_SHARE = 0.3
"""Probability that an object repeats the concept before it, so that plurals occur."""
PLACEMENT_TRIES = 25
JPEG_QUALITY = 92


@dataclass(frozen=True)
class SceneObject:
    """One object as it was drawn."""

    concept: Concept
    box: Box
    """Tight corners in pixels around what the sprite covers."""

    @property
    def center(self) -> tuple[float, float]:
        """Middle of the box as (x, y)."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def side(self) -> float:
        """Geometric mean of width and height in pixels."""
        return math.sqrt((self.box[2] - self.box[0]) * (self.box[3] - self.box[1]))


class _Canvas:
    """The picture while it is drawn, and which object each of its pixels shows."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.boxes: list[Box] = []
        self._owners: NDArray[np.int16] = np.full((image.height, image.width), -1, np.int16)
        self._areas: list[int] = []
        self._visible: NDArray[np.int64] = np.zeros(0, np.int64)

    def has_room(self, mask: NDArray[np.bool_], box: Box) -> bool:
        """Say whether an object, True in its mask, fits here without hiding too much of the others."""
        if any(_shared_share(box, other) > MAX_SHARED_BOX for other in self.boxes):
            return False
        return bool((self._visible - self._covered(mask, box) >= MIN_VISIBLE_SHARE * np.array(self._areas)).all())

    def draw(self, sprite: Image.Image, mask: NDArray[np.bool_], box: Box) -> None:
        """Draw an object over the others."""
        self._visible = np.append(self._visible - self._covered(mask, box), mask.sum())
        self._region(box)[mask] = len(self._areas)
        self._areas.append(int(mask.sum()))
        self.boxes.append(box)
        self.image.paste(sprite, (int(box[0]), int(box[1])), sprite)

    def _covered(self, mask: NDArray[np.bool_], box: Box) -> NDArray[np.int64]:
        """Count the pixels of every object that the mask would hide."""
        hidden = self._region(box)[mask]
        return np.bincount(hidden[hidden >= 0], minlength=len(self._areas))

    def _region(self, box: Box) -> NDArray[np.int16]:
        x1, y1, x2, y2 = map(int, box)
        return self._owners[y1:y2, x1:x2]


@dataclass(frozen=True)
class Scene:
    """A picture and what it shows."""

    image: Image.Image
    objects: tuple[SceneObject, ...]

    def encode(self) -> bytes:
        """Return the picture as JPEG."""
        out = io.BytesIO()
        self.image.save(out, "JPEG", quality=JPEG_QUALITY)
        return out.getvalue()


def compose_scene(
    rng: np.random.Generator,
    concepts: Sequence[Concept],
    weights: Sequence[float],
    image_size: int,
    num_objects: tuple[int, int],
    styles: Sequence[str] = STYLES,
) -> Scene:
    """Draw one scene.

    Args:
        rng: the only source of chance.
        concepts: what may be drawn.
        weights: their probabilities.
        image_size: side in pixels.
        num_objects: fewest and most objects; an object that finds no free place is left out, the first always fits.
        styles: of art, each as likely as the others.
    """
    canvas = _Canvas(_background(rng, image_size))
    objects: list[SceneObject] = []
    cumulative = np.cumsum(weights)
    for _ in range(int(rng.integers(num_objects[0], num_objects[1] + 1))):
        if objects and rng.random() < SAME_AGAIN_SHARE:
            concept = objects[-1].concept
        else:
            concept = concepts[int(np.searchsorted(cumulative, rng.random() * cumulative[-1]))]
        sprite = _vary(rng, concept.sprite(styles[int(rng.integers(len(styles)))]), image_size)
        mask = np.asarray(sprite.getchannel("A")) > VISIBLE_ALPHA
        box = _find_place(rng, canvas, mask)
        if box is not None:
            canvas.draw(sprite, mask, box)
            objects.append(SceneObject(concept, box))
    return Scene(canvas.image, tuple(objects))


def _vary(rng: np.random.Generator, sprite: Image.Image, image_size: int) -> Image.Image:
    """Scale, flip, rotate and jitter a sprite; crop it to what is visible."""
    side = image_size * rng.uniform(MIN_SIDE_SHARE, MAX_SIDE_SHARE)
    scale = side / max(sprite.size)
    size = (max(2, round(sprite.width * scale)), max(2, round(sprite.height * scale)))
    sprite = sprite.resize(size, Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    angle = rng.uniform(-MAX_ROTATION_DEGREES, MAX_ROTATION_DEGREES)
    sprite = sprite.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    visible = sprite.getchannel("A").point(lambda alpha: 255 if alpha > VISIBLE_ALPHA else 0).getbbox()
    sprite = sprite.crop(visible) if visible else sprite
    alpha = sprite.getchannel("A")
    colour = ImageEnhance.Brightness(sprite.convert("RGB")).enhance(rng.uniform(0.8, 1.15))
    colour = ImageEnhance.Color(colour).enhance(rng.uniform(0.7, 1.3))
    colour.putalpha(alpha)
    return colour


def _find_place(rng: np.random.Generator, canvas: _Canvas, mask: NDArray[np.bool_]) -> Box | None:
    height, width = mask.shape
    for _ in range(PLACEMENT_TRIES):
        x = int(rng.integers(0, max(1, canvas.image.width - width + 1)))
        y = int(rng.integers(0, max(1, canvas.image.height - height + 1)))
        box = (float(x), float(y), float(x + width), float(y + height))
        if canvas.has_room(mask, box):
            return box
    return None


def _shared_share(new: Box, old: Box) -> float:
    """Return the shared area as a share of the smaller of the two boxes."""
    width = min(new[2], old[2]) - max(new[0], old[0])
    height = min(new[3], old[3]) - max(new[1], old[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (new, old)]
    return width * height / min(areas)


def _background(rng: np.random.Generator, size: int) -> Image.Image:
    """Return a textured background: gradient, stripes, checks or blobs between two or three colours, and grain."""
    colours = rng.integers(30, 236, size=(3, 3)).astype(np.float32)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    kind = int(rng.integers(4))
    if kind == 0:
        angle = rng.uniform(0, 2 * math.pi)
        mix = (np.cos(angle) * x + np.sin(angle) * y) / 2 + 0.5
    elif kind == 1:
        angle, waves = rng.uniform(0, math.pi), rng.uniform(3, 14)
        mix = (np.sin((np.cos(angle) * x + np.sin(angle) * y) * waves * 2 * math.pi) + 1) / 2
    elif kind == 2:
        cells = int(rng.integers(3, 10))
        mix = ((np.floor(x * cells) + np.floor(y * cells)) % 2).astype(np.float32)
    else:
        cells = int(rng.integers(3, 9))
        blobs = Image.fromarray((rng.random((cells, cells)) * 255).astype(np.uint8))
        mix = np.asarray(blobs.resize((size, size), Image.Resampling.BICUBIC), np.float32) / 255
    # Colours are drawn together: a busy background should not outshine what stands before it.
    second = colours[0] * 0.5 + colours[1] * 0.5
    pixels = colours[0] * (1 - mix[..., None]) + second * mix[..., None]
    pixels += rng.normal(0, rng.uniform(1, 8), (size, size, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
