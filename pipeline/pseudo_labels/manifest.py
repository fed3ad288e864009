"""Which shards are finished, and with what.

A shard's fingerprint covers all that its content depends on: input rows, teacher, parser, settings and the code that
labels. It rests in the shard's own metadata, so a shard and the claim that it is finished appear at once and cannot
contradict each other, however the stage was killed. manifest.json is a summary written at the end, for people and for
checking copies; while it is missing, the folder is not complete.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import glip_model
from pipeline.cli import write_json
from pipeline.errors import MissingInputError, ShardError
from pipeline.pseudo_labels import decoding, labeller, selection, teachers
from pipeline.pseudo_labels.settings import PseudoLabelConfig
from pipeline.pseudo_labels.teachers import describe_teacher
from pipeline.store import images
from pipeline.store.provenance import FINGERPRINT, code_sha256, file_sha256, fingerprint
from pipeline.store.records import SCHEMA_VERSION, GroundingRecord
from pipeline.store.shards import PROVENANCE_KEY, read_fingerprint, read_metadata, read_shard, rows_sha256
from pipeline.store.storage import Place, exists, patiently, remove, replacing, size

MANIFEST_FILE = "manifest.json"
FREE_SETTINGS = ("num_actors", "max_reject_share")
"""They do not change any row."""


@dataclass(frozen=True)
class ShardSummary:
    """Figures of one finished shard."""

    name: str
    rows: int
    phrases: int
    boxes: int
    row_rejects: Mapping[str, int]
    phrase_rejects: Mapping[str, int]
    fingerprint: str | None
    bytes: int
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; ``ShardSummary(**values)`` is the way back."""
        return dataclasses.asdict(self)


def describe_labelling(teacher: str, config: PseudoLabelConfig, max_image_pixels: int) -> dict[str, Any]:
    """Return what the labels of all shards depend on; MissingInputError where there is no such teacher."""
    settings = dataclasses.asdict(config) | {"max_image_pixels": max_image_pixels}
    return {
        "teacher": describe_teacher(teacher),
        "settings": {name: value for name, value in settings.items() if name not in FREE_SETTINGS},
        "code": code_sha256(labelling_code()),
        "schema_version": SCHEMA_VERSION,
    }


def plan_shard(labelling: Mapping[str, Any], pairs: Place, phrases: Place) -> dict[str, Any]:
    """Return everything that the labels of one input shard depend on, with its fingerprint.

    Args:
        labelling: see ``describe_labelling``.
        pairs: the shard of web pairs.
        phrases: the shard of their phrases.

    Raises:
        MissingInputError: the shard of phrases is not there.
    """
    if not exists(phrases):
        raise MissingInputError(f"{phrases}: no phrases for {pairs}; run: dvc repro phrases")
    entry = {
        **labelling,
        "parser": _parser_name(phrases),
        "input": {"pairs": _identity(pairs), "phrases": _identity(phrases)},
    }
    return {**entry, FINGERPRINT: fingerprint(entry)}


def labelling_code() -> list[Path]:
    """Return the files that decide what a row becomes; labels of an older version must not stay unnoticed."""
    modules = [Path(str(module.__file__)) for module in (decoding, images, labeller, selection, teachers)]
    modules.append(Path(str(teachers.__file__)).with_name("open_set_teachers.py"))  # not imported: it takes seconds
    return [*modules, *Path(str(glip_model.__file__)).parent.glob("*.py")]


def finished_summary(path: Place, expected_fingerprint: str) -> ShardSummary | None:
    """Return the figures of a shard if it is there, whole, and has this fingerprint; else None."""
    try:
        # The fingerprint first, from the end of the file: a shard of another teacher need not be read.
        if read_fingerprint(path) != expected_fingerprint:
            return None
        # Every page against its checksum, the pictures' as well.
        records = read_shard(path, GroundingRecord)
    except ShardError:
        return None
    sha256 = patiently(lambda: file_sha256(path), path)
    return summarise(path.name, records, expected_fingerprint, size(path), sha256)


def summarise(
    name: str, records: Sequence[GroundingRecord], fingerprint: str, num_bytes: int, sha256: str
) -> ShardSummary:
    """Count what a shard holds."""
    phrases = [phrase for record in records for phrase in record.phrases]
    row_rejects = Counter(record.reject_reason for record in records if record.reject_reason)
    phrase_rejects = Counter(phrase.reject_reason for phrase in phrases if phrase.reject_reason)
    return ShardSummary(
        name=name,
        rows=len(records),
        phrases=len(phrases),
        boxes=sum(len(phrase.boxes) for phrase in phrases),
        row_rejects=dict(sorted(row_rejects.items())),
        phrase_rejects=dict(sorted(phrase_rejects.items())),
        fingerprint=fingerprint,
        bytes=num_bytes,
        sha256=sha256,
    )


def read_manifest(folder: Place) -> dict[str, ShardSummary]:
    """Return the summaries of a complete folder by shard; none where it is not complete."""
    place = folder / MANIFEST_FILE
    try:
        shards = json.loads(patiently(place.read_text, place))["shards"] if exists(place) else []
        return {entry["name"]: ShardSummary(**entry) for entry in shards}
    except (ValueError, KeyError, TypeError):  # of an older version
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
    with replacing(folder / MANIFEST_FILE) as aside:
        write_json(aside, {"schema_version": SCHEMA_VERSION, "provenance": common, "shards": shards})


def remove_manifest(folder: Place) -> None:
    """Say that a folder is not complete."""
    remove(folder / MANIFEST_FILE)


def _identity(shard: Place) -> str | None:
    try:
        return rows_sha256(shard)
    except ShardError:
        return None  # a broken shard is reported by the worker that reads it, after the others are done


def _parser_name(phrases: Place) -> str | None:
    try:
        return str(json.loads(read_metadata(phrases)[PROVENANCE_KEY])["parser"])
    except (ShardError, KeyError, ValueError):
        return None
