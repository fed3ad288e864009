"""The ``phrases`` stage over Ray: one shard of web pairs becomes one shard of phrases, rows in the same order.

A finished shard is kept when the stage runs again; its fingerprint says of which rows, parser, settings and code it is.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import ray

from pipeline.cli import progress, quiet_libraries
from pipeline.errors import PipelineError, ShardError
from pipeline.phrases.noun_phrases import NounPhraseParser
from pipeline.phrases.settings import PhrasesConfig
from pipeline.ray_session import RESTARTS, WorkerDeath, results
from pipeline.store.provenance import FINGERPRINT, code_sha256, fingerprint
from pipeline.store.records import SCHEMA_VERSION, PhrasesRecord
from pipeline.store.shards import (
    PROVENANCE_KEY,
    list_shards,
    read_fingerprint,
    read_table,
    rows_sha256,
    write_shard,
)
from pipeline.store.storage import Place, exists, list_files, remove

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Figures:
    """What one shard holds."""

    rows: int
    phrases: int
    rejects: Counter[str]
    is_new: bool
    """Whether it was made just now."""


class PhraseActor:
    """Keeps a parser loaded in its process."""

    def __init__(self, config: PhrasesConfig) -> None:
        quiet_libraries()
        self._config = config

    @cached_property
    def _parser(self) -> NounPhraseParser:
        # Not in __init__: an error there would reach the stage as the death of an actor, without its message.
        return NounPhraseParser(self._config)

    def parse_shard(self, source: Place, target: Place) -> Figures | PipelineError:
        """Write one shard unless it is there; return its figures, or why it could not be done."""
        try:
            provenance = self._provenance(source)
            finished = _finished_figures(target, provenance[FINGERPRINT])
            return finished or self._make(source, target, provenance)
        except PipelineError as error:
            # Crosses the process border as data: raised there, Ray would print it with a traceback.
            return error

    def _make(self, source: Place, target: Place, provenance: dict[str, Any]) -> Figures:
        table = read_table(source, ["key", "caption"])  # and no pictures
        records = self._parser.parse(list(zip(table["key"].to_pylist(), table["caption"].to_pylist(), strict=True)))
        write_shard(target, records, PhrasesRecord, {PROVENANCE_KEY: json.dumps(provenance)})
        rejects = Counter(record.reject_reason for record in records if record.reject_reason)
        return Figures(len(records), sum(len(record.phrases) for record in records), rejects, is_new=True)

    def _provenance(self, source: Place) -> dict[str, Any]:
        entry = {
            "parser": self._parser.name,
            # How many captions are parsed at once changes none of them.
            "settings": {k: v for k, v in dataclasses.asdict(self._config).items() if k != "batch_size"},
            "code": code_sha256(Path(__file__).parent.glob("*.py")),
            "schema_version": SCHEMA_VERSION,
            "input": rows_sha256(source),
        }
        return {**entry, FINGERPRINT: fingerprint(entry)}


def extract_phrases(config: PhrasesConfig, records: Place, out: Place) -> dict[str, Any]:
    """Parse all shards of ``records``; Ray must be running.

    Returns:
        Metrics: shards, rows, phrases, rejects by reason.

    Raises:
        MissingInputError: there are no shards, or the parser is not installed.
        ConfigError: the parser cannot find noun phrases.
        ShardError: an input shard is broken; the others are finished first.
        StorageError: a shard cannot be written.
    """
    sources = list_shards(records)
    _remove_foreign(out, {source.name for source in sources})
    resources: dict[str, float] = ray.cluster_resources()
    workers = max(1, min(len(sources), int(resources.get("CPU", 1))))
    actor = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=RESTARTS)(PhraseActor)
    pool = ray.util.ActorPool([actor.remote(config) for _ in range(workers)])
    figures: list[Figures] = []
    errors: list[PipelineError] = []
    for source in sources:
        pool.submit(lambda worker, path: worker.parse_shard.remote(path, out / path.name), source)
    with progress(len(sources), "phrases", "shards") as bar:
        for result in results(pool):
            if isinstance(result, WorkerDeath):
                errors.append(ShardError(f"{records}: a worker died {RESTARTS + 1} times over a shard ({result})"))
            elif isinstance(result, PipelineError):
                errors.append(result)
            else:
                figures.append(result)
            bar.update(1)
    if errors:
        raise min(errors, key=str)  # the same one whichever came first
    kept = sum(not figure.is_new for figure in figures)
    if kept:
        logger.info("phrases: %d of %d shards were finished already", kept, len(sources))
    return _metrics(figures)


def _metrics(figures: Sequence[Figures]) -> dict[str, Any]:
    rejects: Counter[str] = Counter()
    for figure in figures:
        rejects.update(figure.rejects)
    return {
        "shards": len(figures),
        "rows": sum(figure.rows for figure in figures),
        "phrases": sum(figure.phrases for figure in figures),
        "rejects": dict(sorted(rejects.items())),
    }


def _finished_figures(target: Place, expected: str) -> Figures | None:
    """Return the figures of a shard if it is there, whole, and has this fingerprint; else None."""
    try:
        if not exists(target) or read_fingerprint(target) != expected:
            return None
        table = read_table(target)
    except ShardError:
        return None
    phrases = sum(map(len, table["phrases"].to_pylist()))
    rejects = Counter(reason for reason in table["reject_reason"].to_pylist() if reason)
    return Figures(len(table), phrases, rejects, is_new=False)


def _remove_foreign(out: Place, wanted: set[str]) -> None:
    leftovers = list(out.glob(".part-*")) if isinstance(out, Path) else []
    for path in [*leftovers, *(path for path in list_files(out, "part-*.parquet") if path.name not in wanted)]:
        remove(path)
