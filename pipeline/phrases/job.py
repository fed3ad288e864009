"""The ``phrases`` stage over Ray: one shard of web pairs becomes one shard of phrases, rows in the same order."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import ray

from pipeline.cli import progress, quiet_libraries
from pipeline.config import PhrasesConfig
from pipeline.data.records import CaptionRecord, PhrasesRecord
from pipeline.data.shards import PROVENANCE_KEY, list_shards, read_shard, write_shard
from pipeline.errors import PipelineError
from pipeline.phrases.noun_phrases import NounPhraseParser, count_phrases


@dataclass
class Figures:
    """What one shard or all of them hold."""

    rows: int = 0
    phrases: Counter[str] = field(default_factory=Counter)
    rejects: Counter[str] = field(default_factory=Counter)

    def add(self, other: Figures) -> None:
        """Count another shard's rows as well."""
        self.rows += other.rows
        self.phrases.update(other.phrases)
        self.rejects.update(other.rejects)

    def to_metrics(self) -> dict[str, Any]:
        """Return plain values for JSON, the same ones in whatever order the shards were counted."""
        return {
            "rows": self.rows,
            "phrases": self.phrases.total(),
            "unique_phrases": len(self.phrases),
            "rejects": dict(sorted(self.rejects.items())),
        }


class PhraseActor:
    """Keeps a parser loaded in its process."""

    def __init__(self, config: PhrasesConfig) -> None:
        quiet_libraries()
        self._config = config

    @cached_property
    def _parser(self) -> NounPhraseParser:
        # Not in __init__: an error there would reach the stage as the death of an actor, without its message.
        return NounPhraseParser(self._config)

    def parse_shard(self, source: Path, target: Path) -> Figures | PipelineError:
        """Write one shard; return its figures, or why it could not be done."""
        try:
            records = self._parser.parse(read_shard(source, CaptionRecord))
        except PipelineError as error:
            # Crosses the process border as data: raised there, Ray would print it with a traceback.
            return error
        write_shard(target, records, PhrasesRecord, {PROVENANCE_KEY: json.dumps({"parser": self._parser.name})})
        rejects = Counter(record.reject_reason for record in records if record.reject_reason)
        return Figures(len(records), Counter(count_phrases(records)), rejects)


def extract_phrases(config: PhrasesConfig, records: Path, out: Path) -> dict[str, Any]:
    """Parse all shards of ``records``; Ray must be running.

    Returns:
        Metrics: rows, phrases, unique phrases, rejects by reason.

    Raises:
        MissingInputError: there are no shards, or the parser is not installed.
        ConfigError: the parser cannot find noun phrases.
        ShardError: an input shard is broken; the others are finished first.
    """
    sources = list_shards(records)
    for old in [*out.glob("part-*.parquet"), *out.glob(".part-*")]:
        old.unlink()
    resources: dict[str, float] = ray.cluster_resources()
    workers = max(1, min(len(sources), int(resources.get("CPU", 1))))
    pool = ray.util.ActorPool([ray.remote(num_cpus=1)(PhraseActor).remote(config) for _ in range(workers)])
    total, errors = Figures(), []
    with progress(len(sources), "phrases", "shards") as bar:
        for result in pool.map_unordered(lambda actor, path: actor.parse_shard.remote(path, out / path.name), sources):
            if isinstance(result, PipelineError):
                errors.append(result)
            else:
                total.add(result)
            bar.update(1)
    if errors:
        raise min(errors, key=str)  # the same one whichever came first
    return total.to_metrics()
