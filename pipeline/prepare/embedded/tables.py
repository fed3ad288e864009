"""The embedded data set as tables of records: human data, web pairs, dev and test.

Human data shows and names base concepts only. Web pairs show base and novel concepts and carry a noisy caption alone.
Dev and test ask three things of the same pictures: category boxes, phrases of a caption, one object by an expression.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
from PIL import Image

from pipeline.errors import ConfigError
from pipeline.prepare.embedded.captions import (
    CaptionWriter,
    Mention,
    add_junk,
    group_mentions,
    write_caption,
    write_expression,
)
from pipeline.prepare.embedded.scenes import Scene, compose_scene
from pipeline.prepare.embedded.sprites import Concept, load_concepts, split_concepts
from pipeline.prepare.raw import Part, RawTable, SourceContext
from pipeline.prepare.settings import EmbeddedConfig
from pipeline.store.records import (
    CaptionRecord,
    Category,
    DetectedObject,
    DetectionRecord,
    GroundingRecord,
    ImageRef,
    Phrase,
    Record,
    ScoredBox,
)

SOURCE = "embedded"
# Every kind of picture draws from a stream of its own, so that no picture serves two roles.
_STREAMS = {"human_detection": 1, "human_grounding": 2, "web": 3, "dev": 4, "test": 5, "web_noise": 6}
PICTURES_PER_WRONG_CAPTION = 20
DOUBLE_QUALITY = 75
"""Of the JPEG that a double is compressed to."""


@dataclass(frozen=True)
class _Pool:
    """Concepts that may be drawn, with their weights; base names and category ids with them."""

    concepts: tuple[Concept, ...]
    weights: tuple[float, ...]
    base: frozenset[str]
    ids: dict[str, int]
    styles: tuple[str, ...]


_Make = Callable[[np.random.Generator, _Pool, EmbeddedConfig], Record | None]


def read_embedded(context: SourceContext) -> list[RawTable]:
    """Emoji scenes that ship with the project; every role has its own pictures."""
    config = context.config.embedded
    counts = {"human_detection": config.human_detection, "human_grounding": config.human_grounding, "web": config.web}
    counts |= {"dev": config.dev, "test": config.test}

    def table(kind: type, make: _Make, stream: str, folder: str | None = None) -> RawTable:
        def parts(rows_per_part: int) -> Iterator[Part]:
            for start in range(0, counts[stream], rows_per_part):
                stop = min(start + rows_per_part, counts[stream])
                name = f"{stream} {start} to {stop}"
                rows = partial(_rows, make, stream, config, context.seed, start, stop)
                yield Part(name, f"{name} of {config} with seed {context.seed}", rows, stop - start)

        vocabulary = tuple(categories(config, with_novel=context.role != "human")) if kind is DetectionRecord else ()
        return RawTable(kind, parts, counts[stream], vocabulary, folder)

    if context.role == "human":
        return [
            table(DetectionRecord, _detection, "human_detection"),
            table(GroundingRecord, _grounding, "human_grounding"),
        ]
    if context.role == "web":
        noise = [_noise_table(config, context.seed)] if sum(_noise(config).values()) else []
        return [table(CaptionRecord, _web, "web"), *noise]
    if context.role not in ("dev", "test"):
        raise ConfigError(f"prepare.{context.role}: reader 'embedded' has pictures of its own for every other role")
    return [
        table(DetectionRecord, _detection, context.role),
        table(GroundingRecord, _grounding, context.role),
        table(GroundingRecord, _referring, context.role, "referring"),
    ]


def categories(config: EmbeddedConfig, with_novel: bool) -> list[Category]:
    """Return the vocabulary; ids count base and novel concepts together, from 1, in alphabetical order."""
    base, novel = split_concepts(config.base_concepts, config.novel_concepts)
    splits = {**dict.fromkeys(base, "base"), **dict.fromkeys(novel, "novel")}
    return [
        Category(id=i, name=name, split=splits[name])
        for i, name in enumerate(sorted(splits), start=1)
        if with_novel or splits[name] == "base"
    ]


def web_truth(config: EmbeddedConfig, seed: int, number: int) -> GroundingRecord:
    """Regenerate what web pair ``number`` really shows: its caption with the true boxes of every mention.

    A mention of something absent has no boxes. Training never sees this; it serves to judge pseudo-labels.
    """
    rng = _generator("web", seed, number)
    pool = _pool(config, with_novel=True, skew=config.web_skew)
    scene = _scene(rng, pool, config)
    writer = _web_caption(rng, pool, scene, config)
    return GroundingRecord(phrases=writer.phrases(pool.base), caption=writer.text, **head_of(scene, writer.text))


def _rows(make: _Make, stream: str, config: EmbeddedConfig, seed: int, start: int, stop: int) -> Iterator[Record]:
    pool = _pool(config, not stream.startswith("human"), config.web_skew if stream == "web" else 0.0)
    for number in range(start, stop):
        record = make(_generator(stream, seed, number), pool, config)
        # A scene without an object that a simple expression singles out has no referring record.
        if record is not None:
            yield record


def _generator(stream: str, seed: int, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, _STREAMS[stream], number])


@lru_cache(maxsize=4)
def _pool(config: EmbeddedConfig, with_novel: bool, skew: float = 0.0) -> _Pool:
    base, novel = split_concepts(config.base_concepts, config.novel_concepts)
    ids = {category.name: category.id for category in categories(config, with_novel=True)}
    concepts = load_concepts()
    share = config.novel_share if with_novel else 0.0
    names = base + (novel if with_novel else [])
    weights = _weights(len(base), 1 - share, skew) + (_weights(len(novel), share, skew) if with_novel else [])
    styles = config.web_styles if with_novel else config.human_styles
    return _Pool(tuple(concepts[name] for name in names), tuple(weights), frozenset(base), ids, styles)


def _weights(count: int, total: float, skew: float) -> list[float]:
    """Return weights by Zipf's law; without skew exactly alike."""
    if not skew:
        return [total / count] * count
    shares = [rank**-skew for rank in range(1, count + 1)]
    return [total * share / sum(shares) for share in shares]


def _scene(rng: np.random.Generator, pool: _Pool, config: EmbeddedConfig) -> Scene:
    num_objects = config.min_objects, config.max_objects
    return compose_scene(rng, pool.concepts, pool.weights, config.image_size, num_objects, pool.styles)


def _detection(rng: np.random.Generator, pool: _Pool, config: EmbeddedConfig) -> DetectionRecord:
    scene = _scene(rng, pool, config)
    objects = tuple(
        DetectedObject(category_id=pool.ids[placed.concept.name], xyxy=placed.box) for placed in scene.objects
    )
    return DetectionRecord(objects=objects, **head_of(scene))


def _grounding(rng: np.random.Generator, pool: _Pool, config: EmbeddedConfig) -> GroundingRecord:
    scene = _scene(rng, pool, config)
    writer = write_caption(rng, group_mentions(scene.objects), config.image_size)
    return GroundingRecord(phrases=writer.phrases(pool.base), caption=writer.text, **head_of(scene, writer.text))


def _referring(rng: np.random.Generator, pool: _Pool, config: EmbeddedConfig) -> GroundingRecord | None:
    scene = _scene(rng, pool, config)
    found = write_expression(rng, scene.objects, config.image_size)
    if found is None:
        return None
    text, target = found
    split = "base" if target.concept.name in pool.base else "novel"
    boxes = (ScoredBox(xyxy=target.box),)
    phrase = Phrase(text=text, char_spans=((0, len(text)),), boxes=boxes, split=split, is_plural=False)
    return GroundingRecord(phrases=(phrase,), caption=text, **head_of(scene, text))


def _web(rng: np.random.Generator, pool: _Pool, config: EmbeddedConfig) -> CaptionRecord:
    scene = _scene(rng, pool, config)
    writer = _web_caption(rng, pool, scene, config)
    return CaptionRecord(caption=writer.text, **head_of(scene, writer.text))


def _web_caption(rng: np.random.Generator, pool: _Pool, scene: Scene, config: EmbeddedConfig) -> CaptionWriter:
    """Write a caption as the web has them: objects left out, absent ones mentioned, junk around it."""
    mentions = group_mentions(scene.objects)
    kept = [mention for mention in mentions if rng.random() >= config.omitted_mention_share] or mentions[:1]
    if rng.random() < config.absent_mention_share:
        shown = {placed.concept.name for placed in scene.objects}
        absent = pool.concepts[int(rng.integers(len(pool.concepts)))]
        if absent.name not in shown:
            kept.append(Mention(absent, ()))
    writer = write_caption(rng, kept, config.image_size)
    add_junk(rng, writer)
    return writer


def _noise(config: EmbeddedConfig) -> dict[str, int]:
    """Return how many rows of noise there are, by kind, in their order."""
    shares = {
        "double": config.web_doubles_share,
        "wrong_caption": config.web_wrong_captions_share,
        "blank": config.web_blank_share,
    }
    return {kind: round(share * config.web) for kind, share in shares.items()}


def _noise_table(config: EmbeddedConfig, seed: int) -> RawTable:
    """Return the noise as a table of its own, behind the pairs: those stay what they are without it."""
    counts = _noise(config)
    total = sum(counts.values())

    def parts(rows_per_part: int) -> Iterator[Part]:
        for start in range(0, total, rows_per_part):
            stop = min(start + rows_per_part, total)
            name = f"web noise {start} to {stop}"
            rows = partial(_noise_rows, config, seed, start, stop)
            yield Part(name, f"{name} of {config} with seed {seed}", rows, stop - start)

    return RawTable(CaptionRecord, parts, total)


def _noise_rows(config: EmbeddedConfig, seed: int, start: int, stop: int) -> Iterator[CaptionRecord]:
    counts = _noise(config)
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    num_captions = max(1, counts["wrong_caption"] // PICTURES_PER_WRONG_CAPTION)
    pool = _pool(config, with_novel=True, skew=config.web_skew)
    for number in range(start, stop):
        rng = _generator("web_noise", seed, number)
        if kinds[number] == "double":
            # Of pairs at equal distances, so that none comes a third time.
            again = _web(_generator("web", seed, number * config.web // counts["double"]), pool, config)
            yield _with_picture(again, _compressed(again.image.bytes or b"", DOUBLE_QUALITY), again.caption)
        elif kinds[number] == "wrong_caption":
            shown = _web(rng, pool, config)
            # Of a stream's numbers behind the last: a caption of a picture that is not shown.
            said = _web(_generator("web_noise", seed, len(kinds) + number % num_captions), pool, config)
            yield _with_picture(shown, shown.image.bytes or b"", said.caption)
        else:
            said = _web(rng, pool, config)
            colour = tuple(int(value) for value in rng.integers(0, 256, 3))
            out = io.BytesIO()
            Image.new("RGB", (said.width, said.height), colour).save(out, "JPEG", quality=DOUBLE_QUALITY)
            yield _with_picture(said, out.getvalue(), said.caption)


def _compressed(data: bytes, quality: int) -> bytes:
    out = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.convert("RGB").save(out, "JPEG", quality=quality)
    return out.getvalue()


def _with_picture(record: CaptionRecord, data: bytes, caption: str) -> CaptionRecord:
    key = hashlib.sha256(data + b"\0" + caption.encode()).hexdigest()[:20]
    return replace(record, key=key, image=ImageRef(bytes=data), caption=caption)


def head_of(scene: Scene, caption: str = "", source: str = SOURCE) -> dict[str, Any]:
    """Return the fields that all records of a scene have; the key is that of the picture with its caption."""
    data = scene.encode()
    key = hashlib.sha256(data + b"\0" + caption.encode()).hexdigest()[:20]
    size = {"height": scene.image.height, "width": scene.image.width}
    return {"key": key, "image": ImageRef(bytes=data), "source": source, **size}
