"""The ``phrases`` stage over Ray: one shard of web pairs becomes one shard of phrases, rows in the same order."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import ray

from pipeline.cli import progress, quiet_libraries
from pipeline.config import PhrasesConfig
from pipeline.data.records import CaptionRecord, PhrasesRecord
from pipeline.data.shards import PROVENANCE_KEY, list_shards, read_shard, write_shard
from pipeline.phrases.noun_phrases import NounPhraseParser, count_phrases

MOST_FREQUENT = 20
"""Phrases that the metrics name."""


class PhraseActor:
    """Keeps a parser loaded in its process."""

    def __init__(self, config: PhrasesConfig) -> None:
        quiet_libraries()
        self._parser = NounPhraseParser(config)

    def parse_shard(self, source: Path, target: Path) -> tuple[int, Counter[str], Counter[str]]:
        """Write one shard; return its rows, its phrases and its rejects by reason."""
        records = self._parser.parse(read_shard(source, CaptionRecord))
        write_shard(target, records, PhrasesRecord, {PROVENANCE_KEY: f'{{"parser": "{self._parser.name}"}}'})
        rejects = Counter(record.reject_reason for record in records if record.reject_reason)
        return len(records), Counter(count_phrases(records)), rejects


def extract_phrases(config: PhrasesConfig, records: Path, out: Path) -> dict[str, Any]:
    """Parse all shards of ``records``; Ray must be running.

    Returns:
        Metrics: rows, phrases, unique phrases, the most frequent ones, rejects by reason.
    """
    sources = list_shards(records)
    shutil.rmtree(out, ignore_errors=True)
    workers = max(1, min(len(sources), int(ray.cluster_resources().get("CPU", 1))))
    actors = [ray.remote(num_cpus=1)(PhraseActor).remote(config) for _ in range(workers)]
    pool = ray.util.ActorPool(actors)
    rows, phrases, rejects = 0, Counter[str](), Counter[str]()
    with progress(len(sources), "phrases", "shards") as bar:
        results = pool.map_unordered(lambda actor, path: actor.parse_shard.remote(path, out / path.name), sources)
        for shard_rows, shard_phrases, shard_rejects in results:
            rows += shard_rows
            phrases.update(shard_phrases)
            rejects.update(shard_rejects)
            bar.update(1)
    return {
        "rows": rows,
        "phrases": phrases.total(),
        "unique_phrases": len(phrases),
        "most_frequent": dict(phrases.most_common(MOST_FREQUENT)),
        "rejects": dict(rejects),
    }
