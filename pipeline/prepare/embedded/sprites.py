"""The sprites of the embedded data set: named emoji art in two styles, from a file beside the code, and as sketches."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageChops, ImageFilter, ImageOps

from pipeline.errors import ConfigError

SPRITES_FILE = Path(__file__).with_name("sprites.parquet")
STYLES = ("google", "twitter")
SKETCH: Final = "sketch"
"""A style of its own, which no model of the project learns from: dark outlines and grey shades of the first style."""
SPRITES_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string()),
        pa.field("plural", pa.string()),
        pa.field("group", pa.string()),
        pa.field("keywords", pa.list_(pa.string())),
        *(pa.field(style, pa.binary()) for style in STYLES),
    ]
)
_SPLIT_SALT = "glip-embedded-1"
"""Fixes which concepts are base and which novel, whatever the seed of a run."""


@dataclass(frozen=True, eq=False)
class Concept:
    """Something that can be drawn and named."""

    name: str
    plural: str
    group: str
    sprites: tuple[Image.Image, ...]
    """RGBA, 64 pixels high and wide, cropped to what is visible; one per style."""

    def sprite(self, style: str) -> Image.Image:
        """Return the art of a style."""
        return _sketch(self) if style == SKETCH else self.sprites[STYLES.index(style)]


@lru_cache(maxsize=1)
def load_concepts() -> dict[str, Concept]:
    """Return all concepts by name, in alphabetical order."""
    rows = pq.read_table(SPRITES_FILE).to_pylist()
    return {
        row["name"]: Concept(
            row["name"], row["plural"], row["group"], tuple(_decode_sprite(row[style]) for style in STYLES)
        )
        for row in rows
    }


def split_concepts(num_base: int, num_novel: int) -> tuple[list[str], list[str]]:
    """Choose base and novel concepts, the same for every seed and spread evenly over the groups.

    Raises:
        ConfigError: there are not as many concepts.
    """
    order = _spread()
    if num_base + num_novel > len(order):
        raise ConfigError(
            f"prepare.embedded asks for {num_base} base and {num_novel} novel concepts; there are {len(order)}"
        )
    chosen = order[: num_base + num_novel]
    every = (num_base + num_novel) / num_novel
    novel = {chosen[int(i * every)] for i in range(num_novel)}
    return sorted(name for name in chosen if name not in novel), sorted(novel)


def further_concepts(first: int, count: int) -> list[str]:
    """Return concepts that are among the first ones of no run that has so many, spread evenly over the groups.

    Raises:
        ConfigError: there are not as many concepts.
    """
    order = _spread()
    if first + count > len(order):
        raise ConfigError(f"{count} concepts besides {first} others are asked for; there are {len(order)} in all")
    return sorted(order[first : first + count])


@lru_cache(maxsize=1)
def _spread() -> list[str]:
    """Return all concepts in an order of which any beginning is spread over the groups."""
    concepts = load_concepts()

    def rank(name: str) -> str:
        return hashlib.sha256(f"{_SPLIT_SALT}/{name}".encode()).hexdigest()

    by_group: dict[str, list[str]] = {}
    for name in sorted(concepts, key=rank):
        by_group.setdefault(concepts[name].group, []).append(name)
    # Each concept's place within its group, as a share, spreads any prefix of the list over the groups.
    order = sorted(
        ((i + 0.5) / len(names), group, name) for group, names in by_group.items() for i, name in enumerate(names)
    )
    return [name for _, _, name in order]


@cache
def _sketch(concept: Concept) -> Image.Image:
    art = concept.sprites[0]
    alpha = art.getchannel("A")
    flat = Image.new("RGB", art.size, "white")
    flat.paste(art, mask=alpha)
    grey = ImageOps.grayscale(flat)
    edges = ImageChops.lighter(grey.filter(ImageFilter.FIND_EDGES), alpha.filter(ImageFilter.FIND_EDGES))
    shades = Image.blend(ImageOps.posterize(grey, 2), Image.new("L", art.size, 255), 0.5)
    shades.paste(30, mask=edges.point(lambda value: 255 if value > 60 else 0))
    drawn = shades.convert("RGB")
    drawn.putalpha(alpha)
    return drawn


def _decode_sprite(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    visible = image.getchannel("A").point(lambda alpha: 255 if alpha > 24 else 0).getbbox()
    return image.crop(visible) if visible else image
