"""Looking at shards of grounding records, pseudo-labels and human data alike: figures, and single pairs."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.provenance import FINGERPRINT
from pipeline.data.records import GROUNDING_SCHEMA, GroundingRecord
from pipeline.data.shards import KIND, KIND_KEY, PROVENANCE_KEY, from_row, list_shards, read_metadata, read_table
from pipeline.errors import MissingInputError, ShardError

SCORE_BINS = 10
BAR_WIDTH = 40
NEAR_KEYS = 3
KEYS_COMPARED = 20_000
"""Keys among which near ones are looked for; comparing millions would take minutes."""


@dataclass
class Statistics:
    """Figures over all shards of a folder."""

    shards: int = 0
    bytes: int = 0
    rows: int = 0
    phrases: int = 0
    boxes: int = 0
    scores: list[int] = field(default_factory=lambda: [0] * SCORE_BINS)
    """Boxes by score, in ten equal bins from 0 to 1."""
    phrase_counts: Counter[str] = field(default_factory=Counter)
    """Phrases with boxes, in lower case."""
    row_rejects: Counter[str] = field(default_factory=Counter)
    phrase_rejects: Counter[str] = field(default_factory=Counter)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What all shards share of it; that of the first shard when there are several."""
    provenances: int = 0
    """Different ones among the shards: teachers, parsers or settings. More than one means that labels are mixed."""

    def to_dict(self, most_frequent: int) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "shards": self.shards,
            "bytes": self.bytes,
            "rows": self.rows,
            "phrases": self.phrases,
            "unique_phrases": len(self.phrase_counts),
            "boxes": self.boxes,
            "score_histogram": self.scores,
            "most_frequent_phrases": dict(self.phrase_counts.most_common(most_frequent)),
            "row_rejects": dict(self.row_rejects),
            "phrase_rejects": dict(self.phrase_rejects),
            "provenance": dict(self.provenance),
            "provenances": self.provenances,
        }


def collect_statistics(folder: Path) -> Statistics:
    """Count everything in a folder of grounding shards, without reading its pictures.

    Raises:
        MissingInputError: there are no shards.
        ShardError: a shard is broken or holds other records.
    """
    total, seen = Statistics(), set()
    for path in _grounding_shards(folder):
        table = read_table(path, ["phrases", "reject_reason"])
        total.shards += 1
        total.bytes += path.stat().st_size
        total.rows += len(table)
        total.row_rejects.update(reason for reason in table["reject_reason"].to_pylist() if reason)
        for phrases in table["phrases"].to_pylist():
            _count_phrases(total, phrases or [])
        provenance = _shared_provenance(path)
        total.provenance = total.provenance or provenance
        seen.add(json.dumps(provenance, sort_keys=True))
    total.provenances = len(seen - {"{}"})
    return total


def format_statistics(stats: Statistics, title: str, most_frequent: int) -> str:
    """Lay the figures out for a terminal."""
    lines = [
        title,
        f"  {stats.shards:,} shards, {stats.bytes / 1e6:,.1f} MB",
        f"  {stats.rows:,} rows, {stats.phrases:,} phrases, {stats.boxes:,} boxes "
        f"({stats.boxes / max(stats.rows, 1):.2f} a row)",
        *_format_provenance(stats.provenance, stats.provenances),
        "",
        "boxes by score",
        *_bars({f"{i / SCORE_BINS:.1f}–{(i + 1) / SCORE_BINS:.1f}": count for i, count in enumerate(stats.scores)}),
        "",
        f"most frequent of {len(stats.phrase_counts):,} phrases with boxes",
        *_bars(dict(stats.phrase_counts.most_common(most_frequent))),
    ]
    for name, rejects in (("rows", stats.row_rejects), ("phrases", stats.phrase_rejects)):
        if rejects:
            lines += ["", f"{name} without boxes, by reason", *_bars(dict(rejects.most_common()))]
    return "\n".join(lines)


def find_record(folder: Path, key: str) -> GroundingRecord:
    """Return one row by its key, reading the pictures of its row group alone.

    Raises:
        MissingInputError: no row has this key; the message names near ones.
        ShardError: a shard is broken or holds other records.
    """
    seen: list[str] = []
    for path in _grounding_shards(folder):
        keys = read_table(path, ["key"])["key"].to_pylist()
        if key in keys:
            return _read_row(path, keys.index(key))
        seen += keys[: KEYS_COMPARED - len(seen)]
    near = difflib.get_close_matches(key, seen, n=NEAR_KEYS, cutoff=0.3) or seen[:NEAR_KEYS]
    hint = f"keys look like {', '.join(near)}" if near else "there are no rows"
    raise MissingInputError(f"{folder}: no row has the key {key!r}; {hint}; list them with --keys")


def list_keys(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield key and caption of every row, shard by shard; errors as ``collect_statistics``."""
    for path in _grounding_shards(folder):
        table = read_table(path, ["key", "caption"])
        yield from zip(table["key"].to_pylist(), table["caption"].to_pylist(), strict=True)


def format_record(record: GroundingRecord) -> str:
    """Lay one pair out for a terminal."""
    lines = [f"{record.key}  {record.width}×{record.height}  {record.source}", f"“{record.caption}”"]
    if record.reject_reason:
        lines.append(f"rejected: {record.reject_reason}")
    for phrase in record.phrases:
        spans = ", ".join(f"{start}–{end}" for start, end in phrase.char_spans)
        lines.append(f"  {phrase.text}  [{spans}]" + (f"  no box: {phrase.reject_reason}" if not phrase.boxes else ""))
        lines += [f"    {box.score:.3f}  ({', '.join(f'{side:.0f}' for side in box.xyxy)})" for box in phrase.boxes]
    return "\n".join(lines)


def _grounding_shards(folder: Path) -> Iterator[Path]:
    """Yield the shards of a folder, or one that is named itself, each when its turn comes to be looked at."""
    for path in [folder] if folder.is_file() else _list_shards(folder):
        kind = read_metadata(path).get(KIND_KEY)
        if kind != KIND[GroundingRecord]:
            raise ShardError(
                f"{path}: holds {kind or 'no'} records; expected grounding records, that is pseudo-labels or human "
                "grounding data"
            )
        yield path


def _list_shards(folder: Path) -> list[Path]:
    try:
        return list_shards(folder)
    except MissingInputError:
        below = sorted({str(path.parent) for path in folder.glob("*/part-*.parquet")}) if folder.is_dir() else []
        if below:
            raise MissingInputError(f"{folder}: no shards here; look into {' or '.join(below)}") from None
        raise


def _shared_provenance(path: Path) -> dict[str, Any]:
    """Return a shard's provenance without what belongs to this shard alone."""
    try:
        provenance = json.loads(read_metadata(path).get(PROVENANCE_KEY, "{}"))
    except json.JSONDecodeError as error:
        raise ShardError(f"{path}: {PROVENANCE_KEY} is no JSON ({error}); write the shard anew") from error
    return {name: value for name, value in provenance.items() if name not in ("input", FINGERPRINT)}


def _read_row(path: Path, row: int) -> GroundingRecord:
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row < rows:
                table = file.read_row_group(group, columns=GROUNDING_SCHEMA.names)
                return from_row(GroundingRecord, table.slice(row, 1).to_pylist()[0])
            row -= rows
    except (pa.ArrowException, OSError, TypeError) as error:  # TypeError: a column is missing
        raise ShardError(f"{path}: not a readable shard of grounding records ({error}); write it anew") from error
    raise AssertionError("the row was found among the keys of this file")


def _count_phrases(total: Statistics, phrases: list[dict[str, Any]]) -> None:
    for phrase in phrases:
        total.phrases += 1
        total.boxes += len(phrase["boxes"])
        if phrase["boxes"]:
            total.phrase_counts[phrase["text"].lower()] += 1
        if phrase["reject_reason"]:
            total.phrase_rejects[phrase["reject_reason"]] += 1
        for box in phrase["boxes"]:
            total.scores[min(SCORE_BINS - 1, int(box["score"] * SCORE_BINS))] += 1


def _format_provenance(provenance: Mapping[str, Any], count: int) -> list[str]:
    if not provenance:
        return ["  no provenance: not made by the pseudo_label stage"]
    teacher = provenance.get("teacher", {})
    settings = ", ".join(f"{key} {value}" for key, value in provenance.get("settings", {}).items())
    lines = [
        f"  teacher {teacher.get('name')} (sha256 {str(teacher.get('sha256'))[:12]}…)",
        f"  parser {provenance.get('parser')}",
        f"  {settings}",
    ]
    if count > 1:
        lines.append(f"  MIXED: {count} different teachers, parsers or settings; this is the first of them")
    return lines


def _bars(counts: Mapping[str, int]) -> list[str]:
    most = max(counts.values(), default=0) or 1
    width = max(map(len, counts), default=0)
    return [
        f"  {name:<{width}}  {count:>8,}  {'█' * round(BAR_WIDTH * count / most)}".rstrip()
        for name, count in counts.items()
    ]
