"""The ``recaption`` stage over Ray: a shard of web pairs becomes one of the same name, rows in the same order.

Each pair gets a caption by a model, and keeps its own as ``source_caption``; one whose picture cannot be captioned
stays as it is, and is counted. Finished shards are kept when the stage runs again, see ``pipeline.store.resume``.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import ray
import torch

from glip_model.images import ImageError
from glip_model.precision import resolve_precision
from pipeline.cli import progress, quiet_libraries
from pipeline.errors import PipelineError, RejectLimitError, ShardError
from pipeline.ray_session import RESTARTS, on_all_machines, on_gpu_machines, run_pool, share_cluster
from pipeline.recaption.captioners import Captioner, describe_captioner, open_captioner
from pipeline.recaption.settings import RecaptionConfig
from pipeline.store.images import load_image
from pipeline.store.provenance import code_sha256, with_fingerprint
from pipeline.store.records import SCHEMA_VERSION, CaptionRecord
from pipeline.store.resume import input_identity, keep_apart, keep_finished
from pipeline.store.shards import PROVENANCE_KEY, ShardWriter, list_shards, read_metadata, read_shard
from pipeline.store.storage import Place, side_by_side

FIGURES_KEY = "glip.recaption"
"""In the metadata of a shard: its rows, and how many pictures got no caption, by the reason."""
FREE_SETTINGS = ("num_actors", "batch_size", "max_reject_share")
"""They do not change any row."""


@dataclass(frozen=True)
class Inputs:
    """What the stage reads and writes."""

    records: Place
    """Shards of web pairs."""
    model: str
    """See ``open_captioner``."""
    out: Place
    roots: Sequence[str] = ()
    """Where pictures may be besides ``records``."""


@dataclass(frozen=True)
class Figures:
    """What one shard holds."""

    rows: int
    rejects: Counter[str]


class RecaptionActor:
    """Keeps a captioner loaded in its process."""

    def __init__(self, inputs: Inputs, config: RecaptionConfig, max_image_pixels: int, num_threads: int) -> None:
        quiet_libraries()
        torch.set_num_threads(num_threads)
        self._inputs, self._config, self._max_pixels = inputs, config, max_image_pixels

    @cached_property
    def _captioner(self) -> Captioner:
        # Not in __init__: an error there would reach the stage as the death of an actor, without its message.
        return open_captioner(self._inputs.model, self._config)

    def caption_shard(self, source: Place, target: Place, provenance: Mapping[str, Any]) -> Figures | PipelineError:
        """Write one shard; return its figures, or why it could not be done."""
        try:
            records, rejects = read_shard(source, CaptionRecord), Counter[str]()
            metadata = {PROVENANCE_KEY: json.dumps(provenance)}
            with ShardWriter(target, CaptionRecord, metadata, ("source_caption",)) as shard:
                for record in self._captioned(records, rejects):
                    shard.append(record)
                shard.metadata[FIGURES_KEY] = json.dumps({"rows": len(records), "rejects": rejects})
        except PipelineError as error:
            # Crosses the process border as data: raised there, Ray would print it with a traceback.
            return error
        return Figures(len(records), rejects)

    def _captioned(self, records: Sequence[CaptionRecord], rejects: Counter[str]) -> Iterator[CaptionRecord]:
        """Yield the rows with their captions, a batch of pictures after the other."""
        roots = [str(self._inputs.records), *self._inputs.roots]
        for start in range(0, len(records), self._config.batch_size):
            batch = records[start : start + self._config.batch_size]
            pictures = [self._picture(record, roots) for record in batch]
            usable = [picture for picture in pictures if not isinstance(picture, ImageError)]
            captions = iter(self._captioner.caption(usable) if usable else ())
            for record, picture in zip(batch, pictures, strict=True):
                caption = picture if isinstance(picture, ImageError) else next(captions)
                if isinstance(caption, ImageError):
                    rejects[caption.reason] += 1
                    yield record
                else:
                    yield with_caption(record, caption, self._config.how)

    def _picture(self, record: CaptionRecord, roots: Sequence[str]) -> Any:
        try:
            return load_image(record.image, self._max_pixels, roots)
        except ImageError as error:
            return error


def with_caption(record: CaptionRecord, caption: str, how: str) -> CaptionRecord:
    """Return a pair with a caption by a model in place of its own, or behind it; its own is kept."""
    own = record.caption if record.source_caption is None else record.source_caption
    before = record.caption.rstrip(". ") if how == "append" else ""
    return replace(record, caption=f"{before}. {caption}" if before else caption, source_caption=own)


def recaption(inputs: Inputs, config: RecaptionConfig, max_image_pixels: int) -> dict[str, Any]:
    """Caption all shards of ``inputs.records`` that are not finished; Ray must be running.

    Returns:
        Metrics: shards, rows, rows that kept their caption by reason.

    Raises:
        MissingInputError: there are no shards, or no such model.
        ConfigError: ``inputs.out`` is ``inputs.records``.
        ShardError: an input shard is broken; the others are finished first.
        RejectLimitError: too large a share of pictures got no caption.
    """
    keep_apart(inputs.out, inputs.records)
    sources = list_shards(inputs.records)
    config = replace(config, precision=resolve_precision(config.precision, on_gpu_machines))
    wanted = _plan(inputs, config, max_image_pixels, sources)
    kept = keep_finished("recaption", [inputs.out], wanted, lambda shards: on_all_machines(read_figures, shards))
    todo = [source for source in sources if inputs.out / source.name not in kept]
    share = share_cluster(min(config.num_actors, max(len(todo), 1)))
    actor = ray.remote(max_restarts=-1, max_task_retries=RESTARTS, **share.per_worker())(RecaptionActor)
    workers = min(share.workers, len(todo))
    actors = [actor.remote(inputs, config, max_image_pixels, share.threads) for _ in range(workers)]

    def caption(worker: Any, source: Place) -> Any:
        target = inputs.out / source.name
        return worker.caption_shard.remote(source, target, wanted[target])

    figures = list(kept.values())
    with progress(len(todo), "recaption", "shards") as bar:
        for _, made in run_pool(actors, caption, todo):
            figures.append(made)
            bar.update(1)
    return _to_metrics(inputs, config, figures)


def read_figures(shard: Place) -> Figures | None:
    """Return what a shard holds; None where it is not whole."""
    try:
        rows = len(read_shard(shard, CaptionRecord))
        found = json.loads(read_metadata(shard)[FIGURES_KEY])
        return Figures(rows, Counter(found["rejects"]))
    except (ShardError, KeyError, ValueError, TypeError):
        return None


def _plan(
    inputs: Inputs, config: RecaptionConfig, max_image_pixels: int, sources: Sequence[Place]
) -> dict[Place, dict[str, Any]]:
    """Return per shard to make everything that its content depends on."""
    settings = dataclasses.asdict(config) | {"max_image_pixels": max_image_pixels}
    captioning = {
        "captioner": describe_captioner(inputs.model, config),
        "settings": {name: value for name, value in settings.items() if name not in FREE_SETTINGS},
        "code": code_sha256([open_captioner, with_caption]),
        "schema_version": SCHEMA_VERSION,
    }
    identities = side_by_side(input_identity, sources)
    return {
        inputs.out / source.name: with_fingerprint({**captioning, "input": identity})
        for source, identity in zip(sources, identities, strict=True)
    }


def _to_metrics(inputs: Inputs, config: RecaptionConfig, figures: Sequence[Figures]) -> dict[str, Any]:
    rejects: Counter[str] = sum((each.rejects for each in figures), Counter())
    rows = sum(each.rows for each in figures)
    if rejects.total() > config.max_reject_share * rows:
        raise RejectLimitError(
            f"{inputs.out}: {rejects.total()} of {rows} pictures got no caption ({dict(rejects)}), more than "
            f"recaption.max_reject_share = {config.max_reject_share}; mend the data or raise the limit"
        )
    return {"shards": len(figures), "rows": rows, "rejects": dict(sorted(rejects.items()))}
