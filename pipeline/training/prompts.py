"""What a row is shown with: its prompt, the negatives in it, and which phrases name its boxes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from glip_model.prompts import Prompt, caption_prompt, category_prompt, clean_name, pack_prompts
from pipeline.store.records import (
    DETECTION_SCHEMA,
    GROUNDING_SCHEMA,
    NOT_THERE,
    Box,
    DetectionRecord,
    GroundingRecord,
    ImageRef,
    Phrase,
)
from pipeline.store.rows import from_row
from pipeline.store.shards import read_categories, read_repeat
from pipeline.store.storage import Place
from pipeline.store.vocabulary import read_as
from pipeline.training.counting import belongs, looked_at, usable_rows
from pipeline.training.negatives import Budget, TokenCount, choose_categories, has_head_in, word_forms
from pipeline.training.settings import SamplesConfig


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
    box_weights: tuple[float, ...] | None = None
    """Per box how much it counts in the losses, 0 to 1; None means 1."""
    shape_weight: float = 1.0
    """How much the boxes count in the losses of shape and centerness besides."""
    beside: tuple[tuple[ImageRef, int], ...] = ()
    """Pictures shown beside ``image``, each with how many of the boxes are its own: the last ones, in order."""


@dataclass(frozen=True)
class OtherNames:
    """Names of other data that pictures with category boxes are asked for besides their own."""

    names: tuple[str, ...] = ()
    count: int = 0
    """In a prompt, where they fit."""
    are_unknown: bool = False
    """Nobody knows whether a picture shows them; else it does not."""

    def draw(self, own: Iterable[str], taken: Iterable[str], budget: Budget, rng: np.random.Generator) -> Iterator[str]:
        """Yield names that fit into a prompt and read like none of a vocabulary, behind those that it has already."""
        if not self.count:
            return
        read = {read_as(name) for name in own}
        free = [name for name in self.names if read_as(name) not in read]
        budget.takes(*map(clean_name, taken))
        chosen = (free[i] for i in rng.permutation(len(free)))
        yield from islice((name for name in chosen if budget.takes(clean_name(name))), self.count)


NO_OTHER_NAMES = OtherNames()


class DetectionPrompter:
    """Shows category boxes with a prompt of the names that are there and of sampled negatives, in random order.

    Human data and pictures that a teacher labelled with names alike.

    Args:
        config: numbers and budget.
        count_tokens: tokens of a string.
        weigh: how much a box of a score counts in the losses, see ``weights.py``; None lets all count alike.
        others: names of other data that join the prompts.
        part: of the rows, see ``belongs``.
        shape_weight: see ``GroundingTarget``.
    """

    columns = DETECTION_SCHEMA.names

    def __init__(
        self,
        config: SamplesConfig,
        count_tokens: TokenCount,
        weigh: Callable[[float], float] | None = None,
        others: OtherNames = NO_OTHER_NAMES,
        part: bool | None = None,
        shape_weight: float = 1.0,
    ) -> None:
        self._config, self._count_tokens, self._weigh = config, count_tokens, weigh
        self._others, self.part, self._shape_weight = others, part, shape_weight
        self._vocabularies: dict[Place, dict[int, str]] = {}

    def shown(self, table: pa.Table) -> tuple[pa.Table, NDArray[np.int64]]:
        """Return the rows, and the place of each: a picture without boxes teaches that nothing is there.

        Those that a teacher could not look at have the place -1.
        """
        usable = looked_at(table) & belongs(table, self.part)
        return table.filter(pa.array(usable)), np.where(usable, np.cumsum(usable) - 1, -1)

    def contexts(self, tables: Sequence[tuple[Place, pa.Table]]) -> Sequence[Mapping[int, str]]:
        """Return, for each of the tables, what its rows are shown with: the vocabulary of their shard."""
        return [self._vocabulary(shard) for shard, _ in tables]

    def show(self, row: Mapping[str, Any], context: Mapping[int, str], rng: np.random.Generator) -> Sample:
        """Show a row with names of the vocabulary, as ``rng`` chooses."""
        return self.show_together([row], context, rng)

    def show_together(
        self, rows: Sequence[Mapping[str, Any]], context: Mapping[int, str], rng: np.random.Generator
    ) -> Sample:
        """Show rows of one vocabulary side by side, with a prompt for all of them."""
        records = [from_row(DetectionRecord, row) for row in rows]
        objects = [
            [item for item in record.objects if not item.is_crowd and item.category_id in context] for record in records
        ]
        present = list(dict.fromkeys(item.category_id for each in objects for item in each))
        # Nobody drew the single boxes of a crowd, so its category can be neither a positive nor a negative.
        crowds = [item.category_id for record in records for item in record.objects if item.is_crowd]
        # What a person rejected is asked for every time.
        rejected = [
            each
            for record in records
            if record.reviewed
            for each in record.negative_category_ids
            if each in context and each not in present
        ]
        shown = choose_categories(present, context, rng, self._config, self._count_tokens, crowds, rejected)
        names = [context[category] for category in shown]
        others = list(self._others.draw(context.values(), names, Budget(self._config, self._count_tokens), rng))
        own = len(names)
        order = rng.permutation(own + len(others)).tolist() if others else range(own)
        place = {shown[i]: at for at, i in enumerate(order) if i < own}
        kept = [[item for item in each if item.category_id in place] for each in objects]
        boxes = [item for each in kept for item in each]
        return Sample(
            key=records[0].key,
            image=records[0].image,
            prompt=category_prompt([(*names, *others)[i] for i in order]),
            boxes=tuple(item.xyxy for item in boxes),
            box_phrases=tuple((place[item.category_id],) for item in boxes),
            ignored_phrases=tuple(at for at, i in enumerate(order) if i >= own and self._others.are_unknown),
            box_weights=_weights(self._weigh, (item.score for item in boxes)),
            shape_weight=self._shape_weight,
            beside=tuple((record.image, len(each)) for record, each in zip(records[1:], kept[1:], strict=True)),
        )

    def digest(self, shards: Mapping[Place, Sequence[pa.Table]]) -> str:
        """Hash rows, vocabularies and repeats, but for the pictures: for these the keys stand."""
        no_rows = next(tables[0] for tables in shards.values() if tables).slice(0, 0)
        digests = []
        for shard, tables in shards.items():
            repeat = read_repeat(shard)
            once = pa.concat_tables([*tables[: len(tables) // repeat]] or [no_rows])
            digests.append(f"{_digest(once)} {self._vocabulary(shard)} {repeat}")
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def _vocabulary(self, shard: Place) -> dict[int, str]:
        if shard not in self._vocabularies:
            self._vocabularies[shard] = {category.id: category.name for category in read_categories(shard)}
        return self._vocabularies[shard]


class Captions:
    """Captions and phrases of rows, which other rows borrow as negatives."""

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        self.captions: list[str] = []
        self.phrases: list[list[str]] = []
        self.located: list[list[str]] = []
        for table in tables:  # one after the other: rows as Python objects take many times what is kept of them
            for row in table.select(["caption", "phrases"]).to_pylist():
                self.captions.append(row["caption"])
                self.phrases.append([phrase["text"] for phrase in row["phrases"]])
                self.located.append([phrase["text"] for phrase in row["phrases"] if phrase["boxes"]])

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.captions)


class GroundingPrompter:
    """Shows a row as its caption or as the list of its phrases, with captions or phrases of other rows as negatives.

    Without negatives a model learns that every phrase is somewhere.

    Args:
        config: numbers and budget.
        count_tokens: tokens of a string.
        ignore_unlocated: phrases without boxes take no part in the token loss.
        weigh: how much a box of a score counts in the losses, see ``weights.py``; None lets all count alike.
        part: of the rows, see ``belongs``.
        shape_weight: see ``GroundingTarget``.
    """

    columns = GROUNDING_SCHEMA.names

    def __init__(
        self,
        config: SamplesConfig,
        count_tokens: TokenCount,
        ignore_unlocated: bool,
        weigh: Callable[[float], float] | None = None,
        part: bool | None = None,
        shape_weight: float = 1.0,
    ) -> None:
        self._config, self._count_tokens, self._ignore_unlocated = config, count_tokens, ignore_unlocated
        self._weigh, self.part, self._shape_weight = weigh, part, shape_weight

    def shown(self, table: pa.Table) -> tuple[pa.Table, NDArray[np.int64]]:
        """Return the rows that were not rejected and have a box, and the place of every row among them, or -1."""
        usable = usable_rows(table) & belongs(table, self.part)
        return table.filter(pa.array(usable)), np.where(usable, np.cumsum(usable) - 1, -1)

    def contexts(self, tables: Sequence[tuple[Place, pa.Table]]) -> Sequence[Captions]:
        """Return, for each of the tables, what its rows are shown with: the rows of all of them."""
        return [Captions(table for _, table in tables)] * len(tables)

    def show(self, row: Mapping[str, Any], context: Captions, rng: np.random.Generator) -> Sample:
        """Show a row with captions or phrases of others, as ``rng`` chooses."""
        record = from_row(GroundingRecord, row)
        named = any(clean_name(phrase.text) for phrase in record.phrases if phrase.boxes)
        if record.reviewed and not all(phrase.char_spans for phrase in record.phrases):
            # A person added a phrase that the caption does not have.
            if named or _absent(record):
                return self._as_phrases(record, context, rng)
            record = replace(record, phrases=tuple(phrase for phrase in record.phrases if phrase.char_spans))
        if rng.random() < self._config.phrase_prompts and named:
            return self._as_phrases(record, context, rng)
        return self._as_caption(record, context, rng)

    def digest(self, shards: Mapping[Place, Sequence[pa.Table]]) -> str:
        """Hash the rows, repeats included, but for the pictures: for these the keys stand."""
        tables = (table for tables in shards.values() for table in tables)
        return _digest(pa.concat_tables(tables, promote_options="default"))  # versions of shards may be mixed

    def _as_caption(self, record: GroundingRecord, context: Captions, rng: np.random.Generator) -> Sample:
        own = caption_prompt(record.caption, [list(phrase.char_spans) for phrase in record.phrases])
        others = [caption_prompt(caption, []) for caption in self._foreign_captions(record, context, rng)]
        place = int(rng.integers(len(others) + 1))
        boxes: dict[Box, list[int]] = {}
        scores: dict[Box, float] = {}
        for i, phrase in enumerate(record.phrases):
            for box in phrase.boxes:
                boxes.setdefault(box.xyxy, []).append(i)
                scores[box.xyxy] = max(box.score, scores.get(box.xyxy, 0.0))
        unlocated = tuple(
            i for i, phrase in enumerate(record.phrases) if not phrase.boxes and phrase.reject_reason != NOT_THERE
        )
        return Sample(
            key=record.key,
            image=record.image,
            prompt=pack_prompts([*others[:place], own, *others[place:]]) if others else own,
            boxes=tuple(boxes),
            box_phrases=tuple(tuple(named) for named in boxes.values()),
            ignored_phrases=unlocated if self._ignore_unlocated else (),
            box_weights=_weights(self._weigh, scores.values()),
            shape_weight=self._shape_weight,
        )

    def _as_phrases(self, record: GroundingRecord, context: Captions, rng: np.random.Generator) -> Sample:
        by_text: dict[str, list[Phrase]] = {}
        for phrase in record.phrases:
            if phrase.boxes:
                by_text.setdefault(clean_name(phrase.text).lower(), []).append(phrase)
        by_text.pop("", None)
        rejected = [text for text in _absent(record) if text not in by_text]
        texts = [*by_text, *rejected, *self._foreign_phrases(record, context, rng)]
        order = [texts[i] for i in rng.permutation(len(texts))]
        place = {text: i for i, text in enumerate(order)}
        found = [(box, (place[text],)) for text, group in by_text.items() for p in group for box in p.boxes]
        return Sample(
            key=record.key,
            image=record.image,
            prompt=category_prompt(order),
            boxes=tuple(box.xyxy for box, _ in found),
            box_phrases=tuple(phrases for _, phrases in found),
            box_weights=_weights(self._weigh, (box.score for box, _ in found)),
            shape_weight=self._shape_weight,
        )

    def _foreign_captions(self, record: GroundingRecord, context: Captions, rng: np.random.Generator) -> list[str]:
        """Draw captions of other rows that fit the token budget; about one in two packs is full, as published."""
        most = self._config.caption_negatives
        if most == 0 or rng.random() < self._config.caption_negatives_none:
            return []
        wanted = most if rng.random() < 0.5 else int(rng.integers(1, most + 1))
        budget = Budget(self._config, self._count_tokens)
        budget.left -= self._count_tokens(record.caption)
        forms = word_forms(record.caption)
        chosen = []
        for i in rng.integers(len(context), size=wanted).tolist():
            caption = context.captions[i].rstrip(". ")
            if caption and not has_head_in(context.phrases[i], forms) and budget.takes(caption):
                chosen.append(caption)
        return chosen

    def _foreign_phrases(self, record: GroundingRecord, context: Captions, rng: np.random.Generator) -> list[str]:
        """Draw phrases of other rows that this caption does not speak of, within the token budget."""
        most = self._config.max_negatives
        wanted = most if rng.random() < self._config.full_negatives else int(rng.integers(0, most + 1))
        own = [clean_name(phrase.text).lower() for phrase in record.phrases]
        budget = Budget(self._config, self._count_tokens)
        budget.left -= sum(self._count_tokens(text) + 1 for text in own)
        forms = word_forms(record.caption)
        chosen: dict[str, None] = {}
        for i in rng.integers(len(context), size=wanted).tolist():
            options = context.located[i]
            if not options:  # a reviewed row in which nothing is
                continue
            text = clean_name(options[int(rng.integers(len(options)))]).lower()
            if text and text not in chosen and not has_head_in([text], forms) and budget.takes(text):
                chosen[text] = None
        return list(chosen)


Prompter: TypeAlias = DetectionPrompter | GroundingPrompter


def _absent(record: GroundingRecord) -> list[str]:
    """Return the phrases of which a person said that they are not in the picture: hard negatives."""
    texts = (clean_name(phrase.text).lower() for phrase in record.phrases if phrase.reject_reason == NOT_THERE)
    return [text for text in dict.fromkeys(texts) if text]


def _weights(weigh: Callable[[float], float] | None, scores: Iterable[float]) -> tuple[float, ...] | None:
    return None if weigh is None else tuple(map(weigh, scores))


def _digest(table: pa.Table) -> str:
    names = [name for name in table.schema.names if name != "image"]
    sink = pa.BufferOutputStream()
    plain = table.select(names).replace_schema_metadata(None).combine_chunks()
    with pa.ipc.new_stream(sink, plain.schema) as stream:
        stream.write_table(plain)
    return hashlib.sha256(sink.getvalue()).hexdigest()
