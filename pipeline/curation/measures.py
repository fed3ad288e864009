"""What is measured of every pair once, in columns beside the records, so that thresholds may change without a GPU.

A shard of records has a table of its own for each measure, with the same rows in the same order: ``looks`` and one for
each score of a model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from glip_model.images import ImageError, check_image
from pipeline.prepare.held_out import perceptual_hash
from pipeline.prepare.validation import CHECKED_SIDE
from pipeline.store.atomic import replacing
from pipeline.store.images import read_encoded
from pipeline.store.records import CaptionRecord
from pipeline.store.shards import PROVENANCE_KEY
from pipeline.store.storage import Place

READ_AT_ONCE = 64
"""Pictures of records that refer to theirs; a store answers them side by side."""
LOOKS_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("digest", pa.uint64()),
        pa.field("looks", pa.uint64()),
        pa.field("contrast", pa.float32()),
    ]
)
"""Hash of a picture's bytes, its perceptual hash (null where it shows too little), standard deviation of its grey
values; all null where it cannot be read."""
SCORE_SCHEMA = pa.schema([pa.field("key", pa.string()), pa.field("score", pa.float32())])
VERDICT_SCHEMA = pa.schema([pa.field("key", pa.string()), pa.field("reject_reason", pa.string())])


def measure_looks(pairs: Sequence[CaptionRecord], max_pixels: int, roots: Sequence[str]) -> pa.Table:
    """Look at the pictures of some pairs.

    Args:
        pairs: of one shard.
        max_pixels: larger pictures are not opened.
        roots: where pictures may be that records refer to.

    Returns:
        One row a pair, as ``LOOKS_SCHEMA`` says.
    """
    rows = []
    for pair, data in zip(pairs, _encoded(pairs, roots), strict=True):
        row: dict[str, Any] = {"key": pair.key}
        if not isinstance(data, ImageError):
            row |= _look(data, max_pixels)
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=LOOKS_SCHEMA)


def _encoded(pairs: Sequence[CaptionRecord], roots: Sequence[str]) -> Iterator[bytes | ImageError]:
    for start in range(0, len(pairs), READ_AT_ONCE):
        yield from read_encoded([pair.image for pair in pairs[start : start + READ_AT_ONCE]], roots)


def _look(data: bytes, max_pixels: int) -> dict[str, Any]:
    try:
        _, small, _ = check_image(data, max_pixels, CHECKED_SIDE)
    except ImageError:
        return {}
    digest = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
    return {"digest": digest, "looks": perceptual_hash(small), "contrast": contrast(small)}


def contrast(image: Image.Image) -> float:
    """Return the standard deviation of a picture's grey values, 0 to 127.5."""
    return float(np.asarray(image.convert("L")).std())


def write_measure(place: Place, table: pa.Table, provenance: Mapping[str, Any]) -> None:
    """Write what was measured of a shard, whole or not at all; StorageError where it cannot be written."""
    with replacing(place) as aside:
        told = table.replace_schema_metadata({PROVENANCE_KEY: json.dumps(provenance)})
        pq.write_table(told, aside, compression="zstd", write_page_checksum=True)
