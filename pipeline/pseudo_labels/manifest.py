"""Which shards are finished, and with what.

A shard's fingerprint covers all that its content depends on: input shards, teacher, settings and the code that labels.
It rests in the shard's own metadata, so a shard and the claim that it is finished appear in one rename and cannot
contradict each other, however the stage was killed. manifest.json is a summary written at the end, for people and for
checking copies; while it is missing, the folder is not complete.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glip_model.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from pipeline.data.provenance import FINGERPRINT, file_sha256
from pipeline.data.shards import PROVENANCE_KEY, read_metadata, read_table
from pipeline.errors import MissingInputError, ShardError

MANIFEST_FILE = "manifest.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
"""Files beside the weights that decide how captions are read, where the teacher has them."""


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
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; ``ShardSummary(**values)`` is the way back."""
        return dataclasses.asdict(self)


def describe_teacher(folder: Path) -> dict[str, Any]:
    """Return a teacher's name and the hashes of its weights, config and tokenizer.

    Raises:
        MissingInputError: there is no model in this folder.
    """
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        if not (folder / name).is_file():
            raise MissingInputError(f"{folder / name}: no such teacher; run: dvc repro train@teacher")
    files = [folder / name for name in (CONFIG_FILE, *TOKENIZER_FILES) if (folder / name).is_file()]
    return {
        "name": folder.name,
        "sha256": file_sha256(folder / WEIGHTS_FILE),
        "files": {path.name: file_sha256(path) for path in files},
    }


def finished_summary(path: Path, expected_fingerprint: str) -> ShardSummary | None:
    """Return the figures of a shard if it is there, whole, and has this fingerprint; else None."""
    if not path.is_file():
        return None
    try:
        # The fingerprint first, from the end of the file: a shard of another teacher need not be read.
        if read_fingerprint(path) != expected_fingerprint:
            return None
        read_table(path)  # every page against its checksum, the pictures' as well
        return summarise_shard(path)
    except ShardError:
        return None


def read_fingerprint(path: Path) -> str | None:
    """Return the fingerprint in a shard's metadata; None where it has none, ShardError when the file is broken."""
    try:
        provenance = json.loads(read_metadata(path).get(PROVENANCE_KEY, "{}"))
    except json.JSONDecodeError as error:
        raise ShardError(f"{path}: {PROVENANCE_KEY} is no JSON ({error}); delete it and run: dvc repro") from error
    return provenance.get(FINGERPRINT) if isinstance(provenance, dict) else None


def summarise_shard(path: Path) -> ShardSummary:
    """Count what a shard holds, without unpacking its pictures; ShardError when it is broken."""
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
        fingerprint=read_fingerprint(path),
        sha256=file_sha256(path),
    )
