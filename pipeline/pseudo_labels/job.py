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

from glip_model.checkpoint import WEIGHTS_FILE
from glip_model.predictor import GLIPPredictor
from pipeline.cli import progress, quiet_libraries, write_json
from pipeline.config import PseudoLabelConfig
from pipeline.data.records import SCHEMA_VERSION, CaptionRecord, GroundingRecord, PhrasesRecord
from pipeline.data.shards import PROVENANCE_KEY, list_shards, read_metadata, read_shard, write_shard
from pipeline.errors import MissingInputError, RejectLimitError, ShardError
from pipeline.pseudo_labels.labeller import PseudoLabeller
from pipeline.pseudo_labels.manifest import (
    FINGERPRINT,
    MANIFEST_FILE,
    ShardSummary,
    file_sha256,
    fingerprint,
    is_finished,
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
        self._labeller = PseudoLabeller(
            GLIPPredictor.from_pretrained(inputs.teacher, device), config, max_image_pixels
        )
        self._inputs = inputs

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Label the shard that a row of the work list names."""
        name, provenance = row["name"], json.loads(row["provenance"])
        try:
            pairs = read_shard(self._inputs.records / name, CaptionRecord)
            phrases = read_shard(self._inputs.phrases / name, PhrasesRecord)
            labelled = self._labeller.label(pairs, phrases)
        except ShardError as error:
            # Crosses the process border as data: the stage reports it after the other shards are safe.
            return {"name": name, "rows": 0, "error": str(error)}
        write_shard(self._inputs.out / name, labelled, GroundingRecord, {PROVENANCE_KEY: json.dumps(provenance)})
        return {"name": name, "rows": len(labelled), "error": ""}


def pseudo_label(inputs: Inputs, config: PseudoLabelConfig, max_image_pixels: int) -> dict[str, Any]:
    """Label all shards of ``inputs.records``; Ray must be running.

    Returns:
        Metrics: rows, rejects by reason, phrases, boxes, pictures per second.

    Raises:
        MissingInputError: teacher, pairs or phrases are not there.
        ShardError: an input shard is broken; the others are finished first.
        RejectLimitError: too large a share of rows is broken.
    """
    sources = list_shards(inputs.records)
    wanted = _provenance(inputs, config, sources)
    todo = _clean(inputs.out, wanted)
    if len(todo) < len(sources):
        logger.info("pseudo_label: %d of %d shards are finished already", len(sources) - len(todo), len(sources))
    start = time.monotonic()
    rows_done = _run(inputs, config, max_image_pixels, todo) if todo else 0
    seconds = time.monotonic() - start
    summaries = [summarise_shard(inputs.out / path.name) for path in sources]
    metrics = _metrics(summaries)
    metrics["images_per_s"] = round(rows_done / seconds, 1) if rows_done else None
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


def _provenance(inputs: Inputs, config: PseudoLabelConfig, sources: list[Path]) -> dict[str, dict[str, Any]]:
    """Return per shard everything that its content depends on."""
    weights = inputs.teacher / WEIGHTS_FILE
    if not weights.is_file():
        raise MissingInputError(f"{weights}: no such teacher; run: dvc repro train@teacher")
    settings = dataclasses.asdict(config)
    for free in ("num_actors", "max_reject_share"):  # do not change any row
        settings.pop(free)
    teacher = {"name": inputs.teacher.name, "sha256": file_sha256(weights)}
    provenance = {}
    for path in sources:
        partner = inputs.phrases / path.name
        if not partner.is_file():
            raise MissingInputError(f"{partner}: no phrases for {path}; run: dvc repro phrases")
        parser = json.loads(read_metadata(partner).get(PROVENANCE_KEY, "{}")).get("parser")
        entry = {
            "teacher": teacher,
            "parser": parser,
            "settings": settings,
            "schema_version": SCHEMA_VERSION,
            "input": {"pairs": file_sha256(path), "phrases": file_sha256(partner)},
        }
        provenance[path.name] = {**entry, FINGERPRINT: fingerprint(entry)}
    return provenance


def _clean(out: Path, wanted: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Remove what does not belong into the output; return the shards that are still to be made."""
    out.mkdir(parents=True, exist_ok=True)
    for leftover in [*out.glob(".part-*"), *out.glob(f".{MANIFEST_FILE}*")]:
        leftover.unlink()
    todo, stale = {}, 0
    for name, entry in wanted.items():
        if not is_finished(out / name, entry[FINGERPRINT]):
            stale += (out / name).exists()
            (out / name).unlink(missing_ok=True)
            todo[name] = entry
    for path in out.glob("part-*.parquet"):
        if path.name not in wanted:
            path.unlink()
            stale += 1
    if stale:
        logger.info("pseudo_label: removed %d shards that are broken or of another teacher or other settings", stale)
    return todo


def _run(
    inputs: Inputs, config: PseudoLabelConfig, max_image_pixels: int, todo: Mapping[str, Mapping[str, Any]]
) -> int:
    """Stream the work list through the actor pool; return the rows done."""
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    actors = max(1, min(config.num_actors, len(todo), gpus or cpus))
    threads = max(1, min(cpus, os.cpu_count() or 1) // actors)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    work = [{"name": name, "provenance": json.dumps(entry)} for name, entry in todo.items()]
    labelled = ray.data.from_items(work, override_num_blocks=len(work)).map(
        LabelActor,
        fn_constructor_args=(inputs, config, max_image_pixels, threads),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
        num_cpus=0 if gpus else threads,
        num_gpus=1 if gpus else 0,
    )
    rows, errors = 0, []
    with progress(len(work), "pseudo_label", "shards") as bar:
        for result in labelled.iter_rows():
            rows += result["rows"]
            errors += [result["error"]] if result["error"] else []
            bar.update(1)
    if errors:
        raise ShardError(f"{len(errors)} input shards cannot be labelled, the others are done:\n" + "\n".join(errors))
    return rows


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
