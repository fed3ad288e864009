"""Records to training samples: which prompt a row is shown with, and which tokens name its boxes."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from glip_model.prompts import Prompt, caption_prompt, category_prompt, clean_name, pack_prompts
from pipeline.errors import TrainingError
from pipeline.store.records import (
    DETECTION_SCHEMA,
    GROUNDING_SCHEMA,
    Box,
    DetectionRecord,
    GroundingRecord,
    ImageRef,
    Phrase,
)
from pipeline.store.row_groups import Recent, RowGroups
from pipeline.store.shards import from_row, list_shards, read_categories, read_repeat, read_table
from pipeline.store.storage import Place
from pipeline.training.negatives import SPECIAL_TOKENS, TokenCount, choose_categories, has_head_in, word_forms
from pipeline.training.settings import SamplesConfig

_COUNTED_STRINGS = 1_000_000
"""Whose tokens are remembered, the latest."""


@dataclass(frozen=True)
class Sample:
    """One picture as it will be shown, before augmentation."""

    key: str
    image: ImageRef
    prompt: Prompt
    boxes: tuple[Box, ...]
    box_phrases: tuple[tuple[int, ...], ...]
    """Per box the phrases of the prompt that name it."""
    ignored_phrases: tuple[int, ...] = ()
    """Phrases of which it is unknown where they are; their tokens take no part in the token loss."""


class SampleSource(ABC):
    """Rows of one kind of data, each of which can be turned into a sample."""

    @abstractmethod
    def __len__(self) -> int:
        """Count the rows."""

    @abstractmethod
    def sample(self, row: int, rng: np.random.Generator) -> Sample | None:
        """Show a row with a prompt that ``rng`` chooses; None where the row has nothing to teach."""

    @abstractmethod
    def digest(self) -> str:
        """Hash everything but the pictures, for which the keys stand."""

    @abstractmethod
    def is_tall(self) -> NDArray[np.bool_]:
        """Tell of every row whether its picture is at least as high as it is wide."""


class DetectionSource(SampleSource):
    """Category boxes, shown with a prompt of the names that are there and of sampled negatives."""

    def __init__(self, folder: Place, config: SamplesConfig, count_tokens: TokenCount) -> None:
        self._config, self._count_tokens = config, count_tokens
        self._rows: list[tuple[pa.Table, int, dict[int, str]]] = []
        self._tall: list[NDArray[np.bool_]] = []
        digests = []
        for path in list_shards(folder):
            names = {category.id: category.name for category in read_categories(path)}
            table, repeat = read_table(path, DETECTION_SCHEMA.names), read_repeat(path)
            self._rows += [(table, i, names) for _ in range(repeat) for i in range(len(table))]
            self._tall += [_is_tall(table)] * repeat
            digests.append(f"{_digest(table)} {names} {repeat}")
        self._digest = hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def __len__(self) -> int:
        """Count the rows."""
        return len(self._rows)

    def sample(self, row: int, rng: np.random.Generator) -> Sample:
        """Show a row with positives and negatives in random order."""
        table, i, names = self._rows[row]
        return show_detection(table, i, names, rng, self._config, self._count_tokens)

    def digest(self) -> str:
        """Hash everything but the pictures, for which the keys stand."""
        return self._digest

    def is_tall(self) -> NDArray[np.bool_]:
        """Tell of every row whether its picture is at least as high as it is wide."""
        return np.concatenate(self._tall)


class GroundingSource(SampleSource):
    """Captions with boxes for their phrases, from people or from a teacher."""

    def __init__(self, folder: Place, config: SamplesConfig, count_tokens: TokenCount, ignore_unlocated: bool) -> None:
        tables = [
            read_table(path, GROUNDING_SCHEMA.names) for path in list_shards(folder) for _ in range(read_repeat(path))
        ]
        self._prompter = GroundingPrompter(config, count_tokens, ignore_unlocated)
        # Rejected rows and rows without boxes have nothing to teach.
        self._rows = GroundingRows(
            pa.concat_tables([table.filter(pa.array(has_boxes(table), pa.bool_())) for table in tables])
        )

    def __len__(self) -> int:
        """Count the rows."""
        return len(self._rows.captions)

    def sample(self, row: int, rng: np.random.Generator) -> Sample:
        """Show a row as ``rng`` chooses."""
        return self._prompter.show(self._rows, row, rng)

    def digest(self) -> str:
        """Hash everything but the pictures, for which the keys stand."""
        return _digest(self._rows.table)

    def is_tall(self) -> NDArray[np.bool_]:
        """Tell of every row whether its picture is at least as high as it is wide."""
        return _is_tall(self._rows.table)


class GroundingRows:
    """Usable rows, with the captions and phrases that they lend one another as negatives."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        columns = table.select(["caption", "phrases"]).to_pylist()
        self.captions = [row["caption"] for row in columns]
        self.phrases = [[p["text"] for p in row["phrases"]] for row in columns]
        self.located = [[p["text"] for p in row["phrases"] if p["boxes"]] for row in columns]


class GroundingPrompter:
    """Shows a row as its caption or as the list of its phrases, with captions or phrases of other rows as negatives.

    Without negatives a model learns that every phrase is somewhere.
    """

    def __init__(self, config: SamplesConfig, count_tokens: TokenCount, ignore_unlocated: bool) -> None:
        self._config, self._count_tokens, self._ignore_unlocated = config, count_tokens, ignore_unlocated

    def show(self, rows: GroundingRows, row: int, rng: np.random.Generator) -> Sample:
        """Show a row as ``rng`` chooses."""
        record = from_row(GroundingRecord, rows.table.slice(row, 1).to_pylist()[0])
        named = any(clean_name(phrase.text) for phrase in record.phrases if phrase.boxes)
        if rng.random() < self._config.phrase_prompts and named:
            return self._as_phrases(rows, record, rng)
        return self._as_caption(rows, record, rng)

    def _as_caption(self, rows: GroundingRows, record: GroundingRecord, rng: np.random.Generator) -> Sample:
        own = caption_prompt(record.caption, [list(phrase.char_spans) for phrase in record.phrases])
        others = [caption_prompt(caption, []) for caption in self._foreign_captions(rows, record, rng)]
        place = int(rng.integers(len(others) + 1))
        prompt = pack_prompts([*others[:place], own, *others[place:]]) if others else own
        return _located_sample(record, prompt, record.phrases, self._ignore_unlocated)

    def _as_phrases(self, rows: GroundingRows, record: GroundingRecord, rng: np.random.Generator) -> Sample:
        located = [phrase for phrase in record.phrases if phrase.boxes]
        by_text: dict[str, list[Phrase]] = {}
        for phrase in located:
            by_text.setdefault(clean_name(phrase.text).lower(), []).append(phrase)
        by_text.pop("", None)
        texts = [*by_text, *self._foreign_phrases(rows, record, rng)]
        order = [texts[i] for i in rng.permutation(len(texts))]
        place = {text: i for i, text in enumerate(order)}
        boxes = [(box.xyxy, (place[text],)) for text, group in by_text.items() for p in group for box in p.boxes]
        return Sample(
            key=record.key,
            image=record.image,
            prompt=category_prompt(order),
            boxes=tuple(box for box, _ in boxes),
            box_phrases=tuple(phrases for _, phrases in boxes),
        )

    def _foreign_captions(self, rows: GroundingRows, record: GroundingRecord, rng: np.random.Generator) -> list[str]:
        """Draw captions of other rows that fit the token budget; about one in two packs is full, as published."""
        most = self._config.caption_negatives
        if most == 0 or rng.random() < self._config.caption_negatives_none:
            return []
        wanted = most if rng.random() < 0.5 else int(rng.integers(1, most + 1))
        budget = self._config.max_prompt_tokens - SPECIAL_TOKENS - self._count_tokens(record.caption)
        forms = word_forms(record.caption)
        chosen = []
        for i in rng.integers(len(rows.captions), size=wanted):
            caption = rows.captions[int(i)].rstrip(". ")
            cost = self._count_tokens(caption) + 1
            if cost <= budget and caption and not has_head_in(rows.phrases[int(i)], forms):
                chosen.append(caption)
                budget -= cost
        return chosen

    def _foreign_phrases(self, rows: GroundingRows, record: GroundingRecord, rng: np.random.Generator) -> list[str]:
        """Draw phrases of other rows that this caption does not speak of, within the token budget."""
        most = self._config.max_negatives
        wanted = most if rng.random() < self._config.full_negatives else int(rng.integers(0, most + 1))
        own = [clean_name(phrase.text).lower() for phrase in record.phrases]
        budget = self._config.max_prompt_tokens - SPECIAL_TOKENS - sum(self._count_tokens(text) + 1 for text in own)
        forms = word_forms(record.caption)
        chosen: dict[str, None] = {}
        for i in rng.integers(len(rows.located), size=wanted):
            options = rows.located[int(i)]
            text = clean_name(options[int(rng.integers(len(options)))]).lower()
            cost = self._count_tokens(text) + 1
            if text and text not in chosen and cost <= budget and not has_head_in([text], forms):
                chosen[text] = None
                budget -= cost
        return list(chosen)


def show_detection(
    table: pa.Table,
    row: int,
    names: Mapping[int, str],
    rng: np.random.Generator,
    config: SamplesConfig,
    count_tokens: TokenCount,
) -> Sample:
    """Show a row of category boxes with positives and negatives, of the vocabulary ``names``, in random order."""
    record = from_row(DetectionRecord, table.slice(row, 1).to_pylist()[0])
    objects = [item for item in record.objects if not item.is_crowd and item.category_id in names]
    present = list(dict.fromkeys(item.category_id for item in objects))
    # Nobody drew the single boxes of a crowd, so its category can be neither a positive nor a negative.
    crowds = [item.category_id for item in record.objects if item.is_crowd]
    shown = choose_categories(present, names, rng, config, count_tokens, never=crowds)
    place = {category: i for i, category in enumerate(shown)}
    kept = [item for item in objects if item.category_id in place]
    return Sample(
        key=record.key,
        image=record.image,
        prompt=category_prompt([names[category] for category in shown]),
        boxes=tuple(item.xyxy for item in kept),
        box_phrases=tuple((place[item.category_id],) for item in kept),
    )


def _located_sample(
    record: GroundingRecord, prompt: Prompt, phrases: Sequence[Phrase], ignore_unlocated: bool
) -> Sample:
    boxes: dict[Box, list[int]] = {}
    for i, phrase in enumerate(phrases):
        for box in phrase.boxes:
            boxes.setdefault(box.xyxy, []).append(i)
    ignored = tuple(i for i, phrase in enumerate(phrases) if not phrase.boxes) if ignore_unlocated else ()
    return Sample(
        key=record.key,
        image=record.image,
        prompt=prompt,
        boxes=tuple(boxes),
        box_phrases=tuple(tuple(named) for named in boxes.values()),
        ignored_phrases=ignored,
    )


def _is_tall(table: pa.Table) -> NDArray[np.bool_]:
    return np.asarray(table["height"]) >= np.asarray(table["width"])


def has_boxes(table: pa.Table) -> list[bool]:
    """Tell of every row of phrases whether it is usable: not rejected, and with a box."""
    rows = table.select(["phrases", "reject_reason"]).to_pylist()
    return [row["reject_reason"] is None and any(phrase["boxes"] for phrase in row["phrases"] or ()) for row in rows]


def _digest(table: pa.Table) -> str:
    names = [name for name in table.schema.names if name != "image"]
    sink = pa.BufferOutputStream()
    plain = table.select(names).replace_schema_metadata(None).combine_chunks()
    with pa.ipc.new_stream(sink, plain.schema) as stream:
        stream.write_table(plain)
    return hashlib.sha256(sink.getvalue()).hexdigest()


class StreamedSource(SampleSource):
    """Rows that stay in their shards; a few row groups are in memory, and a row borrows negatives from its own group.

    Args:
        folder: of shards.
        columns: to read.
    """

    def __init__(self, folder: Place, columns: Sequence[str]) -> None:
        self.groups = RowGroups(list_shards(folder), columns)

    @abstractmethod
    def hold(self, rows: int, lanes: int) -> None:
        """Keep as many row groups in memory as windows of so many rows, in so many lanes, can touch."""

    def __len__(self) -> int:
        """Count the rows, those that have nothing to teach as well: who they are stands in the shards."""
        return int(self.groups.rows.sum())

    def digest(self) -> str:
        """Hash everything that the shards hold."""
        return self.groups.digest

    def is_tall(self) -> NDArray[np.bool_]:
        """Refuse: it would take reading all shards."""
        raise TrainingError("train.samples.group_by_orientation needs all rows in memory; set shuffle_window to 0")

    def _size(self, rows: int, lanes: int) -> int:
        mean = max(1.0, float(self.groups.rows.mean())) if len(self.groups) else 1.0
        return math.ceil(rows / mean) + 2 * lanes  # a lane's window begins and ends inside of a group


class StreamedDetection(StreamedSource):
    """``DetectionSource`` over shards that are read while training goes on."""

    def __init__(self, folder: Place, config: SamplesConfig, count_tokens: TokenCount) -> None:
        super().__init__(folder, DETECTION_SCHEMA.names)
        self._config, self._count_tokens = config, count_tokens
        self._names: dict[Place, dict[int, str]] = {}
        self._read = Recent(self.groups.read, 1)

    def hold(self, rows: int, lanes: int) -> None:
        """Keep as many row groups in memory as windows of so many rows, in so many lanes, can touch."""
        self._read.size = self._size(rows, lanes)

    def sample(self, row: int, rng: np.random.Generator) -> Sample:
        """Show a row with positives and negatives in random order."""
        group, place = self.groups.locate(row)
        shard = self.groups.shard(group)
        if shard not in self._names:
            self._names[shard] = {category.id: category.name for category in read_categories(shard)}
        return show_detection(self._read[group], place, self._names[shard], rng, self._config, self._count_tokens)


class StreamedGrounding(StreamedSource):
    """``GroundingSource`` over shards that are read while training goes on."""

    def __init__(self, folder: Place, config: SamplesConfig, count_tokens: TokenCount, ignore_unlocated: bool) -> None:
        super().__init__(folder, GROUNDING_SCHEMA.names)
        self._prompter = GroundingPrompter(config, count_tokens, ignore_unlocated)
        self._read = Recent(self._usable, 1)

    def hold(self, rows: int, lanes: int) -> None:
        """Keep as many row groups in memory as windows of so many rows, in so many lanes, can touch."""
        self._read.size = self._size(rows, lanes)

    def sample(self, row: int, rng: np.random.Generator) -> Sample | None:
        """Show a row as ``rng`` chooses; None where it was rejected or has no boxes."""
        group, place = self.groups.locate(row)
        rows, places = self._read[group]
        return self._prompter.show(rows, places[place], rng) if place in places else None

    def _usable(self, group: int) -> tuple[GroundingRows, dict[int, int]]:
        """Return the usable rows of a group, and their places among them by their places in the group."""
        table = self.groups.read(group)
        usable = has_boxes(table)
        places = {place: i for i, place in enumerate(np.flatnonzero(usable).tolist())}
        return GroundingRows(table.filter(pa.array(usable, pa.bool_()))), places


def make_sources(
    human: Place, pseudo: Place | None, weights: Mapping[str, float], config: SamplesConfig, tokenizer: Any
) -> dict[str, SampleSource]:
    """Open the sources that the mixture gives weight to.

    Raises:
        MissingInputError: a folder of shards is not there.
        TrainingError: pseudo-labels have weight but no folder was given.
    """
    count_tokens = TokenCounter(tokenizer)
    detection, grounding = (
        (StreamedDetection, StreamedGrounding) if config.shuffle_window else (DetectionSource, GroundingSource)
    )
    sources: dict[str, SampleSource] = {}
    if weights.get("detection", 0) > 0:
        sources["detection"] = detection(human / "detection", config, count_tokens)
    if weights.get("grounding", 0) > 0:
        packing = config if config.pack_human_captions else replace(config, caption_negatives=0)
        sources["grounding"] = grounding(human / "grounding", packing, count_tokens, ignore_unlocated=False)
    if weights.get("pseudo", 0) > 0:
        if pseudo is None:
            raise TrainingError("the mixture gives pseudo-labels weight; pass --pseudo-labels FOLDER")
        sources["pseudo"] = grounding(pseudo, config, count_tokens, config.ignore_unlocated)
    return sources


class TokenCounter:
    """Counts the tokens of strings, without special ones, each string once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._count = lru_cache(_COUNTED_STRINGS)(self._tokens)

    def __call__(self, text: str) -> int:
        """Count the tokens of a string."""
        return self._count(text)

    def __reduce__(self) -> tuple[type[TokenCounter], tuple[Any]]:
        """Leave the counts to this process."""
        return TokenCounter, (self._tokenizer,)

    def _tokens(self, text: str) -> int:
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])
