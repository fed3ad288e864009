"""The ``pseudo_label`` stage over Ray Data: shards of web pairs stream through a pool of teachers.

The unit of work is one input shard, which becomes one output shard. A finished shard is kept when the stage runs again;
one that was made by another teacher or with other settings is made anew, and said so.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

import glip_model
from glip_model.predictor import GLIPPredictor
from pipeline.cli import progress, quiet_libraries, write_json
from pipeline.config import PseudoLabelConfig
from pipeline.data import images
from pipeline.data.provenance import FINGERPRINT, code_sha256, file_sha256, fingerprint
from pipeline.data.records import SCHEMA_VERSION, CaptionRecord, GroundingRecord, PhrasesRecord
from pipeline.data.shards import PROVENANCE_KEY, list_shards, read_metadata, read_shard, write_shard
from pipeline.errors import MissingInputError, RejectLimitError, ShardError
from pipeline.pseudo_labels import labeller, selection
from pipeline.pseudo_labels.labeller import PseudoLabeller
from pipeline.pseudo_labels.manifest import (
    MANIFEST_FILE,
    ShardSummary,
    describe_teacher,
    finished_summary,
    summarise_shard,
)

logger = logging.getLogger(__name__)

BROKEN_INPUT_REASONS = ("image_missing", "image_unreadable", "image_too_large", "caption_empty")
"""Row rejects that count against ``max_reject_share``; finding nothing in a picture is no fault of the input."""


@dataclass(frozen=True)
class Inputs:
    """What the stage reads and writes."""

    records: Path
    phrases: Path
    teacher: Path
    out: Path


class LabelActor:
    """Holds a teacher in its process and labels one shard a call."""

    def __init__(self, inputs: Inputs, config: PseudoLabelConfig, max_image_pixels: int, num_threads: int) -> None:
        quiet_libraries()
        torch.set_num_threads(num_threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._inputs, self._broken_teacher = inputs, ""
        try:
            teacher = GLIPPredictor.from_pretrained(inputs.teacher, device)
        except (ValueError, OSError) as error:
            # Told by every call instead of raised: Ray would start the actor again and again.
            self._broken_teacher = f"{inputs.teacher}: not a usable teacher ({error}); run: dvc repro train@teacher"
            return
        self._labeller = PseudoLabeller(teacher, config, max_image_pixels)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Label the shard that a row of the work list names; return its summary, or why it could not be done."""
        try:
            summary = self._label_shard(row["name"], row["provenance"])
        except ShardError as error:
            # Crosses the process border as data: the stage reports it after the other shards are safe.
            return {"summary": "", "error": str(error)}
        return {"summary": json.dumps(summary.to_dict()), "error": ""}

    def _label_shard(self, name: str, provenance: str) -> ShardSummary:
        if self._broken_teacher:
            raise ShardError(self._broken_teacher)
        pairs = read_shard(self._inputs.records / name, CaptionRecord)
        phrases = read_shard(self._inputs.phrases / name, PhrasesRecord)
        try:
            labelled = self._labeller.label(pairs, phrases)
        except ShardError as error:
            raise ShardError(f"{self._inputs.phrases / name}: {error}") from error
        path = self._inputs.out / name
        write_shard(path, labelled, GroundingRecord, {PROVENANCE_KEY: provenance})
        return summarise_shard(path)


def pseudo_label(inputs: Inputs, config: PseudoLabelConfig, max_image_pixels: int) -> dict[str, Any]:
    """Label all shards of ``inputs.records``; Ray must be running.

    Returns:
        Metrics: rows, rejects by reason, phrases, boxes, pictures per second.

    Raises:
        MissingInputError: teacher, pairs or phrases are not there.
        ShardError: an input shard or the teacher is broken; other shards are finished first.
        RejectLimitError: too large a share of rows is broken.
    """
    sources = list_shards(inputs.records)
    wanted = _provenance(inputs, config, max_image_pixels, sources)
    kept = _keep_finished(inputs.out, wanted)
    todo = {name: entry for name, entry in wanted.items() if name not in kept}
    if kept:
        logger.info("pseudo_label: %d of %d shards are finished already", len(kept), len(sources))
    start = time.monotonic()
    made = _run(inputs, config, max_image_pixels, todo) if todo else {}
    seconds = time.monotonic() - start
    summaries = [(kept | made)[path.name] for path in sources]
    metrics = _metrics(summaries)
    metrics["images_per_s"] = round(sum(summary.rows for summary in made.values()) / seconds, 1) if made else None
    common = {key: value for key, value in next(iter(wanted.values())).items() if key not in ("input", FINGERPRINT)}
    shards = [summary.to_dict() for summary in summaries]
    write_json(inputs.out / MANIFEST_FILE, {"schema_version": SCHEMA_VERSION, "provenance": common, "shards": shards})
    broken = sum(metrics["row_rejects"].get(reason, 0) for reason in BROKEN_INPUT_REASONS)
    if broken > config.max_reject_share * metrics["rows"]:
        raise RejectLimitError(
            f"{inputs.records}: {broken} of {metrics['rows']} rows are broken ({metrics['row_rejects']}), more than "
            f"pseudo_label.max_reject_share = {config.max_reject_share}; mend the data or raise the limit"
        )
    return metrics


def _provenance(
    inputs: Inputs, config: PseudoLabelConfig, max_image_pixels: int, sources: list[Path]
) -> dict[str, dict[str, Any]]:
    """Return per shard everything that its content depends on."""
    settings = dataclasses.asdict(config) | {"max_image_pixels": max_image_pixels}
    for free in ("num_actors", "max_reject_share"):  # do not change any row
        settings.pop(free)
    teacher, code = describe_teacher(inputs.teacher), code_sha256(_labelling_code())
    provenance = {}
    for path in sources:
        partner = inputs.phrases / path.name
        if not partner.is_file():
            raise MissingInputError(f"{partner}: no phrases for {path}; run: dvc repro phrases")
        entry = {
            "teacher": teacher,
            "parser": _parser_name(partner),
            "settings": settings,
            "code": code,
            "schema_version": SCHEMA_VERSION,
            "input": {"pairs": file_sha256(path), "phrases": file_sha256(partner)},
        }
        provenance[path.name] = {**entry, FINGERPRINT: fingerprint(entry)}
    return provenance


def _labelling_code() -> list[Path]:
    """Return the files that decide what a row becomes; labels of an older version must not stay unnoticed."""
    modules = [Path(str(module.__file__)) for module in (labeller, selection, images)]
    return [*modules, *Path(str(glip_model.__file__)).parent.glob("*.py")]


def _parser_name(phrases: Path) -> str | None:
    try:
        return str(json.loads(read_metadata(phrases)[PROVENANCE_KEY])["parser"])
    except (ShardError, KeyError, ValueError):
        return None  # a broken shard is reported by the worker that reads it, after the others are done


def _keep_finished(out: Path, wanted: Mapping[str, Mapping[str, Any]]) -> dict[str, ShardSummary]:
    """Remove what does not belong into the output; return the summaries of the shards that stay."""
    out.mkdir(parents=True, exist_ok=True)
    for leftover in [*out.glob(".part-*"), *out.glob(f".{MANIFEST_FILE}*")]:
        leftover.unlink()
    kept, stale = {}, 0
    for path in sorted(out.glob("part-*.parquet")):
        entry = wanted.get(path.name)
        summary = None if entry is None else finished_summary(path, entry[FINGERPRINT])
        if summary is None:
            path.unlink()
            stale += 1
        else:
            kept[path.name] = summary
    if len(kept) < len(wanted):
        (out / MANIFEST_FILE).unlink(missing_ok=True)
    if stale:
        logger.info(
            "pseudo_label: removed %d shards: broken, or of another teacher, other inputs, settings or code", stale
        )
    return kept


def _run(
    inputs: Inputs, config: PseudoLabelConfig, max_image_pixels: int, todo: Mapping[str, Mapping[str, Any]]
) -> dict[str, ShardSummary]:
    """Stream the work list through the actor pool; return the summaries of the shards that were made."""
    resources: dict[str, float] = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    actors = max(1, min(config.num_actors, len(todo), gpus or cpus))
    threads = max(1, min(cpus, os.cpu_count() or 1) // actors)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    work = [{"name": name, "provenance": json.dumps(entry)} for name, entry in todo.items()]
    labelled = ray.data.from_items(work, override_num_blocks=len(work)).map(
        LabelActor,  # type: ignore[arg-type]  # Ray's signature knows functions alone
        fn_constructor_args=(inputs, config, max_image_pixels, threads),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
        num_cpus=0 if gpus else threads,
        num_gpus=1 if gpus else 0,
    )
    made, errors = {}, set()
    with progress(len(work), "pseudo_label", "shards") as bar:
        for result in labelled.iter_rows():
            if result["error"]:
                errors.add(result["error"])
            else:
                summary = ShardSummary(**json.loads(result["summary"]))
                made[summary.name] = summary
            bar.update(1)
    if errors:
        count = len(todo) - len(made)
        raise ShardError(f"{count} shards cannot be labelled, the others are done:\n" + "\n".join(sorted(errors)))
    return made


def _metrics(summaries: list[ShardSummary]) -> dict[str, Any]:
    row_rejects: Counter[str] = Counter()
    phrase_rejects: Counter[str] = Counter()
    for summary in summaries:
        row_rejects.update(summary.row_rejects)
        phrase_rejects.update(summary.phrase_rejects)
    rows = sum(summary.rows for summary in summaries)
    boxes = sum(summary.boxes for summary in summaries)
    return {
        "shards": len(summaries),
        "rows": rows,
        "rows_labelled": rows - row_rejects.total(),
        "row_rejects": dict(sorted(row_rejects.items())),
        "phrases": sum(summary.phrases for summary in summaries),
        "phrase_rejects": dict(sorted(phrase_rejects.items())),
        "boxes": boxes,
        "boxes_per_row": round(boxes / max(rows, 1), 3),
    }
