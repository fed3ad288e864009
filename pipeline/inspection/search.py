"""Finding pairs in shards: by key, by what they hold, or at random."""

from __future__ import annotations

import difflib
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.errors import MissingInputError
from pipeline.inspection.detections import label_table
from pipeline.inspection.reading import label_shards, read_record
from pipeline.store.dataset import connect
from pipeline.store.records import GroundingRecord, ScoredBox
from pipeline.store.shards import read_table
from pipeline.store.storage import Place

NEAR_KEYS = 3
KEYS_COMPARED = 20_000
"""Keys among which near ones are looked for; comparing millions would take minutes."""
Found = tuple[Place, int]
"""A shard, and a row in it."""

_IN_PHRASE = {
    "phrase": "contains(lower(p.text), lower($phrase))",
    "min_score": "len(list_filter(p.boxes, lambda b: b.score BETWEEN $min_score AND 1)) > 0",
    "max_score": "len(list_filter(p.boxes, lambda b: b.score BETWEEN 0 AND $max_score)) > 0",
}
_IN_ROW = {
    "source": "source = $source",
    "reason": "(reject_reason = $reason OR len(list_filter(phrases, lambda p: p.reject_reason = $reason)) > 0)",
}


@dataclass(frozen=True)
class Filter:
    """What a pair must hold; None asks for nothing. Conditions on a phrase hold for one and the same phrase."""

    phrase: str | None = None
    """Part of its text, whatever the case."""
    min_score: float | None = None
    """It has a box of at least this score …"""
    max_score: float | None = None
    """… and one of at most this."""
    reason: str | None = None
    """Why the pair, or one of its phrases, has no boxes."""
    source: str | None = None

    def to_sql(self) -> tuple[str, dict[str, Any]]:
        """Return a condition over the columns of a shard, and its parameters."""
        values = {name: value for name, value in vars(self).items() if value is not None}
        in_phrase = [_IN_PHRASE[name] for name in values if name in _IN_PHRASE]
        conditions = [_IN_ROW[name] for name in values if name in _IN_ROW]
        if in_phrase:
            conditions.append(f"len(list_filter(phrases, lambda p: {' AND '.join(in_phrase)})) > 0")
        return " AND ".join(conditions) or "true", values


def find_rows(place: Place, wanted: Filter) -> Iterator[Found]:
    """Yield the rows that a filter lets through, shard by shard, without reading a picture.

    Raises:
        MissingInputError: there are no shards.
        ShardError: one is broken or holds other records.
    """
    condition, values = wanted.to_sql()
    for shard in label_shards(place):
        if not values:
            yield from ((shard, row) for row in range(len(read_table(shard, ["key"]))))
            continue
        table = label_table(shard, ["source", "reject_reason", "phrases"])
        with connect(shard=table) as db:
            query = f"SELECT row FROM (SELECT *, row_number() OVER () - 1 AS row FROM shard) WHERE {condition}"
            yield from ((shard, row) for (row,) in sorted(db.execute(query, values).fetchall()))


def sample_rows(place: Place, wanted: Filter, count: int, seed: int = 0) -> list[Found]:
    """Return some of the rows that a filter lets through, each as likely as any other, in their order."""
    return draw_rows(place, wanted, count, seed)[0]


def draw_rows(place: Place, wanted: Filter, count: int, seed: int = 0) -> tuple[list[Found], int]:
    """Return rows as ``sample_rows`` does, and among how many they were drawn."""
    chance, kept, number = random.Random(seed), list[tuple[int, Found]](), -1
    for number, found in enumerate(find_rows(place, wanted)):
        if len(kept) < count:
            kept.append((number, found))
        elif (slot := chance.randrange(number + 1)) < count:
            kept[slot] = (number, found)
    return [found for _, found in sorted(kept, key=lambda each: each[0])], number + 1


def find_record(place: Place, key: str, defects: Counter[str] | None = None) -> GroundingRecord:
    """Return one row by its key, reading the pictures of its row group alone; what is broken is left out and counted.

    Raises:
        MissingInputError: no row has this key; the message names near ones.
        ShardError: a shard is broken or holds other records.
    """
    seen: list[str] = []
    for shard in label_shards(place):
        keys = read_table(shard, ["key"])["key"].to_pylist()
        if key in keys:
            return read_record(shard, keys.index(key), defects)
        seen += filter(None, keys[: KEYS_COMPARED - len(seen)])
    near = difflib.get_close_matches(key, seen, n=NEAR_KEYS, cutoff=0.3) or seen[:NEAR_KEYS]
    hint = f"keys look like {', '.join(near)}" if near else "there are no rows"
    raise MissingInputError(f"{place}: no row has the key {key!r}; {hint}; list them with --keys")


def list_keys(place: Place, wanted: Filter) -> Iterator[tuple[str, str]]:
    """Yield key and caption of every row that a filter lets through; errors as ``find_rows``."""
    shard_of: Place | None = None
    for shard, row in find_rows(place, wanted):
        if shard is not shard_of:
            shard_of, table = shard, label_table(shard, ["key", "caption"])
        yield table["key"][row].as_py() or "", table["caption"][row].as_py() or ""


def format_record(record: GroundingRecord) -> str:
    """Lay one pair out for a terminal."""
    lines = [f"{record.key}  {record.width}×{record.height}  {record.source}", f"“{record.caption}”"]
    if record.reject_reason:
        lines.append(f"rejected: {record.reject_reason}")
    for phrase in record.phrases:
        spans = ", ".join(f"{start}–{end}" for start, end in phrase.char_spans)
        lines.append(
            f"  {phrase.text}  [{spans}]"
            + (f"  = {phrase.category}" if phrase.category else "")
            + ("" if phrase.boxes else f"  no box: {phrase.reject_reason or 'without a reason'}")
        )
        lines += [
            f"    {box.score:.3f}  ({', '.join(f'{side:.0f}' for side in box.xyxy)}){_told(box)}"
            for box in phrase.boxes
        ]
    return "\n".join(lines)


def _told(box: ScoredBox) -> str:
    """Return what a box says of the teachers that found it and of the pass in which they did."""
    teachers = "" if box.teachers is None else f"  by {', '.join(box.teachers)} ({box.agreement or 0:.0%} agree)"
    return teachers + ("" if box.in_pass is None else f"  in pass {box.in_pass}")
