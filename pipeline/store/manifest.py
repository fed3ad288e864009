"""What a folder of shards holds, in one small file: DVC keeps its hash where there are too many pictures to hash.

Shards carry a hash over their rows in their metadata, so that their ends alone are read.
"""

from __future__ import annotations

from typing import Any

from pipeline.store.provenance import fingerprint
from pipeline.store.shards import ROWS_SHA256_KEY, list_shards, read_end, rows_sha256
from pipeline.store.storage import Place, side_by_side, size


def describe_shards(folder: Place) -> list[dict[str, Any]]:
    """Return name, rows, bytes and hash of every shard, in order; the place of the folder is no part of it.

    The hash covers rows and metadata: vocabulary, provenance, settings.

    Raises:
        MissingInputError: there are no shards.
        ShardError: one is broken.
    """
    return side_by_side(_describe, list_shards(folder))


def _describe(shard: Place) -> dict[str, Any]:
    end, metadata = read_end(shard)
    if ROWS_SHA256_KEY not in metadata:
        metadata[ROWS_SHA256_KEY] = rows_sha256(shard)
    return {"name": shard.name, "rows": end.num_rows, "bytes": size(shard), "sha256": fingerprint(metadata)}
