"""The ``pseudo_label`` stage over Ray Data: shards of web pairs stream through a pool of teachers.

The unit of work is one input shard, which becomes one output shard. A finished shard is kept when the stage runs again;
one of another teacher or other settings is computed again, which is logged.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
import torch
from ray.util.metrics import Counter as RayCounter
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from glip_model.precision import resolve_precision
from pipeline.cli import progress, quiet_libraries
from pipeline.errors import PipelineError, RejectLimitError, ShardError, StorageError
from pipeline.pseudo_labels.decoding import PictureDecoder
from pipeline.pseudo_labels.ensemble import Names, extras_for, open_teachers
from pipeline.pseudo_labels.labeller import PseudoLabeller
from pipeline.pseudo_labels.manifest import (
    NAME_REJECTS_KEY,
    ShardSummary,
    describe_labelling,
    finished_summary,
    plan_shard,
    read_manifest,
    summarise,
    summarise_names,
    to_metrics,
    write_manifest,
)
from pipeline.pseudo_labels.progress import Figures, Meter, describe
from pipeline.pseudo_labels.settings import PseudoLabelConfig
from pipeline.ray_session import on_all_machines, on_gpu_machines, share_cluster
from pipeline.store.image_roots import HOW_TO_ALLOW, OUTSIDE
from pipeline.store.provenance import FINGERPRINT
from pipeline.store.records import NOTHING_FOUND, CaptionRecord, DetectionRecord, GroundingRecord, PhrasesRecord
from pipeline.store.resume import keep_apart, keep_finished
from pipeline.store.shards import (
    PROVENANCE_KEY,
    ShardWriter,
    categories_to_metadata,
    list_shards,
    read_end,
    read_shard,
)
from pipeline.store.storage import Place, exists, side_by_side, size
from pipeline.store.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

BROKEN_INPUT_REASONS = (
    "image_missing",
    "image_unreadable",
    "image_too_large",
    "image_timeout",
    OUTSIDE,
    "caption_empty",
    "answer_unusable",
)
"""Row rejects that count against ``max_reject_share``; a picture without boxes is not an error of the input."""
PICTURES_THAT_TELL = 500
"""Pictures without a single box after which labelling ends: the teacher or the settings are wrong then."""
SHARDS_AT_ONCE = 2
"""Shards of one actor at a time: while the teacher works on one, the other is read, decoded or written."""
CRASHES = 4
"""A shard whose actor died this often is given up; the others continue."""
POLL_S = 2.0


@dataclass(frozen=True)
class Inputs:
    """What the stage reads and writes."""

    records: Place
    """Folder of web pairs, or of detection records where names are asked for."""
    phrases: Place | None
    """Folder of the captions' phrases; None where names are asked for."""
    teacher: Names
    """See ``open_teachers``."""
    out: Place
    allowed: tuple[str, ...] = ()
    """Folders and URLs besides ``records`` that pictures may lie below, see ``allowed_roots``."""
    vocabulary: Vocabulary | None = None
    """The names that all pictures are asked for, in place of phrases; labels are detection records then."""
    known: frozenset[str] = frozenset()
    """Words of human data; pairs that say or show nothing else are rejected, see ``known_words``."""


class LabelActor:
    """Holds a teacher in its process and labels one shard a call, several calls at once."""

    def __init__(
        self, inputs: Inputs, config: PseudoLabelConfig, max_image_pixels: int, num_threads: int, meter: Any
    ) -> None:
        quiet_libraries()
        torch.set_num_threads(num_threads)
        self._inputs, self._meter, self._failure = inputs, meter, ""
        self._prometheus = _Prometheus()
        roots = [str(inputs.records), *inputs.allowed]
        decoder = PictureDecoder(max_image_pixels, config.decode_timeout_s, num_threads, roots)
        try:
            teacher = open_teachers(inputs.teacher, config)
        except PipelineError as error:
            # Told by every call instead of raised: Ray would start the actor again and again.
            self._failure = str(error)
            return
        self._labeller = PseudoLabeller(teacher, config, decoder.decode)
        self._extras = extras_for(inputs.teacher, config)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Label the shard that a row of the work list names; return its summary, or why it could not be done."""
        try:
            if self._failure:
                raise ShardError(self._failure)
            summary = self._label_shard(row["name"], row["provenance"])
        except PipelineError as error:
            # Crosses the process border as data: the stage reports it after the other shards are safe.
            if isinstance(error, StorageError):
                self._failure = str(error)  # where one shard cannot be written, no other is labelled in vain
            return {"summary": "", "error": str(error)}
        except torch.AcceleratorError:
            logger.exception("%s: the device is of no use to this process any more", row["name"])
            os._exit(1)  # Ray starts another one
        except Exception as error:
            # A teacher that cannot do one shard costs that shard alone; its traceback is in the worker's log.
            logger.exception("%s: the teacher failed", row["name"])
            return {"summary": "", "error": f"{self._inputs.records / row['name']}: the teacher failed: {error!r}"}
        return {"summary": json.dumps(summary.to_dict()), "error": ""}

    def _label_shard(self, name: str, provenance: str) -> ShardSummary:
        path, fingerprint = self._inputs.out / name, json.loads(provenance)[FINGERPRINT]
        # Ray calls again when the node died that had the answer; the shard may have been in its place by then.
        if exists(path) and (summary := finished_summary(path, fingerprint)) is not None:
            return summary
        if self._times_begun(name) > CRASHES:
            raise ShardError(f"{self._inputs.records / name}: its worker died {CRASHES} times; is memory short?")
        write = self._write_pairs if self._inputs.vocabulary is None else self._write_names
        counted, shard = write(name, {PROVENANCE_KEY: provenance})
        return replace(counted, fingerprint=fingerprint, bytes=shard.file_bytes, sha256=shard.file_sha256)

    def _write_pairs(self, name: str, metadata: Mapping[str, str]) -> tuple[ShardSummary, ShardWriter]:
        """Label a shard of web pairs."""
        assert self._inputs.phrases is not None
        pairs = read_shard(self._inputs.records / name, CaptionRecord)
        phrases = read_shard(self._inputs.phrases / name, PhrasesRecord)
        try:
            labelled = self._labeller.label(pairs, phrases, self._report, self._inputs.known)
        except ShardError as error:
            raise ShardError(f"{self._inputs.phrases / name}: {error}") from error
        extras = {*self._extras, *("source_caption" for pair in pairs if pair.source_caption is not None)}
        with ShardWriter(self._inputs.out / name, GroundingRecord, metadata, extras) as shard:
            for record in labelled:
                shard.append(record)
        return summarise(name, labelled), shard

    def _write_names(self, name: str, metadata: Mapping[str, str]) -> tuple[ShardSummary, ShardWriter]:
        """Label a shard of pictures."""
        assert self._inputs.vocabulary is not None
        pictures = read_shard(self._inputs.records / name, DetectionRecord)
        questions = self._labeller.ask_names(pictures, self._inputs.vocabulary)
        labelled = self._labeller.answer(questions, self._report)
        rejects, categories = questions.phrase_rejects, self._inputs.vocabulary.categories
        counts = {NAME_REJECTS_KEY: json.dumps(dict(sorted(rejects.items()))), **categories_to_metadata(categories)}
        with ShardWriter(self._inputs.out / name, DetectionRecord, {**metadata, **counts}, self._extras) as shard:
            for record in labelled:
                shard.append(record)
        return summarise_names(name, labelled, len(categories), rejects), shard

    def _times_begun(self, name: str) -> int:
        try:
            return int(ray.get(self._meter.begin.remote(name)))
        except ray.exceptions.RayError:
            return 1  # the meter died with its node; nothing is given up then

    def _report(self, figures: Figures) -> None:
        self._prometheus.add(figures)
        self._meter.add.remote(figures)


class _Prometheus:
    """What Ray exports of an actor to Prometheus, see cluster/README.md."""

    def __init__(self) -> None:
        self._rows = RayCounter("glip_label_rows", "Web pairs that went through the teacher's batches.")
        self._boxes = RayCounter("glip_label_boxes", "Boxes kept.")
        self._busy = RayCounter("glip_label_teacher_seconds", "Time in the teacher.")
        self._rejects = RayCounter("glip_label_rejects", "Rows without boxes.", tag_keys=("reason",))

    def add(self, figures: Figures) -> None:
        """Count what was done; Ray refuses to count nothing."""
        for counter, value in ((self._rows, figures.rows), (self._boxes, figures.boxes), (self._busy, figures.busy_s)):
            if value > 0:
                counter.inc(value)
        for reason, count in figures.rejects.items():
            self._rejects.inc(count, tags={"reason": reason})


def pseudo_label(inputs: Inputs, config: PseudoLabelConfig, max_image_pixels: int) -> dict[str, Any]:
    """Label all shards of ``inputs.records``; Ray must be running.

    Returns:
        Metrics: rows, rejects by reason, phrases, boxes, pictures per second.

    Raises:
        ConfigError: ``inputs.out`` is one of the others.
        MissingInputError: teacher, pairs or phrases are not there.
        ShardError: an input shard or the teacher is broken, or a shard cannot be written; others are finished first. Or
            nothing at all is found in the first pictures.
        RejectLimitError: too large a share of rows is broken.
    """
    keep_apart(inputs.out, inputs.records, *([inputs.phrases] if inputs.phrases else []))
    sources = list_shards(inputs.records)
    config = replace(config, precision=resolve_precision(config.precision, on_gpu_machines))
    wanted = _plan(inputs, config, max_image_pixels, sources)
    kept = keep_finished("pseudo_label", [inputs.out], wanted, partial(_look, inputs.out, wanted, config))
    todo = {place.name: entry for place, entry in wanted.items() if place not in kept}
    start = time.monotonic()
    made = _run(inputs, config, max_image_pixels, todo, kept.values()) if todo else {}
    seconds = time.monotonic() - start
    summaries = [kept[place] if place in kept else made[place.name] for place in wanted]
    _check_found(summaries, inputs, config)
    metrics = to_metrics(summaries)
    speed = sum(summary.rows for summary in made.values()) / seconds
    metrics["images_per_s"] = float(f"{speed:.3g}") if made else None  # language models take seconds a picture
    write_manifest(inputs.out, next(iter(wanted.values())), summaries)
    broken = sum(metrics["row_rejects"].get(reason, 0) for reason in BROKEN_INPUT_REASONS)
    if broken > config.max_reject_share * metrics["rows"]:
        advice = f"; {OUTSIDE}: {HOW_TO_ALLOW}" if OUTSIDE in metrics["row_rejects"] else ""
        raise RejectLimitError(
            f"{inputs.records}: {broken} of {metrics['rows']} rows are broken ({metrics['row_rejects']}), more than "
            f"pseudo_label.max_reject_share = {config.max_reject_share}; mend the data or raise the limit{advice}"
        )
    return metrics


def _plan(
    inputs: Inputs, config: PseudoLabelConfig, max_image_pixels: int, sources: list[Place]
) -> dict[Place, dict[str, Any]]:
    """Return per shard to make everything that its content depends on."""
    labelling = describe_labelling(inputs.teacher, config, max_image_pixels, inputs.vocabulary, inputs.known)
    phrases = inputs.phrases
    entries = side_by_side(
        lambda source: plan_shard(labelling, source, phrases / source.name if phrases else None), sources
    )
    return {inputs.out / source.name: entry for source, entry in zip(sources, entries, strict=True)}


def _look(
    out: Place, wanted: Mapping[Place, Mapping[str, Any]], config: PseudoLabelConfig, shards: Sequence[Place]
) -> list[ShardSummary | None]:
    """Return what the manifest says of shards; those that it does not list are read whole, on all machines.

    Nothing is said of shards with many pictures that were refused for their place: it may be allowed by now.
    """
    listed = read_manifest(out)

    def look_up(shard: Place) -> ShardSummary | None:
        summary = listed.get(shard.name)
        if summary is None or (summary.fingerprint, summary.bytes) != (wanted[shard][FINGERPRINT], size(shard)):
            return None
        return summary if summary.rows == read_end(shard)[0].num_rows else None

    found = dict(zip(shards, side_by_side(look_up, shards), strict=True))
    unlisted = [shard for shard, summary in found.items() if summary is None]
    read = on_all_machines(finished_summary, unlisted, [wanted[shard][FINGERPRINT] for shard in unlisted])
    found |= zip(unlisted, read, strict=True)
    return [
        None if summary and summary.row_rejects.get(OUTSIDE, 0) > config.max_reject_share * summary.rows else summary
        for summary in found.values()
    ]


def _run(
    inputs: Inputs,
    config: PseudoLabelConfig,
    max_image_pixels: int,
    todo: Mapping[str, Mapping[str, Any]],
    kept: Collection[ShardSummary],
) -> dict[str, ShardSummary]:
    """Stream the work list through the actor pool; return the summaries of the shards that were made."""
    wanted = min(config.num_actors, len(todo))
    share = share_cluster(wanted)
    _set_up_ray_data()
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    meter = ray.remote(Meter).options(num_cpus=0, scheduling_strategy=here).remote()
    work = [{"name": name, "provenance": json.dumps(entry)} for name, entry in todo.items()]
    labelled = ray.data.from_items(work, override_num_blocks=len(work)).map(
        LabelActor,  # type: ignore[arg-type]  # Ray's signature knows functions alone
        fn_constructor_args=(inputs, config, max_image_pixels, share.threads, meter),
        compute=ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=wanted,  # on nodes that come later, too
            max_tasks_in_flight_per_actor=SHARDS_AT_ONCE,
            max_concurrent_calls_per_actor=SHARDS_AT_ONCE,
        ),
        **share.per_worker(),
    )
    made, errors = {}, set()
    with progress(len(work), "pseudo_label", "shards") as bar, _polling(meter, bar.set_postfix_str):
        for result in labelled.iter_rows():
            if result["error"]:
                errors.add(result["error"])
            else:
                summary = ShardSummary(**json.loads(result["summary"]))
                made[summary.name] = summary
                if not summary.boxes:
                    _check_found([*kept, *made.values()], inputs, config)
            bar.update(1)
    lost = sorted(set(todo) - set(made))
    if lost:
        reasons = sorted(errors) or [f"{name}: no worker came back with it" for name in lost]
        raise ShardError(f"{len(lost)} shards cannot be labelled, the others are done:\n" + "\n".join(reasons))
    return made


def _check_found(summaries: Collection[ShardSummary], inputs: Inputs, config: PseudoLabelConfig) -> None:
    """Stop where a teacher finds nothing at all.

    Raises:
        ShardError: no phrase has a box in so many pictures; the message says what to look at.
    """
    if any(summary.boxes for summary in summaries):
        return
    figures = to_metrics(tuple(summaries))
    asked = figures["row_rejects"].get(NOTHING_FOUND, 0)
    if asked >= PICTURES_THAT_TELL:
        teacher = inputs.teacher if isinstance(inputs.teacher, str) else " + ".join(inputs.teacher)
        raise ShardError(
            f"{inputs.out}: the teacher {teacher} found nothing that is kept in {asked} pictures; phrases are "
            f"left out as: {figures['phrase_rejects']}; lower pseudo_label.min_score (={config.min_score}), or look at "
            "what the teacher finds in one of them: glip predict PICTURE --text NAME --model TEACHER --min-score 0"
        )


def _set_up_ray_data() -> None:
    context = ray.data.DataContext.get_current()
    # The pool grows as soon as every teacher has its hands full. Ray's default waits for shards that queue up behind
    # the actors, which take no more than they work on.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1  # a shard that is given up ends no other
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


@contextmanager
def _polling(meter: Any, show: Callable[[str], Any]) -> Iterator[None]:
    """Poll and show the progress of the actors for the length of the ``with`` block."""
    is_over = threading.Event()

    def poll() -> None:
        while not is_over.wait(POLL_S):
            try:
                show(describe(ray.get(meter.read.remote(), timeout=POLL_S)))
            except ray.exceptions.RayError:
                continue  # the meter's node is gone: the figures end, the work does not

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
