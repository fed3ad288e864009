"""``curate`` over Ray: measure all pairs, judge them together, write those that stay.

One shard of records becomes one shard of the same name, rows in the same order, those that go left out. Everything that
is finished is kept when the stage runs again, see ``store.resume``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray

from glip_model.images import ImageError, decode_image
from glip_model.pretrained import resolve_folder
from pipeline.cli import progress, quiet_libraries
from pipeline.curation.captions import blocked_words, check_languages
from pipeline.curation.measures import SCORE_SCHEMA, VERDICT_SCHEMA, measure_looks, write_measure
from pipeline.curation.scores import PairScorer
from pipeline.curation.settings import CurateConfig, ScoreConfig
from pipeline.curation.verdicts import KEPT, Evidence, hear_shard, judge, reasons
from pipeline.errors import MissingInputError, PipelineError
from pipeline.ray_session import RESTARTS, on_all_machines, run_pool, share_cluster
from pipeline.store.images import image_roots, read_encoded
from pipeline.store.manifest import describe_shards
from pipeline.store.provenance import code_sha256, describe_model, with_fingerprint
from pipeline.store.records import SCHEMA_VERSION, CaptionRecord
from pipeline.store.resume import input_identity, keep_apart, keep_finished, write_manifest_file
from pipeline.store.shards import (
    KIND,
    PROVENANCE_KEY,
    REPEAT_KEY,
    list_shards,
    read_metadata,
    read_shard,
    read_table,
    write_shard,
)
from pipeline.store.storage import Place, exists, make_folder, side_by_side

logger = logging.getLogger(__name__)

LOOKS, SCORES, VERDICTS = "looks", "scores", "verdicts"
"""Folders of measures."""
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the stage reads and writes."""

    records: Place
    out: Place
    measures: Place
    """Folder for what is measured of pairs, and the verdicts on them."""
    max_pixels: int
    allowed: tuple[str, ...] = ()
    """Where pictures may be besides ``records``, see ``allowed_roots``."""

    @property
    def roots(self) -> list[str]:
        """Where pictures may be."""
        return image_roots(self.records, self.allowed)


class ScoreActor:
    """Keeps a model loaded in its process."""

    def __init__(self, config: ScoreConfig, inputs: Inputs, batch_size: int, num_threads: int) -> None:
        quiet_libraries()
        torch.set_num_threads(num_threads)
        self._config, self._inputs, self._batch_size = config, inputs, batch_size

    @cached_property
    def _scorer(self) -> PairScorer:
        # Not in __init__: an error there would reach the stage as the death of an actor, without its message.
        return PairScorer(self._config, "cuda" if torch.cuda.is_available() else "cpu")

    def score_shard(self, source: Place, target: Place, provenance: Mapping[str, Any]) -> PipelineError | None:
        """Write the scores of one shard; return what went wrong."""
        try:
            pairs = read_shard(source, CaptionRecord)
            scores: list[float | None] = []
            for start in range(0, len(pairs), self._batch_size):
                scores += self._score(pairs[start : start + self._batch_size])
            rows = {"key": [pair.key for pair in pairs], "score": scores}
            write_measure(target, pa.Table.from_pydict(rows, schema=SCORE_SCHEMA), provenance)
        except PipelineError as error:
            return error  # crosses the process border as data
        except torch.AcceleratorError:
            logger.exception("%s: the device is of no use to this process any more", source)
            os._exit(1)  # Ray starts another one
        return None

    def _score(self, pairs: Sequence[CaptionRecord]) -> list[float | None]:
        """Return scores; None where a picture cannot be read."""
        images = {}
        for number, data in enumerate(read_encoded([pair.image for pair in pairs], self._inputs.roots)):
            if not isinstance(data, ImageError):
                try:
                    images[number] = decode_image(data, self._inputs.max_pixels)
                except ImageError:
                    continue
        found = self._scorer.score(list(images.values()), [pairs[number].caption for number in images])
        scores = dict(zip(images, found, strict=True))
        return [scores.get(number) for number in range(len(pairs))]


def curate(config: CurateConfig, inputs: Inputs) -> dict[str, Any]:
    """Write the pairs that are worth a teacher's time; Ray must be running.

    Args:
        config: the filters.
        inputs: where pairs are and go.

    Returns:
        Metrics: pairs, those that are kept, rejects and their shares by reason, quantiles of scores, pairs a second.

    Raises:
        ConfigError: a setting cannot be, or the stage would write over its input.
        MissingInputError: there are no shards, or a model, a list of words or py3langid is not there.
        ShardError: a shard is broken; the others are measured first.
        StorageError: a place cannot be written.
    """
    keep_apart(inputs.out, inputs.records)
    keep_apart(inputs.measures, inputs.records, inputs.out)
    check_languages(config)
    words, sources = blocked_words(config), list_shards(inputs.records)
    identities = dict(zip(sources, side_by_side(input_identity, sources), strict=True))
    start = time.monotonic()
    places = _measure(config, inputs, identities)
    hear = [
        (source, inputs.measures / LOOKS / source.name if LOOKS in places else None, _scores_of(config, inputs, source))
        for source in sources
    ]
    parts = on_all_machines(hear_shard, *zip(*hear, strict=True), [config] * len(hear), [words] * len(hear))
    verdicts = judge(Evidence.joined(parts), config)
    by_shard = dict(zip(sources, np.split(verdicts, np.cumsum([len(p.verdicts) for p in parts])[:-1]), strict=True))
    _write(config, inputs, identities, by_shard)
    return _metrics(config, inputs, verdicts, time.monotonic() - start)


def _measure(config: CurateConfig, inputs: Inputs, identities: Mapping[Place, str | None]) -> set[str]:
    """Measure what filters ask for and is not measured yet; return the names of measures."""
    models = {name: _describe(name, score) for name, score in config.scores.items()}  # a mistake there costs no work
    names = set(models)
    if config.duplicates != "off" or config.min_contrast or config.max_caption_repeats:
        depends_on = {"code": code_sha256([measure_looks]), "max_pixels": inputs.max_pixels}
        task = ray.remote(num_cpus=1, max_retries=RESTARTS)(_look_at)
        workers = [task] * max(1, int(ray.cluster_resources().get("CPU", 1)))
        _fill(inputs.measures / LOOKS, identities, depends_on, workers, lambda w, *work: w.remote(inputs, *work))
        names.add(LOOKS)
    share = share_cluster(min(config.num_actors, len(identities)))
    actor = ray.remote(max_restarts=-1, max_task_retries=RESTARTS, **share.per_worker())(ScoreActor)
    for name, score in config.scores.items():

        def start(score: ScoreConfig = score) -> list[Any]:
            return [actor.remote(score, inputs, config.batch_size, share.threads) for _ in range(share.workers)]

        folder = inputs.measures / SCORES / name
        _fill(folder, identities, models[name], start, lambda w, *work: w.score_shard.remote(*work))
    return names


def _describe(name: str, score: ScoreConfig) -> dict[str, Any]:
    """Return what a score depends on besides the pairs; MissingInputError where there is no such model."""
    try:
        model = describe_model(resolve_folder(score.model))
    except ValueError as error:
        raise MissingInputError(f"curate.scores.{name}: {error}") from error
    how = {key: value for key, value in dataclasses.asdict(score).items() if key not in ("model", "min", "max")}
    return {"model": model, "how": how, "code": code_sha256([PairScorer])}


def _fill(
    folder: Place,
    identities: Mapping[Place, str | None],
    depends_on: Mapping[str, Any],
    workers: Sequence[Any] | Callable[[], Sequence[Any]],
    call: Callable[..., Any],
) -> None:
    """Make the tables of a measure that are not finished.

    Args:
        folder: of the measure.
        identities: the shards that it is of, with hashes over their rows.
        depends_on: what the measure depends on besides.
        workers: or what starts them, where there is work.
        call: gives a worker source, target and provenance.
    """
    make_folder(folder)
    wanted = {
        folder / source.name: with_fingerprint({**depends_on, "input": identity})
        for source, identity in identities.items()
    }
    kept = keep_finished(f"curate: {folder.name}", [folder], wanted, lambda shards: [True] * len(shards))
    todo = [source for source in identities if folder / source.name not in kept]
    if not todo:
        return
    with progress(len(todo), f"curate: {folder.name}", "shards") as bar:
        ready = workers() if callable(workers) else workers
        for _ in run_pool(ready, lambda w, s: call(w, s, folder / s.name, wanted[folder / s.name]), todo):
            bar.update(1)


def _look_at(inputs: Inputs, source: Place, target: Place, provenance: Mapping[str, Any]) -> PipelineError | None:
    """Measure the looks of one shard; return what went wrong."""
    try:
        write_measure(
            target, measure_looks(read_shard(source, CaptionRecord), inputs.max_pixels, inputs.roots), provenance
        )
    except PipelineError as error:
        return error
    return None


def _scores_of(config: CurateConfig, inputs: Inputs, source: Place) -> dict[str, Place]:
    return {name: inputs.measures / SCORES / name / source.name for name in config.scores}


def _write(
    config: CurateConfig,
    inputs: Inputs,
    identities: Mapping[Place, str | None],
    by_shard: Mapping[Place, NDArray[np.uint8]],
) -> None:
    """Write the pairs that stay, and the verdict on all."""
    names = reasons(config)
    told = {
        source: hashlib.sha256("\n".join(names[v] for v in verdicts).encode()).hexdigest()
        for source, verdicts in by_shard.items()
    }
    wanted = {
        inputs.out / source.name: with_fingerprint({"input": identities[source], "verdicts": told[source]})
        for source in by_shard
    }
    make_folder(inputs.out)
    make_folder(inputs.measures / VERDICTS)
    judged = inputs.measures / VERDICTS
    kept = keep_finished(
        "curate", [inputs.out], wanted, lambda shards: side_by_side(lambda s: exists(judged / s.name) or None, shards)
    )
    todo = [source for source in by_shard if inputs.out / source.name not in kept]
    task = ray.remote(num_cpus=1, max_retries=RESTARTS)(_write_shard)
    workers = [task] * max(1, int(ray.cluster_resources().get("CPU", 1)))

    def write(worker: Any, source: Place) -> Any:
        reasons_of = [None if verdict == KEPT else names[verdict] for verdict in by_shard[source]]
        return worker.remote(inputs, source, reasons_of, wanted[inputs.out / source.name])

    with progress(len(todo), "curate", "shards") as bar:
        for _ in run_pool(workers, write, todo):
            bar.update(1)
    shards = describe_shards(inputs.out)
    write_manifest_file(
        inputs.out,
        {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND[CaptionRecord],
            "rows": sum(shard["rows"] for shard in shards),
            "bytes": sum(shard["bytes"] for shard in shards),
            "shards": shards,
        },
    )


def _write_shard(
    inputs: Inputs, source: Place, rejected: Sequence[str | None], provenance: Mapping[str, Any]
) -> PipelineError | None:
    """Write one shard of what stays, the verdict on its pairs before; return what went wrong."""
    try:
        pairs = read_shard(source, CaptionRecord)
        verdicts = pa.Table.from_pydict(
            {"key": [pair.key for pair in pairs], "reject_reason": list(rejected)}, schema=VERDICT_SCHEMA
        )
        write_measure(inputs.measures / VERDICTS / source.name, verdicts, provenance)
        stay = [pair for pair, reason in zip(pairs, rejected, strict=True) if reason is None]
        repeat = {key: value for key, value in read_metadata(source).items() if key == REPEAT_KEY}
        write_shard(inputs.out / source.name, stay, CaptionRecord, {**repeat, PROVENANCE_KEY: json.dumps(provenance)})
    except PipelineError as error:
        return error
    return None


def _metrics(config: CurateConfig, inputs: Inputs, verdicts: NDArray[np.uint8], seconds: float) -> dict[str, Any]:
    counted = Counter(verdicts.tolist())
    rejects = {reason: counted[at] for at, reason in enumerate(reasons(config)) if at != KEPT and counted[at]}
    return {
        "rows": len(verdicts),
        "kept": counted[KEPT],
        "rejects": rejects,
        "shares": {reason: count / len(verdicts) for reason, count in rejects.items()},
        "scores": {name: _quantiles(inputs.measures / SCORES / name) for name in config.scores},
        "pairs_per_s": round(len(verdicts) / seconds, 1),
    }


def _quantiles(folder: Place) -> dict[str, float | None]:
    """Return by which scores of all pairs a threshold may be chosen."""
    tables = on_all_machines(_read_scores, list_shards(folder))
    values = np.concatenate(tables)
    values = values[~np.isnan(values)]
    return {f"{q:g}": float(np.quantile(values, q)) if len(values) else None for q in _QUANTILES}


def _read_scores(place: Place) -> NDArray[np.float32]:
    values: NDArray[np.float32] = read_table(place, ["score"])["score"].to_numpy()
    return values


def metrics_table(metrics: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Return rows of a CSV: outcome, pairs, their share; what is kept first."""
    rows = metrics["rows"]
    outcomes = {"kept": metrics["kept"], **metrics["rejects"]}
    return [("outcome", "pairs", "share"), *((name, n, n / rows if rows else 0.0) for name, n in outcomes.items())]
