"""Which shards are finished, and with what.

A shard's fingerprint covers all that its content depends on: input shards, teacher and settings. It rests in the
shard's own metadata, so a shard and the claim that it is finished appear in one rename and cannot contradict each other.
manifest.json is a summary written at the end, for people and for checking copies.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.shards import PROVENANCE_KEY, read_metadata, read_table
from pipeline.errors import ShardError

MANIFEST_FILE = "manifest.json"
FINGERPRINT = "fingerprint"


@dataclass(frozen=True)
class ShardSummary:
    """Figures of one finished shard."""

    name: str
    rows: int
    phrases: int
    boxes: int
    row_rejects: Mapping[str, int]
    phrase_rejects: Mapping[str, int]
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**self.__dict__, "row_rejects": dict(self.row_rejects), "phrase_rejects": dict(self.phrase_rejects)}


def file_sha256(path: Path) -> str:
    """Return the hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(provenance: Mapping[str, Any]) -> str:
    """Hash everything that a shard's content depends on."""
    return hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()


def is_finished(path: Path, expected_fingerprint: str) -> bool:
    """Tell whether a whole, readable shard with this fingerprint is there."""
    if not path.is_file():
        return False
    try:
        provenance = json.loads(read_metadata(path).get(PROVENANCE_KEY, "{}"))
        if provenance.get(FINGERPRINT) != expected_fingerprint:
            return False
        summarise_shard(path)  # reads every page but the pictures'
    except (ShardError, json.JSONDecodeError):
        return False
    return True


def summarise_shard(path: Path) -> ShardSummary:
    """Count what a shard holds, without reading its pictures; ShardError when it is broken."""
    table = read_table(path, ["phrases", "reject_reason"])
    row_rejects: Counter[str] = Counter(reason for reason in table["reject_reason"].to_pylist() if reason)
    phrase_rejects: Counter[str] = Counter()
    num_phrases = num_boxes = 0
    for phrases in table["phrases"].to_pylist():
        num_phrases += len(phrases)
        num_boxes += sum(len(phrase["boxes"]) for phrase in phrases)
        phrase_rejects.update(phrase["reject_reason"] for phrase in phrases if phrase["reject_reason"])
    return ShardSummary(
        name=path.name,
        rows=len(table),
        phrases=num_phrases,
        boxes=num_boxes,
        row_rejects=dict(sorted(row_rejects.items())),
        phrase_rejects=dict(sorted(phrase_rejects.items())),
        sha256=file_sha256(path),
    )
