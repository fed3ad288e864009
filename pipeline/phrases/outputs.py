"""What a shard of phrases depends on, and what it holds."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipeline.errors import ShardError
from pipeline.phrases.parsers import describe_endpoint, make_parser
from pipeline.phrases.settings import PhrasesConfig
from pipeline.store.provenance import code_sha256
from pipeline.store.records import SCHEMA_VERSION
from pipeline.store.shards import read_table
from pipeline.store.storage import Place

_FREE_SETTINGS = ("batch_size", "max_per_phrase", "endpoint")
"""They are not part of what phrases depend on, or not under their name."""


@dataclasses.dataclass(frozen=True)
class Figures:
    """What one shard holds."""

    rows: int
    phrases: int
    rejects: Counter[str]


def describe_parsing(config: PhrasesConfig) -> dict[str, Any]:
    """Return what the phrases of all shards depend on; the errors of ``make_parser``."""
    return {
        "parser": make_parser(config).name,
        # How many captions are parsed at once, and which pairs are labelled afterwards, changes no phrase; of the
        # endpoint's file it is what stands in it.
        "settings": {k: v for k, v in dataclasses.asdict(config).items() if k not in _FREE_SETTINGS},
        "code": code_sha256([make_parser]),
        "schema_version": SCHEMA_VERSION,
        **describe_endpoint(config),
    }


def count_phrases(shard: Place) -> Figures | None:
    """Return what a shard holds; None where it is not whole."""
    try:
        table = read_table(shard)
    except ShardError:
        return None
    rejects = Counter(reason for reason in table["reject_reason"].to_pylist() if reason)
    return Figures(len(table), sum(map(len, table["phrases"].to_pylist())), rejects)


def to_metrics(figures: Sequence[Figures]) -> dict[str, Any]:
    """Sum what the shards hold."""
    rejects: Counter[str] = sum((each.rejects for each in figures), Counter())
    return {
        "shards": len(figures),
        "rows": sum(each.rows for each in figures),
        "phrases": sum(each.phrases for each in figures),
        "rejects": dict(sorted(rejects.items())),
    }
