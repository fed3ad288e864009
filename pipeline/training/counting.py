"""Counts that training needs: usable rows, steps of a number of epochs, tokens of strings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.store.records import NOT_THERE, NOTHING_FOUND
from pipeline.store.shards import holds_detections, list_shards, read_repeat, read_table
from pipeline.store.storage import Place
from pipeline.training.settings import RunConfig

_COUNTED_STRINGS = 1_000_000
"""Strings whose numbers of tokens are remembered, the latest ones."""


def usable_rows(table: pa.Table) -> NDArray[np.bool_]:
    """Tell of every row of phrases whether it can be shown: it was not rejected, and a phrase has a box.

    Of a reviewed row it is enough that a person said of a phrase that it is not there.
    """
    phrases = table["phrases"].combine_chunks()
    boxes = pc.list_value_length(pc.struct_field(pc.list_flatten(phrases), "boxes"))
    has_box = np.zeros(len(table), dtype=bool)
    has_box[np.asarray(pc.list_parent_indices(phrases))[np.asarray(boxes.fill_null(0)) > 0]] = True
    has_box &= np.asarray(table["reject_reason"].is_null())
    reviewed = is_reviewed(table)
    if reviewed.any():
        reasons = pc.struct_field(pc.list_flatten(phrases), "reject_reason")
        is_absent = np.asarray(pc.fill_null(pc.equal(reasons, NOT_THERE), False))
        has_absent = np.zeros(len(table), dtype=bool)
        has_absent[np.asarray(pc.list_parent_indices(phrases))[is_absent]] = True
        has_box |= reviewed & has_absent
    return has_box


def is_reviewed(table: pa.Table) -> NDArray[np.bool_]:
    """Tell of every row whether a person judged it; shards of version 1 have no such rows."""
    if "reviewed" not in table.column_names:
        return np.zeros(len(table), dtype=bool)
    return np.asarray(pc.fill_null(table["reviewed"], False), dtype=bool)


def belongs(table: pa.Table, reviewed: bool | None) -> NDArray[np.bool_]:
    """Tell of every row whether it is of a part: what people reviewed (True), the rest (False), or all (None)."""
    return np.ones(len(table), dtype=bool) if reviewed is None else is_reviewed(table) == reviewed


def part_of(source: str, mixture: Mapping[str, float]) -> bool | None:
    """Return which rows of the labels a source has, for ``belongs``."""
    return True if source == "reviewed" else False if mixture.get("reviewed", 0) > 0 else None


def looked_at(table: pa.Table) -> NDArray[np.bool_]:
    """Tell of every row of objects whether its picture was looked at; human data says nothing of it."""
    if "reject_reason" not in table.column_names:
        return np.ones(len(table), dtype=bool)
    reasons = table["reject_reason"]
    return np.asarray(pc.or_(pc.is_null(reasons), pc.fill_null(pc.equal(reasons, NOTHING_FOUND), False)), dtype=bool)


def folders_of(
    human: Place, pseudo: Place | None, mixture: Mapping[str, float], replay: Place | None = None
) -> dict[str, Place]:
    """Return the folders of shards that a mixture gives weight to, by its names."""
    folders = {
        "detection": human / "detection",
        "grounding": human / "grounding",
        "pseudo": pseudo,
        "reviewed": pseudo,
        "replay": replay,
    }
    return {name: each for name, each in folders.items() if mixture.get(name, 0) > 0 and each is not None}


def count_rows(
    human: Place, pseudo: Place | None, mixture: Mapping[str, float], replay: Place | None = None
) -> dict[str, int]:
    """Count the usable rows, repeats included, of the sources that have weight; the pictures are not read.

    Raises:
        MissingInputError: a folder of shards is not there.
    """
    sizes = {}
    for name, folder in folders_of(human, pseudo, mixture, replay).items():
        part = part_of(name, mixture) if folder is pseudo else None
        sizes[name] = sum(read_repeat(path) * _count_usable(path, part) for path in list_shards(folder))
    return sizes


def _count_usable(shard: Place, part: bool | None) -> int:
    is_detection = holds_detections(shard)
    table = read_table(shard, ("key" if is_detection else "phrases", "reject_reason", "reviewed"))
    usable = looked_at(table) if is_detection else usable_rows(table)
    return int((usable & belongs(table, part)).sum())


def sample_weights(run: RunConfig, sizes: Mapping[str, int]) -> dict[str, float]:
    """Return how often samples come from each source, in proportion to one another."""
    by_rows = run.mixture_by == "rows"
    return {name: weight * sizes.get(name, 0) if by_rows else weight for name, weight in run.mixture.items()}


def with_steps(run: RunConfig, sizes: Mapping[str, int], batch_size: int) -> RunConfig:
    """Return the run with its length in steps; an epoch shows as many samples as the weighted sources have rows."""
    if run.steps:
        return run
    rows = sum(sizes.get(name, 0) for name, weight in run.mixture.items() if weight > 0)
    return replace(run, steps=max(1, round(run.epochs * rows / batch_size)), epochs=0.0)


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
