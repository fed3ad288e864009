"""The ``phrases`` stage over Ray: one shard of web pairs becomes one shard of phrases, rows in the same order.

Finished shards are kept when the stage runs again, see ``pipeline.store.resume``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import ray

from pipeline.cli import progress, quiet_libraries
from pipeline.errors import PipelineError
from pipeline.phrases.balance import BEFORE, balance_shard, common_phrases
from pipeline.phrases.outputs import Figures, count_phrases, describe_parsing, to_metrics
from pipeline.phrases.parsers import Parser, make_parser
from pipeline.phrases.settings import PhrasesConfig
from pipeline.ray_session import RESTARTS, on_all_machines, run_pool
from pipeline.store.provenance import FINGERPRINT, code_sha256, fingerprint, with_fingerprint
from pipeline.store.records import PhrasesRecord
from pipeline.store.resume import input_identity, keep_apart, keep_finished
from pipeline.store.shards import PROVENANCE_KEY, list_shards, read_metadata, read_table, write_shard
from pipeline.store.storage import Place, make_folder, remove_folder, side_by_side


class PhraseActor:
    """Keeps a parser loaded in its process."""

    def __init__(self, config: PhrasesConfig) -> None:
        quiet_libraries()
        self._config = config

    @cached_property
    def _parser(self) -> Parser:
        # Not in __init__: an error there would reach the stage as the death of an actor, without its message.
        return make_parser(self._config)

    def parse_shard(self, source: Place, target: Place, provenance: Mapping[str, Any]) -> Figures | PipelineError:
        """Write one shard; return its figures, or why it could not be done."""
        try:
            table = read_table(source, ["key", "caption"])  # and no pictures
            records = self._parser.parse(list(zip(table["key"].to_pylist(), table["caption"].to_pylist(), strict=True)))
            write_shard(target, records, PhrasesRecord, {PROVENANCE_KEY: json.dumps(provenance)})
        except PipelineError as error:
            # Crosses the process border as data: raised there, Ray would print it with a traceback.
            return error
        rejects = Counter(record.reject_reason for record in records if record.reject_reason)
        return Figures(len(records), sum(len(record.phrases) for record in records), rejects)


def extract_phrases(config: PhrasesConfig, records: Place, out: Place) -> dict[str, Any]:
    """Parse all shards of ``records`` that are not finished; Ray must be running.

    With ``max_per_phrase`` those of all pairs are in the folder ``BEFORE`` of ``out``, those of the pairs that are
    labelled in ``out``.

    Returns:
        Metrics: shards, rows, phrases, rejects by reason.

    Raises:
        MissingInputError: there are no shards, or the parser is not installed.
        ConfigError: the parser cannot find noun phrases, or ``out`` is ``records``.
        ShardError: an input shard is broken; the others are finished first.
        StorageError: a shard cannot be written.
    """
    if not config.max_per_phrase:
        remove_folder(out / BEFORE)
        return _extract(config, records, out)
    _extract(config, records, out / BEFORE)
    return _balance(config.max_per_phrase, out)


def _extract(config: PhrasesConfig, records: Place, out: Place) -> dict[str, Any]:
    keep_apart(out, records)
    sources = list_shards(records)
    parsing = describe_parsing(config)
    inputs = side_by_side(input_identity, sources)
    wanted = {
        out / source.name: with_fingerprint({**parsing, "input": identity})
        for source, identity in zip(sources, inputs, strict=True)
    }
    kept = keep_finished("phrases", [out], wanted, lambda shards: on_all_machines(count_phrases, shards))
    todo = [source for source in sources if out / source.name not in kept]
    workers = min(len(todo), max(1, int(ray.cluster_resources().get("CPU", 1))))
    actor = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=RESTARTS)(PhraseActor)
    actors = [actor.remote(config) for _ in range(workers)]

    def parse(worker: Any, source: Place) -> Any:
        return worker.parse_shard.remote(source, out / source.name, wanted[out / source.name])

    figures = list(kept.values())
    with progress(len(todo), "phrases", "shards") as bar:
        for _, made in run_pool(actors, parse, todo):
            figures.append(made)
            bar.update(1)
    return to_metrics(figures)


def _balance(limit: int, out: Place) -> dict[str, Any]:
    """Write the phrases of pairs that are labelled, and the reason of the others."""
    make_folder(out)
    sources = list_shards(out / BEFORE)
    common = common_phrases(out / BEFORE, limit)
    depends_on = {"max_per_phrase": limit, "common": fingerprint(common), "code": code_sha256([balance_shard])}
    wanted = {}
    for source, metadata in zip(sources, side_by_side(read_metadata, sources), strict=True):
        parsed = json.loads(metadata[PROVENANCE_KEY])
        parsed["parsed"] = parsed.pop(FINGERPRINT)
        wanted[out / source.name] = with_fingerprint({**parsed, **depends_on})
    kept = keep_finished("phrases", [out], wanted, lambda shards: on_all_machines(count_phrases, shards))
    todo = [source for source in sources if out / source.name not in kept]
    targets = [out / source.name for source in todo]
    failed = on_all_machines(
        balance_shard, todo, targets, [common] * len(todo), [limit] * len(todo), [wanted[each] for each in targets]
    )
    for error in filter(None, failed):
        raise error
    return to_metrics([*kept.values(), *filter(None, on_all_machines(count_phrases, targets))])
