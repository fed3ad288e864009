"""Figures over all shards of a place, counted by DuckDB without reading a picture."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.inspection.defects import KINDS, count_defects, read_provenance
from pipeline.inspection.reading import label_shards, open_labels
from pipeline.store.dataset import connect
from pipeline.store.provenance import FINGERPRINT
from pipeline.store.storage import Place, size

SCORE_BINS = 10
BAR_WIDTH = 40
NAMES_SHOWN = 10
_PHRASES = """
    CREATE TEMP TABLE said AS
    SELECT lower(phrase.text) AS text, phrase.reject_reason AS reason, [box.score FOR box IN phrase.boxes] AS scores
    FROM (SELECT unnest(phrases) AS phrase FROM shards)
"""
_SCORES = f"""
    SELECT least({SCORE_BINS - 1}, floor(score * {SCORE_BINS}))::INTEGER AS bin, count(*)
    FROM (SELECT unnest(scores) AS score FROM said) WHERE score BETWEEN 0 AND 1 GROUP BY ALL
"""
_LICENSES = "SELECT left(license, 200), count(*) FROM shards WHERE license <> '' GROUP BY ALL ORDER BY 2 DESC, 1"


@dataclass
class Statistics:
    """Figures over all shards of a place."""

    shards: int = 0
    bytes: int = 0
    rows: int = 0
    phrases: int = 0
    boxes: int = 0
    unique_phrases: int = 0
    """With boxes, whatever the case."""
    scores: list[int] = field(default_factory=lambda: [0] * SCORE_BINS)
    """Boxes by score, in ten equal bins from 0 to 1; scores elsewhere are defects."""
    most_frequent: dict[str, int] = field(default_factory=dict)
    """Phrases with boxes, in lower case."""
    row_rejects: dict[str, int] = field(default_factory=dict)
    phrase_rejects: dict[str, int] = field(default_factory=dict)
    licenses: dict[str, int] = field(default_factory=dict)
    """Rows by the licence of their picture as its data set names it, the most frequent ones; cut to 200 characters."""
    licensed: int = 0
    """Rows whose data set names one; of the others nothing is known."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What all shards share of it; that of the first shard when there are several."""
    provenances: int = 0
    """Different ones among the shards: teachers, parsers or settings. More than one means that labels are mixed."""
    defects: Counter[str] = field(default_factory=Counter)
    """What is broken, by kind; see ``defects.KINDS``."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = dict(vars(self))
        return values | {"score_histogram": values.pop("scores"), "most_frequent_phrases": values.pop("most_frequent")}


def collect_statistics(place: Place, most_frequent: int = 20) -> Statistics:
    """Count everything in the shards of a place.

    Args:
        place: of the shards.
        most_frequent: phrases and licences to name.

    Raises:
        MissingInputError: there are no shards.
        ShardError: a shard is broken or holds other records.
    """
    total, seen = Statistics(), set()
    for shard in label_shards(place):
        total.shards += 1
        total.bytes += size(shard)
        provenance = _shared_provenance(shard)
        total.provenance = total.provenance or provenance
        seen.add(json.dumps(provenance, sort_keys=True))
        total.defects += count_defects(shard)
    total.provenances = len(seen - {"{}"})
    with connect(shards=open_labels(place)) as db:
        rejects = "SELECT {0}, count(*) FROM {1} WHERE {0} IS NOT NULL GROUP BY ALL ORDER BY 2 DESC, 1"
        total.rows = db.execute("SELECT count(*) FROM shards").fetchall()[0][0]
        total.row_rejects = dict(db.execute(rejects.format("reject_reason", "shards")).fetchall())
        db.execute(_PHRASES)
        total.phrases, total.boxes, total.unique_phrases = db.execute(
            "SELECT count(*), coalesce(sum(len(scores)), 0)::BIGINT, count(DISTINCT text) FILTER (len(scores) > 0) "
            "FROM said"
        ).fetchall()[0]
        total.phrase_rejects = dict(db.execute(rejects.format("reason", "said")).fetchall())
        for number, count in db.execute(_SCORES).fetchall():
            total.scores[number] = count
        frequent = (
            "SELECT text, count(*) FROM said WHERE len(scores) > 0 AND text IS NOT NULL "
            "GROUP BY ALL ORDER BY 2 DESC, 1 LIMIT ?"
        )
        total.most_frequent = dict(db.execute(frequent, [most_frequent]).fetchall())
        if "license" in (name for name, *_ in db.execute("DESCRIBE shards").fetchall()):  # not in shards of before
            counts = db.execute(_LICENSES).fetchall()
            total.licenses = dict(counts[:most_frequent])
            total.licensed = sum(count for _, count in counts)
    return total


def format_statistics(stats: Statistics, title: str) -> str:
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
        f"most frequent of {stats.unique_phrases:,} phrases with boxes",
        *_bars(stats.most_frequent),
    ]
    for name, rejects in (("rows", stats.row_rejects), ("phrases", stats.phrase_rejects)):
        if rejects:
            lines += ["", f"{name} without boxes, by reason", *_bars(rejects)]
    if stats.licensed:
        lines += ["", "rows by licence of their picture", *_bars(by_licence(stats))]
    if stats.defects:
        found = {kind: f"{stats.defects[kind]:>8,}  {what}" for kind, what in KINDS.items() if stats.defects[kind]}
        lines += ["", "BROKEN, and left out of pairs, pages and exports"]
        lines += [f"  {kind:<16}{text}" for kind, text in found.items()]
    return "\n".join(lines)


def by_licence(stats: Statistics) -> dict[str, int]:
    """Return how many rows have pictures of which licence: of named ones, of all others, and of unknown ones."""
    others = stats.licensed - sum(stats.licenses.values())
    counts = {**stats.licenses, "others": others, "unknown": stats.rows - stats.licensed}
    return {name: count for name, count in counts.items() if count}


def _shared_provenance(path: Place) -> dict[str, Any]:
    """Return a shard's provenance without what belongs to this shard alone."""
    return {name: value for name, value in read_provenance(path).items() if name not in ("input", FINGERPRINT)}


def _format_provenance(provenance: Mapping[str, Any], count: int) -> list[str]:
    if not provenance:
        return ["  no provenance: not made by glip pseudo_label or glip label"]
    teacher = provenance.get("teacher", {})
    settings = ", ".join(f"{key} {value}" for key, value in provenance.get("settings", {}).items())
    lines = [
        f"  teacher {teacher.get('name')} (sha256 {str(teacher.get('sha256'))[:12]}…)",
        _asked(provenance),
        f"  {settings}",
    ]
    if count > 1:
        lines.append(f"  MIXED: {count} different teachers, parsers or settings; this is the first of them")
    return lines


def _asked(provenance: Mapping[str, Any]) -> str:
    """Say what the teacher was asked for: names, or phrases that a parser found."""
    names = provenance.get("names")
    if not isinstance(names, dict) or not isinstance(names.get("classes"), list):
        return f"  parser {provenance.get('parser')}"
    return f"  names {', '.join(map(str, names['classes'][:NAMES_SHOWN]))}" + (
        f" and {len(names['classes']) - NAMES_SHOWN} more" if len(names["classes"]) > NAMES_SHOWN else ""
    )


def _bars(counts: Mapping[str, int]) -> list[str]:
    most = max(counts.values(), default=0) or 1
    width = max(map(len, counts), default=0)
    return [
        f"  {name:<{width}}  {count:>8,}  {'█' * round(BAR_WIDTH * count / most)}".rstrip()
        for name, count in counts.items()
    ]
