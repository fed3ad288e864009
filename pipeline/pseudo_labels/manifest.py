"""What labels depend on, and what a finished shard of them holds.

_manifest.json is a summary written at the end, for people and for checking copies; while it is missing, the folder is
not complete.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import NonNegativeInt, TypeAdapter

from pipeline.errors import MissingInputError, ShardError
from pipeline.pseudo_labels.decoding import PictureDecoder
from pipeline.pseudo_labels.ensemble import Names, describe_teachers, open_teachers
from pipeline.pseudo_labels.labeller import PseudoLabeller, count_boxes
from pipeline.pseudo_labels.settings import PseudoLabelConfig
from pipeline.store.provenance import FINGERPRINT, code_sha256, file_sha256, fingerprint, with_fingerprint
from pipeline.store.records import NOTHING_FOUND, SCHEMA_VERSION, DetectionRecord, GroundingRecord
from pipeline.store.resume import find_manifest, fingerprint_of, input_identity, write_manifest_file
from pipeline.store.shards import PROVENANCE_KEY, holds_detections, read_categories, read_metadata, read_shard
from pipeline.store.storage import Place, exists, patiently, size
from pipeline.store.vocabulary import Vocabulary

FREE_SETTINGS = ("num_actors", "max_reject_share")
"""They do not change any row."""
NAME_REJECTS_KEY = "glip.name_rejects"
"""Metadata key of a shard that was labelled with names: counts of classes without a box in a picture, by reason."""


@dataclass(frozen=True)
class ShardSummary:
    """Figures of one finished shard."""

    name: str
    rows: NonNegativeInt
    phrases: NonNegativeInt
    boxes: NonNegativeInt
    row_rejects: Mapping[str, NonNegativeInt]
    phrase_rejects: Mapping[str, NonNegativeInt]
    fingerprint: str | None
    bytes: NonNegativeInt
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; ``ShardSummary(**values)`` is the way back."""
        return dataclasses.asdict(self)


_SUMMARY = TypeAdapter(ShardSummary)


def describe_labelling(
    teacher: Names,
    config: PseudoLabelConfig,
    max_image_pixels: int,
    vocabulary: Vocabulary | None = None,
    known: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Return what the labels of all shards depend on; MissingInputError where there is no such teacher.

    Args:
        teacher: see ``open_teachers``.
        config: its precision must be settled: ``auto`` is not the same on all machines.
        max_image_pixels: larger pictures are refused.
        vocabulary: the names that are asked for; None where captions are.
        known: words of human data, of which alone nothing is labelled.
    """
    settings = dataclasses.asdict(config) | {"max_image_pixels": max_image_pixels}
    described = {
        "teacher": describe_teachers(teacher),
        "settings": {name: value for name, value in settings.items() if name not in FREE_SETTINGS},
        "code": code_sha256([PictureDecoder, PseudoLabeller, open_teachers]),
        "schema_version": SCHEMA_VERSION,
    }
    if vocabulary:
        described["names"] = vocabulary.to_dict()
    if known:
        described["known"] = fingerprint({"words": sorted(known)})
    return described


def plan_shard(labelling: Mapping[str, Any], pairs: Place, phrases: Place | None) -> dict[str, Any]:
    """Return everything that the labels of one input shard depend on, with its fingerprint.

    Args:
        labelling: see ``describe_labelling``.
        pairs: the shard of web pairs, or of pictures.
        phrases: the shard of their phrases; None where names are asked for.

    Raises:
        MissingInputError: the shard of phrases is not there.
    """
    if phrases is None:
        return with_fingerprint({**labelling, "input": {"pictures": input_identity(pairs)}})
    if not exists(phrases):
        raise MissingInputError(f"{phrases}: no phrases for {pairs}; run: dvc repro phrases")
    entry = {
        **labelling,
        "parser": _parser_name(phrases),
        "input": {"pairs": input_identity(pairs), "phrases": input_identity(phrases)},
    }
    return with_fingerprint(entry)


def finished_summary(path: Place, expected_fingerprint: str) -> ShardSummary | None:
    """Return the figures of a shard if it is there, whole, and has this fingerprint; else None."""
    # The fingerprint first, from the end of the file: a shard of another teacher need not be read.
    if fingerprint_of(path) != expected_fingerprint:
        return None
    try:
        metadata = read_metadata(path)
        # Every page against its checksum, the pictures' as well.
        if holds_detections(path):
            rejects = json.loads(metadata.get(NAME_REJECTS_KEY, "{}"))
            if not isinstance(rejects, dict):
                return None
            counted = summarise_names(path.name, read_shard(path, DetectionRecord), len(read_categories(path)), rejects)
        else:
            counted = summarise(path.name, read_shard(path, GroundingRecord))
    except (ShardError, json.JSONDecodeError):
        return None
    sha256 = patiently(lambda: file_sha256(path), path)
    return replace(counted, fingerprint=expected_fingerprint, bytes=size(path), sha256=sha256)


def summarise(name: str, records: Sequence[GroundingRecord]) -> ShardSummary:
    """Count what a shard of labelled pairs holds; its file is still to be described."""
    phrases = [phrase for record in records for phrase in record.phrases]
    rejects = Counter(phrase.reject_reason for phrase in phrases if phrase.reject_reason)
    return _summary(name, records, len(phrases), rejects)


def summarise_names(
    name: str, records: Sequence[DetectionRecord], num_classes: int, rejects: Mapping[str, int]
) -> ShardSummary:
    """Count what a shard of pictures labelled with names holds; every picture was asked for every class.

    Args:
        name: of the shard.
        records: its rows.
        num_classes: asked for.
        rejects: how often a class has no box in a picture, by the reason.
    """
    looked_at = sum(record.reject_reason in (None, NOTHING_FOUND) for record in records)
    return _summary(name, records, looked_at * num_classes, rejects)


def _summary(
    name: str, records: Sequence[GroundingRecord | DetectionRecord], phrases: int, rejects: Mapping[str, int]
) -> ShardSummary:
    row_rejects = Counter(record.reject_reason for record in records if record.reject_reason)
    return ShardSummary(
        name=name,
        rows=len(records),
        phrases=phrases,
        boxes=sum(map(count_boxes, records)),
        row_rejects=dict(sorted(row_rejects.items())),
        phrase_rejects=dict(sorted(rejects.items())),
        fingerprint=None,
        bytes=0,
        sha256="",
    )


def to_metrics(summaries: Sequence[ShardSummary]) -> dict[str, Any]:
    """Sum what the shards hold."""
    row_rejects: Counter[str] = sum((Counter(summary.row_rejects) for summary in summaries), Counter())
    phrase_rejects: Counter[str] = sum((Counter(summary.phrase_rejects) for summary in summaries), Counter())
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


def read_manifest(folder: Place) -> dict[str, ShardSummary]:
    """Return the summaries of a complete folder by shard; none where it is not complete, or says what cannot be."""
    place = find_manifest(folder)
    try:
        shards = json.loads(patiently(place.read_text, place))["shards"] if place else []
        return {entry["name"]: _SUMMARY.validate_python(entry) for entry in shards}
    except (OSError, ValueError, RecursionError, KeyError, TypeError):  # of an older version, or no manifest at all
        return {}


def write_manifest(folder: Place, provenance: Mapping[str, Any], summaries: Sequence[ShardSummary]) -> None:
    """Say that a folder is complete.

    Args:
        folder: of the shards.
        provenance: of any of its shards.
        summaries: of all shards, in order.
    """
    common = {name: value for name, value in provenance.items() if name not in ("input", FINGERPRINT)}
    shards = [summary.to_dict() for summary in summaries]
    write_manifest_file(folder, {"schema_version": SCHEMA_VERSION, "provenance": common, "shards": shards})


def _parser_name(phrases: Place) -> str | None:
    try:
        return str(json.loads(read_metadata(phrases)[PROVENANCE_KEY])["parser"])
    except (ShardError, KeyError, ValueError):
        return None
