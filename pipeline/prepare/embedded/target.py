"""A domain that no model of the embedded run has seen, to be tuned to: other concepts, in another style of art."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import numpy as np

from pipeline.errors import ConfigError
from pipeline.prepare.embedded.scenes import compose_scene
from pipeline.prepare.embedded.sprites import SKETCH, further_concepts, load_concepts
from pipeline.prepare.embedded.tables import head_of
from pipeline.prepare.raw import Part, RawTable, SourceContext
from pipeline.prepare.readers.odinw import draw_pictures
from pipeline.prepare.settings import EmbeddedConfig
from pipeline.store.records import Category, DetectedObject, DetectionRecord

SOURCE = "embedded_target"
_STREAMS = {"human": 6, "dev": 7, "test": 8}
"""Further ones than those of the embedded run: no picture serves two roles."""


def read_embedded_target(
    context: SourceContext,
    *,
    pictures: int = 300,
    concepts: int = 12,
    style: Literal["google", "twitter", "sketch"] = SKETCH,
    shots: int = 0,
    shot_seed: int = 3,
) -> list[RawTable]:
    """Emoji scenes of concepts that the embedded run does not have, as sketches; every role has its own pictures.

    Options:
        pictures: of the role.
        concepts: that are drawn.
        style: of art.
        shots: 0 takes all pictures; K a subset with at least K of every concept, as ODinW's, see ``draw_pictures``.
        shot_seed: each draws another subset.
    """
    if context.role not in _STREAMS:
        raise ConfigError(
            f"prepare.{context.role}: reader 'embedded_target' has pictures for human, dev and test alone"
        )
    if min(pictures, concepts) < 1 or shots < 0:
        raise ConfigError("reader 'embedded_target': pictures and concepts must be at least 1, and shots at least 0")
    config = context.config.embedded
    names = further_concepts(config.base_concepts + config.novel_concepts, concepts)
    make = partial(_record, config, names, style, context.seed, _STREAMS[context.role])
    numbers = list(range(pictures))
    if shots:
        shown = {str(number): {item.category_id for item in make(number).objects} for number in numbers}
        numbers = sorted(map(int, draw_pictures(shown, shots, shot_seed)))

    def parts(rows_per_part: int) -> Iterator[Part]:
        for start in range(0, len(numbers), rows_per_part):
            mine = numbers[start : start + rows_per_part]
            told = f"{mine} of {names} as {style}, {config} with seed {context.seed}"
            yield Part(f"{SOURCE} {mine[0]} to {mine[-1]}", told, partial(_rows, make, mine), len(mine))

    categories = tuple(Category(id=number, name=name) for number, name in enumerate(names, 1))
    return [RawTable(DetectionRecord, parts, len(numbers), categories)]


def _rows(make: partial[DetectionRecord], numbers: Sequence[int]) -> Iterator[DetectionRecord]:
    return map(make, numbers)


def _record(
    config: EmbeddedConfig, names: Sequence[str], style: str, seed: int, stream: int, number: int
) -> DetectionRecord:
    concepts = load_concepts()
    scene = compose_scene(
        np.random.default_rng([seed, stream, number]),
        [concepts[name] for name in names],
        [1.0] * len(names),
        config.image_size,
        (config.min_objects, config.max_objects),
        (style,),
    )
    ids = {name: place for place, name in enumerate(names, 1)}
    objects = tuple(DetectedObject(category_id=ids[each.concept.name], xyxy=each.box) for each in scene.objects)
    return DetectionRecord(objects=objects, **head_of(scene, source=SOURCE))
